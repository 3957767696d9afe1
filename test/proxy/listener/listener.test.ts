import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Accepted, Listener } from '../../../proxy/listener/listener.js';

let dir: string;
const listeners: Listener[] = [];
const children: ChildProcess[] = [];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'fs-'));
});
afterEach(async () => {
  for (const listener of listeners.splice(0)) {
    listener.destroyAll();
    await listener.stop();
  }
  for (const child of children.splice(0)) child.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

async function start(options: Partial<Parameters<typeof Listener.start>[0]>): Promise<Listener> {
  const listener = await Listener.start({ host: '127.0.0.1', port: 0, ...options });
  listeners.push(listener);
  return listener;
}

/** What the listener accepts when somebody connects there. */
async function accepted(
  listener: Listener,
  where: { port: number; host: string } | { path: string },
): Promise<Accepted> {
  const arrival = new Promise<Accepted>((resolve) => listener.open(resolve));
  const client: Socket = connect(where);
  client.on('error', () => undefined);
  const found = await arrival;
  client.destroy();
  return found;
}

describe('Listener', () => {
  test('several addresses, one port', async () => {
    const listener = await start({ host: ['127.0.0.1', '127.0.0.2'] });
    const { port } = listener;
    expect(listener.addresses).toEqual([`127.0.0.1:${port}`, `127.0.0.2:${port}`]);
    for (const host of ['127.0.0.1', '127.0.0.2']) expect((await accepted(listener, { host, port })).kind).toBe('tcp');
  });

  test('every interface, and a name', async () => {
    for (const host of ['*', 'localhost']) {
      const listener = await start({ host });
      expect((await accepted(listener, { host: '127.0.0.1', port: listener.port })).kind).toBe('tcp');
    }
  });

  test('a taken port, and a name that there is not', async () => {
    const { port } = await start({});
    await expect(start({ port })).rejects.toMatchObject({
      sqlstate: '58030',
      message: `port ${port} on 127.0.0.1 is taken`,
    });
    await expect(start({ host: 'nowhere.invalid' })).rejects.toMatchObject({
      message: 'could not translate host name "nowhere.invalid" to an address',
    });
  });

  test('a socket that another process listens on', async () => {
    const elsewhere = createServer();
    elsewhere.listen(0, '127.0.0.1');
    await once(elsewhere, 'listening');
    const listener = await start({ handles: [elsewhere] });
    expect((await accepted(listener, { host: '127.0.0.1', port: listener.port })).kind).toBe('tcp');
    elsewhere.close();
  });
});

describe('Unix sockets', () => {
  test('are where clients look for them, with their mode and a lock, and gone afterwards', async () => {
    const listener = await start({ socketDirectory: dir, socketMode: 0o700 });
    const path = join(dir, `.s.PGSQL.${listener.port}`);
    expect(listener.addresses.at(-1)).toBe(path);
    expect((await accepted(listener, { path })).kind).toBe('unix');
    expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(readFileSync(`${path}.lock`, 'utf8').split('\n').slice(0, 1)).toEqual([String(process.pid)]);
    listener.destroyAll();
    await listener.stop();
    for (const file of [path, `${path}.lock`]) expect(existsSync(file)).toBe(false);
  });

  /** A process that lives until it is killed. */
  async function another(): Promise<ChildProcess> {
    const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1e6)']);
    children.push(child);
    await once(child, 'spawn');
    return child;
  }

  test('what a dead process left is replaced, a living one is not', async () => {
    const child = await another();
    const probe = await start({});
    const { port } = probe;
    await probe.stop();
    const path = join(dir, `.s.PGSQL.${port}`);
    writeFileSync(`${path}.lock`, `${child.pid}\n`);
    await expect(start({ port, socketDirectory: dir })).rejects.toMatchObject({
      sqlstate: '58030',
      message: `lock file "${path}.lock" already exists`,
      hint: `Is another process (PID ${child.pid}) using socket file "${path}"?`,
    });
    child.kill('SIGKILL');
    await once(child, 'exit');
    const listener = await start({ port, socketDirectory: dir });
    expect((await accepted(listener, { path })).kind).toBe('unix');
  });

  test('a successor’s socket is not removed', async () => {
    const listener = await start({ socketDirectory: dir });
    const path = join(dir, `.s.PGSQL.${listener.port}`);
    writeFileSync(`${path}.lock`, '1\n');
    await listener.stop();
    expect(existsSync(path)).toBe(true);
  });

  test('a file that is no socket is left alone', async () => {
    const probe = await start({});
    const { port } = probe;
    const path = join(dir, `.s.PGSQL.${port}`);
    await probe.stop();
    writeFileSync(path, 'precious');
    await expect(start({ port, socketDirectory: dir })).rejects.toMatchObject({
      message: `"${path}" exists and is not a socket`,
    });
    expect(readFileSync(path, 'utf8')).toBe('precious');
    expect(existsSync(`${path}.lock`)).toBe(false);
  });
});
