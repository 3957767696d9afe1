import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type pg from 'pg';
import { from as copyFrom } from 'pg-copy-streams';
import { UsageError } from '../topology/errors.js';
import { positionOf } from '../topology/hash.js';
import { comparePositions, type Interval, type Position } from '../topology/key.js';
import { positionFromJson } from '../topology/key-codec.js';
import type { Keyspace, KeyspaceName } from '../topology/topology.js';

export interface Segment extends Interval {
  readonly id: bigint;
  readonly keyspace: KeyspaceName;
}

/** One segment's history on an even grid; `NaN` where nothing is known because no proxy was counting. */
export interface SegmentSeries extends Segment {
  /** Milliseconds of busy backend per second. */
  readonly load: Float64Array;
  /** Writing statements per second. */
  readonly writes: Float64Array;
}

/** A sampled key with the server time it stood for. */
export interface KeySample {
  readonly position: Position;
  /** Milliseconds of server time. */
  readonly weight: number;
  /** Milliseconds since 1970. */
  readonly seenAt: number;
}

/** A past sample to import: what one segment did in one step. */
export interface LoadSample {
  readonly segmentId: bigint;
  /** Start of the step, ms since 1970, a multiple of the step. */
  readonly at: number;
  readonly reads: number;
  readonly writes: number;
  readonly rows: number;
  readonly bytes: number;
  readonly serverMs: number;
}

/** How long each resolution is kept, in seconds. The defaults bound a segment to 8,640 + 20,160 + 9,600 rows. */
export interface Retention {
  /** 10-second samples; default 1 day. */
  readonly tenSeconds: number;
  /** Minutes; default 14 days. */
  readonly minutes: number;
  /** Hours; default 400 days: a year and the weeks around it. */
  readonly hours: number;
  /** Key samples not seen again; default 14 days. */
  readonly keySamples: number;
  /** Statement templates; default 90 days. */
  readonly templates: number;
}

/** A pool, or a client inside a transaction. */
export type Queryable = pg.Pool | pg.PoolClient;

const DAY = 86_400;
const DEFAULT_RETENTION: Retention = {
  tenSeconds: DAY,
  minutes: 14 * DAY,
  hours: 400 * DAY,
  keySamples: 14 * DAY,
  templates: 90 * DAY,
};

/** A proxy flushes every few seconds; a step is taken as complete this long after its end. */
const GRACE_SECONDS = 30;
/** Late flushes: this much of the finer resolution is summed again at every roll-up. */
const REDO_SECONDS = 2 * 3600;
/** Serialises planners that maintain one catalog's history; the letters "hist". */
const MAINTENANCE_LOCK = 0x68697374;
const COPY_CHUNK = 64 * 1024;

const SUMS = ['reads', 'writes', 'rows', 'bytes', 'server_ms'] as const;
const ASSIGN_ALL = SUMS.map((c) => `${c} = excluded.${c}`).join(', ');

/** Sums the complete coarse steps in [$2, now - grace) again. Idempotent: a sum replaces the one before. */
const ROLL_UP = `
INSERT INTO foreshard.load AS l (step_seconds, at, segment_id, ${SUMS.join(', ')})
SELECT $1::int, date_bin($1::int * interval '1 s', at, 'epoch'), segment_id, ${SUMS.map((c) => `sum(${c})`).join(', ')}
  FROM foreshard.load
 WHERE step_seconds = $4 AND at >= date_bin($1::int * interval '1 s', $2::timestamptz, 'epoch')
   AND at < date_bin($1::int * interval '1 s', $3::timestamptz - ${GRACE_SECONDS} * interval '1 s', 'epoch')
 GROUP BY 2, 3 ORDER BY 3, 2
ON CONFLICT (step_seconds, segment_id, at) DO UPDATE SET ${ASSIGN_ALL}
 WHERE (${SUMS.map((c) => `l.${c}`).join(', ')}) IS DISTINCT FROM (${SUMS.map((c) => `excluded.${c}`).join(', ')})`;

/** Load history, as the planner reads and keeps it. The proxies write the 10-second samples and the key samples. */
export class HistoryStore {
  readonly pool: pg.Pool;
  readonly retention: Retention;
  /** Up to where this process has rolled up, ms; the first time all 10-second samples there are are summed. */
  #rolledUpTo: number | null = null;

  constructor(pool: pg.Pool, retention: Partial<Retention> = {}) {
    this.pool = pool;
    this.retention = Object.freeze({ ...DEFAULT_RETENTION, ...retention });
  }

  /** Segments of a keyspace in its order. */
  async segments(keyspace: Keyspace, db: Queryable = this.pool): Promise<Segment[]> {
    const result = await db.query<{ id: string; lo: unknown; hi: unknown }>(
      'SELECT id::text, lo, hi FROM foreshard.segment WHERE keyspace = $1',
      [keyspace.name],
    );
    return result.rows
      .map((r) => ({
        id: BigInt(r.id),
        keyspace: keyspace.name,
        lo: positionFromJson(keyspace, r.lo),
        hi: positionFromJson(keyspace, r.hi),
      }))
      .sort(byLo);
  }

