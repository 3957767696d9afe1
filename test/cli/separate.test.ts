import { beforeAll, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { buildCli } from './run-cli.js';
import { commandsOn } from './warm-cli.js';

let one: EmbeddedCluster;
let catalog: string;

const { foreshard } = commandsOn(() => catalog);

beforeAll(async () => {
  [one] = await Promise.all([startTestCluster(), buildCli()]);
  catalog = one.url('foreshard');
  await withClient(one.url(), (client) => client.query('CREATE DATABASE shop'));
  await withClient(one.url('shop'), (client) =>
    client.query(`
      CREATE TABLE tenants (id bigint PRIMARY KEY, name text);
      CREATE TABLE orders (tenant_id bigint NOT NULL, id bigint NOT NULL, PRIMARY KEY (tenant_id, id));
      CREATE TABLE documents (tenant_id bigint NOT NULL, id bigint NOT NULL, body text, PRIMARY KEY (tenant_id, id));
      CREATE TABLE settings (name text);
      CREATE VIEW whole AS SELECT d.body, o.id FROM documents d JOIN orders o USING (tenant_id);
      CREATE VIEW bodies AS SELECT body FROM documents;
      CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE documents SET body = '' WHERE tenant_id = NEW.tenant_id; RETURN NEW; END $$;
      CREATE FUNCTION plain() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE tenants SET name = '' WHERE id = NEW.tenant_id; RETURN NEW; END $$;
      CREATE TRIGGER touch AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION touch();
      CREATE TRIGGER plain AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION plain();
      CREATE FUNCTION allowed(text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 NOT IN (SELECT name FROM settings)';
      ALTER TABLE documents ADD CHECK (allowed(body));
      CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM documents, tenants';
    `),
  );
  for (const args of [
    ['init', '--database', 'shop'],
    ['shard', 'add', 's1', one.url('shop')],
    ['keyspace', 'create', 'main', '--key', 'int8'],
    ['table', 'add', 'tenants', '--keyspace', 'main', '--key', 'id'],
    ['table', 'add', 'orders', '--keyspace', 'main', '--key', 'tenant_id'],
    ['table', 'add', 'documents', '--keyspace', 'main', '--key', 'tenant_id'],
  ])
    expect(await foreshard(...args)).toMatchObject({ code: 0 });
  // As proxies record them.
  await withClient(catalog, (client) =>
    client.query(
      `INSERT INTO foreshard.template_stat (hour, template, route, calls, rows, server_ms)
       SELECT date_trunc('hour', now()) - h * interval '1 hour', t, 's1', c, 0, 0 FROM (VALUES
         (0, 'select * from documents where tenant_id = :int', 100000),
         (0, 'select * from documents d join orders o using(tenant_id) where tenant_id = $1 and d.body = :str', 7),
         (2, 'select * from documents d join orders o using(tenant_id) where tenant_id = $1 and d.body = :str', 8),
         (0, 'insert into documents select :int, id from orders where tenant_id = :int', 3),
         (0, 'insert into orders values(:any, :any)', 40),
         (0, 'insert into documents values(:any, :any, :any)', 30),
         (0, 'delete from documents using orders where documents.tenant_id = :int and orders.tenant_id = :int', 15),
         (0, 'select * from documents, settings where tenant_id in($1) for update', 2),
         (0, 'select count(*) from documents, settings where tenant_id in($1)', 4),
         (0, 'select * from orders, settings where tenant_id in($1)', 2),
         (0, 'select counted()', 1),
         (0, 'truncated select (', 5),
         (200, 'delete from documents using orders', 1000)) AS x (h, t, c)`,
    ),
  );
});

const APART = 'this statement uses tables of keyspaces "main" and "docs", whose rows are on different shards';

describe('foreshard keyspace separate', () => {
  const SEPARATE = ['keyspace', 'separate', 'main', 'documents', '--as', 'docs'];

  it('says with --dry-run what will be refused, and changes nothing', async () => {
    const before = await foreshard('topology', 'show', '--json');
    const result = await foreshard(...SEPARATE, '--dry-run', '--json');
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(result.json()).toEqual({
      keyspace: 'main',
      as: 'docs',
      tables: ['public.documents'],
      done: false,
      ties: [],
      unread: 1,
      objects: [
        'function counted()',
        'triggers, rules, policies, defaults or checks of "public.documents"',
        'triggers, rules, policies, defaults or checks of "public.orders"',
        'view "public.whole"',
      ],
      templates: [
        {
          template: 'insert into orders values(:any, :any)',
          calls: 40,
          why: '"orders" has triggers, rules, policies, defaults, checks or other parts that may reach beyond keyspace "main", which is not supported over several shards yet',
        },
        {
          template: 'insert into documents values(:any, :any, :any)',
          calls: 30,
          why: '"documents" has triggers, rules, policies, defaults, checks or other parts that may use tables that only shard "s1" has, and the rows are on another shard',
        },
        {
          template: 'delete from documents using orders where documents.tenant_id = :int and orders.tenant_id = :int',
          calls: 15,
          why: expect.stringMatching(/^this statement uses tables of keyspaces "(main|docs)" and "(main|docs)"/),
        },
        {
          template: 'insert into documents select :int, id from orders where tenant_id = :int',
          calls: 3,
          why: expect.stringMatching(/^this statement uses tables of keyspaces|^"orders" has|^INSERT/),
        },
        {
          template: 'select * from documents, settings where tenant_id in($1) for update',
          calls: 2,
          why: 'it also uses tables that only shard "s1" has',
        },
        {
          template: 'select counted()',
          calls: 1,
          why: expect.stringMatching(/^function counted\(\) may read or change/),
        },
      ],
      gathered: [
        {
          template: 'select * from documents d join orders o using(tenant_id) where tenant_id = $1 and d.body = :str',
          calls: 15,
        },
        { template: 'select count(*) from documents, settings where tenant_id in($1)', calls: 4 },
      ],
    });
    const text = await foreshard(...SEPARATE, '--dry-run');
    expect(text.stdout).toContain(APART.slice(0, 40));
    expect(text.stdout).toMatch(
      /\nWhat will then need rows of both in one place, the home shard:\n {2}calls in 7 days\n {12}15 {2}select \* from documents d join/,
    );
    expect(text.stdout).toMatch(
      /\n1 recorded template\(s\) could not be read\.\nNothing is changed\. The tables can be separated\.\n$/,
    );
    const two = await foreshard(
      'keyspace',
      'separate',
      'main',
      'documents',
      'orders',
      '--as',
      'docs',
      '--dry-run',
      '--json',
    );
    expect(two.json<{ tables: string[] }>().tables).toEqual(['public.documents', 'public.orders']);
    expect(await foreshard(...SEPARATE, '--dry-run', '--as', 'other')).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/--as is given 2 times/),
    });
    expect((await foreshard('topology', 'show', '--json')).stdout).toBe(before.stdout);
  });

  it('is refused while a foreign key ties the tables, and works without; join takes it back', async () => {
    const before = (await foreshard('topology', 'show', '--json')).json<{ epoch: number }>();
    await withClient(one.url('shop'), (client) =>
      client.query('ALTER TABLE documents ADD CONSTRAINT owner FOREIGN KEY (tenant_id) REFERENCES tenants'),
    );
    const dry = await foreshard(...SEPARATE, '--dry-run');
    expect(dry.code).toBe(1);
    expect(dry.stdout).toMatch(
      /^BLOCKS {2}foreign key "owner" from "public.documents" to "public.tenants" would cross keyspaces\n {8}remedy: /,
    );
    expect(dry.stdout).toMatch(/The tables cannot be separated like this\.\n$/);
    expect(await foreshard(...SEPARATE)).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(
        /^foreshard: foreign key "owner" .*\nhint: Let both tables go, or neither, or ALTER TABLE/,
      ),
    });
    await withClient(one.url('shop'), (client) => client.query('ALTER TABLE documents DROP CONSTRAINT owner'));
    const done = await foreshard(...SEPARATE);
    expect(done).toMatchObject({ code: 0, stderr: '' });
    expect(done.stdout).toMatch(
      /Keyspace "docs" has public.documents, .* Back: foreshard keyspace join docs main\.\n$/,
    );
    const lists = async () =>
      (await foreshard('keyspace', 'list', '--json'))
        .json<{ name: string; tables: string[] }[]>()
        .map((k) => [k.name, ...k.tables]);
    expect(await lists()).toEqual([
      ['docs', 'public.documents'],
      ['main', 'public.orders', 'public.tenants'],
    ]);
    expect(await foreshard(...SEPARATE)).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/keyspace "docs" exists already/),
    });
    expect(await foreshard('keyspace', 'join', 'docs', 'main')).toMatchObject({
      code: 0,
      stdout: 'The tables of keyspace "docs" are in "main" now.\n',
    });
    expect(await lists()).toEqual([['main', 'public.documents', 'public.orders', 'public.tenants']]);
    const after = (await foreshard('topology', 'show', '--json')).json<{ epoch: number }>();
    expect(after).toEqual({ ...before, epoch: before.epoch + 2 });
  });
});
