import type { Interval, KeyType, Method, Position } from './key.js';
import { comparePositions, overlaps } from './key.js';

/** The catalog's counter: every change of who owns what raises it by one, and it never goes back. */
export type Epoch = bigint & { readonly __brand: 'Epoch' };
export type ShardName = string & { readonly __brand: 'ShardName' };
export type KeyspaceName = string & { readonly __brand: 'KeyspaceName' };

/** A table's name as PostgreSQL resolved it: both parts folded and unquoted. */
export interface TableName {
  readonly schema: string;
  readonly table: string;
}

/** `schema.table`, unquoted: a map key, never SQL. */
export function tableId(t: TableName): string {
  return `${t.schema}.${t.table}`;
}

export interface Shard {
  readonly name: ShardName;
  /** libpq URL of the shard's database, with the user and, unless it comes from the configuration, the password that Foreshard itself uses. */
  readonly url: string;
  /** The home shard also keeps the tables that belong to no keyspace. Exactly one shard is home. */
  readonly home: boolean;
  /** Load the shard can carry: milliseconds of busy backend per second; null when not set. */
  readonly capacityMsPerSecond: number | null;
}

export interface ShardedTable extends TableName {
  readonly keyspace: KeyspaceName;
  /** Key columns, in the order of the keyspace's key types. All NOT NULL. None: the table is whole on one shard. */
  readonly keyColumns: readonly string[];
  /** Some of its columns are kept in another table besides. */
  readonly split?: ColumnSplit;
  /** It keeps columns of that table, and is nobody's to write. */
  readonly halfOf?: TableName;
}

/**
 * Columns of a table that are written often are kept in a table of a keyspace of their own, so that they can be on another shard: its hot table. The
 * table has them still, and on a shard that owns both halves of a row they are the same in both; elsewhere only the hot table's count.
 */
export interface ColumnSplit {
  /** Of a keyspace with the same key; it has the columns of the primary key, and `columns`, under the same names. */
  readonly hot: TableName;
  /** In the order of the table. */
  readonly columns: readonly string[];
  /** Of both tables; it has the key columns among others. */
  readonly primaryKey: readonly string[];
}

export interface Range extends Interval {
  readonly id: bigint;
  readonly keyspace: KeyspaceName;
  readonly shard: ShardName;
}

export interface Keyspace {
  readonly name: KeyspaceName;
  readonly method: Method;
  readonly keyTypes: readonly KeyType[];
  readonly tables: readonly ShardedTable[];
  /** Sorted by `lo`, without gaps or overlaps, from minus to plus infinity. */
  readonly ranges: readonly Range[];
}

/**
 * Whether it has no key: its tables, which belonged to no keyspace before, are whole on one shard. It has one range, which is never cut, and
 * the empty key is every row's.
 */
export function isKeyless(keyspace: Pick<Keyspace, 'keyTypes'>): boolean {
  return keyspace.keyTypes.length === 0;
}

export interface ReferenceTable extends TableName {
  /** Shards that have a full copy. */
  readonly shards: readonly ShardName[];
}

/**
 * A hold: proxies let no new statement start that touches the interval (or, if `referenceTables`, that writes a reference
 * table), until the hold is gone from the catalog or `deadlineMs` has passed.
 */
export interface Hold extends Interval {
  readonly id: bigint;
  readonly keyspace: KeyspaceName;
  readonly referenceTables: boolean;
  /** Transactions that are open on it are to be ended. */
  readonly endsTransactions: boolean;
  /** Time left when the topology was read, in ms by the catalog's clock. */
  readonly remainingMs: number;
}

/**
 * An interval that another shard follows, so that it can be read there, in the state of a moment ago. It serves from epoch `since` on; the same
 * migration may have served before, and have been taken out of service in between: that was another replica.
 */
export interface RangeReplica extends Interval {
  /** Of the migration that keeps it. */
  readonly id: bigint;
  readonly since: Epoch;
  readonly keyspace: KeyspaceName;
  /** Who owns the interval. */
  readonly source: ShardName;
  readonly shard: ShardName;
  /** A table that is replicated with it, for whoever wants to know how far it is: `(id int, token uuid, at timestamptz)`. */
  readonly marker: TableName;
  /** Kept up to date there together with it. */
  readonly referenceTables: readonly TableName[];
  /** Its tables are known to be as they are at the source as of this generation of the schema. */
  readonly schemaGeneration: bigint;
  /** Nobody may read there what is older, ms. */
  readonly maxStalenessMs: number;
  /** So many of a hundred clients read there without having asked for it. */
  readonly readPercent: number;
}

/** Shards, keyspaces, ranges and replicas at one epoch. Immutable: a change makes a new one. */
export interface Topology {
  readonly epoch: Epoch;
  /** Grows with every DDL that is committed through a proxy, and with every declaration of a table. */
  readonly schemaGeneration: bigint;
  /** The database name that clients connect to. */
  readonly database: string;
  readonly shards: ReadonlyMap<ShardName, Shard>;
  readonly home: ShardName;
  readonly keyspaces: ReadonlyMap<KeyspaceName, Keyspace>;
  /** By `tableId`. */
  readonly shardedTables: ReadonlyMap<string, ShardedTable>;
  /** By `tableId`. */
  readonly referenceTables: ReadonlyMap<string, ReferenceTable>;
  readonly holds: readonly Hold[];
  readonly replicas: readonly RangeReplica[];
}

/** The range of `keyspace` that owns `p`. Binary search; ranges cover everything, so there always is one. */
export function rangeOf(keyspace: Keyspace, p: Position): Range {
  const { ranges } = keyspace;
  let lo = 0;
  let hi = ranges.length - 1;
  while (lo < hi) {
    const mid = (lo + hi + 1) >>> 1;
    const bound = (ranges[mid] as Range).lo;
    if (bound === null || comparePositions(bound, p) <= 0) lo = mid;
    else hi = mid - 1;
  }
  return ranges[lo] as Range;
}

/** Shards that own at least one range of the keyspace, in the order of their first range. */
export function shardsOf(keyspace: Keyspace): ShardName[] {
  return [...new Set(keyspace.ranges.map((r) => r.shard))];
}

/** Ranges of `keyspace` that share a position with `interval`. */
export function rangesIn(keyspace: Keyspace, interval: Interval): Range[] {
  return keyspace.ranges.filter((r) => overlaps(r, interval));
}

/** The one shard that holds everything (all ranges and the tables without a keyspace), or null when data is spread. */
export function soleShard(topology: Topology): ShardName | null {
  for (const keyspace of topology.keyspaces.values())
    for (const range of keyspace.ranges) if (range.shard !== topology.home) return null;
  return topology.home;
}
