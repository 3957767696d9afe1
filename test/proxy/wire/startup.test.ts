import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type Server } from 'node:net';
import pg from 'pg';
import pino from 'pino';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { authenticateClient } from '../../../proxy/auth/authenticate.js';
import { FailedLogins } from '../../../proxy/auth/failed-logins.js';
import type { AuthMethod } from '../../../proxy/auth/hba.js';
import { plainFacts } from '../../../proxy/auth/peer.js';
import { AuthPolicy } from '../../../proxy/auth/policy.js';
import { RefusalLog } from '../../../proxy/auth/refusal-log.js';
import { UserDirectory } from '../../../proxy/auth/user-directory.js';
import { parseSecret } from '../../../proxy/auth/user-secret.js';
import { encodeReadyForQuery } from '../../../proxy/wire/backend.js';
import { encodeErrorResponse, fieldsOfError } from '../../../proxy/wire/error-response.js';
import {
  encodeCancelRequest,
  encodeGssEncRequest,
  encodeQuery,
  encodeSslRequest,
  encodeStartup,
  PROTOCOL_3_2,
} from '../../../proxy/wire/frontend.js';
import { ConnectionLostError, HandshakeReader } from '../../../proxy/wire/handshake-reader.js';
import { UnansweredError } from '../../../proxy/wire/protocol-error.js';
import { makeVerifier } from '../../../proxy/wire/scram.js';
import { readStartup, type Startup } from '../../../proxy/wire/startup.js';
import { ForeshardError } from '../../../topology/errors.js';
import { RawPeer } from '../../support/raw-peer.js';

const PASSWORD = 'correct horse';
let method: AuthMethod = 'trust';
let timeoutMs = 10_000;
const startups: Startup[] = [];
/** What came behind the handshake, as the next reader of the socket sees it. */
let behind = Buffer.alloc(0);
let server: Server;
let port = 0;

