import type { Lane } from '../backend/lane.js';
import { type AgainReason, LaneRead } from '../backend/lane-read.js';
import type { LaneRoute } from '../router/route.js';
import { decodeCommandComplete, rowsOfTag } from '../wire/backend.js';
import type { ErrorFields } from '../wire/error-response.js';
import type { LaneReads } from './lane-reads.js';
import { isStalePlan } from './stale-plan.js';

/** Runs the client's statement on a lease, from its start. */
export type OnLease = () => Promise<void> | null;

/** One client's read in a lane. */
export abstract class ClientRead extends LaneRead {
  /** Where it goes, and what it touches there. */
  route: LaneRoute;
  /** See `LiveTopology`. */
  era = 0;
  protected readonly reads: LaneReads;

  constructor(reads: LaneReads, route: LaneRoute) {
    super(route.pace);
    this.reads = reads;
    this.route = route;
  }

  /** Whether it has bound a portal that the proxy knows of. */
  abstract readonly hasPortal: boolean;

  /** Has the client's messages looked at once more. @param alone they are to go on a lease */
  abstract repeat(alone: boolean): void;

  /** CommandComplete has come. */
  completed(frame: Buffer, empty: boolean): void {
    if (!empty) this.rowCount += rowsOfTag(decodeCommandComplete(frame)) ?? 0;
  }

  protected get isCertain(): boolean {
    return this.reads.isCertain(this);
  }

  protected deliver(bytes: Buffer): void {
    this.reads.deliver(this, bytes);
  }

  protected answered(bytes: Buffer, ms: number, ready: Buffer | null): void {
    this.reads.answered(this, bytes, ms, ready);
  }

  again(why: AgainReason): void {
    this.reads.again(this, why);
  }

  cutShort(error: Error): void {
    this.reads.cutShort(error);
  }

  protected worded(fields: ErrorFields, frame: Buffer, byMistake: boolean): Buffer | null {
    if (!this.told) {
      // Something may be missing there, or not be granted. The owner says what is right.
      if (this.route.replica !== undefined && fields.sqlstate !== '57014') return null;
      if (byMistake && fields.sqlstate === '57014') return null;
      // Prepared by a read ahead of it, which has failed.
      if (fields.sqlstate === '26000') return null;
      // A function that was harmless is no longer. Nothing has come of it here: it may run once more, where it can do what it does.
      if (fields.sqlstate === '25006') {
        this.route.pace.disgrace();
        return null;
      }
      if (isStalePlan(fields)) {
        this.lane.backend.forgetPrepared();
        return null;
      }
    }
    return this.reads.worded(frame);
  }
}

/** Where a read goes, and the lane there. */
export interface LanePlace {
  readonly lane: Lane;
  readonly route: LaneRoute;
}
