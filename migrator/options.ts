import type pg from 'pg';
import type { ThrottleLimits } from '../topology/migration-controls.js';
import type { TableName, Topology } from '../topology/topology.js';

/**
 * Rows are copied, and looked through to be removed, at the rate, and compared at twice that; while there is one, an index is built by one process. A load that used all of two processors, shared with both servers, lost 9 to 16 % of its throughput while 2.5 MB/s were copied, 14 and 31 % at 4.6 and 3.3 MB/s (two series, which differ that much), and 50 % without
 * a limit.
 */
const DEFAULT_THROTTLE: ThrottleLimits = { maxRate: 2_000_000, maxLagMs: 10_000, maxLatencyMs: 100 };

/**
 * Judges what the triggers, defaults, checks, indexes and policies of sharded tables may use besides their keyspace: tables that only the home shard has,
 * or anything beyond the keyspace. The proxies have to agree, so it is for whoever knows them. @param home a session of the home shard
 */
export type JudgeReach = (
  home: Pick<pg.ClientBase, 'query'>,
  topology: Topology,
) => Promise<(table: TableName) => 'home' | 'beyond' | null>;

/** Tunables of the migrator. Every one may be left out. */
export interface MigratorOptions {
  /** How often the catalog is asked for work besides NOTIFY, ms. Default 1000. */
  readonly pollMs: number;
  /** How long a migrator that dies keeps others from taking over, ms. Default 5000. */
  readonly leaseMs: number;
  /** How long proxies have to acknowledge a hold, ms; clients of the interval may wait as long. Default 10000. */
  readonly ackMs: number;
  /** How long the fence waits for the interval's writers in flight, ms. Default 2000. */
  readonly fenceMs: number;
  /** How long the destination has to apply the rest behind the fence, ms. Default 2000. */
  readonly drainMs: number;
  /** Round trip of a marker, ms, below which the destination counts as caught up. Default 1000. */
  readonly maxLagMs: number;
  /** Fences tried before the migration is given up. Default 5. */
  readonly maxFenceTries: number;
  /** Pause before the second fence, ms, doubled each time. Default 2000. */
  readonly fenceBackoffMs: number;
  /** How long a migration can be taken back after its flip, ms; 0: not at all. Default 0. */
  readonly wayBackMs: number;
  /** Pause between two samples of rows that are compared while a migration can be taken back, ms; 0: none are. Default 1000. */
  readonly sampleMs: number;
  /** Heap pages per transaction when rows are removed. Default 128. */
  readonly removePages: number;
  /** Rows that are compared by one statement, at most. Default 65536. */
  readonly compareRows: number;
  /** What a migration may do to the servers. Default: DEFAULT_THROTTLE. */
  readonly throttle: ThrottleLimits;
  /** Asked before a migration. Default: null, it goes unasked. */
  readonly judgeReach: JudgeReach | null;
}

export const DEFAULT_OPTIONS: MigratorOptions = {
  pollMs: 1000,
  leaseMs: 5000,
  ackMs: 10_000,
  fenceMs: 2000,
  drainMs: 2000,
  maxLagMs: 1000,
  maxFenceTries: 5,
  fenceBackoffMs: 2000,
  wayBackMs: 0,
  sampleMs: 1000,
  removePages: 128,
  compareRows: 65_536,
  throttle: DEFAULT_THROTTLE,
  judgeReach: null,
};

/** How much longer than all deadlines of the fence a hold lasts, so that the flip never races its end, ms. */
export const HOLD_MARGIN_MS = 3000;
