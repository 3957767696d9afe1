import { randomUUID } from 'node:crypto';
import pg from 'pg';
import pino from 'pino';
import { afterAll, beforeAll, beforeEach } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import {
  type BranchEnd,
  type CommitPoint,
  Coordinator,
  type CoordinatorOptions,
} from '../../../proxy/transactions/coordinator.js';
import { Resolver } from '../../../proxy/transactions/resolver.js';
import { ServerError } from '../../../proxy/wire/error-response.js';
import { Catalog } from '../../../topology/catalog/catalog.js';
import { Decisions } from '../../../topology/catalog/decisions.js';
import { ProxyLeases } from '../../../topology/catalog/leases.js';
import { initCatalog } from '../../../topology/catalog/schema.js';
import type { Epoch, ShardName, Topology } from '../../../topology/topology.js';
import { Relay } from '../../chaos/relay.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

export const S1 = 's1' as ShardName;
export const S2 = 's2' as ShardName;
const HOUR_MS = 3_600_000;
const SILENT = pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2));

const SCHEMA = `
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE t (id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
CREATE ROLE app LOGIN PASSWORD 'secret';
CREATE ROLE tenant;
GRANT tenant TO app;
GRANT ALL ON ALL TABLES IN SCHEMA public TO app, tenant`;

/** A transaction on one shard, as a client's session has it. */
export class Branch implements BranchEnd {
  readonly shard: ShardName;
  readonly client: pg.Client;
  #tag = '';

  private constructor(shard: ShardName, client: pg.Client) {
    this.shard = shard;
    this.client = client;
    const { connection } = client as unknown as { connection: NodeJS.EventEmitter };
    connection.on('commandComplete', ({ text }: { text: string }) => {
      this.#tag = text;
    });
  }

  static async open(shard: ShardName, url: string): Promise<Branch> {
    const client = new pg.Client({ connectionString: url, application_name: 'branch' });
    client.on('error', () => undefined);
    await client.connect();
    await client.query('BEGIN');
    return new Branch(shard, client);
  }

  async run(text: string): Promise<string> {
    try {
      await this.client.query(text);
      return this.#tag;
    } catch (error) {
      if (!(error instanceof pg.DatabaseError)) throw error;
      throw new ServerError({
        severity: error.severity ?? '',
        sqlstate: error.code ?? '',
        message: error.message,
      });
    }
  }

  giveUp(): void {
    this.cut();
  }

  /** As a process that dies leaves it. */
  cut(): void {
    (this.client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
  }
}

/** Two shards, the second and the catalog each behind a network of its own; proxies are processes of it. */
export class Setting {
  servers!: readonly [EmbeddedCluster, EmbeddedCluster];
  toShard!: Relay;
  toCatalog!: Relay;
  /** Directly, for the test itself. */
  catalog!: Catalog;
  topology!: Topology;
  readonly #branches: Branch[] = [];
  readonly #catalogs: Catalog[] = [];

  async start(): Promise<void> {
    this.servers = await Promise.all([startTestCluster(), startTestCluster()]);
    const [a, b] = this.servers;
    this.toShard = await Relay.start(b.port);
    this.toCatalog = await Relay.start(a.port);
    await withClient(a.url('postgres'), (c) => c.query('CREATE DATABASE foreshard'));
    for (const server of this.servers) {
      await withClient(server.url('postgres'), (c) => c.query('CREATE DATABASE shop'));
      await withClient(server.url('shop'), (c) => c.query(SCHEMA));
    }
    const pool = Catalog.pool(a.url('foreshard'));
    await initCatalog(pool, 'shop');
    await pool.end();
    this.catalog = await Catalog.connect(a.url('foreshard'));
    await this.catalog.pool.query(
      `INSERT INTO foreshard.shard (name, url, home) VALUES ($1, $2, true), ($3, $4, false)`,
      [S1, this.url(S1), S2, this.url(S2)],
    );
    this.topology = await this.catalog.loadTopology();
  }

