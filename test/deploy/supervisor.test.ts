import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { withClient } from '../support/client.js';
import { installEmbedded, startOwner } from '../support/cluster-owner.js';
import { waitFor } from '../support/wait-for.js';

const modules = join(dirname(fileURLToPath(import.meta.url)), '..', '..', 'node_modules');
let target: string;

beforeAll(() => {
  // Below node_modules, where the copy finds the PostgreSQL package as the original does.
  target = mkdtempSync(join(modules, '.foreshard-test-'));
  installEmbedded(target);
});

afterAll(() => rmSync(target, { recursive: true, force: true }));

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ port, host: '127.0.0.1' }, () => resolve(true));
    socket.on('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });
}

test.each(['SIGKILL', 'SIGTERM'] as const)(
  'a process that dies of %s leaves no server, port or directory',
  async (signal) => {
    const owner = await startOwner(target, {});
    expect(await isListening(owner.port)).toBe(true);
    // A busy server goes as well.
    const busy = withClient(owner.url, (client) => client.query('SELECT pg_sleep(3600)')).catch(
      (error: unknown) => error,
    );
    owner.child.kill(signal);
    await waitFor(() => !isAlive(owner.pid), { what: 'the end of the server' });
    await waitFor(() => !existsSync(owner.dir), { what: 'the removal of its directory' });
    expect(await isListening(owner.port)).toBe(false);
    expect(await busy).toBeInstanceOf(Error);
  },
);

test('a persistent cluster keeps its rows when its process is killed, and starts again', async () => {
  const parent = mkdtempSync(join(tmpdir(), 'foreshard-test-'));
  chmodSync(parent, 0o755);
  const dir = join(parent, 'with space');
  const stopped = (pid: number) => waitFor(() => !isAlive(pid), { what: 'the end of the server' });
  try {
    const first = await startOwner(target, { dir });
    await withClient(first.url, (client) => client.query('CREATE TABLE t AS SELECT 7 AS n'));
    await expect(startOwner(target, { dir })).rejects.toThrow(/in use by another server/);
    first.child.kill('SIGKILL');
    await stopped(first.pid);
    const second = await startOwner(target, { dir });
    const { rows } = await withClient(second.url, (client) => client.query('SELECT n FROM t'));
    expect(rows).toEqual([{ n: 7 }]);
    second.child.kill('SIGKILL');
    await stopped(second.pid);
  } finally {
    rmSync(parent, { recursive: true, force: true });
  }
});
