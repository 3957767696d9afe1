import type { Position } from '../topology/key.js';
import type { MoveSpec } from '../topology/migration.js';
import type { KeyspaceName, ShardName } from '../topology/topology.js';

/** Quantiles of a forecast, one row per step; same length and order as `at`. Unit: ms of busy backend per second. */
export interface ForecastBand {
  readonly stepSeconds: number;
  /** Start of each step, ms since 1970. */
  readonly at: readonly number[];
  readonly p05: readonly number[];
  readonly p50: readonly number[];
  readonly p95: readonly number[];
  /** Name of the model chosen by backtest, and its errors there beside the others'. */
  readonly model: string;
  readonly backtest: readonly { readonly model: string; readonly wape: number; readonly coverage90: number }[];
  /** Which model speaks for which steps `[from, to)`. */
  readonly choice: readonly { readonly from: number; readonly to: number; readonly model: string }[];
  /** What the reader must know: a short history, unknown steps, a band that had to be extended. */
  readonly notes: readonly string[];
}

export interface Series {
  readonly stepSeconds: number;
  readonly at: readonly number[];
  readonly values: readonly number[];
}

export interface ShardOutlook {
  readonly shard: ShardName;
  readonly capacityMsPerSecond: number;
  readonly history: Series;
  readonly forecast: ForecastBand;
  /** Probability, 0–1, that the shard passes its capacity within the horizon. */
  readonly score: number;
  /** First step whose p50 passes the capacity, ms since 1970, or null. */
  readonly crossesAt: number | null;
  readonly peak: { readonly at: number; readonly p50: number; readonly p95: number };
}

export interface Proposal {
  readonly kind: 'split_move';
  readonly spec: MoveSpec;
  readonly why: string;
  readonly splitAt: Position;
  readonly keyspace: KeyspaceName;
  readonly rows: number;
  readonly bytes: number;
  /** Seconds for copy, catch-up, and both, with the rates they were computed from. */
  readonly copySeconds: number;
  readonly catchUpSeconds: number;
  readonly copyBytesPerSecond: number;
  readonly applyRowsPerSecond: number;
  readonly expectedPauseMs: number;
  /** Latest start, ms since 1970, that is done before the crossing; null when nothing crosses. */
  readonly startBy: number | null;
  readonly before: readonly ShardOutlook[];
  readonly after: readonly ShardOutlook[];
  /** Share of the shard's forecast load at the peak that moves, 0–1. */
  readonly movedLoadShare: number;
  /** Share of sampled statements that would touch both sides, 0–1; null when there are no samples. */
  readonly crossShardShare: number | null;
  readonly segments: readonly {
    readonly lo: Position | null;
    readonly hi: Position | null;
    readonly load: number;
    readonly moves: boolean;
  }[];
  /** What moves, per table: counted, or (not `exact`) estimated from a sample of the table's pages. */
  readonly tables: readonly {
    readonly table: string;
    readonly rows: number;
    readonly bytes: number;
    readonly exact: boolean;
  }[];
  /** Where the rates come from: migrations carried out before, or the defaults. */
  readonly ratesFrom: 'measured' | 'default';
  /** The forecast peak that the cut was made for, ms since 1970. */
  readonly peakWindow: { readonly from: number; readonly to: number };
  /** When the shard is expected to pass its capacity, ms since 1970: the first step whose p50 does, else whose p95 does; null when none does. */
  readonly deadline: number | null;
  /** Kept free between the expected end of the migration and the deadline, seconds. */
  readonly marginSeconds: number;
  /** Reasons for which it cannot be carried out as it is; approval is refused while there are any. */
  readonly blockers: readonly string[];
  readonly ifNothingIsDone: string;
}
