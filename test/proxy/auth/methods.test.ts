import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type Server } from 'node:net';
import pino from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { authenticateClient } from '../../../proxy/auth/authenticate.js';
import { FailedLogins } from '../../../proxy/auth/failed-logins.js';
import type { ConnectionFacts, TlsFacts } from '../../../proxy/auth/peer.js';
import { AuthPolicy } from '../../../proxy/auth/policy.js';
import { RefusalLog } from '../../../proxy/auth/refusal-log.js';
import { UserDirectory } from '../../../proxy/auth/user-directory.js';
import { parseSecret } from '../../../proxy/auth/user-secret.js';
import { decodeErrorFields, encodeErrorResponse, fieldsOfError } from '../../../proxy/wire/error-response.js';
import {
  encodePassword,
  encodeSaslInitialResponse,
  encodeSaslResponse,
  encodeStartup,
} from '../../../proxy/wire/frontend.js';
import { HandshakeReader } from '../../../proxy/wire/handshake-reader.js';
import { type LoginSecret, md5Answer, md5Hash } from '../../../proxy/wire/login-secret.js';
import { makeVerifier, ScramClient } from '../../../proxy/wire/scram.js';
import { readStartup } from '../../../proxy/wire/startup.js';
import { ForeshardError } from '../../../topology/errors.js';
import { RawPeer } from '../../support/raw-peer.js';

/*
 * Every method over every kind of connection: what is known of the connection is given by hand, what is said on it is real.
 */

const END_POINT = randomBytes(32);
const PASSWORD = 'pencil';
let facts: ConnectionFacts;
let rules: string[] = [];
let learned: LoginSecret | null = null;
let server: Server;
let port: number;

const tls = (certificate: Partial<TlsFacts> = {}): ConnectionFacts => ({
  kind: 'tcp',
  address: '127.0.0.1',
  tls: { serverEndPoint: END_POINT, clientCommonName: null, clientDistinguishedName: null, ...certificate },
});
const CLEAR: ConnectionFacts = { kind: 'tcp', address: '127.0.0.1', tls: null };
const UNIX: ConnectionFacts = { kind: 'unix', address: null, tls: null };

