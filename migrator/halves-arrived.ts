import { intervalPredicate } from '../topology/interval-sql.js';
import { type Interval, intersection } from '../topology/key.js';
import { quoteIdent, quoteTable } from '../topology/quote.js';
import { type ColumnSplit, rangesIn, type ShardedTable, type TableName, tableId } from '../topology/topology.js';
import { MigrationFailure } from './executor.js';
import {
  byName,
  HALF_ROW_BYTES,
  HalvesComparison,
  PORTION_ROWS,
  type UnlikeHalves,
  unlikeSql,
} from './halves-compare.js';
import type { Move } from './move.js';
import { followed } from './replication.js';
import { readTable, type TableInfo } from './schema-read.js';
import { Throttle } from './throttle.js';

/** Rows that people are told of. */
const SOME = 3;
/** Rows that differ, from which on no more are looked for. */
const ENOUGH = 100;
/** How often rows that differ are looked at that change meanwhile. */
const ROUNDS = 5;
const TO_FOLLOW = { everyMs: 5 };

/**
 * Before a flip that brings hot columns to the shard that their rows are on: the table's own values of them, which will be those that count, are compared
 * there with what has been replicated. What is only on its way is none that differs.
 * @throws MigrationFailure when some differ
 */
export async function checkArrived(m: Move): Promise<void> {
  for (const { halfOf } of m.keyspace.tables) {
    const whole = halfOf === undefined ? undefined : m.topology.shardedTables.get(tableId(halfOf));
    const keyspace = whole && m.topology.keyspaces.get(whole.keyspace);
    if (whole?.split === undefined || keyspace === undefined) continue;
    const here = rangesIn(keyspace, m.spec).filter(({ shard }) => shard === m.spec.to);
    if (here.length === 0) continue;
    const where = here
      .map((range) => intersection(range, m.spec) as Interval)
      .map((interval) => `(${intervalPredicate(keyspace, whole.keyColumns, interval)})`);
    const found = await standing(m, whole, whole.split, where.join(' OR '));
    if (found.length === 0) continue;
    throw new MigrationFailure(
      `hot columns of ${found.length} rows of "${tableId(whole)}" on shard "${m.spec.to}" differ from those that have come to "${tableId(whole.split.hot)}" there, among them ${found.slice(0, SOME).join(', ')}`,
      `Somebody writes past the triggers there (session_replication_role, or triggers that are disabled: see "foreshard migrate audit"). Then start the migration again: it brings all values anew.`,
    );
  }
}

/** Keys of rows that differ at the destination, and not only because the source is ahead, or one of the halves is yet to be committed. */
async function standing(m: Move, table: ShardedTable, split: ColumnSplit, where: string): Promise<string[]> {
  const throttle = new Throttle(m);
  const comparison = new HalvesComparison(m.destination, table, split, where);
  const found: string[] = [];
  await m.exec.progress({ note: `comparing ${tableId(table)} with what has come to ${tableId(split.hot)}` });
  for (let isLast = false; !isLast && found.length < ENOUGH; ) {
    m.exec.at('before:verify');
    await m.exec.rest();
    const portion = await comparison.next(PORTION_ROWS, ENOUGH);
    found.push(...(await thatStand(m, table, split, portion.unlike)));
    isLast = portion.isLast;
    await throttle.pauseAfterRead(PORTION_ROWS * HALF_ROW_BYTES * 2);
  }
  await m.exec.progress({ note: null });
  return found;
}

async function thatStand(
  m: Move,
  table: ShardedTable,
  split: ColumnSplit,
  suspects: readonly UnlikeHalves[],
): Promise<string[]> {
  if (suspects.length === 0) return [];
  const info = await readTable(m.destination.reader, quoteTable(table));
  const standing: string[] = [];
  let left: readonly string[] = suspects.map(({ key }) => key);
  for (let round = 0; left.length > 0 && round < ROUNDS; round++) {
    const before = await versions(m, table, split, info, left);
    // What is committed on one shard only is prepared on the other; then it is on its way.
    const open = await prepared(m);
    await m.exec.wait('what is prepared is committed', async () => {
      const now = new Set(await prepared(m));
      return !open.some((name) => now.has(name));
    });
    await followed(m, TO_FOLLOW);
    const now = await versions(m, table, split, info, [...before.keys()]);
    standing.push(...[...now].filter(([key, version]) => before.get(key) === version).map(([key]) => key));
    // Another one was written in between; rows that never rest are left to the next comparison.
    left = [...now].filter(([key, version]) => before.get(key) !== version).map(([key]) => key);
  }
  return standing;
}

/** Which of these rows are not the same at the destination, with what changes whenever one of their halves does. */
async function versions(
  { destination }: Move,
  table: TableName,
  { hot, primaryKey, columns }: ColumnSplit,
  info: TableInfo | null,
  keys: readonly string[],
): Promise<Map<string, string>> {
  const names = byName(primaryKey);
  const sought = (alias: string) =>
    names
      .map((name, i) => {
        const type = info?.columns.find((c) => c.name === name)?.type ?? 'text';
        return `${alias}.${quoteIdent(name)} = (s.key::jsonb ->> ${i})::${type}`;
      })
      .join(' AND ');
  const rows = await destination.query<{ key: string; version: string }>(
    `SELECT s.key, concat(t.xmin, ' ', h.xmin) AS version FROM unnest($1::text[]) AS s (key)
       LEFT JOIN ${quoteTable(table)} t ON ${sought('t')} LEFT JOIN ${quoteTable(hot)} h ON ${sought('h')}
      WHERE ${unlikeSql([...primaryKey, ...columns], quoteIdent(primaryKey[0] as string))}`,
    [keys],
  );
  return new Map(rows.map(({ key, version }) => [key, version]));
}

async function prepared({ source, destination }: Move): Promise<string[]> {
  const each = await Promise.all(
    [source, destination].map((session) =>
      session.query<{ gid: string }>('SELECT gid FROM pg_prepared_xacts WHERE database = current_database()'),
    ),
  );
  return each.flatMap((rows, i) => rows.map(({ gid }) => `${i} ${gid}`));
}
