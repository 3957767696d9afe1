import type { Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Lane } from '../backend/lane.js';
import type { AgainReason } from '../backend/lane-read.js';
import { isServed } from '../replicas.js';
import { AnalyzedText } from '../router/analyzed-text.js';
import type { Analyzed, BoundParams, LaneRoute } from '../router/route.js';
import { encodeErrorResponse } from '../wire/error-response.js';
import { FRONTEND, HEADER_BYTES } from '../wire/message-types.js';
import { IDLE } from '../wire/transaction-status.js';
import type { Item } from './batch.js';
import type { ClientOutput } from './client-output.js';
import type { ClientRead, LanePlace, OnLease } from './client-read.js';
import type { ExtendedProtocol } from './extended.js';
import { type Footprint, stillOn } from './footprint.js';
import type { Inbox } from './inbox.js';
import { BatchRead, laneBatch } from './lane-batch.js';
import { LaneChoice } from './lane-choice.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import type { Lookup } from './name-lookup.js';
import type { ClientStatement } from './prepared.js';
import { lost, mayNotSay } from './refusals.js';
import type { Source } from './replica-reads.js';
import type { ServerReplies } from './server-replies.js';
import { ServerStatements } from './server-statements.js';
import { hasShape, learnShape } from './stale-plan.js';
import type { ClientStatements } from './statements.js';
import { StraightBatch } from './straight-batch.js';
import { StraightRead } from './straight-read.js';

/** Longer ones take a lease: what is sent in a lane is not held back by a server that is busy. */
const LONGEST_BYTES = 16 * 1024;
/** A read that has been taken from behind late statements so often goes on a lease. */
const RESCUES = 2;

export interface LaneReadsParts {
  readonly owner: LoopOwner;
  readonly loop: MessageLoop;
  readonly replies: ServerReplies;
  readonly output: ClientOutput;
  readonly inbox: Inbox;
  readonly statements: ClientStatements;
  readonly extended: ExtendedProtocol;
}

/** What the messages that came last are; nothing of it is kept. */
const batch = new StraightBatch();

/**
 * The reads of one client that share server connections with others' reads. One at a time, like all that a client asks.
 *
 * A client whose last read ran in a lane, and that has nothing open, most likely sends one more such read, in one piece. Then `take`
 * has it in its lane without any of the things that other statements need.
 */
export class LaneReads {
  readonly #session: LoopOwner;
  readonly #loop: MessageLoop;
  readonly #replies: ServerReplies;
  readonly #output: ClientOutput;
  readonly #inbox: Inbox;
  readonly #statements: ClientStatements;
  readonly #extended: ExtendedProtocol;
  readonly #names: ServerStatements;
  /** What names mean does not change for it as long as it is `straight`. */
  readonly #choice: LaneChoice;
  #current: ClientRead | null = null;
  /** Nothing is open, or under way, and nothing has been asked since that was looked at. */
  #straight = false;
  /** For the next Query or batch; null: the one before may still be in a lane. */
  #spare: StraightRead | null = null;
  /** How often the read has been taken from behind late statements. */
  #rescues = 0;
  /** The messages to be looked at next have been in a lane, and are to go on a lease. */
  #alone = false;

  constructor(parts: LaneReadsParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#replies = parts.replies;
    this.#output = parts.output;
    this.#inbox = parts.inbox;
    this.#statements = parts.statements;
    this.#extended = parts.extended;
    this.#names = new ServerStatements(parts.owner, parts.statements);
    this.#choice = new LaneChoice(parts.owner);
  }

