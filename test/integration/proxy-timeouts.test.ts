import type pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import type { SessionTimeouts } from '../../proxy/session/time-outs.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../../proxy/wire/frontend.js';
import { withClient } from '../support/client.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded, type ShardedOptions, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
const proxies: ProxyServer[] = [];

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
  await s.onShard(0, `INSERT INTO tenants VALUES (1, 't1')`);
  await s.onShard(1, `INSERT INTO tenants VALUES (150, 't150')`);
});
afterEach(async () => {
  await Promise.all(proxies.splice(0).map((proxy) => proxy.close()));
});
afterAll(() => s.stop());

async function proxyWith(options: Partial<ShardedOptions>): Promise<ProxyServer> {
  const proxy = await startProxy(s.catalog, { splitAt: 100, ...options });
  proxies.push(proxy);
  return proxy;
}

/** Its limits from here on. What is to be done in time, on whatever machine, is done before, or after they are lifted. */
function limit(proxy: ProxyServer, limits: SessionTimeouts): Promise<void> {
  return proxy.reload({ limits: { maxClients: 200, loginTimeoutMs: 10_000, holdTimeoutMs: 10_000, ...limits } });
}

function login(proxy: ProxyServer): Promise<RawPeer> {
  return RawPeer.login(proxy.port, { user: 'app', password: 'secret', database: 'shop' });
}

function types(messages: readonly RawMessage[]): string {
  return messages.map((m) => m.type).join('');
}

async function query(peer: RawPeer, sql: string): Promise<RawMessage[]> {
  peer.send(encodeQuery(sql));
  return peer.until('Z');
}

function errorOf(messages: readonly RawMessage[]): { severity: string; sqlstate: string; message: string } {
  const error = messages.find((m) => m.type === 'E') as RawMessage;
  const { severity, sqlstate, message } = decodeErrorFields(error.frame);
  return { severity, sqlstate, message };
}

/** Whether the time-outs' last look has seen all clients as they are, and idle. */
function seenIdle(proxy: ProxyServer): boolean {
  return [...proxy.clients].every(
    ({ session }) => session.watch.phase === 'idle' && session.watch.answers === session.answers,
  );
}

const OVERDUE = {
  severity: 'ERROR',
  sqlstate: '57014',
  message: 'canceling statement due to statement timeout',
};

async function active(shard: 0 | 1): Promise<number> {
  const rows = await s.onShard<pg.QueryResultRow>(
    shard,
    `SELECT FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`,
  );
  return rows.length;
}

