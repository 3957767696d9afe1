import pg from 'pg';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { withClient } from './client.js';
import { startTestCluster } from './cluster.js';
import { startProxy } from './sharded.js';
import { waitFor } from './wait-for.js';

/** The tables of the shop that are sharded by tenant_id once they are declared. */
const SHARDED_TABLES = ['tenants', 'orders', 'items'];
/** On three shards: tenants below the first are on the first, from there on the second, from the second on the third. */
const BOUNDS = [100, 200];

export const PLACES = ['PostgreSQL itself', 'one shard', 'three shards'] as const;

/** Somewhere a client can connect to. The same program must do the same at each of them. */
export interface Place {
  readonly name: (typeof PLACES)[number];
  /** What the application connects with. */
  readonly url: string;
  /** The databases that hold its rows, as the application's user, without the proxy. */
  readonly servers: readonly string[];
  /** Rows are on several shards, so that DDL and statements without a key may be refused. */
  readonly several: boolean;
}

interface Keyspace {
  readonly catalog: Catalog;
  readonly proxy: ProxyServer;
  readonly databases: readonly string[];
}

export interface DriverSettingOptions {
  /** Server connections of each of the proxies' pools. */
  readonly poolSize?: number;
}

/**
 * One PostgreSQL server with a database that clients reach directly, a keyspace on one shard and a keyspace on three (four
 * more databases), each with its catalog and its proxy. Tables are made by the test, in its driver's way: see `migrate`.
 */
export class DriverSetting {
  readonly #port: number;
  readonly #keyspaces: Readonly<Record<'one shard' | 'three shards', Keyspace>>;
  readonly #superuser: (database: string) => string;

  private constructor(port: number, superuser: (database: string) => string, one: Keyspace, three: Keyspace) {
    this.#port = port;
    this.#superuser = superuser;
    this.#keyspaces = { 'one shard': one, 'three shards': three };
  }

  static async start(options: DriverSettingOptions = {}): Promise<DriverSetting> {
    const cluster = await startTestCluster();
    const url = (database: string) => cluster.url(database);
    const one = ['shop_one'];
    const three = ['shop_three', 'shop_three_b', 'shop_three_c'];
    await withClient(url('postgres'), async (client) => {
      await client.query(`CREATE ROLE app LOGIN PASSWORD 'secret'`);
      for (const database of ['catalog_one', 'catalog_three']) await client.query(`CREATE DATABASE ${database}`);
      for (const database of ['shop', ...one, ...three]) await client.query(`CREATE DATABASE ${database} OWNER app`);
    });
    return new DriverSetting(
      cluster.port,
      url,
      await startKeyspace(url, 'catalog_one', one, options),
      await startKeyspace(url, 'catalog_three', three, options),
    );
  }

  place(name: Place['name']): Place {
    const direct = (database: string) => `postgres://app:secret@127.0.0.1:${this.#port}/${database}`;
    if (name === 'PostgreSQL itself') return { name, url: direct('shop'), servers: [direct('shop')], several: false };
    const { proxy, databases } = this.#keyspaces[name];
    return {
      name,
      url: `postgres://app:secret@127.0.0.1:${proxy.port}/${databases[0]}`,
      servers: databases.map(direct),
      several: name === 'three shards',
    };
  }

  /**
   * Makes the tables, `migrate` being the driver's own way to: through the proxy where that is possible, and on each server
   * directly on three shards, where DDL through the proxy is refused. Then declares them: sharded by tenant_id, and, on three
   * shards, spread over them; a table `countries` is a reference table.
   */
  async migrate(name: Place['name'], migrate: (url: string) => Promise<void>): Promise<void> {
    const place = this.place(name);
    for (const url of place.several ? place.servers : [place.url]) await migrate(url);
    if (name !== 'PostgreSQL itself') await this.#declare(this.#keyspaces[name], place.several);
  }

  /** Server connections that the proxy of a place holds to its first shard, by who is asked: the server. */
  async serverConnections(name: 'one shard' | 'three shards'): Promise<number> {
    const database = this.#keyspaces[name].databases[0] as string;
    const [row] = await this.asSuperuser<{ n: number }>(
      'postgres',
      `SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = $1 AND usename = 'app'`,
      [database],
    );
    return row?.n ?? 0;
  }

  /** Asks the server as its superuser. */
  async asSuperuser<T extends pg.QueryResultRow>(
    database: string,
    sql: string,
    values: unknown[] = [],
  ): Promise<readonly T[]> {
    return withClient(this.#superuser(database), async (client) => (await client.query<T>(sql, values)).rows);
  }

  async #declare(keyspace: Keyspace, several: boolean): Promise<void> {
    const { catalog, databases } = keyspace;
    const registry = new Registry(catalog, 'test');
    const { rows } = await withClient(this.#superuser(databases[0] as string), (client) =>
      client.query<{ name: string }>(
        `SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace`,
      ),
    );
    const there = new Set(rows.map((r) => r.name));
    for (const table of SHARDED_TABLES.filter((t) => there.has(t)))
      await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['tenant_id'] });
    if (there.has('countries')) await registry.addReferenceTable({ schema: 'public', table: 'countries' });
    if (several) await spread(catalog, there.has('countries'));
    await waitFor(
      async () =>
        (await catalog.pool.query('SELECT FROM foreshard.meta m JOIN foreshard.proxy p ON p.epoch_acked >= m.epoch'))
          .rowCount === 1,
      { what: 'the proxy to serve the newest epoch' },
    );
  }

  async stop(): Promise<void> {
    for (const { proxy, catalog } of Object.values(this.#keyspaces)) {
      await proxy.close();
      await catalog.close();
    }
  }
}

async function startKeyspace(
  url: (database: string) => string,
  catalogDatabase: string,
  databases: readonly string[],
  options: DriverSettingOptions,
): Promise<Keyspace> {
  const pool = new pg.Pool({ connectionString: url(catalogDatabase) });
  await initCatalog(pool, databases[0] as string);
  await pool.end();
  const catalog = await Catalog.connect(url(catalogDatabase));
  const registry = new Registry(catalog, 'test');
  for (const [i, database] of databases.entries()) await registry.addShard({ name: `s${i + 1}`, url: url(database) });
  await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
  const proxy = await startProxy(catalog, { splitAt: null, ...options });
  return { catalog, proxy, databases };
}

/** Gives each shard its range of tenants, and a copy of the reference table, which the test has made everywhere. */
async function spread(catalog: Catalog, reference: boolean): Promise<void> {
  const client = await catalog.pool.connect();
  try {
    await client.query('BEGIN');
    await client.query('DELETE FROM foreshard.range');
    await client.query(
      `INSERT INTO foreshard.range (keyspace, lo, hi, shard)
       VALUES ('main', NULL, jsonb_build_array($1::text), 's1'),
              ('main', jsonb_build_array($1::text), jsonb_build_array($2::text), 's2'),
              ('main', jsonb_build_array($2::text), NULL, 's3')`,
      BOUNDS.map(String),
    );
    if (reference)
      await client.query(
        `INSERT INTO foreshard.reference_copy (schema_name, table_name, shard)
         VALUES ('public', 'countries', 's2'), ('public', 'countries', 's3')`,
      );
    await client.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    await client.query('COMMIT');
  } finally {
    client.release();
  }
}
