import type pg from 'pg';
import { quoteTable } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import { type PartitionInfo, readTable, readTables, type TableInfo, tableShape } from './schema-read.js';
import { createTableSql, finishIndexes } from './schema-sql.js';

/** Partitions at all levels, each behind its parent. */
const PARTITIONS = `
SELECT c.oid::text, format('%I.%I', n.nspname, c.relname) AS name, json_build_object('schema', pn.nspname, 'table', p.relname) AS parent,
       pg_get_expr(c.relpartbound, c.oid) AS bound
  FROM pg_partition_tree(to_regclass($1)) t JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class p ON p.oid = t.parentrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE t.level > 0 ORDER BY t.level, n.nspname, c.relname`;

/** Reads a table with its partitions, if it has any, or null when there is none. The session's search_path must be pg_catalog. */
export async function readWholeTable(db: Pick<pg.ClientBase, 'query'>, quotedName: string): Promise<TableInfo | null> {
  const info = await readTable(db, quotedName);
  if (info === null || info.partitionKey === null) return info;
  type Row = Omit<PartitionInfo, 'table'> & { oid: string; name: string };
  const { rows } = await db.query<Row>(PARTITIONS, [quotedName]);
  const names = rows.map((row) => row.name);
  const tables = new Map((await readTables(db, names)).map((table) => [table.oid, table]));
  const partitions = rows.flatMap(({ oid, parent, bound }): PartitionInfo[] => {
    // One that is gone meanwhile is none.
    const table = tables.get(oid);
    return table === undefined ? [] : [{ table, parent, bound }];
  });
  return { ...info, partitions };
}

/** A table behind its partitions: what is built on them first is taken over by what is built on it. */
export function fromLeaves(info: TableInfo): TableInfo[] {
  return [...(info.partitions ?? []).map((p) => p.table).reverse(), info];
}

/**
 * Makes a partition, with its own order of columns, defaults, names and options, of a parent that is there. Its sequences are those of the
 * table, and the identity of a column comes from there, too.
 * @param isLate with its indexes, as nobody will build them behind the copy
 */
export function createPartitionSql({ table, parent, bound }: PartitionInfo, isLate: boolean): string[] {
  const columns = table.columns.map((c) => ({ ...c, identity: '' as const }));
  return [
    ...createTableSql({ ...table, columns, sequences: [] }),
    ...(isLate ? finishIndexes(table).map((item) => item.sql) : []),
    `ALTER TABLE ${quoteTable(parent)} ATTACH PARTITION ${quoteTable(table)} ${bound}`,
  ];
}

/** What of a partition both sides must have in common, one line each: see `tableShape`. */
function partitionShape({ table, parent, bound }: PartitionInfo): string[] {
  // Before PostgreSQL 17 a partition has not the identity of its parent's columns.
  const columns = table.columns.map((c) => ({ ...c, identity: '' as const }));
  return [`of ${tableId(parent)} ${bound}`, ...tableShape({ ...table, columns })].map(
    (line) => `partition ${tableId(table)} ${line}`,
  );
}

/** The same of a table with its partitions. */
export function wholeShape(info: TableInfo): string[] {
  return [...tableShape(info), ...(info.partitions ?? []).flatMap(partitionShape)];
}

/** How two copies of a table differ, one line each; empty when rows of one fit the other. */
export function shapeDifferences(source: TableInfo, destination: TableInfo): string[] {
  const a = wholeShape(source);
  const b = wholeShape(destination);
  return [
    ...a.filter((x) => !b.includes(x)).map((x) => `only at the source: ${x}`),
    ...b.filter((x) => !a.includes(x)).map((x) => `only at the destination: ${x}`),
  ];
}
