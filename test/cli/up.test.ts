import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { buildCli, cli, type RunningCli, startCli } from './run-cli.js';
import { temporaryDirectory } from './temporary-directory.js';

interface Ready {
  url: string;
  catalog: string;
  shards: { name: string; url: string }[];
}

// With a blank, as paths of users have them.
const base = temporaryDirectory('foreshard up ');
const dir = join(base, 'data');
const running = new Set<RunningCli>();

function up(...args: string[]): RunningCli {
  const started = startCli(['up', '--dir', dir, '--json', ...args]);
  running.add(started);
  void started.ended.finally(() => running.delete(started));
  return started;
}

async function ready(started: RunningCli): Promise<Ready> {
  await waitFor(() => started.stdout().includes('\n') || started.child.exitCode !== null, {
    what: 'the cluster',
  });
  expect(started.stderr()).toBe('');
  expect(started.stdout().trim().split('\n').length).toBe(1);
  return JSON.parse(started.stdout()) as Ready;
}

async function stop(started: RunningCli, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  started.child.kill(signal);
  const { code } = await started.ended;
  expect(code).toBe(signal === 'SIGTERM' ? 143 : 130);
}

async function canConnect(url: string): Promise<boolean> {
  return withClient(url, async () => true).catch(() => false);
}

beforeAll(async () => {
  await buildCli();
});

afterEach(async () => {
  for (const left of running) {
    left.child.kill('SIGTERM');
    await left.ended;
  }
});

describe('up', () => {
  let first: Ready;

  it('starts two shards, lets a driver in, and stops everything on SIGTERM', async () => {
    const started = up('--port', '0');
    first = await ready(started);
    expect(first.shards.map((s) => s.name)).toEqual(['s1', 's2']);

    await withClient(first.url, async (client) => {
      expect((await client.query('SELECT current_user AS u, current_database() AS d')).rows).toEqual([
        { u: 'app', d: 'app' },
      ]);
      await client.query('CREATE TABLE notes (tenant_id bigint, id bigint, body text, PRIMARY KEY (tenant_id, id))');
      await client.query('INSERT INTO notes VALUES (1, 1, $1), (2, 1, $2)', ['a', "it's"]);
    });
    // The same password opens every shard.
    for (const shard of first.shards) {
      const asApp = new URL(shard.url);
      const { username, password } = new URL(first.url);
      Object.assign(asApp, { username, password });
      expect(await canConnect(asApp.href)).toBe(true);
    }
    const topology = await cli(['topology', 'show', '--json', '--catalog', first.catalog]);
    expect(topology.json<{ shards: { name: string; home: boolean }[] }>().shards).toMatchObject([
      { name: 's1', home: true },
      { name: 's2', home: false },
    ]);

    await stop(started);
    for (const url of [first.url, first.catalog, ...first.shards.map((s) => s.url)])
      expect(await canConnect(url)).toBe(false);
    expect(readdirSync(dir).sort()).toEqual(['app-password', 'foreshard.yaml', 'ports.json', 's1', 's2']);
    for (const file of ['app-password', 'foreshard.yaml']) expect(statSync(join(dir, file)).mode & 0o077).toBe(0);
  });

  it('goes on with all data in the same directory, with one shard more when asked', async () => {
    const started = up('--port', '0', '--shards', '3');
    const again = await ready(started);
    expect(again.shards.map((s) => s.name)).toEqual(['s1', 's2', 's3']);
    expect(new URL(again.url).password).toBe(new URL(first.url).password);
    expect(
      await withClient(
        again.url,
        async (client) => (await client.query('SELECT body FROM notes ORDER BY tenant_id')).rows,
      ),
    ).toEqual([{ body: 'a' }, { body: "it's" }]);
    // The configuration that it wrote serves the other commands.
    const config = join(dir, 'foreshard.yaml');
    const list = await cli(['shard', 'list', '--json', '--config', config]);
    const ports = list.json<{ url: string }[]>().map((s) => new URL(s.url).port);
    expect(ports).toEqual(again.shards.map((s) => new URL(s.url).port));

    const second = await cli(['up', '--dir', dir, '--port', '0', '--json']);
    expect(second).toMatchObject({
      code: 2,
      stdout: '',
      stderr: expect.stringMatching(/is in use by another "foreshard up"/),
    });
    expect(await canConnect(again.url)).toBe(true);
    await stop(started, 'SIGINT');
  });

  it('refuses fewer shards than there are, and numbers that are none', async () => {
    expect(await cli(['up', '--dir', dir, '--port', '0', '--shards', '2'])).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/has 3 shards, and --shards says 2/),
    });
    for (const args of [
      ['--shards', '0'],
      ['--shards', 'x'],
      ['--port', '70000'],
    ])
      expect(await cli(['up', '--dir', join(base, 'none'), ...args])).toMatchObject({ code: 2 });
    expect(existsSync(join(base, 'none'))).toBe(false);
  });

  it('names --port when the port is taken, and leaves nothing behind', async () => {
    const holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve));
    const { port } = holder.address() as { port: number };
    const fresh = join(base, 'fresh');
    const result = await cli(['up', '--dir', fresh, '--port', String(port), '--json']);
    holder.close();
    expect(result).toMatchObject({
      code: 2,
      stdout: '',
      stderr: expect.stringMatching(new RegExp(`port ${port} .*in use\\nhint: .*--port`)),
    });
    expect(existsSync(fresh)).toBe(false);
  });

  it('stops cleanly when it is told to while starting', async () => {
    const started = up('--port', '0');
    await waitFor(() => existsSync(join(dir, 's1', 'cluster', 'data', 'postmaster.pid')), { what: 'the first server' });
    await stop(started);
    expect(started.stdout()).toBe('');
    expect(readFileSync(join(dir, 'app-password'), 'utf8').trim().length).toBeGreaterThan(20);
    const again = up('--port', '0');
    expect((await ready(again)).shards.length).toBe(3);
    await stop(again);
  });

  it('says so when one of its servers ends', async () => {
    const started = up('--port', '0');
    await ready(started);
    const pidFile = join(dir, 's2', 'cluster', 'data', 'postmaster.pid');
    process.kill(Number(readFileSync(pidFile, 'utf8').split('\n')[0]), 'SIGQUIT');
    await waitFor(() => started.stderr().includes('server s2 has ended'), { what: 'the message' });
    await stop(started);
  });
});