  /**
   * The history of every segment in `[from, to)`. Read from the coarsest resolution that divides the step. A step in
   * which no segment of the keyspace has a sample is unknown; where others have one, a segment without was idle.
   * @param from ms since 1970, like `to` a multiple of the step
   */
  async series(keyspace: Keyspace, stepSeconds: number, from: number, to: number): Promise<SegmentSeries[]> {
    const stepMs = stepSeconds * 1000;
    if (from % stepMs !== 0 || to % stepMs !== 0 || stepSeconds % 10 !== 0)
      throw new UsageError(
        `history cannot be read from ${from} to ${to} in steps of ${stepSeconds} s`,
        'Use a step that is a multiple of 10 s, and bounds that are multiples of the step.',
      );
    const source = stepSeconds % 3600 === 0 ? 3600 : stepSeconds % 60 === 0 ? 60 : 10;
    const segments = await this.segments(keyspace);
    const length = Math.max(0, (to - from) / stepMs);
    const result = await this.pool.query<{ id: string; steps: number[]; ms: number[]; writes: number[] }>(
      `SELECT segment_id::text AS id, array_agg(step) AS steps, array_agg(ms) AS ms, array_agg(writes) AS writes
         FROM (SELECT segment_id, floor((extract(epoch FROM at) - $3::numeric) / $2::int)::int AS step,
                      sum(server_ms) AS ms, sum(writes)::float8 AS writes
                 FROM foreshard.load
                WHERE step_seconds = $1 AND segment_id = ANY ($5::bigint[])
                  AND at >= to_timestamp($3::numeric) AND at < to_timestamp($4::numeric)
                GROUP BY 1, 2) s
        GROUP BY 1`,
      [source, stepSeconds, from / 1000, to / 1000, segments.map((s) => s.id.toString())],
    );
    const rows = new Map(result.rows.map((r) => [r.id, r]));
    const known = new Uint8Array(length);
    for (const row of result.rows) for (const step of row.steps) known[step] = 1;
    return segments.map((segment) => {
      const load = Float64Array.from(known, (k) => (k === 1 ? 0 : Number.NaN));
      const writes = Float64Array.from(load);
      const row = rows.get(segment.id.toString());
      row?.steps.forEach((step, i) => {
        load[step] = (row.ms[i] as number) / stepSeconds;
        writes[step] = (row.writes[i] as number) / stepSeconds;
      });
      return { ...segment, load, writes };
    });
  }

  /** Start of the oldest sample at a resolution, ms since 1970; null when there is none. */
  async oldest(keyspace: Keyspace, stepSeconds: 10 | 60 | 3600): Promise<number | null> {
    const result = await this.pool.query<{ at: Date | null }>(
      `SELECT min(at) AS at FROM foreshard.load
        WHERE step_seconds = $1 AND segment_id IN (SELECT id FROM foreshard.segment WHERE keyspace = $2)`,
      [stepSeconds, keyspace.name],
    );
    return result.rows[0]?.at?.getTime() ?? null;
  }

  /** Sampled keys by segment, in the keyspace's order. Of a hash keyspace: the keys' hashes. */
  async keySamples(keyspace: Keyspace, db: Queryable = this.pool): Promise<Map<bigint, KeySample[]>> {
    const result = await db.query<{ id: string; key: unknown; weight: number; seen_at: Date }>(
      `SELECT segment_id::text AS id, key, weight, seen_at FROM foreshard.key_sample
        WHERE segment_id IN (SELECT id FROM foreshard.segment WHERE keyspace = $1)`,
      [keyspace.name],
    );
    const samples = new Map<bigint, KeySample[]>();
    for (const row of result.rows) {
      const position = sampledPosition(keyspace, row.key);
      if (position === null) continue;
      const list = samples.get(BigInt(row.id)) ?? [];
      list.push({ position, weight: row.weight, seenAt: row.seen_at.getTime() });
      samples.set(BigInt(row.id), list);
    }
    for (const list of samples.values()) list.sort((a, b) => comparePositions(a.position, b.position));
    return samples;
  }

