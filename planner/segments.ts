import type pg from 'pg';
import { comparePositions, contains, type Position } from '../topology/key.js';
import { positionToJson } from '../topology/key-codec.js';
import type { Keyspace } from '../topology/topology.js';
import { type HistoryStore, type Segment, sampledPosition } from './history-store.js';

/**
 * Makes sure that segments cover the keyspace and that each boundary given, and each bound of its ranges, is one of
 * theirs. What exists is refined, never coarsened.
 *
 * A segment that is cut keeps its id for the part on the left. Its history is shared out in proportion to the weight of the
 * keys sampled in each part; without samples evenly among the parts, since nothing else is known.
 * @returns the segments afterwards, in order
 */
export async function ensureSegments(
  store: HistoryStore,
  keyspace: Keyspace,
  boundaries: readonly Position[],
): Promise<Segment[]> {
  const client = await store.pool.connect();
  try {
    await client.query('BEGIN');
    // Two planners that refine at once would both cut the same segment. Proxies only read the table.
    await client.query('LOCK TABLE foreshard.segment IN SHARE ROW EXCLUSIVE MODE');
    await client.query(
      `INSERT INTO foreshard.segment (keyspace, lo, hi)
       SELECT $1, NULL, NULL WHERE NOT EXISTS (SELECT FROM foreshard.segment WHERE keyspace = $1)`,
      [keyspace.name],
    );
    const segments = await store.segments(keyspace, client);
    const samples = await store.keySamples(keyspace, client);
    const wanted = [...boundaries, ...keyspace.ranges.map((r) => r.lo).filter((lo) => lo !== null)];
    let changed = false;
    for (const segment of segments) {
      const cuts = distinct(wanted.filter((p) => contains(segment, p) && !isBound(segment, p)));
      if (cuts.length === 0) continue;
      changed = true;
      const bounds = [segment.lo, ...cuts, segment.hi];
      const parts = bounds.slice(1).map((hi, i) => ({ lo: bounds[i] ?? null, hi: hi ?? null }));
      const keys = samples.get(segment.id) ?? [];
      const weights = parts.map((part) =>
        keys.filter((k) => contains(part, k.position)).reduce((sum, k) => sum + k.weight, 0),
      );
      const total = weights.reduce((a, b) => a + b, 0);
      const shares = weights.map((w) => (total > 0 ? w / total : 1 / parts.length));
      await cut(client, keyspace, segment, parts, shares);
    }
    if (changed) await client.query(`SELECT pg_notify('foreshard_topology', 'segment')`);
    await client.query('COMMIT');
    client.release();
  } catch (error) {
    client.release(true);
    throw error;
  }
  return store.segments(keyspace);
}

async function cut(
  client: pg.PoolClient,
  keyspace: Keyspace,
  segment: Segment,
  parts: readonly { lo: Position | null; hi: Position | null }[],
  shares: readonly number[],
): Promise<void> {
  const parent = segment.id.toString();
  const json = (p: Position | null) => (p === null ? null : JSON.stringify(positionToJson(keyspace, p)));
  await client.query('UPDATE foreshard.segment SET hi = $2 WHERE id = $1', [parent, json(parts[0]?.hi ?? null)]);
  const children: string[] = [];
  for (const part of parts.slice(1)) {
    const made = await client.query<{ id: string }>(
      'INSERT INTO foreshard.segment (keyspace, lo, hi) VALUES ($1, $2, $3) RETURNING id::text',
      [keyspace.name, json(part.lo), json(part.hi)],
    );
    children.push((made.rows[0] as { id: string }).id);
  }
  // Counts are shared as whole numbers rounded down; the part on the left keeps the rest, so no statement is lost or doubled.
  await client.query(
    `WITH moved AS (
       INSERT INTO foreshard.load (step_seconds, at, segment_id, reads, writes, rows, bytes, server_ms)
       SELECT step_seconds, at, child, floor(reads * share), floor(writes * share), floor(rows * share),
              floor(bytes * share), server_ms * share
         FROM foreshard.load CROSS JOIN unnest($2::bigint[], $3::float8[]) AS c (child, share)
        WHERE segment_id = $1
       RETURNING step_seconds, at, reads, writes, rows, bytes, server_ms
     ), gone AS (
       SELECT step_seconds, at, sum(reads) AS reads, sum(writes) AS writes, sum(rows) AS rows, sum(bytes) AS bytes,
              sum(server_ms) AS server_ms FROM moved GROUP BY 1, 2
     )
     UPDATE foreshard.load AS l SET reads = l.reads - g.reads, writes = l.writes - g.writes, rows = l.rows - g.rows,
            bytes = l.bytes - g.bytes, server_ms = greatest(0, l.server_ms - g.server_ms)
       FROM gone g WHERE l.segment_id = $1 AND l.step_seconds = g.step_seconds AND l.at = g.at`,
    [parent, children, shares.slice(1)],
  );
  await moveSamples(client, keyspace, parent, parts, children);
}

async function moveSamples(
  client: pg.PoolClient,
  keyspace: Keyspace,
  parent: string,
  parts: readonly { lo: Position | null; hi: Position | null }[],
  children: readonly string[],
): Promise<void> {
  const { rows } = await client.query<{ key: unknown }>('SELECT key FROM foreshard.key_sample WHERE segment_id = $1', [
    parent,
  ]);
  const home = rows.map(({ key }) => {
    const position = sampledPosition(keyspace, key);
    return parts.findIndex((part) => position !== null && contains(part, position));
  });
  const moves = rows.map((r, i) => ({ key: JSON.stringify(r.key), child: children[(home[i] as number) - 1] }));
  const going = moves.filter((m) => m.child !== undefined);
  await client.query(
    `UPDATE foreshard.key_sample s SET segment_id = m.child FROM unnest($2::jsonb[], $3::bigint[]) AS m (key, child)
      WHERE s.segment_id = $1 AND s.key = m.key`,
    [parent, going.map((m) => m.key), going.map((m) => m.child)],
  );
}

function isBound(segment: Segment, p: Position): boolean {
  return segment.lo !== null && comparePositions(segment.lo, p) === 0;
}

function distinct(positions: readonly Position[]): Position[] {
  return [...positions]
    .sort(comparePositions)
    .filter((p, i, all) => i === 0 || comparePositions(all[i - 1] as Position, p) !== 0);
}
