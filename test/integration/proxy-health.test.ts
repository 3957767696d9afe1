import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Backend } from '../../proxy/backend/backend.js';
import type { Pool } from '../../proxy/backend/pool.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../../proxy/wire/frontend.js';
import { withClient } from '../support/client.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;

beforeAll(async () => {
  // Without lanes: a read that has been fast a few times would have its connection before it is handed out here.
  s = await Sharded.start({
    splitAt: 100,
    pool: { lanes: 'off', connectRetryMs: 60_000, queueTimeoutMs: 60_000 },
  });
  await s.onShard(0, `INSERT INTO tenants VALUES (1, 't1')`);
  await s.onShard(1, `INSERT INTO tenants VALUES (150, 't150')`);
  await s.onShard(
    1,
    `CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$`,
  );
  await s.onShard(
    1,
    `CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED
       FOR EACH ROW EXECUTE FUNCTION wait_at_commit()`,
  );
});
beforeEach(async () => {
  await s.onShard(1, 'TRUNCATE orders, items CASCADE');
});
afterAll(() => s.stop());

function login(): Promise<RawPeer> {
  return RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
}

async function query(peer: RawPeer, sql: string): Promise<RawMessage[]> {
  peer.send(encodeQuery(sql));
  return peer.until('Z');
}

function types(messages: readonly RawMessage[]): string {
  return messages.map((m) => m.type).join('');
}

function poolOf(shard: string): Pool {
  for (const pool of s.proxy.pools.all) if (pool.shard === shard) return pool;
  throw new Error(`no pool of ${shard}`);
}

/** Connections handed out are dead by then, as when the server's goodbye has come but not been read; `times` of them. */
function handOutDead(pool: Pool, times: number): { left: number } {
  const state = { left: times };
  const dying = (backend: Backend): Backend => {
    if (state.left === 0 || backend.connection.isClosed) return backend;
    state.left -= 1;
    backend.connection.destroy();
    return backend;
  };
  const acquire = pool.acquire.bind(pool);
  pool.acquire = async (...args) => dying(await acquire(...args));
  const takeIdle = pool.takeIdle.bind(pool);
  pool.takeIdle = () => {
    const idle = takeIdle();
    return idle === null ? null : dying(idle);
  };
  return state;
}

const extended = (sql: string) => [
  encodeParse('', sql),
  encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] }),
  encodeExecute(''),
  SYNC,
];

describe('a server connection that is dead before anything is sent on it', () => {
  const READ = 'SELECT name FROM tenants WHERE tenant_id = 150';
  const WRITE = `INSERT INTO orders VALUES (150, 1, 'a')`;

  it.each([
    ['a Query', [encodeQuery(READ)], 'TDCZ'],
    ['a write', [encodeQuery(WRITE)], 'CZ'],
    ['a batch', extended(READ), '12DCZ'],
    ['a batch that writes', extended(WRITE), '12CZ'],
  ] as const)('is replaced unseen for %s', async (_what, messages, replies) => {
    const peer = await login();
    await query(peer, READ);
    const dead = handOutDead(poolOf('s2'), 2);
    peer.send(...messages);
    expect(types(await peer.until('Z'))).toBe(replies);
    expect(dead.left).toBe(0);
    if (replies.includes('D')) return peer.end();
    expect(await s.onShard(1, 'SELECT * FROM orders')).toHaveLength(1);
    peer.end();
  });

  it('is replaced unseen while settings and the transaction are made on it', async () => {
    const peer = await login();
    await query(peer, READ);
    await query(peer, `SET application_name = 'dead'`);
    const first = handOutDead(poolOf('s2'), 1);
    expect(types(await query(peer, READ)).replaceAll('S', '')).toBe('TDCZ');
    await query(peer, 'BEGIN');
    const second = handOutDead(poolOf('s2'), 1);
    expect(types(await query(peer, WRITE))).toBe('CZ');
    expect(types(await query(peer, 'COMMIT'))).toBe('CZ');
    expect([first.left, second.left]).toEqual([0, 0]);
    expect(await s.onShard(1, 'SELECT * FROM orders')).toHaveLength(1);
    peer.end();
  });
});

