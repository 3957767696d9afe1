import type { Logger } from 'pino';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { comparePositions } from '../../topology/key.js';
import { keyToJson, positionFromJson } from '../../topology/key-codec.js';
import type { KeyspaceName } from '../../topology/topology.js';
import type { LiveTopology } from '../live-topology.js';
import { type LoadCounter, type LoadStep, type Segment, STEP_MS } from './load-counter.js';

/** Steps kept while the catalog is away: an hour. */
const STEPS_KEPT = 360;
/** Segments are read again this often, for those that the planner has refined. */
const SEGMENTS_EVERY_MS = 15_000;
/** Sampled keys kept per segment; the lightest go. */
const KEYS_PER_SEGMENT = 200;

/** Stores what the counter has counted in the catalog, every few seconds and once more at the end. */
export class LoadFlusher {
  readonly #catalog: Catalog;
  readonly #live: LiveTopology;
  readonly #counter: LoadCounter;
  readonly #logger: Logger;
  readonly #timer: NodeJS.Timeout;
  #segmentsReadAt = Number.NEGATIVE_INFINITY;
  #segmentsEpoch: bigint | null = null;
  #running: Promise<void> | null = null;

  constructor(options: {
    readonly catalog: Catalog;
    readonly live: LiveTopology;
    readonly counter: LoadCounter;
    readonly flushIntervalMs: number;
    readonly logger: Logger;
  }) {
    this.#catalog = options.catalog;
    this.#live = options.live;
    this.#counter = options.counter;
    this.#logger = options.logger;
    this.#timer = setInterval(() => void this.flush(), options.flushIntervalMs);
    this.#timer.unref();
  }

  /** Reads the segments, so that counting can begin. */
  async start(): Promise<void> {
    await this.#readSegments();
  }

  /** Stores what has been counted. Never rejects: what cannot be stored now is kept for the next time. */
  flush(): Promise<void> {
    this.#running ??= this.#flush().finally(() => {
      this.#running = null;
    });
    return this.#running;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#running;
    await this.flush();
  }

  async #flush(): Promise<void> {
    const steps = this.#counter.drain();
    try {
      if (
        this.#live.current.epoch !== this.#segmentsEpoch ||
        performance.now() - this.#segmentsReadAt > SEGMENTS_EVERY_MS
      )
        await this.#readSegments();
      // One transaction a step, so that a failure puts back exactly what was not stored.
      while (steps.length > 0) {
        await this.#store(steps[0] as LoadStep);
        steps.shift();
      }
    } catch (error) {
      this.#counter.putBack(steps, STEPS_KEPT);
      this.#logger.warn({ err: error }, 'could not store load history; it is kept for the next time');
    }
  }

  async #readSegments(): Promise<void> {
    const topology = this.#live.current;
    const { rows } = await this.#catalog.pool.query<{ id: string; keyspace: KeyspaceName; lo: unknown }>(
      'SELECT id, keyspace, lo FROM foreshard.segment',
    );
    for (const keyspace of topology.keyspaces.values()) {
      const segments: Segment[] = rows
        .filter((r) => r.keyspace === keyspace.name)
        .map((r) => ({ id: BigInt(r.id), lo: positionFromJson(keyspace, r.lo) }));
      this.#counter.setSegments(keyspace.name, segments.sort(byLo));
    }
    this.#segmentsEpoch = topology.epoch;
    this.#segmentsReadAt = performance.now();
  }

  async #store(step: LoadStep): Promise<void> {
    const client = await this.#catalog.pool.connect();
    try {
      await client.query('BEGIN');
      const segments = [...step.segments];
      const column = (f: (s: (typeof segments)[number][1]) => number) => segments.map(([, s]) => f(s));
      await client.query(STORE_LOAD, [
        STEP_MS / 1000,
        new Date(step.at),
        segments.map(([id]) => id.toString()),
        column((s) => s.reads).map(Math.round),
        column((s) => s.writes).map(Math.round),
        column((s) => s.rows).map(Math.round),
        column((s) => s.bytes).map(Math.round),
        column((s) => s.serverMs),
      ]);
      const templates = [...step.templates.values()];
      await client.query(STORE_TEMPLATES, [
        new Date(Math.floor(step.at / 3_600_000) * 3_600_000),
        templates.map((t) => t.template.replaceAll('\0', '')),
        templates.map((t) => t.route),
        templates.map((t) => t.calls),
        templates.map((t) => t.rows),
        templates.map((t) => t.serverMs),
      ]);
      await this.#storeKeys(client, step);
      await client.query('COMMIT');
    } catch (error) {
      await client.query('ROLLBACK').catch(() => undefined);
      throw error;
    } finally {
      client.release();
    }
  }

  async #storeKeys(client: { query(sql: string, values: unknown[]): Promise<unknown> }, step: LoadStep): Promise<void> {
    const ids: string[] = [];
    const keys: string[] = [];
    const weights: number[] = [];
    for (const { keyspace, segment, key, weight } of step.keys.values()) {
      const scheme = this.#live.current.keyspaces.get(keyspace);
      if (!scheme) continue;
      ids.push(segment.toString());
      keys.push(JSON.stringify(keyToJson(scheme, key)));
      weights.push(weight);
    }
    if (ids.length === 0) return;
    await client.query(STORE_KEYS, [ids, keys, weights]);
    await client.query(TRIM_KEYS, [[...new Set(ids)], KEYS_PER_SEGMENT]);
  }
}

