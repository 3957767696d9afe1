import pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { CAPACITY_MS_PER_SECOND, demoTrace, importTrace, liveShape, ordersByTenant } from '../../cli/demo/history.js';
import { createShop, fillShop } from '../../cli/demo/shop.js';
import { declareShop, KEYSPACE } from '../../cli/demo/stage.js';
import type { SavedReport } from '../../planner/plan-report.js';
import { Planner } from '../../planner/planner.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

const TENANTS = 40;
const trace = demoTrace();
let catalog: Catalog;
let report: SavedReport;
let present: number;

beforeAll(async () => {
  const [home, other] = await Promise.all([startTestCluster(), startTestCluster()]);
  await withClient(home.url(), async (client) => {
    await client.query('CREATE DATABASE foreshard');
    await client.query('CREATE DATABASE shop');
  });
  await withClient(other.url(), async (client) => void (await client.query('CREATE DATABASE shop')));
  const url = home.url('foreshard');
  const pool = Catalog.pool(url);
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(url);
  const registry = new Registry(catalog, 'test');
  await registry.addShard({ name: 's1', url: home.url('shop'), capacity: CAPACITY_MS_PER_SECOND });
  await registry.addShard({ name: 's2', url: other.url('shop'), capacity: CAPACITY_MS_PER_SECOND });
  const shop = new pg.Pool({ connectionString: home.url('shop'), max: 2 });
  const orders = ordersByTenant(trace, TENANTS, 14_000);
  await createShop(shop);
  await fillShop(shop, { tenants: TENANTS, ordersOf: (tenant) => orders[tenant] as number }, () => undefined);
  await shop.query('ANALYZE');
  await shop.end();
  await declareShop(registry);
  const keyspace = (await catalog.loadTopology()).keyspaces.get(KEYSPACE as KeyspaceName) as Keyspace;
  const now = Date.now();
  present = (await importTrace(catalog, keyspace, trace, TENANTS, now)).presentMsPerSecond;
  report = await new Planner(catalog, { now: () => now }).plan();
});

afterAll(async () => {
  await catalog.close();
});

it('finds in the imported trace that the shard will pass its capacity, though it does not now', () => {
  expect(present).toBeLessThan(CAPACITY_MS_PER_SECOND);
  expect(report.outlooks[0]?.shard).toBe('s1');
  expect(report.outlooks[0]?.peak.p50).toBeGreaterThan(CAPACITY_MS_PER_SECOND);
  expect(report.outlooks[0]?.crossesAt).not.toBeNull();
});

it('gets a proposal that relieves the shard, and a plan that may be approved', () => {
  expect(report.proposal?.spec).toMatchObject({ from: 's1', to: 's2', keyspace: KEYSPACE });
  expect(report.proposal?.blockers).toEqual([]);
  expect(report.proposal?.movedLoadShare).toBeGreaterThan(0.2);
  expect(report.proposal?.movedLoadShare).toBeLessThan(0.8);
  expect(report.plan?.status).toBe('proposed');
});

it('drives the live load in the shape of the trace', () => {
  const shape = liveShape(trace, Date.now(), 300);
  expect(shape.rates).toHaveLength(24);
  expect(Math.max(...shape.rates)).toBeGreaterThan(1.3 * Math.min(...shape.rates));
  expect(shape.weights.every((weights) => weights.length === trace.keys.length)).toBe(true);
});
