import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encodeCancelRequest, encodeQuery } from '../../proxy/wire/frontend.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const LOGIN = { user: 'app', database: 'shop', password: 'secret' };
const ADMIN = { users: ['app'], statsUsers: [] };
let sharded: Sharded;

beforeAll(async () => {
  sharded = await Sharded.start({ splitAt: null, admin: ADMIN });
  for (const shard of [0, 1] as const) await sharded.onShard(shard, 'ALTER ROLE app REPLICATION');
});
afterAll(() => sharded.stop());

const login = (replication: string, more = {}): Promise<RawPeer> =>
  RawPeer.login(sharded.proxy.port, { ...LOGIN, parameters: { replication, ...more } });

/** What a login ends with. */
async function refusal(replication: string, port = sharded.proxy.port, more = {}): Promise<unknown> {
  const config = { ...LOGIN, host: '127.0.0.1', port, replication, ...more };
  const client = new pg.Client(config as pg.ClientConfig);
  try {
    await client.connect();
    return 'let in';
  } catch (error) {
    return error;
  } finally {
    await client.end();
  }
}

/** The columns of the first row of an answer. */
function row(messages: readonly RawMessage[]): string[] {
  const body = messages.find((message) => message.type === 'D')?.body;
  if (body === undefined) throw new Error('no row');
  const values: string[] = [];
  for (let at = 2; at < body.length; ) {
    const length = body.readInt32BE(at);
    values.push(body.subarray(at + 4, at + 4 + Math.max(0, length)).toString());
    at += 4 + Math.max(0, length);
  }
  return values;
}

async function ask(peer: RawPeer, command: string): Promise<RawMessage[]> {
  peer.send(encodeQuery(command));
  return peer.until('Z');
}

test('several shards: refused, and said why', async () => {
  expect(await refusal('true')).toMatchObject({
    severity: 'FATAL',
    code: '0A000',
    message: 'replication connections need a database with one shard',
  });
});

test('one shard: physical and logical, with a server connection of their own', async () => {
  await sharded.catalog.pool.query(`DELETE FROM foreshard.shard WHERE name = 's2'`);
  await sharded.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
  await sharded.catalog.pool.query('NOTIFY foreshard_topology');
  await sharded.reloaded();

  const physical = await login('true', { application_name: 'receiver' });
  const [, , position] = row(await ask(physical, 'IDENTIFY_SYSTEM'));
  expect(
    await sharded.onShard(0, `SELECT backend_type FROM pg_stat_activity WHERE application_name = 'receiver'`),
  ).toEqual([{ backend_type: 'walsender' }]);
  physical.send(encodeQuery(`START_REPLICATION PHYSICAL ${position}`));
  await physical.expect('W');
  await sharded.onShard(0, `INSERT INTO settings VALUES ('physical', '1')`);
  expect((await physical.expect('d')).body.length).toBeGreaterThan(0);

  await sharded.onShard(0, 'CREATE PUBLICATION all_of_it FOR ALL TABLES');
  const logical = await login('database');
  expect(row(await ask(logical, 'SELECT current_database()'))).toEqual(['shop']);
  await ask(logical, 'CREATE_REPLICATION_SLOT through TEMPORARY LOGICAL pgoutput');
  logical.send(
    encodeQuery(`START_REPLICATION SLOT through LOGICAL 0/0 (proto_version '1', publication_names 'all_of_it')`),
  );
  await logical.expect('W');
  await sharded.onShard(0, `INSERT INTO settings VALUES ('logical', 'a value to be seen')`);
  let seen = '';
  while (!seen.includes('a value to be seen')) seen += (await logical.expect('d')).body.toString('latin1');

  for (const peer of [physical, logical]) peer.destroy();
  await expect.poll(async () => (await sharded.onShard(0, `SELECT FROM pg_stat_replication`)).length).toBe(0);
});

test('a cancel request finds its server, and a refusal is the server’s own', async () => {
  const peer = await RawPeer.connect(sharded.proxy.port);
  const key = (await peer.login({ ...LOGIN, parameters: { replication: 'database' } })).find((m) => m.type === 'K');
  peer.send(encodeQuery('SELECT pg_sleep(60)'));
  await expect
    .poll(async () => (await sharded.onShard(0, `SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'`)).length)
    .toBe(1);
  const canceler = await RawPeer.connect(sharded.proxy.port);
  canceler.send(encodeCancelRequest(key?.body.readInt32BE(0) ?? 0, key?.body.subarray(4) ?? Buffer.alloc(4)));
  await canceler.expectClose();
  await peer.expect('T');
  expect(await peer.expectError()).toMatchObject({ sqlstate: '57014' });
  peer.end();

  await sharded.onShard(0, 'ALTER ROLE app NOREPLICATION');
  expect(await refusal('database')).toMatchObject({
    severity: 'FATAL',
    code: '42501',
    message: 'permission denied to start WAL sender',
  });
});

