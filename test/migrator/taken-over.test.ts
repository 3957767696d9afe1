import { expect, test } from 'vitest';
import { requestAbort, requestEnd, setPaused } from '../../migrator/migration-requests.js';
import { GATE_CLOSED, GATE_OPEN } from '../../migrator/names.js';
import type { MigrationState } from '../../topology/migration.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, forgetProxy, leftovers, pauseOnEntering, RAISE, raised, registerProxy } from './setting.js';

// What the dead, and failovers to a standby that had not heard of everything, leave of gates and holds; and what is made of it first of all, whatever else takes its time.

const moves = shopMoves(12, 20);
const { s } = moves;
const HOUR = 3_600_000;

const setGate = (url: string, value: number) =>
  withClient(url, async (c) => {
    const { rowCount } = await c.query(
      `SELECT setval(oid::regclass, ${value}) FROM pg_class WHERE relkind = 'S' AND relname LIKE 'gate%'`,
    );
    expect(rowCount).toBe(1);
  });

const write = (url: string) => withClient(url, async (c) => (await c.query(RAISE)).rowCount);

/** The migrator that `stop` ends has left the migration in this state. */
async function left(stop: () => Promise<void>, id: bigint, state: MigrationState): Promise<void> {
  await stop();
  await s.catalog.pool.query('UPDATE foreshard.migration SET state = $2 WHERE id = $1', [id.toString(), state]);
}

const leaveHold = (id: bigint) =>
  s.catalog.pool.query(
    `INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline)
     VALUES ($1, 'tenant', false, clock_timestamp() + interval '1 hour')`,
    [id.toString()],
  );
const holds = async () => (await s.catalog.pool.query('SELECT FROM foreshard.hold')).rowCount;

test('an abort behind the fence has clients go on before anything is undone', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  const stop = moves.startMigrator();
  await moves.noted(id, /^ready to flip/);
  await left(stop, id, 'fencing');
  await setGate(s.urlOne, GATE_CLOSED);
  await leaveHold(id);
  await requestAbort(s.catalog.pool, id, 'test');
  // Keeps the guards from going.
  const reader = await moves.session(s.urlOne);
  await reader.query('BEGIN; SELECT FROM orders LIMIT 1');
  await expect(write(s.urlOne)).rejects.toMatchObject({ code: 'SH001' });
  moves.startMigrator();
  await waitFor(() => write(s.urlOne), { what: 'a write' });
  await waitFor(async () => (await holds()) === 0, { what: 'the hold to be dropped' });
  expect((await moves.load(id)).state).toBe('aborting');
  await reader.query('ROLLBACK');
  expect(await moves.atRest(id)).toBe('aborted');
  expect(await leftovers(s)).toEqual([]);
});

test('a rollback that died behind its fence has clients go on before it is tried again', async () => {
  const id = await approveMove(s, [6n], null);
  const stop = moves.startMigrator({ wayBackMs: HOUR, sampleMs: 0 });
  await moves.noted(id, /^the way back is open/);
  // Keeps the source from following.
  const there = await moves.session(s.urlOne);
  await there.query('BEGIN; LOCK TABLE orders IN SHARE MODE');
  await write(s.urlTwo);
  await left(stop, id, 'rolling_back');
  await setGate(s.urlTwo, GATE_CLOSED);
  await leaveHold(id);
  await expect(write(s.urlTwo)).rejects.toMatchObject({ code: 'SH001' });
  moves.startMigrator({ wayBackMs: HOUR, sampleMs: 0 });
  await waitFor(() => write(s.urlTwo), { what: 'a write' });
  await waitFor(async () => (await holds()) === 0, { what: 'the hold to be dropped' });
  expect((await moves.load(id)).state).toBe('rolling_back');
  await there.query('ROLLBACK');
  expect(await moves.atRest(id)).toBe('rolled_back');
  expect(await raised(s.urlOne)).toBe(40);
  expect(await leftovers(s)).toEqual([]);
});

test('gates that are lost behind the flip are as they were before rows are removed', async () => {
  await pauseOnEntering(s, 'cleaning');
  moves.atStop(() => pauseOnEntering(s, null));
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  await moves.noted(id, /^paused$/);
  await setGate(s.urlOne, GATE_OPEN);
  await setGate(s.urlTwo, GATE_CLOSED);
  await registerProxy(s, 'slow', { epoch: 0n });
  await setPaused(s.catalog.pool, id, false, 'test');
  // While nobody may remove rows yet.
  await waitFor(() => write(s.urlTwo), { what: 'a write at the new owner' });
  await expect(write(s.urlOne)).rejects.toMatchObject({ code: 'SH001' });
  await forgetProxy(s, 'slow');
  expect(await moves.atRest(id)).toBe('done');
  expect(await leftovers(s)).toEqual([]);
});

test('so are those of one that keeps a way back', async () => {
  const id = await approveMove(s, [6n], null);
  const stop = moves.startMigrator({ wayBackMs: HOUR, sampleMs: 0 });
  await moves.inState(id, 'reversing');
  await left(stop, id, 'flipped');
  await setGate(s.urlOne, GATE_OPEN);
  await setGate(s.urlTwo, GATE_CLOSED);
  moves.startMigrator({ wayBackMs: HOUR, sampleMs: 0 });
  await moves.inState(id, 'reversing');
  await expect(write(s.urlOne)).rejects.toMatchObject({ code: 'SH001' });
  expect(await write(s.urlTwo)).toBe(20);
  await requestEnd(s.catalog.pool, id, 'finish', 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect(await leftovers(s)).toEqual([]);
});

test('rows that come to the source when the guards are gone are nobody’s to remove', async () => {
  const id = await approveMove(s, [6n], null);
  const stop = moves.startMigrator();
  expect(await moves.atRest(id)).toBe('done');
  // It died between the last guard and the last state.
  await left(stop, id, 'cleaning');
  await withClient(s.urlOne, (c) => c.query("INSERT INTO tenants (id, name) VALUES (7, 'a stray')"));
  moves.startMigrator();
  await moves.inState(id, 'done');
  await withClient(s.urlOne, async (c) => expect((await c.query('SELECT FROM tenants WHERE id = 7')).rowCount).toBe(1));
});