describe('BEGIN', () => {
  const READ = 'SELECT name FROM tenants WHERE tenant_id = 150';
  const WRITE = `INSERT INTO orders VALUES (150, 1, 'a')`;
  const standby = () => join(s.clusters[1].dataDir, 'standby.signal');

  it.each([
    ['a Query', [encodeQuery(READ)], 'TDCZ'],
    ['a batch', extended(READ), '12DCZ'],
  ] as const)('goes to the server together with %s that comes first', async (_what, messages, replies) => {
    const peer = await login();
    await query(peer, READ);
    await query(peer, 'BEGIN');
    peer.send(...messages);
    const answer = await peer.until('Z');
    expect(types(answer)).toBe(replies);
    expect(answer.at(-1)?.frame.toString('latin1', 5)).toBe('T');
    await query(peer, WRITE);
    await query(peer, 'ROLLBACK');
    expect(await s.onShard(1, 'SELECT * FROM orders')).toEqual([]);
    peer.end();
  });

  it('that its server refuses has nothing behind it run', async () => {
    // Only a server in recovery refuses to begin.
    await writeFile(standby(), '');
    await s.clusters[1].restart();
    try {
      for (const messages of [[encodeQuery(READ)], extended(READ)]) {
        const peer = await login();
        await query(peer, 'BEGIN ISOLATION LEVEL SERIALIZABLE');
        peer.send(...messages);
        const answer = await peer.until('E');
        // It is told what a standby reports of itself, and nothing else.
        expect(types(answer).replaceAll('S', '')).toBe('E');
        expect(decodeErrorFields((answer.at(-1) as RawMessage).frame)).toMatchObject({
          severity: 'FATAL',
          sqlstate: '0A000',
        });
        await peer.expectClose();
      }
    } finally {
      await rm(standby());
      await s.clusters[1].restart();
    }
  });
});

describe('a server connection that dies with something in flight', () => {
  /** Cuts what serves the client of the only session that has a server connection. */
  async function cut(): Promise<void> {
    const waiting = `SELECT FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'`;
    await waitFor(async () => (await s.onShard<pg.QueryResultRow>(1, waiting)).length === 1, {
      what: 'the statement to wait for its lock',
    });
    const busy: Backend[] = [];
    for (const { session } of s.proxy.clients) if (session.lease.backend !== null) busy.push(session.lease.backend);
    expect(busy).toHaveLength(1);
    busy[0]?.connection.destroy();
  }

  async function lost(before: readonly string[], messages: readonly Buffer[], lock: string): Promise<string> {
    const peer = await login();
    for (const sql of before) expect(types(await query(peer, sql))).toBe('CZ');
    return withClient(s.clusters[1].url('shop'), async (c) => {
      await c.query(`BEGIN; ${lock}`);
      peer.send(...messages);
      await cut();
      const { severity, sqlstate } = decodeErrorFields((await peer.expect('E')).frame);
      await peer.expectClose();
      return `${severity} ${sqlstate}`;
    });
  }

  const ORDERS = 'LOCK TABLE orders';
  const ADD = `INSERT INTO orders VALUES (150, 1, 'a')`;
  const READ = 'SELECT note FROM orders WHERE tenant_id = 150';

  it('is an unknown outcome for a write of its own', async () => {
    expect(await lost([], [encodeQuery(ADD)], ORDERS)).toBe('FATAL 08007');
    expect(await lost([], extended(ADD), ORDERS)).toBe('FATAL 08007');
    expect(await lost([], [encodeQuery('DELETE FROM orders WHERE tenant_id = 150')], ORDERS)).toBe('FATAL 08007');
  });

  it('is not for a read', async () => {
    expect(await lost([], [encodeQuery(READ)], ORDERS)).toBe('FATAL 08006');
    expect(await lost([], extended(READ), ORDERS)).toBe('FATAL 08006');
  });

  it('is not for what an open transaction does: that is rolled back', async () => {
    expect(await lost(['BEGIN'], [encodeQuery(ADD)], ORDERS)).toBe('FATAL 08006');
    expect(await lost(['BEGIN'], extended(ADD), ORDERS)).toBe('FATAL 08006');
  });

  it('is an unknown outcome for COMMIT', async () => {
    // Whoever waits for the lock commits once it gets it: the server does not know that its client is gone.
    const order = (id: number) => `INSERT INTO orders VALUES (150, ${id}, 'a')`;
    const item = (id: number) => `INSERT INTO items VALUES (150, ${id}, 1, 1)`;
    const lock = 'SELECT pg_advisory_xact_lock(7)';
    expect(await lost(['BEGIN', order(1), item(1)], [encodeQuery('COMMIT')], lock)).toBe('FATAL 08007');
    expect(await lost(['BEGIN', order(2), item(2)], extended('COMMIT'), lock)).toBe('FATAL 08007');
    expect(await lost(['BEGIN', order(3)], [encodeQuery(`${item(3)}; COMMIT`)], lock)).toBe('FATAL 08007');
  });
});

describe('a server that restarts', () => {
  it('is waited for, and idle connections are replaced', async () => {
    const client = await s.connect();
    const READ = 'SELECT name FROM tenants WHERE tenant_id = 150';
    await client.query(READ);
    await s.clusters[1].crash();
    await waitFor(() => poolOf('s2').counts.open === 0, { what: 'the pool to be empty' });
    const answers = [client.query(READ), s.connect().then((c) => c.query(READ))];
    await waitFor(() => poolOf('s2').counts.waiting === 2, { what: 'both to wait' });
    await s.clusters[1].restart();
    for (const answer of answers) expect((await answer).rowCount).toBe(1);
  });
});
