import type pg from 'pg';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { LiveTopology, type LiveTopologyOptions } from '../../proxy/live-topology.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import type { Topology } from '../../topology/topology.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';

let catalog: Catalog;

beforeAll(async () => {
  const cluster = await startTestCluster();
  const pool = Catalog.pool(cluster.url());
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(cluster.url());
  await catalog.pool.query(`INSERT INTO foreshard.shard (name, url, home) VALUES ('one', 'postgres://x/1', true);
    INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('tenants', 'range', '{int8}');
    INSERT INTO foreshard.range (keyspace, shard) VALUES ('tenants', 'one')`);
});
afterAll(() => catalog.close());

const TTL_MS = 1000;
/** Of a lease that is not renewed while a test runs, but for a reason. */
const LONG = { leaseTtlMs: 3_600_000 };

async function start(options: Partial<LiveTopologyOptions> = {}): Promise<LiveTopology> {
  return LiveTopology.start({
    catalog,
    name: 'one',
    listen: '',
    leaseTtlMs: TTL_MS,
    answerTimeoutMs: 10_000,
    logger: pino({ level: 'silent' }),
    uses: () => false,
    end: () => undefined,
    schemaReady: () => true,
    schemaHeard: () => 0n,
    stale: () => false,
    ...options,
  });
}

/** A transaction of its own that keeps others from a table of the catalog. */
async function lock(table: string, mode: string): Promise<pg.PoolClient> {
  const client = await catalog.pool.connect();
  await client.query(`BEGIN; LOCK TABLE foreshard.${table} IN ${mode} MODE`);
  return client;
}

it('stops before the catalog takes its lease for ended, also by a clock that runs more slowly', async () => {
  // One that stands still: the lease is what was granted, whenever it is renewed.
  const clock = vi.spyOn(performance, 'now').mockReturnValue(performance.now());
  const live = await start();
  try {
    const asked = performance.now();
    expect(live.mayServe).toBe(true);
    // When the catalog has counted all of it, a clock that is slower by 1.9 % is here.
    clock.mockReturnValue(asked + TTL_MS * 0.981);
    expect(live.mayServe).toBe(false);
    clock.mockReturnValue(asked + TTL_MS * 0.97);
    expect(live.mayServe).toBe(true);
  } finally {
    clock.mockRestore();
    await live.close();
  }
});

it('serves again only when what happened without it has been read, whoever else renews the lease meanwhile', async () => {
  let renewals = 0;
  let heard = 0n;
  const stale = () => {
    renewals += 1;
    return false;
  };
  const live = await start({ stale, schemaHeard: () => heard });
  try {
    const proxies = await lock('proxy', 'EXCLUSIVE');
    await waitFor(
      async () => {
        const { rows } = await proxies.query('SELECT lease_until < clock_timestamp() AS over FROM foreshard.proxy');
        return rows[0]?.over === true && !live.mayServe;
      },
      { what: 'the end of the lease' },
    );
    // A flip, while the proxy has no lease. It can register, but not yet read.
    const flip = await lock('range', 'ACCESS EXCLUSIVE');
    await flip.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    await proxies.query('ROLLBACK');
    proxies.release();
    const registered = async () =>
      ((await catalog.pool.query('SELECT FROM foreshard.proxy WHERE lease_until > clock_timestamp()')).rowCount ?? 0) >
      0;
    await waitFor(registered, { what: 'the registration' });
    const before = renewals;
    const epoch = live.current.epoch;
    // The schema view has news for the catalog.
    heard = 1n;
    live.tellHeard();
    if (renewals > before) await waitFor(() => live.mayServe, { what: 'the lease that another renewal has got' });
    expect(live.mayServe).toBe(false);
    await flip.query('COMMIT');
    flip.release();
    await waitFor(() => live.mayServe, { what: 'the lease' });
    expect(live.current.epoch).toBe(epoch + 1n);
  } finally {
    await live.close();
  }
});

it('acknowledges a hold once more when its lease had ended meanwhile, which voids what it had acknowledged', async () => {
  const { pool } = catalog;
  const live = await start();
  try {
    const { rows } = await pool.query<{
      id: string;
    }>(`INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline)
      VALUES (1, 'tenants', false, clock_timestamp() + interval '1 hour') RETURNING id`);
    const hold = rows[0]?.id;
    await live.reload();
    const acknowledged = async () =>
      (await pool.query('SELECT FROM foreshard.hold_ack WHERE hold_id = $1 AND proxy_id = $2', [hold, live.id]))
        .rowCount === 1;
    await waitFor(acknowledged, { what: 'the acknowledgement' });
    const { era } = live;
    await pool.query("UPDATE foreshard.proxy SET lease_until = clock_timestamp() - interval '1 s' WHERE id = $1", [
      live.id,
    ]);
    // Nobody had waited for what was under way.
    await waitFor(() => live.era > era, { what: 'the end of the lease to be noticed' });
    await waitFor(acknowledged, { what: 'the acknowledgement after that' });
  } finally {
    await live.close();
    await pool.query('DELETE FROM foreshard.hold');
  }
});

