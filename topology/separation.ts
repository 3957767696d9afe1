import {
  type Keyspace,
  type KeyspaceName,
  type ShardedTable,
  type TableName,
  type Topology,
  tableId,
} from './topology.js';

/** Tables that get a keyspace of their own. */
export interface Separation {
  /** That they are in; null: none. */
  readonly keyspace: string | null;
  readonly tables: readonly TableName[];
  /** The new keyspace's name. */
  readonly as: string;
}

/** The topology after a separation that fits it. The new ranges have ids that no range has. */
export function afterSeparation(topology: Topology, { keyspace, tables, as }: Separation): Topology {
  const going = new Set(tables.map(tableId));
  const name = as as KeyspaceName;
  if (keyspace === null) return afterAdoption(topology, tables, name);
  const before = topology.keyspaces.get(keyspace as KeyspaceName) as Keyspace;
  const moved = before.tables.filter((t) => going.has(tableId(t))).map((t): ShardedTable => ({ ...t, keyspace: name }));
  const ranges = before.ranges.map((range, i) => ({ ...range, keyspace: name, id: BigInt(-1 - i) }));
  const keyspaces = new Map(topology.keyspaces)
    .set(before.name, { ...before, tables: before.tables.filter((t) => !going.has(tableId(t))) })
    .set(name, { ...before, name, tables: moved, ranges });
  const shardedTables = new Map(topology.shardedTables);
  for (const table of moved) shardedTables.set(tableId(table), table);
  return { ...topology, keyspaces, shardedTables };
}

/** Tables of the home shard's own are whole in one range. */
function afterAdoption(topology: Topology, tables: readonly TableName[], name: KeyspaceName): Topology {
  const whole = tables.map((t): ShardedTable => ({ schema: t.schema, table: t.table, keyspace: name, keyColumns: [] }));
  const range = { id: -1n, keyspace: name, lo: null, hi: null, shard: topology.home };
  const made: Keyspace = { name, method: 'range', keyTypes: [], tables: whole, ranges: [range] };
  const shardedTables = new Map(topology.shardedTables);
  for (const table of whole) shardedTables.set(tableId(table), table);
  return { ...topology, keyspaces: new Map(topology.keyspaces).set(name, made), shardedTables };
}
