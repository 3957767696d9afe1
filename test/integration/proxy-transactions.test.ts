import { afterAll, beforeAll, describe, it } from 'vitest';
import { B, bytewise, type Conversation, CP, CS, DP, DS, E, H, Oracle, P, Q, S, whole } from '../support/oracle.js';

const BY_KEY = 'SELECT name FROM tenants WHERE tenant_id = $1';
const ZONE = `SELECT name, current_setting('TimeZone'), current_setting('DateStyle') FROM tenants WHERE tenant_id = 150`;
const RENAME = 'UPDATE tenants SET name = $2 WHERE tenant_id = $1';
const ORDER = 'INSERT INTO orders (tenant_id, id) VALUES ($1, $2)';
const one = (sql: string, ...values: string[]) => [P('', sql), B('', '', ...values), DP(''), E(''), S];

/** Transactions whose statements mostly go straight on, and whatever may come between. */
const TRANSACTIONS: readonly Conversation[] = [
  {
    name: 'queries, one by one',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 2), (150, 3) RETURNING id')],
      ['Z', Q(`UPDATE tenants SET name = 'x' WHERE tenant_id = 150 RETURNING name`)],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150 FOR UPDATE')],
      ['Z', Q('DELETE FROM orders WHERE tenant_id = 150 AND id = 2')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id')],
      ['Z', Q('COMMIT')],
      ['Z', Q('START TRANSACTION READ ONLY')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q(`UPDATE tenants SET name = 'y' WHERE tenant_id = 150`)],
      ['Z', Q('END')],
      ['Z', Q('BEGIN')],
      ['Z', Q('DELETE FROM orders WHERE tenant_id = 150')],
      ['Z', Q('DELETE FROM orders WHERE tenant_id = 150')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('BEGIN;')],
      ['Z', Q('DELETE FROM orders WHERE tenant_id = 150 AND id = 1')],
      ['Z', Q('COMMIT AND CHAIN')],
      ['Z', Q('DELETE FROM orders WHERE tenant_id = 150 AND id = 3')],
      ['Z', Q('ROLLBACK AND NO CHAIN')],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'batches, one by one, with unnamed statements',
    steps: [
      ['Z', ...one('BEGIN')],
      ['Z', ...one(ORDER, '150', '1')],
      ['Z', ...one(BY_KEY, '150')],
      ['Z', ...one(RENAME, '150', 'x')],
      ['Z', ...one(BY_KEY, '150')],
      // The same statement and portal once more, without a Parse; and the portal, which has been run to its end.
      ['Z', B('', '', '150'), DP(''), E(''), S],
      ['Z', B('', '', '150'), E(''), CP(''), S],
      ['Z', E(''), S],
      ['Z', ...one('ROLLBACK')],
      ['Z', ...one('BEGIN')],
      ['Z', ...one(ORDER, '150', '1')],
      ['Z', ...one(ORDER, '150', '2')],
      ['Z', ...one('END')],
      ['Z', ...one('BEGIN')],
      ['Z', ...one(ORDER, '150', '3')],
      ['Z', ...one(BY_KEY, '150')],
      ['Z', E(''), S],
      ['Z', ...one('COMMIT')],
      ['Z', B('', ''), E(''), S],
    ],
  },
  {
    name: 'batches with named statements, BEGIN and COMMIT among them',
    steps: [
      ['Z', P('b', 'BEGIN'), DS('b'), S],
      ['Z', P('c', 'COMMIT'), P('r', BY_KEY, [20]), P('i', ORDER, [20, 20]), S],
      ['Z', B('', 'b'), DP(''), E(''), S],
      ['Z', B('', 'i', '150', '1'), DP(''), E(''), S],
      ['Z', B('', 'r', '150'), DP(''), E(''), S],
      ['Z', B('', 'r', '150'), E(''), S],
      ['Z', B('', 'i', '150', '2'), E(''), S],
      ['Z', B('', 'c'), DP(''), E(''), S],
      ['Z', B('', 'b'), E(''), S],
      ['Z', B('', 'i', '150', '3'), E(''), S],
      ['Z', B('', 'unheard of', '150'), E(''), S],
      ['Z', B('', 'i', '150', '4'), E(''), S],
      ['Z', B('', 'c'), E(''), S],
      ['Z', CS('c'), S],
      ['Z', B('', 'b'), E(''), CP(''), S],
      ['Z', B('', 'i', '150', '5'), E(''), S],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'errors in the middle',
    sole: true,
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 2)')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150 AND 1 / (tenant_id - 150) = 1')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 3)')],
      ['Z', Q('COMMIT')],
      // A Query would drop the unnamed statement.
      ['Z', P('rollback', 'ROLLBACK'), S],
      ['Z', Q('BEGIN')],
      ['Z', ...one(ORDER, '150', '4')],
      // It cannot be parsed: the unnamed statement is gone, and the one before does not come back.
      ['Z', ...one(BY_KEY, '150')],
      ['Z', P('', 'SELECT nothing FROM tenants WHERE tenant_id = $1'), B('', '', '150'), DP(''), E(''), S],
      ['Z', B('', 'rollback'), E(''), S],
      ['Z', B('', '', '150'), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', ...one(ORDER, '150', '5')],
      ['Z', ...one(BY_KEY, '150')],
      // It is parsed, but cannot be bound.
      ['Z', ...one(BY_KEY, 'no number')],
      ['Z', Q('ROLLBACK')],
      ['Z', B('', '', '150'), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', ...one(ORDER, '150', '6')],
      ['Z', ...one(BY_KEY)],
      ['Z', Q('ROLLBACK')],
      ['Z', ...one('SELECT')],
    ],
  },
  {
    name: 'savepoints, settings, cursors and other things in between',
    sole: true,
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 2)')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150')],
      ['Z', Q(`SET LOCAL TimeZone = 'UTC'`)],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q('SET standard_conforming_strings = off')],
      ['Z', Q(`SELECT name, 'a\\\\b' FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q('RELEASE a')],
      ['Z', Q('DECLARE c CURSOR FOR SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q('FETCH c')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(`SELECT name, 'a\\\\b' FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q('SHOW TimeZone')],
      ['Z', Q('BEGIN')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q(`SET TimeZone = 'UTC'`)],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150')],
      ['Z', Q('COMMIT')],
      ['Z', Q('SHOW TimeZone')],
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET TimeZone = 'Europe/Paris'`)],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 2)')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SHOW TimeZone')],
    ],
  },
  {
    name: 'settings before the statement that says which shard it is',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET TimeZone = 'Europe/Paris'`)],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(ZONE)],
      ['Z', Q('BEGIN')],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q(`SET TimeZone = 'Europe/Paris'`)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q(`SET DateStyle = 'German'`)],
      ['Z', ...one(ORDER, '150', '2')],
      ['Z', Q('COMMIT')],
      ['Z', Q(ZONE)],
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET TimeZone = 'Europe/Rome'`)],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 3)')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 3)')],
      ['Z', Q('COMMIT')],
      ['Z', Q(ZONE)],
    ],
  },
  {
    name: 'first in its transaction a statement that the server connection has prepared already',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', ...one(ORDER, '150', '1')],
      ['Z', Q('COMMIT')],
      ['Z', P('n', RENAME), DS('n'), S],
      ['Z', CS('n'), S],
      ['Z', Q('BEGIN')],
      ['Z', P('n', RENAME), B('', 'n', '150', 'x'), DP(''), E(''), S],
      ['Z', ...one(BY_KEY, '150')],
      ['Z', Q('COMMIT')],
      ['Z', Q('SELECT')],
    ],
  },
  {
    name: 'several statements sent without waiting for answers',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      [
        'ZZZ',
        Q('INSERT INTO orders (tenant_id, id) VALUES (150, 2)'),
        Q('SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id'),
        Q('SELECT 1'),
      ],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150; SELECT 2')],
      ['ZZZ', ...one(ORDER, '150', '3'), ...one(BY_KEY, '150'), Q('SELECT 3')],
      ['1', P('', BY_KEY), B('', '', '150'), H],
      ['Z', E(''), S],
      ['ZZ', Q('SELECT 4'), Q('COMMIT')],
      ['ZZZ', Q('BEGIN'), Q('INSERT INTO orders (tenant_id, id) VALUES (150, 5)'), Q('END')],
      ['Z', Q('')],
    ],
  },
  {
    name: 'large answers and large statements',
    sole: true,
    large: true,
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q(`SELECT n, repeat('x', 1000) FROM tenants, generate_series(1, 500) n WHERE tenant_id = 150`)],
      ['Z', Q(`SELECT repeat('x', 300000) FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q(`SELECT name, length('${'y'.repeat(40_000)}') FROM tenants WHERE tenant_id = 150`)],
      ['Z', ...one(`SELECT repeat('x', 300000) FROM tenants WHERE tenant_id = $1`, '150')],
      ['Z', ...one(BY_KEY, '150')],
      ['Z', Q('COMMIT')],
    ],
  },
];

let oracle: Oracle;

beforeAll(async () => {
  oracle = await Oracle.start({ poolSize: 2 });
});
afterAll(() => oracle.stop());

describe('with all data on one shard, transactions are what PostgreSQL makes of them', () => {
  for (const c of TRANSACTIONS) it(c.name, () => oracle.compare(c, whole, true));
});

describe('a byte at a time', () => {
  for (const c of TRANSACTIONS) if (!c.large) it(c.name, () => oracle.compare(c, bytewise, true));
});

describe('with data on two shards', () => {
  beforeAll(() => oracle.split());
  for (const c of TRANSACTIONS) if (!c.sole) it(c.name, () => oracle.compare(c, whole, true));
});
