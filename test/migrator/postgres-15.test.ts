import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { requestEnd, requestPromotion, setThrottle } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { partitionOrders } from './partitioned.js';
import { approveMove, approveReplica, leftovers } from './setting.js';
import { audit } from './writers.js';

// What the migrator does in another way with the oldest servers: no `origin = none`, so that the way back sets its slot forward; workers started one by one. Everything can be run on them:
// FORESHARD_TEST_PG_BIN.

const BIN = '/usr/lib/postgresql/15/bin';

describe.skipIf(!existsSync(`${BIN}/initdb`))('servers of PostgreSQL 15', () => {
  const moves = shopMoves(12, 50, { binDir: BIN });
  const { s } = moves;

  test('move rows there and back, and lose none', async () => {
    const { writers } = await moves.startLoad(12);
    const id = await approveMove(s, [6n], null);
    await setThrottle(s.catalog.pool, id, { maxRate: 20_000_000 }, 'test');
    moves.startMigrator({ wayBackMs: 3_600_000 });
    await moves.inState(id, 'reversing');
    const flipped = writers.acknowledged;
    await waitFor(() => writers.acknowledged > flipped + 100, { what: 'writes at the new owner' });
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    const { facts } = await moves.load(id);
    expect([facts.exact, facts.backExact]).toEqual(['identical', 'identical']);
    expect(await audit(s, writers, () => false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('move a partitioned table there and back, and lose none', async () => {
    await partitionOrders(s, false);
    const { writers } = await moves.startLoad(12);
    const id = await approveMove(s, [6n], null);
    moves.startMigrator({ wayBackMs: 3_600_000 });
    await moves.inState(id, 'reversing');
    const flipped = writers.acknowledged;
    await withClient(s.urlTwo, (c) =>
      c.query(`CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000);
        ALTER TABLE orders_next OWNER TO shop_owner;
        INSERT INTO orders (tenant_id, id) VALUES (7, 5000000), (7, 5000001);
        UPDATE orders SET id = 3500000 WHERE id = 5000001`),
    );
    await waitFor(() => writers.acknowledged > flipped + 100, { what: 'writes at the new owner' });
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    const { facts } = await moves.load(id);
    expect([facts.exact, facts.backExact]).toEqual(['identical', 'identical']);
    expect(await audit(s, writers, () => false)).toEqual([]);
    expect(await withClient(s.urlOne, async (c) => (await c.query('SELECT id FROM orders_next')).rows)).toEqual([
      { id: '5000000' },
    ]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('keep a replica, which becomes the owner', async () => {
    const { writers } = await moves.startLoad(12);
    const id = await approveReplica(s, [6n], null);
    moves.startMigrator();
    await moves.inState(id, 'following');
    await waitFor(async () => (await s.catalog.loadTopology()).replicas.length === 1, { what: 'the replica' });
    await requestPromotion(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});
