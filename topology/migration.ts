import type { Position } from './key.js';
import type { KeyspaceName, ShardName, TableName } from './topology.js';

/** An interval of a range goes to another shard, with its rows. Data, made by the planner or by hand. */
export interface MoveSpec {
  readonly kind: 'move';
  readonly keyspace: KeyspaceName;
  /** The part that moves: `[lo, hi)`, inside one range of `from`. */
  readonly lo: Position | null;
  readonly hi: Position | null;
  readonly from: ShardName;
  readonly to: ShardName;
}

/** Bounds of ranges change in the catalog; every range stays on its shard, and no shard is touched. */
export interface RecutSpec {
  readonly kind: 'recut';
  readonly keyspace: KeyspaceName;
  /** Owner of all ranges concerned. */
  readonly shard: ShardName;
  /** Where a range is cut in two. */
  readonly cut: readonly Position[];
  /** Bounds between two ranges that become one. */
  readonly join: readonly Position[];
}

/** Changes the ranges of one keyspace. */
export type RangeSpec = MoveSpec | RecutSpec;

/** Tables get a keyspace of their own in the catalog, with the ranges of the one they leave, if any; no shard is touched. */
export interface SeparateSpec {
  readonly kind: 'separate';
  /** That they are in; null: none, they are the home shard's alone. The new one has no key then. */
  readonly keyspace: KeyspaceName | null;
  readonly tables: readonly TableName[];
  /** Name of the new one. */
  readonly as: KeyspaceName;
}

/**
 * Columns of a table get a table of their own, which is filled and kept the same by triggers on every shard that has the table; then, in the catalog, a keyspace
 * of its own, with the key and the ranges of the table's.
 */
export interface HalveSpec {
  readonly kind: 'halve';
  /** Of the table. */
  readonly keyspace: KeyspaceName;
  readonly table: TableName;
  /** Columns that go, in the order of the table. */
  readonly columns: readonly string[];
  /** Of the table, and then of both. */
  readonly primaryKey: readonly string[];
  /** Name of their table. */
  readonly hot: TableName;
  /** Name of its keyspace. */
  readonly as: KeyspaceName;
}

/** The way back from a `HalveSpec`: only while both keyspaces have all keys on the same shards. */
export interface UniteSpec {
  readonly kind: 'unite';
  /** Of the hot table: it ends. */
  readonly keyspace: KeyspaceName;
  /** The one that has the columns, and keeps them. */
  readonly table: TableName;
}

/** What a migration does. Everything else that people ask for (split, merge, drain …) is made of these. */
export type MigrationSpec = RangeSpec | SeparateSpec | HalveSpec | UniteSpec;

export const MIGRATION_STATES = [
  'planned',
  'approved',
  'preparing',
  'copying',
  'catching_up',
  'verifying',
  'following',
  'ready',
  'fencing',
  'flipped',
  'reversing',
  'cleaning',
  'done',
  'rolling_back',
  'flipped_back',
  'rolled_back',
  'aborting',
  'aborted',
  'failed',
] as const;
export type MigrationState = (typeof MIGRATION_STATES)[number];

/** That a migration is to rest in the state `following`, and the interval to be readable at its destination meanwhile. */
export interface ReplicaTerms {
  /** Nobody reads there what is older, ms. */
  readonly maxStalenessMs: number;
  /** So many of a hundred clients read there without having asked for it. */
  readonly readPercent: number;
}

/** How far a comparison of both sides is. */
export interface ComparisonProgress {
  readonly rows: number;
  readonly rowsTotal: number;
  readonly rowsPerSecond: number;
}

/** Live progress of a migration; every figure is measured. */
export interface MigrationProgress {
  readonly phase: MigrationState;
  readonly rowsCopied: number;
  readonly rowsTotal: number;
  readonly bytesCopied: number;
  readonly bytesTotal: number;
  readonly bytesPerSecond: number;
  /** WAL bytes between the source's head and what the destination has applied. */
  readonly lagBytes: number;
  readonly etaSeconds: number | null;
  /** ms from when the proxies were asked to hold until the new owner took writes, once known. */
  readonly pauseMs: number | null;
  /** While both sides are compared; else null. */
  readonly compared: ComparisonProgress | null;
  /** What has been compared of both sides since the flip, by samples; null: nothing. */
  readonly sampled: { readonly samples: number; readonly rows: number } | null;
  readonly note: string | null;
}
