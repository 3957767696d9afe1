import type pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import { encodeExecute, encodeParse, encodeQuery, SYNC } from '../../proxy/wire/frontend.js';
import type { RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import {
  bind,
  connectTo,
  errorsIn,
  holder,
  loginAt,
  POOL_OF_ONE,
  proxyOn,
  twoTenants,
  untilQuiet,
  untilWaiting,
} from './faults.js';

// What goes wrong while the home shard answers from rows of several shards.

const ROWS = 3000;
const WIDE = 2000;
/** Needs the rows themselves, in the order that a shard alone cannot tell. */
const ALL = `SELECT count(*), sum(length(o.note)), count(DISTINCT o.tenant_id) FROM orders o`;
const ANSWER = [{ count: String(2 * ROWS), sum: String(2 * ROWS * WIDE), distinct: '2' }];
const QUERY = ALL.replace('count(DISTINCT o.tenant_id)', 'count(DISTINCT o.tenant_id) AS distinct');
const SHOWN = 'SELECT o.tenant_id, o.id, o.note, row_number() OVER (ORDER BY o.tenant_id, o.id) FROM orders o';

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: 4 });
  await twoTenants(s);
  for (const [shard, tenant] of [
    [0, 1],
    [1, 150],
  ] as const)
    await s.onShard(
      shard,
      // Of what does not get smaller where it is kept.
      `INSERT INTO orders SELECT ${tenant}, i, left((SELECT string_agg(md5(i || ' ' || n), '') FROM generate_series(1, ${WIDE / 32 + 1}) n), ${WIDE})
       FROM generate_series(1, ${ROWS}) i`,
    );
}, 60_000);
afterAll(() => s.stop());

/** Nothing is left open, and nothing is left behind for the next user of a connection. */
async function untilClean(on = s): Promise<void> {
  await untilQuiet(on);
  for (const shard of [0, 1] as const) {
    await waitFor(
      async () =>
        (await on.onShard(shard, `SELECT relname FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'`))
          .length === 0,
      { what: 'the end of temporary tables' },
    );
    expect(await on.onShard(shard, 'SELECT gid FROM pg_prepared_xacts')).toEqual([]);
  }
}

/** Holds what a shard is to read, until it is told to let it go. */
async function lock(shard: 0 | 1, table: string): Promise<() => Promise<void>> {
  const client = await holder(s, shard, `LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`);
  return async () => {
    await client.query('COMMIT').catch(() => undefined);
    await client.end().catch(() => undefined);
  };
}

const kill = (shard: 0 | 1, pid: number) => s.onShard(shard, `SELECT pg_terminate_backend(${pid})`);

it('shows each row once while ranges go to another shard and come back', async () => {
  for (const shard of [0, 1] as const)
    await s.onShard(
      shard,
      `INSERT INTO tenants SELECT i, 't' || i FROM generate_series(1, 200) i ON CONFLICT DO NOTHING`,
    );
  const clients = await Promise.all(Array.from({ length: 3 }, () => s.connect()));
  let flipping = true;
  let asked = 0;
  const ask = async (c: pg.Client) => {
    while (flipping) {
      const { rows } = await c.query(
        `SELECT count(*)::int AS n, count(DISTINCT tenant_id)::int AS d, (SELECT sum(tenant_id)::int FROM tenants) AS s FROM tenants`,
      );
      expect(rows).toEqual([{ n: 200, d: 200, s: 20_100 }]);
      asked++;
    }
  };
  let failed = false;
  const asking = Promise.all(clients.map(ask));
  asking.catch(() => {
    failed = true;
  });
  try {
    for (const at of [50, 150, 20, 100]) {
      await s.flipTo(at);
      await s.reloaded();
      const before = asked;
      await waitFor(() => failed || asked > before + 3, { what: 'answers by this map' });
    }
  } finally {
    flipping = false;
  }
  await asking;
  for (const c of clients) await c.end();
  await s.onShard(0, 'DELETE FROM tenants WHERE tenant_id <> 1');
  await s.onShard(1, 'DELETE FROM tenants WHERE tenant_id <> 150');
  await untilClean();
}, 60_000);

