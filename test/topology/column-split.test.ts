import { randomUUID } from 'node:crypto';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { inCatalogTransaction, raiseEpoch } from '../../topology/catalog/change.js';
import {
  checkSplit,
  checkUnite,
  findSplit,
  type SplitStatement,
  splitStatements,
  uniteStatements,
} from '../../topology/catalog/column-split.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { joinKeyspaces, separateTables } from '../../topology/catalog/separate.js';
import { afterSplit, afterUnite, type Halving } from '../../topology/column-split.js';
import { ForeshardError } from '../../topology/errors.js';
import { sameLayout } from '../../topology/layout.js';
import type { Keyspace, KeyspaceName, Topology } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';

let cluster: EmbeddedCluster;
let catalog: Catalog;

beforeAll(async () => {
  cluster = await startTestCluster();
});

async function newDatabase(): Promise<string> {
  const name = `db_${randomUUID().slice(0, 8)}`;
  await withClient(cluster.url(), (client) => client.query(`CREATE DATABASE ${name}`));
  return cluster.url(name);
}

const named = (table: string) => ({ schema: 'public', table });
const uniting = { keyspace: 'docs_hot', table: named('documents') };
const PRIMARY_KEY = ['id', 'tenant_id'];
const halving: Halving = {
  keyspace: 'main',
  table: named('documents'),
  columns: ['views', 'last, "seen"'],
  hot: named('documents_hot'),
  as: 'docs_hot',
};

beforeEach(async () => {
  const url = await newDatabase();
  const pool = Catalog.pool(url);
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(url);
  const registry = new Registry(catalog, 'tester');
  const shard = await newDatabase();
  await withClient(shard, (client) =>
    client.query(`
      CREATE TABLE tenants (id bigint PRIMARY KEY);
      CREATE TABLE notes (tenant_id bigint, id bigint, PRIMARY KEY (tenant_id, id));
      CREATE TABLE documents (tenant_id bigint, id bigint, views bigint, "last, ""seen""" date, PRIMARY KEY (id, tenant_id))`),
  );
  await registry.addShard({ name: 'one', url: shard });
  await registry.addShard({ name: 'two', url: await newDatabase() });
  await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
  for (const [table, key] of [
    ['tenants', 'id'],
    ['documents', 'tenant_id'],
  ] as const)
    await registry.addTable({ table: named(table), keyspace: 'main', keyColumns: [key] });
  await catalog.pool.query(`UPDATE foreshard.range SET hi = '["100"]'`);
  await catalog.pool.query(`INSERT INTO foreshard.range (keyspace, lo, shard) VALUES ('main', '["100"]', 'two')`);
  return () => catalog.close();
});

/** As the migrator does it: a statement that must change a row, and changes none, is a mistake. */
async function commit(statements: (topology: Topology) => readonly SplitStatement[]): Promise<void> {
  const topology = await catalog.loadTopology();
  await inCatalogTransaction(catalog.pool, async (client) => {
    await raiseEpoch(client, topology.epoch);
    for (const { text, sql, values, elseConflict } of statements(topology)) {
      const { rowCount } = await client.query(sql, [...values]);
      if (elseConflict !== null && rowCount === 0) throw new Error(`nothing is changed: ${text}`);
    }
  });
}

const split = () => commit(() => splitStatements(halving, PRIMARY_KEY));

