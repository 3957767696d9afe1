import type { Logger } from 'pino';
import type { SessionStartup } from '../wire/startup.js';
import type { ConnectionFacts } from './peer.js';

/** Lines at once, and after that in a second. */
const BURST = 50;
const PER_SECOND = 5;

/** Logs logins that were refused: at most so many lines that an attack cannot fill the disk, and how many were left out. */
export class RefusalLog {
  readonly #logger: Logger;
  readonly #now: () => number;
  #tokens = BURST;
  #atMs: number;
  #leftOut = 0;

  /** @param now ms of a steady clock */
  constructor(logger: Logger, now: () => number) {
    this.#logger = logger;
    this.#now = now;
    this.#atMs = now();
  }

  refused(connection: ConnectionFacts, { user, database }: SessionStartup, sqlstate: string, reason: string): void {
    const now = this.#now();
    this.#tokens = Math.min(BURST, this.#tokens + ((now - this.#atMs) / 1000) * PER_SECOND);
    this.#atMs = now;
    if (this.#tokens < 1) {
      this.#leftOut++;
      return;
    }
    this.#tokens--;
    const from = connection.address ?? 'local';
    const leftOut = this.#leftOut === 0 ? {} : { leftOut: this.#leftOut };
    this.#leftOut = 0;
    this.#logger.warn(
      { from, tls: connection.tls !== null, user, database, sqlstate, reason, ...leftOut },
      'login refused',
    );
  }
}
