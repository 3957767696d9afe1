import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createMigration, requestAbort } from '../../migrator/migration-requests.js';
import { loadMigration } from '../../migrator/migration-row.js';
import { sendCancelRequest } from '../../proxy/backend/cancel-request.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import type { Keyspace, KeyspaceName, ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';
import { alive } from './process-tree.js';
import { type ServeProcesses, Serving, slotOfClient } from './serving.js';
import { temporaryDirectory } from './temporary-directory.js';

let serving: Serving;
const dir = temporaryDirectory('foreshard-workers-');

beforeAll(async () => {
  serving = await Serving.start(dir);
});

afterAll(async () => {
  await serving?.stop();
});

/** A client for every process. One that a busy machine holds up is passed over, so that several may come to another before. */
async function oneOfEach(processes: ServeProcesses, workers: number): Promise<pg.Client[]> {
  const bySlot = new Map<number, pg.Client>();
  const others: pg.Client[] = [];
  while (bySlot.size < workers && others.length < 100) {
    const { client } = await processes.connect();
    if (bySlot.has(slotOfClient(client))) others.push(client);
    else bySlot.set(slotOfClient(client), client);
  }
  for (const client of others) await client.end();
  expect(bySlot.size).toBe(workers);
  return [...bySlot.values()];
}

async function cancel(processes: ServeProcesses, client: pg.Client, wrong = false): Promise<void> {
  const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
  const secret = Buffer.alloc(4);
  secret.writeInt32BE(wrong ? secretKey ^ 1 : secretKey);
  await sendCancelRequest(
    { shard: 'proxy', host: '127.0.0.1', port: processes.port },
    { processId: processID, secret },
  );
}

