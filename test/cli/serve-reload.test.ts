import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { waitFor } from '../support/wait-for.js';
import { type ServeProcesses, Serving } from './serving.js';
import { temporaryDirectory } from './temporary-directory.js';

let serving: Serving;
const dir = temporaryDirectory('foreshard-reload-');

beforeAll(async () => {
  serving = await Serving.start(dir);
});

afterAll(async () => {
  await serving?.stop();
});

/** What a login with this password ends in. */
async function login(processes: ServeProcesses, password: string): Promise<string> {
  const client = new pg.Client(processes.url.replace('app-secret', password));
  client.on('error', () => undefined);
  try {
    await client.connect();
    return 'in';
  } catch (error) {
    return (error as { code: string }).code;
  } finally {
    await client.end().catch(() => undefined);
  }
}

const users = (password: string) => ({
  auth: { users: { app: { password } } },
  serverPasswords: { app: { password: 'app-secret' } },
});

describe('SIGHUP', () => {
  it('applies users and limits to new work in every process, and names what needs a restart', async () => {
    serving.configure({ ...users('first'), workers: 2 });
    const processes = await serving.serve();
    const { client } = await processes.connect(processes.url.replace('app-secret', 'first'));
    const children = processes.children.sort();

    serving.configure({ ...users('second'), workers: 3, lease: { ttlMs: 9000 } });
    processes.signal('SIGHUP');
    await processes.logged('the configuration was read again');
    expect(processes.stderr).toContain('proxy.workers, proxy.lease.ttlMs: changed');
    // One after the other they come to every process.
    for (let i = 0; i < 4; i++) expect(await login(processes, 'second')).toBe('in');
    for (let i = 0; i < 2; i++) expect(await login(processes, 'first')).toBe('28P01');
    expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    expect(processes.children.sort()).toEqual(children);

    serving.configure({ ...users('second'), limits: { maxClients: 2 } });
    processes.signal('SIGHUP');
    await processes.logged('the configuration was read again', 2);
    const { client: another } = await processes.connect(processes.url.replace('app-secret', 'second'));
    await waitFor(async () => (await login(processes, 'second')) === '53300', { what: 'the limit' });
    await client.end();
    await another.end();
    await processes.stop();
  });

  it('keeps everything as it was when the file has mistakes, and says each of them', async () => {
    serving.configure(users('first'));
    const processes = await serving.serve();
    serving.configure({ ...users('second'), pool: { sise: 1 }, limits: { maxClients: -1 } });
    processes.signal('SIGHUP');
    const { msg } = await processes.logged('the configuration is as before');
    expect(msg).toContain('proxy.pool.sise: unknown key');
    expect(msg).toContain('proxy.limits.maxClients');
    serving.configure({ ...users('second'), auth: { hba: ['host all all everywhere scram-sha-256'] } });
    processes.signal('SIGHUP');
    await processes.logged('the configuration is as before', 2);
    expect(await login(processes, 'first')).toBe('in');
    expect(await login(processes, 'second')).toBe('28P01');
    await processes.stop();
  });

  it('starts the planner again when its part of the file has changed', async () => {
    serving.configure(users('first'));
    const processes = await serving.serve();
    const before = processes.children;
    serving.write(
      JSON.stringify({
        catalog: serving.cluster.url('foreshard'),
        database: 'shop',
        proxy: { name: 'test', listen: { port: 0 }, ...users('first') },
        planner: { intervalSeconds: 200 },
      }),
    );
    processes.signal('SIGHUP');
    await processes.logged('the configuration was read again');
    await waitFor(
      () => {
        const now = processes.children;
        return now.length === before.length && now.filter((pid) => !before.includes(pid)).length === 1;
      },
      { what: 'the new process of planner and migrator' },
    );
    expect(await login(processes, 'first')).toBe('in');
    await processes.stop();
  });
});

describe('the admin database', () => {
  const admin = (processes: ServeProcesses) =>
    processes.url.replace('app-secret', 'first').replace('/shop', '/foreshard_admin');

  it('reloads all processes, says what is wrong, and shows the clients of all', async () => {
    serving.configure({ ...users('first'), admin: { users: ['app'] }, workers: 2 });
    const processes = await serving.serve();
    const { client } = await processes.connect(admin(processes));
    serving.write('proxy: {pool: {sise: 1}}');
    await expect(client.query('RELOAD')).rejects.toThrow('did you mean "size"?');
    serving.configure({ ...users('second'), admin: { users: ['app'] }, workers: 2 });
    await client.query('RELOAD');
    for (let i = 0; i < 2; i++) expect(await login(processes, 'second')).toBe('in');
    const url = processes.url.replace('app-secret', 'second');
    const clients = await Promise.all([processes.connect(url), processes.connect(url)]);
    const { rows } = await client.query<{ database: string }>('SHOW CLIENTS');
    expect(rows.filter(({ database }) => database === 'shop').length).toBe(2);
    for (const { client: one } of clients) await one.end();
    await client.end();
    await processes.stop();
  });

  it('ends all processes when the clients have left: SHUTDOWN WAIT_FOR_CLIENTS', async () => {
    serving.configure({ ...users('first'), admin: { users: ['app'] }, workers: 2 });
    const processes = await serving.serve();
    const url = processes.url.replace('app-secret', 'first');
    const clients = await Promise.all([processes.connect(url), processes.connect(url)]);
    const { client: operator } = await processes.connect(admin(processes));
    await operator.query('SHUTDOWN WAIT_FOR_CLIENTS');
    await operator.end();
    await processes.logged('stopping');
    await expect(processes.connect(url)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    for (const { client, lost } of clients) {
      expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
      expect(lost()).toBeNull();
      await client.end();
    }
    expect(await processes.ended()).toBe(0);
  });

  it('ends each client after its transaction: SHUTDOWN WAIT_FOR_SERVERS', async () => {
    serving.configure({ ...users('first'), admin: { users: ['app'] }, workers: 2 });
    const processes = await serving.serve();
    const url = processes.url.replace('app-secret', 'first');
    const idle = await processes.connect(url);
    const busy = await processes.connect(url);
    await busy.client.query('BEGIN');
    await busy.client.query('INSERT INTO orders VALUES (5, 5)');
    const { client: operator } = await processes.connect(admin(processes));
    await operator.query('SHUTDOWN WAIT_FOR_SERVERS');
    await waitFor(() => idle.lost() !== null, { what: 'the idle client to be let go' });
    await busy.client.query('COMMIT');
    await waitFor(() => busy.lost() !== null, { what: 'the other to be let go' });
    expect([idle.lost(), busy.lost()]).toMatchObject([{ code: '57P01' }, { code: '57P01' }]);
    await operator.end().catch(() => undefined);
    expect(await processes.ended()).toBe(0);
    expect(await serving.direct('shop', 'SELECT id FROM orders WHERE tenant_id = 5')).toEqual([{ id: '5' }]);
  });
});
