import type { Position } from './key.js';
import type { KeyspaceName, ShardName } from './topology.js';

/** What a migration does: `at` cuts the range that contains it, and the part on `side` goes to `to`. Data, made by the planner or by hand. */
export interface SplitMoveSpec {
  readonly kind: 'split_move';
  readonly keyspace: KeyspaceName;
  /** The part that moves: `[lo, hi)`, inside one range of `from`. */
  readonly lo: Position | null;
  readonly hi: Position | null;
  readonly from: ShardName;
  readonly to: ShardName;
}

export const MIGRATION_STATES = [
  'planned',
  'approved',
  'preparing',
  'copying',
  'catching_up',
  'verifying',
  'ready',
  'fencing',
  'drained',
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
  /** ms from the hold's acknowledgement to its release, once known. */
  readonly pauseMs: number | null;
  readonly note: string | null;
}
