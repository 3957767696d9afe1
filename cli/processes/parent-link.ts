import type {
  AdminAnswer,
  AdminRequest,
  Holds,
  ProcessControl,
  ShutdownMode,
  Siblings,
} from '../../proxy/admin/siblings.js';
import type { LoginEvent } from '../../proxy/auth/failed-logins.js';
import type { CancelKey } from '../../proxy/clients.js';
import { type Failure, ReportedFailure } from '../failure.js';
import type { FromChild } from './messages.js';

/** The other processes and the service as a whole, reached through the parent. */
export class ParentLink implements Siblings, ProcessControl {
  readonly #tell: (message: FromChild) => void;
  readonly #asked = new Map<number, (answers: readonly AdminAnswer[]) => void>();
  readonly #reloads = new Map<number, (failure: Failure | null) => void>();
  #next = 0;

  constructor(tell: (message: FromChild) => void) {
    this.#tell = tell;
  }

  ask(request: AdminRequest): Promise<readonly AdminAnswer[]> {
    const id = this.#next++;
    return new Promise((resolve) => {
      this.#asked.set(id, resolve);
      this.#tell({ kind: 'askSiblings', id, request });
    });
  }

  cancel(slot: number, key: CancelKey): void {
    this.#tell({ kind: 'cancel', slot, key });
  }

  tellLogin(event: LoginEvent): void {
    this.#tell({ kind: 'tellLogin', event });
  }

  remember(holds: Holds): void {
    this.#tell({ kind: 'remember', holds });
  }

  reload(): Promise<void> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#reloads.set(id, (failure) => (failure === null ? resolve() : reject(new ReportedFailure(failure))));
      this.#tell({ kind: 'askReload', id });
    });
  }

  shutdown(mode: ShutdownMode): void {
    this.#tell({ kind: 'askShutdown', mode });
  }

  answered(id: number, answers: readonly AdminAnswer[]): void {
    this.#asked.get(id)?.(answers);
    this.#asked.delete(id);
  }

  result(id: number, failure: Failure | null): void {
    this.#reloads.get(id)?.(failure);
    this.#reloads.delete(id);
  }
}
