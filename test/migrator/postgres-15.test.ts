import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { audit as auditShards } from '../../migrator/audit/audit.js';
import { requestPromotion, setThrottle } from '../../migrator/migration-requests.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { addTriggers, behaviour, effectsOf, rows } from './behaviour.js';
import { shopMoves } from './moves.js';
import { guardOrders, loud, effectsOf as partitionEffects, behaviour as wholeBehaviour } from './partition-triggers.js';
import { partitionOrders } from './partitioned.js';
import { approveMove, approveReplica, leftovers } from './setting.js';
import { audit } from './writers.js';

// What the migrator does in another way with the oldest servers: no `origin = none`, so that the way back sets its slot forward; workers started one by one. Everything can be run on them:
// FORESHARD_TEST_PG_BIN.

/** Tenants of the orders that policies show to the owner of the table, which they are FORCED on. */
const ordersSeenBy = (url: string, tenant: number) =>
  withClient(url, async (c) => {
    await c.query(`SET ROLE shop_owner; SET shop.tenant = '${tenant}'`);
    return (await c.query('SELECT DISTINCT tenant_id FROM orders')).rows;
  });

const BIN = '/usr/lib/postgresql/15/bin';

describe.skipIf(!existsSync(`${BIN}/initdb`))('servers of PostgreSQL 15', () => {
  const moves = shopMoves(12, 50, { binDir: BIN });
  const { s } = moves;

  test('move rows there and back, and lose none', async () => {
    await moves.thereAndBack(12, [6n], {
      begun: (id) => setThrottle(s.catalog.pool, id, { maxRate: 20_000_000 }, 'test'),
    });
  });

  test('move a partitioned table there and back, and lose none', async () => {
    await partitionOrders(s, false);
    await moves.thereAndBack(12, [6n], {
      there: async () => {
        await withClient(s.urlTwo, (c) =>
          c.query(`CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000);
            ALTER TABLE orders_next OWNER TO shop_owner;
            INSERT INTO orders (tenant_id, id) VALUES (7, 5000000), (7, 5000001);
            UPDATE orders SET id = 3500000 WHERE id = 5000001`),
        );
      },
    });
    expect(await withClient(s.urlOne, async (c) => (await c.query('SELECT id FROM orders_next')).rows)).toEqual([
      { id: '5000000' },
    ]);
  });

  // Without run_as_owner, and with a way back that begins at a place of the log: triggers that fire for replicated rows would do so for those of both directions.
  test.each(['empty', 'with the tables'])(
    'move triggers, such as fire for replicated rows, and policies there and back, the destination being %s',
    async (destination) => {
      await addTriggers(s, true);
      const meant = await behaviour(s.urlOne);
      expect(meant).toHaveLength(16);
      if (destination !== 'empty') {
        moves.startMigrator();
        expect(await moves.atRest(await approveMove(s, [11n], null))).toBe('done');
        await moves.stop();
      }
      const onTwo = (tenant: number) => destination !== 'empty' && tenant >= 11;
      const { writers } = await moves.thereAndBack(12, [6n], {
        ...(destination === 'empty' ? {} : { hi: [11n] }),
        there: async () => {
          for (const url of [s.urlOne, s.urlTwo])
            expect(
              await rows(
                url,
                "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname IN ('always', 'replicas') ORDER BY 1",
              ),
            ).toEqual([
              { tgname: 'always', tgenabled: 'O' },
              { tgname: 'replicas', tgenabled: 'D' },
            ]);
          expect(await ordersSeenBy(s.urlTwo, 7)).toEqual([{ tenant_id: 7 }]);
        },
        onTwo,
      });
      expect(await effectsOf(s, writers, destination === 'empty' ? null : onTwo, true)).toEqual([]);
      expect(await behaviour(s.urlOne)).toEqual(meant);
      expect(await behaviour(s.urlTwo)).toEqual(destination === 'empty' ? [] : meant);
      expect(await auditShards(s.catalog, false)).toEqual([]);
      expect(await ordersSeenBy(s.urlOne, 7)).toEqual([{ tenant_id: 7 }]);
    },
  );

  test('move a partitioned table with triggers and policies there and back, with what a new partition brings, and each write has its effects once', async () => {
    await guardOrders(s, false);
    const before = await wholeBehaviour(s.urlOne);
    const { writers } = await moves.thereAndBack(12, [6n], {
      there: async () => {
        expect([await loud(s.urlOne), await loud(s.urlTwo)]).toEqual([[], []]);
        await withClient(s.urlTwo, (c) =>
          c.query(`CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000);
            ALTER TABLE orders_next OWNER TO shop_owner; ALTER TABLE orders_next DISABLE TRIGGER always;
            CREATE TRIGGER next AFTER INSERT ON orders_next FOR EACH ROW EXECUTE FUNCTION app_private.log('next');
            ALTER TABLE orders_next ENABLE ALWAYS TRIGGER next;
            INSERT INTO orders (tenant_id, id) VALUES (7, 5000000)`),
        );
      },
    });
    const log = await withClient(s.urlOne, (c) =>
      c.query('DELETE FROM order_log WHERE order_id = 5000000 RETURNING what'),
    );
    expect(log.rows.map((row) => row.what).sort()).toEqual(['next INSERT', 'row INSERT', 'statement']);
    expect(await partitionEffects(s, writers, 12, () => false)).toEqual([]);
    expect((await loud(s.urlOne)).filter((trigger) => /next/.test(trigger))).toEqual(['orders_next next A']);
    expect((await wholeBehaviour(s.urlOne)).filter((line) => !/orders_next/.test(line))).toEqual(before);
    expect(await wholeBehaviour(s.urlTwo)).toEqual([]);
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
