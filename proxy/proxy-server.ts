import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import type { Catalog } from '../topology/catalog/catalog.js';
import { audit } from '../topology/catalog/change.js';
import { Decisions } from '../topology/catalog/decisions.js';
import { ForeshardError } from '../topology/errors.js';
import { AdminServer, type AdminUsers } from './admin/admin-server.js';
import { Administration } from './admin/administration.js';
import { AdminConsole } from './admin/console.js';
import { type ConfigEntry, type Limits, ServerIds } from './admin/process-state.js';
import type { AdminAnswer, AdminRequest, Holds, ProcessControl, ShutdownMode, Siblings } from './admin/siblings.js';
import { Averages, totalsOf } from './admin/stats-views.js';
import { Authentication, type AuthOptions } from './auth/authentication.js';
import type { LoginEvent } from './auth/failed-logins.js';
import { Notifications } from './backend/notifications.js';
import { withDefaults } from './backend/pool-options.js';
import { type CancelKey, Clients, slotOf } from './clients.js';
import { Drain } from './drain.js';
import { canReadIntoMemory } from './listener/client-socket.js';
import { Listener, type ListenOptions } from './listener/listener.js';
import type { ProxyProtocolMode } from './listener/proxy-protocol.js';
import { StartupGate, type StartupLimits } from './listener/startup-gate.js';
import { type TlsOptions, TlsServer } from './listener/tls-server.js';
import { LiveTopology } from './live-topology.js';
import { Login, tooManyClients } from './login.js';
import { Pools, type PoolsOptions } from './pools.js';
import { Replicas } from './replicas.js';
import { Replication } from './replication.js';
import { Router } from './router/router.js';
import { TextReader } from './router/text-reader.js';
import { SchemaView } from './schema-view.js';
import { Activity } from './session/activity.js';
import type { SessionServices } from './session/client-session.js';
import { MessageBudget } from './session/message-budget.js';
import { PreparedContents } from './session/prepared.js';
import { type SessionTimeouts, TimeoutSweep } from './session/time-outs.js';
import { LoadCounter, type LoadRecord } from './telemetry/load-counter.js';
import { LoadFlusher } from './telemetry/load-flusher.js';
import { PinCounts } from './telemetry/pin-counts.js';
import { TemplateStats } from './telemetry/template-stats.js';
import { Coordinator } from './transactions/coordinator.js';
import { DeadlockDetector } from './transactions/deadlock-detector.js';
import { Resolver } from './transactions/resolver.js';

export interface ProxyOptions {
  readonly catalog: Catalog;
  /** Shown in the catalog. */
  readonly name: string;
  readonly listen: ListenOptions & {
    /** Whether load balancers in front say whose connections they pass on. Default: off. */
    readonly proxyProtocol?: ProxyProtocolMode;
    /** Addresses and networks of these. */
    readonly trustedProxies?: readonly string[];
  };
  /** TLS towards clients; not set: none. */
  readonly tls?: TlsOptions | undefined;
  /** Another process listens there, and gives this one its sockets by `accept`. Default: false. */
  readonly handedOver?: boolean;
  /** Of those that share the port: from it come the keys of TLS session tickets. Default: random. */
  readonly ticketSecret?: Buffer;
  /** This process among those that share the port, 0 to 127. Default: 0. */
  readonly slot?: number;
  readonly auth: AuthOptions;
  /** Passwords for servers, by user, where the client's own SCRAM keys cannot be passed through. */
  readonly serverPasswords: ReadonlyMap<string, string>;
  readonly pool: PoolsOptions;
  readonly limits: {
    readonly maxClients: number;
    /** Connections at most that have not logged in yet. Default: 500. */
    readonly maxStartups?: number;
    /** Start-ups begun each second; 0, the default: no limit. */
    readonly startupsPerSecond?: number;
    /** How long a connection waits until it may start up. Default: 10,000. */
    readonly startupQueueMs?: number;
    readonly loginTimeoutMs: number;
    /** How long a statement waits for a range on the move, or for the catalog, before it fails with 57P03. */
    readonly holdTimeoutMs: number;
    /** What messages larger than a megabyte may take of memory, all clients together. Default: 1 GiB. */
    readonly largeMessageBytes?: number;
    /** What one query may bring together of the rows of several shards, in bytes; 0: there are no such queries. Default: 256 MiB. */
    readonly gatherBytes?: number;
    /** How long a shard may take to prepare its part of a transaction on several shards, ms; 0: as long as it likes. Default: 60,000. */
    readonly prepareTimeoutMs?: number;
  } & SessionTimeouts;
  readonly lease: { readonly ttlMs: number };
  /** On how many shards a transaction may do something. Default: several. */
  readonly transactions?: 'several' | 'one';
  readonly telemetry: { readonly flushIntervalMs: number };
  readonly logger: Logger;
  /** Who may log in to the admin database. Default: nobody. */
  readonly admin?: AdminUsers;
  /** For SHOW CONFIG: without secrets. Default: nothing is shown. */
  readonly config?: readonly ConfigEntry[];
  /** The other processes on this port. Default: none. */
  readonly siblings?: Siblings;
  /** What an administrator may have done to the process. Default: nothing, RELOAD and SHUTDOWN are refused. */
  readonly control?: ProcessControl;
}

