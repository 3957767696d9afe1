import { quoteIdent, quoteTable } from '../topology/quote.js';
import type { ColumnSplit } from '../topology/topology.js';
import type { HalvesWork } from './halves.js';
import type { ShardSession } from './shard-session.js';
import { Throttle } from './throttle.js';

/** Of a row of a hot table, about. */
export const HALF_ROW_BYTES = 128;
/** Rows that are compared by one statement. */
const WINDOW = 5000;

/** What is done to one shard, kept within its limits: it is both sides of it. */
export function throttleOn(h: Pick<HalvesWork, 'exec' | 'options'>, shard: string, session: ShardSession): Throttle {
  const none = { schema: 'foreshard_shard', table: 'none' };
  return new Throttle({
    exec: h.exec,
    options: h.options,
    spec: { from: shard, to: shard },
    names: { pace: none },
    source: session,
    destination: session,
  });
}

/** Keys of some rows whose halves are not the same, with why; both are read in one snapshot, and changed by one statement. */
export async function differingHalves(
  h: HalvesWork,
  split: ColumnSplit,
  shard: string,
  session: ShardSession,
): Promise<string[]> {
  const { hot, primaryKey, columns } = split;
  const { table } = h.spec;
  const throttle = throttleOn(h, shard, session);
  const key = primaryKey.map(quoteIdent).join(', ');
  const list = (alias: string, names: readonly string[]) => names.map((n) => `${alias}.${quoteIdent(n)}`).join(', ');
  const all = [...primaryKey, ...columns];
  const param = (from: number) => primaryKey.map((_, i) => `$${from + i + 1}`).join(', ');
  let last: readonly string[] = [];
  for (;;) {
    h.exec.check();
    await h.exec.rest();
    const past = last.length === 0 ? 'true' : `(${key}) > (${param(0)})`;
    // Of both, or rows of the one behind the last of the other would be in nobody's window.
    const ends = [table, hot].map(
      (t) => `(SELECT ${key} FROM ${quoteTable(t)} WHERE ${past} ORDER BY ${key} OFFSET ${WINDOW} LIMIT 1)`,
    );
    const [end] = await session.query<Record<string, string>>(
      `SELECT ${primaryKey.map((c, i) => `${quoteIdent(c)}::text AS k${i}`).join(', ')} FROM (${ends.join(' UNION ALL ')}) ends ORDER BY ${key} LIMIT 1`,
      last,
    );
    const until = end === undefined ? [] : Object.values(end);
    const within = `${past}${end === undefined ? '' : ` AND (${key}) <= (${param(last.length)})`}`;
    const rows = await session.query<{ what: string }>(
      `SELECT CASE WHEN h.there IS NULL THEN 'without its other half: ' || ROW(${list('t', primaryKey)})::text
                   WHEN t.there IS NULL THEN 'half a row: ' || ROW(${list('h', primaryKey)})::text ELSE 'other values: ' || ROW(${list('t', primaryKey)})::text END AS what
         FROM (SELECT true AS there, ${all.map(quoteIdent).join(', ')} FROM ${quoteTable(table)} WHERE ${within}) t
         FULL JOIN (SELECT true AS there, ${all.map(quoteIdent).join(', ')} FROM ${quoteTable(hot)} WHERE ${within}) h
           ON ${primaryKey.map((c) => `t.${quoteIdent(c)} = h.${quoteIdent(c)}`).join(' AND ')}
        WHERE t.there IS NULL OR h.there IS NULL OR record_image_ne(ROW(${list('t', all)}), ROW(${list('h', all)})) LIMIT 3`,
      [...last, ...until],
    );
    if (rows.length > 0) return rows.map((r) => r.what);
    if (end === undefined) return [];
    last = until;
    await throttle.pauseAfterRead(WINDOW * HALF_ROW_BYTES * 2);
  }
}
