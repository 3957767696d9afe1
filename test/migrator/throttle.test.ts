import { describe, expect, test } from 'vitest';
import { lastComparison } from '../../migrator/comparison.js';
import { requestAbort, requestComparison, setPaused, setThrottle } from '../../migrator/migration-requests.js';
import { STOPPED } from '../../migrator/pace.js';
import type { ThrottleLimits } from '../../topology/migration-controls.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, askOnChange, entering, leftovers, pauseOnEntering } from './setting.js';
import { audit } from './writers.js';

const moves = shopMoves(12, 1000);
const { s } = moves;

const OFF: ThrottleLimits = { maxRate: null, maxLagMs: null, maxLatencyMs: null };
/** For `askOnChange`. */
const slower = (maxRate: number) =>
  `controls := NEW.controls || '${JSON.stringify({ throttle: { ...OFF, maxRate } })}'`;
const approve = (throttle: Partial<ThrottleLimits>) =>
  approveMove(s, [6n], null, 'one', 'two', { throttle: { ...OFF, ...throttle } });

/** Rows of orders that are being copied at the destination, as its worker counts them; null: it does not copy. */
const copied = (): Promise<number | null> =>
  withClient(s.urlTwo, async (c) => {
    const { rows } = await c.query<{ n: string }>(
      "SELECT p.tuples_processed AS n FROM pg_stat_progress_copy p WHERE relid = 'orders'::regclass",
    );
    return rows[0] === undefined ? null : Number(rows[0].n);
  });

/** Value of the sequence that paces the copy. */
const pace = (): Promise<number> =>
  withClient(s.urlTwo, async (c) => {
    const { rows } = await c.query<{ name: string }>(
      "SELECT oid::regclass::text AS name FROM pg_class WHERE relname ~ '^pace_' AND relkind = 'S'",
    );
    return Number((await c.query(`SELECT last_value FROM ${rows[0]?.name}`)).rows[0].last_value);
  });

/** Until a part of the table has been copied and its worker sleeps at a pace at which no more comes. */
const stopped = () =>
  waitFor(
    async () => {
      // Looked at first: a worker that sleeps since before looks at the pace again before it goes on.
      if ((await pace()) !== STOPPED) return null;
      const rows = await withClient(s.urlTwo, async (c) => {
        const asleep = await c.query<{ n: string }>(
          `SELECT p.tuples_processed AS n FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid)
            WHERE p.relid = 'orders'::regclass AND a.wait_event = 'PgSleep'`,
        );
        return asleep.rows;
      });
      return rows[0] === undefined ? null : Number(rows[0].n);
    },
    { what: 'the copy to stop in the middle' },
  );

/** A migrator that writes down that it is not paused any more waits until it is let go. */
async function keepFromGoingOn() {
  const { pool } = s.catalog;
  await pool.query(`CREATE OR REPLACE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NEW; END $$`);
  await pool.query(`CREATE TRIGGER keep BEFORE UPDATE ON foreshard.migration FOR EACH ROW
    WHEN (OLD.progress->>'note' = 'paused' AND NEW.progress->>'note' IS NULL) EXECUTE FUNCTION public.keep()`);
  moves.atStop(async () => {
    await pool.query('DROP TRIGGER keep ON foreshard.migration');
  });
  const keeper = await moves.session(s.catalogUrl);
  await keeper.query('SELECT pg_advisory_lock(77)');
  const waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted";
  return {
    isKept: async () => (await keeper.query(waiting)).rowCount === 1,
    letGo: () => keeper.query('SELECT pg_advisory_unlock(77)'),
  };
}