  async reset(): Promise<void> {
    this.toShard.heal();
    this.toCatalog.heal();
    for (const branch of this.#branches.splice(0)) branch.cut();
    for (const catalog of this.#catalogs.splice(0)) await catalog.close();
    for (const server of this.servers) {
      await gone(server);
      await withClient(server.url('shop'), async (c) => {
        const { rows } = await c.query<{ gid: string }>('SELECT gid FROM pg_prepared_xacts');
        for (const { gid } of rows) await c.query(`ROLLBACK PREPARED '${gid}'`);
        await c.query('TRUNCATE t, parent');
      });
    }
    await this.catalog.pool.query('TRUNCATE foreshard.proxy, foreshard.coordinator CASCADE');
  }

  async stop(): Promise<void> {
    await this.catalog?.close();
    await this.toShard?.close();
    await this.toCatalog?.close();
  }

  url(shard: ShardName, user?: string): string {
    const url = new URL(this.servers[shard === S1 ? 0 : 1].url('shop'));
    if (shard === S2) url.port = String(this.toShard.port);
    if (user !== undefined) {
      url.username = user;
      url.password = 'secret';
    }
    return url.href;
  }

  /** A transaction that has written row `id` on both shards. */
  async written(id: number, user?: string): Promise<[Branch, Branch]> {
    const branches = await Promise.all([S1, S2].map((shard) => Branch.open(shard, this.url(shard, user))));
    this.#branches.push(...branches);
    for (const { client } of branches) await client.query('INSERT INTO t VALUES ($1)', [id]);
    return branches as [Branch, Branch];
  }

  /** A process of a proxy. `via`: how it reaches the catalog. */
  async proxy(options: Partial<CoordinatorOptions> = {}, via: 'directly' | 'relay' = 'directly'): Promise<TestProxy> {
    const url = new URL(this.servers[0].url('foreshard'));
    if (via === 'relay') url.port = String(this.toCatalog.port);
    const catalog = await Catalog.connect(url.href);
    this.#catalogs.push(catalog);
    const proxy = new TestProxy(this, catalog, options);
    await proxy.register();
    return proxy;
  }

  /** Rows of `t` on each shard. */
  async rows(): Promise<number[][]> {
    return this.#onEach(async (c) =>
      (await c.query<{ id: number }>('SELECT id FROM t ORDER BY id')).rows.map((r) => r.id),
    );
  }

  /** Identifiers of what is prepared, on each shard. */
  async prepared(): Promise<string[][]> {
    return this.#onEach(async (c) =>
      (await c.query<{ gid: string }>('SELECT gid FROM pg_prepared_xacts')).rows.map((r) => r.gid),
    );
  }

  async count(table: 'coordinator' | 'decision'): Promise<number> {
    const { rows } = await this.catalog.pool.query<{ n: number }>(`SELECT count(*)::int AS n FROM foreshard.${table}`);
    return rows[0]?.n ?? -1;
  }

  /** No session is on the way to prepare anything any more. */
  async sessionsGone(): Promise<void> {
    for (const server of this.servers) await gone(server);
  }

  async #onEach<T>(ask: (client: pg.Client) => Promise<T>): Promise<T[]> {
    const answers: T[] = [];
    for (const server of this.servers) answers.push(await withClient(server.url('shop'), ask));
    return answers;
  }
}

async function gone(server: EmbeddedCluster): Promise<void> {
  await withClient(server.url('postgres'), (c) =>
    waitFor(
      async () =>
        (await c.query("SELECT FROM pg_stat_activity WHERE application_name IN ('branch', 'foreshard transactions')"))
          .rowCount === 0,
      { what: 'the sessions to go' },
    ),
  );
}

export class TestProxy {
  readonly lease = { id: randomUUID(), era: 0 };
  readonly decisions: Decisions;
  readonly resolver: Resolver;
  readonly coordinator: Coordinator;
  readonly #leases: ProxyLeases;
  readonly #setting: Setting;

  constructor(setting: Setting, catalog: Catalog, options: Partial<CoordinatorOptions>) {
    this.#setting = setting;
    this.#leases = new ProxyLeases(catalog.pool);
    this.decisions = new Decisions(catalog.pool);
    const topology = () => setting.topology;
    this.resolver = new Resolver({ decisions: this.decisions, topology, logger: SILENT });
    this.coordinator = new Coordinator({
      decisions: this.decisions,
      lease: this.lease,
      topology,
      resolver: this.resolver,
      logger: SILENT,
      prepareMs: () => 0,
      ...options,
    });
  }

  async register(): Promise<void> {
    const facts = { name: 'test', listen: 'here', ttlMs: HOUR_MS, epochAcked: 1n as Epoch, schemaHeard: 0n };
    await this.#leases.register({ id: this.lease.id, ...facts });
  }

  /** By the catalog's clock; the process does not know. */
  async endLease(): Promise<void> {
    await this.#setting.catalog.pool.query('UPDATE foreshard.proxy SET lease_until = clock_timestamp() WHERE id = $1', [
      this.lease.id,
    ]);
  }
}

/** Stops a coordinator for good at a point: its connections are gone, and it never goes on. */
export class Kill {
  readonly happened: Promise<void>;
  #happen: () => void = () => undefined;
  #dead = false;
  readonly #where: readonly [CommitPoint, ShardName | null];
  readonly #branches: () => readonly Branch[];

  constructor(where: readonly [CommitPoint, ShardName | null], branches: () => readonly Branch[]) {
    this.#where = where;
    this.#branches = branches;
    this.happened = new Promise((resolve) => {
      this.#happen = resolve;
    });
  }

  readonly at = async (point: CommitPoint, shard: ShardName | null): Promise<void> => {
    if (!this.#dead && (point !== this.#where[0] || shard !== this.#where[1])) return;
    this.#dead = true;
    for (const branch of this.#branches()) branch.cut();
    this.#happen();
    await new Promise(() => undefined);
  };
}

/** Servers for the tests of one file, emptied before each. */
export function transactionSetting(): Setting {
  const setting = new Setting();
  beforeAll(() => setting.start());
  beforeEach(() => setting.reset());
  afterAll(() => setting.stop());
  return setting;
}
