import { randomUUID } from 'node:crypto';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { findTies, joinKeyspaces, separateTables } from '../../topology/catalog/separate.js';
import { ForeshardError } from '../../topology/errors.js';
import { sameLayout } from '../../topology/layout.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

let cluster: EmbeddedCluster;
let catalog: Catalog;
let shard: string;

beforeAll(async () => {
  cluster = await startTestCluster();
});

const sql = (url: string, text: string, values: unknown[] = []) =>
  withClient(url, async (client) => (await client.query(text, values)).rows);

async function newDatabase(): Promise<string> {
  const name = `db_${randomUUID().slice(0, 8)}`;
  await sql(cluster.url(), `CREATE DATABASE ${name}`);
  return cluster.url(name);
}

const TABLES = ['tenants', 'orders', 'documents'];

beforeEach(async () => {
  const url = await newDatabase();
  const pool = Catalog.pool(url);
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(url);
  const registry = new Registry(catalog, 'tester');
  shard = await newDatabase();
  await sql(
    shard,
    `CREATE TABLE tenants (id bigint PRIMARY KEY);
     CREATE TABLE orders (id bigint, n bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (id, n));
     CREATE TABLE documents (id bigint, n bigserial, PRIMARY KEY (id, n));
     CREATE TABLE note (id bigint)`,
  );
  await registry.addShard({ name: 'one', url: shard });
  await registry.addShard({ name: 'two', url: await newDatabase() });
  await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
  for (const table of TABLES)
    await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['id'] });
  return () => catalog.close();
});

const documents = { keyspace: 'main', tables: [{ schema: 'public', table: 'documents' }], as: 'docs' };

async function keyspace(name: string): Promise<Keyspace> {
  return (await catalog.loadTopology()).keyspaces.get(name as KeyspaceName) as Keyspace;
}

/** Everything in the catalog that a change of keyspaces may change. */
async function state(): Promise<unknown> {
  const parts = ['meta', 'keyspace', 'sharded_table', 'range', 'segment', 'load', 'audit'];
  return Promise.all(
    parts.map((t) => catalog.pool.query(`SELECT * FROM foreshard.${t} ORDER BY 1, 2, 3`).then((r) => r.rows)),
  );
}

