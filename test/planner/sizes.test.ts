import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { measureInterval } from '../../planner/sizes.js';
import type { Keyspace, KeyspaceName, Shard, ShardName } from '../../topology/topology.js';
import { type Shop, startShop } from './support.js';

let shop: Shop;
let keyspace: Keyspace;
let shard: Shard;
beforeAll(async () => {
  shop = await startShop();
  const topology = await shop.catalog.loadTopology();
  keyspace = topology.keyspaces.get('tenant' as KeyspaceName) as Keyspace;
  shard = topology.shards.get('a' as ShardName) as Shard;
});
afterAll(async () => {
  await shop.close();
});

describe('measureInterval', () => {
  it('counts a small table exactly', async () => {
    const [size] = await measureInterval(shard, keyspace, { lo: [201n], hi: [501n] });
    expect(size).toMatchObject({ table: 'public.orders', rows: 30_000, exact: true });
    const whole = await shop.shards[0]?.query(`SELECT pg_table_size('orders')::int AS n`);
    expect(size?.bytes).toBeCloseTo(0.3 * whole?.rows[0].n, -1);
  });

  it('estimates a large one from a part of its pages, within a fifth', async () => {
    // Keys scattered over the pages, as after years of orders.
    await shop.shards[0]?.query(
      'CREATE TABLE scattered AS SELECT * FROM orders ORDER BY hashint8(id * 1000 + tenant_id)',
    );
    await shop.shards[0]?.query('ANALYZE scattered');
    const scattered = { ...keyspace, tables: keyspace.tables.map((t) => ({ ...t, table: 'scattered' })) };
    const options = { countUpToBytes: 1_000_000, sampleBytes: 3_000_000 };
    const [size] = await measureInterval(shard, scattered, { lo: [201n], hi: [501n] }, options);
    expect(size?.exact).toBe(false);
    expect(size?.rows).toBeGreaterThan(24_000);
    expect(size?.rows).toBeLessThan(36_000);
  });

  it('adds the partitions of a partitioned table up', async () => {
    await shop.shards[0]?.query(`
      CREATE TABLE parted (tenant_id int8 NOT NULL, id int8) PARTITION BY RANGE (id);
      CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (50);
      CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (50) TO (1000);
      INSERT INTO parted SELECT tenant_id, id FROM orders`);
    const parted = { ...keyspace, tables: keyspace.tables.map((t) => ({ ...t, table: 'parted' })) };
    const [size] = await measureInterval(shard, parted, { lo: null, hi: [11n] });
    expect(size).toMatchObject({ rows: 1000, exact: true });
    expect(size?.bytes).toBeGreaterThan(0);
  });

  it('names the shard that cannot be asked', async () => {
    const gone = { ...shard, url: shard.url.replace(/\/shard_a/, '/nowhere') };
    await expect(measureInterval(gone, keyspace, { lo: null, hi: null })).rejects.toThrow(
      /cannot measure shard "a": database "nowhere" does not exist/,
    );
  });
});
