import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { Sharded } from '../support/sharded.js';
import { buildCli, startCli } from './run-cli.js';
import { commandsOn } from './warm-cli.js';

let s: Sharded;
let catalog: string;

const { foreshard, json } = commandsOn(() => catalog);
const VERTICAL = ['migrate', 'plan', 'vertical', 'documents', '--columns', 'last_seen,views', '--to', 's2'];

interface Planned {
  change: number | null;
  kind: string;
  request: Record<string, unknown>;
  members: { spec: Record<string, unknown>; findings: { severity: string; text: string }[] }[];
  summary: string[];
  effects: Record<'hot' | 'written' | 'gathered' | 'templates', { template: string; calls: number; why?: string }[]> & {
    objects: string[];
  };
}

beforeAll(async () => {
  [s] = await Promise.all([Sharded.start({ splitAt: null }), buildCli()]);
  catalog = s.clusters[0].url('foreshard');
  await s.onShard(
    0,
    `CREATE TABLE documents (tenant_id bigint, id bigint, title text NOT NULL, views bigint NOT NULL DEFAULT 0, last_seen date, PRIMARY KEY (tenant_id, id));
     GRANT ALL ON documents TO app;
     CREATE TABLE notes (tenant_id bigint PRIMARY KEY, views int);
     INSERT INTO documents SELECT 1 + i % 10, i, 'document ' || i, i, NULL FROM generate_series(1, 100) i;
     CREATE VIEW popular AS SELECT title FROM documents WHERE views > 50`,
  );
  const registry = new Registry(s.catalog, 'test');
  await registry.addTable({
    table: { schema: 'public', table: 'documents' },
    keyspace: 'main',
    keyColumns: ['tenant_id'],
  });
  await s.reloaded();
});
afterAll(() => s.stop());

describe('migrate plan vertical --columns', () => {
  it('refuses what cannot be', async () => {
    for (const [args, why] of [
      [['documents', 'orders', '--columns', 'views', '--to', 's2'], /columns are of one table/],
      [['documents', '--columns', 'views', '--to', 's3'], /there is no shard "s3"/],
      [['documents', '--columns', 'views', '--to', 's1'], /shard "s1" owns all of that already/],
      [
        ['documents', '--columns', 'views,likes', '--to', 's2'],
        /has no column "likes"\nhint: It has: tenant_id, id, title/,
      ],
      [['documents', '--columns', 'views,views', '--to', 's2'], /column "views" is named twice/],
      [['documents', '--columns', 'tenant_id', '--to', 's2'], /column "tenant_id" is of the key/],
      [['documents', '--columns', 'views', '--to', 's2', '--as', 'main'], /keyspace "main" exists already/],
      [
        ['documents', '--columns', 'views', '--to', 's2', '--hot', 'orders'],
        /there is a table "public.orders" already/,
      ],
      [['documents', '--hot', 'hot', '--to', 's2'], /--hot says where columns go\nhint: Give --columns, too/],
      [['notes', '--columns', 'views', '--to', 's2'], /table "public.notes" is in no keyspace/],
      [['countries', '--columns', 'name', '--to', 's2'], /table "public.countries" is a reference table/],
    ] as const)
      expect(await foreshard('migrate', 'plan', 'vertical', ...args)).toMatchObject({
        code: 2,
        stdout: '',
        stderr: expect.stringMatching(why),
      });
    expect(await foreshard('migrate', 'plan', 'unite', 'documents')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/no columns of "public.documents" are split from it/),
    });
  });

  it('shows what it would do, and what becomes of recorded statements', async () => {
    // As proxies record them.
    await s.catalog.pool.query(
      `INSERT INTO foreshard.template_stat (hour, template, route, calls, rows, server_ms)
       SELECT date_trunc('hour', now()), t, 's1', c, 0, 0 FROM (VALUES
         ('update documents set views = views + :int where tenant_id = $1 and id = $2', 90000),
         ('select views, last_seen from documents where tenant_id = $1 and id = $2', 5000),
         ('select title from documents where tenant_id = $1', 4000),
         ('select * from documents where tenant_id = $1', 300),
         ('insert into documents values(:any, :any, :str, :any, :any)', 20),
         ('select title from popular', 7),
         ('select * from orders where tenant_id = $1', 100)) AS x (t, c)`,
    );
    const planned = await json<Planned>(...VERTICAL, '--no-save');
    expect(planned).toMatchObject({
      change: null,
      kind: 'columns',
      request: { keyspace: 'main', table: 'public.documents', columns: ['views', 'last_seen'], to: 's2' },
    });
    const hot = { schema: 'public', table: 'documents_hot' };
    expect(planned.members.map((m) => m.spec)).toEqual([
      {
        kind: 'halve',
        keyspace: 'main',
        table: { schema: 'public', table: 'documents' },
        columns: ['views', 'last_seen'],
        primaryKey: ['tenant_id', 'id'],
        hot,
        as: 'documents_hot',
      },
      { kind: 'move', keyspace: 'documents_hot', lo: null, hi: null, from: 's1', to: 's2' },
    ]);
    const { effects } = planned;
    expect(effects.hot.map((t) => [t.template.slice(0, 12), t.calls])).toEqual([
      ['update docum', 90000],
      ['select views', 5000],
    ]);
    expect(effects.gathered.map((t) => t.template)).toEqual(['select * from documents where tenant_id = $1']);
    expect(effects.written.map((t) => t.template)).toEqual([
      'insert into documents values(:any, :any, :str, :any, :any)',
    ]);
    expect(effects.templates.map((t) => t.template)).toEqual(['select title from popular']);
    expect(effects.objects).toEqual(['view "public.popular"']);
    const text = await foreshard(...VERTICAL, '--no-save', '--steps');
    expect(text).toMatchObject({ code: 0, stderr: '' });
    expect(text.stdout).toMatch(
      /^What will run where the columns are, and need nothing of the table:\n.*\n {8}90,000 {2}update/m,
    );
    expect(text.stdout).toMatch(/^What will then be committed on two shards, in two phases:$/m);
    expect(text.stdout).toMatch(/^1 {2}main: views, last_seen of public\.documents/m);
    expect(text.stdout).toMatch(/^2 {2}documents_hot \[-infinity, infinity\) s1 → s2$/m);
    expect(text.stdout).toMatch(/CREATE TABLE "?public"?\."?documents_hot/);
  });
});

