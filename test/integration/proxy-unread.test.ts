import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect, it, vi } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { twoTenants } from './faults.js';

// Texts that a server takes and the proxy's parser does not, as it is with a server of another version than the parser: where their rows are is not known.
// The parser is made to be one that does not know the word.

vi.mock('../../proxy/router/parse.js', async (original) => {
  const module = await original<typeof import('../../proxy/router/parse.js')>();
  return { ...module, parse: (text: Buffer) => (text.includes('newer') ? null : module.parse(text)) };
});

let s: Sharded;
let c: pg.Client;
beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
});
beforeEach(async () => {
  await twoTenants(s);
  c = await s.connect();
});
afterEach(() => c.end());
afterAll(() => s.stop());

const UNREAD = { code: '0A000', message: expect.stringContaining('cannot be routed') };
const WRONG = { code: '42601', message: 'syntax error at or near "SELEC"' };
const names = async () =>
  [...(await s.onShard(0, 'SELECT name FROM tenants')), ...(await s.onShard(1, 'SELECT name FROM tenants'))].map(
    ({ name }) => name,
  );

it.each([
  ['a read', `SELECT name AS newer FROM tenants WHERE tenant_id = 150`],
  ['a write', `UPDATE tenants AS newer SET name = 'other'`],
  ['several statements', `UPDATE tenants SET name = 'other'; SELECT 1 AS newer`],
])('%s is refused, and nothing is done', async (_, sql) => {
  await expect(c.query(sql)).rejects.toMatchObject(UNREAD);
  if (!sql.includes(';')) await expect(c.query(sql, [])).rejects.toMatchObject(UNREAD);
  const named = c.query({ name: 'one', text: sql });
  await expect(named).rejects.toMatchObject(sql.includes(';') ? { code: '42601' } : UNREAD);
  expect(await names()).toEqual(['t1', 't150']);
  expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 150')).rows).toEqual([{ name: 't150' }]);
});

it('what is wrong with a text the server says, as ever', async () => {
  for (const query of [
    'SELEC 1 AS newer',
    { text: 'SELEC 1 AS newer', values: [] },
    { name: 'a', text: 'SELEC newer' },
  ])
    await expect(c.query(query as pg.QueryConfig)).rejects.toMatchObject({ ...WRONG, position: '1' });
  await expect(c.query('SELECT newer FROM nothing')).rejects.toMatchObject({ code: '42P01', position: '19' });
});

it('a transaction fails with it, wherever it is', async () => {
  for (const [before, sql, told] of [
    [[], 'SELECT 1 AS newer', UNREAD],
    [[], 'SELEC newer', WRONG],
    [[1], 'SELECT 1 AS newer', UNREAD],
    [[150], 'SELEC newer', WRONG],
    [[1, 150], 'SELECT 1 AS newer', UNREAD],
    [[1, 150], 'SELEC newer', WRONG],
  ] as const)
    for (const values of [undefined, []]) {
      await c.query('BEGIN');
      for (const id of before) await c.query(`UPDATE tenants SET name = 'other' WHERE tenant_id = ${id}`);
      await expect(c.query(sql, values as never)).rejects.toMatchObject(told);
      await expect(c.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
      await expect(c.query('SELECT 1 AS newer', values as never)).rejects.toMatchObject({ code: '25P02' });
      expect((await c.query('COMMIT')).command).toBe('ROLLBACK');
      expect(await names()).toEqual(['t1', 't150']);
    }
});

it('a savepoint is gone back to from it', async () => {
  await c.query('BEGIN');
  await c.query(`UPDATE tenants SET name = 'kept' WHERE tenant_id = 150`);
  await c.query('SAVEPOINT a');
  await expect(c.query('SELECT 1 AS newer')).rejects.toMatchObject(UNREAD);
  await c.query('ROLLBACK TO a');
  await c.query('COMMIT');
  expect(await names()).toEqual(['t1', 'kept']);
});

it('runs where all rows are on one shard', async () => {
  const whole = await Sharded.start({ splitAt: null });
  try {
    const client = await whole.connect();
    expect((await client.query('SELECT 1 AS newer')).rows).toEqual([{ newer: 1 }]);
    expect((await client.query('SELECT $1::int AS newer', [2])).rows).toEqual([{ newer: 2 }]);
  } finally {
    await whole.stop();
  }
});
