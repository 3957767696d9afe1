import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { findTools, run } from '../support/tools.js';
import { waitFor } from '../support/wait-for.js';

const PROGRAMS = ['pg_basebackup', 'pg_receivewal', 'pg_recvlogical', 'pg_verifybackup'];
const found = findTools();
const tools = found !== null && PROGRAMS.every((name) => existsSync(join(found.binDir, name))) ? found : null;
if (found !== null && tools === null) process.stderr.write(`skipped: no ${PROGRAMS.join(', ')} in ${found.binDir}\n`);

describe.skipIf(tools === null)('PostgreSQL’s replication programs', () => {
  let sharded: Sharded;
  let dir = '';
  const program = (name: string) => join(tools?.binDir ?? '', name);
  const connection = (dbname = '') => `host=127.0.0.1 port=${sharded.proxy.port} user=app password=secret ${dbname}`;

  /** Runs until `done`, then is told to end as a person would tell it, and ends well. */
  async function follow(name: string, args: readonly string[], done: () => Promise<boolean>): Promise<string> {
    const child = spawn(program(name), args, { env: { PATH: process.env.PATH ?? '', LC_ALL: 'C.UTF-8' } });
    let stderr = '';
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const ended = new Promise<number | null>((resolve) => child.on('close', resolve));
    try {
      await waitFor(async () => child.exitCode !== null || (await done()), { what: `${name} to get it` });
      child.kill('SIGINT');
      expect([await ended, stderr]).toEqual([0, expect.any(String)]);
      return stderr;
    } finally {
      child.kill('SIGKILL');
    }
  }

  beforeAll(async () => {
    dir = mkdtempSync(join(tmpdir(), 'foreshard-replication-'));
    sharded = await Sharded.start({
      splitAt: null,
      ...(tools === null ? {} : { binDir: tools.binDir }),
      auth: {
        method: 'reject',
        users: new Map(),
        hba: ['host replication app all scram-sha-256', 'host shop app all scram-sha-256'],
      },
    });
    await sharded.onShard(0, 'ALTER ROLE app REPLICATION');
    await sharded.catalog.pool.query(`DELETE FROM foreshard.shard WHERE name = 's2'`);
    await sharded.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    await sharded.catalog.pool.query('NOTIFY foreshard_topology');
    await sharded.reloaded();
  });
  afterAll(async () => {
    await sharded?.stop();
    if (dir !== '') rmSync(dir, { recursive: true, force: true });
  });

  it('pg_basebackup: a whole copy, its write-ahead log streamed beside it, that can be verified', async () => {
    const to = join(dir, 'base');
    const taken = await run(program('pg_basebackup'), [
      ...['-d', connection(), '-D', to, '-X', 'stream', '-c', 'fast', '--no-sync', '-P'],
    ]);
    expect(taken).toMatchObject({ code: 0 });
    expect(readFileSync(join(to, 'PG_VERSION'), 'utf8').trim()).toBe(String(tools?.majorVersion));
    expect(await run(program('pg_verifybackup'), [to])).toMatchObject({ code: 0 });
  });

  it('pg_receivewal: what is written while it runs', async () => {
    const to = mkdtempSync(join(dir, 'wal-'));
    const create = ['-d', connection(), '--slot', 'receiver', '--create-slot'];
    expect(await run(program('pg_receivewal'), create)).toMatchObject({ code: 0 });
    await sharded.onShard(0, `INSERT INTO settings VALUES ('wal', 'one')`);
    await follow('pg_receivewal', ['-d', connection(), '-D', to, '--slot', 'receiver', '-s', '1'], async () => {
      await sharded.onShard(0, 'SELECT pg_switch_wal()');
      return readdirSync(to).some((name) => /^[0-9A-F]{24}$/.test(name));
    });
    const drop = ['-d', connection(), '--slot', 'receiver', '--drop-slot'];
    expect(await run(program('pg_receivewal'), drop)).toMatchObject({ code: 0 });
  });

  it('pg_recvlogical: changes of the database, decoded', async () => {
    const out = join(dir, 'changes');
    const slot = ['-d', connection('dbname=shop'), '--slot', 'reader'];
    await sharded.onShard(0, 'CREATE PUBLICATION everything FOR ALL TABLES');
    const create = [...slot, '--create-slot', '-P', 'pgoutput'];
    expect(await run(program('pg_recvlogical'), create)).toMatchObject({ code: 0 });
    const options = ['-o', 'proto_version=1', '-o', 'publication_names=everything', '-F', '1', '-s', '1'];
    await sharded.onShard(0, `INSERT INTO settings VALUES ('logical', 'seen by pg_recvlogical')`);
    await follow('pg_recvlogical', [...slot, '--start', '-f', out, ...options], async () =>
      existsSync(out) ? readFileSync(out, 'latin1').includes('seen by pg_recvlogical') : false,
    );
    await waitFor(
      async () => (await sharded.onShard(0, 'SELECT FROM pg_replication_slots WHERE active')).length === 0,
      { what: 'the server to notice that it has gone' },
    );
    expect(await run(program('pg_recvlogical'), [...slot, '--drop-slot'])).toMatchObject({ code: 0 });
  });
});