/** Ids of ranges are given by the catalog. */
function withoutIds(topology: Topology): unknown {
  const keyspaces = [...topology.keyspaces.values()]
    .map((k) => ({ ...k, tables: k.tables.toSorted(byName), ranges: k.ranges.map(({ id: _, ...range }) => range) }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  return { ...topology, keyspaces, shardedTables: [...topology.shardedTables.values()].sort(byName), epoch: null };
}

const byName = (a: { table: string }, b: { table: string }) => (a.table < b.table ? -1 : 1);

async function refusal(work: () => unknown): Promise<string> {
  const { epoch } = await catalog.loadTopology();
  const error = await (async () => work())().then(
    () => new Error('it succeeded'),
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(ForeshardError);
  expect((await catalog.loadTopology()).epoch).toBe(epoch);
  const { message, hint } = error as ForeshardError;
  return `${message} (${hint})`;
}

it('splits columns from a table in the catalog, as it was foreseen, and unites them again', async () => {
  await catalog.pool.query(`UPDATE foreshard.segment SET hi = '["50"]'`);
  await catalog.pool.query(`INSERT INTO foreshard.segment (keyspace, lo) VALUES ('main', '["50"]')`);
  const before = await catalog.loadTopology();
  expect(checkSplit(before, halving)).toMatchObject({ table: named('documents'), keyspace: { name: 'main' } });
  await split();
  const after = await catalog.loadTopology();
  expect(after.shardedTables.get('public.documents')?.split).toEqual({
    hot: named('documents_hot'),
    columns: ['views', 'last, "seen"'],
    primaryKey: PRIMARY_KEY,
  });
  expect(after.shardedTables.get('public.documents_hot')).toMatchObject({
    keyspace: 'docs_hot',
    keyColumns: ['tenant_id'],
    halfOf: named('documents'),
  });
  expect(withoutIds(after)).toEqual(withoutIds(afterSplit(before, halving, PRIMARY_KEY)));
  const [main, hot] = ['main', 'docs_hot'].map((name) => after.keyspaces.get(name as KeyspaceName) as Keyspace);
  expect(sameLayout(main as Keyspace, hot as Keyspace)).toBe(true);

  // What the columns did meanwhile stays in the history.
  await catalog.pool.query(
    `INSERT INTO foreshard.load (step_seconds, at, segment_id, reads)
     SELECT 60, timestamptz '2026-01-01', id, CASE keyspace WHEN 'main' THEN 3 ELSE 4 END FROM foreshard.segment WHERE hi IS NULL`,
  );
  await commit((topology) => uniteStatements(topology, uniting));
  expect(withoutIds(await catalog.loadTopology())).toEqual(withoutIds(before));
  expect(withoutIds(afterUnite(after, uniting))).toEqual(withoutIds(before));
  expect((await catalog.pool.query('SELECT reads FROM foreshard.load')).rows).toEqual([{ reads: '7' }]);
});

describe('a split is refused', () => {
  it.each<[string, Partial<Halving>, RegExp]>([
    ['of a keyspace that is not there', { keyspace: 'other' }, /^there is no keyspace "other"/],
    ['of a table in another keyspace', { table: named('notes') }, /^table "public.notes" is not in keyspace "main"/],
    ['into a keyspace that is there', { as: 'main' }, /^keyspace "main" exists already/],
    ['into a keyspace that cannot be called so', { as: 'Hot' }, /^"Hot" cannot be the name of a keyspace/],
    ['into a table that is there', { hot: named('tenants') }, /^there is a table "public.tenants" already .*--hot/],
    ['into a table whose name is too long', { hot: named('ä'.repeat(32)) }, /^"ä+" cannot be the name of a table/],
    ['of no columns', { columns: [] }, /^no columns are given/],
    ['of a column named twice', { columns: ['views', 'views'] }, /^column "views" is named twice/],
    ['of the key', { columns: ['views', 'tenant_id'] }, /^column "tenant_id" is of the key of "public.documents"/],
  ])('%s', async (_, change, message) => {
    const topology = await catalog.loadTopology();
    expect(await refusal(() => checkSplit(topology, { ...halving, ...change }))).toMatch(message);
  });

  it('of a table without a key', async () => {
    await catalog.pool.query(`INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('whole', 'range', '{}');
      INSERT INTO foreshard.range (keyspace, shard) VALUES ('whole', 'one');
      INSERT INTO foreshard.sharded_table VALUES ('public', 'notes', 'whole', '{}')`);
    const topology = await catalog.loadTopology();
    expect(await refusal(() => checkSplit(topology, { ...halving, keyspace: 'whole', table: named('notes') }))).toMatch(
      /^keyspace "whole" has no key/,
    );
  });

  it('of a table that is split already, and of its hot table', async () => {
    await split();
    const topology = await catalog.loadTopology();
    const again = { ...halving, hot: named('other'), as: 'other' };
    expect(await refusal(() => checkSplit(topology, again))).toMatch(
      /^columns views, last, "seen" of "public.documents" are split from it already \(.*migrate plan unite public.documents/,
    );
    const ofHot = { ...again, keyspace: 'docs_hot', table: named('documents_hot'), columns: ['views'] };
    expect(await refusal(() => checkSplit(topology, ofHot))).toMatch(
      /^table "public.documents_hot" has columns of "public.documents" itself/,
    );
  });
});

it('unites only halves that are together', async () => {
  expect(await refusal(async () => checkUnite(await catalog.loadTopology(), uniting))).toMatch(
    /^no columns of "public.documents" are split from it/,
  );
  await split();
  expect(await refusal(async () => checkUnite(await catalog.loadTopology(), { ...uniting, keyspace: 'main' }))).toMatch(
    /^columns of "public.documents" are in keyspace "docs_hot", not in "main"/,
  );
  await catalog.pool.query(`UPDATE foreshard.range SET shard = 'one' WHERE keyspace = 'docs_hot'`);
  const topology = await catalog.loadTopology();
  for (const check of [checkUnite, uniteStatements])
    expect(await refusal(() => check(topology, uniting))).toMatch(
      /^rows of "public.documents" have their other half, in "public.documents_hot", on another shard \(Move the ranges of "docs_hot" to where those of "main" are/,
    );
  expect(findSplit(topology, uniting.table)).toMatchObject({ keyspace: { name: 'main' }, hot: { name: 'docs_hot' } });
  expect(await refusal(() => findSplit(topology, named('documents_hot')))).toMatch(
    /^no columns .* \(Name "public.documents"\.\)$/,
  );
});

describe('while columns are split', () => {
  beforeEach(async () => {
    await split();
    await catalog.pool.query(`UPDATE foreshard.range SET shard = 'one'`); // where the servers have the tables
  });

  const documents = { keyspace: 'main', tables: [named('documents')], as: 'docs' };

  it('neither of the two tables leaves its keyspace', async () => {
    expect(await refusal(() => separateTables(catalog, 'tester', documents))).toMatch(
      /^columns of "public.documents" are split from it, into "public.documents_hot": it cannot leave its keyspace \(.*plan unite public.documents/,
    );
    const hot = { keyspace: 'docs_hot', tables: [named('documents_hot')], as: 'docs' };
    expect(await refusal(() => separateTables(catalog, 'tester', hot))).toMatch(
      /^table "public.documents_hot" has columns of "public.documents": it cannot leave its keyspace/,
    );
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', 'docs_hot', 'main'))).toMatch(
      /^table "public.documents_hot" has columns of "public.documents": it cannot leave its keyspace/,
    );
    await new Registry(catalog, 'tester').createKeyspace({ name: 'spare', method: 'range', keyTypes: ['int8'] });
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', 'main', 'spare'))).toMatch(
      /^columns of "public.documents" are split from it/,
    );
  });

  it('other tables leave theirs, and come into it again', async () => {
    await separateTables(catalog, 'tester', { keyspace: 'main', tables: [named('tenants')], as: 'people' });
    await joinKeyspaces(catalog, 'tester', 'people', 'main');
    const { keyspaces } = await catalog.loadTopology();
    expect(keyspaces.get('main' as KeyspaceName)?.tables.map((t) => t.table)).toEqual(['documents', 'tenants']);
  });

  it('no other table comes to the hot one', async () => {
    const registry = new Registry(catalog, 'tester');
    await registry.createKeyspace({ name: 'spare', method: 'range', keyTypes: ['int8'] });
    const only = /^keyspace "docs_hot" is only for columns of "public.documents"/;
    expect(await refusal(() => joinKeyspaces(catalog, 'tester', 'spare', 'docs_hot'))).toMatch(only);
    const notes = { table: named('notes'), keyspace: 'docs_hot', keyColumns: ['tenant_id'] };
    expect(await refusal(() => registry.addTable(notes))).toMatch(only);
    expect(await refusal(() => registry.addReferenceTable(named('documents_hot')))).toMatch(
      /^table "public.documents_hot" is in keyspace "docs_hot" already/,
    );
  });
});