describe('the query time-out', () => {
  it('cancels a statement in the words of PostgreSQL, and the session goes on', async () => {
    const proxy = await proxyWith({ limits: { queryTimeoutMs: 100 } });
    const peer = await login(proxy);
    const messages = await query(peer, 'SELECT pg_sleep(60), name FROM tenants WHERE tenant_id = 150');
    expect(errorOf(messages)).toEqual(OVERDUE);
    await limit(proxy, {});
    expect(types(await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150'))).toBe('TDCZ');
    await limit(proxy, { queryTimeoutMs: 100 });
    peer.send(
      encodeParse('', 'SELECT pg_sleep(60), name FROM tenants WHERE tenant_id = 1'),
      encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] }),
      encodeExecute(''),
      SYNC,
    );
    expect(errorOf(await peer.until('Z'))).toEqual(OVERDUE);
    expect(await active(1)).toBe(0);
    peer.end();
  });

  it('cancels a statement on several shards on all of them', async () => {
    const proxy = await proxyWith({ limits: { queryTimeoutMs: 100 } });
    const peer = await login(proxy);
    await withClient(s.clusters[1].url('shop'), async (c) => {
      await c.query('BEGIN; LOCK TABLE tenants');
      expect(errorOf(await query(peer, 'SELECT name FROM tenants'))).toEqual(OVERDUE);
      expect([await active(0), await active(1)]).toEqual([0, 0]);
    });
    await limit(proxy, {});
    expect(types(await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150'))).toBe('TDCZ');
    peer.end();
  });

  it('holds for one that still waits for a connection', async () => {
    const proxy = await proxyWith({ poolSize: 1 });
    const holder = await login(proxy);
    await query(holder, 'BEGIN');
    await query(holder, 'SELECT name FROM tenants WHERE tenant_id = 150');
    const peer = await login(proxy);
    await limit(proxy, { queryTimeoutMs: 100 });
    expect(errorOf(await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150'))).toEqual(OVERDUE);
    await limit(proxy, {});
    await query(holder, 'COMMIT');
    expect(types(await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150'))).toBe('TDCZ');
    peer.end();
    holder.end();
  });

  it('fails the transaction it hits, as PostgreSQL does', async () => {
    const proxy = await proxyWith({});
    const peer = await login(proxy);
    await query(peer, 'BEGIN');
    await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150');
    await limit(proxy, { queryTimeoutMs: 100 });
    const messages = await query(peer, 'SELECT pg_sleep(60)');
    expect(errorOf(messages)).toEqual(OVERDUE);
    await limit(proxy, {});
    expect(messages.at(-1)?.body.toString()).toBe('E');
    expect(errorOf(await query(peer, 'SELECT 1')).sqlstate).toBe('25P02');
    peer.end();
  });
});

describe('a session that does nothing', () => {
  it('ends with 57P05', async () => {
    const proxy = await proxyWith({});
    const peer = await login(proxy);
    await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150');
    await limit(proxy, { idleTimeoutMs: 100 });
    expect(errorOf([await peer.expect('E')])).toEqual({
      severity: 'FATAL',
      sqlstate: '57P05',
      message: 'terminating connection due to idle-session timeout',
    });
    await peer.expectClose();
  });

  it('ends with 25P03 inside a transaction, which is rolled back', async () => {
    const proxy = await proxyWith({});
    const bystander = await login(proxy);
    const peer = await login(proxy);
    await query(peer, 'BEGIN');
    await query(peer, `INSERT INTO orders VALUES (150, 77, 'a')`);
    await limit(proxy, { idleInTransactionTimeoutMs: 100 });
    expect(errorOf([await peer.expect('E')])).toEqual({
      severity: 'FATAL',
      sqlstate: '25P03',
      message: 'terminating connection due to idle-in-transaction timeout',
    });
    await peer.expectClose();
    await waitFor(async () => (await active(1)) === 0, { what: 'the rollback' });
    // Only who is in a transaction.
    expect(types(await query(bystander, 'SELECT note FROM orders WHERE tenant_id = 150'))).toBe('TCZ');
    bystander.end();
  });

  it('ends with 25P03 also when no server has heard of its transaction', async () => {
    const proxy = await proxyWith({});
    const peer = await login(proxy);
    await query(peer, 'BEGIN');
    await limit(proxy, { idleInTransactionTimeoutMs: 100 });
    expect(errorOf([await peer.expect('E')]).sqlstate).toBe('25P03');
    await peer.expectClose();
  });
});

describe('the transaction time-out', () => {
  it('ends the session with 25P04, in the middle of a statement too', async () => {
    const proxy = await proxyWith({ limits: { transactionTimeoutMs: 100 } });
    const peer = await login(proxy);
    peer.send(encodeQuery('SELECT pg_sleep(60), name FROM tenants WHERE tenant_id = 150'));
    expect(errorOf([await peer.expect('E')])).toEqual({
      severity: 'FATAL',
      sqlstate: '25P04',
      message: 'terminating connection due to transaction timeout',
    });
    await peer.expectClose();
    await waitFor(async () => (await active(1)) === 0, { what: 'the cancel' });
    await limit(proxy, {});
    const other = await login(proxy);
    await query(other, 'BEGIN');
    await query(other, `INSERT INTO orders VALUES (150, 78, 'a')`);
    await limit(proxy, { transactionTimeoutMs: 100 });
    expect(errorOf([await other.expect('E')]).sqlstate).toBe('25P04');
  });

  it('begins anew with each transaction', async () => {
    const proxy = await proxyWith({ limits: { transactionTimeoutMs: 2000 } });
    const peer = await login(proxy);
    const until = performance.now() + 2500;
    while (performance.now() < until) {
      expect(types(await query(peer, 'BEGIN'))).toBe('CZ');
      expect(types(await query(peer, 'SELECT name FROM tenants WHERE tenant_id = 150'))).toBe('TDCZ');
      expect(types(await query(peer, 'COMMIT'))).toBe('CZ');
    }
    peer.end();
  });
});

describe('who waits long for a connection', () => {
  it('is told so once, and is served', async () => {
    const proxy = await proxyWith({ poolSize: 1, pool: { queueNoticeMs: 20, queueTimeoutMs: 60_000 } });
    const holder = await login(proxy);
    await query(holder, 'BEGIN');
    await query(holder, 'SELECT name FROM tenants WHERE tenant_id = 150');
    const peer = await login(proxy);
    peer.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
    const notice = decodeErrorFields((await peer.expect('N')).frame);
    expect(notice).toMatchObject({ severity: 'NOTICE', message: 'waiting for a server connection to shard "s2"' });
    await query(holder, 'COMMIT');
    expect(types(await peer.until('Z'))).toBe('TDCZ');
    peer.end();
    holder.end();
  });
});

describe('no time-out', () => {
  it('hits a client whose question the proxy had no time to read', async () => {
    const proxy = await proxyWith({});
    const peer = await login(proxy);
    await limit(proxy, { idleTimeoutMs: 400 });
    for (let n = 0; n < 3; n++) {
      await waitFor(() => seenIdle(proxy), { what: 'the client to be seen idle' });
      const until = performance.now() + 600;
      peer.send(encodeQuery('SELECT 1'));
      while (performance.now() < until); // the proxy is of this process
      expect(types(await peer.until('Z'))).toBe('TDCZ');
    }
    peer.end();
  });

  it('hits a client that is within its limits', async () => {
    const proxy = await proxyWith({
      limits: {
        queryTimeoutMs: 5000,
        idleTimeoutMs: 5000,
        idleInTransactionTimeoutMs: 5000,
        transactionTimeoutMs: 5000,
      },
    });
    const peer = await login(proxy);
    expect(types(await query(peer, 'SELECT pg_sleep(0.1), name FROM tenants WHERE tenant_id = 150'))).toBe('TDCZ');
    peer.end();
  });
});
