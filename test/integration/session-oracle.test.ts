import { afterAll, beforeAll, describe, it } from 'vitest';
import { MessageBuilder } from '../../proxy/wire/message-builder.js';
import { FRONTEND } from '../../proxy/wire/message-types.js';
import { B, bytewise, type Conversation, CS, DP, DS, E, H, Oracle, P, Q, S, whole } from '../support/oracle.js';

const data = (text: string) => new MessageBuilder(FRONTEND.CopyData).bytes(Buffer.from(text)).finish();
const run = (sql: string) => [P('', sql), B('', ''), E('')];
const OPTIONS = { options: '-c work_mem=5MB -c my.own=given -c search_path=public,pg_catalog -c DateStyle=German' };

const SETTINGS: readonly Conversation[] = [
  {
    name: 'RESET inside a transaction goes back to the start-up value',
    startup: OPTIONS,
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET work_mem = '7MB'`)],
      ['Z', Q('RESET work_mem')],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q(`SET application_name = 'x'; RESET application_name; SHOW application_name; SELECT 1/0`)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SHOW work_mem')],
    ],
  },
  {
    name: 'RESET among other statements of a Query',
    startup: OPTIONS,
    steps: [
      ['Z', Q(`SET work_mem = '7MB'; RESET work_mem; SHOW work_mem; SET work_mem TO DEFAULT; SHOW work_mem`)],
      ['Z', Q(`SET my.own = 'x'; RESET my.own; SHOW my.own; RESET my.other`)],
      ['Z', Q(`SET work_mem = '7MB'; RESET work_mem; /* ä */ SHOW nothing`)],
      ['Z', Q(`SET work_mem = '7MB'; RESET work_mem; SHOW work_mem; RESET TimeZone; SELECT 'ä', nothing`)],
      ['Z', Q(`SET work_mem = '7MB'; RESET work_mem; SHOW work_mem; RESET TimeZone; SELEC`)],
    ],
  },
  {
    name: 'RESET of search_path among other statements of a Query',
    startup: OPTIONS,
    sole: true,
    steps: [
      ['Z', Q(`SET search_path = x; RESET search_path; SHOW search_path; /* ä */ SELECT nothing`)],
      ['Z', Q(`RESET ALL; SHOW DateStyle; SHOW work_mem; SELECT '2020-01-02'::date; SHOW TimeZone`)],
    ],
  },
  {
    name: 'RESET in the extended protocol',
    startup: OPTIONS,
    steps: [
      ['Z', ...run(`SET work_mem = '7MB'`), ...run('RESET work_mem'), ...run('SHOW work_mem'), S],
      ['Z', ...run('BEGIN'), ...run('SET LOCAL work_mem TO DEFAULT'), ...run('SHOW work_mem'), ...run('COMMIT'), S],
      ['Z', ...run(`SET DateStyle TO 'ISO'`), ...run('RESET ALL'), ...run('SHOW DateStyle'), ...run('SHOW my.own'), S],
      ['Z', P('r', 'RESET ALL'), DS('r'), S],
      ['Z', Q(`SET TimeZone = 'Asia/Tokyo'`)],
      ['Z', B('', 'r'), DP(''), E(''), S],
      ['Z', ...run('SHOW TimeZone'), S],
    ],
  },
  {
    name: 'SET LOCAL x TO DEFAULT',
    startup: OPTIONS,
    steps: [
      ['Z', Q(`SET work_mem = '7MB'`)],
      [
        'Z',
        Q('BEGIN; SET LOCAL work_mem TO DEFAULT; SHOW work_mem; SAVEPOINT a; SET LOCAL work_mem = 100; ROLLBACK TO a'),
      ],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q('COMMIT')],
      ['Z', Q('SHOW work_mem')],
    ],
  },
  {
    name: 'parameters are told once, before the proxy is ready',
    startup: OPTIONS,
    steps: [
      ['Z', Q(`SET application_name = 'a'; SET application_name = 'b'`)],
      ['Z', Q(`SET application_name = 'c'; SET application_name = 'b'`)],
      ['Z', Q('RESET application_name')],
      ['Z', Q('RESET application_name')],
      ['Z', Q(`SET DateStyle = 'ISO'; SET TimeZone = 'UTC'`)],
      ['Z', Q('RESET ALL')],
      ['Z', Q(`SET DateStyle = 'ISO'; SET TimeZone = 'UTC'`)],
      ['Z', Q('DISCARD ALL')],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q(`BEGIN; SET LOCAL TimeZone = 'UTC'`)],
      ['Z', Q('COMMIT')],
      ['Z', Q(`BEGIN; SET TimeZone = 'UTC'; SAVEPOINT a; SET TimeZone = 'Asia/Tokyo'`)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(`SET TimeZone = 'UTC'; SELECT 1/0`)],
      ['Z', ...run('DISCARD ALL'), ...run('SHOW work_mem'), S],
      ['Z', ...run(`SET DateStyle = 'ISO'`), S, ...run('DISCARD ALL'), S],
      ['Z', Q(`SET client_encoding = 'LATIN1'`)],
      ['Z', Q('SET NAMES')],
      ['Z', Q(`SET TIME ZONE 'UTC'`)],
      ['Z', Q('SET TIME ZONE LOCAL')],
      ['Z', Q("SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE; SHOW TIME ZONE")],
    ],
  },
  {
    name: 'SET SESSION CHARACTERISTICS',
    steps: [
      ['Z', Q('SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE')],
      ['Z', Q('SHOW transaction_isolation')],
      ['Z', Q('SHOW default_transaction_read_only')],
      ['Z', Q(`INSERT INTO tenants VALUES (160, 'x')`)],
      ['Z', Q('SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE, NOT DEFERRABLE')],
      ['Z', Q('SHOW default_transaction_deferrable')],
      ['Z', Q(`INSERT INTO tenants VALUES (160, 'x')`)],
      ['Z', Q('BEGIN; SHOW transaction_isolation; ROLLBACK')],
      ['Z', Q('DISCARD ALL')],
      ['Z', Q('SHOW transaction_isolation')],
    ],
  },
  {
    name: 'SET TRANSACTION',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY')],
      ['Z', Q('SHOW transaction_isolation')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q(`INSERT INTO tenants VALUES (160, 'x')`)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SET TRANSACTION READ ONLY')],
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET transaction_isolation = 'serializable'`)],
      ['Z', Q('COMMIT')],
      ['Z', Q('SHOW transaction_isolation')],
    ],
  },
  {
    name: 'set_config',
    startup: OPTIONS,
    steps: [
      ['Z', Q(`SELECT set_config('work_mem', '8MB', false), set_config('my.own', 'it''s', false)`)],
      ['Z', Q('SHOW work_mem; SHOW my.own')],
      ['Z', Q(`SELECT pg_catalog.set_config('search_path', '', false)`)],
      ['Z', Q('SHOW search_path')],
      ['Z', Q(`SELECT set_config('search_path', 'public', true)`)],
      ['Z', Q('SHOW search_path')],
      ['Z', P('', 'SELECT set_config($1, $2, false)'), B('', '', 'work_mem', '9MB'), E(''), S],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q(`SELECT set_config('work_mem', (10 + 1) || 'MB', false)`)],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q(`SET maintenance_work_mem = '70MB'; SELECT set_config('maintenance_work_mem', NULL, false)`)],
      ['Z', Q('SHOW maintenance_work_mem')],
      ['Z', Q(`BEGIN; SELECT set_config('work_mem', '11' || 'MB', false)`)],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q(`SELECT set_config(lower('WORK_MEM'), '12MB', false)`)],
      ['Z', Q('SHOW work_mem')],
    ],
  },
  {
    name: 'roles',
    steps: [
      ['Z', Q('SET ROLE none')],
      ['Z', Q('SET SESSION AUTHORIZATION app')],
      ['Z', Q('SELECT current_user, session_user')],
      ['Z', Q('SET ROLE no_such_role')],
      ['Z', Q('BEGIN; SET ROLE app; SHOW role; ROLLBACK')],
      ['Z', Q('SHOW role')],
      ['Z', Q('RESET ROLE; RESET SESSION AUTHORIZATION')],
      ['Z', Q('SET SESSION AUTHORIZATION DEFAULT')],
    ],
  },
];

