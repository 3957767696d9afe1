import { describe, expect, test } from 'vitest';
import { requestAbort, requestFlip, setPaused } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, forgetProxy, leftovers, registerProxy } from './setting.js';
import { audit } from './writers.js';

const moves = shopMoves(12, 50);
const { s } = moves;

/** Until it says that it waits to flip. */
async function waiting(id: bigint): Promise<string | null | undefined> {
  await moves.noted(id, /^ready to flip/);
  const { state, progress } = await moves.load(id);
  expect(state).toBe('ready');
  return progress.note;
}

/** An hour of the day that the clock is not near. */
function elsewhen(): { from: string; to: string; timeZone: string } {
  const hour = (new Date().getUTCHours() + 12) % 24;
  const two = (n: number) => `${n % 24}`.padStart(2, '0');
  return { from: `${two(hour)}:00`, to: `${two(hour + 1)}:00`, timeZone: 'UTC' };
}

describe('a migration that does not go the whole way by itself', () => {
  test('follows its source, ready, until its flip is asked for', async () => {
    const { writers } = await moves.startLoad(12);
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    expect(await waiting(id)).toBe('ready to flip: waiting for somebody to ask for its flip');
    const before = writers.acknowledged;
    await waitFor(() => writers.acknowledged > before + 50, { what: 'writes meanwhile' });
    const versions = (url: string) =>
      withClient(url, async (c) =>
        Number((await c.query('SELECT sum(version) AS n FROM orders WHERE tenant_id >= 6')).rows[0].n),
      );
    const there = await versions(s.urlOne);
    await waitFor(async () => (await versions(s.urlTwo)) >= there, { what: 'the destination to follow' });
    expect((await moves.load(id)).state).toBe('ready');

    expect((await requestFlip(s.catalog.pool, id, 'test')).state).toBe('ready');
    expect(await moves.atRest(id)).toBe('done');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    await expect(requestFlip(s.catalog.pool, id, 'test')).rejects.toThrow(/has flipped: it is done/);
  });

  test('can be asked before it is ready', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    expect((await requestFlip(s.catalog.pool, id, 'test')).state).toBe('approved');
    await expect(requestFlip(s.catalog.pool, id, 'test')).rejects.toThrow(/asked to flip already/);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('done');
  });

  test('is said to when its slot is lost while it waits, and is undone', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    await waiting(id);
    await withClient(s.urlOne, async (c) => {
      const drop = `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL`;
      await waitFor(
        async () => {
          await c.query(drop);
          await c.query('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots').catch(() => undefined); // taken again
          return (await c.query('SELECT FROM pg_replication_slots')).rowCount === 0;
        },
        { what: 'the slot to be gone' },
      );
    });
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(/replication slot on shard "one" is gone/);
    expect(await leftovers(s)).toEqual([]);
  });

  test('keeps what it has copied when the flip that was asked for cannot be had', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator({ maxFenceTries: 2, ackMs: 50, fenceBackoffMs: 10 });
    await waiting(id);
    await registerProxy(s, 'deaf');
    await requestFlip(s.catalog.pool, id, 'test');
    const back = await waitFor(
      async () => {
        const row = await moves.load(id);
        return row.facts.fenceTries === 0 ? row : null;
      },
      { what: 'the flip to be given up' },
    );
    expect(back.controls.flipRequested).toBe(false);
    await forgetProxy(s, 'deaf');
    await waiting(id);
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
  });
});

describe('a migration with a flip window', () => {
  test('waits for it, and flips outside of it when somebody asks for that', async () => {
    const flipWindow = elsewhen();
    const id = await approveMove(s, [6n], null, 'one', 'two', { flipWindow });
    moves.startMigrator();
    expect(await waiting(id)).toContain(`its flip window, ${flipWindow.from}-${flipWindow.to} UTC`);
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
  });

  test('flips by itself when it opens', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false, flipWindow: elsewhen() });
    moves.startMigrator();
    await waiting(id);
    const { from: to, to: from } = elsewhen();
    await s.catalog.pool.query(`UPDATE foreshard.migration SET controls = controls || $2 WHERE id = $1`, [
      id.toString(),
      JSON.stringify({ flipWindow: { from, to, timeZone: 'UTC' } }),
    ]);
    expect(await moves.atRest(id)).toBe('done');
  });
});

test('a flip that makes no sense is refused with the reason', async () => {
  const itself = await approveMove(s, [6n], null);
  await expect(requestFlip(s.catalog.pool, itself, 'test')).rejects.toThrow(/flips by itself/);
  const id = await approveMove(s, [9n], null, 'one', 'two', { auto: false });
  await setPaused(s.catalog.pool, id, true, 'test');
  await expect(requestFlip(s.catalog.pool, id, 'test')).rejects.toThrow(/is paused/);
  await requestAbort(s.catalog.pool, id, 'test');
  await expect(requestFlip(s.catalog.pool, id, 'test')).rejects.toThrow(/is being aborted/);
  await expect(requestFlip(s.catalog.pool, 999_999n, 'test')).rejects.toThrow(/there is no migration/);
});
