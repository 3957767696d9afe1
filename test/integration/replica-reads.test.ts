import pg from 'pg';
import { pino } from 'pino';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { changeReplica, createMigration, requestAbort, requestPromotion } from '../../migrator/migration-requests.js';
import { loadMigration, RESTING_STATES } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const TENANTS = 20;
/** Tenants from here on have a replica on the second shard. */
const REPLICATED = 10;
const KEY = 15;

let s: Sharded;
let stopMigrator: () => Promise<void>;
let replica: bigint;

interface Counts {
  readonly reads: number;
  readonly behind: number;
  readonly failed: number;
}

async function counts(): Promise<Counts> {
  const url = s.url.replace('/shop', '/foreshard_admin');
  const console = new pg.Client({ connectionString: url });
  await console.connect();
  try {
    const { rows } = await console.query<{ reads: string; behind: string; failed: string }>('SHOW REPLICAS');
    const [row] = rows;
    return { reads: Number(row?.reads ?? 0), behind: Number(row?.behind ?? 0), failed: Number(row?.failed ?? 0) };
  } finally {
    await console.end();
  }
}

async function makeReplica(readPercent = 0): Promise<bigint> {
  const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName);
  if (keyspace === undefined) throw new Error('no keyspace');
  return createMigration(
    s.catalog.pool,
    keyspace,
    {
      kind: 'move',
      keyspace: keyspace.name,
      lo: [BigInt(REPLICATED)],
      hi: null,
      from: 's1' as ShardName,
      to: 's2' as ShardName,
    },
    { actor: 'test', replica: { maxStalenessMs: 60_000, readPercent } },
  );
}

async function serving(id: bigint): Promise<void> {
  await waitFor(async () => (await s.catalog.loadTopology()).replicas.some((r) => r.id === id), {
    what: 'the replica',
  });
  await s.reloaded();
}

async function atRest(id: bigint): Promise<string> {
  return waitFor(
    async () => {
      const { state } = await loadMigration(s.catalog.pool, id);
      return RESTING_STATES.includes(state) ? state : null;
    },
    { what: 'the migration to end' },
  );
}

const READ = `SELECT note FROM orders WHERE tenant_id = ${KEY} AND id = 1`;

async function noteOf(client: pg.Client, sql = READ): Promise<string | undefined> {
  return (await client.query<{ note: string }>(sql)).rows[0]?.note;
}

/** A client that reads at the replica by now. */
async function reader(staleness: string): Promise<pg.Client> {
  const client = await s.connect();
  await client.query(`SET foreshard.max_staleness = '${staleness}'`);
  await goesThere(client);
  return client;
}

/** Resolves when a read of the client has been answered by the replica. */
async function goesThere(client: pg.Client, sql = READ): Promise<void> {
  await waitFor(
    async () => {
      const { reads } = await counts();
      await client.query(sql);
      return (await counts()).reads > reads;
    },
    { what: 'a read at the replica' },
  );
}

/** What is replicated waits meanwhile, and reads do not. */
async function whileApplyWaits(work: () => Promise<void>): Promise<void> {
  const blocker = new pg.Client({ connectionString: s.clusters[1].url('shop') });
  await blocker.connect();
  try {
    await blocker.query('BEGIN; LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE');
    await work();
  } finally {
    await blocker.query('ROLLBACK');
    await blocker.end();
  }
}

beforeAll(async () => {
  s = await Sharded.start({
    splitAt: null,
    leaseTtlMs: 2000,
    pool: { lanes: 'auto' },
    admin: { users: ['app'], statsUsers: [] },
    auth: { method: 'scram-sha-256', users: new Map([['app', { password: 'secret' }]]) },
    serverPasswords: new Map([['app', 'secret']]),
  });
  await s.onShard(0, `INSERT INTO tenants SELECT i, 't' || i FROM generate_series(1, ${TENANTS}) i`);
  await s.onShard(
    0,
    `INSERT INTO orders SELECT t, i, 'old' FROM generate_series(1, ${TENANTS}) t, generate_series(1, 50) i`,
  );
  const controller = new AbortController();
  const running = new Migrator({ catalog: s.catalog, logger: pino({ level: 'silent' }), pollMs: 50 }).run(
    controller.signal,
  );
  stopMigrator = async () => {
    controller.abort();
    await running;
  };
  replica = await makeReplica();
  await serving(replica);
});
afterAll(async () => {
  await stopMigrator?.();
  await s?.stop();
});
afterEach(async () => {
  await s.onShard(0, `UPDATE orders SET note = 'old' WHERE tenant_id = ${KEY} AND note <> 'old'`);
});

