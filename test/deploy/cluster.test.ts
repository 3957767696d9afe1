import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';

const one = async (cluster: EmbeddedCluster, sql: string): Promise<unknown> =>
  withClient(cluster.url(), async (client) => Object.values((await client.query(sql)).rows[0])[0]);

test('a cluster accepts connections and is ready for logical replication', async () => {
  const cluster = await startTestCluster();
  expect(await one(cluster, 'SHOW wal_level')).toBe('logical');
  expect(await one(cluster, 'SHOW server_encoding')).toBe('UTF8');
  expect(await one(cluster, 'SELECT current_user')).toBe('postgres');
  expect(await one(cluster, 'SHOW server_version')).toMatch(/^18\./);
});

test('a wrong password is refused', async () => {
  const cluster = await startTestCluster();
  const url = cluster.url().replace(cluster.password, 'wrong');
  await expect(withClient(url, async () => undefined)).rejects.toMatchObject({ code: '28P01' });
});

test('several clusters start at once, each with its own identity, port and password', async () => {
  const clusters = await Promise.all([startTestCluster(), startTestCluster(), startTestCluster()]);
  const ids = await Promise.all(clusters.map((c) => one(c, 'SELECT system_identifier FROM pg_control_system()')));
  expect(new Set(ids).size).toBe(3);
  expect(new Set(clusters.map((c) => c.port)).size).toBe(3);
  expect(new Set(clusters.map((c) => c.password)).size).toBe(3);
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
