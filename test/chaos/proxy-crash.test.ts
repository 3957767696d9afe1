import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { audit } from '../../migrator/audit/audit.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import { built } from './built.js';

let sharded: Sharded;
let program = '';

beforeAll(async () => {
  [program, sharded] = await Promise.all([built('proxy-child'), Sharded.start({ splitAt: 100 })]);
});
afterAll(async () => {
  await sharded?.stop();
});

/** A proxy beside the one of the setting. */
async function startProxy(): Promise<{ readonly child: ChildProcess; readonly port: number }> {
  const child = spawn(process.execPath, [program, sharded.clusters[0].url('foreshard')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [port] = await once(child.stdout as NodeJS.ReadableStream, 'data');
  return { child, port: Number(port) };
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  expect(await ended).toEqual([null, 'SIGKILL']);
}

const onEach = <T extends pg.QueryResultRow>(sql: string) =>
  Promise.all(([0, 1] as const).map((shard) => sharded.onShard<T>(shard, sql)));
const prepared = async () => (await onEach('SELECT gid FROM pg_prepared_xacts')).map((found) => found.length);
const names = async () => (await onEach<{ name: string }>('SELECT name FROM tenants')).flat().map(({ name }) => name);
const processes = async () =>
  (await onEach<{ pid: number }>("SELECT pid FROM pg_stat_activity WHERE application_name = 'to be killed'")).map(
    ([found]) => found?.pid as number,
  );

/** Both branches are prepared, and the decision is sent, when the catalog comes to `deciding`, where it waits; `decided` goes on from there. */
async function killedInCommit(
  deciding: (child: ChildProcess, catalog: pg.Client, asks: number) => Promise<void>,
): Promise<void> {
  await sharded.onShard(0, `DELETE FROM tenants; INSERT INTO tenants VALUES (1, 'old')`);
  await sharded.onShard(1, `DELETE FROM tenants; INSERT INTO tenants VALUES (101, 'old')`);
  const { child, port } = await startProxy();
  const catalog = new pg.Client({ connectionString: sharded.clusters[0].url('foreshard') });
  await catalog.connect();
  const url = new URL(sharded.url);
  url.port = String(port);
  const client = new pg.Client({ connectionString: url.href, application_name: 'to be killed' });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query('BEGIN');
    for (const tenant of [1, 101]) await client.query(`UPDATE tenants SET name = 'new' WHERE tenant_id = ${tenant}`);
    await catalog.query('BEGIN; LOCK TABLE foreshard.decision IN SHARE MODE');
    const committed = client.query('COMMIT');
    const lost = expect(committed).rejects.toThrow();
    const waiting = await waitFor(
      async () =>
        (
          await catalog.query<{ pid: number }>(
            `SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'foreshard.decision'::regclass`,
          )
        ).rows[0],
      { what: 'the decision to wait' },
    );
    expect(await prepared()).toEqual([1, 1]);
    await deciding(child, catalog, waiting.pid);
    await lost;
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
    await catalog.end();
  }
  await waitFor(async () => (await prepared()).every((n) => n === 0), { what: 'the transaction to be ended' });
}

/** By the proxy that lives on, in one transaction. */
async function nothingIsLocked(): Promise<void> {
  const client = await sharded.connect();
  await client.query("BEGIN; SET LOCAL lock_timeout = '10s'");
  for (const tenant of [1, 101])
    expect((await client.query(`UPDATE tenants SET name = name WHERE tenant_id = ${tenant}`)).rowCount).toBe(1);
  await client.query('COMMIT');
}

test('a proxy that is killed between PREPARE and decision has committed nothing', async () => {
  await killedInCommit(async (child, catalog, asks) => {
    await kill(child);
    // Its server would go on with it.
    await catalog.query('SELECT pg_terminate_backend($1)', [asks]);
    const gone = async () => (await catalog.query('SELECT FROM pg_locks WHERE pid = $1', [asks])).rowCount === 0;
    await waitFor(gone, { what: 'the end of the statement that would decide' });
    await catalog.query('ROLLBACK');
  });
  expect(await names()).toEqual(['old', 'old']);
  await nothingIsLocked();
  expect(await audit(sharded.catalog, false)).toEqual([]);
});

test('what a proxy has decided that is killed between decision and COMMIT PREPARED is committed on both shards', async () => {
  await killedInCommit(async (child, catalog) => {
    const pids = await processes();
    for (const pid of pids) process.kill(pid, 'SIGSTOP');
    try {
      await catalog.query('ROLLBACK');
      const decided = async () =>
        (await catalog.query('SELECT FROM foreshard.decision WHERE committed')).rowCount === 1;
      await waitFor(decided, { what: 'the decision' });
      await kill(child);
      expect(await prepared()).toEqual([1, 1]);
      // What they have been sent is not to be what commits it.
      for (const [shard, pid] of pids.entries())
        await sharded.onShard(shard as 0 | 1, 'SELECT pg_terminate_backend($1)', [pid]);
    } finally {
      for (const pid of pids) process.kill(pid, 'SIGCONT');
    }
  });
  expect(await names()).toEqual(['new', 'new']);
  await nothingIsLocked();
  expect(await audit(sharded.catalog, false)).toEqual([]);
});
