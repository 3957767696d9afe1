import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';

const one = async (cluster: EmbeddedCluster, sql: string): Promise<unknown> =>
  withClient(cluster.url(), async (client) => Object.values((await client.query(sql)).rows[0])[0]);

const SYSTEM = 'SELECT system_identifier FROM pg_control_system()';

test('a cluster accepts connections and is ready for logical replication', async () => {
  const cluster = await EmbeddedCluster.start();
  expect(await one(cluster, 'SHOW wal_level')).toBe('logical');
  expect(await one(cluster, 'SHOW server_encoding')).toBe('UTF8');
  expect(await one(cluster, 'SELECT current_user')).toBe('postgres');
  expect(await one(cluster, 'SHOW server_version')).toMatch(/^18\./);
  await cluster.stop();
});

test('a wrong password is refused', async () => {
  const cluster = await startTestCluster();
  const url = cluster.url().replace(cluster.password, 'wrong');
  await expect(withClient(url, async () => undefined)).rejects.toMatchObject({ code: '28P01' });
});

test('several clusters start at once, each with its own identity, port and password', async () => {
  const clusters = await Promise.all([EmbeddedCluster.start(), EmbeddedCluster.start(), EmbeddedCluster.start()]);
  const ids = await Promise.all(clusters.map((c) => one(c, SYSTEM)));
  expect(new Set(ids).size).toBe(3);
  expect(new Set(clusters.map((c) => c.port)).size).toBe(3);
  expect(new Set(clusters.map((c) => c.password)).size).toBe(3);
  await Promise.all(clusters.map((c) => c.stop()));
});

test('those of tests, which are copies, have their own identity, too, and keep it in all of their log', async () => {
  const clusters = await Promise.all([startTestCluster(), startTestCluster()]);
  expect(new Set(await Promise.all(clusters.map((c) => one(c, SYSTEM)))).size).toBe(2);
  for (const cluster of clusters) {
    const before = await one(cluster, SYSTEM);
    await withClient(cluster.url(), (client) =>
      client.query('CREATE TABLE t AS SELECT 7 AS n; SELECT pg_switch_wal()'),
    );
    await cluster.crash();
    await cluster.restart();
    expect([await one(cluster, SYSTEM), await one(cluster, 'SELECT n FROM t')]).toEqual([before, 7]);
  }
});

test('stop ends the server and removes a temporary directory', async () => {
  const cluster = await EmbeddedCluster.start();
  await cluster.stop();
  expect(cluster.running).toBe(false);
  expect(existsSync(cluster.dir)).toBe(false);
  await cluster.stop();
  await expect(cluster.restart()).rejects.toThrow('temporary directory removed');
});

test('committed rows survive a crash and a restart on the same port', async () => {
  const cluster = await startTestCluster({ settings: { fsync: 'on' } });
  await withClient(cluster.url(), (client) => client.query('CREATE TABLE t AS SELECT 7 AS n'));
  await cluster.crash();
  expect(cluster.running).toBe(false);
  await cluster.restart();
  expect(await one(cluster, 'SELECT n FROM t')).toBe(7);
  await cluster.restart();
  expect(await one(cluster, 'SELECT n FROM t')).toBe(7);
});

test('stop works when the server was killed', async () => {
  const cluster = await EmbeddedCluster.start();
  process.kill(cluster.pid, 'SIGKILL');
  await cluster.stop();
  expect(existsSync(cluster.dir)).toBe(false);
});

test.runIf(process.platform === 'linux')('servers do not outlive their supervisor either', async () => {
  const cluster = await EmbeddedCluster.start();
  const supervisor = Number(/\) \S+ (\d+)/.exec(readFileSync(`/proc/${cluster.pid}/stat`, 'utf8'))?.[1]);
  const url = cluster.url();
  process.kill(supervisor, 'SIGKILL');
  await waitFor(() => !cluster.running && !existsSync(cluster.dir), { what: 'the end of the cluster' });
  await waitFor(() => withClient(url, async () => false).catch((error) => error.code === 'ECONNREFUSED'), {
    what: 'the end of the server',
  });
  await cluster.stop();
  const next = await EmbeddedCluster.start();
  await next.stop();
});
