import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';
import { errorCode, explainConnectError, redactUrl } from '../topology/connection.js';
import { ForeshardError } from '../topology/errors.js';
import type { Shard } from '../topology/topology.js';
import { DRIVER_LOCK_CLASS } from './names.js';

/** A shard cannot be reached: tried again, never a reason to give up by itself. */
export class ShardUnavailableError extends ForeshardError {
  constructor(shard: Shard, error: unknown) {
    const { reason, hint } = explainConnectError(error);
    super('08006', `cannot use shard "${shard.name}" at ${redactUrl(shard.url)}: ${reason}`, { hint, cause: error });
  }
}

/** What a shard lacks, and what to do, by SQLSTATE; what class 53 has besides are limits, which the server names. */
const SCARCE: Readonly<Record<string, { readonly what: string; readonly remedy: string }>> = {
  '53100': { what: 'the disk is full', remedy: 'Make room there' },
  '53200': { what: 'memory is short', remedy: 'See that less of it is used there, or that there is more' },
};

/** A shard lacks what it needs to do something: room, memory, or a place below one of its limits. Tried again until it has it. */
export class ShardExhaustedError extends ForeshardError {
  /** As the server's own error has it, for `errorCode`. */
  readonly code: string;

  constructor(shard: Shard, error: Error & { readonly hint?: string }) {
    const code = errorCode(error);
    const { what, remedy } = SCARCE[code] ?? { what: 'a limit is reached', remedy: 'Raise that limit there' };
    const theirs = error.hint === undefined ? '' : ` (${error.hint})`;
    super(code, `${what} on shard "${shard.name}": ${error.message}${theirs}`, {
      hint: `${remedy}: the migration goes on by itself.`,
      cause: error,
    });
    this.code = code;
  }
}

/**
 * Everything a query's meaning may hang on, set to one value whatever role and database say. No compiling: each chunk of rows is read by another text. And one process on
 * either side, whose portions are paced: to start others for each chunk would take more than they spare.
 */
const SETTINGS = `
SET jit = off; SET max_parallel_workers_per_gather = 0;
SET search_path = pg_catalog; SET lock_timeout = 0; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed'; SET synchronous_commit = on;
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;
SET bytea_output = 'hex'; SET standard_conforming_strings = on; SET row_security = off; SET xmloption = content`;

/** SQLSTATE of a lock that was not granted within lock_timeout, and of a deadlock. */
const LOCK_TROUBLE = new Set(['55P03', '40P01']);
/** How long a lock on an application's table may make others queue behind us before we step back. */
const LOCK_TIMEOUT_MS = 200;
/** How long a server that is idle may be silent before it is asked whether it is still there, ms. */
const KEEP_ALIVE_MS = 10_000;
/** How often somebody is asked whether a long statement is still wanted, ms. */
const CHECK_MS = 250;
/** How long a server may take to say good-bye, ms. */
const GOODBYE_MS = 2000;

/**
 * The one connection through which a migration changes a shard. It holds a session lock: a process that takes a migration over
 * ends its predecessor's connection first, so that a process that was only asleep cannot wake and, say, reopen a gate
 * behind the new driver's back.
 */
export class ShardSession {
  readonly shard: Shard;
  readonly #client: pg.Client;
  #dead: Error | null = null;
  #withinMs: number | null = null;
  /** server_version_num */
  version = 0;

  private constructor(shard: Shard, client: pg.Client) {
    this.shard = shard;
    this.#client = client;
    client.on('error', (error) => {
      this.#dead ??= error;
    });
    client.on('end', () => {
      this.#dead ??= new Error('the connection ended');
    });
  }

  /**
   * Connects to a shard.
   * @param operation second half of the driver's lock, or null for a connection that only reads
   * @throws ShardUnavailableError
   */
  static async open(shard: Shard, operation: number | null): Promise<ShardSession> {
    const client = new pg.Client({
      connectionString: shard.url,
      connectionTimeoutMillis: 10_000,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEP_ALIVE_MS,
      application_name: operation === null ? 'foreshard migrator (reader)' : 'foreshard migrator',
    });
    const session = new ShardSession(shard, client);
    try {
      await client.connect();
      await client.query(SETTINGS);
      const version = await client.query<{ v: number }>("SELECT current_setting('server_version_num')::int AS v");
      session.version = (version.rows[0] as { v: number }).v;
      if (operation !== null) await session.#lock(operation);
    } catch (error) {
      await session.close();
      throw new ShardUnavailableError(shard, error);
    }
    return session;
  }