/** The largest message that PostgreSQL takes. */
const LARGE_MESSAGES = 1_073_741_824;
const GATHER_BYTES = 268_435_456;
const PREPARE_MS = 60_000;

/** What `reload` changes; all else of the options needs a restart. */
export type ReloadableOptions = Pick<
  ProxyOptions,
  'transactions' | 'auth' | 'serverPasswords' | 'pool' | 'limits' | 'admin' | 'config'
>;

/** The parts of a running proxy, as they come up. */
interface Parts {
  readonly listener: Listener;
  readonly tls: TlsServer | null;
  readonly intoMemory: boolean;
  readonly live: LiveTopology;
  readonly router: Router;
  readonly schema: SchemaView;
  readonly clients: Clients;
  readonly authentication: Authentication;
}

/** The data plane: listens, logs clients in, and keeps what their sessions share. */
export class ProxyServer {
  readonly router: Router;
  readonly clients: Clients;
  readonly pools: Pools;
  #options: ProxyOptions;
  readonly #listener: Listener;
  readonly #tls: TlsServer | null;
  readonly #gate: StartupGate;
  readonly #live: LiveTopology;
  readonly #schema: SchemaView;
  readonly #authentication: Authentication;
  readonly #flusher: LoadFlusher;
  readonly #notifications: Notifications;
  /** How often sessions were pinned, and why. */
  readonly pins = new PinCounts();
  readonly #currvalUsers = new Map<string, { value: boolean }>();
  /** By user: what sessions that begin now are given. */
  readonly #services = new Map<string, SessionServices>();
  readonly #login: Login;
  readonly #replication: Replication;
  readonly #replicas: Replicas;
  readonly #resolver: Resolver;
  readonly #coordinator: Coordinator;
  readonly #deadlocks: DeadlockDetector;
  readonly #admin: AdminServer;
  readonly #administration: Administration;
  readonly #averages: Averages;
  readonly #drain: Drain;
  readonly #timeouts: TimeoutSweep;
  readonly largeMessages: MessageBudget;
  #closed: Promise<void> | null = null;

