import { setTimeout as delay } from 'node:timers/promises';
import { errorCode } from '../topology/connection.js';
import { type Chunk, type Chunked, Chunks, chunked, chunkPredicate, type Identity } from './chunks.js';
import { type Hashing, hashing } from './hashing.js';
import { HEAPS } from './heaps.js';
import { differing, type RowsOf, type RowVersion, rowsByKey, rowsWhere } from './keyed-rows.js';
import type { Move, MovingTable } from './move.js';
import { followed, hasAllWithin } from './replication.js';
import type { TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';
import type { Throttle } from './throttle.js';
import { rowBytes, type Volume } from './volumes.js';

/** A chunk has no more bytes, and takes no more of the time in which it may be read, s. */
const CHUNK_BYTES = 8_388_608;
const CHUNK_SECONDS = 0.5;
const MIN_CHUNK_ROWS = 256;
/** From so many heap pages on (8 MB), rows that lie about in another order than that of the identity are read page after page. */
const SCATTERED_PAGES = 1024;
const SCATTERED_CORRELATION = 0.5;
/** So many rows for each page: the table is read about as often as a page has rows over this. */
const SCATTERED_ROWS = 8;
/** Of a chunk that differs: rows per bucket that are aimed at, and the most buckets. */
const BUCKET_ROWS = 256;
const MAX_BUCKETS = 65_536;
/** Rows whose hashes are fetched at once. */
const FETCH_ROWS = 100_000;
/** Rows that may differ at one moment before it can no longer be writes on their way. */
const MAX_SUSPECTS = 20_000;
const LIVE_ROUNDS = 8;
const LOCKED_ROUNDS = 3;
const TO_FOLLOW = { everyMs: 5 };
/** How long rows are locked at most while a marker is on its way, ms. */
const LOCKED_MS = 1000;
/** Rows that are locked by somebody who says nothing any more are let go after this, ms. */
const SILENCE_MS = 5000;

export interface Comparison {
  /** Rows of the interval that were compared. */
  readonly rows: number;
  /** Keys of rows that differ, as text; empty: both sides are the same. */
  readonly differing: readonly string[];
  /** Those that such rows are in. */
  readonly chunks: readonly Chunk[];
}

interface Sum {
  readonly rows: string;
  readonly hash: string;
}

/** How far a table has been compared. */
export interface Place {
  /** All rows up to this one; null: none. */
  readonly after: Identity | null;
  readonly rows: number;
}

export interface HowToCompare {
  readonly throttle: Throttle;
  readonly volume: Volume;
  /** Where an earlier comparison was interrupted, without a difference; default: at the beginning. */
  readonly from?: Place;
  /** After each chunk. @param rows of the table, so far */
  readonly read: (rows: number) => Promise<void>;
  /** After each chunk that is the same on both sides, while none before it differs. */
  readonly passed: (place: Place) => Promise<void>;
}

/** Number of rows and the sum of their hashes. */
function sumSql(t: MovingTable, h: Hashing, where: string): string {
  return `SELECT count(*)::text AS rows, coalesce(sum(${h.row}), 0)::text AS hash FROM ${t.sql} WHERE ${where}`;
}

/** Of all rows of the interval. */
export async function tableSum(session: ShardSession, t: MovingTable, info: TableInfo): Promise<Sum> {
  const result = await session.query<{ rows: string; hash: string }>(sumSql(t, hashing(info), t.predicate()));
  return result[0] as Sum;
}

/**
 * Compares a table's rows of the interval on both sides while it is written to, chunk after chunk: by the sum of hashes; then, in a chunk that
 * differs, row by row behind a marker, until nothing differs; what keeps differing is looked at under a row lock. A row whose key changes
 * meanwhile may be passed over, as one that is inserted behind us is: the exact comparison after the flip sees both.
 */
export function compareLive(m: Move, t: MovingTable, info: TableInfo, how: HowToCompare): Promise<Comparison> {
  const of = new Comparing(m, t, info, m.destination);
  return of.compare(how, (suspects) => confirmLive(m, of, suspects));
}

/** Compares chunks that an earlier comparison has found to differ, and rows that it has named, once more. */
export async function compareAgain(
  m: Move,
  t: MovingTable,
  info: TableInfo,
  before: Pick<Comparison, 'differing' | 'chunks'>,
): Promise<Pick<Comparison, 'differing' | 'chunks'>> {
  const of = new Comparing(m, t, info, m.destination);
  const left = new Set(await confirmLive(m, of, before.differing));
  const concerned: Chunk[] = [];
  for (const chunk of before.chunks) {
    m.exec.at('before:verify');
    await m.exec.rest();
    const { suspects } = await of.compareChunk(chunk);
    const standing = suspects.length > MAX_SUSPECTS ? suspects : await confirmLive(m, of, suspects);
    for (const key of standing) left.add(key);
    if (standing.length > 0) concerned.push(chunk);
  }
  return { differing: [...left], chunks: concerned };
}

async function confirmLive(m: Move, of: Comparing, suspects: readonly string[]): Promise<readonly string[]> {
  let left = suspects;
  for (let round = 1; left.length > 0 && round < LIVE_ROUNDS; round++) {
    m.exec.at('before:verify');
    left = await of.stillDiffering(left);
  }
  for (let round = 0; left.length > 0 && round < LOCKED_ROUNDS; ) {
    const locked = await of.lockedSuspects(left);
    // Nobody who writes these rows is to wait for a destination that is behind, or for somebody who has paused the migration.
    if (locked === null) await followed(m, TO_FOLLOW);
    else {
      left = locked;
      round++;
    }
  }
  return left;
}

/** The same when nobody writes to the source any more. @param snapshot of the destination, of when both sides were to be the same */
export function compareFrozen(
  m: Move,
  snapshot: ShardSession,
  t: MovingTable,
  info: TableInfo,
  how: HowToCompare,
): Promise<Comparison> {
  return new Comparing(m, t, info, snapshot).compare(how, async (suspects) => suspects);
}

/** One table, compared between the source and a session of the destination. */
class Comparing {
  readonly #m: Move;
  readonly #t: MovingTable;
  readonly #rows: RowsOf;
  readonly #h: Hashing;
  readonly #of: Chunked;
  readonly #there: ShardSession;
  /** Whether the destination is read as it is now, and what is under way has to be waited for. */
  readonly #settle: () => Promise<void>;

  constructor(m: Move, t: MovingTable, info: TableInfo, there: ShardSession) {
    this.#m = m;
    this.#t = t;
    this.#rows = { sql: t.sql, where: t.predicate(), info };
    this.#h = hashing(info);
    this.#of = chunked(t, info);
    this.#there = there;
    this.#settle = async () => {
      if (there === m.destination) await followed(m, TO_FOLLOW);
    };
  }

  /** @param confirm which of the rows that seem to differ do so */
  async compare(
    { throttle, volume, from, read, passed }: HowToCompare,
    confirm: (suspects: readonly string[]) => Promise<readonly string[]>,
  ): Promise<Comparison> {
    const m = this.#m;
    const bytes = rowBytes(volume);
    const { pages, scattered } = await this.#layout();
    const all = new Chunks(m.source, this.#of, { pages, bytes: volume.bytes, rowBytes: bytes }, () => m.exec.check());
    let { after, rows } = from ?? { after: null, rows: 0 };
    const found: string[] = [];
    const chunks: Chunk[] = [];
    for (;;) {
      m.exec.at('before:verify');
      await m.exec.rest();
      const size = Math.max(scattered, this.#chunkRows(bytes, throttle.readRate));
      const chunk = await all.next(after, size);
      const { count, suspects } = await this.compareChunk(chunk);
      rows += count;
      const standing = suspects.length > MAX_SUSPECTS ? suspects : await confirm(suspects);
      found.push(...standing);
      if (standing.length > 0) chunks.push(chunk);
      after = chunk.to;
      await read(rows);
      if (found.length === 0) await passed({ after, rows });
      if (after === null || found.length > MAX_SUSPECTS) return { rows, differing: found, chunks };
      await throttle.pauseAfterRead(count * bytes);
    }
  }

  /** @param bytes of a row */
  #chunkRows(bytes: number, rate: number | null): number {
    const most = this.#m.options.compareRows;
    const wanted = Math.min(CHUNK_BYTES, rate === null ? CHUNK_BYTES : rate * CHUNK_SECONDS) / bytes;
    return Math.min(most, Math.max(MIN_CHUNK_ROWS, Math.round(wanted)));
  }

  /** The table's pages, and rows that a chunk is to have at least, so that a table is not read anew for each few of them. */
  async #layout(): Promise<{ pages: number; scattered: number }> {
    const [found] = await this.#m.source.query<{ pages: number; correlation: number | null }>(
      `SELECT coalesce(sum(pg_relation_size(heap.oid) / current_setting('block_size')::int), 0)::float8 AS pages, min(abs(s.correlation))::float8 AS correlation FROM ${HEAPS}
         JOIN pg_namespace n ON n.oid = heap.relnamespace
         LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = heap.relname AND s.attname = $2 AND NOT s.inherited`,
      [this.#t.sql, this.#of.columns[0]?.name],
    );
    const pages = found?.pages ?? 0;
    const inOrder = (found?.correlation ?? 0) >= SCATTERED_CORRELATION;
    return { pages, scattered: inOrder || pages < SCATTERED_PAGES ? 0 : pages * SCATTERED_ROWS };
  }

  /** @returns rows at the source, and keys of those that differ now */
  async compareChunk(chunk: Chunk): Promise<{ count: number; suspects: readonly string[] }> {
    const where = chunkPredicate(this.#of, chunk);
    const sql = sumSql(this.#t, this.#h, where);
    const [[source], [destination]] = await this.#both<{ rows: string; hash: string }>(sql);
    const count = Number(source?.rows);
    if (source?.rows === destination?.rows && source?.hash === destination?.hash) return { count, suspects: [] };
    return { count, suspects: await this.#suspectsIn(where, Math.max(count, Number(destination?.rows))) };
  }

  /** Keys of rows of a chunk that differ now. */
  async #suspectsIn(where: string, rows: number): Promise<string[]> {
    if (rows <= FETCH_ROWS) return this.#differing((session) => rowsWhere(session, this.#rows, where));
    const bucket = this.#h.bucket(Math.min(MAX_BUCKETS, 2 ** Math.ceil(Math.log2(rows / BUCKET_ROWS))));
    type Bucket = { bucket: number; rows: string; hash: string };
    const [source, destination] = await this.#both<Bucket>(
      `SELECT ${bucket} AS bucket, count(*)::text AS rows, sum(${this.#h.row})::text AS hash FROM ${this.#t.sql} WHERE ${where} GROUP BY 1`,
    );
    const theirs = new Map(destination.map((b) => [b.bucket, `${b.rows} ${b.hash}`]));
    const ours = new Set(source.map((b) => b.bucket));
    const suspected = [
      ...source.filter((b) => theirs.get(b.bucket) !== `${b.rows} ${b.hash}`),
      ...destination.filter((b) => !ours.has(b.bucket)),
    ];
    const suspects: string[] = [];
    for (let first = 0; first < suspected.length && suspects.length <= MAX_SUSPECTS; ) {
      const part: number[] = [];
      for (let n = 0; first < suspected.length && (part.length === 0 || n < FETCH_ROWS); first++) {
        const b = suspected[first] as Bucket;
        part.push(b.bucket);
        n += Number(b.rows);
      }
      const isPart = `${where} AND ${bucket} = ANY ($1::int[])`;
      suspects.push(...(await this.#differing((session) => rowsWhere(session, this.#rows, isPart, [part]))));
    }
    return suspects;
  }

  /** Those of the keys whose rows differ now. */
  stillDiffering(keys: readonly string[]): Promise<string[]> {
    return this.#differing((session) => rowsByKey(session, this.#rows, keys));
  }

  /**
   * Keys whose rows differ: the source's are read first, then what is under way is waited for, so that a row that has not changed since
   * must be the same at the destination.
   */
  async #differing(read: (session: ShardSession) => Promise<RowVersion[]>): Promise<string[]> {
    const source = await read(this.#m.source);
    await this.#settle();
    return differing(source, await read(this.#there));
  }

  /** The same, while the source's are locked. @returns null: the destination is too far behind */
  async lockedSuspects(keys: readonly string[]): Promise<string[] | null> {
    const locker = await ShardSession.open(this.#m.source.shard, null);
    try {
      await locker.query('BEGIN');
      await locker.query(
        `SET LOCAL lock_timeout = '300ms'; SET LOCAL idle_in_transaction_session_timeout = ${SILENCE_MS}`,
      );
      const source = await rowsByKey(locker, this.#rows, keys, true);
      if (!(await hasAllWithin(this.#m, LOCKED_MS))) return null;
      const destination = await rowsByKey(this.#there, this.#rows, keys);
      await locker.query('ROLLBACK');
      return differing(source, destination);
    } catch (error) {
      if (errorCode(error) !== '55P03') throw error;
      await delay(200);
      return [...keys];
    } finally {
      await locker.close();
    }
  }

  #both<T extends Record<string, unknown>>(sql: string): Promise<[T[], T[]]> {
    const check = () => this.#m.exec.check();
    return Promise.all([
      this.#m.source.interruptible<T>(sql, undefined, check),
      this.#there.interruptible<T>(sql, undefined, check),
    ]);
  }
}
