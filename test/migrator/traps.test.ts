import type pg from 'pg';
import { describe, expect, test } from 'vitest';
import { requestAbort, requestEnd, requestFlip } from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import { GUARD_LOCK_CLASS } from '../../migrator/names.js';
import type { MigrationControls } from '../../topology/migration-controls.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, leftovers, RAISE, raised } from './setting.js';
import { audit } from './writers.js';

// What logical replication, snapshots and locks do that loses writes, or hangs, when it is not thought of. test/README.md has the list.

const HOUR = 3_600_000;
const moves = shopMoves(12, 50);
const { s } = moves;

/** A move of tenants from 6 on that follows its source, and flips when it is asked to. */
async function ready(options: Record<string, number> = {}, controls: Partial<MigrationControls> = {}): Promise<bigint> {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false, ...controls });
  moves.startMigrator(options);
  await moves.noted(id, /^ready to flip/);
  return id;
}

const holds = async () => (await s.catalog.pool.query('SELECT FROM foreshard.hold')).rowCount;

/** Until its transaction is a long one. */
const untilLong = (writer: pg.Client) =>
  waitFor(
    async () =>
      (
        await writer.query(
          "SELECT clock_timestamp() - xact_start > '600 ms' AS is FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        )
      ).rows[0].is,
    { what: 'the transaction to be long' },
  );

test('a transaction whose snapshot is older than the fence is refused by the guard', async () => {
  const id = await ready({ wayBackMs: HOUR });
  const old = await moves.session(s.urlOne);
  await old.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  await old.query('SELECT count(*) FROM orders');
  await requestFlip(s.catalog.pool, id, 'test');
  await moves.inState(id, 'reversing');
  await expect(old.query(RAISE)).rejects.toMatchObject({ code: 'SH001' });
  await old.query('ROLLBACK');
  await requestEnd(s.catalog.pool, id, 'finish', 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect(await audit(s, null, (t) => t >= 6)).toEqual([]);
});

test('the guard looks nothing up where its writer has put things of the same name', async () => {
  const id = await ready({ wayBackMs: HOUR });
  await requestFlip(s.catalog.pool, id, 'test');
  await moves.inState(id, 'reversing');
  const writer = await moves.session(s.urlOne);
  await writer.query(`CREATE FUNCTION public.never(bigint, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
    CREATE OPERATOR public.<> (LEFTARG = bigint, RIGHTARG = int, FUNCTION = public.never); SET search_path = public, pg_catalog`);
  await expect(writer.query(RAISE)).rejects.toMatchObject({ code: 'SH001' });
  await writer.query('DROP FUNCTION public.never CASCADE');
  await requestEnd(s.catalog.pool, id, 'finish', 'test');
  expect(await moves.atRest(id)).toBe('done');
});

test('a transaction that has been writing for long is waited for before anybody is held', async () => {
  const id = await ready();
  const writer = await moves.session(s.urlOne);
  await writer.query('BEGIN');
  await writer.query(RAISE);
  await untilLong(writer);
  await requestFlip(s.catalog.pool, id, 'test');
  await moves.noted(id, /^waiting for pid/);
  expect([await holds(), (await moves.load(id)).state]).toEqual([0, 'ready']);
  await writer.query('COMMIT');
  expect(await moves.atRest(id)).toBe('done');
  expect(await raised(s.urlTwo)).toBe(50);
});

test('so it is on the way back', async () => {
  const id = await ready({ wayBackMs: HOUR, sampleMs: 0 });
  await requestFlip(s.catalog.pool, id, 'test');
  await waitFor(async () => (await moves.load(id)).facts.exact === 'identical', { what: 'the flip' });
  const writer = await moves.session(s.urlTwo);
  await writer.query('BEGIN');
  await writer.query(RAISE);
  await untilLong(writer);
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  await moves.noted(id, /^waiting for pid/);
  expect([await holds(), (await moves.load(id)).state]).toEqual([0, 'rolling_back']);
  await writer.query('COMMIT');
  expect(await moves.atRest(id)).toBe('rolled_back');
  expect(await raised(s.urlOne)).toBe(50);
});

test('a transaction past the proxies is left alone, and named, also when transactions are to be ended', async () => {
  const id = await ready({ fenceMs: 100, fenceBackoffMs: 10, maxFenceTries: 2 }, { endTransactionsAfterMs: 10 });
  const writer = await moves.session(s.urlOne);
  await writer.query('BEGIN');
  await writer.query(RAISE);
  const { pid } = (await writer.query('SELECT pg_backend_pid() AS pid')).rows[0];
  await requestFlip(s.catalog.pool, id, 'test');
  const reason = await waitFor(
    async () => {
      const { events } = await showMigration(s.catalog.pool, id);
      return (await moves.load(id)).controls.flipRequested
        ? null
        : events.findLast(({ detail }) => 'why' in detail)?.detail.why;
    },
    { what: 'the flip to be given up' },
  );
  expect(reason).toMatch(new RegExp(`kept writing to the interval for 100 ms: pid ${pid} `));
  await writer.query('COMMIT');
  await moves.noted(id, /^ready to flip/);
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect(await raised(s.urlTwo)).toBe(50);
});

test('a prepared transaction is waited for, and what it wrote arrives', async () => {
  // Nobody but its coordinator can end it.
  const id = await ready({}, { endTransactionsAfterMs: 10 });
  const writer = await moves.session(s.urlOne);
  await writer.query('BEGIN');
  await writer.query(RAISE);
  await writer.query("PREPARE TRANSACTION 'trap'");
  await requestFlip(s.catalog.pool, id, 'test');
  await moves.noted(id, /^waiting for a prepared transaction/);
  expect([await holds(), (await moves.load(id)).state]).toEqual([0, 'ready']);
  await writer.query("COMMIT PREPARED 'trap'");
  expect(await moves.atRest(id)).toBe('done');
  expect(await raised(s.urlTwo)).toBe(50);
});

test('a write that waits for a flip is not ended by a lock_timeout that is meant for the application’s own locks', async () => {
  const id = await ready();
  // As the fence holds it, and whoever opens the gate.
  const gate = await moves.session(s.urlOne);
  await gate.query('SELECT pg_advisory_lock($1, $2)', [GUARD_LOCK_CLASS, id.toString()]);
  const writer = await moves.session(s.urlOne);
  await writer.query("SET lock_timeout = '20ms'");
  const written = writer.query(RAISE);
  const waits = `SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND NOT l.granted
    AND a.query_start < clock_timestamp() - interval '100 ms'`;
  await Promise.race([
    waitFor(async () => (await gate.query(waits)).rowCount === 1, { what: 'the write to wait' }),
    written,
  ]);
  await gate.query('SELECT pg_advisory_unlock_all()');
  await written;
  expect((await writer.query('SHOW lock_timeout')).rows).toEqual([{ lock_timeout: '20ms' }]);
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
});

test('TRUNCATE is refused on both sides: it would empty the destination’s table, or leave rows behind there', async () => {
  const id = await ready();
  for (const url of [s.urlOne, s.urlTwo])
    await withClient(url, (c) => expect(c.query('TRUNCATE orders CASCADE')).rejects.toMatchObject({ code: '55006' }));
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  await withClient(s.urlTwo, (c) => c.query('TRUNCATE orders CASCADE'));
});

test('sequences, which are not replicated, go on behind the numbers that the source has given out', async () => {
  const id = await ready();
  const draw = (url: string, column: string) =>
    withClient(url, async (c) =>
      Number((await c.query(`SELECT nextval(pg_get_serial_sequence('orders', '${column}')) AS n`)).rows[0].n),
    );
  const before = [await draw(s.urlOne, 'id'), await draw(s.urlOne, 'serial_no')];
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  const after = [await draw(s.urlTwo, 'id'), await draw(s.urlTwo, 'serial_no')];
  for (const [i, n] of after.entries()) expect(n).toBeGreaterThan(before[i] as number);
});

test('a slot of a table’s copy that was left behind goes with the migration', async () => {
  const id = await ready();
  const [sub] = await withClient(
    s.urlTwo,
    async (c) => (await c.query<{ oid: string }>('SELECT oid::text FROM pg_subscription')).rows,
  );
  await withClient(s.urlOne, (c) =>
    c.query(`SELECT pg_create_logical_replication_slot('pg_${sub?.oid}_sync_1_1', 'pgoutput')`),
  );
  await requestAbort(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('aborted');
  expect(await leftovers(s)).toEqual([]);
});

test('a replica identity without the key, with which every UPDATE would fail in the middle of the move, is found before it', async () => {
  await withClient(s.urlOne, (c) => c.query('CREATE TABLE logs (id int PRIMARY KEY, tenant_id int NOT NULL)'));
  await s.catalog.pool.query(`INSERT INTO foreshard.sharded_table VALUES ('public', 'logs', 'tenant', '{tenant_id}')`);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  expect(await moves.atRest(id)).toBe('failed');
  expect((await moves.load(id)).error).toMatch(/"public.logs" has a replica identity without its key \(tenant_id\)/);
  await withClient(s.urlOne, (c) => c.query('UPDATE logs SET id = 1'));
});

describe('a write that reaches the new owner before its gate is open', () => {
  const INSERT = "INSERT INTO orders (tenant_id, id, body) VALUES (7, 7000077, 'early')";

  /** Asks for the flip and keeps it from being committed; resolves when the write waits at the new owner. @returns what ends both */
  async function early(options: Record<string, number>) {
    const id = await ready(options);
    const catalog = await moves.session(s.catalogUrl);
    await catalog.query('BEGIN; SELECT FROM foreshard.meta FOR UPDATE');
    await requestFlip(s.catalog.pool, id, 'test');
    await withClient(s.urlTwo, async (c) => {
      const barred = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND mode = 'ExclusiveLock'";
      // The driver's own lock is another one.
      await waitFor(async () => (await c.query(barred)).rowCount === 2, { what: 'the gate to have writes wait' });
    });
    const client = await moves.session(s.urlTwo);
    const written = client.query(INSERT).then(
      () => 'written',
      (error: { code?: string }) => error.code,
    );
    return { id, written, goOn: () => catalog.query('ROLLBACK') };
  }

  test('waits for that, and is written', async () => {
    const { id, written, goOn } = await early({});
    await withClient(s.urlTwo, async (c) => {
      const waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
      await waitFor(async () => (await c.query(waiting)).rowCount === 1, { what: 'the write to wait' });
    });
    await goOn();
    expect(await written).toBe('written');
    expect(await moves.atRest(id)).toBe('done');
    expect(await leftovers(s)).toEqual([]);
  });

  test('is refused when the migrator says nothing any more, which then finishes forward', async () => {
    const { id, written, goOn } = await early({ fenceMs: 300, drainMs: 300 });
    expect(await written).toBe('SH001');
    await goOn();
    expect(await moves.atRest(id)).toBe('done');
    expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});
