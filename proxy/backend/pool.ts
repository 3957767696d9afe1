import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import type { SettingMap } from '../session/settings.js';
import { encodeQuery } from '../wire/frontend.js';
import { Backend } from './backend.js';
import type { PoolOptions } from './pool-options.js';
import { type PoolStatus, type PoolTotals, type ServerStatus, zeroTotals } from './pool-status.js';
import type { ServerConnection } from './server-connection.js';
import { ShardGate } from './shard-gate.js';
import { SILENT_OWNER } from './silent-owner.js';

/** Who waits for a connection; of several, one at a time is in the queue. Told in the turn in which it happens. */
export interface Waiter {
  /** Since when, on performance.now()'s clock; and whether it was told that this is long. Set by the pool. */
  since: number;
  told: boolean;
  /** The connection is the waiter's own until `release`. */
  given(backend: Backend): void;
  /** There is none, and it waits no more. */
  refused(error: Error): void;
  /** The wait is long. */
  slow(): void;
}

/** Whoever has connections of the pool to lend to several clients at a time. */
export interface Lender {
  /** Those that nobody uses at the moment, and clients that use the others. */
  readonly empty: number;
  readonly depth: number;
  /** Clients wait: what nobody needs is to be given back before long. */
  giveUp(): void;
  /** Another user's do: what nobody uses is to be given back. */
  giveUpEmpty(): void;
  /** Everything is, as soon as nobody uses it. */
  giveUpAll(): void;
}

/** Never over. */
const NO_SIGNAL: Interruption = {
  aborted: false,
  reason: undefined,
  addEventListener: () => undefined,
  removeEventListener: () => undefined,
};

/** Answered by EmptyQueryResponse, outside of any statistics of statements. */
const SIGN_OF_LIFE = encodeQuery('');

/** Server connections of one user to one shard. First come, first served; the connection used last is used first. */
export class Pool {
  readonly shard: ShardName;
  readonly user: string;
  readonly #gate: ShardGate;
  readonly #connect: () => Promise<ServerConnection>;
  /** Unused, used last at the end. */
  readonly #idle: Backend[] = [];
  /** Being asked for a sign of life, and until when. */
  readonly #tested = new Map<Backend, number>();
  readonly #all = new Set<Backend>();
  #connecting = 0;
  /** In the order of asking. */
  readonly #waiters = new Set<Waiter>();
  /** Of what is counted, except bytes of connections that are still open. */
  readonly #totals = zeroTotals();
  #closed = false;
  #lender: Lender | null = null;
  /** Of those who wait, how many are no clients. */
  #lanesWaiting = 0;
  /** A lane is to have the next connection that is given back. */
  #forLane: { readonly resolve: (backend: Backend) => void; readonly reject: (error: Error) => void } | null = null;

  /** @param gate shared by the pools of a shard */
  constructor(
    shard: ShardName,
    user: string,
    options: PoolOptions,
    connect: () => Promise<ServerConnection>,
    gate: ShardGate = new ShardGate(options),
  ) {
    this.shard = shard;
    this.user = user;
    this.#gate = gate;
    this.#connect = connect;
    gate.add(this);
  }

  get options(): Required<PoolOptions> {
    return this.#gate.options;
  }

  /** Connections open or being opened, those in use, and clients waiting. */
  get counts(): { open: number; inUse: number; waiting: number } {
    return { open: this.#all.size, inUse: this.#inUse, waiting: this.#waiters.size - this.#lanesWaiting };
  }

  /** Connections in use. */
  get inUse(): number {
    return this.#inUse;
  }

  get #inUse(): number {
    return this.#all.size - this.#idle.length - this.#tested.size;
  }

  /** Connections that are lanes. */
  get #lent(): number {
    let lent = 0;
    if (this.#lender !== null) for (const backend of this.#all) if (backend.pipelined) lent += 1;
    return lent;
  }

