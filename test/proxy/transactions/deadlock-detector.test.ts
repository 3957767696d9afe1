import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import pino from 'pino';
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { DeadlockDetector, type DeadlockDetectorOptions } from '../../../proxy/transactions/deadlock-detector.js';
import { newKey } from '../../../proxy/transactions/transaction-key.js';
import { Relay } from '../../chaos/relay.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';
import { SpanningClient } from './spanning-client.js';

const SCHEMA = `
  CREATE TABLE t (id int PRIMARY KEY, v int);
  INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n;
  CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
  CREATE TABLE behind (a int);
  CREATE FUNCTION looks_behind(i int) RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE
    AS 'BEGIN RETURN (SELECT count(*) FROM behind) + i; END';
`;

let clusters: Record<'a' | 'b' | 'c', EmbeddedCluster>;
let urls: Record<'a' | 'b' | 'c', string>;
let logged: { level: number; msg: string; shard?: string }[];
let detectors: DeadlockDetector[];
let transactions: SpanningClient[];

beforeAll(async () => {
  const settings = { max_prepared_transactions: '5', min_parallel_table_scan_size: '0', parallel_setup_cost: '0' };
  const [a, b, c] = await Promise.all([1, 2, 3].map(() => startTestCluster({ settings })));
  clusters = { a, b, c } as typeof clusters;
  urls = { a: '', b: '', c: '' };
  for (const name of ['a', 'b', 'c'] as const) {
    urls[name] = clusters[name].url('postgres');
    await withClient(urls[name], (client) => client.query(SCHEMA));
  }
});

beforeEach(() => {
  logged = [];
  detectors = [];
  transactions = [];
});

afterEach(async () => {
  for (const transaction of transactions) {
    await transaction.cancel();
    await transaction.end();
  }
  for (const detector of detectors) await detector.close();
  for (const url of Object.values(urls)) {
    await withClient(url, async (c) => {
      const { rows } = await c.query<{ gid: string }>('SELECT gid FROM pg_prepared_xacts');
      for (const { gid } of rows) await c.query(`ROLLBACK PREPARED '${gid}'`);
    });
  }
});

function detector(
  shards: Readonly<Record<string, string>> = urls,
  options: Partial<DeadlockDetectorOptions> = {},
): DeadlockDetector {
  const made = new DeadlockDetector({
    shards: () => Object.entries(shards).map(([name, url]) => ({ name, url }) as never),
    logger: pino({ level: 'info' }, { write: (line: string) => logged.push(JSON.parse(line)) }),
    deadlockTimeoutMs: 100,
    ...options,
  });
  detectors.push(made);
  return made;
}

/** One with branches on these; the later one is begun, the larger its key: it is the one to end. */
async function begin(by: DeadlockDetector, on: Readonly<Record<string, string>> = urls): Promise<SpanningClient> {
  const last = transactions.at(-1)?.key ?? 0n;
  let key = newKey();
  while (key <= last) key = newKey();
  const transaction = await SpanningClient.begin(by, on, key);
  transactions.push(transaction);
  return transaction;
}

const update = (id: number) => `UPDATE t SET v = v + 1 WHERE id = ${id}`;
const reasons = () => transactions.map((t) => t.reason?.sqlstate ?? null);

/** A session that belongs to no spanning transaction. */
async function plain<T>(
  url: string,
  use: (run: (sql: string) => Promise<'done' | string>, pid: number) => Promise<T>,
): Promise<T> {
  return withClient(url, async (client) => {
    const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    const run = (sql: string) =>
      client.query(sql).then(
        () => 'done',
        (error: { code: string }) => error.code,
      );
    return use(run, rows[0]?.pid as number);
  });
}

async function untilWaiting(url: string, pid: number): Promise<void> {
  await withClient(url, (c) =>
    waitFor(async () => (await c.query('SELECT FROM pg_locks WHERE NOT granted AND pid = $1', [pid])).rowCount, {
      what: `process ${pid} to wait`,
    }),
  );
}

/** Until a detector has asked this server so many times more, and been answered. */
async function untilAsked(url: string, times: number): Promise<void> {
  const seen = new Set<string>();
  await withClient(url, (c) =>
    waitFor(
      async () => {
        const { rows } = await c.query<{ at: string }>(
          `SELECT query_start::text AS at FROM pg_stat_activity
            WHERE application_name = 'foreshard deadlocks' AND state = 'idle' AND query LIKE '%WITH lock AS%'`,
        );
        for (const { at } of rows) seen.add(at);
        return seen.size > times;
      },
      { what: 'the detector to ask' },
    ),
  );
}