const BY_KEY = 'SELECT name FROM tenants WHERE tenant_id = $1';

const STATEMENTS: readonly Conversation[] = [
  {
    name: 'PREPARE, EXECUTE, DEALLOCATE',
    steps: [
      ['Z', Q(`PREPARE q (bigint) AS ${BY_KEY}`)],
      ['Z', Q('EXECUTE q(150)')],
      ['Z', Q('EXECUTE q(-1 + 151)')],
      ['Z', Q(`EXECUTE "q" ('150'); execute Q(151)`)],
      ['Z', Q(`EXPLAIN (COSTS off) EXECUTE q(150)`)],
      ['Z', Q('DEALLOCATE q')],
      ['Z', Q('EXECUTE q(150)')],
      ['Z', Q('DEALLOCATE q')],
      ['Z', Q('DEALLOCATE PREPARE q')],
      ['Z', Q('DEALLOCATE ALL')],
    ],
    sole: true,
  },
  {
    name: 'EXECUTE of rows by their key',
    steps: [
      ['Z', Q(`PREPARE q (bigint) AS ${BY_KEY}`)],
      ['Z', Q('EXECUTE q(150)')],
      ['Z', Q(`EXECUTE q('151')`)],
      ['Z', Q('EXECUTE q(NULL)')],
      ['Z', Q('EXPLAIN (COSTS off) EXECUTE q(150)')],
      ['Z', Q(`PREPARE i AS INSERT INTO orders VALUES ($1, $2, 'x') RETURNING id`)],
      ['Z', Q('EXECUTE i(150, 1); EXECUTE i(150, 2)')],
      ['Z', Q('EXECUTE i(150, 1)')],
      ['Z', Q('BEGIN; EXECUTE i(150, 7); EXECUTE q(150)')],
      ['Z', Q('EXECUTE i(150, 7)')],
      ['Z', Q('EXECUTE q(150)')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('EXECUTE none(1)')],
      ['Z', Q('EXECUTE fs_1(1)')],
      ['Z', Q('DEALLOCATE fs_1')],
      ['Z', Q('EXECUTE "Odd ""name"""')],
    ],
  },
  {
    name: 'PREPARE: errors',
    steps: [
      ['Z', Q('PREPARE q AS SELECT nothing')],
      ['Z', Q('/* ä */ PREPARE a_rather_long_name_for_a_statement AS SELECT 1, nothing')],
      ['Z', Q('PREPARE q AS SELECT 1')],
      ['Z', Q('PREPARE q AS SELECT 2')],
      ['Z', Q('PREPARE q AS SELECT nothing')],
      ['Z', Q('EXECUTE q')],
      ['Z', Q('EXECUTE q(1)')],
      ['Z', Q('EXECUTE q(nothing)')],
      ['Z', Q('PREPARE q AS VACUUM')],
      ['Z', Q('PREPARE x AS SELECT $1 + 1; EXECUTE x(1); EXECUTE x(2, 3)')],
      ['Z', Q(`EXECUTE x('a')`)],
      ['Z', Q('BEGIN')],
      ['Z', Q('PREPARE y AS SELECT 3')],
      ['Z', Q('PREPARE y AS SELECT 3')],
      ['Z', Q('PREPARE z AS SELECT 3')],
      ['Z', Q('EXECUTE y')],
      ['Z', Q('DEALLOCATE y')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('EXECUTE y')],
      ['Z', Q('EXECUTE z')],
    ],
  },
  {
    name: 'PREPARE and the rest in one Query',
    steps: [
      ['Z', Q('PREPARE q AS SELECT 1; EXECUTE q; DEALLOCATE q; PREPARE q AS SELECT 2; EXECUTE q; EXECUTE q')],
      ['Z', Q('EXECUTE q')],
      ['Z', Q('DEALLOCATE q; EXECUTE q')],
      ['Z', Q('EXECUTE q')],
      ['Z', Q('PREPARE q AS SELECT 4; SELECT 1/0; PREPARE r AS SELECT 5')],
      ['Z', Q('EXECUTE q')],
      ['Z', Q('EXECUTE r')],
      ['Z', Q('DEALLOCATE ALL; EXECUTE q')],
      ['Z', Q('PREPARE q AS SELECT 1; DEALLOCATE ALL; PREPARE q AS SELECT 1; EXECUTE q; SELECT nothing')],
      ['Z', Q('EXECUTE q; BEGIN; EXECUTE q; COMMIT; DEALLOCATE q; EXECUTE q')],
    ],
  },
  {
    name: 'one namespace for Parse and PREPARE',
    steps: [
      ['Z', P('p', BY_KEY, [20]), P('t', 'SHOW DateStyle'), S],
      ['Z', Q('EXECUTE p(150)')],
      ['Z', Q('EXECUTE t')],
      ['Z', Q('PREPARE p AS SELECT 1')],
      ['Z', Q('BEGIN; EXECUTE p(150); DEALLOCATE p; SELECT 1/0')],
      ['Z', Q('ROLLBACK')],
      ['Z', B('', 'p', '150'), E(''), S],
      ['Z', Q(`PREPARE s (bigint, text) AS ${BY_KEY} AND name <> $2`)],
      ['Z', P('s', BY_KEY), S],
      ['Z', DS('s'), B('', 's', '150', 'x'), DP(''), E(''), S],
      ['Z', CS('s'), S],
      ['Z', Q(`EXECUTE s(150, 'x')`)],
      ['Z', DS('s'), S],
    ],
  },
  {
    name: 'PREPARE, EXECUTE and DEALLOCATE in the extended protocol',
    steps: [
      ['Z', ...run(`PREPARE q (bigint) AS ${BY_KEY}`), S],
      ['Z', P('', 'EXECUTE q(150)'), DS(''), B('', ''), DP(''), E(''), S],
      ['Z', P('e', 'EXECUTE q(151)'), S],
      ['Z', DS('e'), B('', 'e'), E(''), S],
      ['Z', B('', 'e'), E(''), B('', 'q', '150'), E(''), S],
      ['Z', ...run(`PREPARE q AS SELECT 1`), S],
      ['Z', ...run(`PREPARE w AS SELECT nothing`), S],
      ['Z', P('', 'EXECUTE none'), DS(''), B('', ''), DP(''), E(''), S],
      ['Z', ...run('DEALLOCATE q'), S],
      ['Z', B('', 'e'), E(''), S],
      ['Z', ...run('PREPARE r AS SELECT 7'), ...run('EXECUTE r'), ...run('DEALLOCATE r'), ...run('EXECUTE r'), S],
      ['Z', ...run('PREPARE r AS SELECT 8'), B('', 'r'), DP(''), E(''), CS('r'), B('', 'r'), S],
      ['ZZ', ...run('PREPARE r AS SELECT 9'), S, ...run('DEALLOCATE ALL'), B('', 'r'), E(''), S],
      ['Z', ...run('EXECUTE r'), S],
      ['Z', P('k', 'SELECT 1'), S],
      ['Z', ...run('DEALLOCATE ALL'), B('', 'k'), E(''), S],
      ['Z', P('k', 'SELECT 1'), S],
      ['Z', ...run('DISCARD ALL'), B('', 'k'), E(''), S],
      ['Z', P('k', 'SELECT 1'), ...run('DEALLOCATE k'), B('', 'k'), E(''), S],
    ],
  },
  {
    name: 'CREATE TABLE AS EXECUTE',
    sole: true,
    steps: [
      ['Z', Q(`PREPARE q (bigint) AS ${BY_KEY}`)],
      ['Z', Q('CREATE TEMP TABLE t AS EXECUTE q(150)')],
      ['Z', Q('SELECT * FROM t')],
      ['Z', Q('CREATE TEMP TABLE u AS EXECUTE none(150)')],
      ['Z', Q('CREATE TEMP TABLE v AS EXECUTE q(150) WITH NO DATA; SELECT * FROM v; EXPLAIN ANALYZE EXECUTE none')],
      ['Z', ...run('CREATE TEMP TABLE w AS EXECUTE q(151)'), ...run('TABLE w'), S],
    ],
  },
];

