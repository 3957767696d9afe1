import { UsageError } from './errors.js';
import {
  type ColumnSplit,
  type Keyspace,
  type KeyspaceName,
  type ShardedTable,
  type TableName,
  type Topology,
  tableId,
} from './topology.js';

/** Columns of a table that get a table of their own. */
export interface Halving {
  /** That the table is in. */
  readonly keyspace: string;
  readonly table: TableName;
  /** In the order of the table. */
  readonly columns: readonly string[];
  /** The table that they get, which nothing has the name of yet. */
  readonly hot: TableName;
  /** The keyspace of that table. */
  readonly as: string;
}

/** A table whose columns come together again. */
export interface Uniting {
  /** That of the hot table, which ends. */
  readonly keyspace: string;
  /** The one that has the columns, and keeps them. */
  readonly table: TableName;
}

/**
 * The topology after a split that fits it: the hot table has a keyspace of its own, with the same key and the same ranges on the same shards. The
 * new ranges have ids that no range has.
 * @param primaryKey of the table; where only ranges matter, the key columns stand for it
 */
export function afterSplit(topology: Topology, halving: Halving, primaryKey?: readonly string[]): Topology {
  const { table, columns, hot, as } = halving;
  const whole = topology.shardedTables.get(tableId(table)) as ShardedTable;
  const before = topology.keyspaces.get(whole.keyspace) as Keyspace;
  const name = as as KeyspaceName;
  const split: ColumnSplit = { hot, columns, primaryKey: primaryKey ?? whole.keyColumns };
  const base: ShardedTable = { ...whole, split };
  const half: ShardedTable = { ...hot, keyspace: name, keyColumns: whole.keyColumns, halfOf: table };
  const ranges = before.ranges.map((range, i) => ({ ...range, keyspace: name, id: BigInt(-1 - i) }));
  return {
    ...topology,
    keyspaces: new Map(topology.keyspaces)
      .set(before.name, withTable(before, base))
      .set(name, { ...before, name, tables: [half], ranges }),
    shardedTables: new Map(topology.shardedTables).set(tableId(table), base).set(tableId(hot), half),
  };
}

/** The topology after the columns of a table, which are split in it, are together again: the hot table and its keyspace are no more. */
export function afterUnite(topology: Topology, { table }: Uniting): Topology {
  const { split, ...whole } = topology.shardedTables.get(tableId(table)) as ShardedTable;
  const before = topology.keyspaces.get(whole.keyspace) as Keyspace;
  const shardedTables = new Map(topology.shardedTables).set(tableId(table), whole);
  const keyspaces = new Map(topology.keyspaces).set(before.name, withTable(before, whole));
  const hot = split === undefined ? undefined : shardedTables.get(tableId(split.hot));
  if (hot !== undefined) {
    shardedTables.delete(tableId(hot));
    keyspaces.delete(hot.keyspace);
  }
  return { ...topology, keyspaces, shardedTables };
}

/**
 * A table whose columns are split, and its hot table, stay in their keyspaces, and nobody comes to the hot one.
 * @param what is to be done, for people: `cannot leave its keyspace`
 * @throws UsageError when one of the tables is such a one
 */
export function refuseHalves(topology: Topology, tables: readonly TableName[], what: string): void {
  for (const name of tables) {
    const id = tableId(name);
    const table = topology.shardedTables.get(id);
    const whole = table?.split === undefined ? table?.halfOf : table;
    if (whole === undefined) continue;
    throw new UsageError(
      table?.split === undefined
        ? `table "${id}" has columns of "${tableId(whole)}": it ${what}`
        : `columns of "${id}" are split from it, into "${tableId(table.split.hot)}": it ${what}`,
      `Unite them first: "foreshard migrate plan unite ${tableId(whole)}".`,
    );
  }
}

/** @throws UsageError when the keyspace is that of a hot table, which has it alone */
export function refuseHotKeyspace(keyspace: Keyspace): void {
  const half = keyspace.tables.find((table) => table.halfOf !== undefined);
  if (half?.halfOf !== undefined)
    throw new UsageError(
      `keyspace "${keyspace.name}" is only for columns of "${tableId(half.halfOf)}", and ends with their split`,
      'Name another keyspace.',
    );
}

function withTable(keyspace: Keyspace, table: ShardedTable): Keyspace {
  return { ...keyspace, tables: keyspace.tables.map((t) => (tableId(t) === tableId(table) ? table : t)) };
}
