import { afterAll, beforeAll, describe, it } from 'vitest';
import { encodeBind, TERMINATE } from '../../proxy/wire/frontend.js';
import { MessageBuilder } from '../../proxy/wire/message-builder.js';
import { FRONTEND } from '../../proxy/wire/message-types.js';
import { B, bytewise, type Conversation, CP, CS, DP, DS, E, H, Oracle, P, Q, S, whole } from '../support/oracle.js';
import { generator, oneOf, type Random } from '../support/random.js';
import { COPIES, randomCopies } from './copy-conversations.js';

const call = (oid: number, ...args: number[]) => {
  const builder = new MessageBuilder(FRONTEND.FunctionCall).uint32(oid).count16(0).count16(args.length);
  for (const arg of args) {
    const text = Buffer.from(String(arg));
    builder.int32(text.length).bytes(text);
  }
  return builder.int16(0).finish();
};

const INT4_PLUS = 177;
const INT4_DIVIDE = 154;
const NAME = 'SELECT name FROM tenants WHERE tenant_id = $1';
const SEVERAL = 'SELECT tenant_id FROM tenants WHERE tenant_id IN ($1, $2)';
const ADD = 'INSERT INTO tenants VALUES ($1, $2)';
const ORDERS = 'SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id';
const TENANTS = 'SELECT name FROM tenants WHERE tenant_id = 150';

function withBody(type: string, body: string): Buffer {
  const frame = Buffer.alloc(5 + body.length);
  frame.write(`${type}\0\0\0\0${body}`, 'latin1');
  frame.writeInt32BE(4 + body.length, 1);
  return frame;
}