/** The second has waited across the first; then it is ended, and the first goes on. */
async function endsTheSecondOf(one: SpanningClient, two: SpanningClient, on: readonly [string, string] = ['a', 'b']) {
  await one.run(on[0], update(1));
  await two.run(on[1], update(1));
  const first = await one.waits(on[1], update(1));
  const second = await two.waits(on[0], update(1));
  expect(await second.ended).toBe('57014');
  expect(reasons()).toEqual([null, '40P01']);
  await two.end();
  expect(await first.ended).toBe('done');
  await one.end('COMMIT');
  expect(reasons()).toEqual([null, '40P01']);
}

test('of two that wait crosswise one is ended, and told who waits for whom', async () => {
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  const [oneB, twoA, oneA, twoB] = [one.pid('b'), two.pid('a'), one.pid('a'), two.pid('b')];
  await endsTheSecondOf(one, two);
  expect(two.reason?.message).toBe('deadlock detected');
  expect(two.reason?.detail?.replace(/transaction \d+/g, 'transaction N')).toBe(
    `Process ${twoA} on shard "a" (the same transaction as process ${twoB} on shard "b") waits for ShareLock on transaction N; blocked by process ${oneA}.\n` +
      `Process ${oneB} on shard "b" (the same transaction as process ${oneA} on shard "a") waits for ShareLock on transaction N; blocked by process ${twoB}.`,
  );
});

test('of three that wait in a circle over three shards one is ended', async () => {
  const by = detector();
  const [one, two, three] = [await begin(by), await begin(by), await begin(by)];
  await one.run('a', update(1));
  await two.run('b', update(1));
  await three.run('c', update(1));
  const first = await one.waits('b', update(1));
  const second = await two.waits('c', update(1));
  const third = await three.waits('a', update(1));
  expect(await third.ended).toBe('57014');
  await three.end();
  expect(await second.ended).toBe('done');
  await two.end('COMMIT');
  expect(await first.ended).toBe('done');
  expect(reasons()).toEqual([null, null, '40P01']);
});

test('two proxies end one between them, whoever of them sees it first', async () => {
  await endsTheSecondOf(await begin(detector()), await begin(detector()));
});

test('a circle may lead through sessions that are on one shard only, and through queues', async () => {
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  await plain(urls.a, (owner, ownerPid) =>
    plain(urls.a, async (queued, queuedPid) => {
      await owner(`BEGIN; ${update(1)}`);
      await queued('BEGIN');
      await two.run('a', update(2));
      await one.run('b', update(1));
      const owned = owner(update(2));
      await untilWaiting(urls.a, ownerPid);
      // It only stands in line before `one`.
      const line = queued(update(1));
      await untilWaiting(urls.a, queuedPid);
      const first = await one.waits('a', update(1));
      const second = await two.waits('b', update(1));
      expect(await second.ended).toBe('57014');
      expect(reasons()).toEqual([null, '40P01']);
      await two.end();
      expect(await owned).toBe('done');
      await owner('COMMIT');
      expect(await line).toBe('done');
      await queued('COMMIT');
      expect(await first.ended).toBe('done');
    }),
  );
});

test.each([
  ['table locks', 'LOCK TABLE behind IN SHARE MODE', 'LOCK TABLE behind IN ROW EXCLUSIVE MODE'],
  ['advisory locks', 'SELECT pg_advisory_xact_lock(7)', 'SELECT pg_advisory_xact_lock_shared(7)'],
  ['unique keys', 'INSERT INTO behind VALUES (7)', 'INSERT INTO behind VALUES (7)'],
])('waits for %s count as those for rows do', async (_, held, wanted) => {
  for (const url of [urls.a, urls.b]) await withClient(url, (c) => c.query('CREATE UNIQUE INDEX ON behind (a)'));
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  await one.run('a', held);
  await two.run('b', held);
  const first = await one.waits('b', wanted);
  const second = await two.waits('a', wanted);
  expect(await second.ended).toBe('57014');
  await two.end();
  expect(await first.ended).toBe('done');
  expect(reasons()).toEqual([null, '40P01']);
});

