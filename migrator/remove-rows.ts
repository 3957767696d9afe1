import type { Move, MovingTable } from './move.js';
import type { TableInfo } from './schema-read.js';
import { loudSql, quietSql } from './schema-triggers.js';
import type { ShardSession } from './shard-session.js';
import type { Throttle } from './throttle.js';

/**
 * Deletes the interval's rows of a table on one side, some pages of it per transaction, each page once: the gate there is
 * closed, so no row of the interval can come to a page behind us.
 */
export async function removeRows(
  m: Move,
  on: 'source' | 'destination',
  table: MovingTable,
  throttle: Throttle,
): Promise<number> {
  const session = on === 'source' ? m.source : m.destination;
  const size = await session.query<{ pages: number | null; block: number }>(
    `SELECT (pg_relation_size(to_regclass($1)) / current_setting('block_size')::int)::int AS pages, current_setting('block_size')::int AS block`,
    [table.sql],
  );
  const pages = size[0]?.pages ?? null;
  const block = size[0]?.block ?? 0;
  if (pages === null) return 0;
  let removed = 0;
  const began = performance.now();
  for (let page = 0; page < pages; page += m.options.removePages) {
    m.exec.at('before:remove-rows');
    await m.exec.rest();
    await throttle.pause(m.options.removePages * block);
    const end = page + m.options.removePages;
    removed += await deleteAsReplica(
      session,
      `${table.sql} WHERE ctid >= '(${page},0)'::tid AND ctid < '(${end},0)'::tid AND ${table.predicate()}`,
    );
    const done = Math.min(pages, end);
    await m.exec.progress({
      note: `removing moved rows of ${table.schema}.${table.table}: ${Math.floor((100 * done) / pages)} %${throttle.note === null ? '' : `, ${throttle.note}`}`,
      etaSeconds: ((performance.now() - began) * (pages - done)) / done / 1000,
    });
  }
  return removed;
}

/**
 * Deletes rows in a transaction of their own, as `replica`: neither a guard of ours fires, nor a user's trigger, nor a cascade, which would follow rows that
 * are another shard's. @param fromWhere what stands behind DELETE FROM @param from has triggers that would fire all the same: for this transaction they do
 * not @returns how many they were
 */
export async function deleteAsReplica(
  session: ShardSession,
  fromWhere: string,
  values: readonly unknown[] = [],
  from: TableInfo | null = null,
): Promise<number> {
  await session.query('BEGIN');
  try {
    for (const sql of from === null ? [] : quietSql(from)) await session.query(sql);
    await session.query('SET LOCAL session_replication_role = replica');
    const deleted = await session.query<{ n: number }>(
      `WITH gone AS (DELETE FROM ${fromWhere} RETURNING 1) SELECT count(*)::int AS n FROM gone`,
      values,
    );
    for (const sql of from === null ? [] : loudSql(from)) await session.query(sql);
    await session.query('COMMIT');
    return deleted[0]?.n ?? 0;
  } catch (error) {
    await session.query('ROLLBACK').catch(() => undefined); // the first error says more
    throw error;
  }
}
