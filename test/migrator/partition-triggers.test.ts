import { beforeEach, describe, expect, test } from 'vitest';
import { audit as auditCluster } from '../../migrator/audit/audit.js';
import { dryRun } from '../../migrator/dry-run.js';
import { requestEnd, requestFlip } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { behaviour, effectsOf, guardOrders, loud } from './partition-triggers.js';
import { abortOnEntering, approveMove, leftovers, moveSpec } from './setting.js';
import { audit } from './writers.js';

const HOUR = 3_600_000;
const TENANTS = 12;
const moves = shopMoves(TENANTS, 30);
const { s } = moves;
beforeEach(() => guardOrders(s));

const one = (sql: string) => withClient(s.urlOne, (c) => c.query(sql));
const two = (sql: string) => withClient(s.urlTwo, (c) => c.query(sql));
const isMoved = (tenant: number) => tenant >= 6;

test.each(['done', 'rolled_back'])(
  'a partitioned table moves with its triggers and policies, and its partitions’ own: each write has its effects once (%s)',
  async (end) => {
    const before = await behaviour(s.urlOne);
    expect(before.filter((line) => / [AR] [tf]/.test(line)).length).toBeGreaterThan(8);
    const { writers } = await moves.startLoad(TENANTS);
    const id = await approveMove(s, [6n], null);
    moves.startMigrator({ wayBackMs: HOUR, sampleMs: 50 });
    await moves.inState(id, 'reversing');
    expect([await loud(s.urlOne), await loud(s.urlTwo)]).toEqual([[], []]);
    const flipped = writers.acknowledged;
    await waitFor(() => writers.acknowledged > flipped + 150, { what: 'writes at the new owner' });
    await requestEnd(s.catalog.pool, id, end === 'done' ? 'finish' : 'rollback', 'test');
    expect(await moves.atRest(id)).toBe(end);
    const ended = writers.acknowledged;
    await waitFor(() => writers.acknowledged > ended + 100, { what: 'writes after it' });
    await writers.stop();
    expect(writers.errors).toEqual([]);
    const onTwo = (tenant: number) => end === 'done' && isMoved(tenant);
    expect(await audit(s, writers, onTwo)).toEqual([]);
    expect(await effectsOf(s, writers, TENANTS, onTwo)).toEqual([]);
    expect((await moves.load(id)).facts.exact).toBe('identical');
    expect(await behaviour(s.urlOne)).toEqual(before);
    expect(await behaviour(s.urlTwo)).toEqual(end === 'done' ? before : []);
    expect(await leftovers(s)).toEqual([]);
    if (end === 'rolled_back') return;
    // As on one server: what is named by itself has its own policies, and none of its table's.
    const seen = (table: string) =>
      withClient(s.urlTwo, async (c) => {
        await c.query("SET ROLE shop_app; SET shop.tenant = '7'");
        return (await c.query(`SELECT count(DISTINCT tenant_id)::int AS n FROM ${table}`)).rows[0].n;
      });
    expect([await seen('orders'), await seen('orders_rest')]).toEqual([1, 1]);
    expect(await auditCluster(s.catalog, false)).toEqual([]);
  },
);

