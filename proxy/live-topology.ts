import { randomUUID } from 'node:crypto';
import type { Logger } from 'pino';
import type { Catalog } from '../topology/catalog/catalog.js';
import { ownLeaseEnd, ProxyLeases } from '../topology/catalog/leases.js';
import { announcedHold } from '../topology/catalog/topology-reader.js';
import { ForeshardError } from '../topology/errors.js';
import type { Epoch, Hold, Topology } from '../topology/topology.js';
import { Again } from './again.js';
import { type Footprint, holdCovers } from './session/footprint.js';

export interface LiveTopologyOptions {
  readonly catalog: Catalog;
  readonly name: string;
  readonly listen: string;
  /** How long the proxy may go on serving without hearing from the catalog. */
  readonly leaseTtlMs: number;
  /** How long answers of servers may wait for the lease to be had again, ms. */
  readonly answerTimeoutMs: number;
  readonly logger: Logger;
  /** Whether any transaction or statement in progress touches what `covers` says. */
  readonly uses: (covers: (footprint: Footprint) => boolean) => boolean;
  /** Ends transactions and statements in progress that touch what `covers` says. */
  readonly end: (covers: (footprint: Footprint) => boolean) => void;
  /** Whether what is known of the schema is enough to route by, at the current topology. */
  readonly schemaReady: () => boolean;
  /** Nothing is routed by the schema from before this generation; null: none has been read yet. */
  readonly schemaHeard: () => bigint | null;
  /** Whether anything in progress was placed by an older epoch on a shard that no longer owns what it touches. */
  readonly stale: (topology: Topology) => boolean;
}

/** All proxies hear of a flip at once, when its migrator and the clients that were held have more need of the servers. */
const AFTER_FLIP_MS = 100;

/** Anybody who can connect to the catalog's database can announce something: what has been is looked up so much later, when flips are over. */
const LOOK_UP_MS = 1000;

/** The catalog is asked no more often than this whether a hold is over. */
const HOLD_RECHECK_MS = 50;

interface LiveHold {
  readonly hold: Hold;
  /**
   * On `performance.now()`'s clock. Later than the catalog's own deadline: counted from after the answer came. No flip can
   * happen after it, but one may have before it that we have not heard of: the hold ends with the next look at the catalog.
   */
  readonly until: number;
  /** When it was announced, on the same clock: what is read from before that does not know of it. */
  readonly heardAt: number;
  acked: boolean;
}

/**
 * The topology as this proxy serves it: the newest epoch it has seen, the holds in force, and the lease that says it
 * may serve at all. Everything a session asks is answered at once, from memory.
 *
 * The lease is counted from before it was asked for, and for clocks that run at different rates a little shorter, so this proxy always stops before the catalog believes it has.
 */