test('a parallel worker waits for its session', async () => {
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  await one.run('a', 'LOCK TABLE behind IN ACCESS EXCLUSIVE MODE');
  await two.run('b', update(1));
  await two.run('a', 'SET LOCAL parallel_leader_participation = off; SET LOCAL parallel_tuple_cost = 0');
  const first = await one.waits('b', update(1));
  const second = await two.waits('a', 'SELECT sum(looks_behind(id)) FROM t');
  const asked = await withClient(urls.a, (c) =>
    c.query('SELECT FROM pg_locks WHERE NOT granted AND pid = $1', [two.pid('a')]),
  );
  expect(asked.rowCount).toBe(0);
  expect(await second.ended).toBe('57014');
  await two.end();
  expect(await first.ended).toBe('done');
  expect(reasons()).toEqual([null, '40P01']);
});

test('one who is being prepared, and waits there, is ended when what is prepared already is in the way of the other', async () => {
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  await two.run('a', update(1));
  await two.run('b', 'INSERT INTO child VALUES (1, 5)');
  await one.run('b', 'DELETE FROM t WHERE id = 5');
  await two.run('a', `PREPARE TRANSACTION 'two'`);
  // The foreign key is checked now.
  const second = await two.waits('b', `PREPARE TRANSACTION 'two'`);
  const first = await one.waits('a', update(1));
  expect(await second.ended).toBe('57014');
  expect(two.reason?.detail).toMatch(/blocked by a prepared transaction\./);
  await withClient(urls.a, (c) => c.query(`ROLLBACK PREPARED 'two'`));
  expect(await first.ended).toBe('done');
  expect(reasons()).toEqual([null, '40P01']);
});

test('the same when its server has crashed since, and only knows its number', async () => {
  const by = detector();
  const two = await begin(by);
  await two.run('c', update(1));
  await two.run('c', `PREPARE TRANSACTION 'two'`);
  await clusters.c.crash();
  await clusters.c.restart();
  const one = await begin(by);
  await one.run('b', update(1));
  const second = await two.waits('b', update(1));
  const first = await one.waits('c', update(1));
  expect(await first.ended).toBe('57014');
  expect(one.reason?.detail).toMatch(/blocked by a prepared transaction\./);
  await one.end();
  expect(await second.ended).toBe('done');
  await withClient(urls.c, (c) => c.query(`ROLLBACK PREPARED 'two'`));
  expect(reasons()).toEqual([null, '40P01']);
});

test('who waits behind a prepared transaction, or for long, is let wait', async () => {
  const by = detector();
  const [one, two, three] = [await begin(by), await begin(by), await begin(by)];
  await one.run('a', update(1));
  await one.run('a', `PREPARE TRANSACTION 'one'`);
  await two.run('b', update(1));
  const second = await two.waits('a', update(1));
  const third = await three.waits('b', update(1));
  await untilAsked(urls.a, 4);
  expect(reasons()).toEqual([null, null, null]);
  await withClient(urls.a, (c) => c.query(`COMMIT PREPARED 'one'`));
  expect(await second.ended).toBe('done');
  await two.end('COMMIT');
  expect(await third.ended).toBe('done');
  expect(reasons()).toEqual([null, null, null]);
});

test('a deadlock within one server is left to it', async () => {
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  for (const t of [one, two]) await t.run('a', `SET deadlock_timeout = '1h'`);
  await one.run('a', update(1));
  await two.run('a', update(2));
  const first = await one.waits('a', update(2));
  const second = await two.waits('a', update(1));
  await untilAsked(urls.a, 4);
  expect(reasons()).toEqual([null, null]);
  await withClient(urls.a, (c) => c.query('SELECT pg_cancel_backend($1)', [one.pid('a')]));
  expect(await first.ended).toBe('57014');
  await one.end();
  expect(await second.ended).toBe('done');
});

test('between two databases of one server it is found', async () => {
  await withClient(urls.a, (c) => c.query('CREATE DATABASE beside'));
  const on = { a: urls.a, b: clusters.a.url('beside') };
  await withClient(on.b, (c) => c.query(SCHEMA));
  const by = detector(on);
  await endsTheSecondOf(await begin(by, on), await begin(by, on));
  // It waits for itself.
  transactions = [];
  const alone = await begin(by, on);
  await alone.run('a', 'CREATE ROLE reader');
  const ended = await alone.waits('b', 'CREATE ROLE reader');
  expect(await ended.ended).toBe('57014');
  expect(reasons()).toEqual(['40P01']);
});