async function refusal(work: () => Promise<unknown>): Promise<string> {
  const before = await state();
  const error = await work().then(
    () => new Error('it succeeded'),
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(ForeshardError);
  const { sqlstate, message, hint } = error as ForeshardError;
  expect(hint).toBeTruthy();
  expect(await state()).toEqual(before);
  return `${sqlstate} ${message}`;
}

const migration = (state: string, of = 'main') =>
  catalog.pool.query(`INSERT INTO foreshard.migration (kind, spec, state) VALUES ('move', $1, $2)`, [
    { kind: 'move', keyspace: of, lo: null, hi: null, from: 'one', to: 'two' },
    state,
  ]);

describe('separating tables', () => {
  it('gives them a keyspace with the same key and ranges, under a new epoch, and joining takes it back', async () => {
    await catalog.pool.query(`UPDATE foreshard.range SET hi = '["100"]'`);
    await catalog.pool.query(`INSERT INTO foreshard.range (keyspace, lo, shard) VALUES ('main', '["100"]', 'two')`);
    await sql(
      (await catalog.loadTopology()).shards.get('two' as never)?.url as string,
      `CREATE TABLE documents (id bigint, n bigserial, PRIMARY KEY (id, n))`,
    );
    await catalog.pool.query(`UPDATE foreshard.segment SET hi = '["50"]'`);
    await catalog.pool.query(`INSERT INTO foreshard.segment (keyspace, lo) VALUES ('main', '["50"]')`);
    await migration('done');
    await migration('aborted');
    await migration('planned');
    const before = await catalog.loadTopology();
    await separateTables(catalog, 'tester', documents);
    const after = await catalog.loadTopology();
    expect(after.epoch).toBe(before.epoch + 1n);
    const [main, docs] = [await keyspace('main'), await keyspace('docs')];
    expect(docs).toMatchObject({
      method: 'range',
      keyTypes: ['int8'],
      tables: [{ table: 'documents', keyColumns: ['id'] }],
    });
    expect(main.tables.map((t) => t.table)).toEqual(['orders', 'tenants']);
    expect(docs.ranges.map((r) => [r.lo, r.hi, r.shard])).toEqual([
      [null, [100n], 'one'],
      [[100n], null, 'two'],
    ]);
    expect(main.ranges).toEqual(before.keyspaces.get('main' as KeyspaceName)?.ranges);
    const { rows } = await catalog.pool.query(
      `SELECT lo, hi FROM foreshard.segment WHERE keyspace = 'docs' ORDER BY id`,
    );
    expect(rows).toEqual([
      { lo: null, hi: ['50'] },
      { lo: ['50'], hi: null },
    ]);

    // What the tables did while apart stays in the history.
    const count = (of: string, reads: number) =>
      catalog.pool.query(
        `INSERT INTO foreshard.load (step_seconds, at, segment_id, reads)
         SELECT 60, timestamptz '2026-01-01', id, $2 FROM foreshard.segment WHERE keyspace = $1 AND hi IS NULL`,
        [of, reads],
      );
    await count('main', 3);
    await count('docs', 4);
    await joinKeyspaces(catalog, 'tester', 'docs', 'main');
    expect(await catalog.loadTopology()).toEqual({ ...before, epoch: before.epoch + 2n });
    expect((await catalog.pool.query('SELECT reads FROM foreshard.load')).rows).toEqual([{ reads: '7' }]);
    const audit = await catalog.pool.query(
      'SELECT action, object, detail FROM foreshard.audit ORDER BY id DESC LIMIT 2',
    );
    expect(audit.rows).toEqual([
      { action: 'keyspace join', object: 'docs', detail: { into: 'main', tables: ['public.documents'] } },
      { action: 'keyspace separate', object: 'main', detail: { as: 'docs', tables: ['public.documents'] } },
    ]);
  });

  it.each([
    [{ tables: [] }, /^22023 no tables are given/],
    [{ tables: [{ schema: 'public', table: 'note' }] }, /^22023 table "public.note" is not in keyspace "main"/],
    [{ tables: TABLES.map((table) => ({ schema: 'public', table })) }, /^22023 these are all tables/],
    [{ as: 'main' }, /^22023 keyspace "main" exists already/],
    [{ as: 'Docs' }, /^22023 "Docs" cannot be the name of a keyspace/],
    [{ keyspace: 'other' }, /^22023 there is no keyspace "other"/],
  ])('refuses %j', async (change, message) => {
    expect(await refusal(() => separateTables(catalog, 'tester', { ...documents, ...change }))).toMatch(message);
  });

  it.each([
    [
      'ALTER TABLE documents ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES tenants',
      /foreign key "f" from "public.documents" to "public.tenants" would cross/,
    ],
    [
      'ALTER TABLE orders ADD CONSTRAINT f FOREIGN KEY (id, n) REFERENCES documents',
      /foreign key "f" from "public.orders" to "public.documents" would cross/,
    ],
    ['CREATE TABLE part () INHERITS (documents)', /"public.documents" is part of an inheritance/],
    [
      `ALTER TABLE orders ADD m bigint DEFAULT nextval('documents_n_seq')`,
      /sequence "documents_n_seq" serves "public.documents" and also "public.orders"/,
    ],
    [
      `ALTER TABLE note ALTER id SET DEFAULT nextval('documents_n_seq')`,
      /sequence "documents_n_seq" serves "public.documents" and also "public.note"/,
    ],
    [
      `CREATE SEQUENCE s OWNED BY tenants.id; ALTER TABLE documents ALTER n SET DEFAULT nextval('s')`,
      /sequence "s" serves "public.documents" and also "public.tenants"/,
    ],
    ['DROP TABLE documents', /table "public.documents" does not exist on shard "one"/],
  ])('refuses tables that are tied to others: %s', async (tie, message) => {
    expect(await findTies(await catalog.loadTopology(), documents)).toEqual([]);
    await sql(shard, tie);
    expect(await refusal(() => separateTables(catalog, 'tester', documents))).toMatch(message);
    const ties = await findTies(await catalog.loadTopology(), documents);
    expect(ties.map((t) => t.text).join()).toMatch(message);
    for (const { remedy } of ties) expect(remedy).toBeTruthy();
  });

  it('lets foreign keys among the tables that go, or to others than those that stay, be', async () => {
    await sql(
      shard,
      `ALTER TABLE documents ADD FOREIGN KEY (id, n) REFERENCES orders; CREATE TABLE kind (id bigint PRIMARY KEY);
       ALTER TABLE documents ADD FOREIGN KEY (id) REFERENCES kind`,
    );
    const both = { ...documents, tables: [...documents.tables, { schema: 'public', table: 'orders' }] };
    expect(await findTies(await catalog.loadTopology(), both)).toEqual([]);
  });

  it.each(['approved', 'copying', 'reversing', 'cleaning', 'failed'])(
    'is refused while a migration of the keyspace is %s',
    async (state) => {
      await migration(state);
      expect(await refusal(() => separateTables(catalog, 'tester', documents))).toMatch(
        new RegExp(`^55006 migration 1 of keyspace "main" is ${state}: tables cannot be separated`),
      );
    },
  );

  it('lets no migration begin in between, and gives up when one is just being entered', async () => {
    const other = await catalog.pool.connect();
    try {
      await other.query('BEGIN');
      await other.query(
        `INSERT INTO foreshard.migration (kind, spec, state) VALUES ('move', '{"keyspace": "main"}', 'approved')`,
      );
      expect(await refusal(() => separateTables(catalog, 'tester', documents))).toMatch(
        /^40001 the catalog is being changed/,
      );
      await other.query('COMMIT');
      expect(await refusal(() => separateTables(catalog, 'tester', documents))).toMatch(/^55006 migration 1/);
    } finally {
      other.release();
    }
  });
});

describe('joining keyspaces', () => {
  beforeEach(() => separateTables(catalog, 'tester', documents));

  const move = (of: string, at: string) =>
    catalog.pool.query(
      `WITH cut AS (UPDATE foreshard.range SET hi = jsonb_build_array($2::text) WHERE keyspace = $1 AND hi IS NULL RETURNING 1)
       INSERT INTO foreshard.range (keyspace, lo, shard) SELECT $1, jsonb_build_array($2::text), 'two' FROM cut`,
      [of, at],
    );

  it('is refused while rows with the same keys are on different shards', async () => {
    await move('docs', '100');
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', 'docs', 'main'))).toMatch(
      /^55006 keyspaces "docs" and "main" have rows with the same keys on different shards/,
    );
    await move('main', '200');
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', 'docs', 'main'))).toMatch(
      /^55006 .* on different shards/,
    );
  });

  it('asks for the same owners, not for the same cuts', async () => {
    await move('docs', '100');
    await catalog.pool.query(`UPDATE foreshard.range SET shard = 'one' WHERE keyspace = 'docs'`);
    expect(sameLayout(await keyspace('docs'), await keyspace('main'))).toBe(true);
    await joinKeyspaces(catalog, 'tester', 'docs', 'main');
    expect((await keyspace('main')).tables.map((t) => t.table)).toEqual(['documents', 'orders', 'tenants']);
    expect(await keyspace('docs')).toBeUndefined();
  });

  it.each(['docs', 'main'])('is refused while a migration of %s is under way', async (of) => {
    await migration('copying', of);
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', 'docs', 'main'))).toMatch(
      new RegExp(`^55006 migration 1 of keyspace "${of}" is copying: it cannot be joined`),
    );
  });

  it.each([
    ['docs', 'docs', /^22023 "docs" cannot be joined to itself/],
    ['docs', 'other', /^22023 there is no keyspace "other"/],
    ['docs', 'by_hash', /^55006 keyspaces "docs" and "by_hash" have different keys/],
  ])('refuses %s into %s', async (from, into, message) => {
    await new Registry(catalog, 'tester').createKeyspace({ name: 'by_hash', method: 'hash', keyTypes: ['int8'] });
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', from, into))).toMatch(message);
  });
});
