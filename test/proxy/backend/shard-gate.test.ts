import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import type { Backend } from '../../../proxy/backend/backend.js';
import { Pool } from '../../../proxy/backend/pool.js';
import type { PoolOptions } from '../../../proxy/backend/pool-options.js';
import { ServerConnection } from '../../../proxy/backend/server-connection.js';
import { ShardGate } from '../../../proxy/backend/shard-gate.js';
import { encodeQuery } from '../../../proxy/wire/frontend.js';
import { ForeshardError } from '../../../topology/errors.js';
import type { ShardName } from '../../../topology/topology.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let cluster: EmbeddedCluster;
const never = new AbortController().signal;
const gates: ShardGate[] = [];
const pools: Pool[] = [];

beforeAll(async () => {
  cluster = await startTestCluster();
});
afterAll(() => {
  for (const pool of pools) pool.close();
  for (const gate of gates) gate.close();
});

function connect(): Promise<ServerConnection> {
  const url = new URL(cluster.url('postgres'));
  return ServerConnection.connect({
    shard: 's1',
    host: url.hostname,
    port: Number(url.port),
    user: 'postgres',
    database: 'postgres',
    auth: { password: decodeURIComponent(url.password) },
  });
}

/** Pools of one shard, for as many users. */
function shard(
  users: number,
  options: Partial<PoolOptions>,
  open: () => Promise<ServerConnection> = connect,
): { gate: ShardGate; pools: readonly Pool[] } {
  const all: PoolOptions = { size: 4, idleTimeoutMs: 60_000, queueTimeoutMs: 10_000, ...options };
  const gate = new ShardGate(all);
  gates.push(gate);
  const made = Array.from({ length: users }, (_, i) => new Pool('s1' as ShardName, `user${i}`, all, open, gate));
  pools.push(...made);
  return { gate, pools: made };
}

function only<T>(items: readonly T[]): T {
  return items[0] as T;
}

/** Whether a promise is settled, without waiting for it. */
function watch(promise: Promise<unknown>): { done: boolean } {
  const state = { done: false };
  const end = () => {
    state.done = true;
  };
  promise.then(end, end);
  return state;
}