describe('columns of a table', () => {
  const carryOut = async (planned: Planned): Promise<string> => {
    await json('migrate', 'approve', `${planned.change}`);
    const migrator = startCli(['serve', '--only', 'migrator', '--catalog', catalog]);
    try {
      const { code, stdout } = await foreshard('migrate', 'watch', `${planned.change}`);
      expect(code, stdout).toBe(0);
      return stdout;
    } finally {
      migrator.child.kill('SIGTERM');
      await migrator.ended;
    }
  };

  it('go to another shard, while the application sees one table, and come back', async () => {
    const client = await s.connect();
    const rows = async (sql: string) => (await client.query(sql)).rows;
    const one = 'SELECT title, views, last_seen::text FROM documents WHERE tenant_id = 4 AND id = 3';
    expect(await carryOut(await json<Planned>(...VERTICAL))).toMatch(/\(columns\): done, 2 of 2 done\n$/);
    await s.reloaded();
    const shown = await foreshard('topology', 'show');
    expect(shown.stdout).toMatch(
      /^ {2}public\.documents \(tenant_id\), of which views, last_seen are in public\.documents_hot$/m,
    );
    expect(shown.stdout).toMatch(/^ {2}public\.documents_hot \(tenant_id\), columns of public\.documents$/m);
    const { keyspaces } = await json<{ keyspaces: { name: string; tables: unknown[] }[] }>('topology', 'show');
    expect(keyspaces.find((k) => k.name === 'documents_hot')?.tables).toEqual([
      { table: 'public.documents_hot', keyColumns: ['tenant_id'], halfOf: 'public.documents' },
    ]);
    expect(await foreshard('keyspace', 'join', 'documents_hot', 'main')).toMatchObject({ code: 2 });

    await client.query(
      "UPDATE documents SET views = views + 1, last_seen = '2026-11-22' WHERE tenant_id = 4 AND id = 3",
    );
    expect(await s.onShard(1, 'SELECT views::int FROM documents_hot WHERE (tenant_id, id) = (4, 3)')).toEqual([
      { views: 4 },
    ]);
    expect(await rows(one)).toEqual([{ title: 'document 3', views: '4', last_seen: '2026-11-22' }]);
    await client.query("INSERT INTO documents VALUES (4, 1000, 'new', 7, NULL)");
    await client.query("UPDATE documents SET title = title || ' ' || views WHERE tenant_id = 4 AND id = 1000");
    await client.query('DELETE FROM documents WHERE tenant_id = 4 AND id = 13');
    const all =
      'SELECT id::int, title, views::int FROM documents WHERE tenant_id = 4 AND (id < 30 OR id > 900) ORDER BY id';
    const expected = [
      { id: 3, title: 'document 3', views: 4 },
      { id: 23, title: 'document 23', views: 23 },
      { id: 1000, title: 'new 7', views: 7 },
    ];
    expect(await rows(all)).toEqual(expected);
    expect(await foreshard('migrate', 'audit')).toMatchObject({ code: 0 });

    const unite = await json<Planned>('migrate', 'plan', 'unite', 'documents');
    expect(unite.members.map((m) => m.spec.kind)).toEqual(['move', 'unite']);
    expect(await carryOut(unite)).toMatch(/\(unite\): done, 2 of 2 done\n$/);
    await s.reloaded();
    expect(await rows(all)).toEqual(expected);
    expect(await s.onShard(0, 'SELECT count(*)::int AS n, sum(views)::int AS views FROM documents')).toEqual([
      { n: 100, views: 5050 + 1 + 7 - 13 },
    ]);
    for (const shard of [0, 1] as const)
      expect(await s.onShard(shard, "SELECT relname FROM pg_class WHERE relname LIKE '%documents_hot%'")).toEqual([]);
    expect(await foreshard('migrate', 'audit')).toMatchObject({ code: 0 });
    const kinds = await json<{ kind?: string }[]>('migrate', 'list');
    expect(JSON.stringify(kinds)).toMatch(/"unite".*"columns"/s);
  });
});
