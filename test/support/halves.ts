import { hotTableInfo, primaryKeyOf } from '../../migrator/hot-table.js';
import { readTable, type TableInfo } from '../../migrator/schema-read.js';
import { createTableSql } from '../../migrator/schema-sql.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { baseHalfSql, baseTriggersSql, hotHalfSql } from '../../topology/halves-sql.js';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import { type ColumnSplit, type TableName, tableId } from '../../topology/topology.js';
import { withClient } from './client.js';

export interface SplitOptions {
  /** A sharded table, which is on every shard. */
  readonly table: TableName;
  readonly columns: readonly string[];
  readonly hot: TableName;
  /** Name of the keyspace that the hot table gets, with the ranges of the table's. */
  readonly as: string;
}

/**
 * Splits columns of a table, all at once and without a migrator: the objects on all shards of the catalog, the hot table filled, the catalog's rows, epoch and
 * schema generation raised. Both halves are together then. To have them apart, let `moveHot` follow, or move ranges of `as`. Whoever needs the proxy to
 * know waits for it (`Sharded.reloaded()`).
 *
 *     const s = await Sharded.start({ splitAt: 100 });
 *     const split = await splitColumns(s.catalog, { table: DOCUMENTS, columns: ['views'], hot: HOT, as: 'views' });
 *     await moveHot(s.catalog, DOCUMENTS, split, 's2');
 *     await s.reloaded();
 */
export async function splitColumns(catalog: Catalog, { table, columns, hot, as }: SplitOptions): Promise<ColumnSplit> {
  const { shards, shardedTables } = await catalog.loadTopology();
  const keyspace = shardedTables.get(tableId(table))?.keyspace ?? '';
  let split: ColumnSplit | null = null;
  for (const { url } of shards.values())
    await withClient(url, async (client) => {
      await client.query('SET search_path = pg_catalog');
      const info = (await readTable(client, quoteTable(table))) as TableInfo;
      const primaryKey = primaryKeyOf(info);
      split = { hot, columns: info.columns.map((c) => c.name).filter((name) => columns.includes(name)), primaryKey };
      const names = [...primaryKey, ...split.columns].map(quoteIdent).join(', ');
      for (const sql of [
        ...createTableSql(hotTableInfo(info, split)),
        ...baseHalfSql(table, split),
        ...baseTriggersSql(table, split),
        ...hotHalfSql(table, split),
        `INSERT INTO ${quoteTable(hot)} (${names}) SELECT ${names} FROM ${quoteTable(table)}`,
      ])
        await client.query(sql);
    });
  const made = split as unknown as ColumnSplit;
  await inCatalog(catalog, [
    [
      'INSERT INTO foreshard.keyspace (name, method, key_types) SELECT $2, method, key_types FROM foreshard.keyspace WHERE name = $1',
      [keyspace, as],
    ],
    ...[
      ['range', 'lo, hi, shard'],
      ['segment', 'lo, hi'],
    ].map(([of, what]): [string, unknown[]] => [
      `INSERT INTO foreshard.${of} (keyspace, ${what}) SELECT $2, ${what} FROM foreshard.${of} WHERE keyspace = $1`,
      [keyspace, as],
    ]),
    [
      `INSERT INTO foreshard.sharded_table (schema_name, table_name, keyspace, key_columns)
       SELECT $3, $4, $5, key_columns FROM foreshard.sharded_table WHERE schema_name = $1 AND table_name = $2`,
      [table.schema, table.table, hot.schema, hot.table, as],
    ],
    [
      'INSERT INTO foreshard.column_split (schema_name, table_name, hot_schema, hot_table, columns, primary_key) VALUES ($1, $2, $3, $4, $5, $6)',
      [table.schema, table.table, hot.schema, hot.table, made.columns, made.primaryKey],
    ],
  ]);
  return made;
}

/**
 * Has all rows of the hot table on one shard, which then owns all its keys: as moves of all its ranges would, but at once, while nobody writes. The table's
 * own values of the hot columns are made what no reader should see: whatever they can be that is not so there.
 * @param stale SQL of an assignment to the table's hot columns, like `views = -1`; its triggers do not fire. Default: they stay as they are
 */
export async function moveHot(
  catalog: Catalog,
  table: TableName,
  { hot, primaryKey, columns }: ColumnSplit,
  to: string,
  stale?: string,
): Promise<void> {
  const { shards, shardedTables } = await catalog.loadTopology();
  const as = shardedTables.get(tableId(hot))?.keyspace ?? '';
  const target = [...shards.values()].find((s) => s.name === to);
  const names = [...primaryKey, ...columns];
  for (const { name, url } of shards.values())
    await withClient(url, async (client) => {
      await client.query('SET session_replication_role = replica');
      if (name !== to) {
        const text = names.map((n) => `${quoteIdent(n)}::text`).join(', ');
        const { rows } = await client.query({
          text: `DELETE FROM ${quoteTable(hot)} RETURNING ${text}`,
          rowMode: 'array',
        });
        await withClient(target?.url ?? '', async (there) => {
          await there.query('SET session_replication_role = replica');
          for (const row of rows)
            await there.query(
              `INSERT INTO ${quoteTable(hot)} (${names.map(quoteIdent).join(', ')}) VALUES (${names.map((_, i) => `$${i + 1}`).join(', ')})`,
              row as unknown[],
            );
        });
      }
    });
  if (stale !== undefined)
    for (const { name, url } of shards.values())
      if (name !== to)
        await withClient(url, async (client) => {
          await client.query('SET session_replication_role = replica');
          await client.query(`UPDATE ${quoteTable(table)} SET ${stale}`);
        });
  await inCatalog(catalog, [
    ['DELETE FROM foreshard.range WHERE keyspace = $1', [as]],
    ['INSERT INTO foreshard.range (keyspace, shard) VALUES ($1, $2)', [as, to]],
  ]);
}

async function inCatalog(catalog: Catalog, statements: readonly (readonly [string, unknown[]])[]): Promise<void> {
  const client = await catalog.pool.connect();
  try {
    await client.query('BEGIN');
    for (const [sql, values] of statements) await client.query(sql, values);
    await client.query('UPDATE foreshard.meta SET epoch = epoch + 1, schema_generation = schema_generation + 1');
    await client.query('COMMIT');
  } finally {
    client.release();
  }
}
