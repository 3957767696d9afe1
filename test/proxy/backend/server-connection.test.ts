import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { findFreePort } from '../../../deploy/embedded/ports.js';
import { sendCancelRequest } from '../../../proxy/backend/cancel-request.js';
import {
  ServerConnection,
  type ServerConnectionOptions,
  type ServerHandler,
} from '../../../proxy/backend/server-connection.js';
import { serverHandshake } from '../../../proxy/backend/server-handshake.js';
import {
  AUTHENTICATION_OK,
  decodeDataRow,
  encodeDataRow,
  encodeParameterStatus,
  encodeReadyForQuery,
} from '../../../proxy/wire/backend.js';
import { decodeErrorFields } from '../../../proxy/wire/error-response.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../../../proxy/wire/frontend.js';
import { HandshakeReader } from '../../../proxy/wire/handshake-reader.js';
import { parseVerifier, ScramClient, type ScramKeys, ScramServer } from '../../../proxy/wire/scram.js';
import type { ForeshardError } from '../../../topology/errors.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let cluster: EmbeddedCluster;
const open: ServerConnection[] = [];
const listeners: Server[] = [];

beforeAll(async () => {
  cluster = await startTestCluster({ settings: { unix_socket_directories: tmpdir() } });
  await withClient(cluster.url(), async (client) => {
    await client.query(`CREATE ROLE scram LOGIN PASSWORD 'secret'`);
    await client.query('CREATE ROLE trusted LOGIN');
    await client.query(`CREATE ROLE clear LOGIN PASSWORD 'secret'`);
    await client.query(`SET password_encryption = 'md5'`);
    await client.query(`CREATE ROLE digest LOGIN PASSWORD 'secret'`);
    const { rows } = await client.query<{ hba_file: string }>('SHOW hba_file');
    const hba = rows[0]?.hba_file ?? '';
    const rules = ['trusted 127.0.0.1/32 trust', 'digest 127.0.0.1/32 md5', 'clear 127.0.0.1/32 password'];
    const first = rules.map((rule) => `host all ${rule}\n`).join('');
    writeFileSync(hba, `${first}local all all scram-sha-256\n${readFileSync(hba, 'utf8')}`);
    await client.query('SELECT pg_reload_conf()');
  });
  // Reloading is asynchronous: the postmaster has done it when it lets the first of them in.
  await waitFor(
    async () => {
      const connection = await ServerConnection.connect(options({ user: 'trusted', auth: null }));
      connection.terminate();
      return true;
    },
    { what: 'pg_hba.conf to be reloaded' },
  );
});

afterEach(() => {
  for (const connection of open.splice(0)) connection.destroy();
  for (const listener of listeners.splice(0)) listener.close();
});

function options(overrides: Partial<ServerConnectionOptions> = {}): ServerConnectionOptions {
  return {
    shard: 's1',
    host: '127.0.0.1',
    port: cluster.port,
    user: 'scram',
    database: 'postgres',
    auth: { password: 'secret' },
    ...overrides,
  };
}

async function connect(overrides: Partial<ServerConnectionOptions> = {}): Promise<ServerConnection> {
  const connection = await ServerConnection.connect(options(overrides));
  open.push(connection);
  return connection;
}

/** A port where `talk` answers. */
async function listen(talk: (socket: Socket) => void): Promise<number> {
  const listener = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    talk(socket);
  });
  listeners.push(listener);
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const address = listener.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

/** Keeps everything that comes. */
class Recorder implements ServerHandler {
  readonly messages: { type: string; message: Buffer }[] = [];
  rows = 0;
  bytes = 0;
  drains = 0;
  closed: ForeshardError | null = null;
  #wake: () => void = () => undefined;

  onMessage(type: number, message: Buffer): void {
    this.messages.push({ type: String.fromCharCode(type), message: Buffer.from(message) });
    this.#wake();
  }
  onPartial(_type: number, chunk: Buffer, remaining: number): void {
    this.bytes += chunk.length;
    if (remaining === 0) this.rows++;
  }
  onRun(slice: Buffer, messages: number): void {
    this.bytes += slice.length;
    this.rows += messages;
  }
  onDrain(): void {
    this.drains++;
  }
  onClosed(error: ForeshardError): void {
    this.closed = error;
    this.#wake();
  }

