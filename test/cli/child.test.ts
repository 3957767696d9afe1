import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Child } from '../../cli/processes/child.js';
import { waitFor } from '../support/wait-for.js';
import { buildCli, CLI } from './run-cli.js';
import { temporaryDirectory } from './temporary-directory.js';

const dir = temporaryDirectory('foreshard-child-');
const [node, program] = process.argv as [string, string];

beforeAll(buildCli, 180_000);

const children: Child[] = [];

/** It does not outlive its test. */
function started(child: Child): Child {
  children.push(child);
  return child;
}

beforeEach(() => {
  // Which a child is started from.
  process.argv = [node, CLI];
});

afterEach(async () => {
  process.argv = [node, program];
  for (const child of children.splice(0)) {
    child.kill();
    await child.ended;
  }
});

/** A process that has read its configuration and was not told to go: it lets go of whoever it is given. */
async function start(): Promise<Child> {
  const config = join(dir, 'foreshard.yaml');
  writeFileSync(config, JSON.stringify({ catalog: { url: 'postgresql://127.0.0.1:1/foreshard' }, database: 'shop' }));
  const child = started(new Child({ kind: 'proxy', slot: 0, index: 0 }, { config }, () => undefined));
  await child.plan;
  return child;
}

/** What `give` makes of so many clients that connect one after the other, and what is left of each. */
async function giveAll(child: Child, count: number): Promise<WeakRef<Socket>[]> {
  const given: WeakRef<Socket>[] = [];
  const server = createServer({ pauseOnConnect: true }, (socket) => {
    given.push(new WeakRef(socket));
    void child.give(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  for (let i = 0; i < count; i++) {
    const client = connect((server.address() as AddressInfo).port, '127.0.0.1');
    await once(client, 'close');
  }
  server.close();
  return given;
}

/** A client's socket, as it was accepted, and the client's end of it. */
async function connection(): Promise<{ readonly socket: Socket; readonly client: Socket }> {
  const server = createServer({ pauseOnConnect: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1');
  client.on('error', () => undefined);
  const [socket] = (await once(server, 'connection')) as [Socket];
  server.close();
  return { socket, client };
}

async function connected(): Promise<Socket> {
  return (await connection()).socket;
}

describe('a process of foreshard serve', () => {
  it('is all that has a client which it was given: nothing of it stays with the parent', async () => {
    const child = await start();
    const given = await giveAll(child, 20);
    expect(given.length).toBe(20);
    await waitFor(() => child.clients === 0 || null, { what: 'clients that have left' });
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    await waitFor(
      () => {
        collect();
        return given.every((socket) => socket.deref() === undefined);
      },
      { what: 'sockets that nobody holds' },
    );
  });

  it('takes nobody once it has ended', async () => {
    const child = await start();
    child.kill();
    await child.ended;
    const socket = await connected();
    expect(await child.give(socket)).toBe(false);
    expect(socket.destroyed).toBe(false);
    socket.destroy();
    expect(child.clients).toBe(0);
  });

  it('gives a client back only when it has ended, not while it is about to', async () => {
    // As one that was killed is seen for a moment: its channel is closed, and its end is still to be heard of.
    const hungUp = join(dir, 'hung-up');
    const script = join(dir, 'hang-up.mjs');
    writeFileSync(
      script,
      `process.once('disconnect', () => writeFileSync(${JSON.stringify(hungUp)}, ''));
       import { writeFileSync } from 'node:fs';
       process.disconnect();
       setInterval(() => undefined, 1000);`,
    );
    process.argv = [node, script];
    const child = started(new Child({ kind: 'proxy', slot: 0, index: 0 }, {}, () => undefined));
    await waitFor(() => existsSync(hungUp), { what: 'a process that has hung up' });
    const socket = await connected();
    const told: string[] = [];
    const given = child.give(socket).then((taken) => told.push(`given: ${taken}`));
    // It would be offered again at once, and nothing else would have its turn any more.
    for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(told).toEqual([]);
    child.kill();
    await given;
    expect(told).toEqual(['given: false']);
    expect(socket.destroyed).toBe(false);
    socket.destroy();
  });

  it('leaves no client behind that was on its way when it died', async () => {
    const child = await start();
    // It takes none of them.
    process.kill(child.pid as number, 'SIGSTOP');
    const clients: Socket[] = [];
    for (let i = 0; i < 4; i++) {
      const { socket, client } = await connection();
      clients.push(client.resume());
      void child.give(socket);
    }
    child.kill();
    await child.ended;
    await waitFor(() => clients.every((client) => client.destroyed), { what: 'the end of all clients' });
  });

  it('has whoever waits for its answer told when it ends', async () => {
    const child = await start();
    const reloaded = child.reload();
    child.kill();
    expect(await reloaded).toMatchObject({ kind: 'failed', failure: { message: expect.stringContaining('SIGKILL') } });
    expect(await child.reload()).toMatchObject({ kind: 'failed' });
    await child.ended;
  });
});
