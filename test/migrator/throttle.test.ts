import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { setPaused, setThrottle } from '../../migrator/migration-requests.js';
import { loadMigration } from '../../migrator/migration-row.js';
import { STOPPED } from '../../migrator/pace.js';
import type { ThrottleLimits } from '../../topology/migration-controls.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { Moves } from './moves.js';
import { approveMove, leftovers, resetShop, type Setting } from './setting.js';
import { audit } from './writers.js';

let moves: Moves;
let s: Setting;

beforeAll(async () => {
  moves = await Moves.start();
  s = moves.s;
});
afterAll(() => moves.close());
afterEach(() => moves.stop());
beforeEach(() => resetShop(s, 12, 1000));

const OFF: ThrottleLimits = { maxRate: null, maxLagMs: null, maxLatencyMs: null };
const load = (id: bigint) => loadMigration(s.catalog.pool, id);
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
    { what: 'the copy to stop in the middle', timeoutMs: 60_000 },
  );

describe('the initial copy', () => {
  test('keeps to a rate that is changed while it runs, loses nothing, and is not begun again', async () => {
    const { writers } = await moves.startLoad(12);
    // A row is some 100 bytes: at 2 kB/s the 6,000 orders take five minutes.
    const id = await approve({ maxRate: 2000 });
    moves.startMigrator();
    const part = await waitFor(copied, { what: 'the copy', timeoutMs: 40_000 });
    await waitFor(async () => (await pace()) > 1, { what: 'the pace to be set' });
    expect((await load(id)).state).toBe('copying');
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
    await expect(setThrottle(s.catalog.pool, id, {}, 'test')).rejects.toThrow(/is done: there is nothing to throttle/);
  });

  test('stops where it is when the migration is paused, and goes on there', async () => {
    const id = await approve({ maxRate: 20_000 });
    moves.startMigrator();
    await waitFor(async () => ((await copied()) ?? 0) > 600, { what: 'a part of the copy', timeoutMs: 40_000 });
    await setPaused(s.catalog.pool, id, true, 'test');
    const part = await stopped();
    expect((await load(id)).state).toBe('copying');
    const worker = await withClient(
      s.urlTwo,
      async (c) => (await c.query('SELECT pid FROM pg_stat_progress_copy')).rows,
    );
    await setThrottle(s.catalog.pool, id, { ...OFF, maxRate: 100_000 }, 'test');
    await setPaused(s.catalog.pool, id, false, 'test');
    await waitFor(async () => (await copied()) !== part, { what: 'the copy to go on', timeoutMs: 40_000 });
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
    await waitFor(async () => (await load(id)).progress.note?.startsWith('slowed down: small writes take') === true, {
      what: 'the note',
      timeoutMs: 40_000,
    });
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    expect(await moves.atRest(id)).toBe('done');
  });

  test('is undone in the middle', async () => {
    const id = await approve({ maxRate: 2000 });
    moves.startMigrator();
    await waitFor(copied, { what: 'the copy', timeoutMs: 40_000 });
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
  await s.catalog.pool.query(`CREATE OR REPLACE FUNCTION public.slow_clean() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.controls := NEW.controls || '{"throttle": {"maxRate": 8192, "maxLagMs": null, "maxLatencyMs": null}}'; RETURN NEW; END $$`);
  await s.catalog.pool.query(`CREATE TRIGGER slow_clean BEFORE UPDATE OF state ON foreshard.migration FOR EACH ROW
    WHEN (NEW.state = 'cleaning' AND OLD.state <> 'cleaning') EXECUTE FUNCTION public.slow_clean()`);
  moves.atStop(async () => {
    await s.catalog.pool.query('DROP TRIGGER slow_clean ON foreshard.migration');
  });
  moves.startMigrator({ removePages: 1 });
  await waitFor(
    async () => /removing moved rows of public.Odd Items: \d+ %/.test((await load(id)).progress.note ?? ''),
    {
      what: 'the removal',
      timeoutMs: 40_000,
    },
  );
  const some = await left();
  expect(some).toBeGreaterThan(0);
  await waitFor(async () => (await left()) < some, { what: 'it to go on', timeoutMs: 20_000 });
  expect(await left()).toBeGreaterThan(0);
  await setThrottle(s.catalog.pool, id, OFF, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect(await left()).toBe(0);
});
