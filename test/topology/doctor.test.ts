import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import type { Finding } from '../../topology/doctor/finding.js';
import { check } from '../../topology/doctor.js';
import type { Topology } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

let home: EmbeddedCluster;
let other: EmbeddedCluster;

beforeAll(async () => {
  [home, other] = await Promise.all([startTestCluster(), startTestCluster()]);
});

/** A topology of two shards in new databases, their tables made by `sql`, declared by `declare` (on the catalog). */
async function shop(sql: string, declare: string, urls?: { one?: string; two?: string }): Promise<Topology> {
  for (const cluster of [home, other])
    await withClient(cluster.url(), async (client) => {
      await client.query('DROP DATABASE IF EXISTS shop WITH (FORCE)');
      await client.query('CREATE DATABASE shop');
    });
  await withClient(home.url(), (client) => client.query('DROP SCHEMA IF EXISTS foreshard CASCADE'));
  const pool = Catalog.pool(home.url());
  await initCatalog(pool, 'shop');
  await pool.end();
  const catalog = await Catalog.connect(home.url());
  await catalog.pool.query('INSERT INTO foreshard.shard (name, url, home) VALUES ($1, $2, true), ($3, $4, false)', [
    'one',
    urls?.one ?? home.url('shop'),
    'two',
    urls?.two ?? other.url('shop'),
  ]);
  await catalog.pool.query(`INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('tenants', 'range', '{int8}');
    INSERT INTO foreshard.range (keyspace, shard) VALUES ('tenants', 'one'); ${declare}`);
  await withClient(home.url('shop'), (client) => client.query(sql));
  const topology = await catalog.loadTopology();
  await catalog.close();
  return topology;
}

const sharded = (...tables: string[]): string =>
  tables
    .map((t) => `INSERT INTO foreshard.sharded_table VALUES ('public', '${t}', 'tenants', '{tenant_id}');`)
    .join('');

const bad = (findings: readonly Finding[], about = ''): string[] =>
  findings.filter((f) => f.level !== 'ok' && f.object.startsWith(about)).map((f) => `${f.level}: ${f.what}`);

