import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { Logger } from 'pino';
import type { Shard } from '../../topology/topology.js';
import { KEY_MARK, keyOfLock } from './transaction-key.js';
import type { Branch, HeldByPrepared, ShardReading, Wait } from './wait-graph.js';

/** A connection that has not been used for so long is closed, ms. */
const IDLE_MS = 30_000;
/** A shard that did not answer is left alone for so long, ms. */
const RETRY_MS = 10_000;

/**
 * Branches, waits, and what prepared transactions hold of what is waited for. As long as no branch waits nothing more is done than to look at
 * pg_locks. When one does, each session that waits is asked about once; to ask only for those that a branch's wait leads to took twice the time (200 waited
 * for one row), because pg_blocking_pids had to be called in the recursion and for its result.
 *
 * Whose worker a process is can be seen by superusers, members of pg_read_all_stats and the process's own role alone. To others a worker's wait is that of a
 * session without a key.
 *
 * The locks of a prepared transaction have no process; their virtual transaction is the one it had, or after a restart of the server -1 and its number.
 */
const READ = `
WITH lock AS MATERIALIZED (
  SELECT pid, virtualtransaction, granted, mode, waitstart, database,
         CASE WHEN granted AND locktype = 'advisory' AND objsubid = 1 AND mode = 'ShareLock' AND classid::int8 >> 16 = ${KEY_MARK}
              THEN classid::int8 << 32 | objid::int8 END AS key,
         CASE locktype
           WHEN 'transactionid' THEN 'transaction ' || transactionid::text
           WHEN 'virtualxid' THEN 'virtual transaction ' || virtualxid
           WHEN 'relation' THEN pg_catalog.format('relation %s of database %s', relation, database)
           WHEN 'tuple' THEN pg_catalog.format('tuple (%s,%s) of relation %s of database %s', page, tuple, relation, database)
           WHEN 'advisory' THEN pg_catalog.format('advisory lock [%s,%s,%s,%s]', database, classid, objid, objsubid)
           ELSE pg_catalog.concat_ws(' ', locktype, database, relation, page, tuple, transactionid, classid, objid, objsubid)
         END AS lock
    FROM pg_catalog.pg_locks
   WHERE NOT granted OR pid IS NULL OR locktype = 'advisory'
), waiting AS MATERIALIZED (
  SELECT coalesce(a.leader_pid, l.pid) AS pid, l.pid AS process, l.waitstart, l.mode, l.lock
    FROM lock l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
   WHERE NOT l.granted
), session AS MATERIALIZED (
  SELECT pid, pg_catalog.pg_blocking_pids(pid) AS blockers
    FROM (SELECT DISTINCT pid FROM waiting) w
   WHERE EXISTS (SELECT FROM lock JOIN waiting USING (pid) WHERE key IS NOT NULL)
)
SELECT 'wait' AS kind, pid, process, waitstart::text AS since, mode, lock, blockers, NULL AS key, NULL AS database
  FROM session JOIN waiting USING (pid)
UNION ALL
SELECT 'branch', pid, NULL, NULL, NULL, NULL, NULL, key::text, database::text
  FROM lock WHERE key IS NOT NULL AND EXISTS (SELECT FROM session)
UNION ALL
SELECT DISTINCT 'held', NULL::int4, NULL::int4, NULL, h.mode, h.lock, NULL::int4[], k.key::text, NULL
  FROM lock h JOIN lock k USING (virtualtransaction) JOIN waiting w ON w.lock = h.lock
 WHERE h.pid IS NULL AND h.granted AND k.pid IS NULL AND k.key IS NOT NULL AND EXISTS (SELECT FROM session)`;

type Row =
  | ({ readonly kind: 'wait' } & Wait)
  | ({ readonly kind: 'branch' } & WithLock<Branch>)
  | ({ readonly kind: 'held' } & WithLock<HeldByPrepared>);

/** As the server says it: `key` is the lock that shows it. */
type WithLock<T> = Omit<T, 'key' | 'role'> & { readonly key: string };

/** Asks one shard who waits there for whom, by a connection of its own. */
export class LockReader {
  readonly shard: Pick<Shard, 'name' | 'url'>;
  readonly #timeoutMs: number;
  readonly #logger: Logger;
  #client: pg.Client | null = null;
  #idle: NodeJS.Timeout | null = null;
  /** It did not answer: not before this is it asked again. */
  #retryAt = 0;
  #failed = false;
  #closed = false;

  /** `timeoutMs`: how long connecting, and then the answer, may take. */
  constructor(shard: Pick<Shard, 'name' | 'url'>, timeoutMs: number, logger: Logger) {
    this.shard = shard;
    this.#timeoutMs = timeoutMs;
    this.#logger = logger;
  }

  /** Null when the shard does not answer. Never rejects. */
  async read(): Promise<ShardReading | null> {
    if (this.#closed || performance.now() < this.#retryAt) return null;
    if (this.#idle !== null) clearTimeout(this.#idle);
    try {
      const client = this.#client ?? (await this.#connect());
      const { rows } = await client.query<Row>(READ);
      this.#failed = false;
      this.#idle = setTimeout(() => void this.#disconnect(), IDLE_MS);
      this.#idle.unref();
      return readingOf(this.shard.name, rows);
    } catch (error) {
      this.#retryAt = performance.now() + RETRY_MS;
      if (!this.#failed && !this.#closed)
        this.#logger.warn(
          { err: error, shard: this.shard.name },
          'cannot ask the shard who waits for whom: deadlocks over it and other shards are not found until it answers',
        );
      this.#failed = true;
      void this.#disconnect();
      return null;
    }
  }

  /** What is being read fails with it. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#idle !== null) clearTimeout(this.#idle);
    await this.#disconnect();
  }

  async #connect(): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: this.shard.url,
      connectionTimeoutMillis: this.#timeoutMs,
      query_timeout: this.#timeoutMs,
      keepAlive: true,
      application_name: 'foreshard deadlocks',
    });
    this.#client = client;
    // What is under way fails with it; if nothing is, the next reading makes another.
    client.on('error', () => {
      if (this.#client === client) this.#client = null;
    });
    // The driver leaves a connect() unsettled for ever when its client is ended meanwhile, and the server hangs up.
    const ended = new Promise<never>((_, reject) => {
      client.once('end', () => reject(new Error('the connection has ended')));
    });
    await Promise.race([client.connect(), ended]);
    // It would take longer to compile the query than to run it; `since` is compared as text, also with another connection's.
    await client.query(
      `SET jit = off; SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET statement_timeout = ${this.#timeoutMs}`,
    );
    return client;
  }

  async #disconnect(): Promise<void> {
    const client = this.#client;
    this.#client = null;
    if (client === null) return;
    // A server that has stopped does not say goodbye.
    const patience = delay(this.#timeoutMs, undefined, { ref: false });
    await Promise.race([client.end().catch(() => undefined), patience]); // gone already
  }
}

function readingOf(shard: string, rows: readonly Row[]): ShardReading {
  return {
    shard,
    waits: rows.flatMap((row) => (row.kind === 'wait' ? [row] : [])),
    branches: rows.flatMap((row) => (row.kind === 'branch' ? known(row) : [])),
    prepared: rows.flatMap((row) => (row.kind === 'held' ? known(row) : [])),
  };
}

function known<T extends { readonly key: string }>(row: T) {
  const of = keyOfLock(BigInt(row.key));
  return of === null ? [] : [{ ...row, ...of }];
}
