import type { Pool } from 'pg';
import { positionFromJson } from '../../topology/key-codec.js';
import { type Keyspace, rangeOf } from '../../topology/topology.js';

/** What the proxy counted for one shard, per second. */
export interface ShardLoad {
  readonly statements: number;
  readonly serverMs: number;
}

/** The step in which the proxy's counters reach the catalog. */
export const COUNTER_STEP_MS = 10_000;

/**
 * Load per shard as the proxy counted it in the whole steps inside `[fromMs, toMs)`, dealt out by who owned each segment in
 * `keyspace`. Null when there was no whole step.
 */
export async function measuredLoad(
  catalog: Pool,
  keyspace: Keyspace,
  fromMs: number,
  toMs: number,
): Promise<ReadonlyMap<string, ShardLoad> | null> {
  const first = Math.ceil(fromMs / COUNTER_STEP_MS) * COUNTER_STEP_MS;
  const end = Math.floor(toMs / COUNTER_STEP_MS) * COUNTER_STEP_MS;
  if (end <= first) return null;
  const { rows } = await catalog.query<{ lo: unknown; statements: string; server_ms: number }>(
    `SELECT s.lo, sum(l.reads + l.writes) AS statements, sum(l.server_ms) AS server_ms
       FROM foreshard.load l JOIN foreshard.segment s ON s.id = l.segment_id
      WHERE l.step_seconds = $1 AND s.keyspace = $2 AND l.at >= $3 AND l.at < $4 GROUP BY s.id, s.lo`,
    [COUNTER_STEP_MS / 1000, keyspace.name, new Date(first), new Date(end)],
  );
  const seconds = (end - first) / 1000;
  const loads = new Map<string, ShardLoad>();
  for (const row of rows) {
    const lo = positionFromJson(keyspace, row.lo);
    const range = lo === null ? keyspace.ranges[0] : rangeOf(keyspace, lo);
    if (range === undefined) continue;
    const sum = loads.get(range.shard) ?? { statements: 0, serverMs: 0 };
    loads.set(range.shard, {
      statements: sum.statements + Number(row.statements) / seconds,
      serverMs: sum.serverMs + row.server_ms / seconds,
    });
  }
  return loads;
}
