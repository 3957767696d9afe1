import { expect, test } from 'vitest';
import { requestEnd, requestFlip } from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import { GATE_CLOSED } from '../../migrator/names.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, forgetProxy, leftovers, RAISE, raised, registerProxy } from './setting.js';
import { audit } from './writers.js';

// What the fence does for the one writer in a million: each test arranges him, while a proxy that has not acknowledged keeps the migrator waiting.

const HOUR = 3_600_000;
const moves = shopMoves(12, 20);
const { s } = moves;

/** Waits for a hold. @returns has the proxy acknowledge it */
async function held(proxy: string): Promise<() => Promise<void>> {
  const { pool } = s.catalog;
  const hold = await waitFor(async () => (await pool.query<{ id: string }>('SELECT id FROM foreshard.hold')).rows[0], {
    what: 'the hold',
  });
  return async () => {
    await pool.query('INSERT INTO foreshard.hold_ack (hold_id, proxy_id) VALUES ($1, $2)', [hold.id, proxy]);
  };
}

/** A move of tenants from 6 on that waits for one proxy to acknowledge its hold, which `acknowledge` does. */
async function holding(options: Record<string, number> = {}): Promise<{ id: bigint; acknowledge(): Promise<void> }> {
  const proxy = await registerProxy(s, 'slow');
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ fenceBackoffMs: 50, ...options });
  return { id, acknowledge: await held(proxy) };
}

const gate = async (url: string): Promise<number> =>
  withClient(url, async (c) => {
    const { rows } = await c.query<{ name: string }>(
      "SELECT c.oid::regclass::text AS name FROM pg_class c WHERE relkind = 'S' AND relname LIKE 'gate%'",
    );
    return Number((await c.query(`SELECT last_value AS n FROM ${rows[0]?.name}`)).rows[0].n);
  });

const whys = async (id: bigint) => (await showMigration(s.catalog.pool, id)).events.map((e) => e.detail.why);

/** The fence of a migration waits for a writer, who has written to its interval past the proxies. */
async function fencing() {
  const { id, acknowledge } = await holding();
  const writer = await moves.session(s.urlOne);
  await writer.query('BEGIN');
  await writer.query(RAISE);
  await acknowledge();
  const waits = `SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted`;
  await waitFor(async () => (await writer.query(waits)).rowCount === 1, { what: 'the fence to wait' });
  return { id, writer };
}

test('a transaction that has written to the interval past the proxies is waited for', async () => {
  const { id, writer } = await fencing();
  await writer.query('COMMIT');
  expect(await moves.atRest(id)).toBe('done');
  expect(await raised(s.urlTwo)).toBe(20);
  expect((await moves.load(id)).facts.exact).toBe('identical');
});

const UNACKNOWLEDGED = 'a proxy that has not acknowledged the hold appeared before the flip';

test.each([
  ['a proxy that comes', UNACKNOWLEDGED, () => registerProxy(s, 'late')],
  [
    'an acknowledgement that a crash of the catalog loses',
    UNACKNOWLEDGED,
    (sql) => sql('DELETE FROM foreshard.hold_ack'),
  ],
  [
    'a hold that runs out',
    'the hold ran out before the flip',
    (sql) => sql('UPDATE foreshard.hold SET deadline = clock_timestamp()'),
  ],
  [
    'a hold that is gone',
    'the hold ran out before the flip',
    (sql) => sql(`DELETE FROM foreshard.hold; DELETE FROM foreshard.proxy`),
  ],
] satisfies [string, string, (sql: (text: string) => Promise<unknown>) => Promise<unknown>][])(
  '%s behind the acknowledgements keeps the flip from happening',
  async (_, why, happen) => {
    const { id, writer } = await fencing();
    await happen((text) => s.catalog.pool.query(text));
    await writer.query('COMMIT');
    await waitFor(async () => (await whys(id)).includes(why), { what: 'the fence to be missed' });
    await withClient(s.urlOne, (c) => c.query(RAISE));
    for (const name of ['slow', 'late']) await forgetProxy(s, name);
    expect(await moves.atRest(id)).toBe('done');
    expect(await raised(s.urlTwo)).toBe(40);
    expect(await leftovers(s)).toEqual([]);
  },
);

test('a destination that does not get on is not made the owner', async () => {
  const { id, acknowledge } = await holding({ drainMs: 300 });
  const there = await moves.session(s.urlTwo);
  await there.query('BEGIN');
  await there.query('LOCK TABLE orders IN SHARE MODE');
  await withClient(s.urlOne, (c) => c.query(RAISE));
  await acknowledge();
  const missed = async () =>
    (await whys(id)).includes('the destination did not apply everything within 300 ms of the fence');
  await waitFor(missed, { what: 'the fence to be missed' });
  // Its clients go on where they were, and no proxy holds them any more.
  expect((await s.catalog.pool.query('SELECT FROM foreshard.hold')).rowCount).toBe(0);
  await withClient(s.urlOne, (c) => c.query(RAISE));
  await forgetProxy(s, 'slow');
  await there.query('ROLLBACK');
  expect(await moves.atRest(id)).toBe('done');
  expect(await raised(s.urlTwo)).toBe(40);
});