  /** Until `count` ReadyForQuery have come, or the connection is gone. */
  async ready(count = 1): Promise<void> {
    while (this.closed === null && this.types.filter((type) => type === 'Z').length < count)
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
  }

  get types(): string[] {
    return this.messages.map(({ type }) => type);
  }

  error(): { sqlstate: string; message: string } | undefined {
    const found = this.messages.find(({ type }) => type === 'E');
    return found && decodeErrorFields(found.message);
  }
}

async function run(connection: ServerConnection, sql: string): Promise<Recorder> {
  const recorder = new Recorder();
  connection.setHandler(recorder);
  connection.write(encodeQuery(sql));
  await recorder.ready();
  return recorder;
}

/** The only value of the only row. */
async function scalar(connection: ServerConnection, sql: string): Promise<string | undefined> {
  let value: string | undefined;
  const recorder = new Recorder();
  recorder.onRun = (slice) => {
    value = decodeDataRow(slice)[0]?.toString();
  };
  connection.setHandler(recorder);
  connection.write(encodeQuery(sql));
  await recorder.ready();
  return value;
}

describe('logging in', () => {
  test('with a SCRAM password', async () => {
    const connection = await connect({ parameters: { application_name: 'here' } });
    expect(connection.parameters.get('server_version')).toMatch(/^18/);
    expect(await scalar(connection, 'SELECT pg_backend_pid()')).toBe(String(connection.processId));
    expect(await scalar(connection, 'SHOW application_name')).toBe('here');
  });

  test('with the keys that a client’s own exchange with us reveals', async () => {
    const keys = await withClient(cluster.url(), async (client): Promise<ScramKeys | undefined> => {
      const { rows } = await client.query<{ v: string }>(
        `SELECT rolpassword AS v FROM pg_authid WHERE rolname = 'scram'`,
      );
      const server = new ScramServer('scram', parseVerifier(rows[0]?.v ?? ''), randomBytes(32));
      const driver = new ScramClient({ password: 'secret' });
      return server.final(await driver.final(server.first(driver.first())))?.keys;
    });
    if (keys === undefined) throw new Error('the password was not accepted');
    expect(await scalar(await connect({ auth: { keys } }), 'SELECT current_user')).toBe('scram');
  });

  test.each([
    ['trust', 'trusted', null],
    ['md5', 'digest', { password: 'secret' }],
    ['a password in the clear on loopback', 'clear', { password: 'secret' }],
  ])('with %s', async (_name, user, auth) => {
    expect(await scalar(await connect({ user, auth }), 'SELECT current_user')).toBe(user);
  });

  test('over a Unix socket', async () => {
    expect(await scalar(await connect({ host: tmpdir() }), 'SELECT inet_server_port() IS NULL')).toBe('t');
  });
});