  async #lock(operation: number): Promise<void> {
    const deadline = performance.now() + 10_000;
    const key = [DRIVER_LOCK_CLASS, operation];
    while (performance.now() < deadline) {
      const got = await this.#client.query<{ got: boolean }>('SELECT pg_try_advisory_lock($1, $2) AS got', key);
      if (got.rows[0]?.got === true) return;
      await this.#client.query(
        `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
            AND classid = $1::int8::oid AND objid = ($2::int8 & 4294967295)::oid AND pid <> pg_backend_pid()
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
        key,
      );
      await delay(20);
    }
    throw new Error('an earlier driver of this migration cannot be ended');
  }

  /**
   * From now on a server that does not answer a statement within so many ms is taken for lost; null: it may take any time. A server, or a network,
   * that goes without a word leaves whoever waits for it waiting for minutes.
   */
  answerWithin(ms: number | null): void {
    this.#withinMs = ms;
  }

  /** One statement (or several without parameters). @throws ShardUnavailableError, ShardExhaustedError, or what the server says */
  async query<T extends pg.QueryResultRow>(sql: string, values?: readonly unknown[]): Promise<T[]> {
    if (this.#dead !== null) throw new ShardUnavailableError(this.shard, this.#dead);
    const ms = this.#withinMs;
    const late = ms === null ? undefined : setTimeout(() => this.#lose(new Error(`no answer within ${ms} ms`)), ms);
    try {
      return (await this.#client.query<T>(sql, values as unknown[] | undefined)).rows;
    } catch (error) {
      if (this.#dead !== null || isConnectionError(error)) throw new ShardUnavailableError(this.shard, error);
      if (errorCode(error).startsWith('53')) throw new ShardExhaustedError(this.shard, error as Error);
      throw error;
    } finally {
      clearTimeout(late);
    }
  }

  /**
   * One statement that may take long.
   * @param check called meanwhile; when it throws, the statement is canceled
   */
  async interruptible<T extends pg.QueryResultRow>(
    sql: string,
    values: readonly unknown[] | undefined,
    check: () => void,
  ): Promise<T[]> {
    const running = this.query<T>(sql, values).then(
      (rows) => ({ rows }),
      (error: unknown) => ({ error }),
    );
    for (;;) {
      const finished = await Promise.race([running, delay(CHECK_MS, null, { ref: false })]);
      if (finished !== null) {
        if ('rows' in finished) return finished.rows;
        throw finished.error;
      }
      try {
        check();
      } catch (reason) {
        await this.cancel();
        await running;
        throw reason;
      }
    }
  }

  #lose(why: Error): void {
    this.#dead ??= why;
    (this.#client as unknown as { connection: { stream: Duplex } }).connection.stream.destroy();
  }

  /** Cancels the statement that runs now, over a connection of its own. */
  async cancel(): Promise<void> {
    const pid = (this.#client as unknown as { processID: number | null }).processID;
    if (pid === null) return;
    const other = await ShardSession.open(this.shard, null);
    try {
      await other.query('SELECT pg_cancel_backend($1)', [pid]);
    } finally {
      await other.close();
    }
  }

  /** For readers that expect a pg client: `query` of this session. */
  get reader(): Pick<pg.ClientBase, 'query'> {
    return this.#client;
  }

  /** Statements in one transaction. */
  async transaction(statements: readonly string[]): Promise<void> {
    await this.query('BEGIN');
    try {
      for (const sql of statements) await this.query(sql);
      await this.query('COMMIT');
    } catch (error) {
      if (this.#dead === null) await this.query('ROLLBACK');
      throw error;
    }
  }

  /**
   * Statements that lock an application's tables, in one transaction: a short lock_timeout, and again, so that the
   * application's own statements never wait behind ours for longer than that.
   * @param check called between the tries; throws to give up
   */
  async lockingTransaction(statements: readonly string[], check: () => void): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      try {
        await this.transaction([`SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`, ...statements]);
        return;
      } catch (error) {
        if (!LOCK_TROUBLE.has(errorCode(error))) throw error;
        check();
        await delay(Math.min(100 * 2 ** attempt, 2000));
      }
    }
  }

  /**
   * Copies what a query gives on another shard into columns of a table here: values as the servers themselves write and read them, of any size.
   * @throws AbortError when `signal` fires; the other session is of no use any more when it throws
   */
  async copyFrom(other: ShardSession, query: string, into: string, signal: AbortSignal): Promise<void> {
    const reading = other.#client.query(copyTo(`COPY (${query}) TO STDOUT`));
    const writing = this.#client.query(copyFrom(`COPY ${into} FROM STDIN`));
    try {
      await pipeline(reading, writing, { signal });
    } catch (error) {
      for (const session of [this, other])
        if (session.#dead !== null) throw new ShardUnavailableError(session.shard, session.#dead);
      throw error;
    }
  }

  async close(): Promise<void> {
    // A connection that never came up, or is broken, has nothing to say good-bye to.
    const late = setTimeout(() => this.#lose(new Error('no good-bye')), GOODBYE_MS);
    await this.#client.end().catch(() => undefined);
    clearTimeout(late);
  }
}

/** Class 08 is not among them: over a living connection it tells of one that the server itself tried to make. */
function isConnectionError(error: unknown): boolean {
  const code = errorCode(error);
  return code.startsWith('57P') || code.startsWith('E') || /Connection terminated/.test(String(error));
}
