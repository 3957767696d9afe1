import pg from 'pg';
import pino from 'pino';
import { ProxyServer } from '../../proxy/proxy-server.js';
import { decodeErrorFields } from '../../proxy/wire/error-response.js';
import { encodeBind } from '../../proxy/wire/frontend.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import type { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// What the tests of faults share: a shop of which each of two shards has one tenant, and who is at work there.

export const POOL_OF_ONE = { size: 1, idleTimeoutMs: 60_000, connectTimeoutMs: 5000, queueTimeoutMs: 60_000 };

export const ADD = `INSERT INTO orders VALUES (150, 1, 'a')`;

/** Tenant 1 on the first shard, 150 on the second, and nothing else. */
export async function twoTenants(s: Sharded): Promise<void> {
  await untilQuiet(s);
  for (const shard of [0, 1] as const) await s.onShard(shard, 'TRUNCATE tenants, orders, items, settings CASCADE');
  await s.onShard(0, `INSERT INTO tenants VALUES (1, 't1')`);
  await s.onShard(1, `INSERT INTO tenants VALUES (150, 't150')`);
}

/** The same, with an order of each: `note` has these. */
export async function twoOrders(s: Sharded, notes: readonly [string, string] = ['a', 'a']): Promise<void> {
  await twoTenants(s);
  await s.onShard(0, 'INSERT INTO orders VALUES (1, 1, $1)', [notes[0]]);
  await s.onShard(1, 'INSERT INTO orders VALUES (150, 1, $1)', [notes[1]]);
}

/** Somebody past the proxy, who waits for nobody. */
export async function directTo(s: Sharded, shard: 0 | 1): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: s.clusters[shard].url('shop') });
  client.on('error', () => undefined); // told to whoever waits for an answer
  await client.connect();
  return client;
}

/** Somebody past the proxy, in a transaction that is under way. */
export async function holder(s: Sharded, shard: 0 | 1, sql: string): Promise<pg.Client> {
  const client = await directTo(s, shard);
  await client.query(`BEGIN; ${sql}`);
  return client;
}

/** Somebody waits for a lock. @param who of pg_stat_activity @returns its process */
export async function untilWaiting(s: Sharded, shard: 0 | 1, who = `usename = 'app'`): Promise<number> {
  const sql = `SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND ${who}`;
  const { pid } = await waitFor(async () => (await s.onShard<{ pid: number }>(shard, sql))[0], {
    what: `${who} to wait for a lock`,
  });
  return pid;
}

export function loginAt(port: number): Promise<RawPeer> {
  return RawPeer.login(port, { user: 'app', password: 'secret', database: 'shop' });
}

/** A further proxy, on the same shards. */
export function proxyOn(
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

export async function connectTo(proxy: ProxyServer): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: `postgres://app:secret@127.0.0.1:${proxy.port}/shop` });
  client.on('error', () => undefined); // told to whoever waits for an answer
  await client.connect();
  return client;
}

interface Activity extends pg.QueryResultRow {
  readonly pid: number;
  readonly state: string;
}

export async function activity(s: Sharded, shard: 0 | 1): Promise<Activity[]> {
  return s.onShard<Activity>(shard, `SELECT pid, state FROM pg_stat_activity WHERE usename = 'app'`);
}

/** No server connection runs anything or has a transaction open. */
export async function untilQuiet(s: Sharded): Promise<void> {
  await waitFor(async () => [...(await activity(s, 0)), ...(await activity(s, 1))].every((a) => a.state === 'idle'), {
    what: 'the end of all work on the shards',
  });
}

export function errorsIn(messages: readonly RawMessage[]): string[] {
  return messages
    .filter((m) => m.type === 'E')
    .map((m) => decodeErrorFields(m.frame))
    .map((e) => `${e.severity} ${e.sqlstate}`);
}

export const bind = (...values: string[]) =>
  encodeBind({ portal: '', statement: '', formats: [], values: values.map((v) => Buffer.from(v)), resultFormats: [] });
