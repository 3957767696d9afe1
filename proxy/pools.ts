import type { Logger } from 'pino';
import { ForeshardError } from '../topology/errors.js';
import type { ShardName } from '../topology/topology.js';
import type { Holds } from './admin/siblings.js';
import type { ServerSecrets } from './auth/server-secrets.js';
import type { Backend } from './backend/backend.js';
import { LaneWatch } from './backend/lane-watch.js';
import { Lanes } from './backend/lanes.js';
import { Pool } from './backend/pool.js';
import type { PoolOptions } from './backend/pool-options.js';
import { ServerConnection, type ServerConnectionOptions } from './backend/server-connection.js';
import { tlsOfUrl } from './backend/server-tls.js';
import { ShardGate } from './backend/shard-gate.js';
import { SILENT_OWNER } from './backend/silent-owner.js';
import type { LiveTopology } from './live-topology.js';
import { applySettings } from './session/server-settings.js';
import type { SettingMap } from './session/settings.js';

export interface PoolsOptions extends PoolOptions {
  readonly connectTimeoutMs: number;
}

/**
 * The server connections of one process: a pool per shard and user, made when first needed. What the admin database does to
 * them is for one shard, or for all of them with null, those that are added later included.
 */
export class Pools {
  #options: PoolsOptions;
  readonly #live: LiveTopology;
  readonly #secrets: ServerSecrets;
  readonly #pools = new Map<string, Pool>();
  readonly #lanes = new Map<Pool, Lanes>();
  readonly #watch = new LaneWatch();
  readonly #logger: Logger;
  readonly #gates = new Map<ShardName, ShardGate>();
  #allPaused = false;
  #disabled = false;

  constructor(options: PoolsOptions, live: LiveTopology, secrets: ServerSecrets, logger: Logger) {
    this.#options = options;
    this.#logger = logger;
    this.#live = live;
    this.#secrets = secrets;
  }

  get(shard: ShardName, user: string): Pool {
    const key = `${shard}\0${user}`;
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = new Pool(shard, user, this.#options, () => this.#connect(shard, user), this.#gate(shard));
      this.#pools.set(key, pool);
      const prepare = async (backend: Backend, settings: SettingMap) => {
        backend.attach(SILENT_OWNER);
        await applySettings(backend, settings);
      };
      this.#lanes.set(pool, new Lanes(pool, this.#watch, this.#logger, prepare));
    }
    return pool;
  }

  /** The lanes on a pool's connections. */
  lanesOf(pool: Pool): Lanes {
    return this.#lanes.get(pool) as Lanes;
  }