describe('a query that waits on one shard', () => {
  const released: (() => Promise<void>)[] = [];
  afterEach(async () => {
    for (const release of released.splice(0)) await release();
    await untilClean();
  });
  const blocked = async (shard: 0 | 1, table = 'orders') => {
    released.push(await lock(shard, table));
  };

  it.each([0, 1] as const)('is canceled, and its connections serve the next: shard %i', async (shard) => {
    const c = await s.connect();
    await blocked(shard);
    const answer = c.query(QUERY).catch((error: unknown) => error);
    await untilWaiting(s, shard);
    await s.cancel(c);
    expect(await answer).toMatchObject({ code: '57014' });
    await released.splice(0)[0]?.();
    expect((await c.query(QUERY)).rows).toEqual(ANSWER);
    await c.end();
  });

  it.each([0, 1] as const)('ends with its client: shard %i', async (shard) => {
    const peer = await loginAt(s.proxy.port);
    await blocked(shard);
    peer.send(encodeQuery(QUERY));
    await untilWaiting(s, shard);
    peer.destroy();
    await untilQuiet(s);
  });

  it.each([0, 1] as const)('goes on, or fails, when its connection is cut: shard %i', async (shard) => {
    const c = await s.connect();
    await blocked(shard);
    const answer = c.query(QUERY).then(
      ({ rows }) => rows,
      (error: pg.DatabaseError) => error.code,
    );
    await kill(shard, await untilWaiting(s, shard));
    await released.splice(0)[0]?.();
    expect([ANSWER, '08006', '57P01']).toContainEqual(await answer);
    expect((await c.query(QUERY)).rows).toEqual(ANSWER);
    await c.end();
  });

  it('has the time that statement_timeout gives', async () => {
    const c = await s.connect();
    await blocked(1);
    await c.query('SET statement_timeout = 50');
    await expect(c.query(QUERY)).rejects.toMatchObject({ code: '57014' });
    await c.query('RESET statement_timeout');
    await released.splice(0)[0]?.();
    expect((await c.query(QUERY)).rows).toEqual(ANSWER);
    await c.end();
  });

  it('does not count as idle in its transactions meanwhile', async () => {
    const c = await s.connect();
    await c.query('SET idle_in_transaction_session_timeout = 1');
    await blocked(1);
    const answer = c.query(QUERY);
    await untilWaiting(s, 1);
    // As long as it takes: the other connections would have been ended by now.
    await s.onShard(0, 'SELECT pg_sleep(0.1)');
    await released.splice(0)[0]?.();
    expect((await answer).rows).toEqual(ANSWER);
    await c.end();
  });
});

describe('a client that does not read', () => {
  // More than the sockets on its way can hold.
  const LONG = SHOWN.replace('o.note', 'repeat(o.note, 4) AS note');
  const heldBack = async () => {
    const peer = await loginAt(s.proxy.port);
    peer.socket.pause();
    peer.send(encodeQuery(LONG));
    await waitFor(
      async () =>
        (await s.onShard(0, `SELECT FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'ClientWrite'`))
          .length > 0,
      { what: 'the home shard to be held back' },
    );
    return peer;
  };

  it('holds back what the home shard says, and gets all of it', async () => {
    const peer = await heldBack();
    peer.socket.resume();
    const heard = await peer.until('Z');
    expect(heard.filter((m) => m.type === 'D')).toHaveLength(2 * ROWS);
    peer.destroy();
    await untilClean();
  });

  it('goes away, and its connections serve the next', async () => {
    const peer = await heldBack();
    peer.destroy();
    await untilClean();
    const c = await s.connect();
    expect((await c.query(QUERY)).rows).toEqual(ANSWER);
    await c.end();
  });
});

describe('more rows than may be brought together', () => {
  let proxy: ProxyServer;
  afterEach(() => proxy.close());

  it.each([1, 100_000, 5_000_000, 12_000_000])('are refused, and leave nothing: %i bytes', async (gatherBytes) => {
    proxy = await startProxy(s.catalog, { ...s.options, limits: { gatherBytes } });
    const c = await connectTo(proxy);
    for (const text of [SHOWN, `SELECT note FROM orders WHERE id <> 5 UNION SELECT name FROM tenants`])
      for (const query of [{ text }, { text, values: [] }])
        await expect(c.query(query)).rejects.toMatchObject({
          code: '54000',
          message: `the query needs more than ${gatherBytes} bytes of rows of several shards in one place`,
        });
    if (gatherBytes > 1) {
      const few = `SELECT tenant_id, row_number() OVER (ORDER BY tenant_id) FROM tenants ORDER BY 1`;
      expect((await c.query(few)).rowCount).toBe(2);
    }
    await untilClean();
    await c.end();
  });

  it('are refused in the middle of one, and the session goes on', async () => {
    for (const [shard, tenant] of [
      [0, 2],
      [1, 160],
    ] as const)
      await s.onShard(
        shard,
        `INSERT INTO tenants SELECT ${tenant}, string_agg(md5(i::text), '') FROM generate_series(1, 300000) i`,
      );
    const wide = 'SELECT count(DISTINCT md5(name)) FROM tenants';
    for (const gatherBytes of [1_000_000, 12_000_000, 16_000_000]) {
      proxy = await startProxy(s.catalog, { ...s.options, limits: { gatherBytes } });
      const c = await connectTo(proxy);
      await expect(c.query(wide)).rejects.toMatchObject({ code: '54000' });
      expect((await c.query('SELECT count(*)::int AS n FROM tenants')).rows).toEqual([{ n: 4 }]);
      await untilClean();
      await c.end();
      if (gatherBytes < 16_000_000) await proxy.close();
    }
    for (const [shard, tenant] of [
      [0, 2],
      [1, 160],
    ] as const)
      await s.onShard(shard, `DELETE FROM tenants WHERE tenant_id = ${tenant}`);
  });

  it('0 switches such queries off', async () => {
    proxy = await startProxy(s.catalog, { ...s.options, limits: { gatherBytes: 0 } });
    const c = await connectTo(proxy);
    await expect(c.query(QUERY)).rejects.toMatchObject({ code: '0A000' });
    await c.end();
  });
});

