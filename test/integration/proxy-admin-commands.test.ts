import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';
import type pg from 'pg';
import { describe, expect, it } from 'vitest';
import { encodeQuery } from '../../proxy/wire/frontend.js';
import { administered, failure, show } from '../support/administered.js';
import { RawPeer } from '../support/raw-peer.js';
import { waitFor } from '../support/wait-for.js';

const at = administered();
const { admin } = at;

describe('commands', () => {
  it('pauses when transactions have ended, lets clients wait, and goes on', async () => {
    const client = await at.s.connect();
    await client.query('BEGIN');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    const root = await admin();
    const look = await admin();
    let paused = false;
    const pausing = root.query('PAUSE').then((r) => {
      paused = true;
      return r;
    });
    await waitFor(async () => (await show(look, 'STATE')).some((r) => r.key === 'paused' && r.value === 'yes'), {
      what: 'the pause to begin',
    });
    expect((await failure(look.query('PAUSE'))).message).toBe('already suspended/paused');
    // The transaction that is open goes on.
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    expect(paused).toBe(false);
    await client.query('COMMIT');
    expect((await pausing).command).toBe('PAUSE');
    expect(await show(look, 'SERVERS')).toEqual([]);
    expect((await show(look, 'DATABASES')).map((row) => row.paused)).toEqual([1, 1]);
    const waiting = client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    await waitFor(async () => (await show(look, 'CLIENTS')).some((row) => row.state === 'waiting'), {
      what: 'the client to wait',
    });
    expect((await look.query('RESUME')).command).toBe('RESUME');
    await waiting;
    expect((await failure(look.query('RESUME'))).message).toBe('pooler is not paused/suspended');
    await client.end();
  });

  it('pauses one shard, and leaves the others alone', async () => {
    const client = await at.s.connect();
    const root = await admin();
    await root.query('PAUSE s2');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    expect((await show(root, 'SHARDS')).map((row) => row.paused)).toEqual([false, true]);
    const waiting = client.query('SELECT name FROM tenants WHERE tenant_id = 150');
    await waitFor(async () => (await show(root, 'CLIENTS')).some((row) => row.state === 'waiting'), {
      what: 'the client to wait',
    });
    await root.query('RESUME s2');
    await waiting;
    const error = await failure(root.query('PAUSE s3'));
    expect([error.code, error.hint]).toEqual(['3D000', expect.stringContaining('s1, s2')]);
    await client.end();
  });

  it('takes a pause back when whoever asked for it cancels, or goes away', async () => {
    const client = await at.s.connect();
    await client.query('BEGIN');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    const look = await admin();
    const isPaused = async () => (await show(look, 'STATE')).some((r) => r.key === 'paused' && r.value === 'yes');
    const root = await admin();
    const canceled = failure(root.query('PAUSE'));
    await waitFor(isPaused, { what: 'the pause to begin' });
    await at.s.cancel(root);
    expect((await canceled).code).toBe('57014');
    await waitFor(async () => !(await isPaused()), { what: 'everything to go on' });
    const other = await RawPeer.login(at.s.proxy.port, { user: 'root', password: 'toor', database: 'foreshard_admin' });
    other.send(encodeQuery('PAUSE'));
    await waitFor(isPaused, { what: 'the pause to begin again' });
    other.destroy();
    await waitFor(async () => !(await isPaused()), { what: 'everything to go on again' });
    await client.query('COMMIT');
    await client.end();
  });

  it('reconnects, and waits until old connections are closed', async () => {
    const client = await at.s.connect();
    const root = await admin();
    await client.query('BEGIN');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    const old = (await show(root, 'SERVERS')).map((row) => row.id);
    await root.query('RECONNECT');
    const held = (await show(root, 'SERVERS')).filter((row) => row.close_needed === 1);
    expect(held).toHaveLength(1);
    const look = await admin();
    const closing = root.query('WAIT_CLOSE');
    await client.query('COMMIT');
    await closing;
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    for (const row of await show(look, 'SERVERS')) expect(old).not.toContain(row.id);
    await client.end();
  });

  it('cuts one client, or all of them', async () => {
    const [victim, bystander] = [await at.s.connect(), await at.s.connect()];
    const root = await admin();
    const gone = new Promise<pg.DatabaseError>((resolve) => victim.once('error', resolve));
    await root.query(`KILL_CLIENT ${(victim as unknown as { processID: number }).processID}`);
    expect((await gone).code).toBe('57P01');
    expect((await failure(root.query('KILL_CLIENT 12345'))).message).toBe('client not found');
    await bystander.query('SELECT 1');
    const cut = new Promise<pg.DatabaseError>((resolve) => bystander.once('error', resolve));
    await root.query('KILL shop');
    expect((await cut).code).toBe('57P01');
    expect(await show(root, 'SERVERS')).toEqual([]);
    await root.query('RESUME');
    await (await at.s.connect()).query('SELECT 1');
  });

  it('lets no new client in while the database is disabled', async () => {
    const client = await at.s.connect();
    const root = await admin();
    await root.query('DISABLE shop');
    expect((await failure(at.s.connect())).code).toBe('55000');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    expect((await show(root, 'DATABASES')).map((row) => row.disabled)).toEqual([1, 1]);
    await root.query('ENABLE shop');
    await (await at.s.connect()).end();
    expect((await failure(root.query('DISABLE s1'))).code).toBe('0A000');
    expect((await failure(root.query('DISABLE'))).code).toBe('42601');
    await client.end();
  });

  it('leaves a trace of every command in the audit trail', async () => {
    const root = await admin();
    await root.query('RECONNECT s2');
    const trace = await waitFor(
      async () =>
        (
          await at.s.catalog.pool.query(
            `SELECT actor, object FROM foreshard.audit WHERE action = 'reconnect s2' ORDER BY id DESC LIMIT 1`,
          )
        ).rows[0],
      { what: 'the audit record' },
    );
    expect(trace).toEqual({ actor: 'root@127.0.0.1', object: 's2' });
  });
});

const run = promisify(execFile);
const psql = ['/usr/lib/postgresql/18/bin/psql', '/usr/lib/postgresql/15/bin/psql', '/usr/bin/psql'].find(existsSync);
if (psql === undefined) console.warn('skipped: psql with the admin database; there is no psql on this machine');

describe.skipIf(psql === undefined)('psql', () => {
  const ask = async (...commands: string[]) => {
    const args = commands.flatMap((command) => ['-c', command]);
    const where = ['-h', '127.0.0.1', '-p', String(at.s.proxy.port), '-U', 'root', '-d', 'foreshard_admin'];
    return run(psql as string, ['-X', '-A', '-v', 'ON_ERROR_STOP=1', ...where, ...args], {
      env: { ...process.env, PGPASSWORD: 'toor' },
    });
  };

  it('shows views and carries out commands', async () => {
    const { stdout } = await ask('SHOW SHARDS', 'RECONNECT', 'SHOW STATE;');
    expect(stdout).toContain('name|host|port|database|home');
    expect(stdout).toContain('(2 rows)');
    expect(stdout).toContain('RECONNECT');
    expect(stdout).toContain('paused|no');
  });

  it('says what is wrong', async () => {
    const error = await failure(ask('SHOW ME'));
    expect((error as unknown as { stderr: string }).stderr).toMatch(/ERROR:.*invalid command 'SHOW me'.*HINT:/s);
  });
});
