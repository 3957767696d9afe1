import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';

let dir: string;

beforeEach(() => {
  const parent = mkdtempSync(join(tmpdir(), 'foreshard-test-'));
  chmodSync(parent, 0o755);
  dir = join(parent, 'a cluster');
});

afterEach(() => rmSync(join(dir, '..'), { recursive: true, force: true }));

test('a persistent cluster keeps its rows, its password and what ALTER SYSTEM has set', async () => {
  const first = await EmbeddedCluster.start({ dir, settings: { work_mem: '5MB' } });
  await withClient(first.url(), async (client) => {
    await client.query('CREATE TABLE t AS SELECT 7 AS n');
    await client.query("ALTER SYSTEM SET work_mem = '6MB'");
  });
  await first.stop();
  const second = await EmbeddedCluster.start({ dir, settings: { work_mem: '5MB' } });
  expect(second.password).toBe(first.password);
  const { rows } = await withClient(second.url(), (c) =>
    c.query("SELECT n, current_setting('work_mem') AS mem FROM t"),
  );
  expect(rows).toEqual([{ n: 7, mem: '6MB' }]);
  expect(statSync(join(second.dataDir, '..', 'password')).mode & 0o777).toBe(0o600);
  await second.stop();
  expect(existsSync(join(second.dataDir, 'PG_VERSION'))).toBe(true);
});

test('two starts of one new directory make one cluster', async () => {
  const results = await Promise.allSettled([EmbeddedCluster.start({ dir }), EmbeddedCluster.start({ dir })]);
  const started = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const refused = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []));
  expect(started).toHaveLength(1);
  expect(refused).toEqual([expect.objectContaining({ message: expect.stringContaining('in use by another server') })]);
  await started[0]?.stop();
});

test('a postmaster.pid whose number has gone to another process does not prevent a start', async () => {
  const first = await EmbeddedCluster.start({ dir });
  await first.stop();
  const parent = process.ppid;
  writeFileSync(
    join(first.dataDir, 'postmaster.pid'),
    `${parent}\n${first.dataDir}\n1\n5432\n\n127.0.0.1\n  1 1\nready   \n`,
  );
  const second = await EmbeddedCluster.start({ dir });
  expect(second.running).toBe(true);
  await second.stop();
});

test('data of another major version is refused and left alone', async () => {
  const first = await EmbeddedCluster.start({ dir });
  await first.stop();
  const version = join(first.dataDir, 'PG_VERSION');
  writeFileSync(version, '15\n');
  await expect(EmbeddedCluster.start({ dir })).rejects.toThrow(/written by PostgreSQL 15, the server here is 18/);
  expect(readFileSync(version, 'utf8')).toBe('15\n');
});

test('a port in use is refused by its number, and nothing is left running', async () => {
  const server = createServer();
  const port = await new Promise<number>((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as { port: number }).port));
  });
  await expect(EmbeddedCluster.start({ dir, port })).rejects.toThrow(`port ${port} of 127.0.0.1 is in use`);
  server.close();
  const cluster = await EmbeddedCluster.start({ dir });
  await cluster.stop();
});

test('a wrong setting is reported in the words of the server', async () => {
  await expect(EmbeddedCluster.start({ dir, settings: { work_mem: "it's" } })).rejects.toMatchObject({
    detail: expect.stringContaining('work_mem'),
  });
});

test('a directory that holds something else is refused', async () => {
  mkdirSync(join(dir, 'cluster'), { recursive: true });
  await expect(EmbeddedCluster.start({ dir })).rejects.toThrow('holds no PostgreSQL cluster');
});
