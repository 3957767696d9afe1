import { randomUUID } from 'node:crypto';
import { expect, test } from 'vitest';
import { Decisions } from '../../../topology/catalog/decisions.js';
import { ProxyLeases } from '../../../topology/catalog/leases.js';
import { type CoordinatorId, gidOf } from '../../../topology/prepared-transactions.js';
import type { Epoch, ShardName } from '../../../topology/topology.js';
import { withClient } from '../../support/client.js';
import { Sharded, startProxy } from '../../support/sharded.js';
import { waitFor } from '../../support/wait-for.js';

test('a proxy that starts ends what one whose lease has ended has left: by its decision, or back', async () => {
  const sharded = await Sharded.start({ splitAt: 100 });
  try {
    const proxyId = randomUUID();
    const coordinator = randomUUID() as CoordinatorId;
    const leases = new ProxyLeases(sharded.catalog.pool);
    const facts = { listen: 'x', ttlMs: 3_600_000, epochAcked: 99n as Epoch, schemaHeard: 0n };
    await leases.register({ id: proxyId, name: 'dead', ...facts });
    const decisions = new Decisions(sharded.catalog.pool);
    await decisions.enroll(coordinator, proxyId);
    const shards = ['s1', 's2'] as ShardName[];
    for (const number of [1n, 2n])
      for (const [i, cluster] of sharded.clusters.entries())
        await withClient(cluster.url('shop'), async (c) => {
          await c.query('BEGIN');
          await c.query('INSERT INTO tenants VALUES ($1, $2)', [100 * i + Number(number), 'new']);
          await c.query(`PREPARE TRANSACTION '${gidOf({ coordinator, number }, i)}'`);
        });
    await decisions.decide(coordinator, [{ number: 1n, shards }]);
    await leases.unregister(proxyId);
    await sharded.proxy.close();
    sharded.proxy = await startProxy(sharded.catalog, sharded.options);
    const prepared = async () => {
      const found = [];
      for (const shard of [0, 1] as const)
        found.push(...(await sharded.onShard(shard, 'SELECT gid FROM pg_prepared_xacts')));
      return found;
    };
    await waitFor(async () => (await prepared()).length === 0, { what: 'the transactions to be ended' });
    expect(await sharded.onShard(0, 'SELECT tenant_id::int AS id FROM tenants')).toEqual([{ id: 1 }]);
    expect(await sharded.onShard(1, 'SELECT tenant_id::int AS id FROM tenants')).toEqual([{ id: 101 }]);
  } finally {
    await sharded.stop();
  }
});
