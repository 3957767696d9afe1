import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Catalog } from '../../topology/catalog/catalog.js';
import {
  createHold,
  dropHold,
  epochAckedByAll,
  holdStatus,
  liveProxies,
  ProxyLeases,
} from '../../topology/catalog/leases.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { raiseSchemaGeneration, schemaHeardByAll } from '../../topology/catalog/schema-generation.js';
import type { Epoch, Keyspace, KeyspaceName } from '../../topology/topology.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';

const HOUR_MS = 3_600_000;
const FIRST = { ttlMs: HOUR_MS, epochAcked: 1n as Epoch, schemaHeard: 0n };

let catalog: Catalog;
let leases: ProxyLeases;
let keyspace: Keyspace;

beforeAll(async () => {
  const cluster = await startTestCluster();
  const pool = Catalog.pool(cluster.url());
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(cluster.url());
  leases = new ProxyLeases(catalog.pool);
  await catalog.pool.query(`INSERT INTO foreshard.shard (name, url, home) VALUES ('one', 'postgres://x/1', true);
    INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('tenants', 'range', '{int8}');
    INSERT INTO foreshard.range (keyspace, shard) VALUES ('tenants', 'one')`);
  keyspace = (await catalog.loadTopology()).keyspaces.get('tenants' as KeyspaceName) as Keyspace;
});

beforeEach(async () => {
  await catalog.pool.query('DELETE FROM foreshard.proxy; DELETE FROM foreshard.hold');
});

afterAll(async () => {
  await catalog?.close();
});

async function register(ttlMs = HOUR_MS, epochAcked = 1n): Promise<string> {
  const id = randomUUID();
  await leases.register({
    id,
    name: `proxy ${id}`,
    listen: '127.0.0.1:6432',
    ttlMs,
    epochAcked: epochAcked as Epoch,
    schemaHeard: 0n,
  });
  return id;
}

async function hold(deadlineMs = HOUR_MS): Promise<bigint> {
  return createHold(catalog.pool, {
    migrationId: 1n,
    keyspace,
    lo: [10n],
    hi: null,
    referenceTables: false,
    deadlineMs,
  });
}

const waiting = async (holdId: bigint): Promise<string[]> =>
  (await holdStatus(catalog.pool, holdId)).waitingFor.map((proxy) => proxy.id).sort();

describe('a hold', () => {
  it('waits for every live proxy, also for one that came later, until each has acknowledged', async () => {
    const first = await register();
    const id = await hold();
    const second = await register();
    expect(await waiting(id)).toEqual([first, second].sort());
    expect(await leases.ackHold(id, first)).toBe(true);
    expect(await leases.ackHold(id, first)).toBe(true);
    expect(await waiting(id)).toEqual([second]);
    await leases.unregister(second);
    expect(await waiting(id)).toEqual([]);
    expect((await holdStatus(catalog.pool, id)).remainingMs).toBeGreaterThan(HOUR_MS - 60_000);
  });

  it('does not wait for a proxy whose lease has ended, and voids what it had acknowledged', async () => {
    const id = await hold();
    const proxy = await register(1);
    await waitFor(async () => (await waiting(id)).length === 0, { what: 'the lease to end' });
    expect(await leases.ackHold(id, proxy)).toBe(false);
    expect(await leases.renew(proxy, FIRST)).toBeNull();

    await leases.register({ id: proxy, name: 'p', listen: 'l', ...FIRST });
    expect(await leases.ackHold(id, proxy)).toBe(true);
    await leases.register({ id: proxy, name: 'p', listen: 'l', ...FIRST });
    expect(await waiting(id)).toEqual([proxy]);
  });

  it('that goes while a proxy acknowledges it is gone', async () => {
    const id = await hold();
    const proxy = await register();
    const migrator = await catalog.pool.connect();
    try {
      await migrator.query('BEGIN');
      await dropHold(migrator, id);
      const acknowledged = leases.ackHold(id, proxy);
      const waits = `SELECT FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()`;
      await waitFor(async () => (await migrator.query(waits)).rowCount === 1, { what: 'the proxy to wait' });
      await migrator.query('COMMIT');
      expect(await acknowledged).toBe(false);
    } finally {
      migrator.release();
    }
  });

  it('is in the topology until its deadline or its end', async () => {
    const id = await hold(60_000);
    expect((await catalog.loadTopology()).holds).toMatchObject([{ id, keyspace: 'tenants', lo: [10n], hi: null }]);

    const short = await hold(1);
    await waitFor(async () => (await holdStatus(catalog.pool, short)).remainingMs === 0, { what: 'the deadline' });
    expect((await catalog.loadTopology()).holds.map((h) => h.id)).toEqual([id]);

    await dropHold(catalog.pool, id);
    await dropHold(catalog.pool, id);
    expect(await holdStatus(catalog.pool, id)).toEqual({ remainingMs: 0, waitingFor: [] });
    expect(await leases.ackHold(id, await register())).toBe(false);
  });
});

describe('an epoch', () => {
  it('is acknowledged when every live proxy has renewed with it; an acknowledgement is not taken back', async () => {
    const [a, b] = [await register(), await register()];
    const epoch = 5n as Epoch;
    expect(await epochAckedByAll(catalog.pool, epoch)).toBe(false);
    const renewed = await leases.renew(a, { ttlMs: 10_000, epochAcked: epoch, schemaHeard: 0n });
    const remaining = renewed?.remainingMs;
    expect(remaining).toBeGreaterThan(5000);
    expect(remaining).toBeLessThanOrEqual(10_000);
    expect(await epochAckedByAll(catalog.pool, epoch)).toBe(false);
    await leases.renew(a, { ...FIRST, epochAcked: 4n as Epoch });
    await leases.renew(b, { ...FIRST, epochAcked: 6n as Epoch });
    expect(await epochAckedByAll(catalog.pool, epoch)).toBe(true);
    expect((await liveProxies(catalog.pool)).map((p) => p.epochAcked).sort()).toEqual([5n, 6n]);
    await leases.unregister(a);
    await leases.unregister(b);
    expect(await epochAckedByAll(catalog.pool, 99n as Epoch)).toBe(true);
  });
});

describe('a generation of the schema', () => {
  it('is heard by all when every live proxy has said so, and those that come know it; a renewal says which one there is', async () => {
    // The one that asks does not wait for itself.
    const [a, b, c] = [await register(), await register(), await register()];
    const generation = await raiseSchemaGeneration(catalog.pool);
    expect((await catalog.loadTopology()).schemaGeneration).toBe(generation);
    expect((await leases.renew(a, { ...FIRST, schemaHeard: generation - 1n }))?.schemaGeneration).toBe(generation);
    expect(await schemaHeardByAll(catalog.pool, generation, c)).toBe(false);
    await leases.renew(a, { ...FIRST, schemaHeard: generation });
    expect(await schemaHeardByAll(catalog.pool, generation, c)).toBe(false);
    await leases.renew(b, { ...FIRST, schemaHeard: generation + 1n });
    expect(await schemaHeardByAll(catalog.pool, generation, c)).toBe(true);
    expect(await schemaHeardByAll(catalog.pool, generation + 1n, c)).toBe(false);
    await leases.unregister(a);
    expect(await schemaHeardByAll(catalog.pool, generation + 1n, c)).toBe(true);
    await leases.unregister(b);
    await leases.unregister(c);
  });
});