/** The epoch that the catalog takes the proxy to have got to. */
const acked = async (live: LiveTopology) =>
  BigInt(
    (await catalog.pool.query('SELECT epoch_acked FROM foreshard.proxy WHERE id = $1', [live.id])).rows[0].epoch_acked,
  );
const raise = (by: number) => catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + $1', [by]);

it('serves what has come to be between its first look at the catalog and its registration', async () => {
  const proxies = await lock('proxy', 'EXCLUSIVE');
  const started = start(LONG).then((live) => ({ live, epoch: live.current.epoch }));
  const waiting = async (relation: string) =>
    (await catalog.pool.query('SELECT FROM pg_locks WHERE relation = $1::regclass AND NOT granted', [relation]))
      .rowCount;
  await waitFor(() => waiting('foreshard.proxy'), { what: 'its registration' });
  // Nobody has waited for it yet.
  const flip = await lock('range', 'ACCESS EXCLUSIVE');
  await flip.query('UPDATE foreshard.meta SET epoch = epoch + 1');
  const { rows } = await flip.query('SELECT epoch FROM foreshard.meta');
  await proxies.query('ROLLBACK');
  proxies.release();
  await waitFor(() => waiting('foreshard.range'), { what: 'it to look again' });
  await flip.query('COMMIT');
  flip.release();
  const { live, epoch } = await started;
  try {
    expect(epoch).toBe(BigInt(rows[0].epoch));
  } finally {
    await live.close();
  }
});

it('goes back to no older epoch, which a catalog may show that has lost its last words', async () => {
  const live = await start(LONG);
  try {
    const { epoch } = live.current;
    await raise(-1);
    await live.reload();
    expect(live.current.epoch).toBe(epoch);
    await raise(2);
    await live.reload();
    expect(live.current.epoch).toBe(epoch + 1n);
  } finally {
    await live.close();
  }
});

it('acknowledges an epoch before its lease is to be renewed: a migrator waits for that before it removes rows', async () => {
  const live = await start(LONG);
  try {
    const before = live.current.epoch;
    // The first one is acknowledged with what it has heard of the schema.
    for (const by of [1n, 2n]) {
      await raise(1);
      await waitFor(async () => (await acked(live)) === before + by, { what: 'the acknowledgement' });
    }
  } finally {
    await live.close();
  }
});

it('acknowledges no epoch while something runs that was placed by another one, and renews its lease all the same', async () => {
  const live = await start({ stale: () => true });
  try {
    const before = live.current.epoch;
    await raise(1);
    const until = async () =>
      (await catalog.pool.query('SELECT lease_until AS at FROM foreshard.proxy WHERE id = $1', [live.id])).rows[0]
        .at as Date;
    await waitFor(() => live.current.epoch === before + 1n, { what: 'the new epoch' });
    const first = await until();
    await waitFor(async () => (await until()) > first, { what: 'a renewal' });
    expect(await acked(live)).toBe(before);
  } finally {
    await live.close();
  }
});

it('acknowledges a hold as soon as the transaction that it waited for has ended', async () => {
  const { pool } = catalog;
  let busy = true;
  const live = await start({ ...LONG, uses: () => busy });
  try {
    await pool.query(`INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline)
      VALUES (1, 'tenants', false, clock_timestamp() + interval '1 hour')`);
    const acknowledged = async () => (await pool.query('SELECT FROM foreshard.hold_ack')).rowCount === 1;
    const everything = { topology: live.current, touches: [], everything: true, writesReference: false };
    await waitFor(() => !live.admits(everything, null), { what: 'the hold to be heard of' });
    live.released();
    expect(await acknowledged()).toBe(false);
    busy = false;
    live.released();
    // Who looks at it later finds it busy again.
    busy = true;
    await waitFor(acknowledged, { what: 'the acknowledgement' });
  } finally {
    await live.close();
    await pool.query('DELETE FROM foreshard.hold');
  }
});

/** A catalog of which a test says when it has read the topology, and what. */
function readBy(load: (topology: Promise<Topology>) => Promise<Topology>): Pick<LiveTopologyOptions, 'catalog'> {
  return {
    catalog: Object.create(catalog, { loadTopology: { value: () => load(catalog.loadTopology()) } }) as Catalog,
  };
}

