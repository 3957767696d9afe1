import { COPY_DONE, encodeCopyFail, TERMINATE } from '../../proxy/wire/frontend.js';
import { MessageBuilder } from '../../proxy/wire/message-builder.js';
import { FRONTEND } from '../../proxy/wire/message-types.js';
import { B, type Conversation, CS, DP, E, H, P, Q, S } from '../support/oracle.js';
import { oneOf, type Random } from '../support/random.js';

const d = (data: string | Buffer) =>
  new MessageBuilder(FRONTEND.CopyData).bytes(Buffer.isBuffer(data) ? data : Buffer.from(data)).finish();
const f = encodeCopyFail('never mind');
const HEADER = Buffer.from('5047434f50590aff0d0a000000000000000000', 'hex');
const TENANTS = 'SELECT name FROM tenants WHERE tenant_id = 150';
const ABOVE = 'SELECT count(*) FROM c WHERE id > $1';
const COUNT = 'SELECT count(*) FROM c';
const TABLE = Q('CREATE TEMP TABLE c (id bigint PRIMARY KEY, name text)');
const BAD = d('bad\n');
const C = COPY_DONE;
const COPY = [P('', 'COPY tenants FROM STDIN'), B('', ''), E('')] as const;
/** Into a table of the session's own, which is where the client is, however many shards there are. */
const OWN = [P('', 'COPY c FROM STDIN'), B('', ''), E('')] as const;

/** Pipelined behind COPY FROM STDIN: what has been read by PostgreSQL when it fails is told by what it answers. */
const FAILURES: readonly [name: string, until: string, sent: readonly Buffer[]][] = [
  ['a Sync behind bad data', 'ZZ', [BAD, S, d('160\ta\n'), C, S]],
  ['a Sync before bad data', 'Z', [d('160\ta\n'), S, BAD, C, S]],
  ['Syncs before and behind bad data', 'ZZZZ', [d('160\ta\n'), S, S, BAD, S, d('161\tb\n'), H, S, S, C, S]],
  ['bad data and no Sync', 'Z', [d('160\ta\n'), BAD, C, S]],
  ['bad data, a Sync, and no end of the data', 'Z', [BAD, S]],
  ['a Sync and CopyFail', 'Z', [d('160\ta\n'), S, f, S]],
  ['bad data, a Sync and CopyFail', 'ZZZ', [BAD, S, S, f, S]],
  ['a Sync and a duplicate, which is found at the end', 'Z', [d('160\ta\n'), S, d('160\ta\n'), S, C, S]],
  ['a line in pieces, a Sync within', 'ZZ', [d('16'), S, d('0\ta\n1'), S, d('61'), d('\n'), S, d('162\tc\n'), C, S]],
  ['bad data, a Sync and a batch behind the end', 'ZZ', [BAD, S, C, P('', ABOVE), B('', '', '150'), E(''), S]],
  ['bad data and a batch behind the end', 'Z', [S, BAD, C, P('', ABOVE), B('', '', '150'), E(''), S]],
  ['bad data, a Sync and a Query behind the end', 'ZZ', [BAD, S, C, Q(COUNT)]],
  ['bad data, Syncs and a Query in place of the end', 'ZZZ', [BAD, S, S, Q(COUNT)]],
  ['bad data and a Query in place of the end', 'ZZ', [S, BAD, Q(COUNT), S, Q(COUNT)]],
  ['bad data and a batch in place of the end', 'Z', [BAD, P('', ABOVE), B('', '', '150'), E(''), S]],
  ['bad data, a Sync and a batch in place of the end', 'ZZ', [BAD, S, P('', ABOVE), B('', '', '150'), E(''), S]],
  ['bad data, a Sync and another COPY', 'ZZZ', [BAD, S, C, ...OWN, S, d('160\ta\n'), S, C, S, Q(COUNT)]],
];

/** Behind a Flush or a Sync; after the server has asked for data, or in one go; in a transaction. */
function failure(until: string, sent: readonly Buffer[]): Conversation['steps'] {
  return [
    ['Z', TABLE],
    ...[H, S].flatMap((ending): Conversation['steps'] => [
      ['G', ...OWN, ending],
      [until, ...sent],
      ['ZZ', S, Q(COUNT)],
      ['Z', Q('TRUNCATE c')],
      [until, ...OWN, ending, ...sent],
      ['ZZ', S, Q(COUNT)],
      ['Z', Q('BEGIN; TRUNCATE c')],
      [until, ...OWN, ending, ...sent],
      ['ZZ', S, Q('ROLLBACK')],
      ['Z', Q('TRUNCATE c')],
    ]),
  ];
}

