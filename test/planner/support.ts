import pg from 'pg';
import { Catalog } from '../../topology/catalog/catalog.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { startTestCluster } from '../support/cluster.js';

export const TRACE = new URL('../../deploy/data/traces/tweet_mentions_5min_10keys.csv.gz', import.meta.url).pathname;

export interface Shop {
  readonly catalog: Catalog;
  readonly shards: readonly pg.Pool[];
  close(): Promise<void>;
}

/** A catalog, two shards, and a keyspace `tenant` (int8) that lies on the first, with 100 orders for each of 1,000 tenants. */
export async function startShop(): Promise<Shop> {
  const cluster = await startTestCluster();
  const admin = new pg.Pool({ connectionString: cluster.url('postgres'), max: 1 });
  for (const name of ['foreshard', 'shard_a', 'shard_b']) await admin.query(`CREATE DATABASE ${name}`);
  await admin.end();
  const pool = Catalog.pool(cluster.url('foreshard'));
  await initCatalog(pool, 'shop');
  await pool.query(
    `INSERT INTO foreshard.shard (name, url, home, capacity_ms_per_second) VALUES ('a', $1, true, 1000), ('b', $2, false, 1000)`,
    [cluster.url('shard_a'), cluster.url('shard_b')],
  );
  await pool.query(`
    INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('tenant', 'range', '{int8}');
    INSERT INTO foreshard.sharded_table (schema_name, table_name, keyspace, key_columns) VALUES ('public', 'orders', 'tenant', '{tenant_id}');
    INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ('tenant', NULL, NULL, 'a')`);
  await pool.end();
  const shards = ['shard_a', 'shard_b'].map((db) => new pg.Pool({ connectionString: cluster.url(db), max: 2 }));
  // A server that stops before the last idle connection is closed is no failure of a test.
  for (const shard of shards) shard.on('error', () => undefined);
  await shards[0]?.query(`
    CREATE TABLE orders (tenant_id int8 NOT NULL, id int8 NOT NULL, note text, PRIMARY KEY (tenant_id, id));
    INSERT INTO orders SELECT t, i, repeat('x', 50) FROM generate_series(1, 1000) t, generate_series(1, 100) i;
    ANALYZE orders`);
  const catalog = await Catalog.connect(cluster.url('foreshard'));
  return {
    catalog,
    shards,
    async close() {
      await catalog.close();
      await Promise.all(shards.map((s) => s.end()));
    },
  };
}

/** Empties history, plans and migrations; the topology stays. */
export async function forget(catalog: Catalog): Promise<void> {
  await catalog.pool.query(
    'TRUNCATE foreshard.segment, foreshard.load, foreshard.key_sample, foreshard.plan, foreshard.migration, foreshard.migration_event, foreshard.audit CASCADE',
  );
}