const SHOWN = 'SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name';
const PREPARED = (query: string) => `DO $$ BEGIN EXECUTE '${query}'; END $$`;

const BY_NAME: readonly Conversation[] = [
  {
    name: 'pg_prepared_statements',
    sole: true,
    steps: [
      ['Z', Q(`PREPARE q (bigint) AS ${BY_KEY};`)],
      ['Z', P('p', 'SELECT $1::int'), P('', 'SELECT 5'), S],
      ['Z', P('q', 'SELECT 1'), S],
      ['Z', Q('PREPARE "Odd ""n""ame" AS SELECT 1')],
      ['Z', P('', 'SELECT 6'), P('gone', SHOWN), CS('gone'), S],
      ['Z', P('shown', SHOWN), DS('shown'), B('', 'shown'), E(''), S],
      ['Z', DS('p'), B('', 'p', '7'), DP(''), E(''), B('', '', '1'), S],
      ['Z', B('', ''), E(''), S],
      ['Z', B('', 'q', '150'), DP(''), E(''), CS('q'), CS('none'), S],
      ['Z', Q(SHOWN)],
      ['Z', Q('EXECUTE q(150)')],
      ['Z', Q('EXECUTE p(1); PREPARE q AS SELECT 2; EXECUTE q; DEALLOCATE p')],
      ['Z', Q('PREPARE q AS SELECT 3')],
      ['Z', Q('EXECUTE q; EXECUTE p(1)')],
      ['Z', Q(SHOWN)],
      ['Z', Q('BEGIN; PREPARE r AS SELECT nothing')],
      ['Z', Q('ROLLBACK')],
      ['Z', P('', 'EXECUTE q'), DS(''), B('', ''), DP(''), E(''), S],
      ['Z', ...run('PREPARE r AS SELECT 4'), B('', 'r'), DP(''), E(''), S],
      ['Z', ...run('DEALLOCATE r'), B('', 'r'), E(''), S],
      ['Z', P('q', 'SELECT 1'), S],
      ['Z', ...run('EXECUTE r'), S],
      ['Z', ...run('DEALLOCATE q'), P('q', 'SELECT 1'), B('', 'q'), E(''), S],
      ['Z', Q('DEALLOCATE none')],
      ['Z', Q(SHOWN)],
      ['Z', Q('DEALLOCATE ALL')],
      ['Z', Q('EXECUTE q')],
      ['Z', Q('PREPARE q AS SELECT 1')],
      ['Z', Q('DISCARD ALL')],
      ['Z', Q('EXECUTE q')],
      ['Z', Q('PREPARE q AS SELECT 2')],
      ['Z', Q('EXECUTE q')],
    ],
  },
  {
    name: 'prepared statements executed where their names cannot be seen',
    sole: true,
    steps: [
      ['Z', Q(`PREPARE q (bigint) AS ${BY_KEY}`)],
      ['Z', Q('BEGIN')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q('PREPARE gone AS SELECT 1')],
      ['Z', Q('PREPARE kept AS SELECT 2')],
      ['Z', Q('EXPLAIN (COSTS off) CREATE TEMP TABLE t AS EXECUTE q(150)')],
      ['Z', Q(PREPARED('EXECUTE q(150)'))],
      ['Z', Q(PREPARED('DEALLOCATE gone'))],
      ['Z', Q('EXECUTE gone')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('EXECUTE kept')],
      [
        'Z',
        Q('EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) CREATE TEMP TABLE t AS EXECUTE q(150) WITH NO DATA'),
      ],
      ['Z', Q(PREPARED('PREPARE made AS SELECT 3'))],
      ['Z', Q('EXECUTE made')],
      ['Z', Q(SHOWN)],
    ],
  },
  {
    name: 'where an error is in what was prepared',
    sole: true,
    steps: [
      ['Z', Q('CREATE TABLE mine (a int)')],
      ['Z', Q('SELECT 1; /* ä */ PREPARE a_name AS /* ö */ SELECT a FROM mine')],
      ['Z', Q('EXECUTE a_name')],
      ['Z', Q('DROP TABLE mine')],
      ['Z', Q('EXECUTE a_name')],
      ['Z', Q('/* ä */ SELECT 1; EXECUTE a_name')],
      ['Z', B('', 'a_name'), E(''), S],
      ['Z', B('', 'a_name'), E(''), S],
    ],
  },
];