it.each([1, 2])(
  '10 clients share pools of %i without a deadlock',
  async (size) => {
    const proxy = await proxyOn(s.catalog, { poolSize: size, leaseTtlMs: 10_000 });
    await proxy.reload({ pool: { ...POOL_OF_ONE, size } });
    const clients = await Promise.all(Array.from({ length: 10 }, () => connectTo(proxy)));
    const few = 'SELECT count(DISTINCT tenant_id)::int AS n FROM tenants';
    const ask = async (c: pg.Client) => {
      expect((await c.query(few)).rows).toEqual([{ n: 2 }]);
      expect((await c.query('SELECT name FROM tenants')).rowCount).toBe(2);
      expect((await c.query({ text: few, values: [] })).rows).toEqual([{ n: 2 }]);
    };
    await Promise.all(clients.map(ask));
    await untilClean();
    for (const c of clients) await c.end();
    await proxy.close();
  },
  60_000,
);

describe('where a plain union over several shards is refused, so it is', () => {
  const heard = (messages: readonly RawMessage[]) => messages.map((m) => m.type).join('');
  it('in one text or batch with others, with a row limit', async () => {
    const c = await s.connect();
    await expect(c.query(`${QUERY}; SELECT 1`)).rejects.toMatchObject({ code: '0A000' });
    for (const inside of [
      `CREATE TABLE made AS ${QUERY}`,
      `COPY (${QUERY}) TO STDOUT`,
      `DECLARE d CURSOR FOR ${QUERY}`,
      `INSERT INTO settings SELECT 'n', count(*) FROM orders`,
    ])
      await expect(c.query(inside)).rejects.toMatchObject({ code: '0A000' });
    const peer: RawPeer = await loginAt(s.proxy.port);
    const select = [encodeParse('', QUERY), bind(), encodeExecute('')];
    for (const batch of [
      [...select, ...select, SYNC],
      [encodeParse('', QUERY), bind(), encodeExecute('', 1), SYNC],
    ]) {
      peer.send(...batch);
      const messages = await peer.until('Z');
      expect(errorsIn(messages)).toEqual(['ERROR 0A000']);
    }
    peer.send(...select, SYNC);
    expect(heard(await peer.until('Z'))).toBe('12DCZ');
    peer.destroy();
    await c.end();
    await untilClean();
  });
});

it('a change of a column that is not complete on all shards is not read as if it were', async () => {
  for (const shard of [0, 1] as const)
    await s.onShard(shard, 'ALTER TABLE items ADD COLUMN at timestamp; ALTER TABLE items ADD COLUMN f float8');
  await s.onShard(0, `INSERT INTO items VALUES (1, 1, 1, 1, '2024-02-29 12:00', 1.5)`);
  await s.onShard(1, `INSERT INTO items VALUES (150, 1, 1, 1, '2024-02-29 12:00', 1.5)`);
  const proxy = await startProxy(s.catalog, s.options);
  const c = await connectTo(proxy);
  const sql = 'SELECT at::text, f, row_number() OVER (ORDER BY tenant_id) FROM items ORDER BY 3';
  expect((await c.query(sql)).rows.map((r) => r.f)).toEqual([1.5, 1.5]);
  await s.onShard(1, 'ALTER TABLE items ALTER f TYPE int8');
  await expect(c.query(sql)).rejects.toMatchObject({
    code: '0A000',
    message: 'a column that the query uses has not the same type on all shards, or had another a moment ago',
  });
  await s.onShard(1, 'ALTER TABLE items ALTER f TYPE float8');
  expect((await c.query(sql)).rows).toHaveLength(2);
  await c.end();
  await proxy.close();
});