beforeAll(async () => {
  const logger = pino({ level: 'silent' });
  const users = new UserDirectory({
    configured: new Map(),
    file: (() => {
      const file = new Map([
        ['plain', PASSWORD],
        ['md5', md5Hash(PASSWORD, 'md5')],
        ['none', ''],
      ]);
      return () => file;
    })(),
    sources: [
      {
        find: async (user) =>
          user === 'scram'
            ? { source: 'query', secret: parseSecret(await verifier), expired: false, canLogin: true }
            : user === 'nologin'
              ? { source: 'query', secret: parseSecret(await verifier), expired: false, canLogin: false }
              : null,
      },
    ],
    cacheMs: 0,
  });
  const mockSecret = randomBytes(32);
  server = createServer(async (socket) => {
    socket.on('error', () => socket.destroy());
    const reader = new HandshakeReader(socket, 10_000, () => new ForeshardError('57014', 'too slow'));
    try {
      const startup = await readStartup(reader);
      if (startup.kind === 'cancel') return void socket.destroy();
      const policy = await AuthPolicy.load(
        { method: 'trust', hba: rules, hbaFile: null, ident: IDENT, identFile: null, usersFile: null },
        logger,
      );
      const who = await authenticateClient(reader, startup, facts, {
        policy,
        users,
        roles: null,
        failures: new FailedLogins({ free: 0, delayMs: 0, maxDelayMs: 0, forgetMs: 0 }),
        refusals: new RefusalLog(logger, () => performance.now()),
        mockSecret,
        now: () => performance.now(),
      });
      learned = who.secret;
      socket.end();
    } catch (error) {
      socket.end(encodeErrorResponse(fieldsOfError(error, 'FATAL')));
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  port = (server.address() as { port: number }).port;
});
afterAll(() => {
  server.close();
});

const IDENT = ['web "Ann Smith" plain', 'web "/^CN=(.*),O=Example$" \\1'];
const verifier = makeVerifier(PASSWORD);

/** What a client is told in the end: `ok`, or the error. */
interface Told {
  /** Kinds of the authentication requests. */
  readonly asked: readonly number[];
  readonly mechanisms: readonly string[];
  readonly outcome: string;
  readonly detail?: string | undefined;
}

interface Client {
  readonly password?: string;
  /** The certificate that the client sees; default: it does not look. */
  readonly endPoint?: Buffer;
  readonly mechanism?: string;
  /** Instead of a client-first-message of its own. */
  readonly first?: string;
}

async function login(user: string, client: Client = {}): Promise<Told> {
  const { password = PASSWORD, endPoint } = client;
  learned = null;
  const peer = await RawPeer.connect(port);
  const asked: number[] = [];
  let mechanisms: string[] = [];
  const scram = new ScramClient({ password }, undefined, endPoint ?? null);
  const mechanism = client.mechanism ?? (endPoint === undefined ? 'SCRAM-SHA-256' : 'SCRAM-SHA-256-PLUS');
  peer.send(encodeStartup({ user, database: 'shop' }));
  try {
    for (;;) {
      const message = await peer.receive();
      if (message.type === 'E') {
        const { severity, sqlstate, message: text, detail } = decodeErrorFields(message.frame);
        return { asked, mechanisms, outcome: `${severity} ${sqlstate}: ${text}`, detail };
      }
      const kind = message.body.readInt32BE(0);
      const data = message.body.subarray(4);
      asked.push(kind);
      if (kind === 0) {
        await peer.expectClose().catch(async () => {
          const fields = await peer.expectError();
          throw new Error(`${fields.severity} ${fields.sqlstate}: ${fields.message}`);
        });
        return { asked, mechanisms, outcome: 'ok' };
      }
      if (kind === 3) peer.send(encodePassword(password));
      else if (kind === 5) peer.send(encodePassword(md5Answer(md5Hash(password, user), data)));
      else if (kind === 10) {
        mechanisms = data
          .toString()
          .split('\0')
          .filter((m) => m !== '');
        const first = client.first === undefined ? scram.first() : Buffer.from(client.first);
        peer.send(encodeSaslInitialResponse(mechanism, first));
      } else if (kind === 11) peer.send(encodeSaslResponse(await scram.final(data)));
      else if (kind === 12) scram.verify(data);
    }
  } catch (error) {
    return { asked, mechanisms, outcome: (error as Error).message };
  } finally {
    peer.destroy();
  }
}

const refused = (user: string): string => `FATAL 28P01: password authentication failed for user "${user}"`;

describe('scram-sha-256', () => {
  it.each([
    ['scram', 'keys'],
    ['plain', 'password'],
  ])('%s comes in, and leaves us its %s', async (user, kind) => {
    [facts, rules] = [CLEAR, ['host all all all scram-sha-256']];
    expect(await login(user)).toEqual({ asked: [10, 11, 12, 0], mechanisms: ['SCRAM-SHA-256'], outcome: 'ok' });
    expect(Object.keys(learned ?? {})).toEqual([kind]);
    expect((await login(user, { password: 'wrong' })).outcome).toBe(refused(user));
    expect(learned).toBeNull();
  });

  it.each(['md5', 'none', 'nobody'])('%s does not, and is asked all the same', async (user) => {
    [facts, rules] = [CLEAR, ['host all all all scram-sha-256']];
    expect(await login(user)).toEqual({ asked: [10, 11], mechanisms: ['SCRAM-SHA-256'], outcome: refused(user) });
  });

  it('a role without LOGIN hears of it only when it has the password', async () => {
    [facts, rules] = [CLEAR, ['host all all all scram-sha-256']];
    expect((await login('nologin', { password: 'wrong' })).outcome).toBe(refused('nologin'));
    expect(await login('nologin')).toMatchObject({
      asked: [10, 11, 12, 0],
      outcome: 'FATAL 28000: role "nologin" is not permitted to log in',
    });
  });
});

describe('channel binding', () => {
  const offered = ['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256'];

  it('is offered first where there is TLS, and holds for the certificate that the client has seen', async () => {
    [facts, rules] = [tls(), ['hostssl all all all scram-sha-256']];
    expect(await login('scram', { endPoint: END_POINT })).toMatchObject({ mechanisms: offered, outcome: 'ok' });
    expect(await login('scram', { endPoint: END_POINT, password: 'x' })).toMatchObject({ outcome: refused('scram') });
    // Somebody in the middle has another certificate.
    expect(await login('scram', { endPoint: randomBytes(32) })).toMatchObject({
      asked: [10, 11],
      outcome: 'FATAL 28000: SCRAM channel binding check failed',
    });
    expect(await login('nobody', { endPoint: END_POINT })).toMatchObject({ outcome: refused('nobody') });
  });

  it('is not forced upon a client that does not know it', async () => {
    [facts, rules] = [tls(), ['hostssl all all all scram-sha-256']];
    expect(await login('scram')).toMatchObject({ mechanisms: offered, outcome: 'ok' });
  });

  it.each<[string, ConnectionFacts, Client, string, string | undefined]>([
    [
      'a client that was told we have none',
      tls(),
      { first: 'y,,n=,r=abc' },
      '28000: SCRAM channel binding negotiation error',
      'The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.',
    ],
    [
      'PLUS without binding',
      tls(),
      { mechanism: 'SCRAM-SHA-256-PLUS', first: 'n,,n=,r=abc' },
      '08P01: malformed SCRAM message',
      'The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.',
    ],
    [
      'PLUS of one who thinks that there is none',
      tls(),
      { mechanism: 'SCRAM-SHA-256-PLUS', first: 'y,,n=,r=abc' },
      '08P01: malformed SCRAM message',
      'The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.',
    ],
    [
      'binding without PLUS',
      tls(),
      { first: 'p=tls-server-end-point,,n=,r=abc' },
      '08P01: malformed SCRAM message',
      'The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.',
    ],
    [
      'another kind of binding',
      tls(),
      { mechanism: 'SCRAM-SHA-256-PLUS', first: 'p=tls-unique,,n=,r=abc' },
      '08P01: unsupported SCRAM channel-binding type "tls-unique"',
      undefined,
    ],
    [
      'an identity besides',
      tls(),
      { mechanism: 'SCRAM-SHA-256-PLUS', first: 'p=tls-server-end-point,a=x,n=,r=abc' },
      '0A000: client uses authorization identity, but it is not supported',
      undefined,
    ],
    [
      'PLUS where there is no TLS',
      CLEAR,
      { mechanism: 'SCRAM-SHA-256-PLUS', first: 'p=tls-server-end-point,,n=,r=abc' },
      '08P01: client selected an invalid SASL authentication mechanism',
      undefined,
    ],
    [
      'an unknown mechanism',
      tls(),
      { mechanism: 'PLAIN', first: 'x' },
      '08P01: client selected an invalid SASL authentication mechanism',
      undefined,
    ],
  ])('refuses %s', async (_name, connection, client, outcome, detail) => {
    [facts, rules] = [connection, ['host all all all scram-sha-256']];
    const told = await login('scram', client);
    expect([told.outcome, told.detail]).toEqual([`FATAL ${outcome}`, detail]);
  });
});

describe('md5', () => {
  it('is for md5 hashes, which are as good as the password to servers that ask for md5', async () => {
    [facts, rules] = [CLEAR, ['host all all all md5']];
    expect(await login('md5')).toMatchObject({ asked: [5, 0], outcome: 'ok' });
    expect(learned).toEqual({ md5: md5Hash(PASSWORD, 'md5') });
    expect(await login('md5', { password: 'wrong' })).toMatchObject({ asked: [5], outcome: refused('md5') });
  });

  it.each(['scram', 'plain'])('runs SCRAM for a user with a %s secret', async (user) => {
    [facts, rules] = [CLEAR, ['host all all all md5']];
    expect(await login(user)).toMatchObject({ asked: [10, 11, 12, 0], outcome: 'ok' });
    expect(await login(user, { password: 'wrong' })).toMatchObject({ asked: [10, 11], outcome: refused(user) });
  });

  it('and for one who does not exist', async () => {
    [facts, rules] = [CLEAR, ['host all all all md5']];
    expect(await login('nobody')).toMatchObject({ asked: [10, 11], outcome: refused('nobody') });
  });
});

describe('password', () => {
  it.each([
    ['TLS', tls()],
    ['a Unix socket', UNIX],
  ])('over %s fits every kind of secret', async (_name, connection) => {
    [facts, rules] = [connection, ['host all all all password', 'local all all password']];
    for (const user of ['scram', 'plain', 'md5']) {
      expect(await login(user)).toMatchObject({ asked: [3, 0], outcome: 'ok' });
      expect(learned).toEqual({ password: PASSWORD });
      expect(await login(user, { password: 'wrong' })).toMatchObject({ asked: [3], outcome: refused(user) });
    }
    for (const user of ['nobody', 'none'])
      expect(await login(user)).toMatchObject({ asked: [3], outcome: refused(user) });
    expect((await login('plain', { password: '' })).outcome).toBe('FATAL 28P01: empty password returned by client');
  });

  it('is not asked for where others could listen', async () => {
    [facts, rules] = [CLEAR, ['host all all all password']];
    expect(await login('plain')).toMatchObject({
      asked: [],
      outcome: 'FATAL 28000: password authentication needs an encrypted connection',
    });
  });
});

describe('certificates', () => {
  const ann = { clientCommonName: 'Ann Smith', clientDistinguishedName: 'CN=Ann Smith,O=Example' };
  const plain = { clientCommonName: 'plain', clientDistinguishedName: 'CN=plain,O=Example' };
  const certRefused = 'FATAL 28000: certificate authentication failed for user "plain"';

  it.each<[string, ConnectionFacts, string, string]>([
    ['cert', tls(plain), 'plain', 'ok'],
    ['cert', tls(ann), 'plain', certRefused],
    ['cert', tls(), 'plain', 'FATAL 28000: connection requires a valid client certificate'],
    ['cert', tls({ ...plain, clientCommonName: null }), 'plain', certRefused],
    ['cert map=web', tls(ann), 'plain', 'ok'],
    ['cert map=other', tls(ann), 'plain', certRefused],
    ['cert map=web clientname=DN', tls(plain), 'plain', 'ok'],
    ['cert map=web clientname=DN', tls(ann), 'plain', certRefused],
    ['cert clientname=DN', tls(plain), 'CN=plain,O=Example', 'ok'],
    ['trust clientcert=verify-ca', tls(ann), 'plain', 'ok'],
    ['trust clientcert=verify-ca', tls(), 'plain', 'FATAL 28000: connection requires a valid client certificate'],
    ['trust clientcert=verify-full', tls(ann), 'plain', 'FATAL 28000: "trust" authentication failed for user "plain"'],
    ['trust clientcert=verify-full', tls(plain), 'plain', 'ok'],
    ['scram-sha-256 clientcert=verify-full', tls(plain), 'plain', 'ok'],
    ['scram-sha-256 clientcert=verify-full', tls(ann), 'plain', refused('plain')],
    ['scram-sha-256 clientcert=verify-ca', tls(ann), 'plain', 'ok'],
  ])('%s, %#', async (method, connection, user, outcome) => {
    [facts, rules] = [connection, [`hostssl all all all ${method}`]];
    expect((await login(user)).outcome).toBe(outcome);
    expect(learned === null).toBe(method.startsWith('scram') ? outcome !== 'ok' : true);
  });
});

describe('malformed messages', () => {
  it.each<[string, string, Buffer, string]>([
    [
      'scram-sha-256',
      'a query',
      Buffer.from('Q\0\0\0\x05\0', 'latin1'),
      '08P01: expected SASL response, got message type 81',
    ],
    [
      'password',
      'a query',
      Buffer.from('Q\0\0\0\x05\0', 'latin1'),
      '08P01: expected password response, got message type 81',
    ],
    ['password', 'two strings', Buffer.from('p\0\0\0\x08a\0b\0', 'latin1'), '08P01: invalid password packet size'],
    ['password', 'no end', Buffer.from('p\0\0\0\x06ab', 'latin1'), '08P01: invalid password packet size'],
    ['scram-sha-256', 'no mechanism', Buffer.from('p\0\0\0\x04', 'latin1'), '08P01: invalid string in message'],
    ['scram-sha-256', 'an oversize answer', Buffer.from('p\0\0\x10\0', 'latin1'), refused('plain').slice(6)],
  ])('%s: %s is answered as PostgreSQL does', async (method, _name, message, outcome) => {
    [facts, rules] = [tls(), [`host all all all ${method}`]];
    const peer = await RawPeer.connect(port);
    try {
      peer.send(encodeStartup({ user: 'plain' }));
      await peer.expect('R');
      peer.send(message);
      const fields = await peer.expectError();
      expect(`${fields.sqlstate}: ${fields.message}`).toBe(outcome);
      expect(fields.severity).toBe('FATAL');
    } finally {
      peer.destroy();
    }
  });
});