describe('check', () => {
  it('finds nothing wrong with sound shards and tables, and leaves nothing behind', async () => {
    const topology = await shop(
      `CREATE TABLE tenants (tenant_id bigint PRIMARY KEY);
       CREATE TABLE countries (code text PRIMARY KEY);
       CREATE TABLE orders (tenant_id bigint REFERENCES tenants, id bigint, country text REFERENCES countries, PRIMARY KEY (tenant_id, id))`,
      `${sharded('tenants', 'orders')}
       INSERT INTO foreshard.reference_table VALUES ('public', 'countries');
       INSERT INTO foreshard.reference_copy VALUES ('public', 'countries', 'one')`,
    );
    const findings = await check(topology);
    expect(bad(findings)).toEqual([]);
    expect(findings.filter((f) => f.what === 'can be moved').map((f) => f.object)).toEqual([
      'table public.orders on shard one',
      'table public.tenants on shard one',
      'table public.countries on shard one',
    ]);
    expect(findings.map((f) => f.what)).toContain('its server reaches shard one');
    expect(findings.map((f) => f.what)).toContain('its server reaches shard two');
    for (const cluster of [home, other])
      await withClient(cluster.url('shop'), async (client) => {
        const { rows } = await client.query(
          'SELECT subname::text AS n FROM pg_subscription UNION ALL SELECT slot_name FROM pg_replication_slots',
        );
        expect(rows).toEqual([]);
      });
  });

  it('names what is wrong with a table, and the remedy', async () => {
    const topology = await shop(
      `CREATE TABLE places (id bigint PRIMARY KEY);
       CREATE TABLE tenants (tenant_id bigint PRIMARY KEY);
       CREATE TABLE notes (id bigint PRIMARY KEY, tenant_id bigint REFERENCES tenants);
       CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
       CREATE UNLOGGED TABLE bad (tenant_id bigint, id serial PRIMARY KEY, place bigint REFERENCES places, blob oid,
         twice int GENERATED ALWAYS AS (1) STORED);
       CREATE TRIGGER t BEFORE INSERT ON bad FOR EACH ROW EXECUTE FUNCTION f();
       ALTER TABLE bad ENABLE ALWAYS TRIGGER t;
       CREATE RULE r AS ON DELETE TO bad DO ALSO SELECT 1;
       ALTER TABLE bad ENABLE ROW LEVEL SECURITY;
       CREATE TABLE bare (tenant_id bigint NOT NULL);
       CREATE TABLE full_ident (tenant_id bigint NOT NULL); ALTER TABLE full_ident REPLICA IDENTITY FULL;
       CREATE TABLE silent (tenant_id bigint PRIMARY KEY); ALTER TABLE silent REPLICA IDENTITY NOTHING;
       CREATE TABLE sideways (tenant_id bigint NOT NULL, boss bigint REFERENCES tenants, id bigint, PRIMARY KEY (tenant_id, id));
       CREATE TABLE countries (code text, home bigint REFERENCES places)`,
      `${sharded('tenants', 'bad', 'bare', 'full_ident', 'silent', 'sideways', 'lost')}
       INSERT INTO foreshard.reference_table VALUES ('public', 'countries');
       INSERT INTO foreshard.reference_copy VALUES ('public', 'countries', 'one')`,
    );
    const findings = await check(topology);
    expect(findings.filter((f) => f.level !== 'ok' && !f.remedy)).toEqual([]);
    expect(bad(findings, 'table public.bad on shard one')).toEqual([
      expect.stringMatching(/^error: is unlogged/),
      expect.stringMatching(/^error: key column "tenant_id" may be null/),
      expect.stringMatching(/^error: the replica identity \(id\) lacks the key/),
      expect.stringMatching(/^error: "bad_pkey" is unique without the key \(tenant_id\)/),
      expect.stringMatching(/^error: foreign key "bad_place_fkey" points to "public.places", which stays/),
      expect.stringMatching(/^warning: trigger "t" is ENABLE ALWAYS/),
      expect.stringMatching(/^warning: rule "r"/),
      expect.stringMatching(/^warning: column "id" takes its numbers from a sequence/),
      expect.stringMatching(/^warning: column "twice" is generated/),
      expect.stringMatching(/^warning: column "blob" is of type oid/),
      expect.stringMatching(/^warning: has row-level security/),
    ]);
    expect(bad(findings, 'table public.bare')).toEqual([expect.stringMatching(/^error: has no primary key/)]);
    expect(bad(findings, 'table public.full_ident')).toEqual([
      expect.stringMatching(/^warning: has REPLICA IDENTITY FULL/),
    ]);
    expect(findings.find((f) => f.object.startsWith('table public.silent') && f.level === 'error')).toMatchObject({
      remedy: expect.stringContaining('ALTER TABLE "public"."silent" REPLICA IDENTITY DEFAULT'),
    });
    expect(bad(findings, 'table public.sideways')).toEqual([
      expect.stringMatching(/^error: foreign key "sideways_boss_fkey" points to "public.tenants" without the key/),
    ]);
    expect(bad(findings, 'table public.tenants')).toEqual([
      expect.stringMatching(/^error: foreign key "notes_tenant_id_fkey" of "public.notes", which stays/),
    ]);
    expect(bad(findings, 'table public.lost')).toEqual(['error: does not exist']);
    expect(bad(findings, 'table public.countries')).toEqual([
      expect.stringMatching(/^error: has no replica identity/),
      expect.stringMatching(/^error: foreign key "countries_home_fkey"/),
    ]);
  });

  it('names settings that are too small, and shards that differ, cannot be reached, or lack privileges', async () => {
    const poor = await startTestCluster({
      settings: {
        wal_level: 'replica',
        max_replication_slots: '1',
        max_wal_senders: '1',
        max_logical_replication_workers: '1',
        max_worker_processes: '1',
        max_sync_workers_per_subscription: '0',
        max_slot_wal_keep_size: '100MB',
        max_prepared_transactions: '0',
      },
    });
    await withClient(poor.url(), (client) =>
      client
        .query(`CREATE DATABASE shop; `)
        .then(() => client.query(`ALTER DATABASE shop SET TimeZone = 'Asia/Kolkata'`)),
    );
    const topology = await shop('CREATE EXTENSION hstore', '', { two: poor.url('shop') });
    const findings = await check(topology);
    expect(bad(findings, 'shard one')).toEqual([]);
    expect(bad(findings, 'shard two')).toEqual([
      expect.stringMatching(/^error: wal_level is replica/),
      expect.stringMatching(/^error: max_replication_slots is 1/),
      expect.stringMatching(/^error: max_wal_senders is 1/),
      expect.stringMatching(/^error: max_sync_workers_per_subscription is 0/),
      expect.stringMatching(/^error: max_logical_replication_workers is 1/),
      expect.stringMatching(/^error: max_worker_processes is 1/),
      expect.stringMatching(/^warning: max_slot_wal_keep_size is 100 MB/),
      'warning: max_prepared_transactions is 0: no transaction that writes here and on another shard can be committed',
      expect.stringMatching(/^warning: TimeZone is "Asia\/Kolkata"/),
      expect.stringMatching(/^warning: extension "hstore" of the home shard is missing/),
    ]);
  });

  it('names what a user who is no superuser lacks', async () => {
    const url = new URL(other.url('shop'));
    url.username = 'weak';
    url.password = 'weak';
    const topology = await shop('', '', { two: url.href });
    await withClient(other.url(), (client) =>
      client.query(`DROP ROLE IF EXISTS weak; CREATE ROLE weak LOGIN PASSWORD 'weak'`),
    );
    const findings = await check(topology);
    expect(bad(findings, 'shard two').slice(0, 3)).toEqual([
      'error: user "weak" lacks REPLICATION',
      'error: user "weak" may not create subscriptions',
      'error: user "weak" may not create in database "shop"',
    ]);
    expect(bad(findings, 'shard two')[3]).toMatch(/cannot replicate from shard one: permission denied/);
    // And the other way: the home server cannot open a replication connection as that user.
    expect(bad(findings, 'shard one')).toEqual([
      expect.stringMatching(/cannot replicate from shard two: .*(replication|walsender|WAL sender)/i),
    ]);

    await withClient(other.url('shop'), (client) =>
      client.query(
        'ALTER ROLE weak REPLICATION; GRANT pg_create_subscription TO weak; GRANT CREATE ON DATABASE shop TO weak',
      ),
    );
    expect(bad(await check(topology))).toEqual([]);
  });

  it('names clients whose prepared transactions the user of a shard could not end', async () => {
    const url = new URL(other.url('shop'));
    url.username = 'shard';
    url.password = 'shard';
    const topology = await shop('', '', { two: url.href });
    const run = (sql: string) => withClient(other.url('shop'), (client) => client.query(sql));
    await run(`CREATE ROLE shard LOGIN REPLICATION PASSWORD 'shard'; GRANT pg_create_subscription TO shard; GRANT CREATE ON DATABASE shop TO shard;
      CREATE ROLE app LOGIN; CREATE ROLE web LOGIN; CREATE ROLE root LOGIN SUPERUSER; CREATE ROLE people; CREATE ROLE elsewhere LOGIN;
      REVOKE CONNECT ON DATABASE shop FROM PUBLIC; GRANT CONNECT ON DATABASE shop TO shard, app, people; GRANT people TO web`);
    try {
      const findings = (await check(topology)).filter((f) => f.object === 'shard two' && f.level !== 'ok');
      expect(findings).toEqual([
        {
          level: 'warning',
          object: 'shard two',
          what: 'user "shard" may not end what "app" and 1 other role(s) have prepared: after a crash, transactions on several shards would keep their locks',
          remedy: 'GRANT "app", "web" TO "shard", as far as they are clients of the proxy',
        },
      ]);
      await run('GRANT app, web TO shard');
      expect(bad(await check(topology))).toEqual([]);
    } finally {
      for (const role of ['shard', 'app', 'web', 'root', 'people', 'elsewhere'])
        await run(`DROP OWNED BY ${role}; DROP ROLE ${role}`);
    }
  });

  it('reports a shard that is down, by name and without its password', async () => {
    const away = new URL(other.url('shop'));
    away.port = '1';
    const findings = await check(await shop('', '', { two: away.href }));
    expect(bad(findings)).toEqual([expect.stringMatching(/^error: cannot connect to shard "two" at .*ECONNREFUSED/)]);
    expect(JSON.stringify(findings)).not.toContain(away.password);
  });
});
