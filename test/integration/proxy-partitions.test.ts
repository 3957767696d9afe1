import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { Sharded } from '../support/sharded.js';

// Partitioned tables that are sharded, and statements that name one of their partitions.

const EVENTS = `
  CREATE TABLE events (tenant_id bigint NOT NULL, at date NOT NULL, note text, PRIMARY KEY (tenant_id, at)) PARTITION BY RANGE (at);
  CREATE TABLE events_old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2026-11-01') PARTITION BY LIST (tenant_id);
  CREATE TABLE events_old_all PARTITION OF events_old DEFAULT;
  CREATE TABLE events_11 (note text, at date NOT NULL, tenant_id bigint NOT NULL);
  ALTER TABLE events ATTACH PARTITION events_11 FOR VALUES FROM ('2026-11-01') TO ('2026-12-01');
  GRANT ALL ON ALL TABLES IN SCHEMA public TO app`;

let s: Sharded;
let c: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
  for (const shard of [0, 1] as const) await s.onShard(shard, EVENTS);
  const registry = new Registry(s.catalog, 'test');
  await registry.addTable({
    table: { schema: 'public', table: 'events' },
    keyspace: 'main',
    keyColumns: ['tenant_id'],
  });
  await s.reloaded();
  c = await s.connect();
});
afterAll(() => s.stop());
beforeEach(async () => {
  for (const shard of [0, 1] as const) await s.onShard(shard, 'TRUNCATE events');
  for (const tenant of [5, 150])
    for (const at of ['2026-10-02', '2026-11-02'])
      await c.query('INSERT INTO events VALUES ($1, $2, $3)', [tenant, at, `${tenant} ${at}`]);
});

const rows = async (sql: string, values: unknown[] = []) => (await c.query(sql, values)).rows;

it('rows go to the shard of their key, and to the partition of their own', async () => {
  expect(await s.onShard(0, 'SELECT note FROM events_11')).toEqual([{ note: '5 2026-11-02' }]);
  expect(await s.onShard(1, 'SELECT note FROM events_old_all')).toEqual([{ note: '150 2026-10-02' }]);
  expect(await rows('SELECT note FROM events WHERE tenant_id = 150 ORDER BY at')).toEqual([
    { note: '150 2026-10-02' },
    { note: '150 2026-11-02' },
  ]);
  expect(await rows('SELECT note FROM events')).toHaveLength(4);
});

it('a statement that names a partition goes where one that names its table does', async () => {
  expect(await rows('SELECT note FROM events_11 WHERE tenant_id = 150')).toEqual([{ note: '150 2026-11-02' }]);
  expect(await rows('SELECT p.note FROM public.events_old_all AS p WHERE p.tenant_id = $1', [150])).toEqual([
    { note: '150 2026-10-02' },
  ]);
  const all = await rows('SELECT note FROM events_11');
  expect(all.map((row) => row.note).sort()).toEqual(['150 2026-11-02', '5 2026-11-02']);
  await c.query("INSERT INTO events_11 VALUES ('new', '2026-11-03', 150)");
  expect(await s.onShard(1, "SELECT tenant_id FROM events WHERE note = 'new'")).toEqual([{ tenant_id: '150' }]);
  await c.query("UPDATE events_old SET note = 'changed' WHERE tenant_id = 150");
  expect(await s.onShard(1, "SELECT note FROM events_old WHERE note = 'changed'")).toHaveLength(1);
  expect((await c.query('DELETE FROM events_11 WHERE tenant_id = 150')).rowCount).toBe(2);
  expect(
    await rows('SELECT o.note FROM events_old o JOIN tenants t USING (tenant_id) WHERE o.tenant_id = 150'),
  ).toEqual([]);
});

it('rows that another shard has left are not shown by a partition, either', async () => {
  await s.onShard(0, "INSERT INTO events VALUES (160, '2026-11-04', 'foreign')");
  expect(await rows("SELECT note FROM events_11 WHERE note = 'foreign'")).toEqual([]);
});

it('a row that an update takes to another partition stays on its shard', async () => {
  await c.query("UPDATE events SET at = '2026-11-20' WHERE tenant_id = 150 AND at = '2026-10-02'");
  expect(await s.onShard(1, 'SELECT at::text FROM events_11 ORDER BY 1')).toEqual([
    { at: '2026-11-02' },
    { at: '2026-11-20' },
  ]);
});

it.each([
  'UPDATE events_11 SET note = NULL',
  'INSERT INTO events_11 (note, at) VALUES (NULL, now())',
  'COPY events_11 TO STDOUT',
  'TRUNCATE events_11',
  'LOCK TABLE events_11',
  "CREATE TABLE events_12 PARTITION OF events FOR VALUES FROM ('2026-12-01') TO ('2027-01-01')",
  'CREATE TABLE events_09 PARTITION OF events_old FOR VALUES IN (7)',
  'ALTER TABLE events DETACH PARTITION events_11',
  'DROP TABLE events_11',
  'CREATE INDEX ON events_11 (note)',
])('%s is refused', async (sql) => {
  await expect(c.query(sql)).rejects.toMatchObject({ code: '0A000' });
});

it('a partition that a shard lacks is missing there, and nowhere else', async () => {
  await s.onShard(0, "CREATE TABLE events_12 PARTITION OF events FOR VALUES FROM ('2026-12-01') TO ('2027-01-01')");
  await s.onShard(0, 'GRANT ALL ON events_12 TO app');
  await s.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
  await s.reloaded();
  await expect(c.query("INSERT INTO events VALUES (150, '2026-12-03')")).rejects.toMatchObject({ code: '23514' });
  await c.query("INSERT INTO events VALUES (5, '2026-12-03')");
});