/** A listener that lets clients in and answers nothing but ReadyForQuery. */
beforeAll(async () => {
  const verifier = await makeVerifier(PASSWORD);
  const mockSecret = randomBytes(32);
  const logger = pino({ level: 'silent' });
  const files = { hba: [], hbaFile: null, ident: [], identFile: null, usersFile: null };
  const ann = { source: 'query', secret: parseSecret(verifier), expired: false, canLogin: true } as const;
  const services = {
    users: new UserDirectory({
      configured: new Map(),
      file: () => new Map(),
      sources: [{ find: async (user: string) => (user === 'ann' ? ann : null) }],
      cacheMs: 0,
    }),
    roles: null,
    failures: new FailedLogins({ free: 0, delayMs: 0, maxDelayMs: 0, forgetMs: 0 }),
    refusals: new RefusalLog(logger, () => performance.now()),
    mockSecret,
    now: () => performance.now(),
  };
  server = createServer(async (socket) => {
    const late = (): Error => new ForeshardError('57014', 'canceling authentication due to timeout');
    const reader = new HandshakeReader(socket, timeoutMs, late);
    try {
      const startup = await readStartup(reader);
      startups.push(startup);
      if (startup.kind === 'cancel') socket.end();
      else {
        const policy = await AuthPolicy.load({ method, ...files }, logger);
        await authenticateClient(reader, startup, plainFacts(socket), { ...services, policy });
        if (startup.refused !== null) throw startup.refused;
        await reader.release();
        behind = Buffer.alloc(0);
        socket.on('data', (chunk: Buffer) => {
          behind = Buffer.concat([behind, chunk]);
        });
        socket.on('error', () => socket.destroy());
        socket.write(encodeReadyForQuery('I'));
      }
    } catch (error) {
      if (error instanceof ConnectionLostError || error instanceof UnansweredError) socket.destroy();
      else socket.end(encodeErrorResponse(fieldsOfError(error, 'FATAL')));
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  port = typeof address === 'object' && address !== null ? address.port : 0;
});
afterAll(() => {
  server.close();
});

async function withPeer(run: (peer: RawPeer) => Promise<void>): Promise<void> {
  startups.length = 0;
  const peer = await RawPeer.connect(port);
  try {
    await run(peer);
  } finally {
    peer.destroy();
  }
}

const packet = (body: Buffer): Buffer => {
  const length = Buffer.alloc(4);
  length.writeInt32BE(body.length + 4);
  return Buffer.concat([length, body]);
};
const version = (major: number, minor: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(major * 65536 + minor);
  return bytes;
};

describe('before start-up', () => {
  test.each([
    ['SSL then GSS', encodeSslRequest(), encodeGssEncRequest()],
    ['GSS then SSL', encodeGssEncRequest(), encodeSslRequest()],
  ])('%s: both refused, then a session', (_name, first, second) =>
    withPeer(async (peer) => {
      for (const request of [first, second]) {
        peer.send(request);
        expect((await peer.bytes(1)).toString()).toBe('N');
      }
      await peer.login({ user: 'ann' });
    }),
  );

  test.each([
    ['SSL', encodeSslRequest(), 'received unencrypted data after SSL request'],
    ['GSS', encodeGssEncRequest(), 'received unencrypted data after GSSAPI encryption request'],
  ])('%s: a client that does not wait for the N is refused', (_name, request, message) =>
    withPeer(async (peer) => {
      peer.send(request, encodeStartup({ user: 'ann' }));
      expect((await peer.bytes(1)).toString()).toBe('N');
      expect(await peer.expectError()).toMatchObject({ severity: 'FATAL', sqlstate: '08P01', message });
      await peer.expectClose();
      expect(startups).toEqual([]);
    }),
  );

  test('a second SSLRequest is an unknown protocol', () =>
    withPeer(async (peer) => {
      peer.send(encodeSslRequest());
      await peer.bytes(1);
      peer.send(encodeSslRequest());
      expect(await peer.expectError()).toMatchObject({
        severity: 'FATAL',
        sqlstate: '0A000',
        message: 'unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2',
      });
      await peer.expectClose();
    }));

  test.each([1, 4, 32, 256])('a cancel request with a secret of %i bytes', (bytes) =>
    withPeer(async (peer) => {
      const secret = randomBytes(bytes);
      peer.send(encodeCancelRequest(-7, secret));
      await peer.expectClose();
      expect(startups).toEqual([{ kind: 'cancel', processId: -7, secret }]);
    }),
  );

  test.each([0, 257])('a cancel request with a secret of %i bytes is none', (bytes) =>
    withPeer(async (peer) => {
      peer.send(encodeCancelRequest(7, Buffer.alloc(bytes)));
      await peer.expectClose();
      expect(startups).toEqual([]);
    }),
  );

  test.each([
    ['an HTTP request', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ['a packet that is too long', packet(Buffer.concat([version(3, 0), Buffer.alloc(9997)]))],
    ['a packet that is too short', packet(Buffer.alloc(3))],
    ['an empty packet', packet(Buffer.alloc(0))],
    ['a length below zero', Buffer.from('ffffffff', 'hex')],
    ['a TLS handshake where there is no TLS', Buffer.from('1603010200010001fc0303', 'hex')],
  ])('%s is closed without an answer', (_name, bytes) =>
    withPeer(async (peer) => {
      peer.send(bytes);
      await peer.expectClose();
    }),
  );
});

describe('start-up packets', () => {
  test.each([
    ['protocol 2.0', packet(version(2, 0)), '0A000', 'unsupported frontend protocol 2.0: server supports 3.0 to 3.2'],
    ['protocol 4.1', packet(version(4, 1)), '0A000', 'unsupported frontend protocol 4.1: server supports 3.0 to 3.2'],
    [
      'no terminator',
      packet(Buffer.concat([version(3, 0), Buffer.from('user\0ann\0')])),
      '08P01',
      'invalid startup packet layout: expected terminator as last byte',
    ],
    [
      'bytes behind the terminator',
      packet(Buffer.concat([version(3, 0), Buffer.from('user\0ann\0\0x')])),
      '08P01',
      'invalid startup packet layout: expected terminator as last byte',
    ],
    ['no user', encodeStartup({ database: 'd' }), '28000', 'no PostgreSQL user name specified in startup packet'],
    [
      'nothing but a version',
      packet(version(3, 0)),
      '08P01',
      'invalid startup packet layout: expected terminator as last byte',
    ],
    [
      'a name without a value',
      packet(Buffer.concat([version(3, 0), Buffer.from('user\0ann\0database\0')])),
      '08P01',
      'invalid startup packet layout: expected terminator as last byte',
    ],
    [
      'a kind of replication that there is not',
      encodeStartup({ user: 'ann', replication: 'o' }),
      '22023',
      'invalid value for parameter "replication": "o"',
    ],
  ])('%s is refused', (_name, bytes, sqlstate, message) =>
    withPeer(async (peer) => {
      peer.send(bytes);
      expect(await peer.expectError()).toMatchObject({ severity: 'FATAL', sqlstate, message });
      await peer.expectClose();
    }),
  );

  test.each([
    [
      'an encoding that hides quotes',
      encodeStartup({ user: 'ann', client_encoding: 'SJIS' }),
      '22023',
      'invalid value for parameter "client_encoding": "SJIS"',
    ],
    [
      'the same in options',
      encodeStartup({ user: 'ann', options: '-c client_encoding=gb18030' }),
      '22023',
      'invalid value for parameter "client_encoding": "gb18030"',
    ],
    [
      'a switch that is no setting',
      encodeStartup({ user: 'ann', options: '-x' }),
      '42601',
      'invalid command-line argument for server process: -x',
    ],
    [
      'a setting without a value',
      encodeStartup({ user: 'ann', options: '--work_mem' }),
      '42601',
      '--work_mem requires a value',
    ],
    [
      'a switch without its argument',
      encodeStartup({ user: 'ann', options: '-S' }),
      '42601',
      'invalid command-line argument for server process: -S',
    ],
    [
      'an argument that is no switch',
      encodeStartup({ user: 'ann', options: 'work_mem=1MB -s' }),
      '42601',
      'invalid command-line argument for server process: work_mem=1MB',
    ],
    [
      'statistics of nothing',
      encodeStartup({ user: 'ann', options: '-t po' }),
      '42601',
      'invalid command-line argument for server process: po',
    ],
  ])('%s is refused, but only to those who are let in', (_name, bytes, sqlstate, message) =>
    withPeer(async (peer) => {
      peer.send(bytes);
      await peer.expect('R');
      expect(await peer.expectError()).toMatchObject({ severity: 'FATAL', sqlstate, message });
      await peer.expectClose();
    }),
  );

  test('the longest packet allowed', () =>
    withPeer(async (peer) => {
      const room = 10_000 - encodeStartup({ user: 'ann', application_name: '' }).length + 4;
      await peer.login({ user: 'ann', parameters: { application_name: 'x'.repeat(room) } });
    }));

  test('names are cut as PostgreSQL cuts them', () =>
    withPeer(async (peer) => {
      const long = 'x'.repeat(62);
      await peer.login({ user: `${long}yz`, database: `${long}éz` });
      expect(startups).toMatchObject([{ user: `${long}y`, database: `${long}\ufffd` }]);
    }));

  test.each([
    ['true', 'physical'],
    ['YES', 'physical'],
    ['on', 'physical'],
    ['1', 'physical'],
    ['database', 'logical'],
    ['of', null],
    ['0', null],
  ])('replication=%s', (value, replication) =>
    withPeer(async (peer) => {
      method = 'scram-sha-256'; // trust alone lets no replication client in
      try {
        await peer.login({ user: 'ann', password: PASSWORD, parameters: { replication: value } });
      } finally {
        method = 'trust';
      }
      expect(startups).toMatchObject([{ replication }]);
    }),
  );

  test('one-letter switches are settings', () =>
    withPeer(async (peer) => {
      await peer.login({
        user: 'ann',
        parameters: { options: '-d2 -sFO -S 1MB -fs -f h -tpa -t pl -te -e -C x -n -T -j --' },
      });
      const [startup] = startups;
      expect(startup?.kind === 'session' && Object.fromEntries(startup.parameters)).toEqual({
        log_min_messages: 'debug2',
        log_statement: 'all',
        log_statement_stats: 'true',
        fsync: 'false',
        allow_system_table_mods: 'true',
        work_mem: '1MB',
        enable_seqscan: 'false',
        enable_hashjoin: 'false',
        log_parser_stats: 'true',
        log_planner_stats: 'true',
        log_executor_stats: 'true',
        datestyle: 'euro',
      });
    }));

  test('the database is the user’s when none is given', () =>
    withPeer(async (peer) => {
      await peer.login({ user: 'ann' });
      expect(startups).toMatchObject([{ kind: 'session', user: 'ann', database: 'ann', protocol: 3 << 16 }]);
    }));

  test('settings from options and parameters; parameters win', () =>
    withPeer(async (peer) => {
      await peer.login({
        user: 'ann',
        database: 'shop',
        parameters: {
          options: String.raw`-c work_mem=1MB  -csearch_path=a\ b\\ --statement-timeout=5s -c TimeZone=UTC`,
          TimeZone: 'Europe/Berlin',
          replication: 'false',
          client_encoding: "'utf-8'",
        },
      });
      const [startup] = startups;
      expect(startup).toMatchObject({ database: 'shop' });
      expect(startup?.kind === 'session' && Object.fromEntries(startup.parameters)).toEqual({
        work_mem: '1MB',
        search_path: 'a b\\',
        statement_timeout: '5s',
        TimeZone: 'Europe/Berlin',
        client_encoding: "'utf-8'",
      });
    }));

  test('one byte at a time', () =>
    withPeer(async (peer) => {
      for (const byte of encodeStartup({ user: 'ann' })) peer.socket.write(Buffer.from([byte]));
      await peer.expect('R');
    }));

  test.each([
    ['3.1', (3 << 16) | 1, {}, null],
    ['3.2', PROTOCOL_3_2, {}, null],
    ['3.9999', (3 << 16) | 9999, { '_pq_.é': '' }, { version: PROTOCOL_3_2, options: ['_pq_.é'] }],
    ['3.7', (3 << 16) | 7, {}, { version: PROTOCOL_3_2, options: [] }],
    [
      '3.0 with options',
      3 << 16,
      { '_pq_.a': '1', '_pq_.b': '2' },
      { version: 3 << 16, options: ['_pq_.a', '_pq_.b'] },
    ],
  ] as const)('protocol %s is negotiated as PostgreSQL 18 does', (_name, asked, parameters, answer) =>
    withPeer(async (peer) => {
      peer.send(encodeStartup({ user: 'ann', ...parameters }, asked));
      const message = await peer.receive();
      if (answer === null) expect(message.type).toBe('R');
      else {
        expect(message.type).toBe('v');
        expect(message.body.readInt32BE(0)).toBe(answer.version);
        expect(message.body.readInt32BE(4)).toBe(answer.options.length);
        expect(message.body.subarray(8).toString()).toBe(answer.options.map((option) => `${option}\0`).join(''));
        await peer.expect('R');
      }
    }),
  );

  test('a query sent along with the start-up packet is not lost', () =>
    withPeer(async (peer) => {
      const query = encodeQuery('SELECT 1');
      peer.send(encodeStartup({ user: 'ann' }), query);
      await peer.until('Z');
      peer.send(query);
      await expect.poll(() => behind).toEqual(Buffer.concat([query, query]));
    }));

  test('a client that is silent is told so in the end', async () => {
    timeoutMs = 50;
    try {
      await withPeer(async (peer) => {
        expect(await peer.expectError()).toMatchObject({
          sqlstate: '57014',
          message: 'canceling authentication due to timeout',
        });
      });
    } finally {
      timeoutMs = 10_000;
    }
  });
});

describe('authentication', () => {
  beforeAll(() => {
    method = 'scram-sha-256';
  });
  afterAll(() => {
    method = 'trust';
  });

  test('the right password', () =>
    withPeer(async (peer) => {
      await peer.login({ user: 'ann', password: PASSWORD });
    }));

  test.each([
    ['a wrong password', 'ann'],
    ['an unknown user', 'bob'],
  ])('%s', (_name, user) =>
    withPeer(async (peer) => {
      await expect(peer.login({ user, password: 'wrong' })).rejects.toThrow(
        `FATAL 28P01: password authentication failed for user "${user}"`,
      );
      await peer.expectClose();
    }),
  );

  test('node-postgres gets in with the right password, and only with that', async () => {
    const client = (password: string): pg.Client =>
      new pg.Client({ host: '127.0.0.1', port, user: 'ann', database: 'shop', password });
    const welcome = client(PASSWORD);
    await welcome.connect();
    await welcome.end();
    await expect(client('wrong').connect()).rejects.toMatchObject({
      severity: 'FATAL',
      code: '28P01',
      message: 'password authentication failed for user "ann"',
    });
  });

  test('anything but an answer to the question', () =>
    withPeer(async (peer) => {
      peer.send(encodeStartup({ user: 'ann' }));
      await peer.expect('R');
      peer.send(encodeQuery('SELECT 1'));
      expect(await peer.expectError()).toMatchObject({
        sqlstate: '08P01',
        message: 'expected SASL response, got message type 81',
      });
    }));

  test('a client that hangs up in the middle harms nobody', async () => {
    await withPeer(async (peer) => {
      peer.send(encodeStartup({ user: 'ann' }));
      await peer.expect('R');
    });
    await withPeer(async (peer) => {
      await peer.login({ user: 'ann', password: PASSWORD });
    });
  });
});