describe('what is wrong is said, with the shard, the address and the remedy', () => {
  const login = (words: string): string => `could not log in to shard "s1" at 127.0.0.1:${cluster.port}: ${words}`;
  const failure = (overrides: Partial<ServerConnectionOptions>): Promise<unknown> =>
    ServerConnection.connect(options(overrides)).then(
      () => expect.unreachable(),
      (error: unknown) => error,
    );

  test('wrong password', async () => {
    expect(await failure({ auth: { password: 'wrong' } })).toMatchObject({
      sqlstate: '28P01',
      message: login('password authentication failed for user "scram"'),
      hint: expect.stringContaining('password'),
    });
  });

  test('wrong keys', async () => {
    const keys = { clientKey: randomBytes(32), serverKey: randomBytes(32) };
    expect(await failure({ auth: { keys } })).toMatchObject({ sqlstate: '28P01' });
  });

  test('no password at hand', async () => {
    expect(await failure({ auth: null })).toMatchObject({
      sqlstate: '28000',
      message: expect.stringContaining('none is configured'),
    });
  });

  test('keys where the server wants more', async () => {
    const keys = { clientKey: randomBytes(32), serverKey: randomBytes(32) };
    for (const user of ['digest', 'clear'])
      expect(await failure({ user, auth: { keys } })).toMatchObject({
        sqlstate: '28000',
        hint: expect.stringContaining('scram-sha-256'),
      });
  });

  test('wrong database', async () => {
    expect(await failure({ database: 'nowhere' })).toMatchObject({
      sqlstate: '3D000',
      message: login('database "nowhere" does not exist'),
      hint: expect.stringContaining('database'),
    });
  });

  test('an internal error of the server, as of one that cannot be reached', async () => {
    await withClient(cluster.url(), (c) => c.query('CREATE DATABASE broken'));
    await withClient(cluster.url('broken'), (c) =>
      c.query(`CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE 'could not write init file' USING ERRCODE = 'XX000'; END $$;
               CREATE EVENT TRIGGER fail ON login EXECUTE FUNCTION fail()`),
    );
    expect(await failure({ database: 'broken' })).toMatchObject({
      sqlstate: '08001',
      message: login('could not write init file'),
    });
  });

  test('nobody listens', async () => {
    const port = await findFreePort();
    expect(await failure({ port })).toMatchObject({
      sqlstate: '08001',
      message: `could not connect to shard "s1" at 127.0.0.1:${port}: connection refused`,
      hint: expect.stringContaining('listens'),
    });
  });

  test('no such Unix socket', async () => {
    expect(await failure({ host: '/nonexistent' })).toMatchObject({
      sqlstate: '08001',
      message: expect.stringContaining('no such Unix socket'),
    });
  });

  test('a host that does not answer', async () => {
    const port = await listen(() => undefined);
    expect(await failure({ port, connectTimeoutMs: 50 })).toMatchObject({
      sqlstate: '08001',
      message: `could not connect to shard "s1" at 127.0.0.1:${port}: timeout expired after 50 ms`,
    });
  });

  test('a host that hangs up', async () => {
    const port = await listen((socket) => socket.end());
    expect(await failure({ port })).toMatchObject({
      sqlstate: '08001',
      message: expect.stringContaining('closed the connection'),
    });
  });

  test('something else than PostgreSQL', async () => {
    const port = await listen((socket) => socket.write('HTTP/1.1 400 Bad Request\r\n\r\n'));
    expect(await failure({ port })).toMatchObject({
      sqlstate: '08P01',
      hint: 'Check that it is PostgreSQL that listens there.',
    });
  });

  test('a server that wants the password in the clear over a network does not get it', async () => {
    let received = Buffer.alloc(0);
    const port = await listen((socket) => {
      socket.write(Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 3]));
      socket.on('data', (chunk: Buffer) => {
        received = Buffer.concat([received, chunk]);
      });
    });
    const { connect: dial } = await import('node:net');
    const socket = dial(port, '127.0.0.1');
    const reader = new HandshakeReader(socket, 10_000, () => new Error('timeout'));
    const far = { user: 'u', database: 'd', auth: { password: 'secret' }, parameters: {}, isPrivate: () => false };
    await expect(serverHandshake(reader, far)).rejects.toMatchObject({
      sqlstate: '28000',
      message: 'the server asks for the password in clear text over a network',
    });
    socket.destroy();
    expect(received.includes('secret')).toBe(false);
  });
});