  /** Whoever asks for a connection now does not wait for others. */
  get hasSpare(): boolean {
    return this.#waiters.size === 0 && (this.#idle.length > 0 || this.total < this.#gate.options.size);
  }

  /** Connections open or being opened. */
  get total(): number {
    return this.#all.size + this.#connecting;
  }

  get status(): PoolStatus {
    const now = performance.now();
    const used = this.#idle.filter((b) => this.#mustTest(b, now)).length;
    const waiting = this.#waiters.size - this.#lanesWaiting;
    // A lane without reads is as good as unused.
    const { empty, depth } = this.#lender ?? { empty: 0, depth: 0 };
    const lent = this.#lent;
    return {
      shard: this.shard,
      user: this.user,
      clActive: this.#inUse - lent + depth,
      clWaiting: waiting,
      svActive: this.#inUse - empty,
      svIdle: this.#idle.length - used + empty,
      lanes: lent,
      svUsed: used,
      svTested: this.#tested.size,
      svLogin: this.#connecting,
      maxWaitMs: waiting === 0 ? 0 : now - this.waitingSince,
      size: this.#gate.options.size,
    };
  }

  /** The connections, for whoever looks. */
  *servers(): Iterable<ServerStatus> {
    const now = performance.now();
    for (const backend of this.#all) {
      const idle = this.#idle.includes(backend) || (backend.pipelined && backend.quiet);
      const state = this.#tested.has(backend)
        ? 'tested'
        : !idle
          ? 'active'
          : this.#mustTest(backend, now)
            ? 'used'
            : 'idle';
      yield { backend, state, closeNeeded: this.#outdated(backend, now) };
    }
  }

  get totals(): PoolTotals {
    const totals = { ...this.#totals };
    for (const { connection } of this.#all) {
      totals.received += connection.bytesWritten;
      totals.sent += connection.bytesRead;
    }
    return totals;
  }

  /** When the client that waits longest began; infinity when none does. ms on performance.now()'s clock. */
  get waitingSince(): number {
    for (const waiter of this.#waiters) return waiter.since;
    return Number.POSITIVE_INFINITY;
  }

  /** Since when the connection unused for longest has been; infinity when there is none. */
  get idleSince(): number {
    return this.#idle[0]?.idleSince ?? Number.POSITIVE_INFINITY;
  }

  /** Clients wait, and there could be more connections. */
  get isStarved(): boolean {
    return this.#waiters.size > this.#connecting && this.total < this.#gate.options.size;
  }

  /**
   * A connection of one's own until `release`. Rejects with 53300 after the queue time-out, with what the server said when it
   * refuses the connection, with 08001 when it cannot be reached, and with the signal's reason when aborted.
   *
   * @param slow called once if it takes longer than `queueNoticeMs`
   */
  acquire(signal: Interruption, slow: (() => void) | null = null): Promise<Backend> {
    if (this.#closed) return Promise.reject(closedError());
    if (signal.aborted) return Promise.reject(signal.reason as Error);
    const idle = this.takeIdle();
    if (idle !== null) return Promise.resolve(idle);
    if (this.#idle.length === 0 && this.#all.size === 0 && this.#gate.backingOff) {
      const { hopeless } = this.#gate;
      if (hopeless !== null) return Promise.reject(hopeless);
    }
    return new Promise((resolve, reject) => {
      const onAbort = () => {
        this.leave(waiter);
        waiter.refused(signal.reason as Error);
      };
      const waiter: Waiter = {
        since: 0,
        told: false,
        given: (backend) => {
          signal.removeEventListener('abort', onAbort);
          resolve(backend);
        },
        refused: (error) => {
          signal.removeEventListener('abort', onAbort);
          reject(error);
        },
        slow: () => slow?.(),
      };
      signal.addEventListener('abort', onAbort);
      this.#enqueue(waiter);
    });
  }

  /**
   * The same, for whoever has found none by `takeIdle`, without a promise: with more clients than connections nearly every statement waits. The
   * waiter may be told before this returns.
   */
  wait(waiter: Waiter): void {
    this.#enqueue(waiter);
  }

  /** Whether a connection may be waited for; if not, `acquire` says why. */
  get mayWait(): boolean {
    return !this.#closed && !this.#gate.backingOff;
  }

  /**
   * A connection at once, opened beyond `size` if need be: for who has a connection to another shard, which those may wait for who have these.
   * As each has one within some pool's size, there are `size` times the number of shards at most, and as many at home for statements over several shards.
   * Rejects as `acquire`.
   */
  async acquireBeyond(): Promise<Backend> {
    if (this.#closed) throw closedError();
    const idle = this.takeIdle();
    if (idle !== null) return idle;
    const { generation } = this.#gate;
    // Counted, so that nobody else opens one in its place.
    this.#connecting += 1;
    this.#gate.connecting();
    let connection: ServerConnection;
    try {
      connection = await this.#connect();
    } finally {
      this.#connecting -= 1;
      this.#gate.connectingEnded();
    }
    if (this.#closed) {
      connection.destroy();
      throw closedError();
    }
    return this.#add(connection, generation);
  }

  /** Waits no more, and is not told. */
  leave(waiter: Waiter): void {
    if (this.#waiters.delete(waiter)) this.#totals.waitTimeMs += performance.now() - waiter.since;
  }

  #enqueue(waiter: Waiter): void {
    waiter.since = performance.now();
    waiter.told = false;
    this.#waiters.add(waiter);
    this.grow();
    if (this.#lender !== null && this.#waiters.size > this.#connecting + this.#tested.size) this.#lender.giveUp();
  }

  #refuse(waiter: Waiter, error: Error): void {
    this.leave(waiter);
    waiter.refused(error);
  }

  /** The unused connection that was used last; null: there is none, or it must show a sign of life first. */
  takeIdle(): Backend | null {
    const last = this.#idle.at(-1);
    if (last === undefined || this.#mustTest(last, performance.now())) return null;
    this.#idle.pop();
    return last;
  }

  /** Who has lanes on connections of this pool. */
  lend(to: Lender): void {
    this.#lender = to;
  }

  /**
   * A connection for a lane, at once or when it is open. `ahead`: when all are in use, the next that is given back, before
   * anybody who waits: more clients are served by it. Null: there is none to spare.
   *
   * @param settings what it should have, if any does
   */
  takeForLane(ahead: boolean, settings: SettingMap): Backend | Promise<Backend> | null {
    if (this.#closed || this.#gate.paused) return null;
    if (this.#waiters.size === 0) {
      const now = performance.now();
      const fresh = this.#idle.filter((backend) => !this.#mustTest(backend, now));
      // Rather none that holds numbers which a client may ask for.
      const backend =
        fresh.findLast((b) => b.settings === settings) ?? fresh.findLast((b) => b.sequencesOf === null) ?? fresh.at(-1);
      if (backend !== undefined) {
        this.#idle.splice(this.#idle.indexOf(backend), 1);
        return backend;
      }
      if (this.#idle.length === 0 && this.total < this.#gate.options.size && !this.#gate.backingOff) {
        this.#lanesWaiting += 1;
        return this.acquire(NO_SIGNAL).finally(() => this.#lanesWaiting--);
      }
    }
    if (!ahead || this.#forLane !== null) return null;
    return new Promise((resolve, reject) => {
      this.#forLane = { resolve, reject };
    });
  }

  /** Whether a connection that is in use should be given back when that can be. */
  wants(backend: Backend, now: number): boolean {
    return (
      this.#gate.paused ||
      this.#all.size > this.#gate.options.size ||
      this.#outdated(backend, now) ||
      this.#gate.mustYield(this)
    );
  }

  /** Has lanes give back what nobody uses, for another user's sake. */
  giveUpLanes(): void {
    this.#lender?.giveUpEmpty();
  }

  /** This very connection, if it is unused. @returns whether it is the caller's now */
  take(backend: Backend): boolean {
    const i = this.#idle.indexOf(backend);
    if (i < 0 || backend.lost !== null) return false;
    this.#idle.splice(i, 1);
    return true;
  }

  /** Gives a connection back; one that is not fit for the next client is closed. */
  release(backend: Backend): void {
    backend.detach();
    if (this.#closed || !backend.reusable) {
      this.discard(backend);
      return;
    }
    this.#offer(backend);
  }

  /** Closes a connection that is in use and makes room for another. */
  discard(backend: Backend): void {
    backend.destroy();
    this.#forget(backend);
  }

  close(): void {
    this.#closed = true;
    this.#gate.close();
    for (const waiter of [...this.#waiters]) this.#refuse(waiter, closedError());
    this.#forLane?.reject(closedError());
    this.destroyAll();
  }

  /** Cuts every connection, in use or not. Clients that wait go on waiting. */
  destroyAll(): void {
    for (const backend of [...this.#all]) this.discard(backend);
  }

  /** Closes unused connections: those that RECONNECT is about, all while the shard is paused. */
  closeUnused(): void {
    this.#lender?.giveUpAll();
    for (const backend of [...this.#idle]) this.#retire(backend);
  }

  /** Closes unused connections beyond the size. */
  shrink(): void {
    this.#lender?.giveUpAll();
    while (this.#all.size > this.#gate.options.size && this.evict());
  }

  /** Whether there is a connection of a generation before this. */
  hasOlder(generation: number): boolean {
    for (const backend of this.#all) if (backend.generation < generation) return true;
    return false;
  }

  /** Closes the connection unused for longest, for another user's sake. @returns false when there is none */
  evict(): boolean {
    const oldest = this.#idle[0];
    if (oldest === undefined) return false;
    this.#retire(oldest);
    return true;
  }

  /** Opens as many connections as clients wait for, within the limits. */
  grow(): void {
    while (!this.#closed && this.#waiters.size > this.#connecting + this.#tested.size) {
      const old = this.#idle.pop();
      if (old !== undefined) {
        if (this.#mustTest(old, performance.now())) this.#test(old);
        else this.#offer(old);
        continue;
      }
      if (this.total >= this.#gate.options.size || !this.#gate.mayConnect(this)) return;
      this.#open();
    }
  }

  /** Looks after every time-out. `now` on performance.now()'s clock. */
  sweep(now: number): void {
    const { queueTimeoutMs, queueNoticeMs, idleTimeoutMs } = this.#gate.options;
    for (const waiter of this.#waiters) {
      const waited = now - waiter.since;
      // In the order of asking: whoever comes behind has waited less.
      if (waited < queueTimeoutMs && (queueNoticeMs === 0 || waited < queueNoticeMs)) break;
      if (waited >= queueTimeoutMs) this.#refuse(waiter, this.#queueTimeout());
      else if (!waiter.told) {
        waiter.told = true;
        waiter.slow();
      }
    }
    for (const [backend, until] of this.#tested) if (now >= until) backend.destroy();
    for (const backend of [...this.#idle])
      if (now - backend.idleSince > idleTimeoutMs || this.#outdated(backend, now)) this.#retire(backend);
  }

  #open(): void {
    const startedAt = performance.now();
    const { generation } = this.#gate;
    this.#connecting += 1;
    this.#gate.connecting();
    this.#connect().then(
      (connection) => {
        this.#connecting -= 1;
        this.#gate.connected();
        if (this.#closed) connection.destroy();
        else this.#opened(this.#add(connection, generation));
      },
      (error: Error) => {
        this.#connecting -= 1;
        this.#failed(error, startedAt);
      },
    );
  }

  /** In use from now on. */
  #add(connection: ServerConnection, generation: number): Backend {
    const backend = new Backend(this.shard, connection, generation, this.#totals);
    backend.onIdleClose = () => this.#forget(backend);
    this.#all.add(backend);
    return backend;
  }

  #opened(backend: Backend): void {
    this.#offer(backend);
    this.#gate.kick(); // one less is being opened
  }

  #failed(error: Error, startedAt: number): void {
    const away = isAway(error);
    this.#gate.failed(error, away, startedAt);
    const first = this.#firstWaiter;
    // Those who wait may still be served: by the connections there are, or by a shard that comes back soon.
    if (this.#all.size === 0 && (!away || this.#gate.hopeless !== null))
      for (const waiter of [...this.#waiters]) this.#refuse(waiter, error);
    else if (!away && first !== undefined) this.#refuse(first, error);
    this.#gate.kick();
  }

  get #firstWaiter(): Waiter | undefined {
    for (const waiter of this.#waiters) return waiter;
    return undefined;
  }

  /** Hands a connection that is fit to whoever waits longest, or keeps it. */
  #offer(backend: Backend): void {
    const now = performance.now();
    backend.idleSince = now;
    if (this.#gate.paused || this.#all.size > this.#gate.options.size || this.#outdated(backend, now)) {
      this.#retire(backend);
      return;
    }
    const waiter = this.#firstWaiter;
    const lane = this.#forLane;
    if (waiter !== undefined && this.#gate.mustYield(this)) this.#retire(backend);
    else if (lane !== null) {
      this.#forLane = null;
      lane.resolve(backend);
    } else if (waiter !== undefined) {
      this.leave(waiter);
      waiter.given(backend);
    } else {
      this.#idle.push(backend);
      if (this.#gate.options.maxPerShard > 0) this.#gate.kick();
    }
  }

  #outdated(backend: Backend, now: number): boolean {
    const { lifetimeMs } = this.#gate.options;
    return backend.generation < this.#gate.generation || (lifetimeMs > 0 && now - backend.connectedAt > lifetimeMs);
  }

  #mustTest(backend: Backend, now: number): boolean {
    const { healthCheckMs } = this.#gate.options;
    return healthCheckMs > 0 && now - backend.idleSince > healthCheckMs;
  }

  /** Asks for a sign of life, and offers the connection when there is one. */
  #test(backend: Backend): void {
    this.#tested.set(backend, performance.now() + this.#gate.options.connectTimeoutMs);
    backend.attach(SILENT_OWNER);
    backend.runInternal(SIGN_OF_LIFE).then(
      () => {
        this.#tested.delete(backend);
        this.release(backend);
      },
      () => this.discard(backend),
    );
  }

  /** Says goodbye to an unused connection. */
  #retire(backend: Backend): void {
    backend.connection.terminate();
    this.#forget(backend);
  }

  #forget(backend: Backend): void {
    if (!this.#all.delete(backend)) return;
    this.#tested.delete(backend);
    const i = this.#idle.indexOf(backend);
    if (i >= 0) this.#idle.splice(i, 1);
    this.#totals.received += backend.connection.bytesWritten;
    this.#totals.sent += backend.connection.bytesRead;
    this.#gate.kick();
  }

  #queueTimeout(): ForeshardError {
    return new ForeshardError(
      '53300',
      `no free server connection on shard "${this.shard}" within ${this.#gate.options.queueTimeoutMs} ms`,
      {
        hint: 'Raise proxy.pool.size, or look for sessions idle in a transaction.',
      },
    );
  }
}

/** What ends a wait: an AbortSignal, or what is one when it is needed. */
type Interruption = Pick<AbortSignal, 'aborted' | 'reason'> & {
  addEventListener(type: 'abort', listener: () => void): void;
  removeEventListener(type: 'abort', listener: () => void): void;
};

/** Whether a connection could not be made for a reason that may pass by itself: nobody listens, the server is starting, or full. */
function isAway(error: Error): boolean {
  if (!(error instanceof ForeshardError)) return false;
  return error.sqlstate === '08001' || error.sqlstate === '53300' || error.sqlstate.startsWith('57P');
}

function closedError(): ForeshardError {
  return new ForeshardError('57P01', 'the proxy is shutting down');
}
