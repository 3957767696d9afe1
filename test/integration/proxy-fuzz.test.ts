import { connect } from 'node:net';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  COPY_DONE,
  encodeBind,
  encodeCancelRequest,
  encodeClose,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodePassword,
  encodeQuery,
  encodeSslRequest,
  encodeStartup,
  FLUSH,
  SYNC,
  TERMINATE,
} from '../../proxy/wire/frontend.js';
import { FRONTEND } from '../../proxy/wire/message-types.js';
import { generator, oneOf, type Random } from '../support/random.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const MUTATIONS = Number(process.env.FORESHARD_FUZZ ?? 10_000);
const AT_ONCE = 24;
/** A peer that has said all it has to say, and ended, must be let go of by then: a deadline, not a delay. */
const DEADLINE_MS = 20_000;

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({
    splitAt: 100,
    poolSize: 6,
    auth: { method: 'trust', users: new Map() },
    serverPasswords: new Map([['app', 'secret']]),
  });
  await s.onShard(0, `INSERT INTO tenants VALUES (1, 'one')`);
  await s.onShard(1, `INSERT INTO tenants VALUES (150, 'far')`);
});
afterAll(() => s.stop());

const STARTUP = encodeStartup({ user: 'app', database: 'shop', application_name: 'fuzz' });
const values = (...texts: string[]) => texts.map((t) => Buffer.from(t));
const bind = (statement: string, ...texts: string[]) =>
  encodeBind({ portal: '', statement, formats: [], values: values(...texts), resultFormats: [] });
const copyData = (text: string) => {
  const body = Buffer.from(text);
  const frame = Buffer.alloc(5 + body.length);
  frame[0] = FRONTEND.CopyData;
  frame.writeInt32BE(4 + body.length, 1);
  body.copy(frame, 5);
  return frame;
};

/** What clients say after their login, message by message. */
const CONVERSATIONS: readonly (readonly Buffer[])[] = [
  [
    encodeQuery('SELECT name FROM tenants WHERE tenant_id = 1'),
    encodeQuery('SELECT 1; SELECT 2; SELECT 1/0; SELECT 3'),
  ],
  [
    encodeParse('', 'SELECT name FROM tenants WHERE tenant_id = $1'),
    bind('', '150'),
    encodeDescribe('portal', ''),
    encodeExecute(''),
    SYNC,
  ],
  [
    encodeParse('s1', 'SELECT name FROM tenants WHERE tenant_id = $1', [20]),
    encodeDescribe('statement', 's1'),
    FLUSH,
    bind('s1', '1'),
    encodeExecute('', 1),
    SYNC,
    bind('s1', '150'),
    encodeExecute(''),
    encodeClose('statement', 's1'),
    SYNC,
  ],
  [
    encodeQuery('BEGIN'),
    encodeQuery(`UPDATE tenants SET name = 'one' WHERE tenant_id = 1`),
    encodeQuery('SAVEPOINT a'),
    encodeQuery('SELECT nothing'),
    encodeQuery('ROLLBACK TO a'),
    encodeQuery('ROLLBACK'),
  ],
  [
    encodeQuery('BEGIN'),
    encodeQuery('COPY settings FROM STDIN'),
    copyData('a\tb\n'),
    COPY_DONE,
    encodeQuery('ROLLBACK'),
  ],
  [encodeQuery('COPY (SELECT generate_series(1, 50)) TO STDOUT'), encodeQuery('SELECT name FROM tenants')],
  [encodeQuery('CREATE TEMP TABLE t (i int)'), encodeQuery('INSERT INTO t VALUES (1)'), encodeQuery('SELECT * FROM t')],
  [encodeQuery('SET work_mem = 1234'), encodeQuery('SHOW work_mem'), encodeQuery('LISTEN a'), encodeQuery('NOTIFY a')],
  [encodeQuery('PREPARE p (int) AS SELECT $1'), encodeQuery('EXECUTE p(7)'), encodeQuery('DEALLOCATE p')],
  [
    ...Array.from({ length: 6 }, (_, i) => [
      encodeParse('', `SELECT ${i}, $1::text`),
      bind('', `v${i}`),
      encodeExecute(''),
    ]).flat(),
    SYNC,
    encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'),
  ],
];

/** What clients say before they are logged in. */
const LOGINS: readonly (readonly Buffer[])[] = [
  [STARTUP, encodeQuery('SELECT 1')],
  [encodeSslRequest(), STARTUP],
  [encodeStartup({ user: 'app', database: 'shop', options: '-c work_mem=1MB -c a\\ b=c', '_pq_.x': 'y' }, 0x0003270f)],
  [encodeCancelRequest(4711, Buffer.from('abcd'))],
  [encodeStartup({ user: 'nobody', database: 'foreshard_admin' }), encodePassword('x')],
];

