import pg from 'pg';
import pino from 'pino';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ProxyServer } from '../../proxy/proxy-server.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import {
  COPY_DONE,
  encodeBind,
  encodeCancelRequest,
  encodeExecute,
  encodeParse,
  encodeQuery,
  FLUSH,
  SYNC,
  TERMINATE,
} from '../../proxy/wire/frontend.js';
import { MessageBuilder } from '../../proxy/wire/message-builder.js';
import { FRONTEND } from '../../proxy/wire/message-types.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { createHold, dropHold, endTransactions, holdStatus } from '../../topology/catalog/leases.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { alive } from '../cli/process-tree.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
const POOL = 4;
const POOL_OF_ONE = { size: 1, idleTimeoutMs: 60_000, connectTimeoutMs: 5000, queueTimeoutMs: 60_000 };

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: POOL });
});
afterAll(() => s.stop());

beforeEach(async () => {
  await untilQuiet();
  for (const shard of [0, 1] as const) await s.onShard(shard, 'TRUNCATE tenants, orders, items, settings CASCADE');
  await s.onShard(0, `INSERT INTO tenants VALUES (1, 't1')`);
  await s.onShard(1, `INSERT INTO tenants VALUES (150, 't150')`);
});

const ADD = `INSERT INTO orders VALUES (150, 1, 'a')`;
const SLEEP = `SELECT pg_sleep(60), name FROM tenants WHERE tenant_id = 150`;

function login(port = s.proxy.port): Promise<RawPeer> {
  return RawPeer.login(port, { user: 'app', password: 'secret', database: 'shop' });
}

/** A further proxy, on the same shards. */
function proxyOn(
  catalog: Catalog,
  options: { poolSize: number; leaseTtlMs: number; holdTimeoutMs?: number },
): Promise<ProxyServer> {
  return ProxyServer.start({
    catalog,
    name: 'faults',
    listen: { host: '127.0.0.1', port: 0 },
    auth: { method: 'scram-sha-256', users: new Map() },
    serverPasswords: new Map(),
    pool: { ...POOL_OF_ONE, size: options.poolSize },
    limits: { maxClients: 20, loginTimeoutMs: 10_000, holdTimeoutMs: options.holdTimeoutMs ?? 2000 },
    lease: { ttlMs: options.leaseTtlMs },
    telemetry: { flushIntervalMs: 60_000 },
    logger: pino({ level: process.env.FORESHARD_TEST_LOG ?? 'silent' }, pino.destination(2)),
  });
}

async function connectTo(proxy: ProxyServer): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: `postgres://app:secret@127.0.0.1:${proxy.port}/shop` });
  client.on('error', () => undefined); // told to whoever waits for an answer
  await client.connect();
  return client;
}

interface Activity extends pg.QueryResultRow {
  readonly pid: number;
  readonly state: string;
}

async function activity(shard: 0 | 1): Promise<Activity[]> {
  return s.onShard<Activity>(shard, `SELECT pid, state FROM pg_stat_activity WHERE usename = 'app'`);
}

/** No server connection runs anything or has a transaction open. */
async function untilQuiet(): Promise<void> {
  await waitFor(async () => [...(await activity(0)), ...(await activity(1))].every((a) => a.state === 'idle'), {
    what: 'the end of all work on the shards',
  });
}

async function untilRunning(n = 1, shard: 0 | 1 = 1): Promise<number> {
  return waitFor(
    async () => {
      const running = (await activity(shard)).filter((a) => a.state === 'active');
      return running.length === n && running[0]?.pid;
    },
    { what: `${n} running statements` },
  );
}

/** All of the pool can still be used at the same time. */
async function expectWholePool(): Promise<void> {
  const clients = await Promise.all(Array.from({ length: POOL }, () => s.connect()));
  for (const c of clients) {
    await c.query('BEGIN');
    expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 150')).rowCount).toBe(1);
  }
  for (const c of clients) {
    await c.query('COMMIT');
    await c.end();
  }
}

/** Keeps readers of the tenants waiting, on both shards. Gives what ends it. */
async function lockTenants(): Promise<() => Promise<void>> {
  const lockers = s.clusters.map((cluster) => new pg.Client({ connectionString: cluster.url('shop') }));
  for (const locker of lockers) {
    await locker.connect();
    await locker.query('BEGIN');
    await locker.query('LOCK TABLE tenants');
  }
  return async () => {
    for (const locker of lockers) await locker.end();
  };
}

