import type { LatencyMs, Protocol, WorkloadName } from '../results/results.js';

/** A load to be made. */
export interface LoadRequest {
  readonly workload: WorkloadName;
  readonly protocol: Protocol;
  readonly clients: number;
  /** Threads or processes at most. */
  readonly threads: number;
  readonly seconds: number;
  readonly scale: number;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

/** What came of it. */
export interface LoadOutcome {
  readonly transactions: number;
  readonly seconds: number;
  /** Without the time that connecting took. */
  readonly tps: number;
  readonly latencyMs: LatencyMs | null;
}
