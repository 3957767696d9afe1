import type { ForeshardError } from '../../topology/errors.js';
import type { DeadlockDetector, SpanningTransaction } from '../transactions/deadlock-detector.js';
import { markSql, newKey } from '../transactions/transaction-key.js';
import { encodeQuery } from '../wire/frontend.js';
import type { ClientSession } from './client-session.js';
import type { Span } from './span.js';
import type { SpreadBlock } from './spread-block.js';

/**
 * A statement over several shards, as the deadlock detector knows it: its connections are in transactions, and whoever waits for the tables of one of them waits for
 * all of it, and for the client's block, if it is in one. To the detector it is that, where the block is on several shards itself.
 */
export class SpreadWait implements SpanningTransaction {
  /** See SpanningTransaction. */
  readonly key: bigint;
  /** See SpanningTransaction. */
  waitingSince = performance.now();
  readonly #session: ClientSession;
  readonly #deadlocks: Pick<DeadlockDetector, 'add' | 'remove'>;
  readonly #span: Span | null;

  private constructor(session: ClientSession, key: bigint, deadlocks: Pick<DeadlockDetector, 'add' | 'remove'>) {
    this.#session = session;
    this.key = key;
    this.#deadlocks = deadlocks;
    this.#span = session.lease.span;
    if (this.#span === null) deadlocks.add(this);
    else this.#span.spread = this;
  }

  /** To be called before anything of it may wait. Null: deadlocks are not looked for. */
  static begin(session: ClientSession, block: SpreadBlock | null): SpreadWait | null {
    const { spanning } = session.services;
    return spanning && new SpreadWait(session, block?.key ?? newKey('query'), spanning.deadlocks);
  }

  /** Its connections have let go of everything. */
  end(): void {
    if (this.#span?.spread === this) this.#span.spread = null;
    this.#deadlocks.remove(this);
  }

  /** Rows have come for the client. */
  heard(): void {
    this.waitingSince = performance.now();
  }

  /** See SpanningTransaction. */
  fail(reason: ForeshardError): void {
    this.#session.failUnderWay(reason);
  }

  /** What a connection of its own begins with. */
  begun(sql: string): Buffer {
    return encodeQuery(`${sql}; ${markSql(this.key, 'statement')}`);
  }
}
