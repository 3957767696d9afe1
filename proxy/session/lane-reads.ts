import { ForeshardError } from '../../topology/errors.js';
import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Lane } from '../backend/lane.js';
import type { AgainReason } from '../backend/lane-read.js';
import type { LaneGroup } from '../backend/lanes.js';
import type { Analyzed, BoundParams, Touch } from '../router/route.js';
import { encodeErrorResponse, ServerError } from '../wire/error-response.js';
import type { Item } from './batch.js';
import type { ClientOutput } from './client-output.js';
import { type ClientRead, type LanePlace, type OnLease, QueryRead } from './client-read.js';
import { BatchRead, laneBatch } from './lane-batch.js';
import { IDLE } from './lease.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import { type Footprint, stillOn } from './placement.js';
import type { ServerReplies } from './server-replies.js';
import type { SettingMap } from './settings.js';
import { learnShape } from './stale-plan.js';
import type { ClientStatements } from './statements.js';

/** Longer ones take a lease: what is sent in a lane is not held back by a server that is busy. */
const LONGEST_BYTES = 16 * 1024;
/** A read that has been taken from behind late statements so often goes on a lease. */
const RESCUES = 2;

export interface LaneReadsParts {
  readonly owner: LoopOwner;
  readonly loop: MessageLoop;
  readonly replies: ServerReplies;
  readonly output: ClientOutput;
  readonly statements: ClientStatements;
  /** No portal is open any more. */
  readonly forgetPortals: () => void;
}

/** The reads of one client that share server connections with others' reads. One at a time, like all that a client asks. */
export class LaneReads {
  readonly #session: LoopOwner;
  readonly #loop: MessageLoop;
  readonly #replies: ServerReplies;
  readonly #output: ClientOutput;
  readonly #statements: ClientStatements;
  readonly #forgetPortals: () => void;
  #current: ClientRead | null = null;
  /** The lanes found last, and what for. */
  #group: LaneGroup | null = null;
  #shard: ShardName | null = null;
  #settings: SettingMap | null = null;

  constructor(parts: LaneReadsParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#replies = parts.replies;
    this.#output = parts.output;
    this.#statements = parts.statements;
    this.#forgetPortals = parts.forgetPortals;
  }

  /** The lane in which the client's read is. */
  get lane(): Lane | null {
    return this.#current?.lane ?? null;
  }

  /** The last the client was told is part of a message. */
  get midMessage(): boolean {
    const read = this.#current;
    return read?.told === true && read.isHead && read.lane.backend.midMessage;
  }

  /** Whether the read under way touches what `covers` says. */
  uses(covers: (footprint: Footprint) => boolean): boolean {
    return this.#current !== null && covers(this.#current.place.footprint);
  }

  /** Whether what the read under way touches is no longer all on its shard. */
  isStale(topology: Topology): boolean {
    const place = this.#current?.place;
    return place !== undefined && !stillOn(place.shard, place.footprint, topology);
  }

  /** Runs a Query in a lane, if it may. @param frame the whole message */
  query(frame: Buffer, analyzed: Analyzed, onLease: OnLease, rescues = 0): boolean {
    if (frame.length > LONGEST_BYTES) return false;
    const place = this.#place(analyzed, null);
    if (place === null) return false;
    this.#join(new QueryRead(this, analyzed, place, onLease, rescues, frame));
    return true;
  }

