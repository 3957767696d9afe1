import { positionToJson } from '../topology/key-codec.js';
import type { Keyspace } from '../topology/topology.js';
import type { Proposal, ShardOutlook } from './proposal.js';

/** A position as the catalog stores it: one text per key column, or the one hash. */
export type PositionJson = readonly string[];

/** `MoveSpec` as `foreshard.migration.spec` holds it. */
export interface SpecJson {
  readonly kind: 'move';
  readonly keyspace: string;
  readonly lo: PositionJson | null;
  readonly hi: PositionJson | null;
  readonly from: string;
  readonly to: string;
}

/** A `Proposal` that JSON can hold. */
export interface ProposalJson extends Omit<Proposal, 'spec' | 'splitAt' | 'segments'> {
  readonly spec: SpecJson;
  readonly splitAt: PositionJson;
  readonly segments: readonly {
    readonly lo: PositionJson | null;
    readonly hi: PositionJson | null;
    readonly load: number;
    readonly moves: boolean;
  }[];
}

/** One run of the planner: what `foreshard plan --json` prints, what a plan in the catalog holds and what the reports draw. */
export interface PlanReport {
  readonly database: string;
  readonly epoch: string;
  /** ms since 1970. */
  readonly createdAt: number;
  readonly stepSeconds: number;
  readonly horizonSeconds: number;
  /** One per shard that could be judged. */
  readonly outlooks: readonly ShardOutlook[];
  readonly proposal: ProposalJson | null;
  /** In a sentence: what to do, or why nothing. */
  readonly verdict: string;
  /** What could not be judged and why, and other things to know. */
  readonly notes: readonly string[];
}

/** A report with its row in `foreshard.plan`; the latter is null when there is nothing to approve or it was not asked to be saved. */
export interface SavedReport extends PlanReport {
  readonly plan: {
    readonly id: string;
    readonly hash: string;
    readonly status: string;
    readonly expiresAt: number;
  } | null;
}

export function proposalToJson(keyspace: Keyspace, proposal: Proposal): ProposalJson {
  const { spec, splitAt, segments, ...rest } = proposal;
  return {
    ...rest,
    spec: { ...spec, lo: positionToJson(keyspace, spec.lo), hi: positionToJson(keyspace, spec.hi) },
    splitAt: positionToJson(keyspace, splitAt),
    segments: segments.map((s) => ({
      ...s,
      lo: positionToJson(keyspace, s.lo),
      hi: positionToJson(keyspace, s.hi),
    })),
  };
}