describe('a read goes to the replica', () => {
  test('when its client has said how old it may be, by either protocol, and not otherwise', async () => {
    const plain = await s.connect();
    const before = await counts();
    for (let i = 0; i < 20; i++) await plain.query(READ);
    expect(await counts()).toEqual(before);
    const client = await reader('1min');
    await goesThere(client);
    const prepared = {
      name: 'by key',
      text: 'SELECT note FROM orders WHERE tenant_id = $1 AND id = $2',
      values: [KEY, 1],
    };
    const notes = new Set<string>();
    await waitFor(
      async () => {
        const { reads } = await counts();
        notes.add((await client.query(prepared)).rows[0]?.note);
        return (await counts()).reads > reads;
      },
      { what: 'a prepared read at the replica' },
    );
    expect([...notes]).toEqual(['old']);
    await client.query('RESET foreshard.max_staleness');
    const { reads } = await counts();
    for (let i = 0; i < 20; i++) await client.query(READ);
    expect((await counts()).reads).toBe(reads);
  });

  test('if it is slow and large, too', async () => {
    const client = await reader('1min');
    const slow = `SELECT o.id, repeat('x', 2000) AS x, (SELECT count(*) FROM generate_series(1, 20000)) AS n FROM orders o
      WHERE tenant_id = ${KEY} ORDER BY id`;
    await goesThere(client, slow);
    const { rows } = await client.query<{ id: string; x: string; n: string }>(slow);
    expect(rows.map((r) => [r.id, r.x.length, r.n])).toEqual(
      Array.from({ length: 50 }, (_, i) => [String(i + 1), 2000, '20000']),
    );
  });

  test('together with a reference table that is replicated with it', async () => {
    const client = await reader('1min');
    const sql = `SELECT c.name FROM orders o, countries c WHERE o.tenant_id = ${KEY} AND o.id = 1 AND c.code = 'at'`;
    await goesThere(client, sql);
    expect((await client.query(sql)).rows).toEqual([{ name: 'Austria' }]);
  });

  test.each([
    ['in a transaction', 'BEGIN', READ, 'COMMIT'],
    ['with a lock', `${READ} FOR SHARE`],
    ['beside the interval', 'SELECT note FROM orders WHERE tenant_id = 5 AND id = 1'],
    ['with keys on both sides', `SELECT note FROM orders WHERE tenant_id IN (5, ${KEY}) AND id = 1`],
    ['without a key', 'SELECT note FROM orders WHERE id = 1'],
    ['with a table that only the home shard has', `SELECT o.note FROM orders o, settings WHERE tenant_id = ${KEY}`],
    ['when it writes', `UPDATE orders SET note = note WHERE tenant_id = ${KEY} AND id = 1 RETURNING note`],
  ])('but not %s', async (_what, ...statements) => {
    const client = await reader('1min');
    const { reads } = await counts();
    for (let i = 0; i < 5; i++) for (const sql of statements) await client.query(sql);
    expect((await counts()).reads).toBe(reads);
  });
});