const CONVERSATIONS: readonly Conversation[] = [
  ...COPIES,
  { name: 'a simple query', steps: [['Z', Q(TENANTS)]] },
  {
    name: 'an empty query',
    steps: [
      ['Z', Q('')],
      ['Z', Q(' ; ;')],
      ['Z', Q('-- nothing')],
    ],
  },
  { name: 'an empty query, extended', steps: [['Z', P('', ''), DS(''), B('', ''), DP(''), E(''), S]] },
  { name: 'several statements', steps: [['Z', Q(`${TENANTS}; SELECT 1; ; INSERT INTO tenants VALUES (160, 'x')`)]] },
  {
    name: 'several statements with an error',
    steps: [
      ['Z', Q(`INSERT INTO tenants VALUES (160, 'x'); SELECT 1/0; SELECT 2`)],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
  },
  {
    name: 'several statements with a syntax error',
    steps: [
      ['Z', Q(`INSERT INTO tenants VALUES (160, 'x'); SELEC 2`)],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
  },
  { name: 'Queries pipelined in one packet', steps: [['ZZZZ', Q(TENANTS), Q('SELECT nothing'), Q(''), Q('SELECT 3')]] },
  { name: 'Parse, Bind, Describe, Execute, Sync', steps: [['Z', P('', NAME), B('', '', '150'), DP(''), E(''), S]] },
  {
    name: 'a statement described and used',
    steps: [
      ['Z', P('a', NAME), DS('a'), S],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', B('', 'a', '151'), DP(''), E(''), S],
    ],
  },
  {
    name: 'Parse, Describe, Flush; then Bind, Execute, Sync',
    steps: [
      ['1tT', P('', NAME), DS(''), H],
      ['Z', B('', '', '150'), E(''), S],
    ],
  },
  {
    name: 'Parse, Describe, Flush; then Bind, Execute, Sync of a statement for several shards',
    steps: [
      ['1tT', P('', SEVERAL), DS(''), H],
      ['Z', B('', '', '7', '150'), E(''), S],
      ['Z', B('', '', '150', '7'), E(''), S],
    ],
  },
  {
    name: 'a failed Parse with a Flush, and what follows it, for another shard, before the answer',
    steps: [
      ['EZ', P('a', 'SELECT nothing'), H, P('', NAME), B('', '', '150'), E(''), S],
      ['Z', Q(TENANTS)],
      ['EZ', P('a', 'SELECT nothing'), H, P('', SEVERAL), B('', '', '7', '150'), E(''), S],
      ['EZ', P('a', 'SELECT nothing'), H, P('', NAME), B('', '', '150'), E(''), H, S],
      ['Z', P('', NAME), B('', '', '7'), E(''), S],
    ],
  },
  {
    name: 'Flush after each message',
    steps: [
      ['1', P('', NAME), H],
      ['2', B('', '', '150'), H],
      ['T', DP(''), H],
      ['C', E(''), H],
      ['Z', S],
    ],
  },
  {
    name: 'several Syncs',
    steps: [
      ['ZZZ', S, S, S],
      ['ZZZZ', P('', NAME), S, B('', '', '150'), S, S, S],
    ],
  },
  {
    name: 'a pipeline with a Sync after each',
    steps: [
      ['ZZZ', P('a', NAME), B('', 'a', '150'), E(''), S, B('', 'a', '151'), E(''), S, B('', 'a', '9999'), E(''), S],
    ],
  },
  {
    name: 'a pipeline whose middle fails',
    steps: [
      [
        'ZZZ',
        P('', ADD),
        B('', '', '160', 'a'),
        E(''),
        S,
        P('', ADD),
        B('', '', '150', 'dup'),
        E(''),
        B('', '', '161', 'b'),
        E(''),
        S,
        P('', ADD),
        B('', '', '162', 'c'),
        E(''),
        S,
      ],
      ['Z', Q('SELECT count(*) FROM tenants WHERE tenant_id = 160')],
      ['Z', Q('SELECT count(*) FROM tenants WHERE tenant_id = 161')],
      ['Z', Q('SELECT count(*) FROM tenants WHERE tenant_id = 162')],
    ],
  },
  {
    name: 'an implicit transaction: an error undoes what came before',
    steps: [
      [
        'Z',
        P('', `INSERT INTO orders VALUES (150, 1, 'a')`),
        B('', ''),
        E(''),
        P('', `INSERT INTO orders VALUES (150, 1, 'a')`),
        B('', ''),
        E(''),
        S,
      ],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'an implicit transaction: a bad Parse undoes what came before',
    steps: [
      [
        'Z',
        P('', `INSERT INTO orders VALUES (150, 1, 'a')`),
        B('', ''),
        E(''),
        P('', `INSER INTO`),
        B('', ''),
        E(''),
        S,
      ],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'an implicit transaction: a Bind to nothing undoes what came before',
    steps: [
      ['Z', P('', `INSERT INTO orders VALUES (150, 1, 'a')`), B('', ''), E(''), B('', 'none'), E(''), S],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'a deferred error at Sync',
    sole: true,
    steps: [
      ['Z', Q('CREATE TEMP TABLE p (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)')],
      ['ZZ', P('', 'INSERT INTO p VALUES (1), (1)'), B('', ''), E(''), S, S],
      ['Z', Q('SELECT count(*) FROM p')],
    ],
  },
  {
    name: 'a value of the wrong type',
    steps: [
      ['Z', P('', NAME), B('', '', 'x'), E(''), S],
      ['Z', P('', NAME), B('', '', '150'), E(''), S],
    ],
  },
  { name: 'too few values', steps: [['Z', P('', NAME), B('', ''), E(''), S]] },
  {
    name: 'a syntax error, a missing table, a missing column',
    steps: [
      ['Z', Q('SELEC 1')],
      ['Z', P('x', 'SELEC 1'), DS('x'), S],
      ['Z', P('x', 'SELECT nothing FROM tenants WHERE tenant_id = 150'), S],
      ['Z', P('x', NAME), S],
      ['Z', Q('SELECT * FROM no_such_table')],
    ],
  },
  { name: 'several commands in a Parse', steps: [['Z', P('', 'SELECT 1; SELECT 2'), S]] },
  {
    name: 'Execute with a row limit',
    steps: [
      ['Z', Q('BEGIN')],
      [
        'Z',
        P('', `SELECT name, generate_series(1, 5) FROM tenants WHERE tenant_id = 150`),
        B('', ''),
        E('', 2),
        E('', 2),
        E('', 2),
        S,
      ],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'Execute with a row limit, a Sync between',
    steps: [
      ['Z', P('', `SELECT name, generate_series(1, 5) FROM tenants WHERE tenant_id = 150`), B('', ''), E('', 2), S],
      ['Z', E('', 2), S],
    ],
  },
  {
    name: 'named portals in a transaction',
    steps: [
      ['Z', Q('BEGIN')],
      [
        'Z',
        P('s', 'SELECT generate_series($1::int, $1::int + 3) FROM tenants WHERE tenant_id = 150'),
        B('p', 's', '10'),
        B('q', 's', '20'),
        S,
      ],
      ['Z', E('p', 1), E('q', 2), S],
      ['Z', DP('p'), E('p', 0), E('q', 1), S],
      ['Z', CP('q'), S],
      ['Z', E('q', 0), S],
      ['Z', Q('ROLLBACK')],
    ],
  },
  {
    name: 'a portal bound twice',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', P('s', TENANTS), B('p', 's'), B('p', 's'), S],
      ['Z', Q('ROLLBACK')],
    ],
  },
  {
    name: 'a named portal outlives no transaction',
    steps: [
      ['Z', P('s', TENANTS), B('p', 's'), E('p', 1), S],
      ['Z', E('p'), S],
    ],
  },
  {
    name: 'an unknown portal',
    steps: [
      ['Z', E('none'), S],
      ['Z', DP('none'), S],
    ],
  },
  {
    name: 'RETURNING with a row limit',
    steps: [
      ['Z', Q('BEGIN')],
      [
        'Z',
        P('', `INSERT INTO orders SELECT 150, g, 'x' FROM generate_series(1, 3) g RETURNING id`),
        B('', ''),
        E('', 1),
        S,
      ],
      ['Z', Q(ORDERS)],
      ['Z', Q('COMMIT')],
      ['Z', Q(ORDERS)],
    ],
    sole: true,
  },
  {
    name: 'Close of statements, existing or not',
    steps: [
      ['Z', CS('none'), S],
      ['Z', P('a', NAME), CS('a'), S],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', P('a', NAME), S],
      ['Z', CS('a'), CP('x'), S],
      ['Z', DS('a'), S],
    ],
  },
  {
    name: 'Close and Parse again in one batch',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', CS('a'), P('a', ORDERS), B('', 'a'), E(''), S],
      ['Z', B('', 'a'), DP(''), E(''), S],
    ],
  },
  {
    name: 'Close and Bind in one batch',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', CS('a'), B('', 'a', '150'), E(''), S],
      ['Z', B('', 'a', '150'), E(''), S],
    ],
  },
  {
    name: 'Parse, Close and Bind in one batch',
    steps: [
      ['Z', P('a', NAME), CS('a'), B('', 'a', '150'), E(''), S],
      ['Z', DS('a'), S],
    ],
  },
  {
    name: 'Close after an error in the batch is skipped',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', P('', 'SELECT 1/0'), B('', ''), E(''), CS('a'), S],
      ['Z', B('', 'a', '150'), E(''), S],
    ],
  },
  {
    name: 'Close after a failed Parse is skipped',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', P('', 'SELEC'), CS('a'), S],
      ['Z', B('', 'a', '150'), E(''), S],
    ],
  },
  {
    name: 'Close of an unnamed statement',
    steps: [
      ['Z', P('', NAME), S],
      ['Z', CS(''), S],
      ['Z', B('', '', '150'), E(''), S],
    ],
  },
  {
    name: 'a duplicate Parse',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', P('a', ORDERS), DS('a'), S],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', P('b', NAME), P('b', NAME), S],
    ],
  },
  {
    name: 'an unnamed Parse replaces the other',
    steps: [
      ['Z', P('', NAME), P('', ORDERS), B('', ''), DP(''), E(''), S],
      ['Z', P('', TENANTS), S],
      ['Z', B('', ''), E(''), S],
    ],
  },
  {
    name: 'the unnamed statement after a failed one',
    steps: [
      ['Z', P('', NAME), S],
      ['Z', P('', 'SELEC'), S],
      ['Z', B('', '', '150'), E(''), S],
    ],
  },
  {
    name: 'the unnamed statement after a Query',
    steps: [
      ['Z', P('', NAME), S],
      ['Z', Q('SELECT 1')],
      ['Z', B('', '', '150'), E(''), S],
    ],
  },
  {
    name: 'Bind and Describe of an unknown statement',
    steps: [
      ['Z', B('', 'none'), E(''), S],
      ['Z', DS('none'), S],
      ['Z', B('', ''), S],
      ['EZ', B('', 'none'), H, E(''), S],
    ],
  },
  {
    name: 'an error waits for its Sync',
    steps: [
      ['E', P('', 'SELECT 1/0'), B('', ''), E(''), H],
      ['Z', P('', TENANTS), B('', ''), E(''), H, S],
      ['Z', P('', TENANTS), B('', ''), E(''), S],
    ],
  },
  {
    name: 'a Query after an error is skipped up to the Sync',
    steps: [
      ['E', P('', 'SELEC'), H],
      ['Z', Q(TENANTS), S],
      ['Z', Q(TENANTS)],
    ],
  },
  {
    name: 'a Query after Bind to nothing is skipped up to the Sync',
    steps: [
      ['E', B('', 'none'), H],
      ['Z', Q(TENANTS), S],
      ['Z', Q(TENANTS)],
    ],
  },
  {
    name: 'a Query in a batch without a Sync',
    steps: [
      ['Z', P('a', NAME), B('', 'a', '150'), E(''), Q('SELECT 7')],
      ['Z', B('', 'a', '151'), E(''), S],
    ],
  },
  {
    name: 'a Query after a Flush',
    steps: [
      ['C', P('', `INSERT INTO orders VALUES (150, 1, 'a')`), B('', ''), E(''), H],
      ['Z', Q(ORDERS)],
      ['Z', Q(TENANTS)],
      ['Z', S],
    ],
  },
  {
    name: 'BEGIN, COMMIT',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(TENANTS)],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'START TRANSACTION, END, ABORT',
    steps: [
      ['Z', Q('START TRANSACTION ISOLATION LEVEL SERIALIZABLE')],
      ['Z', Q('SHOW transaction_isolation')],
      ['Z', Q('END')],
      ['Z', Q('BEGIN WORK')],
      ['Z', Q('ABORT')],
    ],
  },
  {
    name: 'BEGIN twice, COMMIT without BEGIN',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('BEGIN')],
      ['Z', Q('COMMIT')],
      ['Z', Q('COMMIT')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SAVEPOINT a')],
    ],
  },
  {
    name: 'transactions by the extended protocol',
    steps: [
      ['Z', P('', 'BEGIN'), B('', ''), E(''), S],
      ['Z', P('', TENANTS), B('', ''), E(''), S],
      ['Z', P('', 'COMMIT'), B('', ''), DP(''), E(''), S],
      ['Z', P('', 'COMMIT'), B('', ''), E(''), S],
    ],
  },
  {
    name: 'a whole transaction in one batch',
    steps: [
      [
        'Z',
        P('', 'BEGIN'),
        B('', ''),
        E(''),
        P('', `INSERT INTO orders VALUES (150, 1, 'a')`),
        B('', ''),
        E(''),
        P('', 'COMMIT'),
        B('', ''),
        E(''),
        S,
      ],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'a whole transaction in one Query',
    steps: [
      ['Z', Q(`BEGIN; INSERT INTO orders VALUES (150, 1, 'a'); COMMIT; SELECT 1/0`)],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'a failed transaction',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`INSERT INTO orders VALUES (150, 1, 'a')`)],
      ['Z', Q('SELECT 1/0')],
      ['Z', Q(TENANTS)],
      ['Z', P('', TENANTS), B('', ''), E(''), S],
      ['Z', P('', 'SELECT 1'), S],
      ['Z', Q('COMMIT')],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'a failed transaction: prepared before',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', Q('BEGIN')],
      ['Z', Q('SELECT 1/0')],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', DS('a'), S],
      ['Z', P('r', 'ROLLBACK'), B('', 'r'), E(''), S],
      ['Z', B('', 'a', '150'), E(''), S],
    ],
  },
  {
    name: 'ROLLBACK TO',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q(`INSERT INTO orders VALUES (150, 1, 'a')`)],
      ['Z', Q('SELECT 1/0')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q(`INSERT INTO orders VALUES (150, 2, 'b')`)],
      ['Z', Q('RELEASE a')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'COMMIT AND CHAIN',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`INSERT INTO orders VALUES (150, 1, 'a')`)],
      ['Z', Q('COMMIT AND CHAIN')],
      ['Z', Q('ROLLBACK AND CHAIN')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('COMMIT AND CHAIN')],
      ['Z', Q(ORDERS)],
    ],
  },
  {
    name: 'a Query behind a message that fails, before the Sync',
    steps: [['Z', DP('no_such'), Q('SELECT 1'), Q('SELECT 2'), S]],
  },
  {
    name: 'a notice',
    steps: [
      ['Z', Q(`DO $$ BEGIN RAISE NOTICE 'one' USING HINT = 'h'; RAISE WARNING 'two'; END $$`)],
      [
        'Z',
        P('', `DO $$ BEGIN RAISE NOTICE 'three'; RAISE EXCEPTION 'four' USING ERRCODE = 'AB123', DETAIL = 'd'; END $$`),
        B('', ''),
        E(''),
        S,
      ],
    ],
    sole: true,
  },
  {
    name: 'a notice of a statement that changes nothing',
    steps: [['Z', Q('DROP TABLE IF EXISTS no_such_table')]],
    sole: true,
  },
  {
    name: 'settings told',
    steps: [
      ['Z', Q(`SET application_name = 'other'`)],
      ['Z', Q('SHOW application_name')],
      ['Z', Q(`SET DateStyle = 'German'; SELECT '2020-01-02'::date`)],
      ['Z', Q(`SELECT '2020-01-02'::date`)],
      ['Z', P('', `SET TimeZone = 'Asia/Tokyo'`), B('', ''), E(''), S],
      ['Z', Q('SHOW TimeZone')],
      ['Z', Q('RESET TimeZone')],
      ['Z', Q('SHOW TimeZone')],
    ],
  },
  {
    name: 'settings undone',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET application_name = 'inner'`)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q(`SET application_name = 'more'`)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q('SHOW application_name')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('SHOW application_name')],
      ['Z', Q(`BEGIN; SET LOCAL work_mem = '7MB'; SHOW work_mem; COMMIT`)],
      ['Z', Q('SHOW work_mem')],
    ],
  },
  {
    name: 'settings reset to those of the login',
    steps: [
      ['Z', Q(`SET application_name = 'other'`)],
      ['Z', Q('RESET application_name')],
      ['Z', Q('SHOW application_name')],
      ['Z', Q('RESET ALL')],
      ['Z', Q('SHOW application_name')],
      ['Z', Q('SET application_name = DEFAULT')],
      ['Z', Q('SHOW application_name')],
    ],
  },
  {
    name: 'a setting that does not exist',
    steps: [
      ['Z', Q(`SET no_such_setting = 1`)],
      ['Z', Q('SHOW no_such_setting')],
      ['Z', Q(`SET work_mem = 'x'`)],
      ['Z', Q(`SHOW work_mem`)],
    ],
  },
  {
    name: 'DISCARD ALL',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', Q(`SET work_mem = '7MB'`)],
      ['Z', Q('DISCARD ALL')],
      ['Z', Q('SHOW work_mem')],
      ['Z', Q('SHOW application_name')],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', P('a', NAME), S],
    ],
  },
  {
    name: 'DISCARD ALL in a transaction',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('DISCARD ALL')],
      ['Z', Q('ROLLBACK')],
    ],
  },
  {
    name: 'DEALLOCATE',
    steps: [
      ['Z', P('a', NAME), P('b', NAME), S],
      ['Z', Q('DEALLOCATE a')],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', B('', 'b', '150'), E(''), S],
      ['Z', Q('DEALLOCATE none')],
      ['Z', Q('DEALLOCATE ALL')],
      ['Z', B('', 'b', '150'), E(''), S],
    ],
  },
  {
    name: 'DEALLOCATE in a transaction',
    steps: [
      ['Z', P('a', NAME), P('b', NAME), S],
      ['Z', Q('BEGIN')],
      ['Z', B('', 'a', '150'), E(''), S],
      ['Z', Q('DEALLOCATE a')],
      ['Z', B('', 'b', '150'), E(''), S],
      ['Z', Q('DEALLOCATE b')],
      ['Z', Q('SELECT 1/0')],
      ['Z', Q('DEALLOCATE b')],
      ['Z', Q('ROLLBACK')],
      ['Z', B('', 'b', '150'), E(''), S],
    ],
  },
  {
    name: 'DEALLOCATE by the extended protocol',
    steps: [
      ['Z', P('a', NAME), S],
      ['Z', P('', 'DEALLOCATE a'), B('', ''), E(''), S],
      ['Z', B('', 'a', '150'), E(''), S],
    ],
  },
  {
    name: 'PREPARE and EXECUTE in SQL',
    steps: [
      ['Z', Q('PREPARE x AS SELECT 1 + $1')],
      ['Z', Q('EXECUTE x (2)')],
      ['Z', Q('DEALLOCATE x')],
      ['Z', Q('EXECUTE x (2)')],
    ],
    sole: true,
  },
  {
    name: 'cursors',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`DECLARE c CURSOR FOR SELECT name FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q('FETCH 2 FROM c')],
      ['Z', Q('CLOSE c')],
      ['Z', Q('FETCH 1 FROM c')],
      ['Z', Q('ROLLBACK')],
    ],
  },
  {
    name: 'a temporary table',
    steps: [
      ['Z', Q('CREATE TEMP TABLE x (a int)')],
      ['Z', Q('INSERT INTO x VALUES (1), (2)')],
      ['Z', Q('SELECT * FROM x')],
      ['Z', Q('DROP TABLE x')],
    ],
    sole: true,
  },
  {
    name: 'LISTEN and NOTIFY',
    steps: [
      ['Z', Q('LISTEN here')],
      ['Z', Q('UNLISTEN *')],
    ],
  },
  {
    name: 'FunctionCall',
    steps: [
      ['Z', call(INT4_PLUS, 2, 3)],
      ['Z', call(INT4_DIVIDE, 2, 0)],
      ['Z', call(INT4_PLUS, 4, 5)],
      ['Z', Q('BEGIN')],
      ['Z', call(INT4_DIVIDE, 2, 0)],
      ['Z', call(INT4_PLUS, 2, 3)],
      ['Z', Q('ROLLBACK')],
      ['Z', call(999_999)],
    ],
    sole: true,
  },
  {
    name: 'FunctionCall behind a batch',
    steps: [
      ['Z', P('', TENANTS), B('', ''), E(''), call(INT4_PLUS, 2, 3)],
      ['Z', Q(TENANTS)],
    ],
    sole: true,
  },
  {
    name: 'Terminate in a transaction',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`INSERT INTO orders VALUES (150, 1, 'a')`)],
      ['.', TERMINATE],
    ],
  },
  {
    name: 'Terminate behind a write',
    steps: [['.', Q(`INSERT INTO orders VALUES (150, 1, 'a') RETURNING pg_sleep(0.2)::text`), TERMINATE]],
  },
  {
    name: 'binary values and results',
    steps: [
      [
        'Z',
        P('', NAME, [20]),
        encodeBind({
          portal: '',
          statement: '',
          formats: [1],
          values: [Buffer.from('0000000000000096', 'hex')],
          resultFormats: [1],
        }),
        DP(''),
        E(''),
        S,
      ],
    ],
  },
  { name: 'NULL values', steps: [['Z', P('', 'SELECT $1::text IS NULL, $2::text'), B('', '', null, ''), E(''), S]] },
  {
    name: 'Flush and Sync with a body, alone and within a batch and a transaction',
    steps: [
      ['E', withBody('H', 'SAVEPOINT a')],
      ['Z', Q('SELECT 1'), S],
      ['Z', P('', 'SELECT 1'), withBody('H', 'x'), B('', ''), E(''), S],
      ['ZZ', Q('BEGIN'), P('', 'SELECT 1'), withBody('S', 'x')],
      ['Z', Q('SELECT 2')],
      ['Z', Q('ROLLBACK')],
      ['Z', withBody('S', 'x')],
      ['ZZ', P('', 'SELECT nothing'), withBody('S', 'x'), Q('SELECT 3')],
    ],
  },
  {
    name: 'many columns and types',
    steps: [
      [
        'Z',
        Q(
          `SELECT 1::int2, 2::int8, 1.5::float8, 'x'::varchar(3), true, null, '{1,2}'::int[], '2020-01-01'::timestamptz, '\\x00ff'::bytea, 1.20::numeric(10,2)`,
        ),
      ],
    ],
  },
  {
    name: 'a big result',
    large: true,
    steps: [['Z', Q(`SELECT generate_series(1, 200000), repeat('x', 50) FROM tenants WHERE tenant_id = 150`)]],
  },
  {
    name: 'a big value back and forth',
    large: true,
    steps: [
      [
        'Z',
        P('', 'SELECT name || $2 FROM tenants WHERE tenant_id = $1'),
        B('', '', '150', 'x'.repeat(20_000_000)),
        E(''),
        S,
      ],
      ['Z', Q(`SELECT length('${'y'.repeat(5_000_000)}') FROM tenants WHERE tenant_id = 150`)],
    ],
  },
];

