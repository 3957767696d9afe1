import { type PoolTotals, zeroTotals } from './pool-status.js';

/** Counts and times the queries and transactions that clients have on one connection, into the totals of its pool. */
export class QueryClock {
  readonly #totals: PoolTotals;
  /** When the query that runs or ran last was sent, on performance.now()'s clock. */
  since = 0;
  #inQuery = false;
  #inTransaction = false;
  #transactionSince = 0;

  constructor(totals: PoolTotals = zeroTotals()) {
    this.#totals = totals;
  }

  /** Something of a client's is sent. */
  begin(): void {
    if (this.#inQuery) return;
    const now = performance.now();
    this.#inQuery = true;
    this.since = now;
    if (this.#inTransaction) return;
    this.#inTransaction = true;
    this.#transactionSince = now;
  }

  /** ReadyForQuery. @param ofClient what was sent last was a client's; @param idle no transaction is open */
  ready(ofClient: boolean, idle: boolean): void {
    const now = performance.now();
    const totals = this.#totals;
    if (this.#inQuery && ofClient) {
      this.#inQuery = false;
      totals.queryCount += 1;
      totals.queryTimeMs += now - this.since;
    }
    if (!idle || !this.#inTransaction) return;
    this.#inTransaction = false;
    totals.xactCount += 1;
    totals.xactTimeMs += now - this.#transactionSince;
  }

  /** ReadyForQuery to a client's query. @returns how long it took, ms */
  answered(idle: boolean): number {
    const ms = performance.now() - this.since;
    this.ready(true, idle);
    return ms;
  }

  /** A query of its own transaction, among others of their own, took so long. */
  read(ms: number): void {
    const totals = this.#totals;
    totals.queryCount += 1;
    totals.queryTimeMs += ms;
    totals.xactCount += 1;
    totals.xactTimeMs += ms;
  }
}
