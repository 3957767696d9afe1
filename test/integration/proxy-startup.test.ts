import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeCancelRequest, encodeSslRequest, encodeStartup, PROTOCOL_3_2 } from '../../proxy/wire/frontend.js';
import { type RawLogin, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';

const LOGIN = { user: 'app', database: 'shop', password: 'secret' };
let sharded: Sharded;
let dir: string;

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'fs-'));
  sharded = await Sharded.start({
    splitAt: null,
    listen: { socketDirectory: dir, proxyProtocol: 'optional', trustedProxies: ['127.0.0.1'] },
    limits: { maxClients: 3, maxStartups: 2, startupQueueMs: 200 },
  });
});
afterAll(async () => {
  await sharded.stop();
  rmSync(dir, { recursive: true, force: true });
});

const packet = (version: number, body: Buffer | string): Buffer => {
  const head = Buffer.alloc(8);
  head.writeInt32BE(8 + body.length);
  head.writeUInt32BE(version >>> 0, 4);
  return Buffer.concat([head, Buffer.from(body)]);
};

/** What comes, until the other side closes or asks for a password. */
async function answers(port: number, ...pieces: Buffer[]): Promise<unknown[]> {
  const peer = await RawPeer.connect(port);
  const heard: unknown[] = [];
  try {
    for (const [i, piece] of pieces.entries()) {
      peer.send(piece);
      if (i < pieces.length - 1) heard.push((await peer.bytes(1)).toString());
    }
    for (;;) {
      const message = await peer.receive().catch(() => null);
      if (message === null) return [...heard, (await peer.rest()).toString('latin1'), 'closed'];
      if (message.type !== 'E') heard.push([message.type, message.type === 'R' ? '' : message.body.toString('latin1')]);
      else {
        const { severity, sqlstate, message: text, detail } = decodeErrorFields(message.frame);
        heard.push({ severity, sqlstate, text, detail });
      }
      if (message.type === 'R') return heard;
    }
  } finally {
    peer.destroy();
  }
}