  /**
   * Starts listening once the topology is loaded and the lease is taken.
   * @throws ForeshardError when the port is taken or the catalog cannot be used
   */
  static async start(options: ProxyOptions): Promise<ProxyServer> {
    const tls = options.tls === undefined ? null : new TlsServer(options.tls, options.logger, options.ticketSecret);
    let live: LiveTopology | null = null;
    let schema: SchemaView | null = null;
    // First: with a mistake in the rules nobody is to connect.
    const authentication = await Authentication.start(options.auth, {
      catalog: options.catalog,
      logger: options.logger,
      serverPasswords: options.serverPasswords,
      tellLogin: (event) => options.siblings?.tellLogin(event),
      home: () => live?.current.shards.get(live.current.home) ?? null,
    });
    const listener = options.handedOver ? Listener.handedOver(options.listen) : await Listener.start(options.listen);
    try {
      const clients = new Clients(options.slot ?? 0);
      live = await LiveTopology.start({
        catalog: options.catalog,
        name: options.name,
        listen: listener.addresses[0] ?? '',
        leaseTtlMs: options.lease.ttlMs,
        answerTimeoutMs: options.limits.holdTimeoutMs,
        logger: options.logger,
        uses: (covers) => [...clients].some((c) => c.session.uses(covers)),
        end: (covers) => {
          for (const { session } of clients) session.endTransaction(covers);
        },
        schemaReady: () => schema?.ready ?? true,
        schemaHeard: () => schema?.heard ?? null,
        stale: (topology) => [...clients].some((c) => c.session.isStale(topology)),
      });
      const started = live;
      const view = await SchemaView.start({
        live,
        catalog: options.catalog,
        leaseTtlMs: options.lease.ttlMs,
        holdTimeoutMs: options.limits.holdTimeoutMs,
        logger: options.logger,
      });
      schema = view;
      const router = new Router({
        topology: () => started.current,
        metadata: () => view.current,
        reader: new TextReader(),
      });
      const intoMemory = await canReadIntoMemory();
      if (!intoMemory)
        options.logger.info(
          { node: process.version },
          'each read of a client is allocated by itself: the way around it does not work with this version of Node',
        );
      const proxy = new ProxyServer(options, {
        listener,
        tls,
        intoMemory,
        live,
        router,
        schema: view,
        clients,
        authentication,
      });
      await proxy.#flusher.start();
      proxy.#resolver.start();
      listener.open((accepted) => proxy.#login.accept(accepted));
      return proxy;
    } catch (error) {
      void listener.stop();
      listener.destroyAll();
      await live?.close();
      await schema?.close();
      await authentication.close();
      throw error;
    }
  }

  private constructor(options: ProxyOptions, parts: Parts) {
    const { live, router, schema, clients } = parts;
    const { logger, limits } = options;
    this.#options = options;
    this.#listener = parts.listener;
    this.#tls = parts.tls;
    this.#gate = new StartupGate(startupLimits(limits));
    this.#live = live;
    this.router = router;
    this.#schema = schema;
    this.clients = clients;
    this.#drain = new Drain({
      sessions: () => [...[...clients].map((client) => client.session), ...this.#replication.streams],
      // An administrator who waits for the end is not waited for.
      connections: () => parts.listener.size - this.#admin.sessions.size,
    });
    this.largeMessages = new MessageBudget(limits.largeMessageBytes ?? LARGE_MESSAGES);
    this.#timeouts = new TimeoutSweep(function* () {
      for (const { session } of clients) yield session;
    }, limits);
    this.#authentication = parts.authentication;
    this.pools = new Pools(options.pool, live, parts.authentication.secrets, logger);
    this.#replicas = new Replicas(logger);
    this.#replicas.apply(live.current);
    live.onApplied(() => this.#replicas.apply(live.current));
    const decisions = new Decisions(options.catalog.pool);
    const topology = () => live.current;
    const prepareMs = () => this.#options.limits.prepareTimeoutMs ?? PREPARE_MS;
    this.#resolver = new Resolver({ decisions, topology, logger });
    this.#coordinator = new Coordinator({
      decisions,
      lease: live,
      topology,
      resolver: this.#resolver,
      logger,
      prepareMs,
    });
    this.#deadlocks = new DeadlockDetector({ shards: () => live.current.shards.values(), logger });
    this.#notifications = new Notifications({
      shards: () => live.current.shards.keys(),
      connect: (shard, parameters) => this.pools.connectOwn(shard, parameters),
      logger,
    });
    live.onNewEpoch((before, now) => {
      this.#notifications.topologyChanged();
      if (live.mayServe) return;
      for (const { session } of clients) session.overtaken(before, now);
    });
    const counter = new LoadCounter(Date.now);
    this.#flusher = new LoadFlusher({
      catalog: options.catalog,
      live,
      counter,
      flushIntervalMs: options.telemetry.flushIntervalMs,
      logger,
    });
    const templates = new TemplateStats();
    const load = {
      record: (record: LoadRecord) => {
        counter.record(record);
        templates.record(record);
      },
    };
    this.#admin = new AdminServer({
      clients,
      users: () => this.#options.admin ?? {},
      logger,
    });
    const gone = new Activity();
    this.#averages = new Averages(() => totalsOf({ pools: this.pools, clients, gone }));
    this.#administration = new Administration({
      slot: options.slot ?? 0,
      clients,
      consoles: this.#admin.sessions,
      streams: () => this.#replication.streams,
      pools: this.pools,
      live,
      replicas: this.#replicas,
      router,
      catalog: options.catalog,
      templates,
      loggingIn: () =>
        parts.listener.size - clients.size - this.#admin.sessions.size - this.#replication.streams.length,
      limits: () => adminLimits(this.#options),
      config: () => this.#options.config ?? [],
      gone,
      pins: this.pins.all,
      ids: new ServerIds(options.slot ?? 0),
      averages: () => this.#averages.current,
      held: (holds) => options.siblings?.remember(holds),
    });
    this.#admin.serve(
      new AdminConsole({
        administration: this.#administration,
        siblings: options.siblings ?? null,
        control: options.control ?? null,
        logger,
        audit: (entry) => audit(options.catalog.pool, entry),
      }),
    );
    const contents = new PreparedContents();
    this.#replication = new Replication({
      live,
      pools: this.pools,
      clients,
      queueTimeoutMs: () => withDefaults(this.#options.pool).queueTimeoutMs,
      logger,
    });
    this.#login = new Login({
      clients,
      authentication: parts.authentication,
      loginTimeoutMs: limits.loginTimeoutMs,
      logger,
      tls: parts.tls,
      intoMemory: parts.intoMemory,
      proxyProtocol: {
        mode: options.listen.proxyProtocol ?? 'off',
        trustedProxies: options.listen.trustedProxies ?? [],
      },
      gate: this.#gate,
      admin: this.#admin,
      replication: this.#replication,
      admit: () => this.#admit(),
      database: () => live.current.database,
      cancel: (key) => this.cancel(key),
      ended: (session) => {
        if (clients.delete(session.id)) gone.add(session.activity);
      },
      services: (user) => {
        let services = this.#services.get(user);
        if (services === undefined) {
          services = {
            live,
            router,
            replicas: this.#replicas,
            contents,
            load,
            logger,
            holdTimeoutMs: this.#options.limits.holdTimeoutMs,
            largeMessages: this.largeMessages,
            gatherBytes: this.#options.limits.gatherBytes ?? GATHER_BYTES,
            schema,
            noteTimeout: (ms) => this.#timeouts.note(ms),
            pool: (shard) => this.pools.get(shard, user),
            lanes: (shard) => this.pools.lanesOf(this.pools.get(shard, user)),
            notifications: this.#notifications,
            pins: this.pins,
            spanning:
              this.#options.transactions === 'one'
                ? null
                : { coordinator: this.#coordinator, deadlocks: this.#deadlocks, prepareMs },
            asksSequences: this.#asksSequences(user),
          };
          this.#services.set(user, services);
        }
        return services;
      },
    });
  }

  #asksSequences(user: string): { value: boolean } {
    let asks = this.#currvalUsers.get(user);
    if (asks === undefined) {
      asks = { value: false };
      this.#currvalUsers.set(user, asks);
    }
    return asks;
  }

  get port(): number {
    return this.#listener.port;
  }

  /** Where it listens: `address:port`, and the path of the Unix socket. */
  get addresses(): string[] {
    return this.#listener.addresses;
  }

  /** A client's socket that another process has accepted; see `ProxyOptions.handedOver`. */
  accept(socket: Socket): void {
    this.#listener.take(socket);
  }

  /**
   * New work goes by these options (those that are not given stay), and by certificates, keys and other files as they are now; what
   * is under way ends as it began.
   * @throws what is wrong with one of the files; then all stays as it was
   */
  async reload(changed: Partial<ReloadableOptions> = {}): Promise<void> {
    const options = { ...this.#options, ...changed };
    const useCertificates = this.#tls?.prepareReload();
    await this.#authentication.reload(options.auth, options.serverPasswords);
    useCertificates?.();
    this.#options = options;
    this.#services.clear();
    this.pools.reload(options.pool);
    this.#timeouts.reload(options.limits);
    this.largeMessages.reload(options.limits.largeMessageBytes ?? LARGE_MESSAGES);
    this.#login.reload({ loginTimeoutMs: options.limits.loginTimeoutMs });
    this.#gate.reload(startupLimits(options.limits));
    // Passwords of our own user on the shards come with the topology.
    void this.#live.reload();
  }

  /**
   * Lets no new client in, lets those that are there go as `mode` says, then closes everything. May be called again with
   * another mode. @param patienceMs how long `wait_for_clients` waits before it goes on as `wait_for_servers`; 0: for ever
   */
  close(mode: ShutdownMode = 'now', patienceMs = 0): Promise<void> {
    this.#drain.urge(mode, patienceMs);
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Resolves when it is closed; closes it when nobody has begun to. */
  get closed(): Promise<void> {
    return this.#closed ?? this.close();
  }

  async #close(): Promise<void> {
    const closed = this.#listener.stop();
    await this.#drain.finished();
    this.#gate.close();
    this.#timeouts.close();
    this.#notifications.close();
    this.#replicas.close();
    this.#averages.close();
    this.#admin.close();
    this.pools.close();
    this.router.close();
    // Before the lease is given back: from then on others look after what is left.
    await this.#coordinator.close();
    await this.#deadlocks.close();
    await this.#flusher.close();
    await this.#live.close();
    await this.#schema.close();
    await this.#authentication.close();
    this.#listener.destroyAll();
    await closed;
  }

  /** Holds what another process held: PAUSE, KILL and DISABLE outlast the one that they were said to. */
  hold(holds: Holds): void {
    this.pools.hold(holds);
  }

  /** How a login went in another process on the same port. */
  hearLogin(event: LoginEvent): void {
    this.#authentication.hearLogin(event);
  }

  /** A request of another process on the same port, about this one alone. Never rejects. */
  answer(request: AdminRequest): Promise<AdminAnswer> {
    return this.#administration.answer(request);
  }

  /** A cancel request: carried out when the key is a client's own, here or in another process on this port. */
  cancel(key: CancelKey): void {
    const { siblings, slot = 0 } = this.#options;
    if (siblings !== undefined && slotOf(key.processId) !== slot) {
      siblings.cancel(slotOf(key.processId), key);
      return;
    }
    if (this.#admin.cancel(key) || this.#replication.cancel(key)) return;
    const client = this.clients.find(key);
    if (client === null) return;
    for (const backend of client.session.cancel())
      backend
        .cancel()
        .catch((error: unknown) => {
          this.#options.logger.warn({ err: error, session: key.processId }, 'could not pass a cancel request on');
        })
        .then(() => client.session.canceled());
  }

  #admit(): void {
    // Who came before the drain began is one of those that are waited for.
    if (this.#drain.mode !== null && this.#drain.mode !== 'wait_for_clients')
      throw new ForeshardError('57P03', 'the proxy is shutting down');
    if (this.pools.disabled)
      throw new ForeshardError(
        '55000',
        `database "${this.#live.current.database}" is not currently accepting connections`,
        {
          hint: 'An administrator has disabled it; ENABLE lets clients in again.',
        },
      );
    if (this.clients.size + this.#replication.streams.length >= this.#options.limits.maxClients)
      throw tooManyClients('Raise proxy.limits.maxClients.');
  }
}

function startupLimits(limits: ProxyOptions['limits']): StartupLimits {
  return {
    maxStartups: limits.maxStartups ?? 500,
    startupsPerSecond: limits.startupsPerSecond ?? 0,
    startupQueueMs: limits.startupQueueMs ?? 10_000,
    maxQueued: limits.maxClients,
  };
}

function adminLimits({ limits, pool }: ProxyOptions): Limits {
  const { size, maxPerShard, lifetimeMs } = withDefaults(pool);
  return { maxClients: limits.maxClients, poolSize: size, maxPerShard, serverLifetimeMs: lifetimeMs };
}
