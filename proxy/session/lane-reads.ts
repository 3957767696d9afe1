import { setTimeout as delay } from 'node:timers/promises';
import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Lane } from '../backend/lane.js';
import type { AgainReason } from '../backend/lane-read.js';
import type { LaneGroup } from '../backend/lanes.js';
import { isServed } from '../replicas.js';
import { AnalyzedText } from '../router/analyzed-text.js';
import type { Analyzed, BoundParams, LaneRoute } from '../router/route.js';
import { encodeErrorResponse } from '../wire/error-response.js';
import { FRONTEND, HEADER_BYTES } from '../wire/message-types.js';
import type { Item } from './batch.js';
import type { ClientOutput } from './client-output.js';
import type { ClientRead, LanePlace, OnLease } from './client-read.js';
import type { ExtendedProtocol } from './extended.js';
import { type Footprint, stillOn } from './footprint.js';
import type { Inbox } from './inbox.js';
import { BatchRead, laneBatch } from './lane-batch.js';
import { IDLE } from './lease.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import type { Lookup } from './name-lookup.js';
import { lost, mayNotSay } from './refusals.js';
import { AT_REPLICA, type ReplicaPlace, ReplicaReads, type Source } from './replica-reads.js';
import type { ServerReplies } from './server-replies.js';
import { ServerStatements } from './server-statements.js';
import type { SettingMap } from './settings.js';
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