  /** All that has come since the client was last told that the proxy is ready. @returns whether it is a read that is in a lane now; nobody changes the bytes then */
  take(bytes: Buffer): boolean {
    const straight = this.#straight;
    if (!straight) {
      if (!this.#isStraight) return false;
      this.#choice.lookup = this.#session.lookup.current;
    }
    const fits = this.#current === null && bytes.length <= LONGEST_BYTES && bytes.length > HEADER_BYTES;
    if (fits && this.#took(bytes)) {
      this.#straight = true;
      return true;
    }
    this.#straight = false;
    // Nobody has looked since the last answer whether it can go straight on by a lease.
    if (straight) this.#session.judgeStraight();
    return false;
  }

  #took(bytes: Buffer): boolean {
    const { activity, lookup, services } = this.#session;
    const { live, router } = services;
    // What a view or function does may be another thing by now.
    if (!services.schema.fresh || this.#choice.readsReplicas) return false;
    if (bytes[0] === FRONTEND.Query) {
      const end = bytes.length - 1;
      // Exactly one message, which is a text and its end.
      if (bytes.readInt32BE(1) !== end || bytes.indexOf(0, HEADER_BYTES) !== end) return false;
      const route = router.laneRead(
        bytes.subarray(HEADER_BYTES, end),
        (this.#choice.lookup as Lookup).names,
        live.current,
      );
      const lane = route === null ? null : this.#choice.laneFor(route);
      if (route === null || lane === null) return false;
      activity.message(FRONTEND.Query);
      if (this.#statements.size > 0) this.#statements.forget('');
      const read = this.#read(route, bytes);
      read.query(route, bytes);
      this.#join(read, lane);
      return true;
    }
    if (bytes[0] !== FRONTEND.Parse && bytes[0] !== FRONTEND.Bind) return false;
    if (!batch.read(bytes)) return false;
    let statement = batch.find(bytes, this.#statements);
    const made = statement === null && batch.parses && router.isLaneRead(batch.text(bytes), lookup.current.names);
    if (made) statement = batch.prepare(bytes, this.#statements);
    if (statement === null) return false;
    const place = this.#placeBatch(bytes, statement);
    if (place === null) {
      // Another way prepares it once more.
      if (made) this.#statements.undo('', statement, false);
      return false;
    }
    // The server gives up the one before as soon as it looks at the Parse, and nothing keeps it from that.
    if (made) this.#statements.parsed(statement);
    if (batch.parses) activity.message(FRONTEND.Parse);
    activity.message(FRONTEND.Bind);
    activity.message(FRONTEND.Execute);
    const read = this.#read(place.route, bytes);
    read.batch(place.route, bytes, statement, batch);
    this.#join(read, place.lane);
    return true;
  }

  /** Where the batch may run; null: not in a lane. */
  #placeBatch(bytes: Buffer, statement: ClientStatement): LanePlace | null {
    const { lookup, services } = this.#session;
    const { live, router } = services;
    const { analyzed, content } = statement;
    if (statement.lookup !== lookup.current || content.definition !== null) return null;
    const known = analyzed instanceof AnalyzedText && analyzed.laneRoute?.topology === live.current;
    const params = known ? null : batch.params(bytes, statement);
    if (!known && params === null) return null;
    const route = router.laneRoute(analyzed, params, live.current);
    const lane = route === null ? null : this.#choice.laneFor(route);
    if (route === null || lane === null) return null;
    const { version } = services.contents;
    const { backend } = lane;
    backend.prepareFor(version);
    if (!batch.described && !batch.parses && !hasShape(backend, statement, batch.name === '', version)) {
      learnShape(backend, content);
      return null;
    }
    return { lane, route };
  }

  /** Something has come by another way, or the client does not read. */
  get #isStraight(): boolean {
    const { lease, listening, lookup } = this.#session;
    return (
      lease.transaction === null &&
      lease.backend === null &&
      this.#inbox.isEmpty &&
      !this.#loop.busy &&
      !this.#loop.awaitingReady &&
      !this.#loop.canceling &&
      !this.#output.full &&
      !this.#extended.open &&
      !lease.unsynced &&
      !listening.active &&
      !lookup.pending &&
      lookup.current.sure
    );
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
    // A replica goes on with what it has, whoever writes where.
    return this.#current !== null && this.#current.route.replica === undefined && covers(this.#current.route);
  }

  /** Whether what the read under way touches is no longer all on its shard. */
  isStale(topology: Topology): boolean {
    const route = this.#current?.route;
    if (route === undefined || (route.replica !== undefined && isServed(route.replica, topology))) return false;
    return !stillOn(route.shard, route, topology);
  }

  /** The client is being answered; see `ReplicaReads.heard`. */
  heard(from: Source): void {
    this.#choice.heard(from);
  }

  /** What has to be waited for before the statement can be read at a replica; null: nothing, or it is not to be. */
  preparing(analyzed: Analyzed, params: BoundParams | null): Promise<void> | null {
    if (this.#alone || !this.#choice.readsReplicas) return null;
    const first = this.#choice.preparing(analyzed, params);
    return first === null ? null : this.#prepared(first, analyzed, params);
  }

  /** The same for a batch. */
  preparingBatch(items: readonly Item[]): Promise<void> | null {
    if (this.#alone || !this.#choice.readsReplicas) return null;
    const bind = laneBatch(items, LONGEST_BYTES)?.bind;
    return bind === undefined ? null : this.preparing(bind.statement.analyzed, bind.execution.params);
  }

  async #prepared(first: Promise<void>, analyzed: Analyzed, params: BoundParams | null): Promise<void> {
    const { wait } = this.#session;
    const ended = new Promise<never>((_resolve, reject) => {
      wait.addEventListener('abort', () => reject(wait.reason as Error));
    });
    ended.catch(() => undefined); // it may come when nobody waits any more
    await Promise.race([first, ended]);
    // A connection may be new: the replica has to be asked once more.
    const second = this.#choice.preparing(analyzed, params);
    if (second !== null) await Promise.race([second, ended]);
  }

  /** Runs a Query in a lane, if it may. @param frame the whole message */
  query(frame: Buffer, analyzed: Analyzed): boolean {
    const alone = this.#alone;
    this.#alone = false;
    if (alone || frame.length > LONGEST_BYTES) return false;
    const place = this.#choice.place(analyzed, null);
    if (place === null) return false;
    const read = this.#read(place.route, frame);
    read.query(place.route, frame);
    this.#join(read, place.lane);
    return true;
  }

  /** Runs a batch of the extended protocol in a lane, if it is one statement with its Sync, and may. */
  batch(items: readonly Item[], onLease: OnLease): boolean {
    const alone = this.#alone;
    this.#alone = false;
    if (alone) return false;
    const found = laneBatch(items, LONGEST_BYTES);
    if (found === null || found.bind.execution.lookup !== this.#session.lookup.current) return false;
    const { statement } = found.bind;
    const place = this.#choice.place(statement.analyzed, found.bind.execution.params);
    if (place === null) return false;
    const { version } = this.#session.services.contents;
    const { backend } = place.lane;
    backend.prepareFor(version);
    if (!found.tells && !hasShape(backend, statement, found.bind.bind.statement === '', version)) {
      learnShape(backend, statement.content);
      return false;
    }
    this.#join(
      new BatchRead(this, place.route, onLease, found, this.#session, this.#statements, this.#names),
      place.lane,
    );
    return true;
  }

  /** Has the messages of a read looked at once more, before all others. @param alone they are to go on a lease */
  repeat(messages: Buffer, alone: boolean): void {
    this.#alone = alone;
    this.#inbox.unread(messages);
    this.#loop.pump();
  }

  /** The same of a batch. */
  repeatBatch(items: readonly Item[], onLease: OnLease, alone: boolean): void {
    if (!alone && this.batch(items, onLease)) return;
    const work = onLease();
    if (work !== null) this.#loop.follow(work);
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
    this.#straight = false;
    if (read === null) return null;
    read.canceled = true;
    if (read.isHead) {
      read.lane.cancelHead();
      return read.lane.backend;
    }
    read.lane.drop(read);
    this.#spare = null;
    this.#answerCanceled(reason);
    return null;
  }

  /** The client does not read. */
  clogged(): void {
    this.#straight = false;
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
  isCertain({ route, era }: ClientRead): boolean {
    const { live } = this.#session.services;
    if (!live.mayServe) return false;
    // Before a replica goes, all that is read there is waited for (`isStale`), but not for long when the lease has ended.
    if (route.replica !== undefined) return era === live.era;
    return live.current === route.topology || stillOn(route.shard, route, live.current);
  }

  deliver(read: ClientRead, bytes: Buffer): void {
    if (this.isCertain(read)) this.#output.write(bytes);
    else this.#session.close(mayNotSay());
  }

  /** @param ready the ReadyForQuery, if it is not in `bytes` */
  answered(read: ClientRead, bytes: Buffer, ms: number, ready: Buffer | null): void {
    const session = this.#session;
    const { route } = read;
    this.#current = null;
    this.#rescues = 0;
    session.activity.laneReads += 1;
    session.services.load.record({
      template: route.template,
      shard: route.shard,
      // Of the owner's load it is no part.
      touches: route.replica === undefined ? route.touches : [],
      write: false,
      rows: read.rowCount,
      bytes: read.size,
      ms,
      lane: true,
    });
    if (read.hasPortal) this.#extended.ready(IDLE);
    this.#output.answer(bytes, ready);
    this.#replies.answered(IDLE, this.#choice.seenBy(route));
    session.services.live.released();
    this.#loop.awaitingReady = false;
    if (this.#straight) return;
    this.#loop.pump();
    if (session.listening.active) session.notify();
    if (session.closed || !this.#isStraight) return;
    this.#straight = true;
    this.#choice.lookup = session.lookup.current;
  }

  again(read: ClientRead, why: AgainReason): void {
    this.#straight = false;
    this.#current = null;
    this.#loop.awaitingReady = false;
    this.#session.services.live.released();
    if (read.dropped) this.#spare = null;
    if (why !== 'late') this.#choice.countFailed(read.route);
    if (read.canceled) {
      this.#answerCanceled('canceling statement due to user request');
      return;
    }
    if (why === 'late') this.#rescues += 1;
    read.repeat(why !== 'late' || this.#rescues > RESCUES);
  }

  cutShort(error: Error): void {
    const read = this.#current;
    if (read === null) return;
    this.#current = null;
    // In the middle of a message nothing else can be said.
    this.#session.close(read.lane.backend.midMessage ? undefined : lost(read.route.shard, error));
  }

  worded(frame: Buffer): Buffer {
    return this.#replies.worded(frame);
  }

  #read(route: LaneRoute, messages: Buffer): StraightRead {
    this.#spare ??= new StraightRead(this, this.#session, this.#statements, this.#names, route, messages);
    return this.#spare;
  }

  #join(read: ClientRead, lane: Lane): void {
    this.#current = read;
    read.era = this.#session.services.live.era;
    this.#loop.awaitingReady = true;
    lane.join(read, performance.now());
    // Nobody else is to stand in line behind it.
    if (read.route.replica !== undefined && !read.route.pace.isFit) lane.retire('given back');
  }

  #answerCanceled(reason: string): void {
    this.#current = null;
    this.#rescues = 0;
    this.#output.write(this.worded(encodeErrorResponse({ severity: 'ERROR', sqlstate: '57014', message: reason })));
    this.#extended.ready(IDLE);
    this.#loop.awaitingReady = false;
    this.#session.services.live.released();
    this.#session.answerReady();
    this.#loop.pump();
  }
}