describe('serve --workers', () => {
  it('spreads a burst of clients over its processes, each with a lease of its own', async () => {
    const processes = await serving.serve('--workers', '3');
    const clients = await Promise.all(Array.from({ length: 60 }, async () => (await processes.connect()).client));
    // How many each gets depends on whether one is held up; see spread.test.ts.
    expect(new Set(clients.map(slotOfClient)).size).toBe(3);
    const proxies = await serving.direct<{ name: string; listen: string }>(
      'foreshard',
      'SELECT name, listen FROM foreshard.proxy WHERE lease_until > clock_timestamp() ORDER BY name',
    );
    expect(proxies).toEqual(
      ['test', 'test#1', 'test#2'].map((name) => ({ name, listen: `127.0.0.1:${processes.port}` })),
    );
    for (const client of clients) await client.end();
    // Who leaves makes room.
    await oneOfEach(processes, 3).then((all) => Promise.all(all.map((client) => client.end())));
    expect(await processes.stop()).toEqual({ code: 143, left: [] });
    expect(await serving.direct('foreshard', 'SELECT FROM foreshard.proxy')).toEqual([]);
  });

  it('adds up the load that its processes have counted', async () => {
    const processes = await serving.serve('--workers', '2');
    const clients = await oneOfEach(processes, 2);
    for (const client of clients)
      for (let i = 0; i < 5; i++) await client.query('SELECT id FROM orders WHERE tenant_id = 7');
    for (const client of clients) await client.end();
    expect((await processes.stop('SIGINT')).code).toBe(130);
    const [row] = await serving.direct<{ reads: string }>(
      'foreshard',
      'SELECT sum(reads) AS reads FROM foreshard.load',
    );
    expect(Number(row?.reads)).toBe(10);
  });

  it('counts wrong passwords in all processes together', async () => {
    serving.configure({
      auth: { failures: { free: 10, delayMs: 60_000, maxDelayMs: 60_000 } },
      limits: { loginTimeoutMs: 1000 },
    });
    const processes = await serving.serve('--workers', '3', '--only', 'proxy');
    const wrong = processes.url.replace('app-secret', 'guess');
    const attempt = () =>
      processes.connect(wrong).then(
        () => 'in',
        (error: { code: string }) => error.code,
      );
    let guesses = 0;
    while ((await attempt()) === '28P01') guesses += 1;
    // Alone, each process would let ten pass. One may not have heard yet of the last.
    expect(guesses).toBeGreaterThanOrEqual(10);
    expect(guesses).toBeLessThanOrEqual(12);
    serving.configure({});
    await processes.stop();
  });

  it('carries a cancel request to the process that has the client, and no guess', async () => {
    const processes = await serving.serve('--workers', '2');
    const clients = await oneOfEach(processes, 2);
    for (const client of clients) {
      const canceled = client.query('SELECT pg_sleep(600)').then(
        () => null,
        (error: { code: string }) => error.code,
      );
      await waitFor(
        async () =>
          (
            await serving.direct(
              'postgres',
              `SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'`,
            )
          ).length === 1,
        { what: 'the statement to run' },
      );
      await cancel(processes, client, true);
      // It comes in at one process or the other: both ways are tried.
      await cancel(processes, client);
      expect(await canceled).toBe('57014');
      expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    }
    for (const client of clients) await client.end();
    await processes.stop();
  });

  it('replaces a process that dies; only its own clients notice', async () => {
    const processes = await serving.serve('--workers', '2', '--only', 'proxy');
    const [victim] = processes.children as [number];
    const clients = await Promise.all([processes.connect(), processes.connect()]);
    process.kill(victim, 'SIGKILL');
    await processes.logged('a process has ended and is replaced');
    await waitFor(() => clients.filter(({ lost }) => lost() !== null).length === 1, { what: 'the loss to be noticed' });
    const survivor = clients.find(({ lost }) => lost() === null)?.client as pg.Client;
    expect((await survivor.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await waitFor(
      async () => {
        const two = await Promise.all([processes.connect(), processes.connect()]);
        const slots = new Set([survivor, ...two.map(({ client }) => client)].map(slotOfClient));
        for (const { client } of two) await client.end();
        return slots.size === 2;
      },
      { what: 'the replacement' },
    );
    expect(survivor && (await survivor.query('SELECT 2 AS two')).rows).toEqual([{ two: 2 }]);
    await survivor.end();
    expect(await processes.stop()).toEqual({ code: 143, left: [] });
  });

  it('gives each client its own answers while clients come, go and break off, and topology and configuration change', async () => {
    const processes = await serving.serve('--workers', '3');
    const slots = new Set<number>();
    const life = async (name: string, breaksOff: boolean) => {
      const { client } = await processes.connect();
      slots.add(slotOfClient(client));
      await client.query(`SET application_name = '${name}'`);
      // The same name of a statement stands for another text with each client.
      const own = { name: 'own', text: `SELECT current_setting('application_name') AS name, '${name}' AS text` };
      for (let i = 0; i < 3; i++) {
        expect((await client.query(own)).rows).toEqual([{ name, text: name }]);
        await client.query('BEGIN');
        await client.query('INSERT INTO orders VALUES ($1, $2)', [Number(name.slice(1)), i]);
        if (breaksOff && i === 2) break;
        await client.query('COMMIT');
      }
      if (breaksOff) (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
      else await client.end();
    };
    const crowd = Array.from({ length: 6 }, async (_, lane) => {
      for (let turn = 0; turn < 4; turn++) await life(`c${100 * (lane + 1) + turn}`, turn % 4 === 3);
    });
    const done = Promise.all(crowd);
    for (let i = 1; i <= 3; i++) {
      processes.signal('SIGHUP');
      await serving.direct('foreshard', 'UPDATE foreshard.meta SET epoch = epoch + 1');
      await processes.logged('the configuration was read again', i);
    }
    await done;
    expect(slots.size).toBe(3);
    // Whoever broke off had not committed its last row.
    const count = () =>
      serving.direct<{ n: string }>('shop', 'SELECT count(*) AS n FROM orders WHERE tenant_id >= 100');
    expect(Number((await count())[0]?.n)).toBe(6 * (3 * 3 + 2));
    await waitFor(
      async () =>
        (await serving.direct('postgres', `SELECT FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`))
          .length === 0,
      { what: 'what was broken off to be rolled back' },
    );
    expect(await processes.stop()).toEqual({ code: 143, left: [] });
  });

  it('leaves nobody behind when the parent is killed', async () => {
    const processes = await serving.serve('--workers', '2');
    const { client, lost } = await processes.connect();
    await client.query('BEGIN');
    const children = processes.children;
    expect(children.length).toBe(3);
    processes.signal('SIGKILL');
    await waitFor(() => lost() !== null, { what: 'the end of an open transaction' });
    expect(lost()).toMatchObject({ code: '57P01' });
    await waitFor(() => alive(children).length === 0, { what: 'the end of all processes' });
  });

  it('ends once when the whole group is told to', async () => {
    const processes = await serving.serve('--workers', '2');
    const pids = [...processes.children, processes.pid];
    for (const pid of pids) process.kill(pid, 'SIGTERM');
    expect(await processes.ended()).toBe(143);
    expect(alive(pids)).toEqual([]);
    expect(processes.lines.filter(({ level }) => Number(level) >= 40)).toEqual([]);
  });
});

describe('a replica', () => {
  it('is read through every process, each with a bound of its own, and goes when none reads there any more', async () => {
    const other = await startTestCluster();
    const [role] = await serving.direct<{ verifier: string }>(
      'postgres',
      `SELECT rolpassword AS verifier FROM pg_authid WHERE rolname = 'app'`,
    );
    await withClient(other.url('postgres'), async (c) => {
      // The same verifier, or nobody but the client could log in there.
      await c.query(`CREATE ROLE app LOGIN PASSWORD '${role?.verifier}'`);
      await c.query('CREATE DATABASE shop');
    });
    const catalog = await Catalog.connect(serving.cluster.url('foreshard'));
    try {
      await new Registry(catalog, 'test').addShard({ name: 's2', url: other.url('shop') });
      await serving.direct('shop', 'INSERT INTO orders VALUES (50, 1), (60, 1)');
      const keyspace = (await catalog.loadTopology()).keyspaces.get('shop' as KeyspaceName) as Keyspace;
      const [from, to] = ['s1', 's2'] as ShardName[] as [ShardName, ShardName];
      const processes = await serving.serve('--workers', '2');
      const id = await createMigration(
        catalog.pool,
        keyspace,
        { kind: 'move', keyspace: keyspace.name, lo: [50n], hi: null, from, to },
        { actor: 'test', replica: { maxStalenessMs: 60_000, readPercent: 0 } },
      );
      await waitFor(async () => (await catalog.loadTopology()).replicas.some((r) => r.id === id), {
        what: 'the replica',
      });
      // A row by which a read tells where it was.
      await withClient(other.url('shop'), async (c) => {
        await c.query('SET session_replication_role = replica');
        await c.query('INSERT INTO orders VALUES (50, 999)');
      });
      const clients = await oneOfEach(processes, 2);
      const rows = async (c: pg.Client) => (await c.query('SELECT id FROM orders WHERE tenant_id = 50')).rowCount;
      for (const c of clients) {
        expect(await rows(c)).toBe(1);
        await c.query(`SET foreshard.max_staleness = '1min'`);
      }
      for (const c of clients) await waitFor(async () => (await rows(c)) === 2, { what: 'a read at the replica' });
      // Who has written is told what it has written, in its own process.
      const [writer] = clients as [pg.Client, pg.Client];
      await writer.query('INSERT INTO orders VALUES (50, 2)');
      expect((await writer.query('SELECT id FROM orders WHERE tenant_id = 50 AND id = 2')).rowCount).toBe(1);

      await requestAbort(catalog.pool, id, 'test');
      await waitFor(async () => (await loadMigration(catalog.pool, id)).state === 'aborted', {
        what: 'the end of the replica',
      });
      // At the owner: the row of the replica's is not among them.
      for (const c of clients)
        expect((await c.query('SELECT id FROM orders WHERE tenant_id = 50 ORDER BY id')).rows).toEqual([
          { id: '1' },
          { id: '2' },
        ]);
      for (const c of clients) await c.end();
      await new Registry(catalog, 'test').removeShard(to);
      expect(await processes.stop()).toEqual({ code: 143, left: [] });
    } finally {
      await catalog.close();
    }
  });
});
