import { quoteIdent, quoteTable } from '../../topology/quote.js';
import {
  type KeyspaceName,
  type ShardName,
  shardsOf,
  type TableName,
  type Topology,
  tableId,
} from '../../topology/topology.js';
import type { GatheredTable } from './gather-program.js';
import { areTogether } from './layout.js';
import { ownConditions } from './resolve.js';

/** What a condition that stands for itself says of a table whose rows are brought together. */
export interface TableCondition {
  readonly text: string;
  /** The table's own names of the columns in it. */
  readonly columns: readonly string[];
  /** Whether it does more than compare. */
  readonly mayFail: boolean;
}

/** A table of which a query uses columns that are in its hot table, on other shards. Its rows come in two parts, which are joined by the primary key. */
export interface GatheredHalves {
  readonly hot: TableName;
  /** Of the hot table. */
  readonly keyspace: KeyspaceName;
  readonly primaryKey: readonly string[];
  /** What is brought of the table itself; the primary key is among it. */
  readonly baseColumns: readonly string[];
  /** What is brought of the hot table, besides the primary key; never empty. */
  readonly hotColumns: readonly string[];
  /** What is true of all rows that the query can use, of one part and the other. */
  readonly baseFilter: string | null;
  readonly hotFilter: string | null;
  /** The same of both: it is about the primary key, which no row ever changes. Both others imply it. */
  readonly keyFilter: string | null;
}

/** The name of a table where its rows are read. */
export const ROW = 't';

/** A column there. */
export const rowColumn = (column: string) => `${quoteIdent(ROW)}.${quoteIdent(column)}`;

/** Columns there, as a list. */
export const columnsOf = (columns: readonly string[]) => columns.map(rowColumn).join(', ');

/** What stands in FROM there. */
export const fromOf = (table: TableName) => `${quoteTable(table)} AS ${quoteIdent(ROW)}`;

/** Columns of the table are on other shards than its rows: null where they are not, or the query uses none of them. */
export function halvesOf(
  table: TableName & { readonly keyspace: KeyspaceName; readonly columns: readonly string[] },
  conditions: readonly (readonly TableCondition[])[],
  topology: Topology,
): GatheredHalves | null {
  const split = topology.shardedTables.get(tableId(table))?.split;
  const hot = split && topology.shardedTables.get(tableId(split.hot));
  if (!split || !hot || areTogether(topology, [table.keyspace, hot.keyspace])) return null;
  const hotColumns = table.columns.filter((column) => split.columns.includes(column));
  if (hotColumns.length === 0) return null;
  const { primaryKey } = split;
  const isKey = (column: string) => primaryKey.includes(column);
  const isHot = (column: string) => split.columns.includes(column);
  return {
    hot: split.hot,
    keyspace: hot.keyspace,
    primaryKey,
    baseColumns: [
      ...primaryKey,
      ...table.columns.filter((column) => !primaryKey.includes(column) && !split.columns.includes(column)),
    ],
    hotColumns,
    keyFilter: filterOf(conditions, isKey),
    baseFilter: filterOf(conditions, (column) => !isHot(column)),
    hotFilter: filterOf(conditions, (column) => isHot(column) || isKey(column)),
  };
}

/** What the conditions say by such columns alone. @param conditions of each place where the query has the table */
export function filterOf(
  conditions: readonly (readonly TableCondition[])[],
  has: (column: string) => boolean = () => true,
): string | null {
  const filters = conditions.map((of) => {
    const known = of.map(({ columns }) => columns.every(has));
    // What may fail is looked at behind what stands before it, or not at all.
    return of.filter(({ mayFail }, i) => known[i] && (!mayFail || known.slice(0, i).every((k) => k)));
  });
  if (filters.length === 0 || filters.some((of) => of.length === 0)) return null;
  const texts = filters.map((of) => of.map(({ text }) => text).join(' AND '));
  return texts.length === 1 ? (texts[0] as string) : texts.map((text) => `(${text})`).join(' OR ');
}

/** The table with nothing known of its rows. */
export function unfiltered<Table extends GatheredTable>(table: Table): Table {
  const { halves } = table;
  const none = { keyFilter: null, baseFilter: null, hotFilter: null };
  return { ...table, filter: null, halves: halves === null ? null : { ...halves, ...none } };
}

/** A gathered table in two parts. */
export type HalvedTable = GatheredTable & { readonly halves: GatheredHalves };

export function isHalved(table: GatheredTable): table is HalvedTable {
  return table.halves !== null;
}

/** One of the two parts of a table. */
export interface Half {
  readonly table: TableName;
  /** In the order in which they are sent. */
  readonly columns: readonly string[];
  /** By shard, what gives its rows. */
  readonly texts: ReadonlyMap<ShardName, string>;
}

/** What the shards send of a table in two parts. @param shards those that the query goes to: rows that have one of their halves elsewhere are not for it */
export function halvesFetches(
  table: HalvedTable,
  topology: Topology,
  shards: readonly ShardName[],
): { readonly base: Half; readonly hot: Half } {
  const { baseColumns, hotColumns, primaryKey, baseFilter, hotFilter } = table.halves;
  const own = ownHalves(table, topology, shards);
  const half = (name: TableName, columns: readonly string[], filter: string | null, by: Owned): Half => ({
    table: name,
    columns,
    texts: new Map(
      [...by.all].map(([shard, condition]) => [
        shard,
        `SELECT ${columnsOf(columns)} FROM ${fromOf(name)} WHERE ${both(condition, filter)}`,
      ]),
    ),
  });
  return {
    base: half(table, baseColumns, baseFilter, own.base),
    hot: half(table.halves.hot, [...primaryKey, ...hotColumns], hotFilter, own.hot),
  };
}

