import type { Halving, Uniting } from '../column-split.js';
import { UsageError } from '../errors.js';
import { sameLayout } from '../layout.js';
import {
  type ColumnSplit,
  isKeyless,
  type Keyspace,
  type KeyspaceName,
  type ShardedTable,
  type TableName,
  type Topology,
  tableId,
} from '../topology.js';
import { KEYSPACE_NAME, unknownThing } from './registry.js';
import { KEEP_LOAD } from './separate.js';

/** NAMEDATALEN - 1 in PostgreSQL's pg_config_manual.h, bytes. */
const MAX_NAME_BYTES = 63;

/** One statement of the transaction in which the catalog is told. */
export interface SplitStatement {
  readonly text: string;
  readonly sql: string;
  /** Lists are JSON. */
  readonly values: readonly string[];
  /** What it means when it changes no row; null when that is fine. */
  readonly elseConflict: string | null;
}

const CHANGED = 'the topology changed meanwhile';

/** A list that is a parameter in JSON, as an array of texts. */
const textArray = (parameter: string) =>
  `ARRAY(SELECT e.v FROM jsonb_array_elements_text(${parameter}::jsonb) WITH ORDINALITY AS e (v, n) ORDER BY e.n)`;

/**
 * Whether columns of a table can get a table of their own, as far as the catalog tells; what the table is like on its servers is not looked at.
 * @returns the table, and the keyspace that it is in
 * @throws UsageError when the names do not fit the topology
 */
export function checkSplit(topology: Topology, halving: Halving): { table: ShardedTable; keyspace: Keyspace } {
  const { columns, hot, as } = halving;
  const keyspace = topology.keyspaces.get(halving.keyspace as KeyspaceName);
  if (keyspace === undefined) throw unknownThing('keyspace', halving.keyspace, topology.keyspaces.keys());
  const id = tableId(halving.table);
  const table = keyspace.tables.find((t) => tableId(t) === id);
  if (table === undefined)
    throw new UsageError(
      `table "${id}" is not in keyspace "${keyspace.name}"`,
      `It has: ${keyspace.tables.map(tableId).join(', ') || 'none'}.`,
    );
  if (table.halfOf !== undefined)
    throw new UsageError(`table "${id}" has columns of "${tableId(table.halfOf)}" itself`, 'Name another table.');
  if (table.split !== undefined)
    throw new UsageError(
      `columns ${table.split.columns.join(', ')} of "${id}" are split from it already`,
      `Unite them first ("foreshard migrate plan unite ${id}"), then split all of them together.`,
    );
  if (isKeyless(keyspace))
    throw new UsageError(
      `keyspace "${keyspace.name}" has no key: "${id}" is whole on one shard`,
      'Only tables with a key can be split by column; this one can move as it is.',
    );
  if (!KEYSPACE_NAME.test(as))
    throw new UsageError(
      `"${as}" cannot be the name of a keyspace`,
      'Use 1 to 40 lower-case letters, digits and "_", beginning with a letter (--as).',
    );
  if (topology.keyspaces.has(as as KeyspaceName))
    throw new UsageError(`keyspace "${as}" exists already`, 'Choose another name (--as).');
  const hotId = tableId(hot);
  if (topology.shardedTables.has(hotId) || topology.referenceTables.has(hotId))
    throw new UsageError(`there is a table "${hotId}" already`, 'Choose another name for the hot table (--hot).');
  if (hot.table === '' || Buffer.byteLength(hot.table) > MAX_NAME_BYTES)
    throw new UsageError(
      `"${hot.table}" cannot be the name of a table`,
      `Give one of at most ${MAX_NAME_BYTES} bytes (--hot).`,
    );
  if (columns.length === 0) throw new UsageError('no columns are given', 'Name those that are written often.');
  const twice = columns.find((column, i) => columns.indexOf(column) !== i);
  if (twice !== undefined) throw new UsageError(`column "${twice}" is named twice`, 'Name each column once.');
  const key = columns.find((column) => table.keyColumns.includes(column));
  if (key !== undefined)
    throw new UsageError(`column "${key}" is of the key of "${id}"`, 'The key stays in both: leave it out.');
  return { table, keyspace };
}

/** A table whose columns are split, and the keyspaces of it and of its hot table. */
export interface FoundSplit {
  readonly split: ColumnSplit;
  readonly keyspace: Keyspace;
  readonly hot: Keyspace;
}

/**
 * Whether the columns of a table are split, and can be united: the halves of all rows are together.
 * @throws UsageError
 */
export function checkUnite(topology: Topology, { keyspace: name, table }: Uniting): FoundSplit {
  const found = findSplit(topology, table);
  const { keyspace, hot, split } = found;
  if (hot.name !== name)
    throw new UsageError(
      `columns of "${tableId(table)}" are in keyspace "${hot.name}", not in "${name}"`,
      'The topology has changed: plan again.',
    );
  if (!sameLayout(keyspace, hot))
    throw new UsageError(
      `rows of "${tableId(table)}" have their other half, in "${tableId(split.hot)}", on another shard`,
      `Move the ranges of "${hot.name}" to where those of "${keyspace.name}" are: "foreshard migrate plan unite" does.`,
    );
  return found;
}