describe('the initial copy', () => {
  test('keeps to a rate that is changed while it runs, loses nothing, and is not begun again', async () => {
    const { writers } = await moves.startLoad(12);
    // A row is some 100 bytes: at 2 kB/s the 6,000 orders take five minutes.
    const id = await approve({ maxRate: 2000 });
    moves.startMigrator();
    const part = await waitFor(copied, { what: 'the copy' });
    expect(await pace()).toBeGreaterThan(STOPPED);
    expect((await moves.load(id)).state).toBe('copying');
    const before = writers.acknowledged;
    await waitFor(() => writers.acknowledged > before + 100, { what: 'writes meanwhile' });
    expect(await copied()).toBeLessThan(6000);
    expect(await copied()).toBeGreaterThanOrEqual(part);
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    expect(await moves.atRest(id)).toBe('done');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    await expect(setThrottle(s.catalog.pool, id, {}, 'test')).rejects.toThrow(/is done: there is nothing to change/);
  });

  test('is paced from its beginning', async () => {
    // What the pace is when the subscription is about to be made.
    await withClient(s.urlTwo, (c) =>
      c.query(`CREATE TABLE paces (at_first bigint);
        CREATE FUNCTION note_pace() RETURNS event_trigger LANGUAGE plpgsql AS $$
          DECLARE pace regclass := (SELECT oid FROM pg_class WHERE relname ~ '^pace_' AND relkind = 'S');
          BEGIN EXECUTE 'INSERT INTO public.paces SELECT last_value FROM ' || pace; END $$;
        CREATE EVENT TRIGGER note_pace ON ddl_command_start WHEN TAG IN ('CREATE SUBSCRIPTION') EXECUTE FUNCTION note_pace()`),
    );
    const id = await approve({ maxRate: 8_000_000 });
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('done');
    const { rows } = await withClient(s.urlTwo, (c) => c.query('SELECT at_first::int FROM paces'));
    // Shared by its four tables, as it is not known yet how many are copied at a time.
    expect(rows).toEqual([{ at_first: 2_000_000 }]);
  });

  test('is paced also where nobody may call functions but whom somebody lets', async () => {
    await withClient(s.urlTwo, (c) => c.query('ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC'));
    const id = await approve({});
    moves.startMigrator();
    // The workers copy orders as their owner, who is nobody in particular there.
    expect([await moves.atRest(id), (await moves.load(id)).error]).toEqual(['done', null]);
    expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('stops where it is when the migration is paused, and goes on there', async () => {
    const id = await approve({ maxRate: 20_000 });
    moves.startMigrator();
    await waitFor(async () => ((await copied()) ?? 0) > 600, { what: 'a part of the copy' });
    await setPaused(s.catalog.pool, id, true, 'test');
    const part = await stopped();
    expect((await moves.load(id)).state).toBe('copying');
    const worker = await withClient(
      s.urlTwo,
      async (c) => (await c.query('SELECT pid FROM pg_stat_progress_copy')).rows,
    );
    await setThrottle(s.catalog.pool, id, { ...OFF, maxRate: 100_000 }, 'test');
    const { isKept, letGo } = await keepFromGoingOn();
    await setPaused(s.catalog.pool, id, false, 'test');
    await waitFor(isKept, { what: 'the migrator to go on' });
    // It does not run free before it is paced again.
    expect(await pace()).toBe(STOPPED);
    await letGo();
    await waitFor(async () => (await copied()) !== part, { what: 'the copy to go on' });
    const still = await withClient(
      s.urlTwo,
      async (c) => (await c.query('SELECT pid FROM pg_stat_progress_copy')).rows,
    );
    // Or it is through already.
    if (still.length > 0) expect(still).toEqual(worker);
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    expect(await moves.atRest(id)).toBe('done');
    expect(await leftovers(s)).toEqual([]);
  });

  test('slows down while small writes are slow, and says so', async () => {
    const id = await approve({ maxRate: 1_000_000, maxLatencyMs: 0.000_001 });
    moves.startMigrator();
    await moves.noted(id, /^slowed down: small writes take/);
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    expect(await moves.atRest(id)).toBe('done');
  });

  test('is undone in the middle', async () => {
    const id = await approve({ maxRate: 2000 });
    moves.startMigrator();
    await waitFor(copied, { what: 'the copy' });
    await s.catalog.pool.query('UPDATE foreshard.migration SET abort_requested = true WHERE id = $1', [id.toString()]);
    expect(await moves.atRest(id)).toBe('aborted');
    expect(await leftovers(s)).toEqual([]);
  });
});

test('the removal of the rows keeps to a rate that is changed while it runs', async () => {
  const id = await approveMove(s, null, [6n], 'one', 'two', { throttle: OFF });
  const left = () =>
    withClient(s.urlOne, async (c) =>
      Number((await c.query('SELECT count(*) FROM "Odd Items" WHERE "Tenant Id" < 6')).rows[0].count),
    );
  // One page a transaction, and eight kilobytes a second from the flip on.
  await askOnChange(s, 'slow_clean', slower(8192), entering('cleaning'));
  moves.atStop(() => askOnChange(s, 'slow_clean', '', null));
  moves.startMigrator({ removePages: 1 });
  await moves.noted(id, /removing moved rows of public.Odd Items: \d+ %/);
  const some = await left();
  expect(some).toBeGreaterThan(0);
  await waitFor(async () => (await left()) < some, { what: 'it to go on' });
  expect(await left()).toBeGreaterThan(0);
  await setThrottle(s.catalog.pool, id, OFF, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect(await left()).toBe(0);
});

describe('the comparison', () => {
  const atDestination = (sql: string) =>
    withClient(s.urlTwo, async (c) => {
      await c.query('SET session_replication_role = replica');
      await c.query(sql);
    });

  test('keeps to a rate that is changed while it runs, tells how far it is, and goes on where a migrator has died', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false, throttle: OFF });
    await askOnChange(s, 'slow_verify', slower(10_000), entering('verifying'));
    moves.atStop(() => askOnChange(s, 'slow_verify', '', null));
    moves.startMigrator({ compareRows: 100 });
    const place = await waitFor(
      async () => (await moves.load(id)).facts.verifying as { table: string; rows: number } | null,
      {
        what: 'the place where the comparison is',
      },
    );
    expect(place.table).toBe('public.Odd Items');
    const { progress } = await moves.load(id);
    expect(progress).toMatchObject({ compared: { rowsTotal: 100 + 7000 + 7000 + 7 }, etaSeconds: expect.any(Number) });
    await moves.stop();
    const { rows } = (await moves.load(id)).facts.verifying as { rows: number };
    expect(rows).toBeLessThan(7000);
    // What has been compared is not looked at again, or this would be found.
    await atDestination(
      `UPDATE "Odd Items" SET tags = '{other}' WHERE ("Tenant Id", order_id) = (SELECT "Tenant Id", order_id FROM "Odd Items" ORDER BY 1, 2 LIMIT 1)`,
    );
    await setThrottle(s.catalog.pool, id, { ...OFF, maxRate: 100_000 }, 'test');
    moves.startMigrator({ compareRows: 100 });
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    await moves.inState(id, 'ready');
    expect((await moves.load(id)).facts).toMatchObject({
      verified: { 'public.countries': 100, 'public.Odd Items': 7000, 'public.orders': 7000, 'public.tenants': 7 },
      verifying: null,
    });
    await waitFor(async () => (await moves.load(id)).progress.compared === null, { what: 'the end of its progress' });
    await requestComparison(s.catalog.pool, id, 'test');
    const found = await waitFor(async () => lastComparison(await moves.load(id)), { what: 'the comparison' });
    expect(found.tables.map((t) => t.differing)).toEqual([0, 1, 0, 0]);
    await requestAbort(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
  });

  test('finds rows that differ, that are missing and that nobody has written, names them, and goes no further', async () => {
    const id = await approve({});
    await pauseOnEntering(s, 'verifying');
    moves.atStop(() => pauseOnEntering(s, null));
    moves.startMigrator({ compareRows: 100 });
    await moves.noted(id, /^paused$/);
    const [row] = await withClient(
      s.urlTwo,
      async (c) => (await c.query<{ min: string; max: string }>('SELECT min(id), max(id) FROM orders')).rows,
    );
    const [first, last] = [Number(row?.min), Number(row?.max)];
    await atDestination(`DELETE FROM orders WHERE id = ${first}`);
    await atDestination(`UPDATE orders SET body = body || ' ' WHERE id = ${last - 1500}`);
    await atDestination(`INSERT INTO orders (tenant_id, id, serial_no) VALUES (12, ${last + 1}, 1)`);
    await setPaused(s.catalog.pool, id, false, 'test');
    const found = await waitFor(async () => lastComparison(await moves.load(id)), { what: 'the differences' });
    expect(found.tables).toMatchObject([
      {
        table: 'public.orders',
        differing: 3,
        keys: [`["${first}", "6"]`, `["${last - 1500}", "11"]`, `["${last + 1}", "12"]`],
      },
    ]);
    expect((await moves.load(id)).state).toBe('verifying');
    await requestAbort(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    expect(await leftovers(s)).toEqual([]);
  });
});