  /** Rolls 10-second samples up to minutes and minutes to hours, then deletes what has been kept long enough. One transaction. */
  async maintain(now: number): Promise<void> {
    const at = new Date(now);
    const client = await this.pool.connect();
    try {
      await client.query('BEGIN');
      await client.query('SELECT pg_advisory_xact_lock($1)', [MAINTENANCE_LOCK]);
      const since = await this.#since(client, now);
      await client.query(ROLL_UP, [60, since, at, 10]);
      await client.query(ROLL_UP, [3600, since, at, 60]);
      const { retention: r } = this;
      // Whole hours go, so that a sum made again later never misses a part of what it sums.
      for (const [step, seconds] of [
        [10, r.tenSeconds],
        [60, r.minutes],
        [3600, r.hours],
      ] as const)
        await client.query(
          `DELETE FROM foreshard.load WHERE step_seconds = $1
              AND at < date_bin('1 hour', $2::timestamptz - $3::int * interval '1 s', 'epoch')`,
          [step, at, seconds],
        );
      await client.query(
        `DELETE FROM foreshard.key_sample WHERE seen_at < $1::timestamptz - $2::int * interval '1 s'`,
        [at, r.keySamples],
      );
      await client.query(
        `DELETE FROM foreshard.template_stat WHERE hour < $1::timestamptz - $2::int * interval '1 s'`,
        [at, r.templates],
      );
      await client.query('COMMIT');
      client.release();
    } catch (error) {
      // The connection goes, and the transaction with it.
      client.release(true);
      throw error;
    }
    this.#rolledUpTo = now;
  }

  /** From where on to sum again: what is not rolled up yet or may have been flushed late. Never before the proxies' own samples: what is older was imported. */
  async #since(client: pg.PoolClient, now: number): Promise<Date> {
    const result = await client.query<{ at: Date | null }>(
      'SELECT min(at) AS at FROM foreshard.load WHERE step_seconds = 10',
    );
    const oldest = result.rows[0]?.at?.getTime() ?? now;
    return new Date(Math.max(oldest, (this.#rolledUpTo ?? -Infinity) - REDO_SECONDS * 1000));
  }

  /**
   * Imports past samples by COPY, all or none; a sample that is there already is replaced. Minutes are rolled up to hours.
   * @returns how many
   * @throws UsageError for a sample that is not on the grid, negative or not a number, or in the future
   */
  async importHistory(samples: Iterable<LoadSample>, stepSeconds: 60 | 3600, now: number): Promise<number> {
    const client = await this.pool.connect();
    try {
      await client.query('BEGIN');
      await client.query('CREATE TEMP TABLE import (LIKE foreshard.load) ON COMMIT DROP');
      let count = 0;
      let oldest = Infinity;
      const lines = function* (): Generator<string> {
        let chunk = '';
        for (const s of samples) {
          checkSample(s, stepSeconds, now);
          count += 1;
          oldest = Math.min(oldest, s.at);
          const counts = [s.reads, s.writes, s.rows, s.bytes].map((v) => Math.round(v));
          chunk += `${stepSeconds}\t${new Date(s.at).toISOString()}\t${s.segmentId}\t${counts.join('\t')}\t${s.serverMs}\n`;
          if (chunk.length < COPY_CHUNK) continue;
          yield chunk;
          chunk = '';
        }
        if (chunk !== '') yield chunk;
      };
      const columns = `step_seconds, at, segment_id, ${SUMS.join(', ')}`;
      await pipeline(Readable.from(lines()), client.query(copyFrom(`COPY import (${columns}) FROM STDIN`)));
      await client.query(
        `INSERT INTO foreshard.load (${columns}) SELECT ${columns} FROM import
         ON CONFLICT (step_seconds, segment_id, at) DO UPDATE SET ${ASSIGN_ALL}`,
      );
      // Whole hours only: an hour that was imported before must not shrink to the minutes given of it.
      if (stepSeconds === 60 && count > 0) {
        const hour = Math.ceil(oldest / 3_600_000) * 3_600_000;
        await client.query(ROLL_UP, [3600, new Date(hour), new Date(now), 60]);
      }
      await client.query('COMMIT');
      client.release();
      return count;
    } catch (error) {
      client.release(true);
      throw error;
    }
  }
}

function checkSample(s: LoadSample, stepSeconds: number, now: number): void {
  const numbers = [s.reads, s.writes, s.rows, s.bytes, s.serverMs];
  if (!numbers.every((v) => Number.isFinite(v) && v >= 0))
    throw new UsageError(
      `a sample of segment ${s.segmentId} has a figure that is negative or not a number`,
      'Correct the input.',
    );
  if (!Number.isInteger(s.at) || s.at % (stepSeconds * 1000) !== 0)
    throw new UsageError(
      `a sample at ${s.at} does not start on a step of ${stepSeconds} s`,
      'Sum the samples to whole steps first.',
    );
  if (s.at >= now)
    throw new UsageError(
      `a sample at ${new Date(s.at).toISOString()} is in the future`,
      'Import only what has happened.',
    );
}

/** Where a sampled key lies: samples hold the key itself, whatever the method. */
export function sampledPosition(keyspace: Keyspace, json: unknown): Position | null {
  const key = positionFromJson({ method: 'range', keyTypes: keyspace.keyTypes }, json);
  return key === null ? null : positionOf(keyspace, key);
}

/** Orders intervals by their lower bound. */
function byLo(a: Interval, b: Interval): number {
  if (a.lo === null || b.lo === null) return Number(b.lo === null) - Number(a.lo === null);
  return comparePositions(a.lo, b.lo);
}