test('what looks like a circle, because the shards were not asked at one moment, ends nobody', async () => {
  const relay = await Relay.start(clusters.b.port);
  const far = new URL(urls.b);
  far.port = String(relay.port);
  const by = detector({ a: urls.a, b: far.href }, { answerTimeoutMs: 120_000 });
  const [one, two] = [await begin(by), await begin(by)];
  await two.run('a', `SAVEPOINT s; ${update(1)}`);
  await one.run('b', update(1));
  relay.stall();
  const first = await one.waits('a', update(1));
  // Here it is seen that the first waits for the second; there nobody is asked yet.
  await untilAsked(urls.a, 0);
  await two.run('a', 'ROLLBACK TO s');
  expect(await first.ended).toBe('done');
  const second = await two.waits('b', update(1));
  relay.resume();
  // Of the suspected round, and of one after it.
  await untilAsked(urls.b, 3);
  expect(reasons()).toEqual([null, null]);
  await one.end('COMMIT');
  expect(await second.ended).toBe('done');
  await two.end('COMMIT');
  expect(reasons()).toEqual([null, null]);
  await detectors[0]?.close();
  await relay.close();
});

test('a shard that says nothing is left out, which is said once', async () => {
  const sockets = new Set<Socket>();
  const silent = createServer((socket) => sockets.add(socket.on('error', () => undefined)));
  silent.listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const { port } = silent.address() as { port: number };
  const by = detector({ ...urls, c: `postgres://nobody@127.0.0.1:${port}/postgres` }, { answerTimeoutMs: 1_000 });
  const on = { a: urls.a, b: urls.b };
  await endsTheSecondOf(await begin(by, on), await begin(by, on));
  transactions = [];
  await endsTheSecondOf(await begin(by, on), await begin(by, on));
  expect(logged.filter((l) => l.level === 40).map((l) => l.shard)).toEqual(['c']);
  await by.close();
  for (const socket of sockets) socket.destroy();
  silent.close();
});

test('it can be closed while it connects to a shard', async () => {
  let connected = 0;
  const slow = createServer((socket) => {
    connected += 1;
    // It hangs up when the other side does.
    socket.on('error', () => undefined).resume();
  });
  slow.listen(0, '127.0.0.1');
  await once(slow, 'listening');
  const { port } = slow.address() as { port: number };
  const by = detector({ ...urls, c: `postgres://nobody@127.0.0.1:${port}/postgres` }, { answerTimeoutMs: 120_000 });
  const on = { a: urls.a, b: urls.b };
  const [one, two] = [await begin(by, on), await begin(by, on)];
  await one.run('a', update(1));
  const second = await two.waits('a', update(1));
  await waitFor(() => connected > 0, { what: 'the detector to connect' });
  await by.close();
  await one.end();
  expect(await second.ended).toBe('done');
  slow.close();
});

test('a role without any rights finds it too', async () => {
  const own = { ...urls };
  for (const name of ['a', 'b', 'c'] as const) {
    await withClient(urls[name], (c) => c.query(`CREATE ROLE nothing LOGIN PASSWORD 'x'`));
    const url = new URL(urls[name]);
    url.username = 'nothing';
    url.password = 'x';
    own[name] = url.href;
  }
  const by = detector(own);
  await endsTheSecondOf(await begin(by), await begin(by));
});

test('nobody is asked anything while nobody waits, and no connection stays behind', async () => {
  const connections = async () => {
    const counts = await Promise.all(
      Object.values(urls).map((url) =>
        withClient(url, (c) => c.query(`SELECT FROM pg_stat_activity WHERE application_name = 'foreshard deadlocks'`)),
      ),
    );
    return counts.reduce((sum, { rowCount }) => sum + (rowCount ?? 0), 0);
  };
  const by = detector();
  const [one, two] = [await begin(by), await begin(by)];
  await one.run('a', update(1));
  await two.run('b', update(1));
  expect(await connections()).toBe(0);
  await endsTheSecondOf(one, two);
  expect(await connections()).toBe(3);
  await by.close();
  await waitFor(async () => (await connections()) === 0, { what: 'the connections to go' });
});
