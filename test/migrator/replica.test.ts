import { describe, expect, test } from 'vitest';
import { changeReplica, createMigration, requestAbort, requestPromotion } from '../../migrator/migration-requests.js';
import type { RecutSpec } from '../../topology/migration.js';
import type { ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, approveReplica, forgetProxy, keyspaceOf, leftovers, registerProxy } from './setting.js';
import { audit } from './writers.js';

const moves = shopMoves(12, 50);
const { s } = moves;

const serves = (id: bigint) =>
  waitFor(async () => (await s.catalog.loadTopology()).replicas.find((r) => r.id === id) ?? null, {
    what: 'the replica',
  });

describe('a replica', () => {
  test('rests in following, is a part of the topology from a new epoch on, and follows', async () => {
    const { writers } = await moves.startLoad(12, { stale: false });
    const before = await s.catalog.loadTopology();
    const id = await approveReplica(s, [6n], null);
    moves.startMigrator();
    const replica = await serves(id);
    expect(replica).toMatchObject({
      since: before.epoch + 1n,
      keyspace: 'tenant',
      lo: [6n],
      hi: null,
      source: 'one',
      shard: 'two',
      referenceTables: [{ schema: 'public', table: 'countries' }],
      maxStalenessMs: 2000,
    });
    await moves.noted(id, /^following, /);
    await writers.stop();
    expect((await moves.load(id)).state).toBe('following');
    await waitFor(
      async () => {
        const sum = async (url: string) =>
          (await withClient(url, (c) => c.query('SELECT count(*), sum(version) FROM orders WHERE tenant_id >= 6')))
            .rows[0];
        return JSON.stringify(await sum(s.urlOne)) === JSON.stringify(await sum(s.urlTwo));
      },
      { what: 'both sides to be alike' },
    );
    await changeReplica(s.catalog.pool, id, { readPercent: 10 }, 'test');
    expect((await s.catalog.loadTopology()).replicas[0]).toMatchObject({ readPercent: 10, maxStalenessMs: 2000 });
    await requestAbort(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
    expect(await audit(s, writers, () => false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('becomes the owner when it is promoted, and loses no write', async () => {
    const { writers } = await moves.startLoad(12);
    const id = await approveReplica(s, [6n], null);
    await expect(requestPromotion(s.catalog.pool, id, 'test')).rejects.toThrow(/is approved/);
    moves.startMigrator();
    await moves.noted(id, /^following, /);
    const before = writers.acknowledged;
    await waitFor(() => writers.acknowledged > before + 50, { what: 'writes' });
    await requestPromotion(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
    await writers.stop();
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    await expect(requestPromotion(s.catalog.pool, id, 'test')).rejects.toThrow(/is done/);
  });

  test('goes on as a replica when the fence cannot be had', async () => {
    const id = await approveReplica(s, [6n], null);
    moves.startMigrator({ ackMs: 200, maxFenceTries: 2, fenceBackoffMs: 50 });
    await moves.noted(id, /^following, /);
    const { pool } = s.catalog;
    await registerProxy(s, 'silent');
    await requestPromotion(pool, id, 'test');
    await waitFor(async () => (await moves.load(id)).error !== null, {
      what: 'the fences to be missed',
    });
    const row = await moves.load(id);
    expect(row).toMatchObject({ state: 'following', requested: null });
    expect(row.error).toMatch(/2 fences were missed; .* silent/);
    expect((await s.catalog.loadTopology()).replicas).toHaveLength(1);
    await forgetProxy(s, 'silent');
    await requestPromotion(pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
    expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
  });

  test('is undone only when every proxy has said that it reads there no more', async () => {
    const id = await approveReplica(s, [6n], null);
    moves.startMigrator();
    const { since } = await serves(id);
    const { pool } = s.catalog;
    await registerProxy(s, 'reader', { epoch: since });
    await requestAbort(pool, id, 'test');
    await moves.noted(id, /^waiting until no proxy reads/);
    expect(await s.catalog.loadTopology()).toMatchObject({ replicas: [], epoch: since + 1n });
    const there = () =>
      withClient(s.urlTwo, async (c) => (await c.query('SELECT FROM orders WHERE tenant_id = 7')).rowCount);
    expect(await there()).toBe(50);
    expect(await leftovers(s)).toContainEqual(expect.stringMatching(/^two: subscription/));
    await pool.query('UPDATE foreshard.proxy SET epoch_acked = $1', [(since + 1n).toString()]);
    expect(await moves.atRest(id)).toBe('aborted');
    await forgetProxy(s, 'reader');
    expect(await leftovers(s)).toEqual([]);
  });

  test('is dropped, with the reason, when its slot is lost', async () => {
    const id = await approveReplica(s, [6n], null);
    moves.startMigrator();
    await moves.noted(id, /^following, /);
    await waitFor(
      () =>
        withClient(s.urlOne, async (c) => {
          await c
            .query('SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots')
            .then(() => c.query('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots'))
            .catch(() => undefined);
          return (await c.query('SELECT FROM pg_replication_slots')).rowCount === 0;
        }),
      { what: 'the slot to be gone' },
    );
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(/the replication slot on shard "one" is gone/);
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('keeps its interval and its shard from other migrations, and nothing else', async () => {
    const id = await approveReplica(s, [6n], [9n]);
    moves.startMigrator();
    await serves(id);
    const over = await approveMove(s, [8n], [10n]);
    expect(await moves.atRest(over)).toBe('failed');
    expect((await moves.load(over)).error).toMatch(/keeps a replica of the interval/);
    const beside = await approveMove(s, [10n], null);
    expect(await moves.atRest(beside)).toBe('failed');
    expect((await moves.load(beside)).error).toMatch(/keeps a replica on shard "two"/);
    // Ranges may be cut at its ends, and not in it: it could not become the owner of a part of a range.
    const cutAt = async (key: bigint) => {
      const spec: RecutSpec = {
        kind: 'recut',
        keyspace: keyspace.name,
        shard: 'one' as ShardName,
        cut: [[key]],
        join: [],
      };
      const cut = await createMigration(s.catalog.pool, keyspace, spec, { actor: 'test' });
      return [await moves.atRest(cut), (await moves.load(cut)).error];
    };
    const keyspace = await keyspaceOf(s);
    expect(await cutAt(7n)).toEqual([
      'failed',
      expect.stringContaining(`migration ${id} keeps an interval up to date`),
    ]);
    for (const end of [6n, 9n]) expect(await cutAt(end)).toEqual(['done', null]);
    expect((await moves.load(id)).state).toBe('following');
    await requestPromotion(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
    const { ranges } = await keyspaceOf(s);
    expect(ranges.map((r) => [r.lo, r.hi, r.shard])).toEqual([
      [null, [6n], 'one'],
      [[6n], [9n], 'two'],
      [[9n], null, 'one'],
    ]);
  });

  test('is dropped when its tables are changed at the source, and serves on when others are', async () => {
    const id = await approveReplica(s, [6n], null);
    moves.startMigrator();
    await moves.noted(id, /^following, /);
    const { schemaGeneration } = await s.catalog.loadTopology();
    await s.catalog.pool.query('UPDATE foreshard.meta SET schema_generation = schema_generation + 1');
    await waitFor(
      async () => (await s.catalog.loadTopology()).replicas[0]?.schemaGeneration === schemaGeneration + 1n,
      {
        what: 'the tables to be looked at again',
      },
    );
    await withClient(s.urlOne, (c) => c.query('ALTER TABLE orders ADD COLUMN later int'));
    await s.catalog.pool.query('UPDATE foreshard.meta SET schema_generation = schema_generation + 1');
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(/table "public.orders" was changed/);
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
  });
});
