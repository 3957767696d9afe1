import type pg from 'pg';
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import { directTo, holder, twoOrders, untilQuiet, untilWaiting } from './faults.js';

// Queries over several shards in circles of those that wait for one another, of which each server sees only a part. Where one database has no deadlock, because one
// session would have all of these locks, the query fails as if it had.

const UNION = 'SELECT note FROM orders';
const GATHERED = 'SELECT count(DISTINCT note) FROM orders';
/** Of the table that is in question, the second shard. */
const HERE = `SELECT note FROM orders WHERE tenant_id = 150`;
const WRITE = `UPDATE tenants SET name = 'own' WHERE tenant_id = 150`;

let s: Sharded;
/** Ends those who take tables for themselves, and then those who ask. */
const holders: (() => Promise<void>)[] = [];
const blocks: (() => Promise<void>)[] = [];

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: 4 });
  await twoOrders(s);
}, 60_000);
afterEach(async () => {
  for (const end of [...holders.splice(0), ...blocks.splice(0)]) await end();
  await untilQuiet(s);
});
afterAll(() => s.stop());

/** Somebody past the proxy who takes the table for himself, as ALTER TABLE does, and waits for that. */
async function wants(shard: 0 | 1, table: string): Promise<{ readonly pid: number; readonly has: Promise<unknown> }> {
  const client = await directTo(s, shard);
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  const { pid } = rows[0] as { pid: number };
  const has = client.query(`BEGIN; LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`);
  has.catch(() => undefined);
  holders.push(async () => {
    await s.onShard(shard, `SELECT pg_terminate_backend(${pid}, 10000)`);
  });
  await untilWaiting(s, shard, `pid = ${pid}`);
  return { pid, has };
}

const begun = (...sql: readonly string[]) => connected(['BEGIN', ...sql]);

/** Who has sent these. */
async function connected(before: readonly string[]): Promise<pg.Client> {
  const client = await s.connect();
  for (const text of before) await client.query(text);
  blocks.push(async () => {
    await client.query('ROLLBACK').catch(() => undefined);
    await client.end();
  });
  return client;
}

const DEADLOCK = { code: '40P01', message: 'deadlock detected', hint: 'Run the transaction again.' };

it.each([
  ['a union, behind a read there', [HERE], UNION, []],
  ['a union, behind one', [HERE, UNION], UNION, []],
  ['a union, behind reads on both shards', [HERE, HERE.replace('150', '1')], UNION, []],
  ['a union, behind settings', [`SET LOCAL work_mem = '1MB'`, HERE], UNION, []],
  ['a union, by a prepared statement', [HERE], UNION, ['values']],
  ['a gathered query', [HERE], GATHERED, []],
  ['a gathered query, behind one', [HERE, GATHERED], GATHERED, []],
  ['a gathered query, behind a savepoint', ['SAVEPOINT a', HERE, GATHERED, 'ROLLBACK TO a', HERE], GATHERED, []],
  ['a gathered query, behind reads on both shards', [HERE, HERE.replace('150', '1')], GATHERED, []],
  ['a gathered query, by a prepared statement', [HERE], GATHERED, ['values']],
])('%s: waits for one who waits for its block', async (_, before, sql, values) => {
  const client = await begun(...before);
  const other = await wants(1, 'orders');
  const error = await client.query(values.length > 0 ? { text: sql, values: [] } : sql).catch((e: unknown) => e);
  expect(error).toMatchObject(DEADLOCK);
  expect((error as pg.DatabaseError).detail?.replace(/relation \d+ of database \d+/g, 'T')).toMatch(
    new RegExp(
      `^Process (\\d+) on shard "s2" \\(the same transaction as process \\d+ on shard "s2"\\) waits for AccessShareLock on T; blocked by process ${other.pid}\\.\n` +
        `Process ${other.pid} on shard "s2" waits for AccessExclusiveLock on T; blocked by process \\d+\\.$`,
    ),
  );
  await expect(client.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
  await other.has;
});

it('what the home shard is asked for first may be what waits', async () => {
  const client = await begun('SELECT value FROM settings');
  const other = await wants(0, 'settings');
  await expect(
    client.query('SELECT count(DISTINCT note), (SELECT count(*) FROM settings) FROM orders'),
  ).rejects.toMatchObject(DEADLOCK);
  await other.has;
});

/** One who has written where the query is to read waits for one who waits for the query, which waits for one who waits for the writer. */
async function circle(asks: () => Promise<pg.Client>) {
  const writer = await begun(`UPDATE orders SET note = 'w' WHERE tenant_id = 150`);
  await wants(1, 'orders');
  const client = await asks();
  const query = client.query(GATHERED);
  query.catch(() => undefined);
  await untilWaiting(s, 1);
  const here = await wants(0, 'orders');
  const written = writer.query(`UPDATE orders SET note = 'w' WHERE tenant_id = 1`);
  written.catch(() => undefined);
  return { client, query, writer, written, here };
}

it.each([
  ['outside of a block', []],
  ['first in a block', ['BEGIN']],
  ['in a block with settings', ['BEGIN', `SET LOCAL work_mem = '1MB'`]],
])('a gathered query that has written nothing is ended rather than a transaction: %s', async (_, before) => {
  const { client, query, writer, written, here } = await circle(() => connected(before));
  await expect(query).rejects.toMatchObject(DEADLOCK);
  await here.has;
  for (const end of holders.splice(0)) await end();
  expect(await written).toMatchObject({ rowCount: 1 });
  for (const one of [writer, client]) await one.query('ROLLBACK');
  expect((await client.query(GATHERED)).rows).toEqual([{ count: '1' }]);
});

it('of a block that reads and one that writes one is ended', async () => {
  const { query, written } = await circle(() => begun(WRITE.replace('150', '1')));
  const failed = (work: Promise<unknown>) => work.then(() => null).catch((error: pg.DatabaseError) => error);
  const error = await Promise.race([failed(query), failed(written)]);
  expect(error).toMatchObject(DEADLOCK);
  expect(error?.detail).toMatch(/on shard "s1".*\n.*on shard "s2"|on shard "s2".*\n.*on shard "s1"/);
});

it('who waits, but for nobody who waits for him, is let wait', async () => {
  const client = await begun(HERE);
  const other = await holder(s, 1, 'LOCK TABLE items');
  const asked = client.query('SELECT count(*) AS n, count(DISTINCT qty) AS d FROM items, orders');
  await untilWaiting(s, 1);
  const looks = new Set<string>();
  await waitFor(
    async () => {
      const rows = await s.onShard<{ at: string }>(
        1,
        `SELECT query_start::text AS at FROM pg_stat_activity WHERE application_name = 'foreshard deadlocks' AND query LIKE '%WITH lock AS%'`,
      );
      for (const { at } of rows) looks.add(at);
      return looks.size > 3;
    },
    { what: 'the detector to have looked' },
  );
  await other.query('COMMIT');
  expect((await asked).rows).toEqual([{ n: '0', d: '0' }]);
  await other.end();
});
