import pg from 'pg';
import pino, { type Logger } from 'pino';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import type { AuthOptions } from '../../proxy/auth/authentication.js';
import { sendCancelRequest } from '../../proxy/backend/cancel-request.js';
import type { TlsOptions } from '../../proxy/listener/tls-server.js';
import { type ProxyOptions, ProxyServer } from '../../proxy/proxy-server.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { withClient } from './client.js';
import { startTestCluster } from './cluster.js';
import { waitFor } from './wait-for.js';

export const SHOP_SCHEMA = `
CREATE TABLE tenants (tenant_id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (tenant_id bigint NOT NULL REFERENCES tenants, id bigint NOT NULL, note text, PRIMARY KEY (tenant_id, id));
CREATE TABLE items (tenant_id bigint NOT NULL, order_id bigint NOT NULL, n int NOT NULL, qty int,
  PRIMARY KEY (tenant_id, order_id, n), FOREIGN KEY (tenant_id, order_id) REFERENCES orders);
CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL);
CREATE TABLE settings (name text PRIMARY KEY, value text);
`;

export interface ShardedOptions {
  /** The second shard owns tenants from here on; null: the first shard owns all. */
  readonly splitAt: number | null;
  readonly holdTimeoutMs?: number;
  readonly poolSize?: number;
  readonly leaseTtlMs?: number;
  readonly tls?: TlsOptions;
  /** Over the defaults. */
  readonly listen?: Partial<ProxyOptions['listen']>;
  readonly limits?: Partial<ProxyOptions['limits']>;
  /** Default: SCRAM with the roles of the home shard. */
  readonly auth?: AuthOptions;
  readonly serverPasswords?: ReadonlyMap<string, string>;
  /** Default: silent, unless FORESHARD_TEST_LOG says otherwise. */
  readonly logger?: Logger;
  /** Who may log in to the admin database. */
  readonly admin?: { readonly users: readonly string[]; readonly statsUsers: readonly string[] };
  /** Directory of the servers' programs. Default: those from npm. */
  readonly binDir?: string;
  readonly pool?: Partial<ProxyOptions['pool']>;
}

/** Two shards with a small multi-tenant schema, a catalog on the first, and a proxy. The user is `app`, password `secret`. */
export class Sharded {
  readonly clusters: readonly [EmbeddedCluster, EmbeddedCluster];
  readonly catalog: Catalog;
  proxy: ProxyServer;
  readonly options: ShardedOptions;
  readonly #clients = new Set<pg.Client>();

  private constructor(
    clusters: readonly [EmbeddedCluster, EmbeddedCluster],
    catalog: Catalog,
    proxy: ProxyServer,
    options: ShardedOptions,
  ) {
    this.clusters = clusters;
    this.catalog = catalog;
    this.proxy = proxy;
    this.options = options;
  }