describe('random changes to what clients say', () => {
  it(`never crash it, hang it, leak a server connection or mix up two clients (${MUTATIONS} times)`, async () => {
    const seed = Number(process.env.FORESHARD_SEED ?? Math.floor(Math.random() * 2 ** 31));
    console.log(`seed ${seed}`);
    const random = generator(seed);
    const watch = new AbortController();
    const watching = Promise.all([watcher(1, 'one', watch.signal), watcher(150, 'far', watch.signal)]);
    let next = 0;
    const worker = async () => {
      while (next < MUTATIONS) {
        next += 1;
        await mutation(random, next % 10 === 0);
      }
    };
    try {
      await Promise.all(Array.from({ length: AT_ONCE }, worker));
    } finally {
      watch.abort();
    }
    const asked = await watching;
    expect(Math.min(...asked)).toBeGreaterThan(0);
    await untilNothingIsLeft();
    expect(await s.onShard(0, 'SELECT tenant_id::int AS id, name FROM tenants ORDER BY 1')).toEqual([
      { id: 1, name: 'one' },
    ]);
    expect(await s.onShard(1, 'SELECT tenant_id::int AS id, name FROM tenants ORDER BY 1')).toEqual([
      { id: 150, name: 'far' },
    ]);
  }, 600_000);

  it('the end, and a reset, at every byte of a conversation', async () => {
    const messages = [STARTUP, ...(CONVERSATIONS[2] as readonly Buffer[]), ...(CONVERSATIONS[4] as readonly Buffer[])];
    const whole = Buffer.concat(messages);
    const boundaries = new Set<number>();
    let at = 0;
    for (const message of messages) {
      at += message.length;
      boundaries.add(at);
    }
    for (let length = 1; length <= whole.length; length++) {
      // Every boundary of messages, and every third byte between.
      if (!boundaries.has(length) && length % 3 !== 0) continue;
      await say(whole.subarray(0, length), length % 2 === 0 ? 'end' : 'reset');
    }
    await untilNothingIsLeft();
  }, 300_000);
});

/** All clients but the watchers have gone, and every server connection is back in its pool. */
async function untilNothingIsLeft(): Promise<void> {
  await waitFor(async () => s.proxy.clients.size === 0, { what: 'all clients to be gone', timeoutMs: DEADLINE_MS });
  await waitFor(async () => [...s.proxy.pools.all].every(({ counts }) => counts.inUse === 0 && counts.waiting === 0), {
    what: 'all server connections to be back',
    timeoutMs: DEADLINE_MS,
  });
}

/** Asks one thing over and over, and must get its own answer. @returns how often */
async function watcher(tenant: number, name: string, signal: AbortSignal): Promise<number> {
  const client: pg.Client = await s.connect();
  let asked = 0;
  while (!signal.aborted) {
    asked += 1;
    const mine = `${tenant}-${asked}`;
    const { rows } = await client.query('SELECT name, $2::text AS mine FROM tenants WHERE tenant_id = $1', [
      tenant,
      mine,
    ]);
    expect(rows).toEqual([{ name, mine }]);
    if (asked % 50 === 0) expect((await client.query('SHOW work_mem')).rows).toEqual([{ work_mem: '4MB' }]);
  }
  await client.end();
  return asked;
}

async function mutation(random: Random, beforeLogin: boolean): Promise<void> {
  const messages = [...oneOf(random, beforeLogin ? LOGINS : CONVERSATIONS)];
  for (let n = 1 + random(3); n > 0; n--) mutate(messages, random);
  const bytes = Buffer.concat(beforeLogin ? messages : [STARTUP, ...messages]);
  await say(
    bytes,
    oneOf(random, ['end', 'end', 'goodbye', 'reset'] as const),
    random(2) === 0 ? 0 : 1 + random(bytes.length),
  );
}

function mutate(messages: Buffer[], random: Random): void {
  const i = random(messages.length);
  const message = Buffer.from(messages[i] as Buffer);
  switch (random(9)) {
    case 0: // some bits
      for (let n = 1 + random(4); n > 0; n--) {
        const at = random(message.length);
        message[at] = (message[at] as number) ^ (1 << random(8));
      }
      messages[i] = message;
      break;
    case 1: // any bytes
      for (let n = 1 + random(8); n > 0; n--) message[random(message.length)] = random(256);
      messages[i] = message;
      break;
    case 2: // a length that lies
      if (message.length >= 5)
        message.writeInt32BE([0, 3, 4, 5, -1, 0x7fffffff, 0x3fffffff, message.length + 7][random(8)] as number, 1);
      messages[i] = message;
      break;
    case 3: // cut short
      messages[i] = message.subarray(0, random(message.length));
      break;
    case 4: // said twice
      messages.splice(i, 0, message);
      break;
    case 5: // not said
      if (messages.length > 1) messages.splice(i, 1);
      break;
    case 6: {
      // in another order
      const j = random(messages.length);
      messages[i] = messages[j] as Buffer;
      messages[j] = message;
      break;
    }
    case 7: // another kind of message
      message[0] = [...'BCDEFHPQSXcdfp?'].map((c) => c.charCodeAt(0))[random(15)] as number;
      messages[i] = message;
      break;
    default: {
      // noise in between
      const noise = Buffer.from(Array.from({ length: 1 + random(40) }, () => random(256)));
      messages.splice(i, 0, noise);
    }
  }
}

/** Sends bytes, in one piece or two, goes away in one way or another, and waits until the other side has let go as well. */
function say(bytes: Buffer, ending: 'end' | 'goodbye' | 'reset', cut = 0): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port: s.proxy.port, host: '127.0.0.1', noDelay: true });
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`the proxy keeps a connection that has ended; it was sent ${bytes.toString('hex')}`));
    }, DEADLINE_MS);
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearTimeout(timer);
      resolve();
    });
    socket.resume();
    const leave = () => {
      if (ending === 'reset') socket.resetAndDestroy();
      else if (ending === 'end') socket.end();
      else socket.end(TERMINATE);
    };
    socket.on('connect', () => {
      if (cut === 0) {
        socket.write(bytes, leave);
        return;
      }
      socket.write(bytes.subarray(0, cut), () => setImmediate(() => socket.write(bytes.subarray(cut), leave)));
    });
  });
}
