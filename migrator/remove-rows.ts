import { heapsOf } from './heaps.js';
import { pagesOf } from './keyed-rows.js';
import type { Move, MovingTable } from './move.js';
import type { TableInfo } from './schema-read.js';
import type { ShardSession } from './shard-session.js';
import type { Throttle } from './throttle.js';
import { loudSql, quietSql } from './trigger-modes.js';

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
  const heaps: { sql: string; pages: number }[] = [];
  for (const sql of await heapsOf(session, table.sql)) heaps.push({ sql, pages: await pagesOf(session, sql) });
  const [server] = await session.query<{ block: number }>("SELECT current_setting('block_size')::int AS block");
  const all = heaps.reduce((sum, heap) => sum + heap.pages, 0);
  let removed = 0;
  let done = 0;
  const began = performance.now();
  for (const { sql, pages } of heaps)
    for (let page = 0; page < pages; page += m.options.removePages) {
      m.exec.at('before:remove-rows');
      await m.exec.rest();
      await throttle.pause(m.options.removePages * (server?.block ?? 0));
      const end = page + m.options.removePages;
      removed += await deleteAsReplica(
        session,
        `${sql} WHERE ctid >= '(${page},0)'::tid AND ctid < '(${end},0)'::tid AND ${table.predicate()}`,
      );
      m.exec.at('within:remove-rows');
      done += Math.min(pages, end) - page;
      await m.exec.progress({
        note: `removing moved rows of ${table.schema}.${table.table}: ${Math.floor((100 * done) / all)} %${throttle.note === null ? '' : `, ${throttle.note}`}`,
        etaSeconds: ((performance.now() - began) * (all - done)) / done / 1000,
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