/** All that is due in this turn and the next has happened. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(() => setImmediate(resolve));
  });
}

const works = (backend: Backend) => backend.runInternal(encodeQuery('SELECT 1'));

describe('a shard that is paused', () => {
  it('waits for what is in use, closes it, and starts nothing until it resumes', async () => {
    const { gate, pools } = shard(1, {});
    const pool = only(pools);
    const held = await pool.acquire(never);
    const unused = await pool.acquire(never);
    pool.release(unused);
    const paused = watch(gate.pause());
    expect(pool.counts).toEqual({ open: 1, inUse: 1, waiting: 0 });
    const waiting = pool.acquire(never);
    const waits = watch(waiting);
    await turn();
    expect([paused.done, waits.done]).toEqual([false, false]);
    pool.release(held);
    await waitFor(() => paused.done, { what: 'the pause' });
    expect(pool.counts).toEqual({ open: 0, inUse: 0, waiting: 1 });
    gate.resume();
    const backend = await waiting;
    await works(backend);
    pool.release(backend);
  });

  it('is left by RESUME before it is reached', async () => {
    const { gate, pools } = shard(1, {});
    const held = await only(pools).acquire(never);
    const paused = gate.pause();
    gate.resume();
    await paused;
    only(pools).release(held);
    expect(only(pools).counts).toEqual({ open: 1, inUse: 0, waiting: 0 });
  });

  it('has lost every connection after KILL', async () => {
    const { gate, pools } = shard(1, {});
    const pool = only(pools);
    const held = await pool.acquire(never);
    pool.release(await pool.acquire(never));
    gate.kill();
    await expect(works(held)).rejects.toMatchObject({ sqlstate: '08006' });
    pool.release(held);
    expect(pool.counts).toEqual({ open: 0, inUse: 0, waiting: 0 });
    const waiting = pool.acquire(never);
    gate.resume();
    pool.release(await waiting);
  });
});

describe('RECONNECT', () => {
  it('closes unused connections at once and others when they are given back', async () => {
    const { gate, pools } = shard(1, {});
    const pool = only(pools);
    const held = await pool.acquire(never);
    pool.release(await pool.acquire(never));
    gate.reconnect();
    expect(pool.counts).toEqual({ open: 1, inUse: 1, waiting: 0 });
    const closed = watch(gate.closed());
    const fresh = await pool.acquire(never);
    await works(held); // what is in use goes on
    expect(closed.done).toBe(false);
    pool.release(held);
    pool.release(fresh);
    await waitFor(() => closed.done, { what: 'the old connections to be closed' });
    expect(await pool.acquire(never)).toBe(fresh);
  });
});

describe('the limit of a shard', () => {
  it('closes an unused connection of another user to make room', async () => {
    const { pools } = shard(2, { maxPerShard: 2 });
    const [a, b] = pools as [Pool, Pool];
    const one = await a.acquire(never);
    const two = await a.acquire(never);
    a.release(one);
    a.release(two);
    const other = await b.acquire(never);
    await works(other);
    expect([a.counts.open, b.counts.open]).toEqual([1, 1]);
    b.release(other);
  });

  it('gives the place of a connection to the user who asked first and has fewer', async () => {
    const { pools } = shard(2, { maxPerShard: 2 });
    const [a, b] = pools as [Pool, Pool];
    const held = [await a.acquire(never), await a.acquire(never)];
    const other = b.acquire(never);
    const behind = a.acquire(never);
    a.release(held[0] as Backend);
    await works(await other);
    expect([a.counts, b.counts]).toEqual([
      { open: 1, inUse: 1, waiting: 1 },
      { open: 1, inUse: 1, waiting: 0 },
    ]);
    // Each has its share now: whoever gives back serves its own.
    a.release(held[1] as Backend);
    expect(await behind).toBe(held[1]);
  });

  it('opens no more connections at a time than it may', async () => {
    let opening = 0;
    let most = 0;
    const { pools } = shard(1, { maxConnecting: 2 }, async () => {
      opening += 1;
      most = Math.max(most, opening);
      const connection = await connect();
      opening -= 1;
      return connection;
    });
    await Promise.all([1, 2, 3, 4].map(() => only(pools).acquire(never)));
    expect(most).toBe(2);
  });
});

describe('the age of connections', () => {
  it('closes one that is too old when it is given back', async () => {
    const { pools } = shard(1, { lifetimeMs: 1 });
    const pool = only(pools);
    const backend = await pool.acquire(never);
    await works(backend); // older than that by now, or closed by the next look
    await waitFor(() => performance.now() - backend.connectedAt > 1, { what: 'its time' });
    pool.release(backend);
    expect(pool.counts.open).toBe(0);
  });
});

describe('a connection unused for long', () => {
  it('is asked for a sign of life first', async () => {
    const { pools } = shard(1, { healthCheckMs: 1, size: 1 });
    const pool = only(pools);
    const backend = await pool.acquire(never);
    pool.release(backend);
    await waitFor(() => pool.status.svUsed === 1, { what: 'the connection to be unused for long' });
    const again = pool.acquire(never);
    expect(pool.status).toMatchObject({ svTested: 1, clWaiting: 1, svIdle: 0 });
    expect(await again).toBe(backend);
    pool.release(backend);
  });

  it('is replaced when it gives none', async () => {
    const { pools } = shard(1, { healthCheckMs: 1, connectTimeoutMs: 200 });
    const pool = only(pools);
    const backend = await pool.acquire(never);
    // Nothing of what the server says arrives, as behind a firewall that has forgotten the connection.
    pool.release(backend);
    backend.connection.pause();
    await waitFor(() => pool.status.svUsed === 1, { what: 'the connection to be unused for long' });
    const other = await pool.acquire(never);
    expect(other).not.toBe(backend);
    await works(other);
    pool.release(other);
    expect(pool.counts.open).toBe(1);
  });
});

describe('a shard that is away', () => {
  const refused = () => Promise.reject(new ForeshardError('08001', 'connection refused'));

  it('is waited for, and served when it is back', async () => {
    let attempts = 0;
    const { pools } = shard(1, { connectRetryMs: 60_000 }, () => {
      attempts += 1;
      return attempts < 3 ? refused() : connect();
    });
    const [a, b] = await Promise.all([only(pools).acquire(never), only(pools).acquire(never)]);
    expect(attempts).toBeGreaterThan(3);
    await works(a as Backend);
    await works(b as Backend);
  });

  it('is not waited for any more after its time, and then told of at once', async () => {
    let attempts = 0;
    const { pools } = shard(1, { connectRetryMs: 0 }, () => {
      attempts += 1;
      return refused();
    });
    const pool = only(pools);
    await expect(pool.acquire(never)).rejects.toMatchObject({ sqlstate: '08001' });
    await expect(pool.acquire(never)).rejects.toMatchObject({ sqlstate: '08001' });
    expect(attempts).toBe(1);
    expect(pool.counts).toEqual({ open: 0, inUse: 0, waiting: 0 });
  });

  it('does not keep those from waiting who may get a connection that exists', async () => {
    let attempts = 0;
    const { pools } = shard(1, { connectRetryMs: 0 }, () => {
      attempts += 1;
      return attempts === 1 ? connect() : refused();
    });
    const pool = only(pools);
    const held = await pool.acquire(never);
    const waiting = pool.acquire(never);
    await waitFor(() => attempts > 1, { what: 'a failed attempt' });
    await turn();
    pool.release(held);
    expect(await waiting).toBe(held);
  });
});

describe('a long wait', () => {
  it('is told of once', async () => {
    const { pools } = shard(1, { size: 1, queueNoticeMs: 20, queueTimeoutMs: 200 });
    const pool = only(pools);
    const held = await pool.acquire(never);
    let told = 0;
    const waiting = pool.acquire(never, () => {
      told += 1;
    });
    expect(pool.status.maxWaitMs).toBeGreaterThanOrEqual(0);
    await expect(waiting).rejects.toMatchObject({ sqlstate: '53300' });
    expect(told).toBe(1);
    pool.release(held);
    expect(pool.totals.waitTimeMs).toBeGreaterThanOrEqual(200);
  });
});

describe('what is counted', () => {
  it('is transactions and queries of clients, and bytes, also of connections that are gone', async () => {
    const { pools } = shard(1, {});
    const pool = only(pools);
    const backend = await pool.acquire(never);
    const run = (sql: string) =>
      new Promise<void>((resolve) => {
        backend.send(encodeQuery(sql), { kind: 'query', internal: false, done: resolve });
      });
    await works(backend);
    for (const sql of ['BEGIN', 'SELECT 1', 'COMMIT', 'SELECT 2']) await run(sql);
    pool.release(backend);
    expect(pool.totals).toMatchObject({ xactCount: 2, queryCount: 4 });
    const before = pool.totals;
    expect(before.sent).toBeGreaterThan(before.received);
    pool.closeUnused();
    expect(pool.totals.sent).toBeGreaterThanOrEqual(before.sent);
  });
});
