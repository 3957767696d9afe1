import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { withClient } from '../support/client.js';
import { Sharded } from '../support/sharded.js';
import { findTools, run } from '../support/tools.js';

const tools = findTools();

describe.skipIf(tools === null)('pg_dump and pg_restore of a keyspace on one shard', () => {
  const { binDir } = tools as NonNullable<typeof tools>;
  const dir = mkdtempSync(join(tmpdir(), 'foreshard-dump-'));
  let s: Sharded;

  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, binDir });
    await s.onShard(
      0,
      `ALTER ROLE app SUPERUSER;
       INSERT INTO tenants SELECT i, 'tenant ' || i FROM generate_series(1, 2000) i;
       INSERT INTO orders SELECT i, 1, repeat('x', 200) FROM generate_series(1, 2000) i;
       CREATE TABLE odd ("a b" bytea, c jsonb, d timestamptz[], e text COLLATE "C");
       INSERT INTO odd VALUES ('\\x0001ff', '{"a": null}', '{2024-02-29 12:00+00,NULL}', E'line\\nbreak\\\\');
       SELECT lo_from_bytea(4711, '\\xdeadbeef');
       CREATE VIEW v AS SELECT * FROM tenants WHERE tenant_id < 10;
       CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
    );
  });
  afterAll(async () => {
    await s.stop();
    rmSync(dir, { recursive: true });
  });

  const urlOf = (port: number, database: string) => `postgres://app:secret@127.0.0.1:${port}/${database}`;
  const tool = async (name: string, ...args: string[]) => {
    const outcome = await run(join(binDir, name), args);
    expect(outcome, outcome.stderr).toMatchObject({ code: 0 });
    return outcome.stdout;
  };
  /** Newer versions guard a script with a random word. */
  const unguarded = (sql: string) => sql.replace(/^\\(un)?restrict .*$/gm, '');

  it('dumps the same script as from the server itself', async () => {
    const direct = await tool('pg_dump', urlOf(s.clusters[0].port, 'shop'));
    expect(unguarded(await tool('pg_dump', urlOf(s.proxy.port, 'shop')))).toBe(unguarded(direct));
    expect(direct.length).toBeGreaterThan(400_000);
  });

  it('dumps with inserts, and only a schema', async () => {
    for (const how of ['--inserts', '--schema-only', '--rows-per-insert=50'])
      expect(unguarded(await tool('pg_dump', how, urlOf(s.proxy.port, 'shop')))).toBe(
        unguarded(await tool('pg_dump', how, urlOf(s.clusters[0].port, 'shop'))),
      );
  });

  it('dumps with several workers at one snapshot, and restores the dump', async () => {
    const archive = join(dir, 'archive');
    await tool('pg_dump', '-Fd', '-j', '3', '-f', archive, urlOf(s.proxy.port, 'shop'));
    await withClient(s.clusters[0].url('postgres'), (c) => c.query('CREATE DATABASE again'));
    await tool('pg_restore', '-j', '2', '-d', urlOf(s.clusters[0].port, 'again'), archive);
    expect(unguarded(await tool('pg_dump', urlOf(s.clusters[0].port, 'again')))).toBe(
      unguarded(await tool('pg_dump', urlOf(s.clusters[0].port, 'shop'))),
    );
  });

  it('restores through the proxy, with several workers and as one transaction', async () => {
    const before = unguarded(await tool('pg_dump', urlOf(s.clusters[0].port, 'shop')));
    const archive = join(dir, 'custom');
    await tool('pg_dump', '-Fc', '-f', archive, urlOf(s.clusters[0].port, 'shop'));
    await tool('pg_restore', '--clean', '-1', '-d', urlOf(s.proxy.port, 'shop'), archive);
    expect(unguarded(await tool('pg_dump', urlOf(s.clusters[0].port, 'shop')))).toBe(before);
    await tool('pg_restore', '--clean', '-j', '3', '-d', urlOf(s.proxy.port, 'shop'), archive);
    expect(unguarded(await tool('pg_dump', urlOf(s.proxy.port, 'shop')))).toBe(before);
  });
});