describe('a session', () => {
  test('passes many rows on, and follows the server’s settings', async () => {
    const connection = await connect();
    const result = await run(connection, "SELECT i, repeat('x', 50) FROM generate_series(1, 50000) AS i");
    expect(result.rows).toBe(50_000);
    expect(result.types).toEqual(['T', 'C', 'Z']);
    await run(connection, `SET TimeZone = 'Asia/Tokyo'`);
    expect(connection.parameters.get('TimeZone')).toBe('Asia/Tokyo');
  });

  test('takes a message larger than all buffers, telling when to stop and to go on', async () => {
    const connection = await connect();
    const recorder = new Recorder();
    connection.setHandler(recorder);
    const value = Buffer.alloc(30_000_000, 'y');
    const bind = { portal: '', statement: '', formats: [1], values: [value], resultFormats: [] };
    const goOn = connection.write([
      encodeParse('', 'SELECT length($1::bytea)'),
      encodeBind(bind),
      encodeExecute(''),
      SYNC,
    ]);
    expect(goOn).toBe(false);
    expect(connection.buffered).toBeGreaterThan(30_000_000);
    await recorder.ready();
    expect(recorder.types).toEqual(['1', '2', 'C', 'Z']);
    expect(recorder.drains).toBe(1);
    expect(connection.buffered).toBe(0);
  });

  test('paused, it lets the server wait', async () => {
    const connection = await connect();
    const recorder = new Recorder();
    connection.setHandler(recorder);
    connection.pause();
    connection.write(encodeQuery(`SELECT repeat('x', 1000) FROM generate_series(1, 40000)`));
    await withClient(cluster.url(), (client) =>
      waitFor(
        async () => {
          const { rows } = await client.query<{ wait_event: string | null }>(
            'SELECT wait_event FROM pg_stat_activity WHERE pid = $1',
            [connection.processId],
          );
          return rows[0]?.wait_event === 'ClientWrite';
        },
        { what: 'the server to wait for us' },
      ),
    );
    expect(recorder.rows).toBe(0);
    connection.resume();
    await recorder.ready();
    expect(recorder.rows).toBe(40_000);
  });

  test('is cancelled', async () => {
    const connection = await connect();
    const recorder = new Recorder();
    connection.setHandler(recorder);
    connection.write(encodeQuery('SELECT pg_sleep(600)'));
    await withClient(cluster.url(), (client) =>
      waitFor(
        async () => {
          const { rows } = await client.query<{ wait_event: string | null }>(
            'SELECT wait_event FROM pg_stat_activity WHERE pid = $1',
            [connection.processId],
          );
          return rows[0]?.wait_event === 'PgSleep';
        },
        { what: 'the statement to start' },
      ),
    );
    await connection.cancel();
    await recorder.ready();
    expect(recorder.error()).toMatchObject({ sqlstate: '57014' });
    expect(connection.isClosed).toBe(false);
  });

  test('a cancel request to nobody fails', async () => {
    const target = { processId: 1, secret: Buffer.alloc(4) };
    const port = await findFreePort();
    await expect(sendCancelRequest({ shard: 's1', host: '127.0.0.1', port }, target)).rejects.toMatchObject({
      sqlstate: '08001',
      message: expect.stringContaining('connection refused'),
    });
  });
});

describe('the end', () => {
  test('of a session that the server ends: its last words come first', async () => {
    const connection = await connect();
    const recorder = new Recorder();
    connection.setHandler(recorder);
    await withClient(cluster.url(), (client) =>
      client.query('SELECT pg_terminate_backend($1)', [connection.processId]),
    );
    const error = await connection.closed;
    expect(recorder.error()).toMatchObject({ sqlstate: '57P01' });
    expect(recorder.closed).toBe(error);
    expect(error).toMatchObject({
      sqlstate: '08006',
      message: `the connection to shard "s1" at 127.0.0.1:${cluster.port} was lost`,
      detail: 'terminating connection due to administrator command',
    });
    expect(connection.isClosed).toBe(true);
    expect(connection.write(SYNC)).toBe(true);
  });

  test('of an idle one', async () => {
    const connection = await connect();
    await withClient(cluster.url(), (client) =>
      client.query('SELECT pg_terminate_backend($1)', [connection.processId]),
    );
    expect((await connection.closed).detail).toBe('terminating connection due to administrator command');
  });

  test('by us, politely or not', async () => {
    const polite = await connect();
    polite.terminate();
    expect((await polite.closed).sqlstate).toBe('08006');
    const rude = await connect();
    const recorder = new Recorder();
    rude.setHandler(recorder);
    rude.destroy();
    await rude.closed;
    expect(recorder.closed).not.toBeNull();
  });

  test.each([
    ['an answer that nobody asked for', encodeDataRow(['1']), 'unexpected message type 68 on an idle connection'],
    ['garbage', Buffer.from('@@@@@@@@'), 'invalid backend message type 64'],
  ])('after %s', async (_name, bytes, words) => {
    let peer: Socket | undefined;
    const port = await listen((socket) => {
      peer = socket;
      socket.write(
        Buffer.concat([AUTHENTICATION_OK, encodeParameterStatus('search_path', 'public'), encodeReadyForQuery('I')]),
      );
    });
    const connection = await connect({ port });
    peer?.write(bytes);
    const error = await connection.closed;
    expect(error.sqlstate).toBe('08P01');
    expect(error.message).toContain(words);
  });
});