  /** Runs a batch of the extended protocol in a lane, if it is one statement with its Sync, and may. */
  batch(items: readonly Item[], onLease: OnLease, rescues = 0): boolean {
    const batch = laneBatch(items, LONGEST_BYTES);
    if (batch === null || batch.bind.execution.lookup !== this.#session.lookup.current) return false;
    const { analyzed } = batch.bind.statement;
    const place = this.#place(analyzed, batch.bind.execution.params);
    if (place === null) return false;
    const { version } = this.#session.services.contents;
    place.lane.backend.prepareFor(version);
    if (!batch.fits(place.lane.backend, version)) {
      learnShape(place.lane.backend, batch.bind.statement.content);
      return false;
    }
    this.#join(new BatchRead(this, analyzed, place, onLease, rescues, batch, this.#session, this.#statements));
    return true;
  }

  /** A statement has run on a lease: whether it is fit for lanes is learned from that. */
  ranOnLease(analyzed: Analyzed, backend: Backend, ms: number, bytes: number): void {
    if (analyzed.statements[0]?.plan.laneSafe !== true || analyzed.statements.length > 1) return;
    const { inUse, options } = this.#session.services.pool(backend.shard);
    analyzed.pace.ran(ms, bytes, inUse, options.laneLateMs);
  }

  /**
   * The client wants its read canceled. @returns the connection to which the request is to be sent; null when there is no read, or
   * when the server need not be asked, because it had not begun with it.
   */
  cancel(reason: string): Backend | null {
    const read = this.#current;
    if (read === null) return null;
    read.canceled = true;
    if (read.isHead) {
      read.lane.cancelHead();
      return read.lane.backend;
    }
    read.lane.drop(read);
    this.#answerCanceled(reason);
    return null;
  }

  /** The client does not read. */
  clogged(): void {
    this.#current?.lane.clogged(this.#current);
  }

  /** It has read. */
  drained(): void {
    this.#current?.lane.resume(this.#current);
  }

  /** The client has gone. */
  close(): void {
    const read = this.#current;
    if (read === null) return;
    this.#current = null;
    read.lane.drop(read);
    this.#session.services.live.released();
  }

  /** Whether the rows that were read are still where they were read, as far as this proxy may say so: its lease lasts. */
  isCertain({ place }: ClientRead): boolean {
    const { live } = this.#session.services;
    return live.mayServe && (live.current === place.topology || stillOn(place.shard, place.footprint, live.current));
  }

  deliver(read: ClientRead, bytes: Buffer): void {
    if (this.isCertain(read)) this.#output.write(bytes);
    else this.#session.close(new ForeshardError('40001', 'the range of rows that were being read may have moved'));
  }

  answered(read: ClientRead, bytes: Buffer, ms: number): void {
    const session = this.#session;
    this.#current = null;
    session.activity.laneReads += 1;
    session.services.load.record({
      template: read.analyzed.template,
      shard: read.place.shard,
      touches: read.place.footprint.touches,
      write: false,
      rows: read.rowCount,
      bytes: read.bytes,
      ms,
      lane: true,
    });
    if (read.hasPortal) this.#forgetPortals();
    this.#output.answer(bytes);
    this.#replies.answered(IDLE);
    session.services.live.released();
    this.#loop.awaitingReady = false;
    this.#loop.pump();
    if (session.listening.active) session.notify();
  }

  again(read: ClientRead, why: AgainReason): void {
    this.#current = null;
    this.#loop.awaitingReady = false;
    this.#session.services.live.released();
    if (read.canceled) {
      this.#answerCanceled('canceling statement due to user request');
      return;
    }
    if (why === 'late' && read.rescues < RESCUES && read.repeat(read.rescues + 1)) return;
    const work = read.onLease();
    if (work !== null) this.#loop.follow(work);
  }

  cutShort(error: Error): void {
    const session = this.#session;
    const { shard } = this.#current?.place ?? {};
    const midMessage = this.#current?.lane.backend.midMessage === true;
    this.#current = null;
    if (midMessage) session.close();
    else
      session.close(
        error.cause instanceof ServerError
          ? error.cause
          : new ForeshardError('08006', `the connection to shard "${shard ?? ''}" was lost`, { detail: error.message }),
      );
  }

  worded(frame: Buffer): Buffer {
    return this.#replies.worded(frame);
  }

  /** Where the statement may run among others' now; null: nowhere, it takes a lease. */
  #place(analyzed: Analyzed, params: BoundParams | null): LanePlace | null {
    const { statements } = analyzed;
    const plan = statements[0]?.plan;
    if (plan?.laneSafe !== true || statements.length !== 1 || !analyzed.pace.isFit) return null;
    const { lease, listening, lookup, services } = this.#session;
    // What a view or function does may be another thing by now.
    if (!services.schema.fresh) return null;
    if (lease.backend !== null || lease.transaction !== null || lease.unsynced || listening.active) return null;
    if (lookup.pending || !lookup.current.sure) return null;
    const { live, router } = services;
    const route = router.route(analyzed, 0, params, live.current);
    if (route.kind !== 'shard' && route.kind !== 'any') return null;
    const footprint = footprintOf(route.touches, plan.target.kind === 'sole');
    // In the turn in which the footprint is registered: no hold slips in between.
    if (!live.admits(footprint, null)) return null;
    const shard = route.kind === 'shard' ? route.shard : (route.shards[0] as ShardName);
    const lane = this.#groupOn(shard)?.choose(performance.now()) ?? null;
    if (lane === null || !lookup.agrees(lane.backend.connection.parameters)) return null;
    return { lane, shard, footprint, topology: live.current };
  }

  #groupOn(shard: ShardName): LaneGroup | null {
    const settings = this.#session.settings.current;
    if (this.#group !== null && this.#shard === shard && this.#settings === settings && !this.#group.forgotten)
      return this.#group.isOff ? null : this.#group;
    this.#group = this.#session.services.lanes(shard).group(settings);
    this.#shard = shard;
    this.#settings = settings;
    return this.#group;
  }

  #join(read: ClientRead): void {
    this.#current = read;
    this.#session.expectReady();
    read.place.lane.join(read, performance.now());
  }

  #answerCanceled(reason: string): void {
    this.#current = null;
    this.#output.write(encodeErrorResponse({ severity: 'ERROR', sqlstate: '57014', message: reason }));
    this.#forgetPortals();
    this.#loop.awaitingReady = false;
    this.#session.services.live.released();
    this.#session.answerReady();
    this.#loop.pump();
  }
}

const NOTHING: Footprint = { touches: [], everything: false, writesReference: false };

function footprintOf(touches: readonly Touch[], everything: boolean): Footprint {
  return touches.length === 0 && !everything ? NOTHING : { touches, everything, writesReference: false };
}