  /** Pools that are there already keep what is open, and fit the new options as connections come and go. */
  reload(options: PoolsOptions): void {
    this.#options = options;
    for (const gate of this.#gates.values()) gate.reload(options);
  }

  /** All of them, for whoever looks or ends them. */
  get all(): Iterable<Pool> {
    return this.#pools.values();
  }

  /**
   * PAUSE: nothing new starts on a server connection; clients wait (for the queue time-out at most). Resolves when every
   * connection has been given back and closed, or at RESUME.
   */
  async pause(shard: ShardName | null): Promise<void> {
    if (shard === null) this.#allPaused = true;
    await Promise.all(this.#concerned(shard).map((gate) => gate.pause()));
  }

  /** RESUME: after PAUSE or KILL. */
  resume(shard: ShardName | null): void {
    if (shard === null) this.#allPaused = false;
    for (const gate of this.#concerned(shard)) gate.resume();
  }

  /** Whether everything was paused (or killed) as a whole. */
  get allPaused(): boolean {
    return this.#allPaused;
  }

  isPaused(shard: ShardName): boolean {
    return this.#gates.get(shard)?.paused ?? this.#allPaused;
  }

  /** RECONNECT: every connection is closed when it is given back; new ones are opened meanwhile. */
  reconnect(shard: ShardName | null): void {
    for (const gate of this.#concerned(shard)) gate.reconnect();
  }

  /** WAIT_CLOSE: resolves when the connections that the last RECONNECT was about are closed. */
  async closed(shard: ShardName | null): Promise<void> {
    await Promise.all(this.#concerned(shard).map((gate) => gate.closed()));
  }

  /**
   * KILL: cuts every connection at once, and starts nothing new until RESUME. Clients that use one are told 08006 or 08007 by
   * their sessions; whoever wants all clients gone closes their sessions first.
   */
  kill(shard: ShardName | null): void {
    if (shard === null) this.#allPaused = true;
    for (const gate of this.#concerned(shard)) gate.kill();
  }

  /** DISABLE, ENABLE: whether new clients may come in. */
  set disabled(disabled: boolean) {
    this.#disabled = disabled;
  }

  get disabled(): boolean {
    return this.#disabled;
  }

  /** What is held now. */
  get holds(): Holds {
    const shards = Object.fromEntries([...this.#gates].map(([shard, gate]) => [shard, gate.paused]));
    return { disabled: this.#disabled, all: this.#allPaused, shards };
  }

  /** Holds what another process held, and nothing else. */
  hold({ disabled, all, shards }: Holds): void {
    this.#disabled = disabled;
    this.#allPaused = all;
    for (const shard of new Set([...this.#gates.keys(), ...(Object.keys(shards) as ShardName[])])) {
      const gate = this.#gate(shard);
      if (!(shards[shard] ?? all)) gate.resume();
      else if (!gate.paused) void gate.pause();
    }
  }

  close(): void {
    this.#watch.close();
    for (const pool of this.#pools.values()) pool.close();
    for (const gate of this.#gates.values()) gate.close();
  }

  #concerned(shard: ShardName | null): ShardGate[] {
    return shard === null ? [...this.#gates.values()] : [this.#gate(shard)];
  }

  #gate(shard: ShardName): ShardGate {
    let gate = this.#gates.get(shard);
    if (gate === undefined) {
      gate = new ShardGate(this.#options);
      if (this.#allPaused) void gate.pause();
      this.#gates.set(shard, gate);
    }
    return gate;
  }

  /** A connection of no pool, as the user of the shard's URL. `parameters`: for its start-up. */
  connectOwn(name: ShardName, parameters: Readonly<Record<string, string>>): Promise<ServerConnection> {
    return this.#connect(name, null, parameters);
  }

  async #connect(
    name: ShardName,
    as: string | null,
    parameters: Readonly<Record<string, string>> = {},
  ): Promise<ServerConnection> {
    // Whatever role or server have: a connection is idle for clients that are not, and for none at all.
    return ServerConnection.connect({
      ...this.serverOptions(name, as, { idle_session_timeout: '0', ...parameters }),
      mayRead: () => this.#live.untilServing(),
    });
  }

  /** How to log in to a shard, as the user of its URL with null. @throws ForeshardError 08001 */
  serverOptions(
    name: ShardName,
    as: string | null,
    parameters: Readonly<Record<string, string>>,
  ): ServerConnectionOptions {
    const shard = this.#live.current.shards.get(name);
    if (shard === undefined) throw new ForeshardError('08001', `there is no shard "${name}" any more`);
    const url = new URL(shard.url);
    const user = as ?? decodeURIComponent(url.username);
    const host = url.searchParams.get('host') ?? decodeURIComponent(url.hostname.replace(/^\[|\]$/g, ''));
    return {
      shard: name,
      tls: tlsOfUrl(url),
      host: host === '' ? 'localhost' : host,
      port: Number(url.searchParams.get('port') ?? (url.port === '' ? 5432 : url.port)),
      user,
      database: decodeURIComponent(url.pathname.slice(1)) || decodeURIComponent(url.username),
      auth: this.#secrets.secretFor(user, shard.url),
      parameters,
      connectTimeoutMs: this.#options.connectTimeoutMs,
    };
  }
}