function terminate(pid: number): Promise<unknown> {
  return s.onShard(1, 'SELECT pg_terminate_backend($1)', [pid]);
}

/** Everything up to the end of the connection. */
async function rest(peer: RawPeer): Promise<RawMessage[]> {
  const all: RawMessage[] = [];
  for (;;) {
    try {
      all.push(await peer.receive());
    } catch {
      return all;
    }
  }
}

function errorsIn(messages: readonly RawMessage[]): string[] {
  return messages
    .filter((m) => m.type === 'E')
    .map((m) => decodeErrorFields(m.frame))
    .map((e) => `${e.severity} ${e.sqlstate}`);
}

const bind = (...values: string[]) =>
  encodeBind({ portal: '', statement: '', formats: [], values: values.map((v) => Buffer.from(v)), resultFormats: [] });
const data = (text: string) => new MessageBuilder(FRONTEND.CopyData).bytes(Buffer.from(text)).finish();

describe('a server connection dies', () => {
  it('unused: nobody notices', async () => {
    const c = await s.connect();
    await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    for (const { pid } of await activity(1)) await terminate(pid);
    await waitFor(async () => (await activity(1)).length === 0, { what: 'the end of the connections' });
    expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 150')).rowCount).toBe(1);
    await expectWholePool();
  });

  it('while a statement runs: one FATAL of the server’s own, then the end', async () => {
    const peer = await login();
    peer.send(encodeQuery(SLEEP));
    await terminate(await untilRunning());
    expect(errorsIn(await rest(peer))).toEqual(['FATAL 57P01']);
    await expectWholePool();
  });

  it('while a write runs: one FATAL, and nothing is written', async () => {
    const peer = await login();
    peer.send(encodeQuery(`UPDATE tenants SET name = pg_sleep(60)::text WHERE tenant_id = 150`));
    await terminate(await untilRunning());
    expect(errorsIn(await rest(peer))).toEqual(['FATAL 57P01']);
    await expectWholePool();
  });

  it('in a transaction: the reason, then the end', async () => {
    const peer = await login();
    peer.send(encodeQuery('BEGIN'));
    await peer.until('Z');
    peer.send(encodeQuery(ADD));
    await peer.until('Z');
    const [open] = (await activity(1)).filter((a) => a.state !== 'idle');
    await terminate(open?.pid as number);
    expect(errorsIn(await rest(peer))).toEqual(['FATAL 57P01']);
    expect(await s.onShard(1, 'SELECT * FROM orders')).toEqual([]);
    await expectWholePool();
  });

  it('idle in a transaction for too long: the server’s own reason', async () => {
    const peer = await login();
    peer.send(encodeQuery(`SET idle_in_transaction_session_timeout = '100ms'`));
    await peer.until('Z');
    peer.send(encodeQuery('BEGIN'));
    await peer.until('Z');
    peer.send(encodeQuery(ADD));
    await peer.until('Z');
    expect(errorsIn(await rest(peer))).toEqual(['FATAL 25P03']);
  });

  it('under a statement for several shards: an error, and the session goes on', async () => {
    const peer = await login();
    const unlock = await lockTenants();
    peer.send(encodeQuery('SELECT name FROM tenants'));
    const first = await untilRunning(1, 0);
    await terminate(await untilRunning());
    // The first shard still waits, and its rows come first.
    await s.onShard(0, 'SELECT pg_terminate_backend($1)', [first]);
    await unlock();
    const replies = await peer.until('Z');
    expect(errorsIn(replies)).toEqual(['ERROR 08006']);
    peer.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
    expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    peer.destroy();
    await expectWholePool();
  });

  it('before a statement for several shards, which waits for another: it gets a new one, and all rows', async () => {
    const busy = await Promise.all(Array.from({ length: POOL }, () => s.connect()));
    for (const c of busy) {
      await c.query('BEGIN');
      await c.query(ADD.replace('150, 1', `150, ${busy.indexOf(c)}`));
    }
    const client = await s.connect();
    const answer = client.query('SELECT name FROM tenants');
    const waiting = () => [...s.proxy.pools.all].reduce((n, { counts }) => n + counts.waiting, 0);
    await waitFor(() => waiting() === 1, { what: 'the statement to wait for its second connection' });
    const first = (await activity(0)).map(({ pid }) => pid);
    for (const pid of first) await s.onShard(0, 'SELECT pg_terminate_backend($1)', [pid]);
    await waitFor(() => alive(first).length === 0, { what: 'the end of its first one' });
    // The proxy has looked at its sockets when it has answered this.
    const other = await s.connect();
    await other.query('SELECT name FROM tenants WHERE tenant_id = 1');
    for (const c of busy) await c.query('ROLLBACK');
    expect((await answer).rows).toEqual([{ name: 't1' }, { name: 't150' }]);
    for (const c of [...busy, client, other]) await c.end();
    await expectWholePool();
  });

  it('crash of a whole server, idle, running and in a transaction; it serves again once it is back', async () => {
    const running = await login();
    running.send(encodeQuery(SLEEP));
    const open = await login();
    open.send(encodeQuery('BEGIN'));
    await open.until('Z');
    open.send(encodeQuery(ADD));
    await open.until('Z');
    const idle = await s.connect();
    await untilRunning();
    await s.clusters[1].crash();
    for (const peer of [running, open])
      expect(errorsIn(await rest(peer))).toEqual([expect.stringMatching(/^FATAL (08006|08007|57P0\d)$/)]);
    await expect(idle.query('SELECT name FROM tenants WHERE tenant_id = 150')).rejects.toMatchObject({
      code: expect.stringMatching(/^(08001|08006|57P03)$/),
    });
    expect((await idle.query('SELECT name FROM tenants WHERE tenant_id = 1')).rowCount).toBe(1);
    await s.clusters[1].restart();
    await waitFor(async () => (await idle.query('SELECT name FROM tenants WHERE tenant_id = 150')).rowCount === 1, {
      what: 'the shard to serve again',
    });
    expect(await s.onShard(1, 'SELECT * FROM orders')).toEqual([]);
    await expectWholePool();
  });
});

