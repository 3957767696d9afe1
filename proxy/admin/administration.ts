import { ForeshardError } from '../../topology/errors.js';
import { fieldsOfError } from '../wire/error-response.js';
import type { AdminAnswer, AdminRequest } from './siblings.js';

export interface AdministrationOptions {
  readonly slot: number;
}

/** What an administrator can see of one process, and do to it. */
export class Administration {
  readonly #slot: number;

  constructor(options: AdministrationOptions) {
    this.#slot = options.slot;
  }

  /** About this process alone. Never rejects: what is wrong is in the answer. */
  async answer(request: AdminRequest): Promise<AdminAnswer> {
    const slot = this.#slot;
    try {
      if (request.kind === 'show' && request.view === 'version')
        return { kind: 'rows', slot, rows: [[`process ${process.pid}`]] };
      throw new ForeshardError('42601', 'unknown request of another process', {
        hint: 'Run the same version of Foreshard in all processes.',
      });
    } catch (error) {
      const { sqlstate, message, hint } = fieldsOfError(error);
      return { kind: 'failed', slot, sqlstate, message, ...(hint === undefined ? {} : { hint }) };
    }
  }
}
