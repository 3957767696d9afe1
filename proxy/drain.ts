import { ForeshardError } from '../topology/errors.js';
import type { ShutdownMode } from './admin/siblings.js';
import type { Session } from './session/session.js';

/** Open transactions are waited for so long when the proxy is to close now. */
const NOW_MS = 5000;
const LOOK_EVERY_MS = 20;

export interface DrainOptions {
  readonly sessions: () => readonly Pick<Session, 'idle' | 'close'>[];
  /** Clients' connections, those that are still logging in included. */
  readonly connections: () => number;
}

/** How a proxy's clients go when it is to end. Urged again in another mode, it goes on in that one. */
export class Drain {
  readonly #options: DrainOptions;
  #mode: ShutdownMode | null = null;
  /** On `performance.now()`'s clock: when `mode` gives way to a stricter one. */
  #until = Number.POSITIVE_INFINITY;

  constructor(options: DrainOptions) {
    this.#options = options;
  }

  /** Null: nobody has to go. */
  get mode(): ShutdownMode | null {
    return this.#mode;
  }

  /** @param patienceMs how long `wait_for_clients` waits; 0: for ever */
  urge(mode: ShutdownMode, patienceMs: number): void {
    if (this.#mode === 'now') return;
    this.#mode = mode;
    const ms = mode === 'now' ? NOW_MS : mode === 'wait_for_clients' && patienceMs > 0 ? patienceMs : null;
    this.#until = ms === null ? Number.POSITIVE_INFINITY : performance.now() + ms;
  }

  /** Resolves when no client is left. */
  async finished(): Promise<void> {
    for (;;) {
      const late = performance.now() > this.#until;
      if (late && this.#mode === 'wait_for_clients') this.urge('wait_for_servers', 0);
      const sessions = this.#options.sessions();
      if (this.#mode !== 'wait_for_clients')
        for (const session of sessions) if (session.idle || (late && this.#mode === 'now')) session.close(bye());
      if (this.#done()) return;
      await new Promise((resolve) => {
        setTimeout(resolve, LOOK_EVERY_MS);
      });
    }
  }

  #done(): boolean {
    if (this.#options.sessions().length > 0) return false;
    // Who waits for clients to leave waits for those that are just coming in, too.
    return this.#mode === 'now' || this.#options.connections() === 0;
  }
}

function bye(): ForeshardError {
  return new ForeshardError('57P01', 'terminating connection because the proxy is shutting down');
}
