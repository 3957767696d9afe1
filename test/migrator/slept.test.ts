import { randomUUID } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { drive } from '../../migrator/driver.js';
import { RealExecutor } from '../../migrator/executor.js';
import { LeaseLostError, MigrationLease } from '../../migrator/lease.js';
import { encodeSpec } from '../../migrator/migration-row.js';
import { MigrationStore } from '../../migrator/migration-store.js';
import { resolveTarget } from '../../migrator/move.js';
import { objectNames } from '../../migrator/names.js';
import { DEFAULT_OPTIONS } from '../../migrator/options.js';
import { quoteTable } from '../../topology/quote.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, keyspaceOf, moveSpec, silent } from './setting.js';

// What a migrator may still do that was stopped for a while, or whose word to the catalog took its time.

const moves = shopMoves(1, 1);
const { s } = moves;

describe('a migrator that slept while another took over', () => {
  test('makes no hold and drops none, before its successor has written anything else', async () => {
    const id = await approveMove(s, [6n], null);
    const { pool } = s.catalog;
    const [slept, successor] = [new MigrationStore(pool, id, randomUUID()), new MigrationStore(pool, id, randomUUID())];
    await slept.takeLease(60_000);
    const row = await slept.load();
    expect(await slept.inLease(row, async () => 'done')).toBe('done');
    await pool.query(`UPDATE foreshard.migration SET lease_until = clock_timestamp() - interval '1 s' WHERE id = $1`, [
      id.toString(),
    ]);
    expect(await successor.takeLease(60_000)).not.toBeNull();
    let worked = false;
    const late = slept.inLease(row, async () => {
      worked = true;
    });
    await expect(late).rejects.toThrow(LeaseLostError);
    expect(worked).toBe(false);
    expect(await successor.inLease(row, async () => 'done')).toBe('done');
  });

  test('keeps its successor waiting no longer than the catalog allows', async () => {
    const id = await approveMove(s, [6n], null);
    const { pool } = s.catalog;
    const [slept, successor] = [new MigrationStore(pool, id, randomUUID()), new MigrationStore(pool, id, randomUUID())];
    await slept.takeLease(100);
    let wake = (): void => undefined;
    const late = slept.inLease(await slept.load(), () => new Promise<void>((resolve) => (wake = resolve)));
    const settled = Promise.allSettled([late]);
    await waitFor(async () => (await successor.takeLease(60_000)) !== null, { what: 'the successor to take over' });
    wake();
    expect(await settled).toMatchObject([{ status: 'rejected' }]);
  });

  test('opens no gate when it wakes, and leaves its successor its sessions', async () => {
    const id = await approveMove(s, [6n], null);
    const { pool } = s.catalog;
    const { names } = resolveTarget(
      await s.catalog.loadTopology(),
      id,
      (await pool.query<{ cluster_id: string }>('SELECT cluster_id FROM foreshard.meta')).rows[0]?.cluster_id ?? '',
      encodeSpec(await keyspaceOf(s), moveSpec([6n], null)),
    );
    // As a fence leaves it: between it and the flip, which the successor is about to make.
    await withClient(s.urlOne, async (c) => {
      await c.query(`CREATE SCHEMA foreshard_shard; CREATE SEQUENCE ${quoteTable(names.gate)} MINVALUE 1 MAXVALUE 2`);
      await c.query(`SELECT setval('${quoteTable(names.gate)}', 2)`);
    });
    await pool.query(`UPDATE foreshard.migration SET state = 'fencing' WHERE id = $1`, [id.toString()]);
    // It sleeps while it connects: its lease ends, and another takes it.
    const tables = await pool.connect();
    await tables.query('BEGIN; LOCK TABLE foreshard.shard IN ACCESS EXCLUSIVE MODE');
    const driven = drive({
      catalog: s.catalog,
      id,
      owner: randomUUID(),
      options: { ...DEFAULT_OPTIONS, leaseMs: 60_000 },
      log: silent,
      signal: new AbortController().signal,
    });
    await waitFor(async () => (await pool.query(`SELECT FROM pg_locks WHERE NOT granted`)).rowCount === 1, {
      what: 'it to come to the lock',
    });
    await pool.query(
      `UPDATE foreshard.migration SET lease_owner = $2, lease_until = clock_timestamp() + interval '1 h' WHERE id = $1`,
      [id.toString(), randomUUID()],
    );
    await tables.query('ROLLBACK');
    tables.release();
    expect(await driven).toBeNull();
    await withClient(s.urlOne, async (c) => {
      expect((await c.query(`SELECT last_value::int AS gate FROM ${quoteTable(names.gate)}`)).rows).toEqual([
        { gate: 2 },
      ]);
    });
  });
});

describe('a hold that runs out while the flip is under way', () => {
  test('keeps the flip from being committed', async () => {
    const id = await approveMove(s, [6n], null);
    const { pool } = s.catalog;
    const epoch = async () => (await s.catalog.loadTopology()).epoch;
    const before = await epoch();
    const store = new MigrationStore(pool, id, randomUUID());
    const lease = (await MigrationLease.take(store, 60_000)) as MigrationLease;
    moves.atStop(() => lease.release());
    const row = await store.load();
    const [source, destination] = [s.urlOne, s.urlTwo].map((url) => ({ url })) as never[] as [never, never];
    const exec = new RealExecutor({
      store,
      lease,
      shards: { source, destination, names: objectNames(id, 'abcdef01') },
      row,
      log: silent,
      signal: lease.signal,
    });
    const hold = `INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline)
      VALUES ($1, 'tenant', false, clock_timestamp() + $2::interval)`;
    const raise = { sql: 'UPDATE foreshard.meta SET epoch = epoch + 1', values: [], text: '', elseConflict: null };
    const own = await s.catalog.connectAlone();
    moves.atStop(() => own.end());
    await pool.query(hold, [id.toString(), '500 ms']);
    for (const over of [own, undefined]) {
      await expect(exec.flip(row, [raise], 'flipped', {}, over)).rejects.toThrow('the hold ran out before the flip');
      expect([await epoch(), (await store.load()).state]).toEqual([before, row.state]);
    }
    await pool.query('DELETE FROM foreshard.hold');
    await pool.query(hold, [id.toString(), '1 h']);
    // What is only to be planned is not done, and the connection on which a flip was missed is of use for the next try.
    await exec.foresee(row, [raise], 'flipped', own);
    expect([await epoch(), (await store.load()).state]).toEqual([before, row.state]);
    expect((await pool.query('SELECT FROM foreshard.hold')).rowCount).toBe(1);
    await exec.flip(row, [raise], 'flipped', {}, own);
    expect([await epoch(), (await store.load()).state]).toEqual([before + 1n, 'flipped']);
    expect((await pool.query('SELECT FROM foreshard.hold')).rowCount).toBe(0);
  });
});