/** @throws UsageError when the table is not split */
export function findSplit(topology: Topology, name: TableName): FoundSplit {
  const id = tableId(name);
  const table = topology.shardedTables.get(id);
  if (table?.split === undefined)
    throw new UsageError(
      `no columns of "${id}" are split from it`,
      table?.halfOf === undefined ? 'See "foreshard topology show".' : `Name "${tableId(table.halfOf)}".`,
    );
  const { split } = table;
  const half = topology.shardedTables.get(tableId(split.hot)) as ShardedTable;
  return {
    split,
    keyspace: topology.keyspaces.get(table.keyspace) as Keyspace,
    hot: topology.keyspaces.get(half.keyspace) as Keyspace,
  };
}

/**
 * What a split changes in the catalog besides the epoch, when everything is made on the shards.
 * @param primaryKey of the table, in its order
 */
export function splitStatements(halving: Halving, primaryKey: readonly string[]): SplitStatement[] {
  const { keyspace, table, columns, hot, as } = halving;
  return [
    {
      text: `a keyspace "${as}" with the key of "${keyspace}"`,
      sql: 'INSERT INTO foreshard.keyspace (name, method, key_types) SELECT $2, method, key_types FROM foreshard.keyspace WHERE name = $1',
      values: [keyspace, as],
      elseConflict: CHANGED,
    },
    {
      text: 'it has a range for each of the other, with the same bounds',
      sql: 'INSERT INTO foreshard.range (keyspace, lo, hi, shard) SELECT $2, lo, hi, shard FROM foreshard.range WHERE keyspace = $1',
      values: [keyspace, as],
      elseConflict: CHANGED,
    },
    {
      text: 'it has a segment for each of the other, with the same bounds',
      sql: 'INSERT INTO foreshard.segment (keyspace, lo, hi) SELECT $2, lo, hi FROM foreshard.segment WHERE keyspace = $1',
      values: [keyspace, as],
      elseConflict: CHANGED,
    },
    {
      text: `table "${tableId(hot)}" is in it`,
      sql: `INSERT INTO foreshard.sharded_table (schema_name, table_name, keyspace, key_columns)
 SELECT $4, $5, $6, key_columns FROM foreshard.sharded_table WHERE keyspace = $1 AND schema_name = $2 AND table_name = $3`,
      values: [keyspace, table.schema, table.table, hot.schema, hot.table, as],
      elseConflict: CHANGED,
    },
    {
      text: `columns ${columns.join(', ')} of "${tableId(table)}" are in it`,
      sql: `INSERT INTO foreshard.column_split (schema_name, table_name, hot_schema, hot_table, columns, primary_key)
 VALUES ($1, $2, $3, $4, ${textArray('$5')}, ${textArray('$6')})`,
      values: [table.schema, table.table, hot.schema, hot.table, JSON.stringify(columns), JSON.stringify(primaryKey)],
      elseConflict: CHANGED,
    },
  ];
}

/**
 * What the way back changes in the catalog besides the epoch.
 * @throws UsageError when the table is not split, or its halves are not together
 */
export function uniteStatements(topology: Topology, uniting: Uniting): SplitStatement[] {
  const { split, keyspace, hot } = checkUnite(topology, uniting);
  const { table } = uniting;
  return [
    {
      text: `the columns of "${tableId(table)}" are in it alone`,
      sql: 'DELETE FROM foreshard.column_split WHERE schema_name = $1 AND table_name = $2',
      values: [table.schema, table.table],
      elseConflict: CHANGED,
    },
    {
      text: `table "${tableId(split.hot)}" is in no keyspace`,
      sql: 'DELETE FROM foreshard.sharded_table WHERE keyspace = $1 AND schema_name = $2 AND table_name = $3',
      values: [hot.name, split.hot.schema, split.hot.table],
      elseConflict: CHANGED,
    },
    {
      text: `what keyspace "${hot.name}" has carried counts for "${keyspace.name}"`,
      sql: KEEP_LOAD,
      values: [hot.name, keyspace.name],
      elseConflict: null,
    },
    ...(['segment', 'range', 'hold'] as const).map((of) => ({
      text: `no ${of} of keyspace "${hot.name}" is left`,
      sql: `DELETE FROM foreshard.${of} WHERE keyspace = $1`,
      values: [hot.name],
      // A hold is that of a migration that has ended.
      elseConflict: of === 'hold' ? null : CHANGED,
    })),
    {
      text: `keyspace "${hot.name}" is no more`,
      sql: 'DELETE FROM foreshard.keyspace WHERE name = $1',
      values: [hot.name],
      elseConflict: CHANGED,
    },
  ];
}