function byLo(a: Segment, b: Segment): number {
  if (a.lo === null || b.lo === null) return a.lo === b.lo ? 0 : a.lo === null ? -1 : 1;
  return comparePositions(a.lo, b.lo);
}

// A segment that has gone in the meantime is left out: the join drops it.
const STORE_LOAD = `
INSERT INTO foreshard.load AS l (step_seconds, at, segment_id, reads, writes, rows, bytes, server_ms)
SELECT $1, $2, s.id, u.reads, u.writes, u.rows, u.bytes, u.server_ms
  FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::float8[])
       AS u (id, reads, writes, rows, bytes, server_ms)
  JOIN foreshard.segment s ON s.id = u.id
 ORDER BY s.id
ON CONFLICT (step_seconds, segment_id, at) DO UPDATE SET
  reads = l.reads + excluded.reads, writes = l.writes + excluded.writes, rows = l.rows + excluded.rows,
  bytes = l.bytes + excluded.bytes, server_ms = l.server_ms + excluded.server_ms`;

const STORE_TEMPLATES = `
INSERT INTO foreshard.template_stat AS t (hour, template, route, calls, rows, server_ms)
SELECT $1, left(u.template, 2000), u.route, sum(u.calls), sum(u.rows), sum(u.server_ms)
  FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::float8[]) AS u (template, route, calls, rows, server_ms)
 GROUP BY 2, 3 ORDER BY 2, 3
ON CONFLICT (hour, template, route) DO UPDATE SET
  calls = t.calls + excluded.calls, rows = t.rows + excluded.rows, server_ms = t.server_ms + excluded.server_ms`;

// Old weight fades, so that the samples follow the load.
const STORE_KEYS = `
INSERT INTO foreshard.key_sample AS k (segment_id, key, weight)
SELECT s.id, u.key, u.weight
  FROM unnest($1::bigint[], $2::jsonb[], $3::float8[]) AS u (id, key, weight)
  JOIN foreshard.segment s ON s.id = u.id
 ORDER BY 1, 2
ON CONFLICT (segment_id, key) DO UPDATE SET weight = k.weight * 0.98 + excluded.weight, seen_at = now()`;

const TRIM_KEYS = `
DELETE FROM foreshard.key_sample k USING (
  SELECT segment_id, key, row_number() OVER (PARTITION BY segment_id ORDER BY weight DESC, key) AS n
    FROM foreshard.key_sample WHERE segment_id = ANY ($1::bigint[])) AS r
 WHERE r.n > $2 AND k.segment_id = r.segment_id AND k.key = r.key`;
