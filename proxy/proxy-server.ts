import { createHash, randomInt, timingSafeEqual } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Catalog } from '../topology/catalog/catalog.js';
import { ForeshardError } from '../topology/errors.js';
import type { ShardName } from '../topology/topology.js';
import { Pool } from './backend/pool.js';
import { ServerConnection } from './backend/server-connection.js';
import { type ConfiguredUser, Credentials } from './credentials.js';
import { holdCovers, LiveTopology } from './live-topology.js';
import { Router } from './router/router.js';
import { SchemaView } from './schema-view.js';
import { PreparedContents } from './session/prepared.js';
import { Session } from './session/session.js';
import { LoadCounter } from './telemetry/load-counter.js';
import { LoadFlusher } from './telemetry/load-flusher.js';
import { type AuthMethod, authenticateClient } from './wire/authenticate.js';
import { encodeBackendKeyData, encodeReadyForQuery } from './wire/backend.js';
import { encodeErrorResponse, fieldsOfError } from './wire/error-response.js';
import { ConnectionLostError, HandshakeReader } from './wire/handshake-reader.js';
import { ProtocolError } from './wire/protocol-error.js';
import { readStartup } from './wire/startup.js';

export interface ProxyOptions {
  readonly catalog: Catalog;
  /** Shown in the catalog. */
  readonly name: string;
  /** Port 0: any free one. */
  readonly listen: { readonly host: string; readonly port: number };
  readonly auth: { readonly method: AuthMethod; readonly users: ReadonlyMap<string, ConfiguredUser> };
  /** Passwords for servers, by user, where the client's own SCRAM keys cannot be passed through. */
  readonly serverPasswords: ReadonlyMap<string, string>;
  readonly pool: {
    /** Server connections per shard and user. */
    readonly size: number;
    readonly idleTimeoutMs: number;
    readonly connectTimeoutMs: number;
    readonly queueTimeoutMs: number;
  };
  readonly limits: {
    readonly maxClients: number;
    readonly loginTimeoutMs: number;
    /** How long a statement waits for a range on the move, or for the catalog, before it fails with 57P03. */
    readonly holdTimeoutMs: number;
  };
  readonly lease: { readonly ttlMs: number };
  readonly telemetry: { readonly flushIntervalMs: number };
  readonly logger: Logger;
}

/** Open transactions are waited for so long when the proxy closes. */
const DRAIN_MS = 5000;

interface Client {
  readonly session: Session;
  /** For cancel requests. */
  readonly secret: Buffer;
}

/** The data plane: listens, logs clients in, and keeps what their sessions share. */
export class ProxyServer {
  readonly router: Router;
  readonly #options: ProxyOptions;
  readonly #server: Server;
  readonly #live: LiveTopology;
  readonly #schema: SchemaView;
  readonly #credentials: Credentials;
  readonly #counter: LoadCounter;
  readonly #flusher: LoadFlusher;
  readonly #contents = new PreparedContents();
  readonly #pools = new Map<string, Pool>();
  readonly #clients = new Map<number, Client>();
  /** Sockets before and after login. */
  readonly #sockets = new Set<Socket>();
  readonly #mockSecret: Buffer;
  #closing = false;
  #nextId = randomInt(1, 1 << 20);