describe('what is wrong', () => {
  test('at the replica only, nobody is told: the owner is asked', async () => {
    const client = await reader('1min');
    await s.onShard(1, 'REVOKE SELECT ON orders FROM app');
    const { failed } = await counts();
    for (let i = 0; i < 10; i++) expect(await noteOf(client)).toBe('old');
    expect((await counts()).failed).toBeGreaterThan(failed);
    await s.onShard(1, 'GRANT SELECT ON orders TO app');
    await goesThere(client);
  });

  test('with the bound, the client is told, and nothing is read that may be old', async () => {
    const client = await s.connect();
    const notices: (string | undefined)[] = [];
    client.on('notice', (notice) => notices.push(`${notice.severity} ${notice.code}: ${notice.message}`));
    await client.query(`SET foreshard.max_staleness = '1min'`);
    expect(notices).toEqual([]);
    await goesThere(client);
    await client.query(`SET foreshard.max_staleness = 'soon'`);
    expect(notices).toEqual(['WARNING 22023: invalid value for parameter "foreshard.max_staleness": "soon"']);
    const { reads } = await counts();
    for (let i = 0; i < 10; i++) await client.query(READ);
    expect((await counts()).reads).toBe(reads);
  });
});

describe('while the replica does not get on', () => {
  test('it is read as it was, for as long as a client may see that', async () => {
    const patient = await reader('1min');
    const other = await s.connect();
    await whileApplyWaits(async () => {
      await other.query(`UPDATE orders SET note = 'new' WHERE tenant_id = ${KEY} AND id = 1`);
      expect(await noteOf(other)).toBe('new');
      // It was there before.
      const { reads } = await counts();
      expect(await noteOf(patient)).toBe('old');
      expect((await counts()).reads).toBe(reads + 1);
      await patient.query(`SET foreshard.max_staleness = '1ms'`);
      expect(await noteOf(patient)).toBe('new');
    });
  });

  test('nobody misses what it has written, or has seen already', async () => {
    const [writer, seer, outside] = [await reader('1min'), await reader('1min'), await s.connect()];
    await whileApplyWaits(async () => {
      await writer.query(`UPDATE orders SET note = 'mine' WHERE tenant_id = ${KEY} AND id = 1`);
      for (let i = 0; i < 10; i++) expect(await noteOf(writer)).toBe('mine');
      // In a transaction, it is asked of the owner.
      await seer.query('BEGIN');
      expect(await noteOf(seer)).toBe('mine');
      await seer.query('COMMIT');
      for (let i = 0; i < 10; i++) expect(await noteOf(seer)).toBe('mine');
      await outside.query(`SET foreshard.max_staleness = '1min'`);
      expect(await noteOf(outside)).toBe('mine');
    });
    await goesThere(writer);
    expect(await noteOf(writer)).toBe('mine');
  });

  test('a bound ends what is read there, and it is read there again when it has caught up', async () => {
    const client = await reader('300ms');
    const other = await s.connect();
    await whileApplyWaits(async () => {
      await other.query(`UPDATE orders SET note = 'newer' WHERE tenant_id = ${KEY} AND id = 1`);
      const changed = performance.now();
      let lastOldMs = 0;
      await waitFor(
        async () => {
          const asked = performance.now();
          const note = await noteOf(client);
          if (note === 'old') lastOldMs = asked - changed;
          return note === 'newer';
        },
        { what: 'the owner to be asked' },
      );
      expect(lastOldMs).toBeLessThan(300);
      for (let i = 0; i < 10; i++) expect(await noteOf(client)).toBe('newer');
    });
    await goesThere(client);
    expect(await noteOf(client)).toBe('newer');
  });
});

/** While nobody's lease can be renewed, those of all proxies have ended. */
async function leasesEnd(): Promise<void> {
  const catalog = await s.catalog.pool.connect();
  try {
    await catalog.query('BEGIN; LOCK TABLE foreshard.proxy IN EXCLUSIVE MODE');
    const over = 'SELECT bool_and(lease_until < clock_timestamp()) AS over FROM foreshard.proxy';
    await waitFor(async () => (await catalog.query(over)).rows[0].over, { what: 'the end of the leases' });
  } finally {
    await catalog.query('ROLLBACK');
    catalog.release();
  }
}

