import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import {
  COPY_DONE,
  encodeCancelRequest,
  encodeExecute,
  encodeParse,
  encodeQuery,
  FLUSH,
  SYNC,
} from '../../proxy/wire/frontend.js';
import { MessageBuilder } from '../../proxy/wire/message-builder.js';
import { FRONTEND } from '../../proxy/wire/message-types.js';
import { createHold, dropHold, endTransactions, holdStatus } from '../../topology/catalog/leases.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { alive } from '../cli/process-tree.js';
import { withClient } from '../support/client.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import { ADD, activity, bind, errorsIn, holder, loginAt, twoTenants, untilQuiet, untilWaiting } from './faults.js';

let s: Sharded;
const POOL = 4;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: POOL });
});
afterAll(() => s.stop());

beforeEach(() => twoTenants(s));

const SLEEP = `SELECT pg_sleep(60), name FROM tenants WHERE tenant_id = 150`;

function login(): Promise<RawPeer> {
  return loginAt(s.proxy.port);
}

async function untilRunning(n = 1, shard: 0 | 1 = 1): Promise<number> {
  return waitFor(
    async () => {
      const running = (await activity(s, shard)).filter((a) => a.state === 'active');
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
  const lockers = [await holder(s, 0, 'LOCK TABLE tenants'), await holder(s, 1, 'LOCK TABLE tenants')];
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

const data = (text: string) => new MessageBuilder(FRONTEND.CopyData).bytes(Buffer.from(text)).finish();

describe('a server connection dies', () => {
  it('unused: nobody notices', async () => {
    const c = await s.connect();
    await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    for (const { pid } of await activity(s, 1)) await terminate(pid);
    await waitFor(async () => (await activity(s, 1)).length === 0, { what: 'the end of the connections' });
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

  it('while a statement over several shards runs: an error, and what has been prepared for it is there', async () => {
    const c = await s.connect();
    const letGo = await lockTenants();
    const named = { name: 'all', text: 'SELECT name FROM tenants' };
    const failed = c.query(named).catch((error: pg.DatabaseError) => error.code);
    try {
      // The one that is read first: the others are held back.
      await s.onShard(0, 'SELECT pg_terminate_backend($1)', [await untilWaiting(s, 0)]);
      expect(await failed).toBe('08006');
    } finally {
      await letGo();
    }
    expect((await c.query(named)).rowCount).toBe(2);
    expect((await c.query('SELECT name FROM tenants')).rowCount).toBe(2);
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
    const [open] = (await activity(s, 1)).filter((a) => a.state !== 'idle');
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
    const first = (await activity(s, 0)).map(({ pid }) => pid);
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
    await untilQuiet(s);
    await expectWholePool();
  });

  it('with a batch done but not committed by a Sync: it is undone, whoever comes next', async () => {
    const peer = await login();
    peer.send(encodeParse('', ADD), bind(), encodeExecute(''), FLUSH);
    await peer.until('C');
    peer.destroy();
    await untilQuiet(s);
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
        async () => (await activity(s, 1)).some((a) => a.state === 'idle in transaction' || a.state === 'active'),
        {
          what: 'the answer',
        },
      );
      peer.socket.resetAndDestroy();
    }
    await untilQuiet(s);
    await expectWholePool();
  });

  it('with a slow statement: it is canceled', async () => {
    const peer = await login();
    peer.send(encodeQuery(SLEEP));
    await untilRunning();
    peer.destroy();
    await untilQuiet(s);
    await expectWholePool();
  });

  it('in the middle of COPY: it is undone', async () => {
    const peer = await login();
    peer.send(encodeQuery('COPY settings FROM STDIN'));
    await peer.expect('G');
    peer.send(data('a\tb\n'));
    peer.destroy();
    await untilQuiet(s);
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
    await untilQuiet(s);
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
    await untilQuiet(s);
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