const COPIES_AT_RANDOM = Number(process.env.FORESHARD_COPIES ?? 30);

function* inPieces(bytes: Buffer, largest: number, random: Random): Iterable<Buffer> {
  for (let at = 0; at < bytes.length; ) {
    const size = 1 + random(Math.min(largest, bytes.length));
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

let oracle: Oracle;

beforeAll(async () => {
  oracle = await Oracle.start();
});
afterAll(() => oracle.stop());

describe('with all data on one shard, the proxy says what PostgreSQL says', () => {
  for (const c of CONVERSATIONS) it(c.name, () => oracle.compare(c, whole));

  it(`whatever is pipelined behind COPY, in whatever pieces (${COPIES_AT_RANDOM} times)`, async () => {
    const seed = Number(process.env.FORESHARD_SEED ?? Math.floor(Math.random() * 2 ** 31));
    for (let n = 0; n < COPIES_AT_RANDOM; n++) {
      const random = generator(seed + n);
      const conversation = randomCopies(random);
      const largest = oneOf(random, [3, 30, 3000, Number.POSITIVE_INFINITY]);
      await oracle
        .compare(conversation, (bytes) => inPieces(bytes, largest, random))
        .catch((error: unknown) => {
          throw new Error(`FORESHARD_SEED=${seed + n}: ${conversation.name}`, { cause: error });
        });
    }
  }, 600_000);
});

describe('a byte at a time, and without lanes', () => {
  beforeAll(() => oracle.sharded.useLanes('off'));
  afterAll(() => oracle.sharded.useLanes('auto'));
  for (const c of CONVERSATIONS) if (!c.large) it(c.name, () => oracle.compare(c, bytewise));
});

describe('with data on two shards', () => {
  beforeAll(() => oracle.split());
  for (const c of CONVERSATIONS) if (!c.sole) it(c.name, () => oracle.compare(c, whole));
});