test('what was read there before the proxy’s lease ended is not told when that is back: the replica may have gone without it', async () => {
  const there = new pg.Client({ connectionString: s.clusters[1].url('shop') });
  await there.connect();
  const owner = await s.connect();
  const setNote = (note: string) => there.query(`UPDATE orders SET note = '${note}' WHERE tenant_id = ${KEY}`);
  try {
    await there.query('SET session_replication_role = replica');
    const client = await reader('1min');
    // On a busy machine a read goes to the owner now and then.
    const told = await waitFor(
      async () => {
        await there.query('BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE');
        await setNote('gone');
        let answered = false;
        const asked = noteOf(client).finally(() => {
          answered = true;
        });
        const waiting = `SELECT FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'`;
        const waits = async () => (await there.query(waiting)).rowCount === 1;
        await waitFor(async () => answered || (await waits()), {
          what: 'the read to wait at the replica, or to be answered',
        });
        const isThere = !answered;
        if (isThere) {
          await leasesEnd();
          // Served again: the lease is back.
          await noteOf(owner);
        }
        await there.query('COMMIT');
        const note = await asked;
        await setNote('old');
        return isThere ? note : null;
      },
      { what: 'a read that waits at the replica' },
    );
    expect(told).toBe('old');
    await goesThere(client);
  } finally {
    await setNote('old');
    await there.end();
  }
});

describe('phased reads', () => {
  afterEach(() => changeReplica(s.catalog.pool, replica, { readPercent: 0 }, 'test'));

  async function percent(readPercent: number): Promise<void> {
    await changeReplica(s.catalog.pool, replica, { readPercent }, 'test');
    const url = s.url.replace('/shop', '/foreshard_admin');
    await waitFor(
      async () => {
        const console = new pg.Client({ connectionString: url });
        await console.connect();
        const { rows } = await console.query<{ read_percent: number }>('SHOW REPLICAS');
        await console.end();
        return rows[0]?.read_percent === readPercent;
      },
      { what: 'the proxy to hear of it' },
    );
  }

  test('are those of so many clients, and of each always', async () => {
    const clients = await Promise.all(Array.from({ length: 16 }, () => s.connect()));
    await percent(100);
    for (const client of clients.slice(0, 3)) await goesThere(client);
    await (clients[0] as pg.Client).query('SET foreshard.max_staleness = 0');
    const { reads } = await counts();
    for (let i = 0; i < 10; i++) await clients[0]?.query(READ);
    expect((await counts()).reads).toBe(reads);
    await percent(50);
    // The others keep the poll going.
    const there: boolean[] = [];
    const keeper = await reader('1min');
    for (const client of clients.slice(1)) {
      let hit = false;
      for (let i = 0; i < 5 && !hit; i++) {
        await goesThere(keeper);
        const before = (await counts()).reads;
        await client.query(READ);
        hit = (await counts()).reads > before;
      }
      there.push(hit);
    }
    const chosen = there.filter((t) => t).length;
    expect(chosen).toBeGreaterThan(1);
    expect(chosen).toBeLessThan(14);
    await percent(0);
    const after = (await counts()).reads;
    for (const client of clients) await client.query(READ);
    expect((await counts()).reads).toBe(after);
  });
});

