import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { raiseEpoch } from '../../topology/catalog/change.js';
import { Decisions } from '../../topology/catalog/decisions.js';
import { ProxyLeases } from '../../topology/catalog/leases.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { ForeshardError } from '../../topology/errors.js';
import type { KeyType } from '../../topology/key.js';
import { type CoordinatorId, gidOf } from '../../topology/prepared-transactions.js';
import { parseTableName } from '../../topology/table-name.js';
import type { Epoch, ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

let cluster: EmbeddedCluster;
let catalog: Catalog;
let registry: Registry;
let one: string;
let two: string;

beforeAll(async () => {
  cluster = await startTestCluster();
});

async function newDatabase(options = ''): Promise<string> {
  const name = `db_${randomUUID().slice(0, 8)}`;
  await withClient(cluster.url(), (admin) => admin.query(`CREATE DATABASE ${name} ${options}`));
  return cluster.url(name);
}

const sql = (url: string, text: string): Promise<pg.QueryResult> => withClient(url, (client) => client.query(text));

beforeEach(async () => {
  const url = await newDatabase();
  const pool = Catalog.pool(url);
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(url);
  registry = new Registry(catalog, 'tester');
  one = await newDatabase();
  two = await newDatabase();
  return () => catalog.close();
});

async function failure(promise: Promise<unknown>): Promise<ForeshardError> {
  const error = await promise.then(
    () => new Error('it succeeded'),
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(ForeshardError);
  expect((error as ForeshardError).hint).toBeTruthy();
  return error as ForeshardError;
}

async function withShop(keyTypes: readonly KeyType[] = ['int8']): Promise<void> {
  await registry.addShard({ name: 'one', url: one });
  await registry.addShard({ name: 'two', url: two });
  await registry.createKeyspace({ name: 'tenants', method: 'range', keyTypes });
}

describe('shards', () => {
  it('are added, the first as home, listed without password, and removed', async () => {
    await registry.addShard({ name: 'one', url: one, capacity: 800 });
    await registry.addShard({ name: 'two', url: two });
    const shards = await registry.listShards();
    expect(shards.map((s) => [s.name, s.home, s.capacityMsPerSecond])).toEqual([
      ['one', true, 800],
      ['two', false, null],
    ]);
    expect(shards[0]?.url).not.toContain(new URL(one).password);
    await registry.removeShard('two');
    expect((await registry.listShards()).map((s) => s.name)).toEqual(['one']);
    expect((await catalog.loadTopology()).epoch).toBe(4n);
    const { rows } = await catalog.pool.query(
      'SELECT actor, action, object, detail::text FROM foreshard.audit ORDER BY id',
    );
    expect(rows.map((r) => [r.actor, r.action, r.object])).toEqual([
      ['tester', 'shard add', 'one'],
      ['tester', 'shard add', 'two'],
      ['tester', 'shard remove', 'two'],
    ]);
    expect(JSON.stringify(rows)).not.toContain(new URL(one).password);
  });

  it('are refused when wrong, and nothing is written', async () => {
    await registry.addShard({ name: 'one', url: one });
    const alias = new URL(one);
    alias.hostname = 'localhost';
    const cases: [Parameters<Registry['addShard']>[0], RegExp][] = [
      [{ name: 'One', url: two }, /"One" cannot be the name/],
      [{ name: 'one', url: two }, /"one" exists already/],
      [{ name: 'two', url: 'here' }, /not a PostgreSQL URL/],
      [{ name: 'two', url: alias.href }, /same database as shard "one"/],
      [{ name: 'two', url: two, home: true }, /"one" is home already/],
      [{ name: 'two', url: two, capacity: 0 }, /cannot be a capacity/],
      [{ name: 'two', url: cluster.url('nowhere') }, /cannot connect to shard "two".*"nowhere" does not exist/],
      [{ name: 'two', url: await newDatabase(`ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`) }, /encoded in LATIN1/],
    ];
    for (const [shard, message] of cases) expect((await failure(registry.addShard(shard))).message).toMatch(message);
    expect((await catalog.loadTopology()).epoch).toBe(2n);
    expect(await registry.listShards()).toHaveLength(1);
  });

  it('are not removed while they hold anything', async () => {
    await withShop();
    expect((await failure(registry.removeShard('one'))).message).toMatch(/is the home shard/);
    expect((await failure(registry.removeShard('three'))).hint).toBe('There is: one, two.');
    await catalog.pool.query(`UPDATE foreshard.range SET shard = 'two'`);
    expect((await failure(registry.removeShard('two'))).message).toMatch(/owns 1 range/);
    await catalog.pool.query(`UPDATE foreshard.range SET shard = 'one';
      INSERT INTO foreshard.migration (kind, spec, state) VALUES ('move', '{"from": "one", "to": "two", "keyspace": "tenants"}', 'copying')`);
    expect((await failure(registry.removeShard('two'))).message).toMatch(/takes part in migration 1/);
  });
});

describe('a shard on which a transaction on several shards is open', () => {
  const name = { coordinator: randomUUID() as CoordinatorId, number: 1n };
  const gid = gidOf(name, 1);

  beforeEach(async () => {
    await withShop();
    await new ProxyLeases(catalog.pool).register({
      id: name.coordinator,
      name: 'p',
      listen: 'none',
      ttlMs: 3_600_000,
      epochAcked: 1n as Epoch,
      schemaHeard: 0n,
    });
    await catalog.pool.query("INSERT INTO foreshard.coordinator (id, proxy_id, proxy_name) VALUES ($1, $1, 'p')", [
      name.coordinator,
    ]);
  });

  const decide = () =>
    new Decisions(catalog.pool).decide(name.coordinator, [
      { number: name.number, shards: ['one', 'two'] as ShardName[] },
    ]);

  it.each(['decided', 'not decided'])('stays while it is prepared there, %s, and goes when it is ended', async (is) => {
    await sql(two, `BEGIN; CREATE TABLE t (); PREPARE TRANSACTION '${gid}'`);
    try {
      if (is === 'decided') expect(await decide()).toBe(true);
      const refused = await failure(registry.removeShard('two'));
      expect(refused.message).toMatch(/has 1 transaction\(s\) on several shards that are prepared there/);
      expect(await registry.listShards()).toHaveLength(2);
    } finally {
      await sql(two, `COMMIT PREPARED '${gid}'`);
    }
    // Its row may be there yet: what is decided has been carried out.
    await registry.removeShard('two');
    expect(await registry.listShards()).toHaveLength(1);
  });

  it('stays while it does not answer and what is decided may not be carried out there', async () => {
    expect(await decide()).toBe(true);
    await catalog.pool.query("UPDATE foreshard.shard SET url = $1 WHERE name = 'two'", [cluster.url('gone')]);
    expect((await failure(registry.removeShard('two'))).message).toMatch(
      /does not answer, and 1 transaction\(s\) may have to be committed there yet/,
    );
    await new Decisions(catalog.pool).forget(name.coordinator, [name.number]);
    await registry.removeShard('two');
    expect(await registry.listShards()).toHaveLength(1);
  });
});

describe('keyspaces', () => {
  it('begin as one range and one segment on the home shard', async () => {
    await withShop(['int8', 'text']);
    const [keyspace] = await registry.listKeyspaces();
    expect(keyspace).toMatchObject({ name: 'tenants', method: 'range', keyTypes: ['int8', 'text'], tables: [] });
    expect(keyspace?.ranges).toMatchObject([{ lo: null, hi: null, shard: 'one' }]);
    const segments = await catalog.pool.query('SELECT keyspace, lo, hi FROM foreshard.segment');
    expect(segments.rows).toEqual([{ keyspace: 'tenants', lo: null, hi: null }]);
  });

  it('are refused when wrong', async () => {
    const tenants = { name: 'tenants', method: 'range', keyTypes: ['int8'] } as const;
    expect((await failure(registry.createKeyspace(tenants))).message).toBe('there is no shard yet');
    await withShop();
    expect((await failure(registry.createKeyspace(tenants))).message).toMatch(/exists already/);
    expect((await failure(registry.createKeyspace({ ...tenants, name: 'a-b' }))).message).toMatch(/cannot be the name/);
    expect((await failure(registry.createKeyspace({ ...tenants, name: 'k', keyTypes: [] }))).message).toMatch(
      /needs a key type/,
    );
    expect(
      (await failure(registry.createKeyspace({ ...tenants, name: 'k', keyTypes: ['numeric' as KeyType] }))).hint,
    ).toMatch(/int2, int4/);
    expect(
      (await failure(registry.createKeyspace({ ...tenants, name: 'k', method: 'list' as 'hash' }))).message,
    ).toMatch(/not a method/);
  });
});

describe('tables', () => {
  it('join a keyspace, with warnings of what will block a move', async () => {
    await withShop();
    await sql(
      one,
      `CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, code text UNIQUE, PRIMARY KEY (tenant_id, id));
      CREATE UNLOGGED TABLE scratch (tenant_id bigint NOT NULL)`,
    );
    const orders = { table: { schema: 'public', table: 'orders' }, keyspace: 'tenants', keyColumns: ['tenant_id'] };
    expect((await registry.addTable(orders)).warnings).toEqual([
      '"orders_code_key" of table "public.orders" is unique without the key (tenant_id): it cannot be enforced across shards',
    ]);
    const scratch = await registry.addTable({ ...orders, table: { schema: 'public', table: 'scratch' } });
    expect(scratch.warnings).toEqual([expect.stringMatching(/no primary key/), expect.stringMatching(/unlogged/)]);
    expect((await registry.listTables()).sharded.map((t) => t.table)).toEqual(['orders', 'scratch']);
    expect((await failure(registry.addTable(orders))).message).toMatch(/in keyspace "tenants" already/);
  });

  it('are refused when their rows could not be placed', async () => {
    await withShop();
    await sql(
      one,
      `
      CREATE TABLE nullable (tenant_id bigint);
      CREATE TABLE narrow (tenant_id int NOT NULL);
      CREATE TABLE generated (a bigint, tenant_id bigint GENERATED ALWAYS AS (a) STORED NOT NULL);
      CREATE TABLE parts (tenant_id bigint NOT NULL) PARTITION BY LIST (tenant_id);
      CREATE TABLE part PARTITION OF parts DEFAULT PARTITION BY LIST (tenant_id);
      CREATE TABLE below PARTITION OF part DEFAULT;
      CREATE EXTENSION postgres_fdw;
      CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
      CREATE TABLE mixed (tenant_id bigint NOT NULL) PARTITION BY LIST (tenant_id);
      CREATE FOREIGN TABLE distant PARTITION OF mixed DEFAULT SERVER far;
      CREATE TABLE parent (tenant_id bigint NOT NULL);
      CREATE TABLE heir () INHERITS (parent);
      CREATE VIEW seen AS SELECT 1::bigint AS tenant_id;
      CREATE TABLE good (tenant_id bigint NOT NULL PRIMARY KEY)`,
    );
    const add = (table: string, keyColumns = ['tenant_id'], keyspace = 'tenants'): Promise<ForeshardError> =>
      failure(registry.addTable({ table: { schema: 'public', table }, keyspace, keyColumns }));
    expect(await add('missing')).toMatchObject({
      sqlstate: '42P01',
      message: expect.stringMatching(/"public.missing" does not exist on shard "one"/),
    });
    expect(await add('nullable')).toMatchObject({ sqlstate: '23502' });
    expect(await add('narrow')).toMatchObject({
      sqlstate: '42804',
      message: expect.stringMatching(/is integer, the keyspace's key is int8/),
    });
    expect((await add('generated')).message).toMatch(/is generated/);
    for (const partition of ['part', 'below'])
      expect(await add(partition)).toMatchObject({
        message: `"public.${partition}" on shard "one" is a partition of "public.parts"`,
        hint: 'Declare "public.parts": its partitions go with it.',
      });
    expect((await add('mixed')).message).toMatch(/whose partition public.distant is a foreign table/);
    expect((await add('heir')).message).toMatch(/is part of an inheritance/);
    expect((await failure(registry.addReferenceTable({ schema: 'public', table: 'parts' }))).message).toMatch(
      /is a partitioned table/,
    );
    expect((await add('seen')).message).toMatch(/is not a table/);
    expect(await add('good', ['tenant'])).toMatchObject({ sqlstate: '42703', hint: 'It has: tenant_id.' });
    expect((await add('good', ['tenant_id', 'tenant_id'])).message).toMatch(/has 1 key column/);
    expect((await add('good', ['tenant_id'], 'nowhere')).message).toMatch(/no keyspace "nowhere"/);
    await catalog.pool.query(
      `INSERT INTO foreshard.migration (kind, spec, state) VALUES ('move', '{"keyspace": "tenants"}', 'copying')`,
    );
    expect((await add('good')).message).toMatch(/during migration 1/);
    expect((await registry.listTables()).sharded).toEqual([]);
    expect((await catalog.loadTopology()).epoch).toBe(4n);
  });

  it('with text keys need a deterministic collation', async () => {
    await withShop(['text']);
    await sql(
      one,
      `CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      CREATE TABLE loose (tenant text COLLATE blind NOT NULL); CREATE TABLE strict (tenant text NOT NULL, PRIMARY KEY (tenant))`,
    );
    const add = (table: string) =>
      registry.addTable({ table: { schema: 'public', table }, keyspace: 'tenants', keyColumns: ['tenant'] });
    expect((await failure(add('loose'))).message).toMatch(/nondeterministic/);
    expect((await add('strict')).warnings).toEqual([]);
  });

  it('must be alike on all shards, with every row where its key belongs', async () => {
    await withShop();
    await catalog.pool.query(`UPDATE foreshard.range SET hi = '["100"]';
      INSERT INTO foreshard.range (keyspace, lo, shard) VALUES ('tenants', '["100"]', 'two')`);
    const add = () =>
      registry.addTable({ table: { schema: 'public', table: 't' }, keyspace: 'tenants', keyColumns: ['id'] });
    await sql(one, 'CREATE TABLE t (id bigint PRIMARY KEY, a int)');
    expect((await failure(add())).message).toMatch(/does not exist on shard "two"/);
    await sql(two, 'CREATE TABLE t (id bigint PRIMARY KEY, a text)');
    expect((await failure(add())).message).toMatch(/column "a" is text instead of integer/);
    await sql(two, 'ALTER TABLE t ALTER a TYPE int USING NULL');
    await sql(one, 'INSERT INTO t VALUES (99), (100)');
    expect((await failure(add())).message).toMatch(/on shard "one" has rows whose keys belong to another shard/);
    await sql(one, 'DELETE FROM t WHERE id = 100');
    expect((await add()).warnings).toEqual([]);
  });

  it('for reference have their first copy at home', async () => {
    await withShop();
    await sql(one, 'CREATE TABLE countries (code text PRIMARY KEY)');
    const countries = { schema: 'public', table: 'countries' };
    expect((await registry.addReferenceTable(countries)).warnings).toEqual([]);
    expect((await registry.listTables()).reference).toEqual([{ ...countries, shards: ['one'] }]);
    expect((await failure(registry.addReferenceTable(countries))).message).toMatch(/reference table already/);
    expect((await failure(registry.addReferenceTable({ schema: 'public', table: 'x' }))).message).toMatch(
      /does not exist/,
    );
    expect((await failure(registry.addReferenceTable({ schema: 'pg_catalog', table: 'pg_class' }))).message).toMatch(
      /system table/,
    );
  });
});

describe('an epoch', () => {
  it('is raised by compare-and-set', async () => {
    expect(await raiseEpoch(catalog.pool, 1n as Epoch)).toBe(2n);
    expect((await failure(raiseEpoch(catalog.pool, 1n as Epoch))).message).toMatch(/changed since epoch 1/);
  });

  it('lets one of two concurrent changes win, and the other writes nothing', async () => {
    await withShop();
    const create = (name: string) => registry.createKeyspace({ name, method: 'hash', keyTypes: ['uuid'] });
    const results = await Promise.allSettled([create('a'), create('b'), create('c')]);
    const won = results.filter((r) => r.status === 'fulfilled').length;
    expect(won).toBeGreaterThan(0);
    expect(await registry.listKeyspaces()).toHaveLength(1 + won);
    for (const r of results) if (r.status === 'rejected') expect(r.reason).toMatchObject({ name: 'ConflictError' });
  });
});

describe('parseTableName', () => {
  it.each([
    ['Orders', 'public', 'orders'],
    ['shop.ORDERS', 'shop', 'orders'],
    ['"Shop"."or""der.s"', 'Shop', 'or"der.s'],
    ['bücher', 'public', 'bücher'],
  ])('reads %s as SQL would', (text, schema, table) => {
    expect(parseTableName(text)).toEqual({ schema, table });
  });

  it.each(['', 'a.b.c', '1a', 'a b', '"a'])('refuses %j', (text) => {
    expect(() => parseTableName(text)).toThrow(/not a table's name/);
  });
});