  /**
   * Starts listening once the topology is loaded and the lease is taken.
   * @throws ForeshardError when the port is taken or the catalog cannot be used
   */
  static async start(options: ProxyOptions): Promise<ProxyServer> {
    const server = createServer({ pauseOnConnect: true, noDelay: true, keepAlive: true });
    // Whoever connects before everything is loaded waits.
    const early: Socket[] = [];
    const queue = (socket: Socket) => early.push(socket);
    server.on('connection', queue);
    await listen(server, options.listen);
    const listening = server.address() as { port: number };
    let live: LiveTopology | null = null;
    try {
      const clients = new Map<number, Client>();
      live = await LiveTopology.start({
        catalog: options.catalog,
        name: options.name,
        listen: `${options.listen.host}:${listening.port}`,
        leaseTtlMs: options.lease.ttlMs,
        logger: options.logger,
        inUse: (hold) => [...clients.values()].some((c) => c.session.uses((footprint) => holdCovers(hold, footprint))),
        stale: (topology) => [...clients.values()].some((c) => c.session.lease.isStale(topology)),
      });
      const started = live;
      const metadata = await SchemaView.start(started, options.logger);
      const router = new Router({ topology: () => started.current, metadata: () => metadata.current });
      const { rows } = await options.catalog.pool.query<{ cluster_id: string }>(
        'SELECT cluster_id FROM foreshard.meta',
      );
      const proxy = new ProxyServer(options, server, live, router, metadata, clients, String(rows[0]?.cluster_id));
      await proxy.#flusher.start();
      server.off('connection', queue);
      server.on('connection', (socket) => proxy.#accept(socket));
      for (const socket of early) proxy.#accept(socket);
      return proxy;
    } catch (error) {
      server.close();
      for (const socket of early) socket.destroy();
      await live?.close();
      throw error;
    }
  }

  private constructor(
    options: ProxyOptions,
    server: Server,
    live: LiveTopology,
    router: Router,
    schema: SchemaView,
    clients: Map<number, Client>,
    clusterId: string,
  ) {
    this.#options = options;
    this.#server = server;
    this.#live = live;
    this.router = router;
    this.#schema = schema;
    this.#clients = clients;
    this.#mockSecret = createHash('sha256').update(`foreshard mock ${clusterId}`).digest();
    this.#credentials = new Credentials({
      users: options.auth.users,
      serverPasswords: options.serverPasswords,
      live: () => live,
    });
    this.#counter = new LoadCounter(Date.now);
    this.#flusher = new LoadFlusher({
      catalog: options.catalog,
      live,
      counter: this.#counter,
      flushIntervalMs: options.telemetry.flushIntervalMs,
      logger: options.logger,
    });
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Lets no new client in, waits up to five seconds for open transactions, then closes everything. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    const deadline = performance.now() + DRAIN_MS;
    const bye = () => new ForeshardError('57P01', 'terminating connection because the proxy is shutting down');
    for (;;) {
      for (const { session } of [...this.#clients.values()])
        if (session.lease.transaction === null) session.close(bye());
      if (this.#clients.size === 0 || performance.now() > deadline) break;
      await new Promise((resolve) => {
        setTimeout(resolve, 20);
      });
    }
    for (const { session } of [...this.#clients.values()]) session.close(bye());
    for (const pool of this.#pools.values()) pool.close();
    await this.#flusher.close();
    await this.#live.close();
    await this.#schema.close();
    this.#credentials.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    const { loginTimeoutMs } = this.#options.limits;
    const reader = new HandshakeReader(
      socket,
      loginTimeoutMs,
      () => new ForeshardError('57014', `canceling authentication due to timeout after ${loginTimeoutMs} ms`),
    );
    this.#login(socket, reader).catch(async (error: unknown) => {
      socket.on('error', () => socket.destroy());
      await reader.release().catch(() => undefined); // says once more that the peer has gone or was too slow
      if (error instanceof ConnectionLostError || error instanceof ProtocolError) socket.destroy();
      else {
        this.#options.logger.info({ err: error, from: socket.remoteAddress }, 'login refused');
        socket.setTimeout(1000, () => socket.destroy());
        socket.end(encodeErrorResponse(fieldsOfError(error, 'FATAL')));
      }
    });
  }

  async #login(socket: Socket, reader: HandshakeReader): Promise<void> {
    const startup = await readStartup(reader);
    if (startup.kind === 'cancel') {
      // No answer either way, so that a guess learns nothing.
      this.#cancel(startup.processId, startup.secret);
      await reader.release();
      socket.on('error', () => socket.destroy());
      socket.end();
      return;
    }
    this.#admit();
    const client = await authenticateClient(reader, startup, {
      method: this.#options.auth.method,
      credentials: this.#credentials,
      mockSecret: this.#mockSecret,
    });
    const { database } = this.#live.current;
    if (client.database !== database)
      throw new ForeshardError('3D000', `database "${client.database}" does not exist`, {
        hint: `This proxy serves the database "${database}".`,
      });
    if (client.keys !== null) this.#credentials.learned(client.user, client.keys);
    const id = this.#newId();
    const session = new Session({
      id,
      user: client.user,
      socket,
      startupSettings: client.parameters,
      services: {
        live: this.#live,
        router: this.router,
        contents: this.#contents,
        load: this.#counter,
        logger: this.#options.logger,
        holdTimeoutMs: this.#options.limits.holdTimeoutMs,
        schemaChanged: () => this.#schema.changed(),
        pool: (shard) => this.#pool(shard, client.user),
      },
      onEnd: () => this.#clients.delete(id),
    });
    const secret = Buffer.alloc(4);
    secret.writeInt32BE(randomInt(1, 0x7fffffff));
    this.#clients.set(id, { session, secret });
    const gone = () => session.close();
    socket.once('close', gone);
    try {
      await session.greet();
      await reader.release();
    } catch (error) {
      this.#clients.delete(id);
      session.lease.releaseIfIdle();
      throw error;
    }
    session.write(encodeBackendKeyData(id, secret));
    session.write(encodeReadyForQuery('I'));
    session.start();
    socket.off('close', gone);
  }

  #admit(): void {
    if (this.#closing) throw new ForeshardError('57P03', 'the proxy is shutting down');
    if (this.#clients.size >= this.#options.limits.maxClients)
      throw new ForeshardError('53300', 'sorry, too many clients already', { hint: 'Raise proxy.limits.maxClients.' });
  }

  #cancel(id: number, secret: Buffer): void {
    const client = this.#clients.get(id);
    if (client === undefined || secret.length !== client.secret.length || !timingSafeEqual(secret, client.secret))
      return;
    for (const backend of client.session.cancel())
      backend
        .cancel()
        .catch((error: unknown) => {
          this.#options.logger.warn({ err: error, session: id }, 'could not pass a cancel request on');
        })
        .then(() => client.session.canceled());
  }

  #newId(): number {
    do this.#nextId = this.#nextId >= 0x7ffffffe ? 1 : this.#nextId + 1;
    while (this.#clients.has(this.#nextId));
    return this.#nextId;
  }

  #pool(shard: ShardName, user: string): Pool {
    const key = `${shard}\0${user}`;
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = new Pool(shard, this.#options.pool, () => this.#connect(shard, user));
      this.#pools.set(key, pool);
    }
    return pool;
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
      connectTimeoutMs: this.#options.pool.connectTimeoutMs,
    });
  }
}

function listen(server: Server, address: ProxyOptions['listen']): Promise<void> {
  return new Promise((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException) => reject(listenError(error, address));
    server.once('error', failed);
    server.listen(address.port, address.host, () => {
      server.off('error', failed);
      resolve();
    });
  });
}

function listenError(error: NodeJS.ErrnoException, { host, port }: ProxyOptions['listen']): ForeshardError {
  if (error.code === 'EADDRINUSE')
    return new ForeshardError('58030', `port ${port} on ${host} is taken`, {
      hint: 'Choose another with --port (0: any free one), or stop what listens there.',
      cause: error,
    });
  if (error.code === 'EACCES')
    return new ForeshardError('58030', `not allowed to listen on port ${port} of ${host}`, {
      hint: 'Choose a port above 1023 with --port.',
      cause: error,
    });
  return new ForeshardError('58030', `cannot listen on ${host}:${port}: ${error.message}`, {
    hint: 'Check proxy.listen.',
    cause: error,
  });
}
