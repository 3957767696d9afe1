import { beforeEach, expect, test } from 'vitest';
import { audit as auditCluster } from '../../migrator/audit/audit.js';
import { lastComparison } from '../../migrator/comparison.js';
import { createMigration, requestAbort, requestEnd, requestFlip } from '../../migrator/migration-requests.js';
import { separateTables } from '../../topology/catalog/separate.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { partitionOrders, tableFacts } from './partitioned.js';
import { approveMove, approveReplica, leftovers, moveSpec } from './setting.js';
import { audit } from './writers.js';

const HOUR = 3_600_000;
const moves = shopMoves(12, 50);
const { s } = moves;
beforeEach(() => partitionOrders(s));

const load = (id: bigint) => moves.load(id);
const note = (id: bigint, text: RegExp) => moves.noted(id, text);
const state = (id: bigint, wanted: 'reversing' | 'verifying') => moves.inState(id, wanted);
const one = (sql: string) => withClient(s.urlOne, (c) => c.query(sql));
const two = (sql: string) => withClient(s.urlTwo, (c) => c.query(sql));

test('a partitioned table moves with all that its partitions are, and loses nothing that is written meanwhile', async () => {
  const before = await tableFacts(s.urlOne);
  const { writers } = await moves.startLoad(12);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ removePages: 1 });
  expect(await moves.atRest(id)).toBe('done');
  await writers.stop();
  expect(writers.errors).toEqual([]);
  expect((await load(id)).facts.exact).toBe('identical');
  expect((await load(id)).progress.rowsTotal).toBeGreaterThan(7 * 50);
  expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
  expect(await tableFacts(s.urlTwo)).toEqual(before);
  expect(await tableFacts(s.urlOne)).toEqual(before);
  expect(await leftovers(s)).toEqual([]);
});

/** A move of tenants from 6 on that follows its source, and flips when it is asked to. */
async function ready(options: Record<string, number> = {}): Promise<bigint> {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator(options);
  await note(id, /^ready to flip/);
  return id;
}