const UNNAMED: readonly Conversation[] = [
  {
    name: 'the unnamed statement when a Parse is skipped or fails',
    steps: [
      ['Z', P('', 'SELECT 1'), S],
      ['Z', P('x', 'SELECT nothing'), P('', 'SELECT 2'), S],
      ['Z', B('', ''), E(''), S],
      ['Z', P('x', 'SELECT nothing'), P('', 'SELECT 2'), P('', 'SELECT 3'), S],
      ['Z', DS(''), B('', ''), E(''), S],
      ['Z', P('', 'SELECT 4'), P('', 'SELECT nothing'), P('', 'SELECT 5'), S],
      ['Z', B('', ''), E(''), S],
      ['Z', P('', 'SELECT 6'), S],
      ['Z', P('', 'SELECT nothing'), S],
      ['Z', B('', ''), E(''), S],
      ['Z', P('', 'SELECT 7'), P('x', 'SELECT nothing'), P('', 'SELECT 8'), S],
      ['Z', B('', ''), E(''), S],
      ['Z', Q('SELECT 9')],
      ['Z', B('', ''), E(''), S],
    ],
  },
  {
    name: 'Sync in the middle of data when the server has failed',
    sole: true,
    steps: [
      ['G', P('', 'COPY orders FROM STDIN'), B('', ''), E(''), H],
      ['EZ', data('bad\n'), S],
      ['Z', Q('SELECT 1')],
      ['G', Q('COPY orders FROM STDIN')],
      ['EZZ', data('bad\n'), S],
      ['Z', Q('SELECT 2')],
      ['G', P('', 'COPY orders FROM STDIN'), B('', ''), E(''), H],
      ['EZ', data('1\t4\tx\n'), S, data('bad\n'), S],
      ['Z', Q('SELECT 3')],
    ],
  },
];

