import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { loadSql } from '../../sql/load.js';
import { ANNOUNCE, ANNOUNCE_LATER } from '../../topology/catalog/announce.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { LoginUsers } from '../../topology/catalog/login-users.js';
import { currentSchemaVersion, initCatalog } from '../../topology/catalog/schema.js';
import { CatalogUnavailableError } from '../../topology/errors.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';

let cluster: EmbeddedCluster;
let admin: pg.Client;

beforeAll(async () => {
  cluster = await startTestCluster();
  admin = new pg.Client({ connectionString: cluster.url() });
  await admin.connect();
});

afterAll(async () => {
  await admin?.end();
});

/** An empty database, and its URL. */
async function newDatabase(): Promise<string> {
  const name = `catalog_${randomUUID().slice(0, 8)}`;
  await admin.query(`CREATE DATABASE ${name}`);
  return cluster.url(name);
}

async function newCatalog(): Promise<Catalog> {
  const url = await newDatabase();
  const pool = Catalog.pool(url);
  await initCatalog(pool, 'shop');
  await pool.end();
  return Catalog.connect(url);
}

it('outlives a connection that dies while somebody has it', async () => {
  const pool = Catalog.pool(await newDatabase());
  const client = await pool.connect();
  const { rows } = await client.query('SELECT pg_backend_pid() AS pid');
  const ended = new Promise((resolve) => client.once('end', resolve));
  await admin.query('SELECT pg_terminate_backend($1)', [rows[0].pid]);
  await ended;
  await expect(client.query('SELECT 1')).rejects.toThrow();
  client.release(true);
  expect((await pool.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  await pool.end();
});

describe('initCatalog', () => {
  it('is done once, by however many processes at once', async () => {
    const url = await newDatabase();
    const pools = Array.from({ length: 4 }, () => Catalog.pool(url));
    await Promise.all(pools.map((pool) => initCatalog(pool, 'shop')));
    const { rows } = await (pools[0] as pg.Pool).query(
      'SELECT database, schema_version, epoch::int FROM foreshard.meta',
    );
    expect(rows).toEqual([{ database: 'shop', schema_version: currentSchemaVersion(), epoch: 1 }]);
    await Promise.all(pools.map((pool) => pool.end()));
  });

  it('brings a catalog of the first version up to date, and keeps what is in it', async () => {
    const url = await newDatabase();
    const pool = Catalog.pool(url);
    await pool.query(loadSql('catalog/001_init.sql'));
    await pool.query(`INSERT INTO foreshard.meta (schema_version, database, epoch) VALUES (1, 'shop', 7)`);
    await expect(Catalog.connect(url)).rejects.toMatchObject({ hint: expect.stringContaining('foreshard init') });
    await initCatalog(pool, 'shop');
    const catalog = await Catalog.connect(url);
    expect(await new LoginUsers(catalog).list()).toEqual([]);
    const { rows } = await pool.query('SELECT schema_version, epoch::int FROM foreshard.meta');
    expect(rows).toEqual([{ schema_version: currentSchemaVersion(), epoch: 7 }]);
    await catalog.close();
    await pool.end();
  });

  it('refuses a newer catalog, another database and a foreign schema, each by name', async () => {
    const url = await newDatabase();
    const pool = Catalog.pool(url);
    await initCatalog(pool, 'shop');
    await expect(initCatalog(pool, 'bank')).rejects.toThrow('this catalog belongs to the database "shop", not "bank"');
    await pool.query('UPDATE foreshard.meta SET schema_version = 99');
    await expect(initCatalog(pool, 'shop')).rejects.toThrow(
      `schema version 99, this program knows only ${currentSchemaVersion()}`,
    );
    await expect(Catalog.connect(url)).rejects.toThrow(/schema version 99/);
    await pool.query('DROP SCHEMA foreshard CASCADE; CREATE SCHEMA foreshard');
    await expect(initCatalog(pool, 'shop')).rejects.toThrow('schema "foreshard" that is not a catalog');
    await pool.end();
  });
});

describe('initCatalog, when it cannot', () => {
  it('says that the user may not create, or that nobody answers', async () => {
    const url = new URL(await newDatabase());
    await admin.query(`DROP ROLE IF EXISTS nobody; CREATE ROLE nobody LOGIN PASSWORD 'nobody'`);
    url.username = 'nobody';
    url.password = 'nobody';
    const pool = Catalog.pool(url.href);
    await expect(initCatalog(pool, 'shop')).rejects.toMatchObject({
      sqlstate: '42501',
      hint: expect.stringMatching(/GRANT CREATE/),
    });
    await pool.end();
    url.port = '1';
    const away = Catalog.pool(url.href);
    await expect(initCatalog(away, 'shop')).rejects.toThrow(
      /cannot connect to the catalog at postgres.*nobody@.*:1\/.*ECONNREFUSED/,
    );
    await away.end();
  });
});

describe('Catalog.connect', () => {
  it('says what is wrong, where, and what to do, and shows no password', async () => {
    const url = await newDatabase();
    const none = await Catalog.connect(url).catch((e: unknown) => e);
    expect(none).toBeInstanceOf(CatalogUnavailableError);
    expect((none as CatalogUnavailableError).message).toMatch(/^there is no catalog in postgres/);
    expect((none as CatalogUnavailableError).hint).toMatch(/foreshard init/);
    expect((none as CatalogUnavailableError).message).not.toContain(new URL(url).password);

    const wrong = new URL(url);
    wrong.password = 's3cret';
    const refused = await Catalog.connect(wrong.href).catch((e: unknown) => e);
    expect((refused as CatalogUnavailableError).message).toMatch(/password authentication failed/);
    expect((refused as CatalogUnavailableError).message).not.toContain('s3cret');
    expect((refused as CatalogUnavailableError).hint).toMatch(/password/);

    const away = new URL(url);
    away.port = '1';
    const down = await Catalog.connect(away.href).catch((e: unknown) => e);
    expect((down as CatalogUnavailableError).message).toMatch(/ECONNREFUSED/);
    await expect(Catalog.connect('localhost:5432')).rejects.toThrow(/not a PostgreSQL URL/);
    await expect(Catalog.connect(cluster.url('nowhere'))).rejects.toThrow(/"nowhere" does not exist/);
  });
});

describe('loadTopology', () => {
  it('gives what the tables hold, typed', async () => {
    const catalog = await newCatalog();
    await catalog.pool.query(`
      INSERT INTO foreshard.shard (name, url, home, capacity_ms_per_second) VALUES ('one', 'postgres://x/1', true, 800), ('two', 'postgres://x/2', false, NULL);
      INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('tenants', 'range', '{int8,text}'), ('hashed', 'hash', '{uuid}');
      INSERT INTO foreshard.sharded_table VALUES ('public', 'orders', 'tenants', '{tenant_id,region}');
      INSERT INTO foreshard.reference_table VALUES ('public', 'countries');
      INSERT INTO foreshard.reference_copy VALUES ('public', 'countries', 'one'), ('public', 'countries', 'two');
      INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES
        ('tenants', '["10"]', NULL, 'two'), ('tenants', NULL, '["9", "é"]', 'one'), ('tenants', '["9", "é"]', '["10"]', 'one'),
        ('hashed', NULL, NULL, 'one');
      INSERT INTO foreshard.hold (migration_id, keyspace, lo, hi, reference_tables, deadline) VALUES
        (1, 'tenants', '["9", "é"]', NULL, true, clock_timestamp() + interval '1 hour'),
        (1, 'tenants', NULL, NULL, false, clock_timestamp() - interval '1 s');
      UPDATE foreshard.meta SET epoch = 9007199254740993;`);
    const topology = await catalog.loadTopology();
    expect(topology.epoch).toBe(9007199254740993n);
    expect(topology.database).toBe('shop');
    expect(topology.home).toBe('one');
    expect(topology.shards.get('two' as ShardName)?.capacityMsPerSecond).toBeNull();
    const tenants = topology.keyspaces.get('tenants' as KeyspaceName);
    expect(tenants?.ranges.map((r) => [r.lo, r.hi, r.shard])).toEqual([
      [null, [9n, 'Ã©'], 'one'],
      [[9n, 'Ã©'], [10n], 'one'],
      [[10n], null, 'two'],
    ]);
    expect(tenants?.tables.map((t) => t.keyColumns)).toEqual([['tenant_id', 'region']]);
    expect(topology.shardedTables.get('public.orders')?.keyspace).toBe('tenants');
    expect(topology.referenceTables.get('public.countries')?.shards).toEqual(['one', 'two']);
    expect(topology.holds).toHaveLength(1);
    expect(topology.holds[0]?.remainingMs).toBeGreaterThan(3_500_000);
    await catalog.close();
  });

  it('refuses ranges with a gap or an overlap', async () => {
    const catalog = await newCatalog();
    await catalog.pool.query(`
      INSERT INTO foreshard.shard (name, url, home) VALUES ('one', 'postgres://x/1', true);
      INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('tenants', 'range', '{int8}');
      INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ('tenants', NULL, '["5"]', 'one'), ('tenants', '["6"]', NULL, 'one')`);
    await expect(catalog.loadTopology()).rejects.toThrow(/leave a gap or overlap/);
    await catalog.close();
  });

  it('names the catalog when it is away', async () => {
    const catalog = await newCatalog();
    await catalog.pool.query('ALTER SCHEMA foreshard RENAME TO gone');
    await expect(catalog.loadTopology()).rejects.toThrow(/there is no catalog in postgres/);
    await catalog.close();
  });
});

describe('watch', () => {
  it('is not told of what is announced later', async () => {
    const catalog = await newCatalog();
    const listening = await catalog.connectAlone();
    const told: (string | undefined)[] = [];
    listening.on('notification', ({ payload }) => told.push(payload));
    await listening.query('LISTEN foreshard_topology');
    const raise = 'UPDATE foreshard.meta SET epoch = epoch + 1';
    const client = await catalog.pool.connect();
    await client.query(`BEGIN; ${ANNOUNCE_LATER}; ${raise}; COMMIT`);
    await client.query(ANNOUNCE);
    await client.query(raise);
    client.release();
    await waitFor(() => told.length >= 2, { what: 'announcements' });
    expect(told).toEqual(['', 'meta']);
    await listening.end();
    await catalog.close();
  });

  it('tells at the start, of epochs and of holds', async () => {
    const catalog = await newCatalog();
    let calls = 0;
    const watch = await catalog.watch(() => calls++);
    expect(calls).toBe(1);
    await catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    await waitFor(() => calls >= 2, { what: 'the epoch to be announced' });
    const before = calls;
    await catalog.pool.query(`INSERT INTO foreshard.shard (name, url, home) VALUES ('one', 'postgres://x/1', true);
      INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('k', 'range', '{int8}');
      INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline) VALUES (1, 'k', false, now() + interval '1 min')`);
    await waitFor(() => calls > before, { what: 'the hold to be announced' });
    await watch.close();
    await catalog.close();
  });

  it('finds changes by its poll when notifications do not come', async () => {
    const catalog = await newCatalog();
    await catalog.pool.query('ALTER TABLE foreshard.meta DISABLE TRIGGER announce');
    let calls = 0;
    const watch = await catalog.watch(() => calls++);
    await waitFor(
      async () => {
        await catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
        return calls >= 3;
      },
      { what: 'the poll to see the epoch' },
    );
    await watch.close();
    await catalog.close();
  });

  it('finds by its poll that the tables of a replica are known to be as their owner has them', async () => {
    const catalog = await newCatalog();
    await catalog.pool.query(`INSERT INTO foreshard.shard (name, url, home) VALUES ('one', 'postgres://x/1', true), ('two', 'postgres://x/2', false);
      INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('k', 'range', '{int8}');
      INSERT INTO foreshard.migration (kind, spec, state) VALUES ('move', '{}', 'following');
      INSERT INTO foreshard.range_replica (migration_id, max_staleness_ms, read_percent, since, keyspace, source, shard, marker_schema, marker_table, reference_tables, schema_generation)
      SELECT id, 1000, 0, 1, 'k', 'one', 'two', 's', 't', '[]', 1 FROM foreshard.migration;
      ALTER TABLE foreshard.range_replica DISABLE TRIGGER announce`);
    let calls = 0;
    const watch = await catalog.watch(() => calls++);
    await waitFor(
      async () => {
        await catalog.pool.query('UPDATE foreshard.range_replica SET schema_generation = schema_generation + 1');
        return calls >= 3;
      },
      { what: 'the poll to see the generation' },
    );
    await watch.close();
    await catalog.close();
  });

  it('listens again, and tells, after its connection was cut and after the server was restarted', async () => {
    const own = await startTestCluster();
    const pool = Catalog.pool(own.url());
    await initCatalog(pool, 'shop');
    const catalog = await Catalog.connect(own.url());
    await catalog.pool.query('ALTER TABLE foreshard.meta DISABLE TRIGGER announce');
    let calls = 0;
    const watch = await catalog.watch(() => calls++);
    const terminate = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'foreshard watch'`;
    await pool.query(terminate);
    await waitFor(() => calls >= 2, { what: 'the listener after the cut' });
    await own.crash();
    await own.restart();
    await waitFor(() => calls >= 3, { what: 'the listener after the restart' });
    await pool.query(`NOTIFY foreshard_topology`);
    await waitFor(() => calls >= 4, { what: 'a notification on the new connection' });
    await watch.close();
    const left = await pool.query(`SELECT 1 FROM pg_stat_activity WHERE application_name = 'foreshard watch'`);
    await pool.end();
    await catalog.close();
    expect(left.rows.length).toBeLessThanOrEqual(1);
  });

  it('can be closed while the server is away', async () => {
    const own = await startTestCluster();
    const pool = Catalog.pool(own.url());
    await initCatalog(pool, 'shop');
    await pool.end();
    const catalog = await Catalog.connect(own.url());
    const watch = await catalog.watch(() => undefined);
    await own.stop();
    await watch.close();
    await catalog.close();
  });
});
