import { spawn } from 'node:child_process';
import events from 'node:events';
import { createServer } from 'node:net';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { sendCancelRequest } from '../../proxy/backend/cancel-request.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { alive } from './process-tree.js';
import { CLI } from './run-cli.js';
import { type LogLine, type ServeProcesses, Serving, slotOfClient } from './serving.js';
import { temporaryDirectory } from './temporary-directory.js';

let serving: Serving;
const dir = temporaryDirectory('foreshard-restart-');

beforeAll(async () => {
  serving = await Serving.start(dir);
});

afterAll(async () => {
  await serving?.stop();
});

/** Clients that come, ask, and go, one after the other in several strands, until told to stop. */
function churn(processes: ServeProcesses, strands: number) {
  const { url } = processes;
  let going = true;
  let count = 0;
  const failures: unknown[] = [];
  const strand = async () => {
    while (going) {
      const client = new pg.Client({ connectionString: url });
      client.on('error', (error) => failures.push(error));
      try {
        await client.connect();
        await client.query('SELECT id FROM orders WHERE tenant_id = 1');
        await client.end();
        count += 1;
      } catch (error) {
        failures.push(error);
      }
    }
  };
  const done = Promise.all(Array.from({ length: strands }, strand));
  return {
    count: () => count,
    stop: async () => {
      going = false;
      await done;
      return { failures };
    },
  };
}

describe('SIGUSR2', () => {
  it('puts new processes in place of the old while clients come, stay and work; none is refused, cut or lost', async () => {
    const processes = await serving.serve('--workers', '2');
    const old = processes.children;
    const clients = churn(processes, 8);
    const { client: open, lost } = await processes.connect();
    await open.query('BEGIN');
    await open.query('INSERT INTO orders VALUES (1, 1)');
    const { client: idle } = await processes.connect();

    for (let restart = 1; restart <= 2; restart++) {
      const before = clients.count();
      await waitFor(() => clients.count() > before + 20, { what: 'clients' });
      processes.signal('SIGUSR2');
      await processes.logged('restarted', restart);
    }
    await waitFor(() => clients.count() > 100, { what: 'clients' });
    expect((await clients.stop()).failures).toEqual([]);

    // Who is in stays in, with what is open; whoever comes now gets a new process.
    const { client: fresh } = await processes.connect();
    expect(slotOfClient(fresh)).not.toBe(slotOfClient(open));
    expect(alive(old).length).toBeGreaterThan(0);
    await open.query('COMMIT');
    expect((await open.query('SELECT id FROM orders WHERE tenant_id = 1')).rows).toEqual([{ id: '1' }]);
    expect((await idle.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    expect(lost()).toBeNull();

    // A cancel request comes in at a new process and reaches the old one.
    const canceled = open.query('SELECT pg_sleep(600)').then(
      () => null,
      (error: { code: string }) => error.code,
    );
    await waitFor(
      async () =>
        (
          await serving.direct(
            'postgres',
            `SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'`,
          )
        ).length === 1,
      { what: 'the statement to run' },
    );
    const { processID, secretKey } = open as unknown as { processID: number; secretKey: number };
    const secret = Buffer.alloc(4);
    secret.writeInt32BE(secretKey);
    await sendCancelRequest(
      { shard: 'proxy', host: '127.0.0.1', port: processes.port },
      { processId: processID, secret },
    );
    expect(await canceled).toBe('57014');

    await open.end();
    await idle.end();
    await waitFor(() => alive(old).length === 0, { what: 'the end of the old processes' });
    await fresh.end();
    expect(await processes.stop()).toEqual({ code: 143, left: [] });
    expect(await serving.direct('foreshard', 'SELECT FROM foreshard.proxy')).toEqual([]);
  });

  it('goes on as before when the new processes cannot start', async () => {
    const processes = await serving.serve();
    const { client } = await processes.connect();
    const before = processes.children;
    serving.write('catalog: {url: "postgresql://nobody@127.0.0.1:1/foreshard"}\n');
    processes.signal('SIGUSR2');
    expect((await processes.logged('the restart has failed')).msg).toContain('127.0.0.1:1');
    serving.write('proxy: {pool: {sise: 3}}\n');
    processes.signal('SIGUSR2');
    expect((await processes.logged('the restart has failed', 2)).msg).toContain('did you mean "size"?');
    await waitFor(() => processes.children.length === before.length, { what: 'the end of those that failed' });
    expect(processes.children.sort()).toEqual(before.sort());
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await (await processes.connect()).client.end();

    serving.configure({ workers: 2 });
    processes.signal('SIGUSR2');
    expect(await processes.logged('restarted')).toMatchObject({ workers: 2 });
    await client.end();
    await processes.stop();
    serving.configure({});
  });

  it('lets clients of the old processes go between transactions when their time is up', async () => {
    serving.configure({ limits: { drainTimeoutMs: 1 } });
    const processes = await serving.serve();
    const idle = await processes.connect();
    const busy = await processes.connect();
    await busy.client.query('BEGIN');
    processes.signal('SIGUSR2');
    await waitFor(() => idle.lost() !== null, { what: 'the idle client to be let go' });
    expect(idle.lost()).toMatchObject({ code: '57P01' });
    expect((await busy.client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await busy.client.query('COMMIT');
    await waitFor(() => busy.lost() !== null, { what: 'the end after the transaction' });
    expect(busy.lost()).toMatchObject({ code: '57P01' });
    await processes.logged('the processes from before the restart have ended');
    await processes.stop();
    serving.configure({});
  });
});

describe('a socket that the service manager holds', () => {
  it('is served, and clients that come between two runs wait for the next', async () => {
    // As systemd does it: file descriptor 3, and LISTEN_PID is the process's own. The shell keeps the socket between the runs.
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as { port: number };
    const once = `LISTEN_FDS=1 sh -c 'LISTEN_PID=$$ exec "$0" "$1" serve' "$0" "$1"`;
    const manager = spawn('sh', ['-c', `${once}; ${once}; exit 0`, process.execPath, CLI], {
      cwd: dir,
      stdio: ['ignore', 'ignore', 'pipe', (server as unknown as { _handle: { fd: number } })._handle.fd],
    });
    server.close();
    let stderr = '';
    manager.stderr?.on('data', (text: Buffer) => {
      stderr += text;
    });
    const ready = (run: number) =>
      waitFor(
        () => {
          const lines = stderr.split('\n').filter((line) => line.includes('"msg":"ready"'));
          return lines[run - 1] === undefined ? null : (JSON.parse(lines[run - 1] as string) as LogLine);
        },
        { what: 'the proxy' },
      );
    const url = `postgresql://app:app-secret@127.0.0.1:${port}/shop`;
    const first = await ready(1);
    expect(first.listen).toBe(`127.0.0.1:${port}`);
    await withClient(url, (client) => client.query('SELECT 1'));
    process.kill(first.pid, 'SIGTERM');
    await waitFor(() => alive([first.pid]).length === 0, { what: 'the end of the first run' });
    const waiting = withClient(url, async (client) => (await client.query('SELECT 1 AS one')).rows);
    expect(await waiting).toEqual([{ one: 1 }]);
    const second = await ready(2);
    process.kill(second.pid, 'SIGTERM');
    expect((await events.once(manager, 'exit'))[0]).toBe(0);
  });
});