export class LiveTopology {
  readonly id = randomUUID();
  readonly #options: LiveTopologyOptions;
  readonly #leases: ProxyLeases;
  #current: Topology;
  #epochAcked: Epoch;
  /** The catalog knows that we have heard of this generation of the schema. */
  #schemaTold = -1n;
  #holds = new Map<bigint, LiveHold>();
  #leaseUntil = 0;
  #listeners = new Set<() => void>();
  readonly #onNewEpoch: ((before: Topology, now: Topology) => void)[] = [];
  /** Who waits for the lease to last again. */
  #serving: { readonly promise: Promise<void>; readonly settle: (error: Error | null) => void } | null = null;
  readonly #onApplied: (() => void)[] = [];
  #renewTimer: NodeJS.Timeout | null = null;
  #holdTimer: NodeJS.Timeout | null = null;
  readonly #reads = new Again(async () => {
    const asked = performance.now();
    this.#apply(await this.#options.catalog.loadTopology(), asked);
  });
  readonly #renewals = new Again(() => this.#renewOnce());
  #watch: { close(): Promise<void> } | null = null;
  #closed = false;
  #era = 0;

  private constructor(options: LiveTopologyOptions, topology: Topology) {
    this.#options = options;
    this.#leases = new ProxyLeases(options.catalog.pool);
    this.#current = topology;
    this.#epochAcked = topology.epoch;
  }

  static async start(options: LiveTopologyOptions): Promise<LiveTopology> {
    const live = new LiveTopology(options, await options.catalog.loadTopology());
    const asked = performance.now();
    await live.#leases.register({
      id: live.id,
      name: options.name,
      listen: options.listen,
      ttlMs: options.leaseTtlMs,
      epochAcked: live.#current.epoch,
      schemaHeard: live.#current.schemaGeneration,
    });
    live.#watch = await options.catalog.watch(
      () => void live.reload(),
      (announcement) => live.#heard(announcement),
    );
    // From the registration on flips wait for us; what is loaded after it is safe to serve, what was before may not be.
    await live.#reads.run();
    live.#leaseUntil = ownLeaseEnd(asked, options.leaseTtlMs);
    live.#notify();
    live.#scheduleRenewal();
    return live;
  }

  get current(): Topology {
    return this.#current;
  }

  /** What is held at the moment. */
  get holds(): readonly Hold[] {
    return [...this.#holds.values()].map(({ hold }) => hold);
  }

  /** Whether the lease lasts: beyond it, another proxy's map may be newer than ours. */
  get mayServe(): boolean {
    return performance.now() < this.#leaseUntil;
  }

  /** Another one after the lease had ended for the catalog: nobody has waited for what was under way. */
  get era(): number {
    return this.#era;
  }

  /** Whether statements may be routed by what is known of the schema; those of a transaction that is under way go on with it. */
  get schemaReady(): boolean {
    return this.#options.schemaReady();
  }

  /**
   * Whether something with this footprint may start now. `own`: what the same transaction already touches, which a hold waits for; `elsewhere`: on other
   * shards.
   */
  admits(
    footprint: Footprint,
    own: Footprint | null,
    elsewhere: { uses(covers: (footprint: Footprint) => boolean): boolean } | null = null,
  ): boolean {
    if (!this.mayServe) return false;
    if (this.#holds.size === 0) return true;
    for (const live of this.#holds.values()) {
      const covers = (touched: Footprint) => holdCovers(live.hold, touched, this.#current);
      if (covers(footprint) && !(own !== null && covers(own)) && elsewhere?.uses(covers) !== true) return false;
    }
    return true;
  }

  /**
   * Null while the lease lasts. Otherwise what a server has answered is not to be passed on yet: the rows may have been moved and
   * removed meanwhile. Resolves when the lease lasts again and the newest epoch has been heard of; rejects when that takes too long.
   */
  untilServing(): Promise<void> | null {
    if (this.mayServe || this.#closed) return null;
    if (this.#serving !== null) return this.#serving.promise;
    let settle: (error: Error | null) => void = () => undefined;
    const promise = new Promise<void>((resolve, reject) => {
      const timer = setTimeout(
        () => settle(holdTimeout(this, this.#options.answerTimeoutMs)),
        this.#options.answerTimeoutMs,
      );
      settle = (error) => {
        clearTimeout(timer);
        this.#serving = null;
        if (error === null) resolve();
        else reject(error);
      };
    });
    promise.catch(() => undefined); // each who waits sees it too
    this.#serving = { promise, settle };
    return promise;
  }

  /** Calls `listener` after every change of the epoch, with the topology before and the one of now. */
  onNewEpoch(listener: (before: Topology, now: Topology) => void): void {
    this.#onNewEpoch.push(listener);
  }

  /** Calls `listener` whenever the catalog has been read, before anything is placed by it. */
  onApplied(listener: () => void): void {
    this.#onApplied.push(listener);
  }

  /** `schemaHeard` may have grown: DDL elsewhere waits for that. */
  tellHeard(): void {
    if (this.#schemaHeard > this.#schemaTold) void this.#renew();
  }

  get #schemaHeard(): bigint {
    return this.#options.schemaHeard() ?? this.#current.schemaGeneration;
  }

  /** Something else that statements wait for has come. */
  wake(): void {
    this.#notify();
  }

  /** Resolves at the next change of epoch, holds, lease or schema. Rejects with the signal's reason. */
  changed(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const done = () => {
        this.#listeners.delete(done);
        signal.removeEventListener('abort', abort);
        resolve();
      };
      const abort = () => {
        this.#listeners.delete(done);
        reject(signal.reason as Error);
      };
      this.#listeners.add(done);
      signal.addEventListener('abort', abort, { once: true });
    });
  }

  /** Reads the catalog again; calls made meanwhile share one more read after it. */
  async reload(): Promise<void> {
    try {
      await this.#reads.run();
    } catch (error) {
      // The last epoch serves on while the lease lasts.
      this.#options.logger.warn({ err: error }, 'could not read the topology');
    }
  }

  /** To be called when a transaction has ended: a hold that waited for it may now be acknowledged. */
  released(): void {
    if (this.#holds.size > 0) this.#acknowledge();
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#serving?.settle(null);
    if (this.#renewTimer) clearTimeout(this.#renewTimer);
    if (this.#holdTimer) clearTimeout(this.#holdTimer);
    await this.#watch?.close();
    try {
      await this.#leases.unregister(this.id);
    } catch (error) {
      this.#options.logger.warn({ err: error }, 'could not give the lease back; it runs out by itself');
    }
  }

  /** A hold is told of with its announcement: nobody asks the catalog for it while clients wait. @returns false: the catalog has to be asked */
  #heard(announcement: string): boolean {
    const hold = announcedHold(announcement, this.#current);
    if (hold === null || hold.endsTransactions || hold.remainingMs <= 0) return false;
    if (this.#holds.has(hold.id)) return true;
    const now = performance.now();
    const live = { hold, until: now + hold.remainingMs, heardAt: now, acked: false };
    this.#holds.set(hold.id, live);
    setTimeout(() => this.#holds.get(hold.id) === live && void this.reload(), LOOK_UP_MS).unref();
    this.#scheduleHoldEnd();
    this.#acknowledge();
    return true;
  }

  /** @param asked when the catalog was asked for it, on performance.now()'s clock */
  #apply(topology: Topology, asked: number): void {
    if (this.#closed || topology.epoch < this.#current.epoch) return;
    const changed = topology.epoch !== this.#current.epoch;
    if (changed)
      this.#options.logger.info({ epoch: String(topology.epoch), before: String(this.#current.epoch) }, 'new epoch');
    const before = this.#current;
    this.#current = topology;
    const now = performance.now();
    const holds = new Map<bigint, LiveHold>();
    for (const hold of topology.holds) {
      if (hold.remainingMs <= 0) continue;
      const { heardAt = asked, acked = false } = this.#holds.get(hold.id) ?? {};
      holds.set(hold.id, { hold, until: now + hold.remainingMs, heardAt, acked });
    }
    for (const [id, live] of this.#holds) if (live.heardAt > asked && !holds.has(id)) holds.set(id, live);
    this.#holds = holds;
    this.#scheduleHoldEnd();
    for (const listener of this.#onApplied) listener();
    for (const { hold } of holds.values())
      if (hold.endsTransactions) this.#options.end((footprint) => holdCovers(hold, footprint, topology));
    this.#acknowledge();
    this.#notify();
    // DDL waits for this before its client is told, and migrators, which have time, before they remove rows from the source.
    if (this.#schemaHeard > this.#schemaTold) void this.#renew();
    else if (changed) setTimeout(() => void this.#renew(), AFTER_FLIP_MS).unref();
    if (changed) for (const listener of this.#onNewEpoch) listener(before, topology);
  }

  #acknowledge(): void {
    for (const live of this.#holds.values()) {
      if (live.acked || this.#options.uses((footprint) => holdCovers(live.hold, footprint, this.#current))) continue;
      live.acked = true;
      this.#leases.ackHold(live.hold.id, this.id).then(
        (noted) => {
          live.acked = noted;
        },
        (error: unknown) => {
          live.acked = false;
          this.#options.logger.warn({ err: error, hold: String(live.hold.id) }, 'could not acknowledge a hold');
        },
      );
    }
  }

  #scheduleHoldEnd(): void {
    if (this.#holdTimer) clearTimeout(this.#holdTimer);
    this.#holdTimer = null;
    let next = Number.POSITIVE_INFINITY;
    for (const live of this.#holds.values()) next = Math.min(next, live.until);
    if (next === Number.POSITIVE_INFINITY || this.#closed) return;
    this.#holdTimer = setTimeout(
      async () => {
        // When the catalog cannot be asked the hold stays, and it is asked again.
        await this.reload();
        this.#scheduleHoldEnd();
      },
      Math.max(HOLD_RECHECK_MS, next - performance.now() + 1),
    );
  }

  #notify(): void {
    if (this.mayServe) this.#serving?.settle(null);
    for (const listener of [...this.#listeners]) listener();
  }

  #scheduleRenewal(): void {
    if (this.#closed) return;
    this.#renewTimer = setTimeout(async () => {
      await this.#renew();
      this.#scheduleRenewal();
    }, this.#options.leaseTtlMs / 4);
  }

  /**
   * One at a time: another one would find the lease renewed as soon as this one has registered, and serve before what has happened
   * without it has been read.
   */
  #renew(): Promise<void> {
    return this.#closed ? Promise.resolve() : this.#renewals.run();
  }

  async #renewOnce(): Promise<void> {
    if (this.#closed) return;
    const { leaseTtlMs, name, listen, logger } = this.#options;
    try {
      // Rows of a range that has left are only removed when every proxy has acknowledged the epoch.
      if (!this.#options.stale(this.#current)) this.#epochAcked = this.#current.epoch;
      const asked = performance.now();
      const epochAcked = this.#epochAcked;
      const facts = { ttlMs: leaseTtlMs, epochAcked, schemaHeard: this.#schemaHeard };
      const renewed = await this.#leases.renew(this.id, facts);
      if (facts.schemaHeard > this.#schemaTold) this.#schemaTold = facts.schemaHeard;
      // The word of it may have been lost on its way, and this proxy would go on with a schema from before.
      if (renewed !== null && renewed.schemaGeneration > this.#current.schemaGeneration) void this.reload();
      if (renewed === null) {
        // The lease had ended, and others may have moved on without us. From the moment of the registration they wait for us
        // again, so what is loaded after it is safe to serve.
        this.#era += 1;
        await this.#leases.register({ id: this.id, name, listen, ...facts });
        for (const live of this.#holds.values()) live.acked = false;
        await this.#reads.run();
        logger.info('the lease had ended and is back');
      }
      const lapsed = !this.mayServe;
      this.#leaseUntil = Math.max(this.#leaseUntil, ownLeaseEnd(asked, leaseTtlMs));
      this.#acknowledge();
      if (lapsed) this.#notify();
    } catch (error) {
      logger.warn({ err: error, mayServe: this.mayServe }, 'could not renew the lease');
    }
  }
}

/** What a client is told when it has waited too long for a range on the move or for the catalog. */
export function holdTimeout({ mayServe, schemaReady }: LiveTopology, waitedMs: number): ForeshardError {
  if (mayServe && !schemaReady)
    return new ForeshardError('57P03', 'the schema of the home shard has changed and cannot be read', {
      hint: 'The log of the proxy says why; statements go on as soon as it can.',
    });
  return mayServe
    ? new ForeshardError(
        '57P03',
        `the range is being moved; nothing could start on it for ${Math.round(waitedMs)} ms`,
        {
          hint: 'Try again; see "foreshard migrate list".',
        },
      )
    : new ForeshardError('57P03', "the catalog cannot be reached and this proxy's lease has ended", {
        hint: 'The proxy serves again as soon as it reaches the catalog.',
      });
}