test('rows that change their partition meanwhile arrive once, there and on the way back', async () => {
  const { writers } = await moves.startLoad(12, { count: 1 });
  const id = await ready({ wayBackMs: HOUR, sampleMs: 50 });
  // To another leaf of the same parent, of another one, and with a key of the interval that was none before; with a value that is stored out of line.
  await one(
    "UPDATE orders SET body = (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 9000) i) WHERE tenant_id IN (5, 7) AND id < 100000",
  );
  await one(`DELETE FROM "Odd Items" WHERE "Tenant Id" IN (5, 7)`);
  await one('UPDATE orders SET id = id + 3500000 WHERE tenant_id = 7 AND id < 100000');
  await one('UPDATE orders SET tenant_id = 8, id = id + 1500000 WHERE tenant_id = 5 AND id < 100000');
  await one('UPDATE orders SET tenant_id = 9 WHERE tenant_id = 8 AND id < 1600000 AND id > 1500000 AND id % 2 = 0');
  await requestFlip(s.catalog.pool, id, 'test');
  await state(id, 'reversing');
  await two(
    'UPDATE orders SET id = id + 6000000 WHERE tenant_id = 7 AND id BETWEEN 3500000 AND 3600000 AND id % 3 = 0',
  );
  const sampled = (await load(id)).progress.sampled?.rows ?? 0;
  await waitFor(async () => ((await load(id)).progress.sampled?.rows ?? 0) > sampled, { what: 'a sample of rows' });
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  expect(await moves.atRest(id)).toBe('rolled_back');
  await writers.stop();
  expect(writers.errors).toEqual([]);
  const { facts } = await load(id);
  expect([facts.exact, facts.backExact]).toEqual(['identical', 'identical']);
  expect(
    (
      await one(
        'SELECT count(*)::int AS n, min(length(body)) AS bytes FROM orders WHERE tenant_id IN (7, 8, 9) AND length(body) > 1000',
      )
    ).rows,
  ).toEqual([{ n: 100, bytes: 288_000 }]);
  expect(
    (await one('SELECT count(*)::int AS n FROM orders_rest WHERE tenant_id = 7 AND id BETWEEN 9500000 AND 9600000'))
      .rows[0].n,
  ).toBeGreaterThan(10);
  expect(await audit(s, writers, () => false)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

test('a partition that is made meanwhile is made at the destination, too, with its rows, names and guards', async () => {
  const id = await ready();
  await one(
    'CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000) WITH (fillfactor = 50)',
  );
  await one('ALTER TABLE orders_next OWNER TO shop_owner');
  await one('CREATE INDEX own_of_next ON orders_next (serial_no)');
  await waitFor(async () => (await two("SELECT to_regclass('orders_next') IS NOT NULL AS there")).rows[0].there, {
    what: 'the partition',
  });
  await one("INSERT INTO orders (tenant_id, id, body) SELECT 7, i, 'next' FROM generate_series(5000000, 5000099) i");
  await waitFor(async () => (await two('SELECT count(*)::int AS n FROM orders_next')).rows[0].n === 100, {
    what: 'its rows',
  });
  for (const at of [one, two])
    await waitFor(
      async () =>
        (await at("SELECT FROM pg_trigger WHERE tgrelid = 'orders_next'::regclass AND tgname LIKE '!foreshard%_t'"))
          .rowCount === 1,
      { what: 'the guard of TRUNCATE' },
    );
  for (const at of [one, two])
    for (const partition of ['orders_next', 'orders_rest', 'orders_mid', 'orders_mid_0', '"Archive"."Orders, old"'])
      await expect(at(`TRUNCATE ${partition} CASCADE`)).rejects.toMatchObject({ code: '55006' });
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect((await load(id)).facts.exact).toBe('identical');
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
});

test('rows that have no place at the destination stop replication until there is one, and none is lost', async () => {
  await one(`ALTER TABLE orders DETACH PARTITION orders_rest; DROP TABLE orders_rest;
    CREATE TABLE orders_four PARTITION OF orders FOR VALUES FROM (4000000) TO (5000000); ALTER TABLE orders_four OWNER TO shop_owner`);
  const { writers } = await moves.startLoad(12, { stale: false });
  const id = await ready();
  // What locks the table there keeps the partition from being made before the rows come.
  await withClient(s.urlTwo, async (c) => {
    await c.query('BEGIN; LOCK TABLE ONLY orders IN SHARE UPDATE EXCLUSIVE MODE');
    await one('CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000)');
    await one('ALTER TABLE orders_next OWNER TO shop_owner');
    await one('INSERT INTO orders (tenant_id, id) VALUES (7, 5000000)');
    await note(
      id,
      /^partition "public.orders_next" is to be made on shard "two": waiting for a lock on "public.orders"/,
    );
    await waitFor(async () => !(await two('SELECT subenabled AS on FROM pg_subscription')).rows[0].on, {
      what: 'replication to stop',
    });
    await requestFlip(s.catalog.pool, id, 'test');
    await note(id, /^partition "public.orders_next" is to be made/);
    expect(['ready', 'catching_up']).toContain((await load(id)).state);
    await c.query('ROLLBACK');
  });
  expect(await moves.atRest(id)).toBe('done');
  await writers.stop();
  expect(writers.errors).toEqual([]);
  expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
  expect((await two('SELECT tenant_id FROM orders_next')).rows).toEqual([{ tenant_id: 7 }]);
});

test('a partition that is attached with rows, which are not replicated, is found before the flip', async () => {
  const id = await ready();
  await one(`
    CREATE TABLE filled (LIKE orders INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS);
    ALTER TABLE filled OWNER TO shop_owner;
    INSERT INTO filled (tenant_id, id) VALUES (7, 5000000), (3, 5000001);
    ALTER TABLE orders ATTACH PARTITION filled FOR VALUES FROM (5000000) TO (6000000)`);
  await requestFlip(s.catalog.pool, id, 'test');
  await note(id, /^both sides differ: /);
  expect(lastComparison(await load(id))?.tables).toMatchObject([
    { table: 'public.orders', differing: 1, keys: ['["5000000", "7"]'] },
  ]);
  expect((await load(id)).facts.flipEpoch).toBeUndefined();
  await requestAbort(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('aborted');
  expect(await leftovers(s)).toEqual([]);
  expect(
    (
      await two(
        "SELECT relname FROM pg_class WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'Archive'))",
      )
    ).rows,
  ).toEqual([]);
  const again = await approveMove(s, [6n], null);
  expect(await moves.atRest(again)).toBe('done');
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
});

test('a partition that is detached or dropped is to be so on both sides before the flip', async () => {
  await one(
    'ALTER TABLE "Odd Items" DROP CONSTRAINT "Odd Items_Tenant Id_order_id_fkey"; INSERT INTO orders (tenant_id, id) VALUES (7, 3500000), (7, 1500000)',
  );
  const id = await ready();
  await one('ALTER TABLE orders DETACH PARTITION orders_attached; DROP TABLE orders_mid');
  await requestFlip(s.catalog.pool, id, 'test');
  const told =
    /^partition "public.orders_(attached|mid)" of "public.orders" \(FOR VALUES FROM .*\) is on shard "two" only: detach or drop it there, too/;
  await note(id, told);
  await two('DROP TABLE orders_attached');
  await note(id, told);
  await two('DROP TABLE orders_mid');
  expect(await moves.atRest(id)).toBe('done');
  expect((await load(id)).facts.exact).toBe('identical');
  expect((await two('SELECT FROM orders WHERE id > 1000000')).rowCount).toBe(0);
  expect((await one('SELECT id FROM orders_attached')).rows).toEqual([{ id: '3500000' }]);
  expect(await leftovers(s)).toEqual([]);
});

test('partitions neither come nor go while a flip is under way', async () => {
  const id = await ready();
  await withClient(s.catalogUrl, async (catalog) => {
    // What the flip waits for.
    await catalog.query('BEGIN; SELECT FROM foreshard.meta FOR UPDATE');
    await requestFlip(s.catalog.pool, id, 'test');
    const closed = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND mode = 'ExclusiveLock'";
    // The driver's own lock is another one.
    await waitFor(async () => (await two(closed)).rowCount === 2, { what: 'the fence' });
    for (const url of [s.urlOne, s.urlTwo])
      await withClient(url, async (c) => {
        await c.query("SET lock_timeout = '10ms'");
        for (const sql of [
          'ALTER TABLE orders DETACH PARTITION orders_rest CONCURRENTLY',
          'DROP TABLE orders_mid_0',
          'CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000)',
        ])
          await expect(c.query(sql)).rejects.toMatchObject({ code: '55P03' });
      });
    await catalog.query('ROLLBACK');
  });
  expect(await moves.atRest(id)).toBe('done');
  await one('ALTER TABLE orders DETACH PARTITION orders_attached');
});

test('a way back is taken only as far as both sides are the same', async () => {
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ wayBackMs: HOUR });
  await state(id, 'reversing');
  await two(`CREATE TABLE filled (LIKE orders INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS);
    ALTER TABLE filled OWNER TO shop_owner;
    INSERT INTO filled (tenant_id, id, serial_no) VALUES (7, 5000000, 1);
    ALTER TABLE orders ATTACH PARTITION filled FOR VALUES FROM (5000000) TO (6000000)`);
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  await waitFor(
    async () => /1 rows of "public.orders", whose partitions have changed, differ/.test((await load(id)).error ?? ''),
    {
      what: 'the difference',
    },
  );
  await state(id, 'reversing');
  await two('DELETE FROM orders WHERE id = 5000000');
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  expect(await moves.atRest(id)).toBe('rolled_back');
  expect((await load(id)).facts.backExact).toBe('identical');
  expect(
    (await one("SELECT pg_get_expr(relpartbound, oid) AS bound FROM pg_class WHERE relname = 'filled'")).rows,
  ).toEqual([{ bound: "FOR VALUES FROM ('5000000') TO ('6000000')" }]);
  expect(await audit(s, null, () => false)).toEqual([]);
});

test('rows of partitions on a shard that does not own them are found, and removed', async () => {
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  expect(await moves.atRest(id)).toBe('done');
  await one(
    'SET session_replication_role = replica; INSERT INTO orders (tenant_id, id) VALUES (7, 1500000), (8, 3500000)',
  );
  const found = await auditCluster(s.catalog, false);
  expect(found.map((f) => [f.kind, f.object, f.text])).toEqual([
    ['rows', 'public.orders', '2 rows of public.orders belong to other shards'],
  ]);
});

test.each([
  [
    'ALTER TABLE "Odd Items" DROP CONSTRAINT "Odd Items_Tenant Id_order_id_fkey"; ALTER TABLE orders_mid_0 SET UNLOGGED',
    /"public.orders_mid_0" of "public.orders" is unlogged/,
  ],
  ['ALTER TABLE orders_mid_0 OWNER TO postgres', /"public.orders_mid_0" of "public.orders" belongs to "postgres"/],
  [
    'ALTER TABLE orders_mid_0 REPLICA IDENTITY NOTHING',
    /"public.orders_mid_0" of "public.orders" has a replica identity without tenant_id, id/,
  ],
  [
    'CREATE UNIQUE INDEX alone ON orders_attached (serial_no)',
    /"public.orders_attached" of "public.orders" has the unique constraint or index "alone" without its key/,
  ],
  [
    "CREATE SEQUENCE own; ALTER TABLE orders_attached ALTER serial_no SET DEFAULT nextval('own')",
    /takes numbers from a sequence of its own \("public.own"\)/,
  ],
  [
    'CREATE TABLE points (t int, o bigint, FOREIGN KEY (t, o) REFERENCES orders_mid_0)',
    /"public.orders_mid_0" of "public.orders" is what foreign key "points_t_o_fkey" of "public.points" points at/,
  ],
])('%s: refused before anything is touched', async (sql, reason) => {
  await one(sql);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  expect(await moves.atRest(id)).toBe('failed');
  expect((await load(id)).error).toMatch(reason);
  expect(await leftovers(s)).toEqual([]);
});

test('a replica of a partitioned table is refused', async () => {
  const id = await approveReplica(s, [6n], null);
  moves.startMigrator();
  expect(await moves.atRest(id)).toBe('failed');
  expect((await load(id)).error).toMatch(
    /"public.orders" is partitioned, and replicas of such tables are not supported yet/,
  );
});

test('a partitioned table of no keyspace moves in one without a key, and back', async () => {
  await one(`CREATE TABLE logs (id bigserial, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE logs_old PARTITION OF logs DEFAULT;
    INSERT INTO logs (at) SELECT '2026-11-01'::date + i FROM generate_series(1, 100) i`);
  const tables = [{ schema: 'public', table: 'logs' }];
  const own = { keyspace: null, as: 'own' };
  await expect(
    separateTables(s.catalog, 'test', { ...own, tables: [{ schema: 'public', table: 'logs_old' }] }),
  ).rejects.toThrow(/"public.logs_old" is a partition of "public.logs"/);
  await separateTables(s.catalog, 'test', { ...own, tables });
  const keyspace = (await s.catalog.loadTopology()).keyspaces.get('own' as KeyspaceName) as Keyspace;
  const spec = { ...moveSpec(null, null), keyspace: keyspace.name };
  moves.startMigrator();
  expect(await moves.atRest(await createMigration(s.catalog.pool, keyspace, spec, { actor: 'test' }))).toBe('done');
  expect((await two('SELECT count(*)::int AS n, max(id)::int AS id FROM logs_old')).rows).toEqual([
    { n: 100, id: 100 },
  ]);
  expect((await one('SELECT FROM logs')).rowCount).toBe(0);
  const back = { ...spec, from: spec.to, to: spec.from };
  expect(await moves.atRest(await createMigration(s.catalog.pool, keyspace, back, { actor: 'test' }))).toBe('done');
  expect((await one('SELECT FROM logs')).rowCount).toBe(100);
});

test('rows of a new partition that the default one has got at the destination come along', async () => {
  const id = await ready();
  await one(`BEGIN; CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000); ALTER TABLE orders_next OWNER TO shop_owner;
    INSERT INTO orders (tenant_id, id, version) VALUES (7, 5000000, 3), (7, 6000000, 4), (3, 5000001, 5); COMMIT`);
  await waitFor(async () => (await two("SELECT to_regclass('orders_next') IS NOT NULL AS there")).rows[0].there, {
    what: 'the partition',
  });
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect((await load(id)).facts.exact).toBe('identical');
  expect((await two('SELECT id::int, version, twice FROM orders_next')).rows).toEqual([
    { id: 5000000, version: 3, twice: 6 },
  ]);
  expect((await two('SELECT id::int FROM orders_rest WHERE id > 5000000 AND id < 7000000')).rows).toEqual([
    { id: 6000000 },
  ]);
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
});