describe('start-up, word for word as PostgreSQL', () => {
  const v3 = 3 << 16;
  test.each<[string, Buffer[]]>([
    ['an ordinary one', [encodeStartup({ user: 'app', database: 'shop' })]],
    ['a no to TLS, then a session', [encodeSslRequest(), encodeStartup({ user: 'app', database: 'shop' })]],
    ['a second SSLRequest', [encodeSslRequest(), encodeSslRequest()]],
    [
      'data behind an SSLRequest',
      [Buffer.concat([encodeSslRequest(), Buffer.from('x')])].flatMap((b) => [b, Buffer.alloc(0)]),
    ],
    ['protocol 3.1', [encodeStartup({ user: 'app' }, v3 + 1)]],
    ['protocol 3.2', [encodeStartup({ user: 'app' }, PROTOCOL_3_2)]],
    ['protocol 3.3', [encodeStartup({ user: 'app' }, v3 + 3)]],
    ['protocol 3.9999', [encodeStartup({ user: 'app', '_pq_.test_protocol_negotiation': '' }, v3 + 9999)]],
    ['options of the protocol', [encodeStartup({ user: 'app', '_pq_.a': '1', '_pq_.b': '', b: '2' })]],
    ['options of the protocol in 3.2', [encodeStartup({ user: 'app', '_pq_.a': '1' }, PROTOCOL_3_2)]],
    ['protocol 2.0', [packet(2 << 16, Buffer.alloc(288))]],
    ['protocol 4.0', [packet(4 << 16, '\0')]],
    ['protocol 65535.65535', [packet(-1, '\0')]],
    ['nothing but a version', [packet(v3, '')]],
    ['no parameters', [packet(v3, '\0')]],
    ['an empty user', [encodeStartup({ user: '', database: 'shop' })]],
    ['no terminator', [packet(v3, 'user\0app\0')]],
    ['a name without a value', [packet(v3, 'user\0app\0database\0')]],
    ['something behind the terminator', [packet(v3, 'user\0app\0\0x')]],
    ['two terminators', [packet(v3, 'user\0app\0\0\0')]],
    ['garbage', [Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')]],
    ['an empty packet', [Buffer.from([0, 0, 0, 4])]],
    ['a length of zero', [Buffer.alloc(4)]],
    ['the longest packet', [encodeStartup({ user: 'app', application_name: 'x'.repeat(9975) })]],
    ['one that is longer', [encodeStartup({ user: 'app', application_name: 'x'.repeat(9976) })]],
    ['a kind of replication that there is not', [encodeStartup({ user: 'app', replication: 'maybe' })]],
    ['a cancel request without a secret', [encodeCancelRequest(1, Buffer.alloc(0))]],
    ['a cancel request with too long a secret', [encodeCancelRequest(1, Buffer.alloc(257))]],
    ['a cancel request for nobody', [encodeCancelRequest(1, Buffer.alloc(32))]],
    ['a repeated user', [packet(v3, 'user\0nobody\0user\0app\0database\0shop\0\0')]],
  ])('%s', async (_name, pieces) => {
    const [direct, proxied] = await Promise.all(
      [sharded.clusters[0].port, sharded.proxy.port].map((port) => answers(port, ...pieces)),
    );
    expect(proxied).toEqual(direct);
  });

  /** The error of a login, or the values that settings have after it. */
  async function after(port: number, parameters: RawLogin['parameters'], show: readonly string[]): Promise<unknown> {
    const client = new pg.Client({ ...LOGIN, port, host: '127.0.0.1', ...(parameters as object) });
    try {
      await client.connect();
      const values: unknown[] = [];
      for (const name of show) values.push((await client.query(`SHOW ${name}`)).rows[0]);
      return values;
    } catch (error) {
      const { severity, code, message } = error as pg.DatabaseError;
      return { severity, code, message };
    } finally {
      await client.end();
    }
  }

  test.each([
    [
      '-c work_mem=1MB --statement-timeout=5s -c search_path=a\\ b\\\\',
      ['work_mem', 'statement_timeout', 'search_path'],
    ],
    ['-S 2MB -e -fs -f h -fx', []],
    ['-S 2048 -e -fs -f h -C x -n -T -j -E -b', ['work_mem', 'datestyle', 'enable_seqscan', 'enable_hashjoin']],
    ['-S2048 --', ['work_mem']],
    ['-x', []],
    ['-f x', []],
    ['-t po', []],
    ['-tpo', []],
    ['-S', []],
    ['--work_mem', []],
    ['-c work_mem', []],
    ['-cwork_mem=1TBx', []],
    ['work_mem=1MB', []],
    ['-c no_such_setting=1', []],
    ['-c no.such=1', ['no.such']],
    ['-F', []],
    ['-B 100', []],
    ['-N 5', []],
    ['-p 1', []],
    ['-s', []],
    ['-d 2', []],
    ['-O', []],
  ])('options %j', async (options, show) => {
    const [direct, proxied] = await Promise.all(
      [sharded.clusters[0].port, sharded.proxy.port].map((port) => after(port, { options }, show)),
    );
    expect(proxied).toEqual(direct);
  });

  test('names are cut at 63 bytes', async () => {
    const name = 'n'.repeat(63);
    await sharded.onShard(0, `CREATE ROLE ${name} LOGIN PASSWORD 'secret'`);
    const peer = await RawPeer.login(sharded.proxy.port, { ...LOGIN, user: `${name}nnn` });
    peer.end();
    await peer.expectClose();
  });
});

describe('ways in', () => {
  test('over a Unix socket: no TLS, a session, a cancel request', async () => {
    const path = join(dir, `.s.PGSQL.${sharded.proxy.port}`);
    const peer = new RawPeer(connect(path));
    peer.send(encodeSslRequest());
    expect((await peer.bytes(1)).toString()).toBe('N');
    await peer.login(LOGIN);
    expect([...sharded.proxy.clients].map((client) => client.facts)).toEqual([
      { kind: 'unix', address: null, tls: null },
    ]);
    peer.end();
    await peer.expectClose();
    const client = await sharded.connect({ host: dir, port: sharded.proxy.port });
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    const sleeping = expect(client.query('SELECT pg_sleep(60)')).rejects.toMatchObject({ code: '57014' });
    await expect
      .poll(async () => (await sharded.onShard(0, `SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'`)).length)
      .toBe(1);
    const secret = Buffer.alloc(4);
    secret.writeInt32BE(secretKey);
    const canceler = new RawPeer(connect(path));
    canceler.send(encodeCancelRequest(processID, secret));
    await canceler.expectClose();
    await sleeping;
    await client.end();
  });

  test('behind a load balancer: the address is the client’s', async () => {
    const peer = await RawPeer.connect(sharded.proxy.port);
    peer.send(Buffer.from('PROXY TCP4 192.0.2.1 198.51.100.7 49152 5432\r\n'), encodeSslRequest());
    expect((await peer.bytes(1)).toString()).toBe('N');
    await peer.login(LOGIN);
    expect([...sharded.proxy.clients].map((client) => client.facts.address)).toEqual(['192.0.2.1']);
    peer.end();
    await peer.expectClose();
  });

  test('a broken header is closed without an answer', async () => {
    const peer = await RawPeer.connect(sharded.proxy.port);
    peer.send(Buffer.from('PROXY TCP4 nonsense\r\n'));
    await peer.expectClose();
  });

  test('too many clients', async () => {
    const inside = await Promise.all([1, 2, 3].map(() => RawPeer.login(sharded.proxy.port, LOGIN)));
    const peer = await RawPeer.connect(sharded.proxy.port);
    peer.send(encodeStartup({ user: 'app', database: 'shop' }));
    expect(await peer.expectError()).toMatchObject({
      severity: 'FATAL',
      sqlstate: '53300',
      message: 'sorry, too many clients already',
    });
    await peer.expectClose();
    for (const client of inside) {
      client.end();
      await client.expectClose();
    }
  });

  test('too many that start up: they wait, then they are refused, and those before get in', async () => {
    const idle = await Promise.all([1, 2].map(() => RawPeer.connect(sharded.proxy.port)));
    const third = await RawPeer.connect(sharded.proxy.port);
    third.send(encodeStartup({ user: 'app', database: 'shop' }));
    expect(await third.expectError()).toMatchObject({ sqlstate: '53300', message: 'sorry, too many clients already' });
    const fourth = await RawPeer.connect(sharded.proxy.port);
    idle[0]?.destroy();
    await fourth.login(LOGIN);
    await idle[1]?.login(LOGIN);
    for (const client of [fourth, idle[1] as RawPeer]) {
      client.end();
      await client.expectClose();
    }
  });
});
