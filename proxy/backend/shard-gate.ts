import type { Pool } from './pool.js';
import { type PoolOptions, withDefaults } from './pool-options.js';

/** Pause before a shard that could not be reached is tried again: doubled with each failure, up to the second. */
const FIRST_RETRY_MS = 50;
const LAST_RETRY_MS = 1_000;

/**
 * What the pools of one shard, one per user, share: how many connections there may be and how many may be opened at a time,
 * when a shard that is away is tried again, and whether it is paused. Also their clock: one timer per shard looks after
 * every time-out.
 */
export class ShardGate {
  readonly #pools = new Set<Pool>();
  #options: Required<PoolOptions>;
  #sweep: NodeJS.Timeout;
  #connecting = 0;
  #kicking = false;
  #paused = false;
  /** Raised by RECONNECT: connections of an older generation are closed when they are given back. */
  #generation = 0;
  /** Since when the shard cannot be reached, or null; and the last reason. */
  #awaySince: number | null = null;
  #awayReason: Error | null = null;
  #backOffMs = 0;
  #retryAt = 0;
  #retryTimer: NodeJS.Timeout | null = null;

  constructor(options: PoolOptions) {
    this.#options = withDefaults(options);
    this.#sweep = this.#startSweep();
  }

  get options(): Required<PoolOptions> {
    return this.#options;
  }

  /** Connections beyond a smaller size are closed when they are given back; who waits already goes by the new time-outs. */
  reload(options: PoolOptions): void {
    this.#options = withDefaults(options);
    clearInterval(this.#sweep);
    this.#sweep = this.#startSweep();
    for (const pool of this.#pools) pool.shrink();
    this.kick();
  }

  #startSweep(): NodeJS.Timeout {
    const { idleTimeoutMs, queueTimeoutMs, queueNoticeMs, healthCheckMs, connectTimeoutMs } = this.#options;
    const finest = [idleTimeoutMs, queueTimeoutMs, queueNoticeMs, healthCheckMs, connectTimeoutMs].filter((t) => t > 0);
    const sweep = setInterval(this.#tick, Math.min(500, Math.max(10, Math.min(...finest) / 4)));
    sweep.unref();
    return sweep;
  }

  add(pool: Pool): void {
    this.#pools.add(pool);
  }

  /** Connections of all users, those being opened included. */
  get open(): number {
    let open = 0;
    for (const pool of this.#pools) open += pool.total;
    return open;
  }

  get paused(): boolean {
    return this.#paused;
  }

  get generation(): number {
    return this.#generation;
  }

  /** Nothing new starts; connections are closed as they are given back. Resolves when none is left, or at `resume`. */
  async pause(): Promise<void> {
    this.#paused = true;
    for (const pool of this.#pools) pool.closeUnused();
    while (this.#paused && this.open > 0) await this.#changed();
  }

  resume(): void {
    this.#paused = false;
    this.#wake();
    this.kick();
  }

  /** Every connection of now is closed when it is given back; new ones may be opened at once. */
  reconnect(): void {
    this.#generation += 1;
    for (const pool of this.#pools) pool.closeUnused();
    this.kick();
  }

  /** Resolves when no connection is left of those that the last `reconnect` was meant for. */
  async closed(): Promise<void> {
    const generation = this.#generation;
    const old = () => [...this.#pools].some((pool) => pool.hasOlder(generation));
    while (old()) await this.#changed();
  }

  /** Cuts every connection, and starts nothing new until `resume`. */
  kill(): void {
    this.#paused = true;
    for (const pool of this.#pools) pool.destroyAll();
  }

  close(): void {
    this.#paused = true;
    clearInterval(this.#sweep);
    if (this.#retryTimer !== null) clearTimeout(this.#retryTimer);
    this.#wake();
  }

  /** Whether `pool` may open a connection now. An unused connection of another user is closed to make room. */
  mayConnect(pool: Pool): boolean {
    const { maxConnecting, maxPerShard } = this.#options;
    if (this.#paused || this.#connecting >= maxConnecting || performance.now() < this.#retryAt) return false;
    if (maxPerShard === 0 || this.open < maxPerShard) return true;
    let victim: Pool | null = null;
    this.#emptyLanes(pool);
    for (const other of this.#pools)
      if (other !== pool && other.idleSince < (victim?.idleSince ?? Number.POSITIVE_INFINITY)) victim = other;
    // The room is for `pool`, not for whoever would be told of it.
    this.#kicking = true;
    try {
      return victim?.evict() ?? false;
    } finally {
      this.#kicking = false;
    }
  }

  #emptyLanes(except: Pool): void {
    const kicking = this.#kicking;
    this.#kicking = true;
    for (const other of this.#pools) if (other !== except) other.giveUpLanes();
    this.#kicking = kicking;
  }

  /**
   * Whether a connection that `pool` could hand to its next client should be closed for another user's: that one asked before,
   * and has fewer connections, so that all come to the same share.
   */
  mustYield(pool: Pool): boolean {
    const { maxPerShard } = this.#options;
    if (maxPerShard === 0 || this.open < maxPerShard) return false;
    for (const other of this.#pools) {
      if (other === pool || !other.isStarved || other.waitingSince >= pool.waitingSince) continue;
      if (other.total === 0 || other.total + 2 <= pool.total) return true;
    }
    return false;
  }

  connecting(): void {
    this.#connecting += 1;
  }

  /** An attempt is over, whichever way: nobody who waits is concerned. */
  connectingEnded(): void {
    this.#connecting -= 1;
    this.kick();
  }

  connected(): void {
    this.#connecting -= 1;
    this.#awaySince = null;
    this.#awayReason = null;
    this.#backOffMs = 0;
    this.#retryAt = 0;
  }

  /** An attempt has failed. `away`: nobody could be reached, so that it makes sense to wait and try again. */
  failed(error: Error, away: boolean, startedAt: number): void {
    this.#connecting -= 1;
    if (!away) return;
    this.#awaySince ??= startedAt;
    this.#awayReason = error;
    this.#backOffMs = Math.min(LAST_RETRY_MS, Math.max(FIRST_RETRY_MS, this.#backOffMs * 2));
    this.#retryAt = performance.now() + this.#backOffMs;
    this.#retryTimer ??= setTimeout(this.#retry, this.#backOffMs);
  }

  /** Why clients need not wait: the shard has been away for longer than they would; null when they may. */
  get hopeless(): Error | null {
    if (this.#awaySince === null || performance.now() - this.#awaySince < this.#options.connectRetryMs) return null;
    return this.#awayReason;
  }

  /** The time for another attempt has not come. */
  get backingOff(): boolean {
    return performance.now() < this.#retryAt;
  }

  /** There may be room: whoever has waited longest first. */
  kick(): void {
    this.#wake();
    if (this.#kicking) return;
    const waiting = [...this.#pools].filter((pool) => pool.waitingSince < Number.POSITIVE_INFINITY);
    for (const pool of waiting.sort((a, b) => a.waitingSince - b.waitingSince)) pool.grow();
  }

  readonly #retry = (): void => {
    this.#retryTimer = null;
    const rest = this.#retryAt - performance.now();
    if (rest > 0) this.#retryTimer = setTimeout(this.#retry, rest + 1);
    else this.kick();
  };

  readonly #tick = (): void => {
    const now = performance.now();
    for (const pool of this.#pools) pool.sweep(now);
  };

  // Whoever waits for connections to be closed.
  #waiting: (() => void)[] = [];

  #changed(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
