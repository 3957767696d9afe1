import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import pg from 'pg';
import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { waitFor } from '../support/wait-for.js';
import { buildCli, cli, type RunningCli, startCli } from './run-cli.js';
import { temporaryDirectory } from './temporary-directory.js';

let one: EmbeddedCluster;
let two: EmbeddedCluster;
let env: Record<string, string>;
const dir = temporaryDirectory('foreshard-serve-');

const bare = (url: string) => url.replace(/:[^:@/]+@/, '@');

/** The address in the log line that says it is ready. */
async function listening(running: RunningCli): Promise<number> {
  const line = await waitFor(
    () =>
      running
        .stderr()
        .split('\n')
        .find((text) => text.includes('"msg":"ready"')) ?? (running.child.exitCode === null ? null : 'ended'),
    { what: 'the proxy' },
  );
  expect(running.stderr()).toContain('"msg":"ready"');
  return Number(/:(\d+)$/.exec((JSON.parse(line) as { listen: string }).listen)?.[1]);
}

beforeAll(async () => {
  [one, two] = await Promise.all([startTestCluster(), startTestCluster(), buildCli()]);
  for (const cluster of [one, two]) await withClient(cluster.url(), (client) => client.query('CREATE DATABASE shop'));
  await withClient(one.url('shop'), (client) =>
    client.query(`
      CREATE ROLE app LOGIN PASSWORD 'app-secret';
      CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, PRIMARY KEY (tenant_id, id));
      INSERT INTO orders SELECT t, 1 FROM generate_series(1, 10) t;
      GRANT SELECT, INSERT ON orders TO app;
    `),
  );
  env = { CATALOG_PW: one.password, ONE_PW: one.password, TWO_PW: two.password };
  writeFileSync(
    join(dir, 'foreshard.yaml'),
    `catalog: {url: "${bare(one.url('foreshard'))}", passwordEnv: CATALOG_PW}
database: shop
proxy: {listen: {port: 0}}
shards: {s1: {passwordEnv: ONE_PW}, s2: {passwordEnv: TWO_PW}}
`,
  );
  for (const args of [
    ['init'],
    ['shard', 'add', 's1', bare(one.url('shop'))],
    ['shard', 'add', 's2', bare(two.url('shop'))],
    ['keyspace', 'create', 'shop', '--key', 'int8'],
    ['table', 'add', 'orders', '--keyspace', 'shop', '--key', 'tenant_id'],
  ])
    expect(await cli(args, { env, cwd: dir })).toMatchObject({ code: 0, stderr: '' });
});

describe('serve', () => {
  it('lets the application in with the password it had, without any password in the catalog', async () => {
    const running = startCli(['serve'], { env, cwd: dir });
    const port = await listening(running);
    const url = `postgresql://app:app-secret@127.0.0.1:${port}/shop`;
    await withClient(url, async (client) => {
      await client.query('INSERT INTO orders VALUES ($1, $2)', [3, 2]);
      expect((await client.query('SELECT id FROM orders WHERE tenant_id = 3 ORDER BY id')).rows).toEqual([
        { id: '1' },
        { id: '2' },
      ]);
      await expect(client.query('DELETE FROM orders WHERE tenant_id = 3')).rejects.toMatchObject({ code: '42501' });
    });
    const wrong = new pg.Client(url.replace('app-secret', 'wrong'));
    await expect(wrong.connect()).rejects.toMatchObject({ code: '28P01' });
    running.child.kill('SIGTERM');
    const { code, stdout, stderr } = await running.ended;
    expect({ code, stdout }).toEqual({ code: 143, stdout: '' });
    for (const secret of [one.password, two.password, 'app-secret']) expect(stderr).not.toContain(secret);
  });

  it('runs its parts apart: the proxy alone', async () => {
    const running = startCli(['serve', '--only', 'proxy'], { env, cwd: dir });
    const port = await listening(running);
    await withClient(`postgresql://app:app-secret@127.0.0.1:${port}/shop`, (client) => client.query('SELECT 1'));
    running.child.kill('SIGINT');
    expect((await running.ended).code).toBe(130);
  });

  it('says that its port is taken, and stops what it has started', async () => {
    const holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve));
    const { port } = holder.address() as { port: number };
    const { code, stderr } = await cli(['serve', '--port', String(port)], { env, cwd: dir });
    holder.close();
    expect(code).toBe(2);
    expect(stderr).toMatch(new RegExp(`foreshard: port ${port} .*taken\\nhint: .*--port`));
    expect(await cli(['serve', '--port', '70000'], { env, cwd: dir })).toMatchObject({ code: 2 });
  });
});
