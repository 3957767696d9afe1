import { afterAll, beforeAll, expect, it } from 'vitest';
import { Sharded, startProxy } from '../support/sharded.js';

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
  // One segment below 50, one up to 100, one above.
  await s.catalog.pool.query(`
    DELETE FROM foreshard.segment;
    INSERT INTO foreshard.segment (keyspace, lo, hi) VALUES ('main', NULL, '["50"]'), ('main', '["50"]', '["100"]'), ('main', '["100"]', NULL)`);
  await s.proxy.close();
  s.proxy = await startProxy(s.catalog, s.options);
});
afterAll(() => s.stop());

async function load() {
  const { rows } = await s.catalog.pool.query<{
    lo: string | null;
    reads: number;
    writes: number;
    rows: number;
    busy: boolean;
  }>(
    `SELECT s.lo->>0 AS lo, sum(l.reads)::int AS reads, sum(l.writes)::int AS writes, sum(l.rows)::int AS rows, sum(l.server_ms) > 0 AS busy
       FROM foreshard.load l JOIN foreshard.segment s ON s.id = l.segment_id GROUP BY s.lo ORDER BY (s.lo->>0)::bigint NULLS FIRST`,
  );
  return rows;
}

it('keeps the load of every segment in the catalog, over restarts', async () => {
  const c = await s.connect();
  for (let i = 0; i < 20; i++) await c.query(`INSERT INTO tenants VALUES (${i}, 'x')`);
  for (let i = 0; i < 10; i++) await c.query('SELECT name FROM tenants WHERE tenant_id = $1', [i]);
  for (let i = 0; i < 40; i++) await c.query('SELECT name FROM tenants WHERE tenant_id = $1', [77]);
  await c.query(`INSERT INTO tenants VALUES (100, 'y'), (101, 'y'), (102, 'y')`);
  await c.end();
  await s.proxy.close();
  expect(await load()).toEqual([
    { lo: null, reads: 10, writes: 20, rows: 30, busy: true },
    { lo: '50', reads: 40, writes: 0, rows: 0, busy: true },
    { lo: '100', reads: 0, writes: 1, rows: 3, busy: true },
  ]);
  const { rows: keys } = await s.catalog.pool.query<{ key: string }>(
    `SELECT key->>0 AS key FROM foreshard.key_sample ORDER BY weight DESC`,
  );
  expect(keys.map((k) => k.key)).toContain('77');
  const { rows: templates } = await s.catalog.pool.query<{ route: string; calls: number }>(
    `SELECT route, sum(calls)::int AS calls FROM foreshard.template_stat WHERE template LIKE 'insert into tenants%' GROUP BY 1 ORDER BY 1`,
  );
  expect(templates).toEqual([
    { route: 's1', calls: 20 },
    { route: 's2', calls: 1 },
  ]);

  s.proxy = await startProxy(s.catalog, s.options);
  const again = await s.connect();
  await again.query('SELECT name FROM tenants WHERE tenant_id = 77');
  await again.end();
  await s.proxy.close();
  expect((await load())[1]).toEqual({ lo: '50', reads: 41, writes: 0, rows: 0, busy: true });
  s.proxy = await startProxy(s.catalog, s.options);
});