const PLANS: readonly Conversation[] = [
  {
    name: 'a Parse of what is prepared already, in a failed transaction',
    steps: [
      ['Z', P('a', BY_KEY), P('r', 'ROLLBACK'), S],
      ['Z', Q('BEGIN')],
      ['Z', Q('SELECT 1/0')],
      ['Z', P('b', BY_KEY), S],
      ['Z', B('', 'b', '150'), S],
      ['Z', P('c', 'ROLLBACK'), B('', 'c'), E(''), S],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', P('b', BY_KEY), B('', 'b', '150'), E(''), S],
    ],
  },
  {
    name: 'columns that change: a client that does not ask again is told, as it must be',
    sole: true,
    steps: [
      ['Z', Q('CREATE TABLE mine (a int); INSERT INTO mine VALUES (1)')],
      ['Z', P('s', 'SELECT * FROM mine'), DS('s'), S],
      ['Z', B('', 's'), E(''), S],
      ['Z', Q('ALTER TABLE mine ADD COLUMN b int')],
      ['Z', B('', 's'), E(''), S],
      ['Z', B('', 's'), E(''), S],
      ['Z', CS('s'), P('s', 'SELECT * FROM mine'), DS('s'), B('', 's'), E(''), S],
      ['Z', Q('ALTER TABLE mine DROP COLUMN b')],
      ['Z', Q('BEGIN')],
      ['Z', B('', 's'), E(''), S],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('ALTER TABLE mine ADD COLUMN b int')],
      ['Z', B('', 's'), DP(''), E(''), S],
      ['Z', Q('DROP TABLE mine')],
    ],
  },
  {
    name: 'columns that change in a transaction: a statement prepared after that has the new ones',
    sole: true,
    steps: [
      ['Z', Q('CREATE TABLE mine (a int); INSERT INTO mine VALUES (1)')],
      ['Z', P('s', 'SELECT * FROM mine'), DS('s'), B('', 's'), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', B('', 's'), E(''), S],
      ['Z', Q('ALTER TABLE mine ADD COLUMN b int')],
      ['Z', P('t', 'SELECT * FROM mine'), B('', 't'), DP(''), E(''), S],
      ['Z', Q('SAVEPOINT a')],
      ['Z', B('', 's'), E(''), S],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', CS('s'), P('u', 'SELECT * FROM mine'), B('', 'u'), DP(''), E(''), S],
      ['Z', B('', 't'), E(''), S],
      ['Z', Q('DROP TABLE mine')],
      ['Z', P('v', 'SELECT * FROM mine'), S],
      ['Z', Q('ROLLBACK')],
      ['Z', P('v', 'SELECT * FROM mine'), B('', 'v'), DP(''), E(''), S],
      ['Z', Q('DROP TABLE mine')],
    ],
  },
  {
    name: 'columns that something unseen changes in a transaction: a driver that prepares again goes on',
    sole: true,
    steps: [
      ['Z', Q('CREATE TABLE mine (a int); INSERT INTO mine VALUES (1)')],
      ['Z', P('s', 'SELECT * FROM mine'), DS('s'), B('', 's'), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', B('', 's'), E(''), S],
      ['Z', Q('DO $$ BEGIN ALTER TABLE mine ADD COLUMN b int; END $$')],
      ['Z', Q('SAVEPOINT a')],
      ['Z', B('', 's'), E(''), S],
      ['Z', P('r', 'ROLLBACK TO a'), B('', 'r'), E(''), S],
      ['Z', CS('s'), P('t', 'SELECT * FROM mine'), B('', 't'), DP(''), E(''), S],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('DROP TABLE mine')],
    ],
  },
];