describe('when the replica goes', () => {
  test('its server away, its reads are answered by the owner', async () => {
    const client = await reader('1min');
    await s.clusters[1].crash();
    for (let i = 0; i < 20; i++) expect(await noteOf(client)).toBe('old');
    await s.clusters[1].restart();
    await goesThere(client);
  });

  test('a read that runs there ends as it began, and it is waited for', async () => {
    const client = await reader('1min');
    const slow = (n: number) =>
      `SELECT note, (SELECT count(*) FROM generate_series(1, ${n})) AS n FROM orders WHERE tenant_id = ${KEY} AND id = 1`;
    await goesThere(client, slow(10));
    await whileApplyWaits(async () => {
      await s.onShard(0, `UPDATE orders SET note = 'new' WHERE tenant_id = ${KEY} AND id = 1`);
      const asked = client.query<{ note: string; n: string }>(slow(8_000_000));
      await waitFor(async () => (await runsAt(1, 'generate_series')) === 1, { what: 'the read to run there' });
      await requestAbort(s.catalog.pool, replica, 'test');
      expect((await asked).rows).toEqual([{ note: 'old', n: '8000000' }]);
    });
    expect(await atRest(replica)).toBe('aborted');
    expect(await noteOf(client)).toBe('new');
    expect(await s.onShard(1, 'SELECT FROM orders')).toEqual([]);
  });

  test('while its proxy has no lease, a read that ran there is answered by the owner', async () => {
    await dropFirst();
    const id = await makeReplica();
    await serving(id);
    const client = await reader('1min');
    const there = new pg.Client({ connectionString: s.clusters[1].url('shop') });
    await there.connect();
    const catalog = await s.catalog.pool.connect();
    try {
      await there.query('BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE');
      const asked = client.query<{ note: string }>(READ);
      await waitFor(async () => (await s.onShard(1, WAITING)).length > 0, { what: 'the read to wait there' });
      // As if its process were stopped: nothing renews the lease.
      await catalog.query('BEGIN; LOCK TABLE foreshard.proxy IN EXCLUSIVE MODE');
      await waitFor(
        async () =>
          (await catalog.query('SELECT FROM foreshard.proxy WHERE lease_until > clock_timestamp()')).rowCount === 0,
        { what: 'the end of the lease' },
      );
      await requestAbort(s.catalog.pool, id, 'test');
      await waitFor(async () => (await s.catalog.loadTopology()).replicas.length === 0, {
        what: 'the replica to be out of service',
      });
      // What the migrator does as soon as it gets at the table.
      await there.query('SET LOCAL session_replication_role = replica; DELETE FROM orders; COMMIT');
      await waitFor(async () => (await s.onShard(1, WAITING)).length === 0, { what: 'the answer' });
      await catalog.query('ROLLBACK');
      expect((await asked).rows).toEqual([{ note: 'old' }]);
    } finally {
      await catalog.query('ROLLBACK');
      catalog.release();
      await there.end();
    }
    expect(await atRest(id)).toBe('aborted');
  });

  test('it becomes the owner under load, and nobody misses a write or sees the past', async () => {
    await dropFirst();
    const id = await makeReplica(50);
    await serving(id);
    const clients = await Promise.all(Array.from({ length: 6 }, () => s.connect()));
    const errors: unknown[] = [];
    let stopped = false;
    let rounds = 0;
    const workers = clients.map(async (client, n) => {
      const tenant = REPLICATED + n;
      if (n % 2 === 0) await client.query(`SET foreshard.max_staleness = '1min'`);
      for (let i = 0; !stopped; i++) {
        await client.query('UPDATE orders SET note = $1 WHERE tenant_id = $2 AND id = 2', [`${n}.${i}`, tenant]);
        for (let k = 0; k < 3; k++) {
          const { rows } = await client.query<{ note: string }>(
            'SELECT note FROM orders WHERE tenant_id = $1 AND id = 2',
            [tenant],
          );
          if (rows[0]?.note !== `${n}.${i}`) errors.push(`${rows[0]?.note} instead of ${n}.${i}`);
        }
        rounds += 1;
      }
    });
    const all = Promise.all(workers).catch((error: unknown) => errors.push(error));
    await waitFor(async () => rounds > 100 && (await counts()).reads > 20, { what: 'reads there' });
    await requestPromotion(s.catalog.pool, id, 'test');
    expect(await atRest(id)).toBe('done');
    const flipped = rounds;
    await waitFor(() => rounds > flipped + 50, { what: 'work after the flip' });
    stopped = true;
    await all;
    expect(errors).toEqual([]);
    expect(await s.onShard(0, `SELECT FROM orders WHERE tenant_id >= ${REPLICATED}`)).toEqual([]);
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
  });
});

/** The replica of the tests above goes, if it has not yet. */
async function dropFirst(): Promise<void> {
  const { state } = await loadMigration(s.catalog.pool, replica);
  if (state === 'following') await requestAbort(s.catalog.pool, replica, 'test');
  expect(await atRest(replica)).toBe('aborted');
}

/** Clients' statements that wait for a lock. */
const WAITING = `SELECT FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'`;

async function runsAt(shard: 0 | 1, text: string): Promise<number> {
  const rows = await s.onShard(
    shard,
    `SELECT FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%' || $1 || '%' AND pid <> pg_backend_pid()`,
    [text],
  );
  return rows.length;
}