describe('an administrator', () => {
  let admin: pg.Client;
  const show = async (view: string) =>
    (await admin.query<Record<string, unknown>>(`SHOW ${view}`)).rows.filter((row) => row.replication !== 'none');

  beforeAll(async () => {
    await sharded.onShard(0, 'ALTER ROLE app REPLICATION');
    admin = await sharded.connect({ connectionString: sharded.url.replace(/shop$/, 'foreshard_admin') });
  });

  test('sees them among clients and servers, and ends one by its id', async () => {
    const physical = await login('true', { application_name: 'receiver' });
    const logical = await login('database', { application_name: 'reader' });
    const clients = await show('CLIENTS');
    expect(clients).toMatchObject([
      { user: 'app', database: '', replication: 'physical', state: 'active', application_name: 'receiver' },
      { user: 'app', database: 'shop', replication: 'logical', state: 'active', application_name: 'reader' },
    ]);
    const senders = await sharded.onShard<{ pid: number }>(
      0,
      `SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender' ORDER BY application_name DESC`,
    );
    const servers = await show('SERVERS');
    expect(servers.map((row) => row.remote_pid)).toEqual(senders.map(({ pid }) => pid));
    expect(servers.map((row) => row.ptr)).toEqual(clients.map((row) => row.link));
    expect(await show('SOCKETS')).toHaveLength(4);
    const list = async (name: string) =>
      (await admin.query<{ list: string; items: number }>('SHOW LISTS')).rows.find((row) => row.list === name)?.items;
    expect(await list('used_clients')).toBe(3);
    // Those of the tests before have yet to go.
    await waitFor(async () => (await list('login_clients')) === 0, { what: 'nobody to log in' });

    await admin.query(`KILL_CLIENT ${clients[0]?.id}`);
    await physical.rest();
    await waitFor(async () => (await show('CLIENTS')).length === 1, { what: 'the end of one' });
    logical.destroy();
    await waitFor(async () => (await show('SERVERS')).length === 0, { what: 'the end of the other' });
  });

  test('waits for them in a PAUSE as for other sessions, and new ones wait for RESUME', async () => {
    const stream = await login('true');
    let paused = false;
    const pause = admin.query('PAUSE').then(() => {
      paused = true;
    });
    const other = await sharded.connect({ connectionString: sharded.url.replace(/shop$/, 'foreshard_admin') });
    await waitFor(async () => (await other.query('SHOW STATE')).rows[1]?.value === 'yes', { what: 'the PAUSE' });
    let isIn = false;
    const late = login('database').then((peer) => {
      isIn = true;
      return peer;
    });
    await waitFor(
      async () => (await other.query('SHOW LISTS')).rows.find((row) => row.list === 'login_clients')?.items === 1,
      { what: 'somebody to wait' },
    );
    expect(paused).toBe(false);
    stream.destroy();
    await pause;
    expect(isIn).toBe(false);
    await other.query('RESUME');
    (await late).destroy();
  });

  test('cuts them with KILL', async () => {
    const stream = await login('true');
    await admin.query('KILL shop');
    await stream.rest();
    await admin.query('RESUME shop');
  });
});

describe('rules', () => {
  const all = (method: string) => ({
    method: 'reject' as const,
    users: new Map(),
    hba: [`host all all all ${method}`],
  });

  test.each<[string, Parameters<typeof startProxy>[1]['auth'], unknown, unknown]>([
    [
      'for all databases: not for physical ones',
      all('scram-sha-256'),
      {
        code: '28000',
        message: 'no pg_hba.conf entry for replication connection from host "127.0.0.1", user "app", no encryption',
      },
      'let in',
    ],
    [
      'for replication: for physical ones alone',
      { method: 'reject', users: new Map(), hba: ['host replication app all scram-sha-256'] },
      'let in',
      {
        code: '28000',
        message: 'no pg_hba.conf entry for host "127.0.0.1", user "app", database "shop", no encryption',
      },
    ],
    [
      'that reject them',
      {
        method: 'reject',
        users: new Map(),
        hba: ['host replication all all reject', 'host all all all scram-sha-256'],
      },
      {
        code: '28000',
        message: 'pg_hba.conf rejects replication connection for host "127.0.0.1", user "app", no encryption',
      },
      'let in',
    ],
    ['none, and a password for everybody', { method: 'scram-sha-256', users: new Map() }, 'let in', 'let in'],
    [
      'none, and trust for everybody',
      { method: 'trust', users: new Map() },
      { code: '28000', message: expect.stringMatching(/^no pg_hba.conf entry for replication connection from host/) },
      { code: '28000', message: expect.stringMatching(/^no pg_hba.conf entry for host .* database "shop"/) },
    ],
  ])('%s', async (_name, auth, physical, logical) => {
    const proxy = await startProxy(sharded.catalog, {
      splitAt: null,
      ...(auth === undefined ? {} : { auth }),
      serverPasswords: new Map([['app', 'secret']]),
    });
    try {
      for (const [replication, expected] of [
        ['true', physical],
        ['database', logical],
      ] as const) {
        const outcome = await refusal(replication, proxy.port);
        if (typeof expected === 'string') expect(outcome).toBe(expected);
        else expect(outcome).toMatchObject(expected as object);
      }
    } finally {
      await proxy.close();
    }
  });
});

test('none of them keeps the proxy from closing', async () => {
  await sharded.onShard(0, 'ALTER ROLE app REPLICATION');
  const peer = await login('true');
  await sharded.proxy.close('wait_for_servers');
  await peer.rest();
});