/** A session that is to end by itself: nothing else is said. */
const TIMEOUTS: readonly Conversation[] = [
  { name: 'idle_session_timeout', sole: true, steps: [['Z.', Q(`SET idle_session_timeout = '100ms'`)]] },
  {
    name: 'idle_session_timeout of the login',
    startup: { options: '-c idle_session_timeout=0.1s' },
    steps: [['Z.', Q('SHOW idle_session_timeout')]],
  },
  {
    name: 'idle_session_timeout by set_config, after a transaction that it does not bound',
    steps: [
      ['Z', ...run('BEGIN'), ...run(`SELECT set_config('idle_session_timeout', '0.05' || 's', false)`), S],
      ['Z', Q('SELECT pg_sleep(0.1)')],
      ['Z.', Q('COMMIT')],
    ],
  },
  {
    name: 'idle_session_timeout that is taken back',
    steps: [
      ['Z', Q(`BEGIN; SET idle_session_timeout = '10ms'`)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SET idle_session_timeout = 20; RESET ALL; SHOW idle_session_timeout')],
      ['Z', Q('SELECT pg_sleep(0.1)')],
    ],
  },
  {
    name: 'idle_in_transaction_session_timeout, when nothing has been done yet',
    steps: [
      ['Z', Q(`SET idle_in_transaction_session_timeout = '100ms'`)],
      ['Z.', Q('BEGIN')],
    ],
  },
  {
    name: 'idle_in_transaction_session_timeout',
    steps: [
      ['Z', Q(`SET idle_in_transaction_session_timeout = '100ms'`)],
      ['Z', Q('BEGIN')],
      ['Z.', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
    ],
  },
  {
    name: 'transaction_timeout, when nothing has been done yet',
    steps: [
      ['Z', Q(`SET transaction_timeout = '100ms'`)],
      ['Z.', Q('BEGIN')],
    ],
  },
  {
    name: 'transaction_timeout',
    steps: [
      ['Z', Q(`SET transaction_timeout = '100ms'`)],
      ['.', Q('BEGIN; SELECT pg_sleep(60)')],
    ],
  },
];

let oracle: Oracle;

beforeAll(async () => {
  oracle = await Oracle.start({ poolSize: 2 });
});
afterAll(() => oracle.stop());

const CONVERSATIONS = [...SETTINGS, ...STATEMENTS, ...BY_NAME, ...UNNAMED, ...PLANS, ...TIMEOUTS];

describe('with all data on one shard, the proxy says what PostgreSQL says', () => {
  for (const c of CONVERSATIONS) it(c.name, () => oracle.compare(c, whole, true));
});

describe('a byte at a time, and without lanes', () => {
  beforeAll(() => oracle.sharded.useLanes('off'));
  afterAll(() => oracle.sharded.useLanes('auto'));
  for (const c of CONVERSATIONS) if (!c.large) it(c.name, () => oracle.compare(c, bytewise, true));
});

describe('with data on two shards', () => {
  beforeAll(() => oracle.split());
  for (const c of CONVERSATIONS) if (!c.sole) it(c.name, () => oracle.compare(c, whole, true));
});