test.each(['preparing', 'catching_up', 'fencing'])('an abort in state %s leaves nothing of them', async (state) => {
  const before = await behaviour(s.urlOne);
  await abortOnEntering(s, state);
  moves.startMigrator({ wayBackMs: HOUR });
  const end = await moves.atRest(await approveMove(s, [6n], null));
  await abortOnEntering(s, null);
  expect(end).toBe('aborted');
  expect(await behaviour(s.urlOne)).toEqual(before);
  expect(await behaviour(s.urlTwo)).toEqual([]);
  const { rows } = await two("SELECT nspname FROM pg_namespace WHERE nspname IN ('app_private', 'Archive')");
  expect(rows).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

test('a table that the destination had before has its modes back, whatever comes of the second move', async () => {
  const before = await behaviour(s.urlOne);
  moves.startMigrator();
  expect(await moves.atRest(await approveMove(s, [10n], null))).toBe('done');
  expect(await behaviour(s.urlTwo)).toEqual(before);
  await abortOnEntering(s, 'ready');
  expect(await moves.atRest(await approveMove(s, [6n], [10n]))).toBe('aborted');
  await abortOnEntering(s, null);
  expect([await behaviour(s.urlOne), await behaviour(s.urlTwo)]).toEqual([before, before]);
  expect(await moves.atRest(await approveMove(s, [6n], [10n]))).toBe('done');
  expect([await behaviour(s.urlOne), await behaviour(s.urlTwo)]).toEqual([before, before]);
  expect((await one("SELECT FROM order_log WHERE what LIKE 'always%'")).rowCount).toBe(0);
  expect((await two("SELECT FROM order_log WHERE what LIKE 'always%'")).rowCount).toBe(0);
});

/** Comes with triggers of its own in all modes, one of which makes other rows of those that come, a policy that holds for its owner, too, and its parent's in other modes. */
const FILLED = `
CREATE SCHEMA app_late;
CREATE FUNCTION app_late.to_seven() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.version = 99 THEN NEW.tenant_id := 7; END IF; RETURN NEW; END $$;
CREATE TABLE filled (LIKE orders INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS);
CREATE TRIGGER shapes BEFORE INSERT OR UPDATE ON filled FOR EACH ROW EXECUTE FUNCTION app_late.to_seven();
CREATE TRIGGER own_always AFTER INSERT OR UPDATE ON filled FOR EACH ROW EXECUTE FUNCTION app_private.log('own');
CREATE TRIGGER own_replica AFTER INSERT ON filled FOR EACH ROW EXECUTE FUNCTION app_private.log('replica');
ALTER TABLE filled ENABLE ALWAYS TRIGGER own_always;
ALTER TABLE filled ENABLE REPLICA TRIGGER own_replica;
CREATE POLICY mine ON filled TO shop_app USING (tenant_id = 7);
ALTER TABLE filled ENABLE ROW LEVEL SECURITY;
ALTER TABLE filled FORCE ROW LEVEL SECURITY;
ALTER TABLE filled OWNER TO shop_owner;
BEGIN;
ALTER TABLE orders ATTACH PARTITION filled FOR VALUES FROM (5000000) TO (6000000);
ALTER TABLE filled DISABLE TRIGGER "Log Rows";
COMMIT;`;

const ownLog = async (at: typeof one) =>
  (
    await at(
      'SELECT order_id::int AS id, what, count(*)::int AS n FROM order_log WHERE order_id BETWEEN 5000000 AND 6999999 GROUP BY 1, 2 ORDER BY 1, 2',
    )
  ).rows.map(({ id, what, n }) => `${id} ${what} ${n}`);

test.each(['done', 'rolled_back', 'aborted'])(
  'what a partition that comes meanwhile brings is made with it, quiet, and is what it was in the end (%s)',
  async (end) => {
    moves.startMigrator({ wayBackMs: HOUR });
    // The tables are there to stay.
    expect(await moves.atRest(await approveMove(s, [12n], null, 'one', 'two', {}).then(finished))).toBe('done');
    const id = await approveMove(s, [6n], [12n], 'one', 'two', { auto: false });
    await moves.noted(id, /^ready to flip/);
    await one(FILLED);
    await waitFor(async () => (await two("SELECT to_regclass('filled') IS NOT NULL AS there")).rows[0].there, {
      what: 'the partition',
    });
    expect(await loud(s.urlTwo)).toEqual([]);
    await one(
      'INSERT INTO orders (tenant_id, id) VALUES (8, 5000001); UPDATE orders SET version = 1 WHERE id = 5000001',
    );
    await waitFor(async () => (await two('SELECT FROM filled WHERE version = 1')).rowCount === 1, { what: 'its row' });
    const shaped = "SELECT FROM pg_trigger WHERE tgrelid = 'filled'::regclass AND tgname ~ '^~foreshard.*_[iu]$'";
    for (const at of [one, two]) expect((await at(shaped)).rowCount).toBe(2);
    const written = [
      '5000001 always INSERT 1',
      '5000001 always UPDATE 1',
      '5000001 own INSERT 1',
      '5000001 own UPDATE 1',
      '5000001 statement 1',
    ];
    if (end !== 'aborted') {
      await requestFlip(s.catalog.pool, id, 'test');
      await moves.inState(id, 'reversing');
      expect([await loud(s.urlOne), await loud(s.urlTwo)]).toEqual([[], []]);
      // Nobody brings a row past the guards into an interval that has gone.
      await expect(one('INSERT INTO orders (tenant_id, id, version) VALUES (1, 5000002, 99)')).rejects.toMatchObject({
        code: 'SH001',
      });
      await two(`CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (6000000) TO (7000000);
        ALTER TABLE orders_next OWNER TO shop_owner`);
      await waitFor(async () => (await one("SELECT to_regclass('orders_next') IS NOT NULL AS there")).rows[0].there, {
        what: 'the partition at the source',
      });
      await two('INSERT INTO orders (tenant_id, id) VALUES (9, 6000001)');
      await waitFor(async () => (await one('SELECT FROM orders_next')).rowCount === 1, { what: 'its row' });
      written.push('6000001 always INSERT 1', '6000001 row INSERT 1', '6000001 statement 1');
      await requestEnd(s.catalog.pool, id, end === 'done' ? 'finish' : 'rollback', 'test');
    } else {
      await abortOnEntering(s, 'fencing');
      await requestFlip(s.catalog.pool, id, 'test');
    }
    expect(await moves.atRest(id)).toBe(end);
    await abortOnEntering(s, null);
    expect(await ownLog(end === 'done' ? two : one)).toEqual(written);
    const behind = await behaviour(s.urlOne);
    expect(await behaviour(s.urlTwo)).toEqual(behind);
    const modes = async (table: string) =>
      (
        await one(
          `SELECT string_agg(concat(tgname, ' ', tgenabled), ', ' ORDER BY tgname) AS modes FROM pg_trigger WHERE tgrelid = '${table}'::regclass AND NOT tgisinternal`,
        )
      ).rows[0].modes;
    expect(await modes('filled')).toBe(
      'Log Rows D, always A, own_always A, own_replica R, resting D, shapes O, touch O',
    );
    if (end !== 'aborted') expect(await modes('orders_next')).toBe('Log Rows O, always A, resting D, touch O');
    expect(await leftovers(s)).toEqual([]);
    expect(await audit(s, null, (tenant) => tenant === 12 || (end === 'done' && isMoved(tenant)))).toEqual([]);
  },
);

/** A migration whose way back nobody wants. */
async function finished(id: bigint): Promise<bigint> {
  await moves.inState(id, 'reversing');
  await requestEnd(s.catalog.pool, id, 'finish', 'test');
  return id;
}

test('an audit finds modes and policies of single partitions that differ, and fires nothing for rows that it removes', async () => {
  moves.startMigrator();
  expect(await moves.atRest(await approveMove(s, [6n], null))).toBe('done');
  const before = await behaviour(s.urlOne);
  const stray = `SET session_replication_role = replica; ALTER TABLE orders_rest DISABLE TRIGGER leaf; ALTER TABLE orders_rest DISABLE TRIGGER always;
    INSERT INTO orders_rest (tenant_id, id, serial_no, at) VALUES (7, 4000000, 1, '2026-11-01');
    ALTER TABLE orders_rest ENABLE ALWAYS TRIGGER leaf; ALTER TABLE orders_rest ENABLE ALWAYS TRIGGER always;`;
  await one(stray);
  await two(stray);
  const repaired = await auditCluster(s.catalog, true);
  expect(repaired.map(({ shard, text, outcome }) => [shard, text, outcome])).toEqual([
    ['one', '1 rows of public.orders belong to other shards', 'repaired'],
  ]);
  for (const at of [one, two]) expect((await at('SELECT FROM order_log')).rowCount).toBe(0);
  expect([await behaviour(s.urlOne), await behaviour(s.urlTwo)]).toEqual([before, before]);
  await two('ALTER TABLE orders_mid_1 ENABLE TRIGGER always; DROP POLICY late ON orders_rest');
  const [found, ...more] = await auditCluster(s.catalog, false);
  expect([found?.kind, found?.object, more]).toEqual(['table', 'public.orders', []]);
  expect(found?.text).toMatch(/only on "one": partition public.orders_mid_1 trigger always of its parent \(disabled\)/);
  expect(found?.text).toMatch(/only on "one": partition public.orders_rest CREATE POLICY late/);
});

test('a mode that is changed on one partition of one side during a move keeps it from flipping', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator();
  await moves.noted(id, /^ready to flip/);
  await one('ALTER TABLE orders_mid_1 ENABLE TRIGGER always');
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('aborted');
  expect((await moves.load(id)).error).toMatch(
    /"public.orders" was changed during the move: only at the destination: partition public.orders_mid_1 trigger always of its parent \(disabled\)/,
  );
});

describe('before a move', () => {
  test('what of single partitions cannot be right is said', async () => {
    await one(`
      CREATE TRIGGER "ünnamed" BEFORE INSERT ON orders_rest FOR EACH ROW EXECUTE FUNCTION app_private.touch('1');
      CREATE TABLE members (id int);
      CREATE POLICY reads ON orders_mid_0 USING (id IN (SELECT m.id FROM members m));
      CREATE POLICY parts ON orders_mid_1 USING (id IN (SELECT o.id FROM orders_rest o));
      CREATE SEQUENCE rest_numbers;
      CREATE FUNCTION numbered() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.version := nextval('rest_numbers'); RETURN NEW; END $$;
      CREATE TRIGGER numbered BEFORE INSERT ON orders_mid FOR EACH ROW EXECUTE FUNCTION numbered();
      CREATE RULE quietly AS ON DELETE TO orders_rest DO INSTEAD NOTHING;
      ALTER TABLE orders_attached DISABLE TRIGGER ALL`);
    const { findings, steps } = await dryRun(s.catalog, moveSpec([6n], null));
    expect(steps).toEqual([]);
    const blockers = findings.filter((f) => f.severity === 'blocker').map((f) => f.text);
    for (const text of [
      'partition "public.orders_rest" of "public.orders" has the trigger "ünnamed", whose name comes behind those of all guards',
      'partition "public.orders_mid_0" of "public.orders" has policies that read "public.members", which does not move with it',
      'partition "public.orders_mid_1" of "public.orders" has policies that read the partition "public.orders_rest"',
      'partition "public.orders_mid" of "public.orders" has triggers whose functions name the sequence public.rest_numbers, which does not move with it',
      'partition "public.orders_rest" of "public.orders" has rules (quietly)',
      'partition "public.orders_attached" of "public.orders" has foreign keys that are switched off, or on for replicas',
    ])
      expect(blockers).toContain(text);
  });

  test('a dry run shows them', async () => {
    const { findings, steps } = await dryRun(s.catalog, moveSpec([6n], null));
    expect(findings.filter((f) => f.severity === 'blocker')).toEqual([]);
    expect(findings.map((f) => f.text)).toContain(
      'table "public.orders" has triggers that fire for replicated rows, too (always, log_statements, named, Log Rows, leaf)',
    );
    const sql = steps.flatMap((step) => step.sql).join('\n');
    for (const part of [
      'CREATE TRIGGER leaf BEFORE INSERT ON public.orders_rest FOR EACH ROW',
      'ALTER TABLE ONLY "public"."orders_mid_1" DISABLE TRIGGER "always"',
      'CREATE POLICY late ON public.orders_rest',
      'ALTER TABLE "public"."orders_rest" FORCE ROW LEVEL SECURITY',
      'ALTER TABLE ONLY "public"."orders_attached" ENABLE REPLICA TRIGGER "always"',
    ])
      expect(sql).toContain(part);
  });
});
