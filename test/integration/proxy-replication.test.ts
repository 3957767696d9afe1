import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { encodeCancelRequest, encodeQuery } from '../../proxy/wire/frontend.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';

const LOGIN = { user: 'app', database: 'shop', password: 'secret' };
let sharded: Sharded;

beforeAll(async () => {
  sharded = await Sharded.start({ splitAt: null });
  for (const shard of [0, 1] as const) await sharded.onShard(shard, 'ALTER ROLE app REPLICATION');
});
afterAll(() => sharded.stop());

const login = (replication: string, more = {}): Promise<RawPeer> =>
  RawPeer.login(sharded.proxy.port, { ...LOGIN, parameters: { replication, ...more } });

/** What a login ends with. */
async function refusal(replication: string): Promise<unknown> {
  const client = new pg.Client({
    ...LOGIN,
    host: '127.0.0.1',
    port: sharded.proxy.port,
    replication,
  } as pg.ClientConfig);
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

test('none of them keeps the proxy from closing', async () => {
  await sharded.onShard(0, 'ALTER ROLE app REPLICATION');
  const peer = await login('true');
  await sharded.proxy.close('wait_for_servers');
  await peer.rest();
});