const HOLD = `INSERT INTO foreshard.hold (migration_id, keyspace, reference_tables, deadline)
  VALUES (1, 'tenants', false, clock_timestamp() + interval '1 hour')`;
const everythingOf = (live: LiveTopology) => ({
  topology: live.current,
  touches: [],
  everything: true,
  writesReference: false,
});

it('hears of a hold by what announces it, and of its end by the catalog', async () => {
  let reads = 0;
  let silent = false;
  const live = await start({
    ...LONG,
    ...readBy((topology) => {
      reads += 1;
      return silent ? new Promise(() => undefined) : topology;
    }),
  });
  try {
    await waitFor(() => reads >= 2, { what: 'the first read of the watch' });
    silent = true;
    await catalog.pool.query(HOLD);
    const acknowledged = async () => (await catalog.pool.query('SELECT FROM foreshard.hold_ack')).rowCount === 1;
    await waitFor(acknowledged, { what: 'the acknowledgement' });
    expect(live.admits(everythingOf(live), null)).toBe(false);
    expect(live.holds).toMatchObject([{ keyspace: 'tenants', lo: null, hi: null }]);
  } finally {
    await live.close();
    await catalog.pool.query('DELETE FROM foreshard.hold');
  }
});

it('keeps a hold that was announced while an older map was being read, and no longer than the next one', async () => {
  const older: (() => void)[] = [];
  let keeps = false;
  const live = await start({
    ...LONG,
    ...readBy((topology) => {
      if (!keeps) return topology;
      keeps = false;
      return topology.then((read) => new Promise((resolve) => older.push(() => resolve(read))));
    }),
  });
  try {
    keeps = true;
    const reloaded = live.reload();
    await waitFor(() => older.length > 0, { what: 'the map to have been read' });
    await catalog.pool.query(HOLD);
    await waitFor(() => live.holds.length === 1, { what: 'the hold to be heard of' });
    older[0]?.();
    await reloaded;
    expect(live.admits(everythingOf(live), null)).toBe(false);
    await catalog.pool.query('DELETE FROM foreshard.hold');
    await waitFor(() => live.admits(everythingOf(live), null), { what: 'the end of the hold' });
  } finally {
    await live.close();
    await catalog.pool.query('DELETE FROM foreshard.hold');
  }
});

it('asks the catalog for a hold whose bounds are too long to be announced, or that is of another epoch', async () => {
  const { pool } = catalog;
  await pool.query(`INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('names', 'range', '{text}');
    INSERT INTO foreshard.range (keyspace, shard) VALUES ('names', 'one')`);
  const live = await start(LONG);
  try {
    await pool.query(`INSERT INTO foreshard.hold (migration_id, keyspace, lo, reference_tables, deadline)
      VALUES (1, 'names', jsonb_build_array(repeat('x', 8000)), false, clock_timestamp() + interval '1 hour')`);
    await waitFor(() => live.holds.length === 1, { what: 'the hold to be heard of' });
    expect(live.holds[0]?.lo?.[0]?.toString()).toHaveLength(8000);
    await pool.query('DELETE FROM foreshard.hold');
    await waitFor(() => live.holds.length === 0, { what: 'its end' });
    await pool.query(`NOTIFY foreshard_topology, '{"epoch": 1'`); // nothing of ours
    const before = live.current.epoch;
    await pool.query(`UPDATE foreshard.meta SET epoch = epoch + 1; ${HOLD}`);
    await waitFor(() => live.holds.length === 1, { what: 'the other hold to be heard of' });
    expect(live.current.epoch).toBe(before + 1n);
  } finally {
    await live.close();
    await pool.query(
      `DELETE FROM foreshard.hold; DELETE FROM foreshard.range WHERE keyspace = 'names'; DELETE FROM foreshard.keyspace WHERE name = 'names'`,
    );
  }
});

it('holds nothing for long that the catalog does not know of', async () => {
  const live = await start(LONG);
  try {
    const hold = { id: '999', keyspace: 'tenants', lo: null, hi: null, referenceTables: false, remainingMs: 3_600_000 };
    const announcement = JSON.stringify({ epoch: live.current.epoch.toString(), hold });
    await catalog.pool.query(`SELECT pg_notify('foreshard_topology', $1)`, [announcement]);
    await waitFor(() => live.holds.length === 1, { what: 'it to be heard of' });
    await waitFor(() => live.holds.length === 0, { what: 'it to be looked up' });
  } finally {
    await live.close();
  }
});
