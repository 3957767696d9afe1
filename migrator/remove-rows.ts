import { setTimeout as delay } from 'node:timers/promises';
import type { Move, MovingTable } from './move.js';

/**
 * Deletes the interval's rows of a table on one side, some pages of it per transaction, each page once: the gate there is
 * closed, so no row of the interval can come to a page behind us. As `replica`, so that neither our guard nor cascades fire.
 */
export async function removeRows(m: Move, on: 'source' | 'destination', table: MovingTable): Promise<number> {
  const session = on === 'source' ? m.source : m.destination;
  const size = await session.query<{ pages: number | null }>(
    `SELECT (pg_relation_size(to_regclass($1)) / current_setting('block_size')::int)::int AS pages`,
    [table.sql],
  );
  const pages = size[0]?.pages ?? null;
  if (pages === null) return 0;
  let removed = 0;
  for (let page = 0; page < pages; page += m.options.removePages) {
    m.exec.at('before:remove-rows');
    await m.exec.rest();
    await session.query('BEGIN');
    try {
      await session.query('SET LOCAL session_replication_role = replica');
      const deleted = await session.query<{ n: number }>(
        `WITH gone AS (DELETE FROM ${table.sql} WHERE ctid >= '(${page},0)'::tid AND ctid < '(${page + m.options.removePages},0)'::tid
           AND ${table.predicate()} RETURNING 1) SELECT count(*)::int AS n FROM gone`,
      );
      await session.query('COMMIT');
      removed += deleted[0]?.n ?? 0;
    } catch (error) {
      await session.query('ROLLBACK').catch(() => undefined); // the first error says more
      throw error;
    }
    if (m.options.removePauseMs > 0) await delay(m.options.removePauseMs);
  }
  return removed;
}
