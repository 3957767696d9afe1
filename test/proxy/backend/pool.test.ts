import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { Pool } from '../../../proxy/backend/pool.js';
import { ServerConnection } from '../../../proxy/backend/server-connection.js';
import { encodeQuery } from '../../../proxy/wire/frontend.js';
import type { ShardName } from '../../../topology/topology.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

let cluster: EmbeddedCluster;
const shard = 's1' as ShardName;
const never = new AbortController().signal;

beforeAll(async () => {
  cluster = await startTestCluster();
});

const pools: Pool[] = [];
afterAll(() => {
  for (const pool of pools) pool.close();
});

function poolOf(
  size: number,
  options: { queueTimeoutMs?: number; idleTimeoutMs?: number; password?: string } = {},
): Pool {
  const url = new URL(cluster.url('postgres'));
  const pool = new Pool(
    shard,
    decodeURIComponent(url.username),
    { size, idleTimeoutMs: options.idleTimeoutMs ?? 60_000, queueTimeoutMs: options.queueTimeoutMs ?? 5000 },
    () =>
      ServerConnection.connect({
        shard,
        host: url.hostname,
        port: Number(url.port),
        user: 'postgres',
        database: 'postgres',
        auth: { password: options.password ?? decodeURIComponent(url.password) },
      }),
  );
  pools.push(pool);
  return pool;
}

describe('Pool', () => {
  it('gives the connection used last, and opens no more than its size', async () => {
    const pool = poolOf(2);
    const [a, b] = await Promise.all([pool.acquire(never), pool.acquire(never)]);
    const third = pool.acquire(never);
    expect(pool.counts).toEqual({ open: 2, inUse: 2, waiting: 1 });
    pool.release(b);
    expect(await third).toBe(b);
    pool.release(a);
    pool.release(b);
    expect(await pool.acquire(never)).toBe(b);
    pool.release(b);
    expect(pool.counts).toEqual({ open: 2, inUse: 0, waiting: 0 });
  });

  it('serves in the order of asking', async () => {
    const pool = poolOf(1);
    const first = await pool.acquire(never);
    const order: number[] = [];
    const all = [1, 2, 3].map(async (n) => {
      const backend = await pool.acquire(never);
      order.push(n);
      pool.release(backend);
    });
    pool.release(first);
    await Promise.all(all);
    expect(order).toEqual([1, 2, 3]);
  });

  it('tells who waits too long 53300, and who leaves its own reason; the place goes to the next', async () => {
    const pool = poolOf(1, { queueTimeoutMs: 100 });
    const held = await pool.acquire(never);
    const leaving = new AbortController();
    const left = pool.acquire(leaving.signal);
    const late = pool.acquire(never);
    leaving.abort(new Error('left'));
    await expect(left).rejects.toThrow('left');
    await expect(late).rejects.toMatchObject({ sqlstate: '53300' });
    expect(pool.counts.waiting).toBe(0);
    const next = pool.acquire(never);
    pool.release(held);
    pool.release(await next);
    expect(pool.counts).toEqual({ open: 1, inUse: 0, waiting: 0 });
  });

  it('replaces a connection that is not fit for the next client', async () => {
    const pool = poolOf(1);
    const backend = await pool.acquire(never);
    await backend.runInternal(encodeQuery('BEGIN'));
    const next = pool.acquire(never);
    pool.release(backend);
    const other = await next;
    expect(other).not.toBe(backend);
    await other.runInternal(encodeQuery('SELECT 1'));
    pool.release(other);
    expect(pool.counts).toEqual({ open: 1, inUse: 0, waiting: 0 });
  });

  it('forgets a connection that dies unused, and closes those that stay unused', async () => {
    const pool = poolOf(3, { idleTimeoutMs: 300 });
    const backend = await pool.acquire(never);
    pool.release(backend);
    await withClient(cluster.url('postgres'), (c) =>
      c.query('SELECT pg_terminate_backend($1)', [backend.connection.processId]),
    );
    await waitFor(() => pool.counts.open === 0, { what: 'the dead connection to be forgotten' });
    pool.release(await pool.acquire(never));
    expect(pool.counts.open).toBe(1);
    await waitFor(() => pool.counts.open === 0, { what: 'the unused connection to be closed' });
  });

  it('tells everyone who waits why there is no connection, and tries again for the next', async () => {
    const wrong = poolOf(2, { password: 'wrong' });
    const results = await Promise.allSettled([1, 2, 3, 4].map(() => wrong.acquire(never)));
    for (const r of results) expect(r).toMatchObject({ status: 'rejected', reason: { sqlstate: '28P01' } });
    expect(wrong.counts).toEqual({ open: 0, inUse: 0, waiting: 0 });
  });

  it('lets nobody wait when it closes', async () => {
    const pool = poolOf(1);
    await pool.acquire(never);
    const waiting = pool.acquire(never);
    pool.close();
    await expect(waiting).rejects.toMatchObject({ sqlstate: '57P01' });
    await expect(pool.acquire(never)).rejects.toMatchObject({ sqlstate: '57P01' });
  });

  it('rejects what is asked of a connection that is lost', async () => {
    const pool = poolOf(1);
    const backend = await pool.acquire(never);
    await withClient(cluster.url('postgres'), (c) =>
      c.query('SELECT pg_terminate_backend($1)', [backend.connection.processId]),
    );
    await waitFor(() => backend.lost !== null, { what: 'the loss' });
    await expect(backend.runInternal(encodeQuery('SELECT 1'))).rejects.toMatchObject({ sqlstate: '08006' });
    pool.discard(backend);
    expect(pool.counts.open).toBe(0);
  });
});