test('a gate that does not stay closed, as a failover of the source might leave it, keeps the flip from happening', async () => {
  const { id, acknowledge } = await holding();
  await withClient(s.urlOne, async (c) => {
    const { rows } = await c.query<{ gate: string; marker: string }>(
      `SELECT max(c.oid::regclass::text) FILTER (WHERE relname LIKE 'gate%') AS gate,
              max(c.oid::regclass::text) FILTER (WHERE relname LIKE 'marker%' AND relkind = 'r') AS marker
         FROM pg_class c WHERE relnamespace = 'foreshard_shard'::regnamespace`,
    );
    // The fence writes the marker when it has closed the gate.
    await c.query(`CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN PERFORM setval('${rows[0]?.gate}', 1); RETURN NEW; END $$`);
    await c.query(`CREATE TRIGGER lose BEFORE UPDATE ON ${rows[0]?.marker} FOR EACH ROW EXECUTE FUNCTION lose()`);
  });
  await acknowledge();
  const missed = async () => (await whys(id)).includes('the gate at the source did not stay closed');
  await waitFor(missed, { what: 'the fence to be missed' });
  await forgetProxy(s, 'slow');
  await withClient(s.urlOne, (c) => c.query('DROP FUNCTION lose CASCADE'));
  expect(await moves.atRest(id)).toBe('done');
});

test('a server that says nothing any more behind the fence is not waited for', async () => {
  const { id, acknowledge } = await holding({ fenceMs: 200, drainMs: 300 });
  const { rows } = await withClient(s.urlTwo, (c) =>
    c.query<{ pid: number }>("SELECT pid FROM pg_stat_activity WHERE application_name = 'foreshard migrator (reader)'"),
  );
  expect(rows).toHaveLength(1);
  const pid = rows[0]?.pid as number;
  process.kill(pid, 'SIGSTOP');
  try {
    await acknowledge();
    const undone = async () => (await whys(id)).includes('the migrator was interrupted at the fence');
    await waitFor(undone, { what: 'the fence to be undone' });
    expect(await gate(s.urlOne)).not.toBe(GATE_CLOSED);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  await forgetProxy(s, 'slow');
  expect(await moves.atRest(id)).toBe('done');
  expect(await audit(s, null, (t) => t >= 6)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

test('on the way back, a source that does not get on leaves the new owner as it was, and is tried again', async () => {
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ fenceBackoffMs: 50, drainMs: 300, wayBackMs: HOUR, sampleMs: 0 });
  await waitFor(async () => (await moves.load(id)).facts.exact === 'identical', { what: 'the flip' });
  const proxy = await registerProxy(s, 'slow');
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  const acknowledge = await held(proxy);
  const there = await moves.session(s.urlOne);
  await there.query('BEGIN');
  await there.query('LOCK TABLE orders IN SHARE MODE');
  await withClient(s.urlTwo, (c) => c.query(RAISE));
  await acknowledge();
  await waitFor(async () => (await moves.load(id)).facts.backTries === 1, { what: 'the fence to be missed' });
  await withClient(s.urlTwo, (c) => c.query(RAISE));
  expect((await s.catalog.pool.query('SELECT FROM foreshard.hold')).rowCount).toBe(0);
  await forgetProxy(s, 'slow');
  await there.query('ROLLBACK');
  expect(await moves.atRest(id)).toBe('rolled_back');
  expect(await raised(s.urlOne)).toBe(40);
  expect(await leftovers(s)).toEqual([]);
});

test('on the way back, a fence that cannot be had leaves all as it was, and may be asked for again', async () => {
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ fenceBackoffMs: 10, ackMs: 50, maxFenceTries: 2, wayBackMs: HOUR, sampleMs: 0 });
  await waitFor(async () => (await moves.load(id)).facts.exact === 'identical', { what: 'the flip' });
  await registerProxy(s, 'deaf');
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  const given = await waitFor(
    async () => {
      const row = await moves.load(id);
      return row.error === null ? null : row;
    },
    { what: 'the rollback to be given up' },
  );
  expect(given).toMatchObject({ state: 'reversing', requested: null, facts: { backTries: 0 } });
  expect(given.error).toMatch(/^2 fences were missed; the last one because proxies did not acknowledge .*: deaf/);
  expect((await s.catalog.pool.query('SELECT FROM foreshard.hold')).rowCount).toBe(0);
  await withClient(s.urlTwo, (c) => c.query(RAISE));
  await forgetProxy(s, 'deaf');
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  expect(await moves.atRest(id)).toBe('rolled_back');
  expect(await raised(s.urlOne)).toBe(20);
  expect(await leftovers(s)).toEqual([]);
});

/** A table that everybody has, and this migration does not take along. */
const declare = () =>
  s.catalog.pool.query(`INSERT INTO foreshard.reference_table VALUES ('public', 'late');
    INSERT INTO foreshard.reference_copy VALUES ('public', 'late', 'one');
    UPDATE foreshard.meta SET epoch = epoch + 1`);

test('a table that is declared behind the last look at the tables keeps the flip from happening', async () => {
  const { id, acknowledge } = await holding();
  await declare();
  await acknowledge();
  await forgetProxy(s, 'slow');
  expect(await moves.atRest(id)).toBe('aborted');
  expect((await moves.load(id)).error).toMatch(/tables were added during the move: public.late/);
  await withClient(s.urlOne, (c) => c.query(RAISE));
  expect(await leftovers(s)).toEqual([]);
});

test.each([
  ['declared', /tables were added during the move: public.late/, declare],
  [
    'changed',
    /table "public.orders" was changed during the move: .*version_is_positive/,
    () => withClient(s.urlTwo, (c) => c.query('ALTER TABLE orders DROP CONSTRAINT version_is_positive')),
  ],
] as const)(
  'a table that is %s while a migration waits for its flip undoes it, and nobody is held',
  async (_, error, change) => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    await moves.noted(id, /^ready to flip/);
    await change();
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(error);
    const { events } = await showMigration(s.catalog.pool, id);
    expect(events.map((e) => e.state)).not.toContain('fencing');
  },
);