export const COPIES: readonly Conversation[] = [
  {
    name: 'COPY FROM STDIN',
    steps: [
      ['G', Q('COPY tenants FROM STDIN')],
      ['Z', d('160\ta\n161\tb'), d('\n162\t\\N'), d('x\n'), COPY_DONE],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 162')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, csv',
    steps: [
      ['G', Q('COPY tenants FROM STDIN (FORMAT csv, HEADER)')],
      ['Z', d('id,name\n160,"a, b"\n'), COPY_DONE],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY TO STDOUT',
    steps: [
      ['Z', Q('COPY (SELECT * FROM tenants WHERE tenant_id = 150) TO STDOUT')],
      ['Z', Q('COPY (SELECT * FROM tenants WHERE tenant_id = 150) TO STDOUT (FORMAT csv)')],
      ['Z', Q('COPY (SELECT * FROM tenants WHERE tenant_id = 150) TO STDOUT (FORMAT binary)')],
    ],
  },
  {
    name: 'COPY TO STDOUT, extended',
    steps: [['Z', P('', 'COPY (SELECT * FROM tenants WHERE tenant_id = 150) TO STDOUT'), B('', ''), DP(''), E(''), S]],
  },
  {
    name: 'COPY FROM STDIN, binary',
    steps: [
      ['G', Q('COPY tenants FROM STDIN (FORMAT binary)')],
      [
        'Z',
        d(HEADER),
        d(Buffer.from('00020000000800000000000000a00000000178', 'hex')),
        d(Buffer.from('ffff', 'hex')),
        COPY_DONE,
      ],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended',
    steps: [
      ['G', P('', 'COPY tenants FROM STDIN'), B('', ''), DP(''), E(''), H],
      ['Z', d('160\ta\n'), COPY_DONE, S],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended, with a Sync before CopyDone',
    steps: [
      ['G', P('', 'COPY tenants FROM STDIN'), B('', ''), E(''), S],
      ['Z', d('160\ta\n'), S, H, COPY_DONE, S],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, failed by the client',
    steps: [
      ['G', Q('COPY tenants FROM STDIN')],
      ['Z', d('160\ta\n'), f],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended, failed by the client',
    steps: [
      ['G', P('', 'COPY tenants FROM STDIN'), B('', ''), E(''), S],
      ['Z', d('160\ta\n'), f, S],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN: an error while the client goes on sending',
    steps: [
      ['G', Q('COPY tenants FROM STDIN')],
      ['Z', d('160\ta\n'), d('bad\n'), d('161\tb\n'), d('162\tc\n'), COPY_DONE],
      ['Z', d('163\td\n'), COPY_DONE, Q(TENANTS)],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended: an error while the client goes on sending',
    steps: [
      ['G', P('', 'COPY tenants FROM STDIN'), B('', ''), E(''), S],
      ['Z', d('160\ta\n'), d('bad\n'), d('161\tb\n'), COPY_DONE, S],
      ['Z', Q(TENANTS)],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN in a transaction with an error',
    steps: [
      ['Z', Q('BEGIN')],
      ['G', Q('COPY tenants FROM STDIN')],
      ['Z', d('bad\n'), COPY_DONE],
      ['Z', Q(TENANTS)],
      ['Z', Q('ROLLBACK')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN sent in one go',
    steps: [
      ['Z', Q('COPY tenants FROM STDIN'), d('160\ta\n'), COPY_DONE],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended, sent in one go',
    steps: [
      ['Z', P('', 'COPY tenants FROM STDIN'), B('', ''), E(''), S, d('160\ta\n'), COPY_DONE, S],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended, without a Flush',
    steps: [
      ['G', P('', 'COPY tenants FROM STDIN'), B('', ''), E(''), H],
      ['ZZ', d('160\ta\n'), COPY_DONE, S, Q('SELECT name FROM tenants WHERE tenant_id = 160')],
    ],
    sole: true,
  },
  {
    name: 'COPY of a table that is not there, sent in one go',
    steps: [
      ['Z', Q('COPY no_such FROM STDIN'), d('1\n'), COPY_DONE],
      ['Z', Q(TENANTS)],
    ],
  },
  {
    name: 'COPY between other statements of a Query',
    steps: [
      ['G', Q(`SELECT 1; COPY tenants FROM STDIN; SELECT 2`)],
      ['Z', d('160\ta\n'), COPY_DONE],
    ],
    sole: true,
  },
  {
    name: 'two COPYs in one Query',
    steps: [
      ['G', Q(`COPY tenants FROM STDIN; COPY tenants FROM STDIN`)],
      ['G', d('160\ta\n'), COPY_DONE],
      ['Z', d('161\ta\n'), COPY_DONE],
    ],
    sole: true,
  },
  {
    name: 'a Query in the middle of COPY',
    steps: [
      ['G', Q('COPY tenants FROM STDIN')],
      ['Z', d('160\ta\n'), Q('SELECT 1')],
      ['Z', Q(TENANTS)],
    ],
    sole: true,
  },
  {
    name: 'CopyData, CopyDone and CopyFail out of place',
    steps: [
      ['Z', d('x'), COPY_DONE, encodeCopyFail('x'), Q(TENANTS)],
      ['Z', S],
    ],
  },
  {
    name: 'COPY: an error in a large CopyData',
    large: true,
    sole: true,
    steps: [
      ['G', Q('COPY tenants FROM STDIN')],
      ['Z', d(`bad\n${'1000\tx\n'.repeat(300_000)}`), COPY_DONE],
      ['Z', Q(TENANTS)],
      ['G', P('', 'COPY tenants FROM STDIN'), B('', ''), E(''), S],
      ['Z', d(`bad\n${'1000\tx\n'.repeat(300_000)}`), COPY_DONE, S],
      ['Z', Q(TENANTS)],
    ],
  },
  {
    name: 'a big COPY',
    large: true,
    sole: true,
    steps: [
      ['G', Q('COPY tenants FROM STDIN')],
      [
        'Z',
        ...Array.from({ length: 500 }, (_, i) =>
          d(Array.from({ length: 400 }, (_, k) => `${1000 + i * 400 + k}\tname ${k}\n`).join('')),
        ),
        COPY_DONE,
      ],
      ['Z', Q('SELECT count(*), sum(tenant_id) FROM tenants WHERE tenant_id > 999')],
      ['Z', Q('COPY tenants TO STDOUT')],
    ],
  },
  ...FAILURES.map(([name, until, sent]) => ({
    name: `COPY FROM STDIN, extended: ${name}`,
    steps: failure(until, sent),
  })),
  {
    name: 'COPY FROM STDIN, extended, without a pin: Syncs before and behind bad data',
    steps: [
      ['G', ...COPY, S],
      ['ZZZ', d('160\ta\n'), S, BAD, S, S, C, S],
      ['Z', Q(TENANTS)],
      ['ZZZ', ...COPY, S, d('160\ta\n'), S, BAD, S, S, C, S],
      ['Z', Q(TENANTS)],
    ],
    sole: true,
  },
  {
    name: 'COPY FROM STDIN, extended, fails when it has begun',
    steps: [
      ['Z', TABLE],
      ['Z', P('', 'COPY c FROM STDIN (FREEZE)'), B('', ''), E(''), S],
      ['Z', d('160\ta\n'), C, S],
      ['ZZZ', P('', 'COPY c FROM STDIN (FREEZE)'), B('', ''), E(''), S, d('160\ta\n'), S, C, Q(COUNT)],
      ['Z', P('', 'COPY c FROM STDIN (FREEZE)'), B('', ''), E(''), H, d('160\ta\n'), C, S],
      ['Z', Q('COPY c FROM STDIN (FREEZE)')],
      ['ZZ', Q('COPY c FROM STDIN (FREEZE)'), S, d('160\ta\n'), C],
    ],
  },
  {
    name: 'COPY FROM STDIN, extended: the statement is still there when it has failed',
    steps: [
      ['Z', TABLE],
      ['ZZ', P('', 'COPY c FROM STDIN'), P('s', COUNT), B('', ''), E(''), H, BAD, S, C, S],
      ['Z', B('', ''), E(''), H, d('160\ta\n'), C, S],
      ['Z', B('', 's'), E(''), CS('s'), S],
    ],
  },
  {
    name: 'COPY FROM STDIN, extended, when what was prepared before is out of date',
    steps: [
      ['Z', TABLE],
      ['Z', P('a', COUNT), B('', 'a'), E(''), S],
      ['Z', Q('CREATE TEMP TABLE other (id bigint)')],
      ['G', ...OWN, S],
      ['Z', d('160\ta\n'), C, S],
      ['Z', B('', 'a'), E(''), S],
    ],
  },
  {
    name: 'COPY FROM STDIN, extended, with no data, in one go',
    steps: [
      ['Z', TABLE],
      ['Z', ...OWN, C, S],
      ['Z', ...OWN, H, C, S],
      ['Z', ...OWN, S, C, S],
      ['Z', ...OWN, f, S],
      ['Z', ...OWN, C, C, ...OWN, d('161\ta\n'), C, S],
      ['ZZ', ...OWN, d('160\ta\n'), C, Q(COUNT), S],
    ],
  },
  {
    name: 'COPY FROM STDIN: Syncs before and behind bad data',
    steps: [
      ['Z', TABLE],
      ['G', Q('COPY c FROM STDIN')],
      ['ZZZ', d('160\ta\n'), S, BAD, S, S, C],
      ['Z', Q(COUNT)],
      ['ZZZ', Q('COPY c FROM STDIN'), d('160\ta\n'), S, BAD, S, C, Q(COUNT)],
      ['ZZ', Q('COPY c FROM STDIN'), BAD, S, C],
      ['ZZZ', Q('COPY c FROM STDIN'), BAD, S, f, Q(COUNT)],
      ['Z', Q('COPY c FROM STDIN'), S, BAD, C],
      ['Z', Q('COPY c FROM STDIN'), S, f],
      ['Z', Q('BEGIN')],
      ['ZZ', Q('COPY c FROM STDIN'), BAD, S, C],
      ['Z', Q('COMMIT')],
      ['Z', Q(COUNT)],
    ],
  },
  {
    name: 'COPY FROM STDIN: a Query or a batch behind bad data, in place of the end',
    steps: [
      ['Z', TABLE],
      ['ZZ', Q('COPY c FROM STDIN'), BAD, Q(COUNT)],
      ['ZZ', Q('COPY c FROM STDIN'), BAD, P('', COUNT), B('', ''), E(''), S],
      ['ZZZ', Q('COPY c FROM STDIN'), BAD, S, Q(COUNT)],
    ],
  },
  {
    name: 'two COPYs in one Query, with Syncs, and bad data in the second',
    steps: [
      ['Z', TABLE],
      ['ZZ', Q('COPY c FROM STDIN; COPY c FROM STDIN'), d('160\ta\n'), S, S, C, S, BAD, S, C],
      ['Z', Q(COUNT)],
      ['ZZ', Q('COPY c FROM STDIN; SELECT 1/0'), d('160\ta\n'), S, C, S],
      ['Z', Q(COUNT)],
    ],
  },
  ...[P('', COUNT), B('', ''), E(''), DP(''), CS('x'), Q(COUNT)].flatMap((intruder): Conversation[] => {
    const type = String.fromCharCode(intruder[0] as number);
    return [
      {
        name: `message ${type} in the middle of COPY`,
        steps: [
          ['Z', TABLE],
          ['G', Q('COPY c FROM STDIN')],
          ['.', d('160\ta\n'), S, intruder],
        ],
      },
      {
        name: `message ${type} in the middle of COPY, extended`,
        steps: [
          ['Z', TABLE],
          ['G', ...OWN, H],
          ['.', d('160\ta\n'), intruder, S],
        ],
      },
    ];
  }),
];

/** COPYs with anything in and behind them, all sent at once. */
export function randomCopies(random: Random): Conversation {
  const said: [name: string, ...messages: Buffer[]][] = [['table', TABLE]];
  if (random(3) === 0) said.push(['BEGIN', Q('BEGIN')]);
  for (let rounds = 1 + random(3); rounds > 0; rounds--) {
    const sql = oneOf(random, [
      'COPY c FROM STDIN',
      'COPY c FROM STDIN',
      'COPY c FROM STDIN (FREEZE)',
      'COPY c (id) FROM STDIN',
    ]);
    const texts = [sql, `${sql}; ${sql}`, `SELECT 1; ${sql}; SELECT 1/0`];
    if (random(3) === 0) said.push([`Query ${sql}`, Q(oneOf(random, texts))]);
    else
      said.push([sql, P('', sql), B('', ''), E('')], oneOf(random, [[''], ['Flush', H], ['Sync', S], ['Syncs', S, S]]));
    for (let n = random(7); n > 0; n--)
      said.push(
        oneOf(random, [
          ['row', d(`${random(1e5)}\ta\n`)],
          ['id', d(`${random(1e5)}\n`)],
          ['bad', BAD],
          ['digit', d(String(random(10)))],
          ['rows', d(Array.from({ length: 3000 }, () => `${random(1e9)}\tx\n`).join(''))],
          ['Sync', S],
          ['Sync', S],
          ['Flush', H],
        ]),
      );
    said.push(oneOf(random, [['CopyDone', C], ['CopyDone', C], ['CopyDone', C], ['CopyFail', f], ['']]));
    for (let n = random(4); n > 0; n--)
      said.push(
        oneOf(random, [
          ['Sync', S],
          ['Sync', S],
          ['Query', Q('SELECT count(*) > 0 FROM c')],
          ['batch', P('', 'SELECT 7'), B('', ''), DP(''), E('')],
          ['CopyDone', C],
          ['row', d('77\ta\n')],
        ]),
      );
  }
  said.push(['Sync', S], ['Query', Q('SELECT 42')], ['Terminate', TERMINATE]);
  const messages = said.flatMap(([, ...sent]) => sent);
  return { name: said.map(([name]) => name).join(', '), steps: [['.', ...messages]] };
}