  static async start(options: ShardedOptions): Promise<Sharded> {
    const server = options.binDir === undefined ? {} : { binDir: options.binDir };
    const [a, b] = await Promise.all([startTestCluster(server), startTestCluster(server)]);
    const clusters = [a, b] as const;
    await withClient(a.url('postgres'), async (c) => {
      await c.query('CREATE DATABASE foreshard');
    });
    let verifier = '';
    for (const cluster of clusters) {
      await withClient(cluster.url('postgres'), async (c) => {
        await c.query('CREATE DATABASE shop');
        if (verifier === '') {
          await c.query(`CREATE ROLE app LOGIN PASSWORD 'secret'`);
          const { rows } = await c.query<{ v: string }>(`SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'app'`);
          verifier = (rows[0] as { v: string }).v;
        } else await c.query(`CREATE ROLE app LOGIN PASSWORD '${verifier}'`);
      });
      await withClient(cluster.url('shop'), async (c) => {
        await c.query(SHOP_SCHEMA);
        await c.query(`GRANT ALL ON SCHEMA public TO app; GRANT ALL ON ALL TABLES IN SCHEMA public TO app`);
        if (cluster === a || options.splitAt !== null)
          await c.query(`INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland')`);
      });
    }
    const url = a.url('foreshard');
    const pool = new pg.Pool({ connectionString: url });
    await initCatalog(pool, 'shop');
    await pool.end();
    const catalog = await Catalog.connect(url);
    const registry = new Registry(catalog, 'test');
    await registry.addShard({ name: 's1', url: a.url('shop') });
    await registry.addShard({ name: 's2', url: b.url('shop') });
    await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
    for (const table of ['tenants', 'orders', 'items'])
      await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['tenant_id'] });
    await registry.addReferenceTable({ schema: 'public', table: 'countries' });
    if (options.splitAt !== null) await split(catalog, options.splitAt);
    const proxy = await startProxy(catalog, options);
    return new Sharded(clusters, catalog, proxy, options);
  }

  get url(): string {
    return `postgres://app:secret@127.0.0.1:${this.proxy.port}/shop`;
  }

  /** A client of the proxy, closed with everything else. */
  async connect(config: pg.ClientConfig = {}): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: this.url, ...config });
    client.on('error', () => this.#clients.delete(client));
    await client.connect();
    this.#clients.add(client);
    return client;
  }

  /** Sends a cancel request for `client`, with its own key or, to be ignored, another. */
  async cancel(client: pg.Client, key: 'its own' | 'wrong' = 'its own'): Promise<void> {
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    const secret = Buffer.alloc(4);
    secret.writeInt32BE(key === 'wrong' ? secretKey ^ 1 : secretKey);
    await sendCancelRequest(
      { shard: 'proxy', host: '127.0.0.1', port: this.proxy.port },
      { processId: processID, secret },
    );
  }

  /** Asks a shard directly, as its superuser. */
  async onShard<T extends pg.QueryResultRow>(shard: 0 | 1, sql: string, values: unknown[] = []): Promise<T[]> {
    return withClient(this.clusters[shard].url('shop'), async (c) => (await c.query<T>(sql, values)).rows);
  }

  /** Resolves when the proxy serves the newest epoch. */
  async reloaded(): Promise<void> {
    await waitFor(
      async () =>
        (
          await this.catalog.pool.query(
            'SELECT FROM foreshard.meta m JOIN foreshard.proxy p ON p.epoch_acked >= m.epoch',
          )
        ).rowCount === 1,
      { what: 'the proxy to serve the newest epoch' },
    );
  }

  /** The second shard owns tenants from `at` on, from this moment. Several: one after the other, which nobody sees but the last. */
  async flipTo(...at: readonly number[]): Promise<void> {
    await split(this.catalog, ...at);
  }

  /** Whether safe reads share server connections from now on. */
  async useLanes(lanes: 'auto' | 'single' | 'off'): Promise<void> {
    await this.proxy.reload({ pool: { ...poolOf(this.options), lanes } });
  }

  async stop(): Promise<void> {
    for (const client of this.#clients) await client.end().catch(() => undefined);
    await this.proxy.close();
    await this.catalog.close();
  }
}

export function startProxy(catalog: Catalog, options: ShardedOptions): Promise<ProxyServer> {
  return ProxyServer.start({
    catalog,
    name: 'test',
    listen: { host: '127.0.0.1', port: 0, ...options.listen },
    tls: options.tls,
    auth: options.auth ?? { method: 'scram-sha-256', users: new Map() },
    serverPasswords: options.serverPasswords ?? new Map(),
    admin: options.admin ?? {},
    pool: poolOf(options),
    limits: {
      maxClients: 200,
      loginTimeoutMs: 10_000,
      holdTimeoutMs: options.holdTimeoutMs ?? 10_000,
      ...options.limits,
    },
    lease: { ttlMs: options.leaseTtlMs ?? 5000 },
    telemetry: { flushIntervalMs: 60_000 },
    logger: options.logger ?? pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2)),
  });
}

function poolOf(options: ShardedOptions): ProxyOptions['pool'] {
  return {
    size: options.poolSize ?? 10,
    idleTimeoutMs: 60_000,
    connectTimeoutMs: 5000,
    queueTimeoutMs: 10_000,
    ...options.pool,
  };
}

async function split(catalog: Catalog, ...points: readonly number[]): Promise<void> {
  const client = await catalog.pool.connect();
  try {
    await client.query('BEGIN');
    for (const at of points) {
      await client.query('DELETE FROM foreshard.range');
      await client.query(
        `INSERT INTO foreshard.range (keyspace, lo, hi, shard)
       VALUES ('main', NULL, jsonb_build_array($1::text), 's1'), ('main', jsonb_build_array($1::text), NULL, 's2')`,
        [String(at)],
      );
      await client.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    }
    await client.query(
      `INSERT INTO foreshard.reference_copy (schema_name, table_name, shard) VALUES ('public', 'countries', 's2') ON CONFLICT DO NOTHING`,
    );
    await client.query('COMMIT');
  } finally {
    client.release();
  }
}
