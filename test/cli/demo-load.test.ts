import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type AuditResult, audit, type ShardContents } from '../../cli/demo/audit.js';
import { inspectShard } from '../../cli/demo/inspect.js';
import { readJournal } from '../../cli/demo/journal.js';
import { Load, type LoadResult } from '../../cli/demo/load.js';
import { createShop, fillShop } from '../../cli/demo/shop.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';

const TENANTS = 20;
let dir: string;
let url: string;
let before: ShardContents;
let result: LoadResult;
const journalPath = (): string => join(dir, 'journal');

const onServer = <T>(use: (client: pg.Client) => Promise<T>): Promise<T> => withClient(url, use);

async function auditNow(): Promise<AuditResult> {
  const shards = [await onServer((client) => inspectShard(client, 's1'))];
  return await audit({ journal: readJournal(journalPath()), before, shards, owner: () => 's1' });
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'foreshard-test-'));
  url = (await startTestCluster()).url();
  const pool = new pg.Pool({ connectionString: url, max: 3 });
  await createShop(pool);
  await fillShop(pool, { tenants: TENANTS, ordersOf: () => 100 }, () => undefined);
  await pool.end();
  before = await onServer((client) => inspectShard(client, 's1'));
  const load = new Load({
    url,
    connections: 4,
    tenants: TENANTS,
    loadedOrders: Array.from({ length: TENANTS + 1 }, () => 100),
    shape: { stepMs: 1000, rates: [400], weights: [[5, 1]] },
    journalPath: journalPath(),
  });
  const stop = new AbortController();
  const running = load.run(stop.signal);
  await waitFor(() => load.progress().statements > 1200, { what: '1200 statements of the load' });
  stop.abort();
  result = await running;
});

afterAll(async () => {
  await rm(dir, { recursive: true });
});

it('fills the shop with the rows it says', () => {
  expect(before.counts).toEqual({ tenants: TENANTS, orders: 2000, order_items: 5000, countries: 20 });
});

it('runs reads and writes without an error or a stale read, and measures each', () => {
  expect(result.errorTexts).toEqual({});
  expect(result.staleReads).toBe(0);
  expect(result.reads).toBeGreaterThan(100);
  expect(result.writes).toBeGreaterThan(100);
  expect(result.waits.length / 3).toBe(result.statements);
});

it('gives every acknowledged write to the audit, which is clean', async () => {
  const clean = await auditNow();
  expect(clean.findings).toEqual([]);
  expect(clean.acknowledged).toBe(result.writes);
  expect(clean.unknown).toBe(0);
  expect(clean.baseRows).toBe(TENANTS + 2000 + 5000);
});

it('has an audit that sees a row deleted, added or changed behind its back', async () => {
  await onServer(async (client) => {
    await client.query(
      'DELETE FROM order_items WHERE (tenant_id, order_id, line) IN (SELECT tenant_id, order_id, line FROM order_items WHERE order_id >= 1000000000 LIMIT 1)',
    );
    await client.query('INSERT INTO orders (tenant_id, id, placed_at, total_cents) VALUES (3, 1999999999, now(), 1)');
    await client.query('UPDATE tenants SET orders_placed = orders_placed + 1 WHERE id = 2');
    await client.query(
      'UPDATE orders SET total_cents = total_cents + 1 WHERE tenant_id = 4 AND id = 100 AND revision = 0',
    );
  });
  const kinds = (await auditNow()).findings.map((f) => f.kind).sort();
  expect(kinds).toEqual(expect.arrayContaining(['lost write', 'row that nobody acknowledged', 'wrong value']));
});