describe('a client goes away', () => {
  /** What it sends before; after each the line is cut. */
  const SCRIPT: readonly Buffer[][] = [
    [encodeQuery('BEGIN')],
    [encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150')],
    [encodeParse('a', ADD)],
    [bind()],
    [encodeExecute('')],
    [FLUSH],
    [SYNC],
  ];

  it('at any message: nothing stays open', async () => {
    for (const begin of [true, false])
      for (const parts of [1, 2])
        for (let n = 1; n <= SCRIPT.length; n++) {
          const peer = await login();
          const messages = SCRIPT.slice(begin ? 0 : 2, n).flat();
          const bytes = Buffer.concat(messages);
          if (parts === 2) peer.send(bytes.subarray(0, -3));
          else peer.send(bytes);
          if (n % 2 === 0) peer.socket.resetAndDestroy();
          else peer.destroy();
        }
    await untilQuiet();
    await expectWholePool();
  });

  it('with a batch done but not committed by a Sync: it is undone, whoever comes next', async () => {
    const peer = await login();
    peer.send(encodeParse('', ADD), bind(), encodeExecute(''), FLUSH);
    await peer.until('C');
    peer.destroy();
    await untilQuiet();
    await expectWholePool();
    expect(await s.onShard(1, 'SELECT * FROM orders')).toEqual([]);
  });

  it('in a transaction, with the end of a large answer unread: the connection comes back', async () => {
    for (let i = 0; i < POOL; i++) {
      const peer = await login();
      peer.send(encodeQuery('BEGIN'));
      await peer.until('Z');
      peer.socket.pause();
      peer.send(encodeQuery(`SELECT repeat('x', 1000), generate_series(1, 5000) FROM tenants WHERE tenant_id = 150`));
      await waitFor(
        async () => (await activity(1)).some((a) => a.state === 'idle in transaction' || a.state === 'active'),
        {
          what: 'the answer',
        },
      );
      peer.socket.resetAndDestroy();
    }
    await untilQuiet();
    await expectWholePool();
  });

  it('with a slow statement: it is canceled', async () => {
    const peer = await login();
    peer.send(encodeQuery(SLEEP));
    await untilRunning();
    peer.destroy();
    await untilQuiet();
    await expectWholePool();
  });

  it('in the middle of COPY: it is undone', async () => {
    const peer = await login();
    peer.send(encodeQuery('COPY settings FROM STDIN'));
    await peer.expect('G');
    peer.send(data('a\tb\n'));
    peer.destroy();
    await untilQuiet();
    expect(await s.onShard(0, 'SELECT * FROM settings')).toEqual([]);
    await expectWholePool();
  });

  it('during a statement for several shards: all of it is canceled', async () => {
    const peer = await login();
    const unlock = await lockTenants();
    peer.send(encodeQuery('SELECT name FROM tenants'));
    await untilRunning(1, 0);
    await untilRunning(1, 1);
    peer.destroy();
    await untilQuiet();
    await unlock();
    await expectWholePool();
  });

  it('before and during its login: the proxy goes on', async () => {
    for (const bytes of [
      Buffer.alloc(0),
      Buffer.from([0, 0]),
      Buffer.from('GET / HTTP/1.1\r\n\r\n'),
      encodeCancelRequest(1, Buffer.alloc(4)),
    ]) {
      const peer = await RawPeer.connect(s.proxy.port);
      if (bytes.length > 0) peer.send(bytes);
      peer.destroy();
    }
    for (let i = 0; i < 10; i++) {
      const leaving = login().then(
        (peer) => peer.destroy(),
        () => undefined,
      );
      await leaving;
    }
    await expectWholePool();
  });

  it('while a hold keeps it waiting: it waits no longer', async () => {
    const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
    const id = await createHold(s.catalog.pool, {
      migrationId: 1n,
      keyspace,
      lo: [100n],
      hi: null,
      referenceTables: false,
      deadlineMs: 20_000,
    });
    await waitFor(async () => (await holdStatus(s.catalog.pool, id)).waitingFor.length === 0, { what: 'the hold' });
    const peer = await login();
    peer.send(encodeQuery(ADD));
    const batch = await login();
    batch.send(encodeParse('', ADD), bind(), encodeExecute(''), SYNC);
    peer.destroy();
    batch.destroy();
    await dropHold(s.catalog.pool, id);
    await untilQuiet();
    await expectWholePool();
  });
});

describe('a read on several shards', () => {
  it('is canceled by a hold that ends transactions, and its client goes on', async () => {
    const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
    const c = await s.connect();
    await withClient(s.clusters[1].url('shop'), async (blocker) => {
      await blocker.query('BEGIN; LOCK TABLE tenants');
      const failed = expect(c.query('SELECT name FROM tenants')).rejects.toMatchObject({ code: '40001' });
      await waitFor(async () => (await s.onShard(1, 'SELECT FROM pg_locks WHERE NOT granted')).length > 0, {
        what: 'the read to wait',
      });
      const id = await createHold(s.catalog.pool, {
        migrationId: 1n,
        keyspace,
        lo: [100n],
        hi: null,
        referenceTables: false,
        deadlineMs: 20_000,
      });
      await endTransactions(s.catalog.pool, id);
      await failed;
      await waitFor(async () => (await holdStatus(s.catalog.pool, id)).waitingFor.length === 0, { what: 'the hold' });
      await dropHold(s.catalog.pool, id);
      await blocker.query('ROLLBACK');
    });
    expect((await c.query('SELECT name FROM tenants')).rowCount).toBe(2);
    await c.end();
  });
});

describe('a shared server connection', () => {
  it('keeps each client’s unnamed statement, whatever others do on it', async () => {
    const [a, b] = [await login(), await login()];
    a.send(encodeParse('', 'SELECT name FROM tenants WHERE tenant_id = 1'), SYNC);
    await a.until('Z');
    b.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 1'));
    await b.until('Z');
    a.send(bind(), encodeExecute(''), SYNC);
    expect((await a.until('Z')).map((m) => m.type).join('')).toBe('2DCZ');
    a.destroy();
    b.destroy();
  });

  it('does not move a transaction away from a portal that is suspended', async () => {
    const c = await login();
    c.send(encodeQuery('BEGIN'));
    await c.until('Z');
    c.send(
      encodeParse('', `INSERT INTO orders VALUES (150, 1, 'a'), (150, 2, 'b') RETURNING id`),
      bind(),
      encodeExecute('', 1),
      SYNC,
    );
    expect((await c.until('Z')).map((m) => m.type).join('')).toBe('12DsZ');
    c.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 1'));
    expect(errorsIn(await c.until('Z'))).toEqual(['ERROR 0A000']);
    c.destroy();
  });
});

describe('a client that does not read', () => {
  it('slows down its own server connection, and nobody else', async () => {
    const peer = await login();
    peer.socket.pause();
    const before = process.memoryUsage();
    peer.send(encodeQuery(`SELECT repeat('x', 1000), generate_series(1, 200000) FROM tenants WHERE tenant_id = 150`));
    await waitFor(
      async () =>
        (
          await s.onShard<{ n: number }>(
            1,
            `SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'ClientWrite'`,
          )
        )[0]?.n === 1,
      { what: 'the server to wait for its client' },
    );
    const c = await s.connect();
    for (let i = 0; i < 50; i++) await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    expect(process.memoryUsage().arrayBuffers - before.arrayBuffers).toBeLessThan(64 * 1024 * 1024);
    peer.socket.resume();
    expect((await peer.until('Z')).length).toBe(200_003);
    peer.destroy();
  });
});

describe('a server that does not read', () => {
  it('slows down its client’s COPY', async () => {
    const lock = new pg.Client({ connectionString: s.clusters[0].url('shop') });
    await lock.connect();
    await lock.query('BEGIN');
    await lock.query(`INSERT INTO settings VALUES ('k', 'v')`);
    const peer = await login();
    peer.send(encodeQuery('COPY settings FROM STDIN'));
    await peer.expect('G');
    peer.send(data('k\tblocks\n'));
    const line = 'x'.repeat(1000);
    const chunk = data(Array.from({ length: 1000 }, (_, i) => `${i}\t${line}\n`).join(''));
    const sent = 100;
    for (let i = 0; i < sent; i++) peer.socket.write(chunk);
    let last = -1;
    let same = 0;
    await waitFor(
      () => {
        same = peer.socket.bytesWritten - peer.socket.writableLength === last ? same + 1 : 0;
        last = peer.socket.bytesWritten - peer.socket.writableLength;
        return same > 20;
      },
      { what: 'the flow to stop' },
    );
    expect(peer.socket.writableLength).toBeGreaterThan((sent * chunk.length) / 2);
    peer.send(COPY_DONE);
    await lock.query('COMMIT');
    await lock.end();
    expect(errorsIn(await peer.until('Z'))).toEqual(['ERROR 23505']);
    peer.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
    expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    peer.destroy();
  });
});

describe('a pool of one', () => {
  let one: ProxyServer;
  const connect = () => connectTo(one);
  beforeAll(async () => {
    one = await proxyOn(s.catalog, { poolSize: 1, leaseTtlMs: 10_000 });
  });
  afterAll(() => one.close());

  it('tells who waits in vain 53300, and serves when the connection is back', async () => {
    const holder = await connect();
    await holder.query('BEGIN');
    await holder.query('SELECT name FROM tenants WHERE tenant_id = 150');
    const other = await connect();
    await one.reload({ pool: { ...POOL_OF_ONE, queueTimeoutMs: 100 } });
    await expect(other.query('SELECT name FROM tenants WHERE tenant_id = 150')).rejects.toMatchObject({
      code: '53300',
    });
    await one.reload({ pool: POOL_OF_ONE });
    const waiting = other.query('SELECT name FROM tenants WHERE tenant_id = 150');
    await holder.query('COMMIT');
    expect((await waiting).rowCount).toBe(1);
  });

  it('lets a waiting client leave, or cancel, without losing the connection', async () => {
    const holder = await connect();
    const leaver = await login(one.port);
    const canceler = await RawPeer.connect(one.port);
    const key = (await canceler.login({ user: 'app', password: 'secret', database: 'shop' })).find(
      (m) => m.type === 'K',
    );
    await holder.query('BEGIN');
    await holder.query('SELECT name FROM tenants WHERE tenant_id = 150');
    leaver.send(encodeQuery(ADD));
    canceler.send(encodeQuery(ADD));
    leaver.destroy();
    const cancel = await RawPeer.connect(one.port);
    cancel.send(encodeCancelRequest(key?.body.readInt32BE(0) as number, key?.body.subarray(4) as Buffer));
    await cancel.expectClose();
    expect(errorsIn(await canceler.until('Z'))).toEqual(['ERROR 57014']);
    await holder.query('COMMIT');
    canceler.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
    expect((await canceler.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    await untilQuiet();
    expect(await s.onShard(1, 'SELECT * FROM orders')).toEqual([]);
    canceler.destroy();
  });

  describe('the first statement of a transaction, or one alone, that waits for its connection', () => {
    const batch = (sql: string) => [encodeParse('', sql), bind(), encodeExecute(''), SYNC];
    const query = (sql: string) => [encodeQuery(sql)];
    const KINDS = [
      { kind: 'a Query', say: query, done: 'CZ', block: false },
      { kind: 'a Query', say: query, done: 'CZ', block: true },
      { kind: 'a batch', say: batch, done: '12CZ', block: false },
      { kind: 'a batch', say: batch, done: '12CZ', block: true },
    ];
    const rename = (to: string, tenant = 150) => `UPDATE tenants SET name = ${to} WHERE tenant_id = ${tenant}`;
    const waiting = () => [...one.pools.all].reduce((n, { counts }) => n + counts.waiting, 0);
    const untilItWaits = () => waitFor(() => waiting() === 1, { what: 'the statement to wait' });
    const BEHIND = 'SELECT FROM foreshard.meta m JOIN foreshard.proxy p ON p.epoch_acked < m.epoch';
    const untilHeard = () =>
      waitFor(async () => (await s.catalog.pool.query(BEHIND)).rowCount === 0, {
        what: 'the new epoch to be heard of',
      });
    const ask = async (peer: RawPeer, ...messages: Buffer[]) => {
      peer.send(...messages);
      return peer.until('Z');
    };

    /** One whose statements go the short way, as they do behind the first; what it sends waits, in a block if it is to. */
    async function waiter({ say, block }: (typeof KINDS)[number], sql: string): Promise<[RawPeer, RawMessage]> {
      const peer = await RawPeer.connect(one.port);
      peers.push(peer);
      // As pg has it: with other settings than the holder's it would go the long way when its turn comes.
      const parameters = { client_encoding: 'UTF8' };
      const login = await peer.login({ user: 'app', password: 'secret', database: 'shop', parameters });
      await ask(peer, encodeQuery(rename('name')));
      await holder.query('BEGIN');
      await holder.query(rename(`'held'`, held));
      if (block) await ask(peer, ...say('BEGIN'));
      peer.send(...say(sql));
      await untilItWaits();
      return [peer, login.find((m) => m.type === 'K') as RawMessage];
    }
    /** Has the only connection to the second shard meanwhile. */
    let holder: pg.Client;
    let held = 150;
    beforeEach(async () => {
      held = 150;
      holder = await connect();
    });
    const peers: RawPeer[] = [];
    afterEach(async () => {
      for (const peer of peers.splice(0)) peer.destroy();
      await holder.end();
    });

    it.each(KINDS)('is answered before what comes behind it: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`name || ' and more'`));
      // The first of these needs no connection.
      peer.send(encodeQuery(''), encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
      await holder.query('COMMIT');
      const told = await peer.until('Z');
      expect(told.map((m) => m.type).join('')).toBe(how.done);
      expect(told.at(-1)?.body.toString()).toBe(how.block ? 'T' : 'I');
      expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('IZ');
      expect((await peer.until('Z')).map((m) => m.body.toString('latin1')).join()).toContain('held and more');
      if (how.block) await ask(peer, ...how.say('COMMIT'));
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'held and more' }]);
    });

    it.each(KINDS)('is not done when it is canceled: $kind, in a block: $block', async (how) => {
      const [peer, key] = await waiter(how, rename(`'never'`));
      const cancel = await RawPeer.connect(one.port);
      cancel.send(encodeCancelRequest(key.body.readInt32BE(0), key.body.subarray(4)));
      await cancel.expectClose();
      const told = await peer.until('Z');
      expect(errorsIn(told)).toEqual(['ERROR 57014']);
      expect(told.at(-1)?.body.toString()).toBe(how.block ? 'E' : 'I');
      await holder.query('COMMIT');
      if (how.block) await ask(peer, ...how.say('ROLLBACK'));
      expect((await ask(peer, ...how.say(rename(`name || '!'`)))).map((m) => m.type).join('')).toBe(how.done);
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'held!' }]);
    });

    it.each(KINDS)('is not done when its client has gone: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`'never'`));
      peer.destroy();
      await waitFor(() => waiting() === 0, { what: 'it to leave' });
      await holder.query('COMMIT');
      await untilQuiet();
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'held' }]);
    });

    it('is told 53300 when that takes too long, and the next is served', async () => {
      await one.reload({ pool: { ...POOL_OF_ONE, queueTimeoutMs: 200 } });
      for (const how of KINDS) {
        if (how.block) continue;
        const [peer] = await waiter(how, rename(`'never'`));
        expect(errorsIn(await peer.until('Z'))).toEqual(['ERROR 53300']);
        await holder.query('COMMIT');
        await ask(peer, ...how.say(rename(`'done'`)));
        expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'done' }]);
      }
      await one.reload({ pool: POOL_OF_ONE });
    });

    it.each(KINDS)('has its own settings: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`current_setting('my.setting', true)`));
      await holder.query(`SET my.setting = 'of another'`);
      await holder.query('COMMIT');
      expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
      if (how.block) await ask(peer, ...how.say('COMMIT'));
      expect([{ name: '' }, { name: null }]).toContainEqual((await s.onShard(1, 'SELECT name FROM tenants'))[0]);
    });

    it.each(KINDS)('goes where its rows have moved to meanwhile: $kind, in a block: $block', async (how) => {
      held = 500;
      await s.onShard(1, `INSERT INTO tenants VALUES (500, 't500')`);
      await s.onShard(0, `INSERT INTO tenants VALUES (150, 'moved')`);
      const [peer] = await waiter(how, rename(`name || ' and found'`));
      try {
        await s.flipTo(300);
        await untilHeard();
        await holder.query('COMMIT');
        expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
        if (how.block) await ask(peer, ...how.say('COMMIT'));
        expect(await s.onShard(0, 'SELECT name FROM tenants WHERE tenant_id = 150')).toEqual([
          { name: 'moved and found' },
        ]);
        expect(await s.onShard(1, 'SELECT name FROM tenants WHERE tenant_id = 150')).toEqual([{ name: 't150' }]);
      } finally {
        await s.flipTo(100);
        await untilHeard();
      }
    });

    it.each(KINDS)('belongs to several shards meanwhile: $kind, in a block: $block', async (how) => {
      held = 500;
      await s.onShard(1, `INSERT INTO tenants VALUES (500, 't500'), (200, 't200')`);
      await s.onShard(0, `INSERT INTO tenants VALUES (150, 'moved')`);
      const [peer] = await waiter(how, 'SELECT name FROM tenants WHERE tenant_id IN (150, 200)');
      try {
        await s.flipTo(180);
        await untilHeard();
        await holder.query('COMMIT');
        const told = await peer.until('Z');
        expect(told.at(-1)?.body.toString()).toBe(how.block ? 'E' : 'I');
        if (how.block) expect(errorsIn(told)).toEqual(['ERROR 0A000']);
        else
          expect(told.filter((m) => m.type === 'D').map((m) => m.body.toString('latin1', 6))).toEqual([
            'moved',
            't200',
          ]);
        // It keeps no connection.
        if (how.block) await ask(peer, ...how.say('ROLLBACK'));
        expect((await holder.query('SELECT name FROM tenants WHERE tenant_id = 500')).rowCount).toBe(1);
        const kept = () => [...one.pools.all].reduce((n, { status }) => n + status.clActive, 0);
        await waitFor(() => kept() === 0, { what: 'all connections to be given back' });
      } finally {
        await s.flipTo(100);
        await untilHeard();
      }
    });

    it.each(KINDS)(
      'lets others have the connection while its range is held: $kind, in a block: $block',
      async (how) => {
        await s.onShard(1, `INSERT INTO tenants VALUES (500, 't500')`);
        held = 500;
        const [peer] = await waiter(how, rename(`'done'`));
        const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
        const id = await createHold(s.catalog.pool, {
          migrationId: 1n,
          keyspace,
          lo: [100n],
          hi: [300n],
          referenceTables: false,
          deadlineMs: 20_000,
        });
        try {
          // What waits for a connection is not waited for.
          await waitFor(async () => (await holdStatus(s.catalog.pool, id)).waitingFor.length === 0, {
            what: 'the hold',
          });
          await holder.query('COMMIT');
          await holder.query(rename(`'again'`, held));
          expect(await s.onShard(1, 'SELECT name FROM tenants ORDER BY 1')).toEqual([
            { name: 'again' },
            { name: 't150' },
          ]);
        } finally {
          await dropHold(s.catalog.pool, id);
        }
        expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
        if (how.block) await ask(peer, ...how.say('COMMIT'));
        expect(await s.onShard(1, 'SELECT name FROM tenants ORDER BY 1')).toEqual([
          { name: 'again' },
          { name: 'done' },
        ]);
      },
    );

    it.each(KINDS.slice(1, 3))('goes on over another when its own is cut: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`name || '!'`));
      await s.onShard(
        1,
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`,
      );
      expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
      if (how.block) await ask(peer, ...how.say('COMMIT'));
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 't150!' }]);
    });

    it.each(KINDS.slice(1, 3))('is carried out after a goodbye: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`name || '!'`));
      if (how.block) peer.send(...how.say('COMMIT'));
      peer.send(TERMINATE);
      peer.socket.end();
      await holder.query('COMMIT');
      await waitFor(
        async () => (await s.onShard<{ name: string }>(1, 'SELECT name FROM tenants'))[0]?.name === 'held!',
        {
          what: 'what it had asked for',
        },
      );
      await untilQuiet();
    });
  });

  it('runs many statements for several shards at once without a deadlock', async () => {
    const clients = await Promise.all(Array.from({ length: 4 }, () => connect()));
    const answers = await Promise.all(
      clients.flatMap((c) => [
        c.query('SELECT name FROM tenants'),
        c.query('SELECT name FROM tenants WHERE tenant_id > $1', [0]),
      ]),
    );
    for (const { rows } of answers) expect(rows.map((r) => r.name).sort()).toEqual(['t1', 't150']);
  });

  it('lets clients go that leave while they wait for their login’s connection', async () => {
    const holder = await connect();
    await holder.query('BEGIN');
    await holder.query('SELECT name FROM tenants WHERE tenant_id = 1');
    for (let i = 0; i < 5; i++) {
      const peer = await RawPeer.connect(one.port);
      const loggingIn = peer.login({ user: 'app', password: 'secret', database: 'shop' }).catch(() => undefined);
      await waitFor(() => peer.socket.bytesWritten > 180, { what: 'the last message of the login' });
      peer.destroy();
      await loggingIn;
    }
    await holder.query('COMMIT');
    const next = await connect();
    expect((await next.query('SELECT name FROM tenants WHERE tenant_id = 1')).rowCount).toBe(1);
    await untilQuiet();
  });
});

describe('the catalog goes away', () => {
  it('serves until the lease ends, then refuses, and serves again when the catalog is back', async () => {
    const cluster = await startTestCluster();
    await withClient(cluster.url('postgres'), (c) => c.query('CREATE DATABASE foreshard'));
    const pool = new pg.Pool({ connectionString: cluster.url('foreshard') });
    await initCatalog(pool, 'shop');
    await pool.end();
    const catalog = await Catalog.connect(cluster.url('foreshard'));
    const registry = new Registry(catalog, 'test');
    await registry.addShard({ name: 's1', url: s.clusters[0].url('shop') });
    await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
    await registry.addTable({
      table: { schema: 'public', table: 'tenants' },
      keyspace: 'main',
      keyColumns: ['tenant_id'],
    });
    const proxy = await proxyOn(catalog, { poolSize: 2, leaseTtlMs: 3000, holdTimeoutMs: 500 });
    const c = await connectTo(proxy);
    const add = (id: number) => c.query(`INSERT INTO tenants VALUES (${id}, 'x')`);
    await add(2);
    await cluster.crash();
    await add(3);
    await waitFor(
      async () => {
        try {
          await c.query('SELECT name FROM tenants WHERE tenant_id = 1');
          return false;
        } catch (error) {
          expect(error).toMatchObject({ code: '57P03' });
          return true;
        }
      },
      { what: 'the end of the lease' },
    );
    const asked = performance.now();
    await expect(add(4)).rejects.toMatchObject({ code: '57P03' });
    expect(performance.now() - asked).toBeGreaterThan(450);
    // A transaction that no server has heard of fails as PostgreSQL's would, and the session lives on.
    await c.query('BEGIN');
    await expect(add(4)).rejects.toMatchObject({ code: '57P03' });
    await expect(add(4)).rejects.toMatchObject({ code: '25P02' });
    expect((await c.query('ROLLBACK')).command).toBe('ROLLBACK');
    await cluster.restart();
    await waitFor(() => add(5).then(() => true), { what: 'the proxy to serve again' });
    expect((await c.query('SELECT tenant_id::int AS id FROM tenants ORDER BY 1')).rows.map((r) => r.id)).toEqual([
      1, 2, 3, 5,
    ]);
    await c.end();
    await proxy.close();
    await catalog.close();
  });
});
