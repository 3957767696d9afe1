import pg from 'pg';
import type { DeadlockDetector, SpanningTransaction } from '../../../proxy/transactions/deadlock-detector.js';
import { markSql, newKey } from '../../../proxy/transactions/transaction-key.js';
import type { ForeshardError } from '../../../topology/errors.js';
import { withClient } from '../../support/client.js';
import { waitFor } from '../../support/wait-for.js';

interface Branch {
  readonly url: string;
  readonly client: pg.Client;
  readonly pid: number;
}

/** A transaction with branches that mark themselves, on connections of its own. When it is to fail, its statement is canceled on the server. */
export class SpanningClient implements SpanningTransaction {
  readonly key: bigint;
  waitingSince: number | null = null;
  /** What it was told. */
  reason: ForeshardError | null = null;
  readonly #branches = new Map<string, Branch>();
  readonly #detector: DeadlockDetector;

  private constructor(key: bigint, detector: DeadlockDetector) {
    this.key = key;
    this.#detector = detector;
  }

  /** Begins one on all of these, by name. */
  static async begin(
    detector: DeadlockDetector,
    urls: Readonly<Record<string, string>>,
    key = newKey(),
  ): Promise<SpanningClient> {
    const transaction = new SpanningClient(key, detector);
    for (const [name, url] of Object.entries(urls)) {
      const client = new pg.Client({ connectionString: url });
      // Its server has crashed.
      client.on('error', () => transaction.#branches.delete(name));
      await client.connect();
      await client.query(`BEGIN; ${markSql(key)}`);
      const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
      transaction.#branches.set(name, { url, client, pid: (rows[0] as { pid: number }).pid });
    }
    detector.add(transaction);
    return transaction;
  }

  async run(shard: string, sql: string): Promise<pg.QueryResult> {
    this.waitingSince = performance.now();
    try {
      return await this.#branch(shard).client.query(sql);
    } finally {
      this.waitingSince = null;
    }
  }

  /** Runs what will have to wait; resolves when it does, or has: the detector may be faster than whoever looks. What comes of it is in `ended`. */
  async waits(shard: string, sql: string): Promise<{ readonly ended: Promise<'done' | string> }> {
    const ended = this.run(shard, sql).then(
      () => 'done',
      (error: pg.DatabaseError) => error.code ?? error.message,
    );
    let over = false;
    void ended.then(() => {
      over = true;
    });
    await this.#untilWaiting(shard, () => over);
    return { ended };
  }

  /** Until its branch there, or a parallel worker of it, waits for a lock, or does not any more. */
  async #untilWaiting(shard: string, over: () => boolean): Promise<void> {
    const { url, pid } = this.#branch(shard);
    await withClient(url, async (c) => {
      const waits = `SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND waitstart IS NOT NULL AND $1 IN (a.pid, a.leader_pid)`;
      await waitFor(async () => over() || (await c.query(waits, [pid])).rowCount, { what: `process ${pid} to wait` });
    });
  }

  fail(reason: ForeshardError): void {
    this.reason = reason;
    void this.cancel();
  }

  /** Cancels what it waits for. */
  async cancel(): Promise<void> {
    for (const { url, pid } of this.#branches.values())
      await withClient(url, (c) => c.query('SELECT pg_cancel_backend($1)', [pid]));
  }

  pid(shard: string): number {
    return this.#branch(shard).pid;
  }

  /** Commits or rolls back everywhere, and goes. */
  async end(how: 'COMMIT' | 'ROLLBACK' = 'ROLLBACK'): Promise<void> {
    this.#detector.remove(this);
    for (const { client } of this.#branches.values()) {
      await client.query(how);
      await client.end();
    }
    this.#branches.clear();
  }

  #branch(shard: string): Branch {
    const branch = this.#branches.get(shard);
    if (branch === undefined) throw new Error(`no branch on ${shard}`);
    return branch;
  }
}
