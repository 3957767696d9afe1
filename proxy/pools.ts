import { ForeshardError } from '../topology/errors.js';
import type { ShardName } from '../topology/topology.js';
import { Pool, type PoolOptions } from './backend/pool.js';
import { ServerConnection } from './backend/server-connection.js';
import type { Credentials } from './credentials.js';
import type { LiveTopology } from './live-topology.js';

export interface PoolsOptions extends PoolOptions {
  readonly connectTimeoutMs: number;
}

/** The server connections of one process: a pool per shard and user, made when first needed. */
export class Pools {
  #options: PoolsOptions;
  readonly #live: LiveTopology;
  readonly #credentials: Credentials;
  readonly #pools = new Map<string, Pool>();

  constructor(options: PoolsOptions, live: LiveTopology, credentials: Credentials) {
    this.#options = options;
    this.#live = live;
    this.#credentials = credentials;
  }

  get(shard: ShardName, user: string): Pool {
    const key = `${shard}\0${user}`;
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = new Pool(shard, user, this.#options, () => this.#connect(shard, user));
      this.#pools.set(key, pool);
    }
    return pool;
  }

  /** Pools that are there already keep what is open, and fit the new options as connections come and go. */
  reload(options: PoolsOptions): void {
    this.#options = options;
    for (const pool of this.#pools.values()) pool.reload(options);
  }

  /** All of them, for whoever looks or ends them. */
  get all(): Iterable<Pool> {
    return this.#pools.values();
  }

  close(): void {
    for (const pool of this.#pools.values()) pool.close();
  }

  #connect(name: ShardName, user: string): Promise<ServerConnection> {
    const shard = this.#live.current.shards.get(name);
    if (shard === undefined) return Promise.reject(new ForeshardError('08001', `there is no shard "${name}" any more`));
    const url = new URL(shard.url);
    const host = url.searchParams.get('host') ?? decodeURIComponent(url.hostname.replace(/^\[|\]$/g, ''));
    return ServerConnection.connect({
      shard: name,
      host: host === '' ? 'localhost' : host,
      port: Number(url.searchParams.get('port') ?? (url.port === '' ? 5432 : url.port)),
      user,
      database: decodeURIComponent(url.pathname.slice(1)) || decodeURIComponent(url.username),
      auth: this.#credentials.secretFor(user, shard.url),
      connectTimeoutMs: this.#options.connectTimeoutMs,
    });
  }
}