/** How the rows of a table that have their halves on two shards are looked at as a whole. */
export interface HalvesLooks {
  /** By shard that has the first half of such rows. */
  readonly base: ReadonlyMap<ShardName, string>;
  /** By shard that has the other half. */
  readonly hot: ReadonlyMap<ShardName, string>;
}

/** Of rows that are looked at: how many, which, and which versions of them; and whether one is not settled. */
export interface Looked {
  readonly rows: bigint;
  /** Of the primary keys: the same for the same keys, wherever they are. */
  readonly keys: bigint;
  /** Of the versions, as this shard has them. */
  readonly versions: bigint;
  readonly unsettled: boolean;
}

/** Seeds of the sums, of one reading. */
export interface Seeds {
  readonly keys: bigint;
  readonly versions: bigint;
}

/** FROM and WHERE that have the rows of the key filter with halves on two shards. */
export function halvesLooks(table: HalvedTable, topology: Topology, shards: readonly ShardName[]): HalvesLooks {
  const own = ownHalves(table, topology, shards);
  const { hot, keyFilter } = table.halves;
  const looks = (name: TableName, by: Owned) =>
    new Map([...by.apart].map(([shard, condition]) => [shard, `${fromOf(name)} WHERE ${both(condition, keyFilter)}`]));
  return { base: looks(table, own.base), hot: looks(hot, own.hot) };
}

/** A query whose one value {@link readLook} reads. @param unsettled whether a row is locked by who must have ended; null: it does not matter */
export function lookSql(
  rows: string,
  primaryKey: readonly string[],
  seeds: Seeds,
  unsettled: ((xmax: string) => string) | null,
): string {
  const keys = primaryKey.map(rowColumn);
  const xmax = `${quoteIdent(ROW)}.xmax`;
  const sum = (columns: readonly string[], seed: bigint) =>
    `coalesce(pg_catalog.sum(pg_catalog.hashtextextended(CAST(ROW(${columns.join(', ')}) AS pg_catalog.text), CAST('${seed}' AS pg_catalog.int8))), 0)`;
  const versions = [...keys, `${quoteIdent(ROW)}.xmin`, `${quoteIdent(ROW)}.ctid`];
  const open =
    unsettled === null
      ? 'false'
      : `coalesce(pg_catalog.bool_or(CASE WHEN ${xmax} = CAST('0' AS pg_catalog.xid) THEN false ELSE ${unsettled(xmax)} END), false)`;
  return `SELECT pg_catalog.concat_ws(' ', pg_catalog.count(*), ${sum(keys, seeds.keys)}, ${sum(versions, seeds.versions)}, ${open}) FROM ${rows}`;
}

export function readLook(value: string): Looked {
  const [rows, keys, versions, unsettled] = value.split(' ') as [string, string, string, string];
  return { rows: BigInt(rows), keys: BigInt(keys), versions: BigInt(versions), unsettled: unsettled !== 'f' };
}

/** Fills the table of the workspace from its parts, by the names that these have there. */
export function joinSql(
  { table, columns, halves: { primaryKey, hotColumns } }: HalvedTable,
  names: { readonly base: string; readonly hot: string },
): string {
  const list = columns.map(quoteIdent).join(', ');
  const shown = columns.map((c) => `${hotColumns.includes(c) ? 'h' : 'b'}.${quoteIdent(c)}`).join(', ');
  const on = primaryKey.map((c) => `b.${quoteIdent(c)} OPERATOR(pg_catalog.=) h.${quoteIdent(c)}`).join(' AND ');
  const from = `pg_temp.${quoteIdent(names.base)} AS b JOIN pg_temp.${quoteIdent(names.hot)} AS h ON ${on}`;
  return `INSERT INTO pg_temp.${quoteIdent(table)} (${list}) SELECT ${shown} FROM ${from}`;
}

/** Conditions on the rows of one half, by shard that owns some. */
interface Owned {
  readonly all: ReadonlyMap<ShardName, string>;
  /** Only rows whose other half another shard owns. */
  readonly apart: ReadonlyMap<ShardName, string>;
}

function ownHalves(
  { keyspace, keyColumns, halves }: HalvedTable,
  topology: Topology,
  shards: readonly ShardName[],
): { readonly base: Owned; readonly hot: Owned } {
  const own = (name: KeyspaceName) => {
    const found = topology.keyspaces.get(name);
    const owners = found === undefined ? [] : shardsOf(found);
    const conditions = ownConditions({ keyspace: name, name: ROW, keyColumns }, topology);
    const asked = owners.filter((shard) => shards.includes(shard));
    return { conditions, asked, whole: asked.length === owners.length };
  };
  const [base, hot] = [own(keyspace), own(halves.keyspace)];
  const owned = (ours: typeof base, theirs: typeof base): Owned => {
    const condition = (shard: ShardName) => ours.conditions.get(shard) as string;
    const ownedBy = (those: readonly ShardName[]) =>
      those.map((shard) => `(${theirs.conditions.get(shard) as string})`).join(' OR ');
    return {
      all: new Map(
        ours.asked.map((shard) => [
          shard,
          theirs.whole ? condition(shard) : `(${condition(shard)}) AND (${ownedBy(theirs.asked) || 'false'})`,
        ]),
      ),
      apart: new Map(
        ours.asked.flatMap((shard): [ShardName, string][] => {
          const others = theirs.asked.filter((other) => other !== shard);
          return others.length === 0 ? [] : [[shard, `(${condition(shard)}) AND (${ownedBy(others)})`]];
        }),
      ),
    };
  };
  return { base: owned(base, hot), hot: owned(hot, base) };
}

const both = (condition: string, filter: string | null) =>
  filter === null ? condition : `(${condition}) AND (${filter})`;
