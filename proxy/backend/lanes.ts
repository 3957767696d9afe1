import type { Logger } from 'pino';
import type { SettingMap } from '../session/settings.js';
import { areAlike, readOnly, SET_READ_ONLY } from '../session/settings.js';
import { LatencySketch } from '../telemetry/latency-sketch.js';
import { encodeQuery } from '../wire/frontend.js';
import type { Backend } from './backend.js';
import { Lane, type LaneOwner } from './lane.js';
import type { LaneWatch } from './lane-watch.js';
import type { Pool } from './pool.js';

/**
 * A second lane is opened when a read would wait for longer than this; the third when it would for 2⁴ times as long in each of the two, the
 * fourth for 3⁴ times: each further one leaves fewer reads to be sent and answered together.
 */
const OPEN_MS = 0.6;
/** A server that takes less for a read is not what it waits for. */
const BRIEF_MS = 0.5;
/** An empty lane gives its connection back after this time. */
const IDLE_MS = 1_000;
/** While clients wait for a connection: one in which reads come all the time serves more of them than a lease would. */
const WANTED_MS = 2;
/** After a late statement fewer reads may stand in line; so many good ones later one more. */
const FEWEST = 4;
const REGAINED_AFTER = 8;
/** A lane that could not be opened is not tried again at once. */
const RETRY_MS = 100;

/** What has happened in the lanes of a pool since it was made. */
export interface LaneTotals {
  /** Reads answered. */
  reads: number;
  /** Reads that were said in one with others. */
  joined: number;
  /** Statements that kept those behind them waiting. */
  late: number;
  /** Reads that were taken from behind such a one, or from a lane that was lost, and run elsewhere. */
  rescued: number;
  lost: number;
}

/** Lanes with the same settings. */
export class LaneGroup {
  /** Those of the clients. */
  readonly settings: SettingMap;
  /**
   * Those of the connections: what a read does there may be done again elsewhere, so that nothing is to come of it, whatever a function has
   * become that was harmless. Whoever has the connection next takes that back as he would anybody's settings.
   */
  readonly onServer: SettingMap;
  /** Those that take reads. */
  readonly lanes: Lane[] = [];
  /** How many reads may stand in line in one. */
  depth: number;
  opening = false;
  retryAt = 0;
  /** Good reads since `depth` was changed. */
  good = 0;
  /** It is no longer among those of its pool: to be looked up again. */
  forgotten = false;
  readonly #owner: Lanes;

  constructor(settings: SettingMap, depth: number, owner: Lanes) {
    this.settings = settings;
    this.onServer = readOnly(settings);
    this.depth = depth;
    this.#owner = owner;
  }

  /** There are to be no lanes any more. */
  get isOff(): boolean {
    return this.#owner.isOff;
  }

  /** The lane that a read should join now; null: it should take a lease, rather than wait for as long as something late takes. */
  choose(now: number): Lane | null {
    const { lanes } = this;
    let best = this.#best();
    const more = best === null || best.workMs > OPEN_MS * lanes.length ** 4;
    if (more && this.#owner.open(this, now)) best = this.#best();
    if (best === null || best.depth >= this.depth) return null;
    // Several at a time are only faster where the server takes longer for each than this process does.
    if (best.workMs > this.#owner.lateMs && best.workMs > BRIEF_MS * best.depth && this.#owner.hasSpare) return null;
    return best;
  }

  #best(): Lane | null {
    let best: Lane | null = null;
    for (const lane of this.lanes) if (lane.takes && (best === null || lane.workMs < best.workMs)) best = lane;
    return best;
  }
}

/** The lanes of one pool: opens them as the load needs, and gives their connections back. */
export class Lanes implements LaneOwner {
  readonly totals: LaneTotals = { reads: 0, joined: 0, late: 0, rescued: 0, lost: 0 };
  /** How long reads waited until the server could begin with them. */
  readonly waits = new LatencySketch();
  readonly #pool: Pool;
  readonly #watch: LaneWatch;
  readonly #logger: Logger;
  readonly #prepare: (backend: Backend, settings: SettingMap) => Promise<void>;
  readonly #groups: LaneGroup[] = [];
  /** Those that take reads, and those that only end what they have. */
  readonly #all = new Set<Lane>();
  #opening = 0;

