import { afterAll, beforeAll, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import { holder, twoOrders, untilQuiet, untilWaiting } from './faults.js';

// A gathered query waits for a table that somebody rewrites. PostgreSQL takes the snapshot of a statement of its own behind such a wait; those of transactions that have begun before see an empty table.

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: 4 });
  await twoOrders(s, ['of 1', 'of 150']);
  await s.onShard(0, `INSERT INTO settings VALUES ('a', 'b')`);
}, 60_000);
afterAll(() => s.stop());

const REWRITE = `ALTER TABLE orders ALTER note TYPE text USING note || ''`;
const REPLACE = `CREATE TABLE others (LIKE orders INCLUDING ALL); GRANT ALL ON others TO app; INSERT INTO others TABLE orders;
  DROP TABLE orders CASCADE; ALTER TABLE others RENAME TO orders`;
/** Its rows are made ready by the shards. */
const COUNTED = 'SELECT count(*)::int AS n FROM orders';
const ROWS = 'SELECT count(DISTINCT note)::int AS n FROM orders';
const IN_A_BLOCK = ['BEGIN', `SET LOCAL work_mem = '1MB'`];

it.each([
  ['rewritten, as rows', 1, REWRITE, ROWS, []],
  ['rewritten, as counts', 1, REWRITE, COUNTED, []],
  ['rewritten, as rows, in a block', 1, REWRITE, ROWS, IN_A_BLOCK],
  ['rewritten, as counts, in a block', 1, REWRITE, COUNTED, IN_A_BLOCK],
  ['replaced', 1, REPLACE, ROWS, []],
  ['rewritten on the home shard', 0, REWRITE, ROWS, []],
] as const)('rows of a table that has been waited for are all there: %s', async (_, shard, change, sql, before) => {
  const client = await s.connect();
  for (const text of before) await client.query(text);
  const other = await holder(s, shard, change);
  const asked = client.query(sql);
  await untilWaiting(s, shard);
  await other.query('COMMIT');
  expect((await asked).rows).toEqual([{ n: 2 }]);
  await other.end();
  await client.end();
  await untilQuiet(s);
});

it('rows of a table of the home shard that the query reads last are all there, too', async () => {
  const client = await s.connect();
  const other = await holder(s, 1, 'LOCK TABLE orders');
  const asked = client.query(
    `SELECT count(DISTINCT note)::int AS n, (SELECT max(value) FROM settings) AS value FROM orders`,
  );
  await untilWaiting(s, 1);
  await s.onShard(0, `ALTER TABLE settings ALTER value TYPE text USING value || ''`);
  await other.query('COMMIT');
  expect((await asked).rows).toEqual([{ n: 2, value: 'b' }]);
  await other.end();
  await client.end();
});

it('a table that is rewritten whenever it is read is told after a while', async () => {
  const client = await s.connect();
  let holding = await holder(s, 1, 'LOCK TABLE orders');
  let next = await holder(s, 1, 'SELECT');
  let told: unknown;
  const asked = client.query(ROWS).catch((error: unknown) => {
    told = error;
  });
  for (;;) {
    await Promise.race([untilWaiting(s, 1), asked]);
    if (told !== undefined) break;
    // Behind the query, and before it comes again.
    const locked = next.query('LOCK TABLE orders');
    await waitFor(
      async () => (await s.onShard(1, `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'`)).length === 2,
      { what: 'the next one to wait, too' },
    );
    await holding.query(`${REWRITE}; COMMIT; BEGIN`);
    await locked;
    [holding, next] = [next, holding];
  }
  expect(told).toMatchObject({ code: '40001', hint: 'Retry the query.' });
  await Promise.all([holding.end(), next.end()]);
  expect((await client.query(ROWS)).rows).toEqual([{ n: 2 }]);
  await client.end();
});
