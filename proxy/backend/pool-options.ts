/** How the server connections of one process are kept. Durations in milliseconds. */
export interface PoolOptions {
  /** Server connections per shard and user, at most. */
  readonly size: number;
  /** Server connections per shard over all users, at most; unused ones of other users make room. Default 0: no limit. */
  readonly maxPerShard?: number;
  /** An unused connection is closed after this time. */
  readonly idleTimeoutMs: number;
  /** A client that has waited this long for a connection gets 53300. */
  readonly queueTimeoutMs: number;
  /** A client that waits this long for a connection is told so, once per wait. Default 5,000; 0: never. */
  readonly queueNoticeMs?: number;
  /** A connection older than this is closed when it is given back. Default 3,600,000; 0: never. */
  readonly lifetimeMs?: number;
  /** A connection unused for longer is asked for a sign of life before it is used. Default 30,000; 0: never. */
  readonly healthCheckMs?: number;
  /** How long such a sign of life may take. Default 5,000. */
  readonly connectTimeoutMs?: number;
  /**
   * While a server cannot be reached, clients wait for it so long from the first failed attempt on; after that they are told
   * at once. Default 5,000.
   */
  readonly connectRetryMs?: number;
  /** Connections to one shard being opened at the same time, at most. Default 8. */
  readonly maxConnecting?: number;
  /** Whether safe reads of several clients may share connections, and be said in one. `single`: only the first. Default: `auto`. */
  readonly lanes?: 'auto' | 'single' | 'off';
  /** Connections so shared at most, per shard and user; never more than half of `size`. Default: 4. */
  readonly lanesMax?: number;
  /** Reads in line on one of them at most. Default: 512. */
  readonly laneDepth?: number;
  /** A statement that has kept a lane busy for so long, and for several times what it was expected to take, is late. Default: 5. */
  readonly laneLateMs?: number;
}

/** `options` with every default filled in. */
export function withDefaults(options: PoolOptions): Required<PoolOptions> {
  return Object.freeze({
    maxPerShard: 0,
    queueNoticeMs: 5_000,
    lifetimeMs: 3_600_000,
    healthCheckMs: 30_000,
    connectTimeoutMs: 5_000,
    connectRetryMs: 5_000,
    maxConnecting: 8,
    lanes: 'auto',
    lanesMax: 4,
    laneDepth: 512,
    laneLateMs: 5,
    ...options,
  });
}
