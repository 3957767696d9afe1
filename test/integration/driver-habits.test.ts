import { afterAll, beforeAll, describe, it } from 'vitest';
import { B, bytewise, type Conversation, CP, CS, DP, DS, E, H, Oracle, P, Q, S, whole } from '../support/oracle.js';

const BY_KEY = 'SELECT name FROM tenants WHERE tenant_id = $1';
const INSERT = 'INSERT INTO orders (tenant_id, id) VALUES ($1, $2)';
const say = (sql: string) => [P('', sql), B('', ''), DP(''), E('')];

/** What drivers say on the wire, as they say it: the order of their messages, where they sync, and how they go on after an error. */
const HABITS: readonly Conversation[] = [
  {
    name: 'pgjdbc: BEGIN and statement in one batch, named after five uses, portals with a fetch size',
    steps: [
      ['Z', P('', 'SET extra_float_digits = 3'), B('', ''), E('', 1), S],
      ['Z', P('', `SET application_name = 'PostgreSQL JDBC Driver'`), B('', ''), E('', 1), S],
      ['Z', P('', 'BEGIN'), B('', ''), E(''), P('', BY_KEY, [20]), B('', '', '150'), DP(''), E(''), S],
      ['Z', P('', BY_KEY, [20]), B('', '', '150'), DP(''), E(''), S],
      ['Z', P('S_1', BY_KEY, [20]), B('', 'S_1', '150'), DP(''), E(''), S],
      ['Z', B('', 'S_1', '150'), E(''), S],
      ['Z', P('S_2', 'COMMIT'), B('', 'S_2'), E('', 1), S],
      ['Z', P('S_3', 'BEGIN'), B('', 'S_3'), E(''), B('', 'S_1', '150'), E(''), S],
      ['Z', B('', 'S_2'), E('', 1), S],
      [
        'Z',
        B('', 'S_3'),
        E(''),
        P('S_4', `SELECT n FROM tenants, generate_series(1, 5) n WHERE tenants.tenant_id = $1`, [20]),
        B('C_5', 'S_4', '150'),
        DP('C_5'),
        E('C_5', 2),
        S,
      ],
      ['Z', E('C_5', 2), S],
      ['Z', E('C_5', 2), CP('C_5'), S],
      ['Z', B('', 'S_2'), E('', 1), S],
    ],
  },
  {
    name: 'pgjdbc: autosave',
    steps: [
      ['Z', P('', 'BEGIN'), B('', ''), E(''), P('', BY_KEY, [20]), B('', '', '150'), DP(''), E(''), S],
      [
        'Z',
        P('', 'SAVEPOINT PGJDBC_AUTOSAVE'),
        B('', ''),
        E('', 1),
        P('', 'SELECT nothing'),
        B('', ''),
        DP(''),
        E(''),
        S,
      ],
      ['Z', P('', 'ROLLBACK TO SAVEPOINT PGJDBC_AUTOSAVE'), B('', ''), E('', 1), S],
      [
        'Z',
        P('S_9', 'SAVEPOINT PGJDBC_AUTOSAVE'),
        B('', 'S_9'),
        E('', 1),
        P('', INSERT, [20, 20]),
        B('', '', '150', '1'),
        DP(''),
        E('', 1),
        S,
      ],
      ['Z', P('', 'RELEASE SAVEPOINT PGJDBC_AUTOSAVE'), B('', ''), E('', 1), S],
      ['Z', P('', 'COMMIT'), B('', ''), E('', 1), S],
    ],
  },
  {
    name: 'Npgsql: a batch with one Sync and an error in it, DISCARD ALL before the next',
    steps: [
      [
        'Z',
        P('', INSERT, [20, 20]),
        B('', '', '150', '1'),
        DP(''),
        E(''),
        P('', 'SELECT 1/0'),
        B('', ''),
        DP(''),
        E(''),
        P('', BY_KEY, [20]),
        B('', '', '150'),
        DP(''),
        E(''),
        S,
      ],
      ['Z', P('_p1', BY_KEY, [20]), DS('_p1'), P('_p2', INSERT, [20, 20]), DS('_p2'), S],
      ['Z', B('', '_p1', '150'), E(''), B('', '_p2', '150', '2'), E(''), S],
      ['ZZ', Q('DISCARD ALL'), P('', BY_KEY, [20]), B('', '', '150'), DP(''), E(''), S],
      ['Z', B('', '_p1', '150'), E(''), S],
      ['Z', Q('CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP')],
    ],
    sole: true,
  },
  {
    name: 'pgx: describe and sync, then bind; deallocate all',
    steps: [
      ['Z', P('stmtcache_1', BY_KEY), DS('stmtcache_1'), S],
      ['Z', B('', 'stmtcache_1', '150'), DP(''), E(''), S],
      ['Z', P('stmtcache_2', 'SELECT nothing'), DS('stmtcache_2'), S],
      ['Z', P('stmtcache_2', INSERT), DS('stmtcache_2'), S],
      ['Z', B('', 'stmtcache_2', '150', '1'), DP(''), E(''), B('', 'stmtcache_1', '150'), DP(''), E(''), S],
      ['Z', Q('deallocate all')],
      ['Z', B('', 'stmtcache_1', '150'), DP(''), E(''), S],
      ['Z', P('stmtcache_1', BY_KEY), DS('stmtcache_1'), S],
      ['Z', CS('stmtcache_1'), S],
      ['Z', Q('begin isolation level repeatable read')],
      ['Z', P('', BY_KEY), DS(''), S],
      ['Z', B('', '', '150'), DP(''), E(''), S],
      ['Z', Q('commit')],
    ],
  },
  {
    name: 'psycopg: pipeline, prepared after five',
    steps: [
      ['Z', ...say('BEGIN'), S],
      [
        'ZZZ',
        P('', INSERT),
        B('', '', '150', '1'),
        DP(''),
        E(''),
        S,
        P('_pg3_0', INSERT),
        B('', '_pg3_0', '150', '2'),
        DP(''),
        E(''),
        S,
        B('', '_pg3_0', '150', '2'),
        DP(''),
        E(''),
        S,
      ],
      ['ZZ', B('', '_pg3_0', '150', '3'), DP(''), E(''), S, ...say('ROLLBACK'), S],
      ['ZZ', B('', '_pg3_0', '150', '3'), DP(''), E(''), S, ...say('DEALLOCATE ALL'), S],
      ['Z', B('', '_pg3_0', '150', '4'), DP(''), E(''), S],
      ['Z', P('_pg3_0', INSERT), B('', '_pg3_0', '150', '4'), DP(''), E(''), S],
    ],
  },
  {
    name: 'libpq: pipeline mode with Flush, and what an error aborts',
    steps: [
      ['C', P('', INSERT), B('', '', '150', '1'), DP(''), E(''), H],
      ['C', P('', INSERT), B('', '', '150', '2'), DP(''), E(''), H],
      ['E', P('', INSERT), B('', '', '150', '2'), DP(''), E(''), H],
      ['Z', P('', INSERT), B('', '', '150', '3'), DP(''), E(''), H, S],
      [
        'ZZ',
        P('', INSERT),
        B('', '', '150', '5'),
        DP(''),
        E(''),
        S,
        P('', BY_KEY),
        B('', '', '150'),
        DP(''),
        E(''),
        H,
        S,
      ],
    ],
  },
  {
    name: 'asyncpg: describe with Flush, reset',
    steps: [
      ['t', P('__asyncpg_stmt_1__', BY_KEY), DS('__asyncpg_stmt_1__'), H],
      ['Z', S],
      ['Z', B('', '__asyncpg_stmt_1__', '150'), E(''), S],
      ['Z', Q('BEGIN;')],
      ['Z', B('__asyncpg_portal_1__', '__asyncpg_stmt_1__', '150'), E('__asyncpg_portal_1__', 1), S],
      ['Z', E('__asyncpg_portal_1__', 1), CP('__asyncpg_portal_1__'), S],
      ['Z', Q('COMMIT;')],
      ['Z', CS('__asyncpg_stmt_1__'), S],
      ['Z', Q('SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;')],
    ],
  },
  {
    name: 'psqlODBC: a savepoint for each statement, cursors WITH HOLD',
    sole: true,
    steps: [
      ['Z', Q(`SET DateStyle = 'ISO';SET extra_float_digits = 2;show transaction_isolation`)],
      [
        'Z',
        Q(
          `BEGIN;declare "SQL_CUR0x1" cursor with hold for SELECT tenant_id FROM tenants WHERE tenant_id = 150;fetch 100 in "SQL_CUR0x1"`,
        ),
      ],
      ['Z', Q('SAVEPOINT _EXEC_SVP_0x2;SELECT nothing')],
      ['Z', Q('ROLLBACK to _EXEC_SVP_0x2; RELEASE _EXEC_SVP_0x2')],
      ['Z', Q('SAVEPOINT _EXEC_SVP_0x2;INSERT INTO orders (tenant_id, id) VALUES (150, 1)')],
      ['Z', Q('RELEASE _EXEC_SVP_0x2')],
      ['Z', Q('COMMIT')],
      ['Z', Q('fetch backward 1 in "SQL_CUR0x1"')],
      ['Z', Q('close "SQL_CUR0x1"')],
    ],
  },
  {
    name: 'postgres.js and tokio-postgres: describe, then all in flight',
    steps: [
      ['T', P('a1', BY_KEY), DS('a1'), H],
      ['Z', B('', 'a1', '150'), E(''), S],
      ['ZZZ', P('s0', BY_KEY), DS('s0'), S, P('s1', INSERT), DS('s1'), S, P('s2', 'SELECT nothing'), DS('s2'), S],
      ['ZZZ', B('', 's1', '150', '1'), E(''), S, B('', 's0', '150'), E(''), S, CS('s0'), S],
      [
        'Z',
        P('s3', `SELECT t.typname, t.typtype, t.typelem FROM pg_catalog.pg_type t WHERE t.oid = $1`, [26]),
        DS('s3'),
        S,
      ],
      ['Z', B('', 's3', '20'), E(''), S],
      ['ZZ', CS('s3'), S, B('', 's3', '20'), E(''), S],
    ],
  },
  {
    name: 'Rails and Django: set-up',
    steps: [
      ['Z', Q("SET client_min_messages TO 'warning'")],
      ['Z', Q('SET standard_conforming_strings = on')],
      ['Z', P('', 'SET intervalstyle = iso_8601'), B('', ''), DP(''), E(''), S],
      ['Z', Q(`SET SESSION timezone TO 'UTC'`)],
      ['Z', Q('SHOW max_identifier_length; SHOW search_path')],
      ['Z', P('', `SELECT set_config('TimeZone', $1, false)`), B('', '', 'Europe/Paris'), DP(''), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', P('a1', BY_KEY), DS('a1'), S],
      ['Z', B('', 'a1', '150'), E(''), S],
      ['Z', Q('SAVEPOINT active_record_1')],
      ['Z', Q('SELECT 1/0')],
      ['Z', Q('ROLLBACK TO SAVEPOINT active_record_1')],
      ['Z', Q('RELEASE SAVEPOINT active_record_1')],
      ['Z', Q('COMMIT')],
      ['Z', Q('DEALLOCATE a1')],
      ['Z', Q('DISCARD ALL')],
      ['Z', Q('SHOW timezone')],
    ],
  },
];

let oracle: Oracle;

beforeAll(async () => {
  oracle = await Oracle.start({ poolSize: 2 });
});
afterAll(() => oracle.stop());

describe('with all data on one shard, drivers hear what PostgreSQL says', () => {
  for (const c of HABITS) it(c.name, () => oracle.compare(c, whole, true));
});

describe('a byte at a time', () => {
  for (const c of HABITS) it(c.name, () => oracle.compare(c, bytewise, true));
});

describe('with data on two shards', () => {
  beforeAll(() => oracle.split());
  for (const c of HABITS) if (!c.sole) it(c.name, () => oracle.compare(c, whole, true));
});