/** A connection to a replica is waited for no longer than this, ms. */
const OPEN_MS = 250;

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
  #current: ClientRead | null = null;
  /** Nothing is open, or under way, and nothing has been asked since that was looked at. */
  #straight = false;
  /** What names mean, as it was looked at last: it does not change as long as it is `straight`. */
  #lookup: Lookup | null = null;
  /** For the next Query or batch; null: the one before may still be in a lane. */
  #spare: StraightRead | null = null;
  /** How often the read has been taken from behind late statements. */
  #rescues = 0;
  /** The messages to be looked at next have been in a lane, and are to go on a lease. */
  #alone = false;
  /** The lanes found last, and what for. */
  #group: LaneGroup | null = null;
  #shard: ShardName | null = null;
  #settings: SettingMap | null = null;
  /** Null: no replica has been there to be read yet. */
  #replicas: ReplicaReads | null = null;
  /** Of its own, for a read at a replica that was made ready last. */
  #own: Lane | null = null;

  constructor(parts: LaneReadsParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#replies = parts.replies;
    this.#output = parts.output;
    this.#inbox = parts.inbox;
    this.#statements = parts.statements;
    this.#extended = parts.extended;
    this.#names = new ServerStatements(parts.owner, parts.statements);
  }

  /** All that has come since the client was last told that the proxy is ready. @returns whether it is a read that is in a lane now; nobody changes the bytes then */
  take(bytes: Buffer): boolean {
    if (!this.#straight) return false;
    const fits = this.#current === null && bytes.length <= LONGEST_BYTES && bytes.length > HEADER_BYTES;
    if (fits && this.#took(bytes)) return true;
    this.#straight = false;
    return false;
  }

  #took(bytes: Buffer): boolean {
    const { activity, lookup, services } = this.#session;
    const { live, router } = services;
    if (this.#readsReplicas) return false;
    if (bytes[0] === FRONTEND.Query) {
      const end = bytes.length - 1;
      // Exactly one message, which is a text and its end.
      if (bytes.readInt32BE(1) !== end || bytes.indexOf(0, HEADER_BYTES) !== end) return false;
      const route = router.laneRead(bytes.subarray(HEADER_BYTES, end), (this.#lookup as Lookup).names, live.current);
      const lane = route === null ? null : this.#laneFor(route);
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
    const statement = batch.find(bytes, this.#statements);
    if (statement === null) return false;
    const { analyzed, content } = statement;
    if (statement.lookup !== lookup.current || content.definition !== null) return false;
    const known = analyzed instanceof AnalyzedText && analyzed.laneRoute?.topology === live.current;
    const params = known ? null : batch.params(bytes, statement);
    if (!known && params === null) return false;
    const route = router.laneRoute(analyzed, params, live.current);
    const lane = route === null ? null : this.#laneFor(route);
    if (route === null || lane === null) return false;
    const { version } = services.contents;
    lane.backend.prepareFor(version);
    if (!batch.described && !batch.parses && !hasShape(lane.backend, statement, batch.name === '', version))
      return false;
    if (batch.parses) activity.message(FRONTEND.Parse);
    activity.message(FRONTEND.Bind);
    activity.message(FRONTEND.Execute);
    const read = this.#read(route, bytes);
    read.batch(route, bytes, statement, batch);
    this.#join(read, lane);
    return true;
  }

  /** Something has come by another way, or the client does not read. */
  get #isStraight(): boolean {
    const { lease, listening, lookup } = this.#session;
    return (
      this.#inbox.isEmpty &&
      !this.#loop.busy &&
      !this.#loop.awaitingReady &&
      !this.#loop.canceling &&
      !this.#output.full &&
      !this.#extended.open &&
      lease.backend === null &&
      lease.transaction === null &&
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
    this.#replicas?.heard(from);
  }

  /** What has to be waited for before the statement can be read at a replica; null: nothing, or it is not to be. */
  preparing(analyzed: Analyzed, params: BoundParams | null): Promise<void> | null {
    if (this.#alone || !this.#readsReplicas) return null;
    const place = this.#atReplica(analyzed, params, true);
    return place instanceof Promise ? this.#prepared(place, analyzed, params) : null;
  }

  /** The same for a batch. */
  preparingBatch(items: readonly Item[]): Promise<void> | null {
    if (this.#alone || !this.#readsReplicas) return null;
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
    const second = this.#atReplica(analyzed, params, true);
    if (second instanceof Promise) await Promise.race([second, ended]);
  }

  /** Runs a Query in a lane, if it may. @param frame the whole message */
  query(frame: Buffer, analyzed: Analyzed): boolean {
    const alone = this.#alone;
    this.#alone = false;
    if (alone || frame.length > LONGEST_BYTES) return false;
    const place = this.#place(analyzed, null);
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
    const place = this.#place(statement.analyzed, found.bind.execution.params);
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

  answered(read: ClientRead, bytes: Buffer, ms: number): void {
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
    this.#output.answer(bytes);
    this.#replies.answered(IDLE, this.#seenBy(route));
    session.services.live.released();
    this.#loop.awaitingReady = false;
    if (this.#straight) return;
    this.#loop.pump();
    if (session.listening.active) session.notify();
    if (session.closed || !this.#isStraight) return;
    this.#straight = true;
    this.#lookup = session.lookup.current;
  }

  again(read: ClientRead, why: AgainReason): void {
    this.#straight = false;
    this.#current = null;
    this.#loop.awaitingReady = false;
    this.#session.services.live.released();
    if (read.dropped) this.#spare = null;
    if (why !== 'late') this.#countFailed(read.route);
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

  /** Where the statement may run among others' now; null: nowhere, it takes a lease. */
  #place(analyzed: Analyzed, params: BoundParams | null): LanePlace | null {
    if (analyzed.statements[0]?.plan.laneSafe !== true) return null;
    const { services } = this.#session;
    if (this.#readsReplicas) {
      const place = this.#atReplica(analyzed, params, false);
      if (place !== null) return place as LanePlace;
    }
    if (!analyzed.pace.isFit || !this.#mayShare()) return null;
    const route = services.router.laneRoute(analyzed, params, services.live.current);
    if (route === null) return null;
    const lane = this.#laneFor(route);
    return lane === null ? null : { lane, route };
  }

  /** Nothing is open, so that a statement may run on a connection of others. */
  #mayShare(): boolean {
    const { lease, listening, lookup, services } = this.#session;
    // What a view or function does may be another thing by now.
    if (!services.schema.fresh) return false;
    if (lease.backend !== null || lease.transaction !== null || lease.unsynced || listening.active) return false;
    this.#lookup = lookup.current;
    return !lookup.pending && this.#lookup.sure;
  }

  get #readsReplicas(): boolean {
    const { replicas } = this.#session.services;
    if (replicas.served.length === 0) return false;
    this.#replicas ??= new ReplicaReads(replicas, this.#session.id);
    return this.#replicas.mayRead(this.#session.settings.current);
  }

  /**
   * Where the statement may be read at a replica now; null: nowhere, its owner is asked. A promise, if one `mayBeWaitedFor`: when it resolves, that may
   * have changed.
   */
  #atReplica(
    analyzed: Analyzed,
    params: BoundParams | null,
    mayBeWaitedFor: boolean,
  ): LanePlace | Promise<void> | null {
    const { live, router } = this.#session.services;
    const reads = this.#replicas as ReplicaReads;
    if (analyzed.statements[0]?.plan.laneSafe !== true || !this.#mayShare() || !live.mayServe) return null;
    const place = reads.place(analyzed, params, router, live);
    if (place === null) return null;
    const now = performance.now();
    place.served.follower.want(now);
    // Rather than to open a connection for nothing.
    const close = reads.isClose(place, now);
    if (!close && !reads.isFresh(place, 0, now)) return this.#behind(place, mayBeWaitedFor);
    const lane = this.#laneAt(place, mayBeWaitedFor);
    if (lane === null) {
      if (!mayBeWaitedFor) place.served.counts.failed += 1;
      return null;
    }
    if (lane instanceof Promise) return lane;
    if (reads.isFresh(place, lane.backend.connection.openedAt, now)) {
      if (!mayBeWaitedFor) this.#own = null;
      return { lane, route: place.route };
    }
    if (mayBeWaitedFor && close) return place.served.follower.fresh();
    return this.#behind(place, mayBeWaitedFor);
  }

  #behind({ served }: ReplicaPlace, isLookedAtAgain: boolean): null {
    if (!isLookedAtAgain) served.counts.behind += 1;
    this.#leaveOwn();
    return null;
  }

  #laneAt({ route }: ReplicaPlace, mayBeWaitedFor: boolean): Lane | Promise<void> | null {
    const own = this.#own;
    if (own?.takes === true && own.backend.shard === route.shard) return this.#fitting(own);
    const group = this.#groupOn(route.shard);
    if (group === null) return null;
    if (route.pace.isFit) {
      const shared = group.choose(performance.now());
      if (shared !== null) return this.#fitting(shared);
    }
    const alone = this.#session.services.lanes(route.shard).alone(group);
    if (!(alone instanceof Promise)) {
      this.#own = alone;
      return alone === null ? null : this.#fitting(alone);
    }
    const opened = alone.then(
      (lane) => {
        // One that nobody takes is given back before long.
        this.#own = lane;
      },
      () => undefined, // the owner is asked
    );
    return mayBeWaitedFor ? Promise.race([opened, delay(OPEN_MS)]) : null;
  }

  #fitting(lane: Lane): Lane | null {
    if (lane.names === this.#lookup?.signature) return lane;
    if (lane === this.#own) this.#leaveOwn();
    return null;
  }

  #leaveOwn(): void {
    this.#own?.retire('given back');
    this.#own = null;
  }

  /** What the client has seen now. */
  #seenBy(route: LaneRoute): Source {
    if (route.replica === undefined) return route;
    const served = this.#servedOf(route);
    if (served !== undefined) {
      served.counts.reads += 1;
      this.#replicas?.read(served);
    }
    return AT_REPLICA;
  }

  #countFailed(route: LaneRoute): void {
    const served = this.#servedOf(route);
    if (served !== undefined) served.counts.failed += 1;
  }

  #servedOf({ replica }: LaneRoute): ReplicaPlace['served'] | undefined {
    if (replica === undefined) return undefined;
    const { served } = this.#session.services.replicas;
    return served.find((s) => s.replica.id === replica.id && s.replica.since === replica.since);
  }

  /** To be joined in the turn in which holds are looked at: none slips in between. */
  #laneFor(route: LaneRoute): Lane | null {
    if (!this.#session.services.live.admits(route, null)) return null;
    const lane = this.#groupOn(route.shard)?.choose(performance.now()) ?? null;
    return lane === null || lane.names !== this.#lookup?.signature ? null : lane;
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
