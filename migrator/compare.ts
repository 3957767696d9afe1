import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { errorCode } from '../topology/connection.js';
import { type Hashing, hashing, MIN_BUCKETS } from './hashing.js';
import type { Move, MovingTable } from './move.js';
import { markerArrived, writeMarkerSql } from './replication.js';
import type { TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';

const MAX_BUCKETS = 65_536;
/** Rows per bucket that are aimed at. */
const BUCKET_ROWS = 256;
/** Rows whose hashes are fetched at once. */
const FETCH_ROWS = 100_000;
/** Rows that may differ at one moment before it can no longer be writes on their way. */
const MAX_SUSPECTS = 20_000;
const LIVE_ROUNDS = 8;
const LOCKED_ROUNDS = 3;

export interface Comparison {
  /** Rows of the interval that were compared. */
  readonly rows: number;
  /** Keys of rows that differ, as text; empty: both sides are the same. */
  readonly differing: readonly string[];
}

interface Sum {
  readonly rows: string;
  readonly hash: string;
}

/** Number of rows of the interval and the sum of their hashes. */
export async function tableSum(session: ShardSession, t: MovingTable, info: TableInfo): Promise<Sum> {
  const result = await session.query<{ rows: string; hash: string }>(
    `SELECT count(*)::text AS rows, coalesce(sum(${hashing(info).row}), 0)::text AS hash FROM ${t.sql} WHERE ${t.predicate()}`,
  );
  return result[0] as Sum;
}

/**
 * Compares a table's rows of the interval on both sides while it is written to: by hash per bucket; then, in buckets that differ,
 * row by row behind a marker, until nothing differs; what keeps differing is looked at under a row lock.
 */
export async function compareLive(m: Move, t: MovingTable, info: TableInfo): Promise<Comparison> {
  const h = hashing(info, await bucketsFor(m, t));
  const sql = `SELECT ${h.bucket} AS bucket, count(*)::text AS rows, sum(${h.row})::text AS hash FROM ${t.sql} WHERE ${t.predicate()} GROUP BY 1`;
  type Bucket = { bucket: number; rows: string; hash: string };
  const [source, destination] = await both(m, (s) => s.query<Bucket>(sql));
  const rows = source.reduce((n, b) => n + Number(b.rows), 0);
  const theirs = new Map(destination.map((b) => [b.bucket, `${b.rows} ${b.hash}`]));
  const ours = new Set(source.map((b) => b.bucket));
  const differing = [
    ...source.filter((b) => theirs.get(b.bucket) !== `${b.rows} ${b.hash}`),
    ...destination.filter((b) => !ours.has(b.bucket)),
  ];

  let suspects: string[] = [];
  for (let first = 0; first < differing.length; ) {
    const part: number[] = [];
    for (let n = 0; first < differing.length && (part.length === 0 || n < FETCH_ROWS); first++) {
      const b = differing[first] as Bucket;
      part.push(b.bucket);
      n += Number(b.rows);
    }
    suspects.push(...(await suspectsOf(m, t, h, `${h.bucket} = ANY ($1::int[])`, [part])));
    if (suspects.length > MAX_SUSPECTS) return { rows, differing: suspects };
  }
  for (let round = 1; suspects.length > 0 && round < LIVE_ROUNDS; round++) {
    m.exec.at('before:verify');
    suspects = await suspectsOf(m, t, h, `${h.key} = ANY ($1::text[])`, [suspects]);
  }
  for (let round = 0; suspects.length > 0 && round < LOCKED_ROUNDS; round++)
    suspects = await lockedSuspects(m, t, h, suspects);
  return { rows, differing: suspects };
}

/** More buckets for a larger table, so that a few differing rows do not make much of it be fetched. */
async function bucketsFor(m: Move, t: MovingTable): Promise<number> {
  const [size] = await m.source.query<{ rows: number }>(
    'SELECT greatest(reltuples, 0)::float8 AS rows FROM pg_class WHERE oid = to_regclass($1)',
    [t.sql],
  );
  const wanted = 2 ** Math.ceil(Math.log2(Math.max(1, (size?.rows ?? 0) / BUCKET_ROWS)));
  return Math.min(MAX_BUCKETS, Math.max(MIN_BUCKETS, wanted));
}

/**
 * Keys whose rows differ: the source's are read first, then the marker is waited for, so that a row that has not changed since
 * must be the same at the destination.
 */
async function suspectsOf(
  m: Move,
  t: MovingTable,
  h: Hashing,
  where: string,
  values: readonly unknown[],
): Promise<string[]> {
  const sql = `SELECT ${h.key} AS key, ${h.row}::text AS hash FROM ${t.sql} WHERE ${t.predicate()} AND ${where}`;
  const source = await m.source.query<{ key: string; hash: string }>(sql, values);
  await drainMarker(m);
  const destination = await m.destination.query<{ key: string; hash: string }>(sql, values);
  return differingKeys(source, destination);
}

async function lockedSuspects(m: Move, t: MovingTable, h: Hashing, keys: readonly string[]): Promise<string[]> {
  const sql = `SELECT ${h.key} AS key, ${h.row}::text AS hash FROM ${t.sql} WHERE ${t.predicate()} AND ${h.key} = ANY ($1::text[])`;
  const locker = await ShardSession.open(m.source.shard, null);
  try {
    await locker.query('BEGIN');
    await locker.query("SET LOCAL lock_timeout = '300ms'");
    const source = await locker.query<{ key: string; hash: string }>(`${sql} FOR UPDATE`, [keys]);
    await drainMarker(m);
    const destination = await m.destination.query<{ key: string; hash: string }>(sql, [keys]);
    await locker.query('ROLLBACK');
    return differingKeys(source, destination);
  } catch (error) {
    if (errorCode(error) !== '55P03') throw error;
    await delay(200);
    return [...keys];
  } finally {
    await locker.close();
  }
}

async function drainMarker(m: Move): Promise<void> {
  const token = randomUUID();
  await m.source.query(writeMarkerSql(m.names, token));
  await m.exec.wait('the marker arrives at the destination', () => markerArrived(m, token), { everyMs: 5 });
}

function differingKeys(
  a: readonly { key: string; hash: string }[],
  b: readonly { key: string; hash: string }[],
): string[] {
  const left = new Map(a.map((r) => [r.key, r.hash]));
  const right = new Map(b.map((r) => [r.key, r.hash]));
  const keys = [...left].filter(([key, hash]) => right.get(key) !== hash).map(([key]) => key);
  keys.push(...[...right.keys()].filter((key) => !left.has(key)));
  return keys;
}

async function both<T>(m: Move, read: (session: ShardSession) => Promise<T>): Promise<[T, T]> {
  return Promise.all([read(m.source), read(m.destination)]);
}
