import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Lane } from '../backend/lane.js';
import { type AgainReason, LaneRead } from '../backend/lane-read.js';
import type { Analyzed } from '../router/route.js';
import { decodeCommandComplete, rowsOfTag } from '../wire/backend.js';
import type { ErrorFields } from '../wire/error-response.js';
import type { LaneReads } from './lane-reads.js';
import type { Footprint } from './placement.js';
import { isStalePlan } from './stale-plan.js';

/** Where a read goes. */
export interface LanePlace {
  readonly lane: Lane;
  readonly shard: ShardName;
  readonly footprint: Footprint;
  /** The map by which it was placed. */
  readonly topology: Topology;
}

/** Runs the client's statement on a lease, from its start. */
export type OnLease = () => Promise<void> | null;

/** One client's read in a lane. */
export abstract class ClientRead extends LaneRead {
  readonly analyzed: Analyzed;
  readonly place: LanePlace;
  readonly onLease: OnLease;
  /** How often it was taken from behind a late statement before. */
  readonly rescues: number;
  protected readonly reads: LaneReads;

  constructor(reads: LaneReads, analyzed: Analyzed, place: LanePlace, onLease: OnLease, rescues: number) {
    super(analyzed.pace);
    this.reads = reads;
    this.analyzed = analyzed;
    this.place = place;
    this.onLease = onLease;
    this.rescues = rescues;
  }

  /** Whether it has bound a portal. */
  abstract readonly hasPortal: boolean;

  /** Joins another lane. @returns false when it cannot */
  abstract repeat(rescues: number): boolean;

  /** CommandComplete has come. */
  protected complete(frame: Buffer): void {
    this.rowCount += rowsOfTag(decodeCommandComplete(frame)) ?? 0;
  }

  protected get isCertain(): boolean {
    return this.reads.isCertain(this);
  }

  protected deliver(bytes: Buffer): void {
    this.reads.deliver(this, bytes);
  }

  protected answered(bytes: Buffer, ms: number): void {
    this.reads.answered(this, bytes, ms);
  }

  again(why: AgainReason): void {
    this.reads.again(this, why);
  }

  cutShort(error: Error): void {
    this.reads.cutShort(error);
  }

  protected worded(fields: ErrorFields, frame: Buffer, byMistake: boolean): Buffer | null {
    if (!this.told) {
      if (byMistake && fields.sqlstate === '57014') return null;
      // Prepared by a read ahead of it, which has failed.
      if (fields.sqlstate === '26000') return null;
      if (isStalePlan(fields)) {
        this.lane.backend.forgetPrepared();
        return null;
      }
    }
    return this.reads.worded(frame);
  }
}

/** A Query. */
export class QueryRead extends ClientRead {
  readonly hasPortal = false;
  readonly #frame: Buffer;

  constructor(
    reads: LaneReads,
    analyzed: Analyzed,
    place: LanePlace,
    onLease: OnLease,
    rescues: number,
    frame: Buffer,
  ) {
    super(reads, analyzed, place, onLease, rescues);
    this.#frame = frame;
  }

  send(backend: Backend): void {
    backend.send(this.#frame, { kind: 'query', internal: false, completed: (frame) => this.complete(frame) });
  }

  repeat(rescues: number): boolean {
    return this.reads.query(this.#frame, this.analyzed, this.onLease, rescues);
  }
}