  /** @param prepare gives a connection settings */
  constructor(
    pool: Pool,
    watch: LaneWatch,
    logger: Logger,
    prepare: (backend: Backend, settings: SettingMap) => Promise<void>,
  ) {
    this.#pool = pool;
    this.#watch = watch;
    this.#logger = logger;
    this.#prepare = prepare;
    pool.lend(this);
  }

  get isOff(): boolean {
    return this.#pool.options.lanes === 'off';
  }

  /** The lanes for clients with these settings; null: there are to be none. */
  group(settings: SettingMap): LaneGroup | null {
    const { lanes, laneDepth } = this.#pool.options;
    if (lanes === 'off') return null;
    for (const group of this.#groups) if (areAlike(group.settings, settings)) return group;
    if (this.#groups.length >= GROUPS) this.#forgetUnused();
    if (this.#groups.length >= GROUPS) return null;
    const group = new LaneGroup(settings, laneDepth, this);
    this.#groups.push(group);
    return group;
  }

  get lateMs(): number {
    return this.#pool.options.laneLateMs;
  }

  get busy(): number {
    return this.#pool.inUse;
  }

  get joins(): boolean {
    return this.#pool.options.lanes === 'auto';
  }

  joined(reads: number): void {
    this.totals.joined += reads;
  }

  /**
   * A lane for one read, which keeps nobody else waiting: to be retired when it has joined, or when there is none after all. Null: there is no connection for
   * it now.
   */
  alone(group: LaneGroup): Lane | Promise<Lane> | null {
    const backend = this.#pool.takeForLane(false, group.onServer);
    if (backend === null) return null;
    if (backend instanceof Promise || backend.settings === null || !areAlike(backend.settings, group.onServer))
      return this.#prepareAlone(backend, group.onServer);
    return this.#watched(backend, performance.now());
  }

  async #prepareAlone(from: Backend | Promise<Backend>, settings: SettingMap): Promise<Lane> {
    const backend = await from;
    try {
      await this.#prepare(backend, settings);
    } catch (error) {
      this.#pool.discard(backend);
      throw error;
    }
    backend.settings = settings;
    return this.#watched(backend, performance.now());
  }

  /** There is a connection for whoever asks now. */
  get hasSpare(): boolean {
    return this.#pool.hasSpare;
  }

  /** All lanes there are, for whoever looks. */
  get all(): Iterable<Lane> {
    return this.#all;
  }

  /** Lanes that nobody uses at the moment, and reads in the others. */
  get empty(): number {
    let empty = 0;
    for (const lane of this.#all) if (lane.isEmpty) empty += 1;
    return empty;
  }

  get depth(): number {
    let depth = 0;
    for (const lane of this.#all) depth += lane.depth;
    return depth;
  }

  /** Opens one more lane if there is a connection for it. @returns whether it is there already */
  open(group: LaneGroup, now: number): boolean {
    if (group.opening || now < group.retryAt || this.#pool.options.lanes === 'off') return false;
    const { lanesMax, size } = this.#pool.options;
    // Half of the connections stay with the leases.
    if (this.#all.size + this.#opening >= Math.min(lanesMax, Math.max(1, size >> 1))) return false;
    const backend = this.#pool.takeForLane(size > 1, group.onServer);
    if (backend === null) return false;
    if (!(backend instanceof Promise)) {
      const { settings } = backend;
      if (settings !== null && areAlike(settings, group.onServer)) {
        this.#add(group, backend, now);
        return true;
      }
      if (settings !== null && areAlike(settings, group.settings)) {
        this.#add(group, backend, now);
        makeReadOnly(backend);
        return true;
      }
    }
    void this.#prepareLane(group, backend);
    return false;
  }

  /** Another user's clients wait: those that nobody uses are given back. */
  giveUpEmpty(): void {
    for (const lane of [...this.#all]) if (lane.isEmpty) lane.retire('given back');
  }

  /** Clients wait for a connection, and no other can be opened: those that nobody needs are given back, now or soon. */
  giveUp(): void {
    this.sweep(performance.now());
    this.#watch.begins();
    // One must be left for them.
    if (this.#all.size < this.#pool.options.size) return;
    for (const lane of this.#all) {
      if (lane.retired !== null) continue;
      lane.retire('given back');
      return;
    }
  }

  /** No lane is to go on: PAUSE, RECONNECT, other options. */
  giveUpAll(): void {
    for (const lane of [...this.#all]) lane.retire('given back');
  }

  begins(): void {
    this.#watch.begins();
  }

  served(lane: Lane, waitedMs: number): void {
    this.totals.reads += 1;
    this.waits.add(waitedMs);
    const group = this.#groupOf(lane);
    if (group === null || group.depth >= this.#pool.options.laneDepth) return;
    group.good += 1;
    if (group.good < REGAINED_AFTER) return;
    group.good = 0;
    group.depth += 1;
  }

  rescued(reads: number): void {
    this.totals.rescued += reads;
  }

  retires(lane: Lane): void {
    const group = this.#groupOf(lane);
    if (group !== null) group.lanes.splice(group.lanes.indexOf(lane), 1);
  }

  late(lane: Lane): void {
    this.totals.late += 1;
    const group = this.#groupOf(lane);
    if (group === null) return;
    group.depth = Math.max(FEWEST, group.depth >> 1);
    group.good = 0;
  }

  drained(lane: Lane): void {
    this.#all.delete(lane);
    this.#watch.ends(lane);
    this.#pool.release(lane.backend);
  }

  lost(lane: Lane, error: Error): void {
    this.#logger.info({ err: error, shard: this.#pool.shard, reads: lane.depth }, 'a lane was lost');
    this.totals.lost += 1;
    const group = this.#groupOf(lane);
    if (group !== null) group.lanes.splice(group.lanes.indexOf(lane), 1);
    this.#all.delete(lane);
    this.#watch.ends(lane);
    this.#pool.discard(lane.backend);
  }

  /** Clients wait for a connection. */
  get isWanted(): boolean {
    return this.#pool.counts.waiting > 0;
  }

  /** Gives back what nobody has used for a while or somebody waits for, and what the pool would have replaced. */
  sweep(now: number): void {
    const idleMs = this.isWanted ? WANTED_MS : IDLE_MS;
    for (const lane of [...this.#all])
      if ((lane.isEmpty && now - lane.idleSince > idleMs) || this.#pool.wants(lane.backend, now))
        lane.retire('given back');
  }

  async #prepareLane(group: LaneGroup, from: Backend | Promise<Backend>): Promise<void> {
    group.opening = true;
    this.#opening += 1;
    let backend: Backend | null = null;
    try {
      backend = await from;
      await this.#prepare(backend, group.onServer);
      this.#opening -= 1;
      if (this.#pool.options.lanes === 'off' || group.forgotten) this.#pool.release(backend);
      else this.#add(group, backend, performance.now());
    } catch (error) {
      this.#opening -= 1;
      group.retryAt = performance.now() + RETRY_MS;
      this.#logger.debug({ err: error, shard: this.#pool.shard }, 'could not open a lane');
      if (backend !== null) this.#pool.discard(backend);
    } finally {
      group.opening = false;
    }
  }

  #add(group: LaneGroup, backend: Backend, now: number): void {
    backend.settings = group.onServer;
    group.lanes.push(this.#watched(backend, now));
  }

  #watched(backend: Backend, now: number): Lane {
    const lane = new Lane(backend, this, now);
    this.#all.add(lane);
    this.#watch.opened(lane, this);
    return lane;
  }

  #groupOf(lane: Lane): LaneGroup | null {
    for (const group of this.#groups) if (group.lanes.includes(lane)) return group;
    return null;
  }

  #forgetUnused(): void {
    for (const group of [...this.#groups]) {
      if (group.lanes.length > 0 || group.opening) continue;
      group.forgotten = true;
      this.#groups.splice(this.#groups.indexOf(group), 1);
    }
  }
}

const MAKE_READ_ONLY = encodeQuery(Buffer.from(SET_READ_ONLY));

/** Not waited for: the first read follows in the same packet. */
function makeReadOnly(backend: Backend): void {
  // It is no lane then; what stands in line runs elsewhere.
  backend.runInternal(MAKE_READ_ONLY).catch(() => backend.destroy());
}

/** Kinds of settings whose clients may share connections, of one user and shard. */
const GROUPS = 32;
