import { randomUUID } from 'node:crypto';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { audit } from '../../migrator/audit/audit.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { HALVES_LOG, halvesNames, sayHalvesSql } from '../../topology/halves-sql.js';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import type { ColumnSplit } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { moveHot, splitColumns } from '../support/halves.js';

const TABLE = { schema: 'public', table: 'documents' };
const HOT = { schema: 'public', table: 'documents_hot' };
const { outbox, trigger } = halvesNames(TABLE);

let cluster: EmbeddedCluster;
let catalog: Catalog;
let urls: readonly [string, string];
let split: ColumnSplit;

beforeAll(async () => {
  cluster = await startTestCluster({ settings: { max_prepared_transactions: '5' } });
});

async function newDatabase(): Promise<string> {
  const name = `db_${randomUUID().slice(0, 8)}`;
  await withClient(cluster.url(), (client) => client.query(`CREATE DATABASE ${name}`));
  return cluster.url(name);
}

/** The first shard has tenants to 4, the second those from 5 on. */
beforeEach(async () => {
  const url = await newDatabase();
  const pool = Catalog.pool(url);
  await initCatalog(pool, 'shop');
  await pool.end();
  catalog = await Catalog.connect(url);
  urls = [await newDatabase(), await newDatabase()];
  for (const [i, shard] of urls.entries())
    await withClient(shard, (client) =>
      client.query(`CREATE TABLE documents (tenant_id bigint, id bigint, title text, views numeric, seen date, PRIMARY KEY (id, tenant_id));
        INSERT INTO documents SELECT ${i === 0 ? '1 + t % 4, t' : '5 + t % 4, t'}, 'a document', 1.0, NULL FROM generate_series(1, 40) t`),
    );
  const registry = new Registry(catalog, 'tester');
  await registry.addShard({ name: 'one', url: urls[0] });
  await registry.addShard({ name: 'two', url: urls[1] });
  await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
  await catalog.pool.query(`UPDATE foreshard.range SET hi = '["5"]'`);
  await catalog.pool.query(`INSERT INTO foreshard.range (keyspace, lo, shard) VALUES ('main', '["5"]', 'two')`);
  await registry.addTable({ table: TABLE, keyspace: 'main', keyColumns: ['tenant_id'] });
  split = await splitColumns(catalog, { table: TABLE, columns: ['views', 'seen'], hot: HOT, as: 'hot' });
  return () => catalog.close();
});

const on = (shard: 0 | 1, sql: string) => withClient(urls[shard], (client) => client.query(sql));
const texts = async () => (await audit(catalog, false)).map(({ shard, text }) => `${shard}: ${text}`);

describe('where both halves of a row are on one shard, an audit', () => {
  test('finds nothing when they are the same, also after writes', async () => {
    await on(0, 'UPDATE documents SET views = 2, seen = now() WHERE id < 5; DELETE FROM documents WHERE id = 9');
    await on(1, "INSERT INTO documents VALUES (7, 100, 'new', NULL, NULL); UPDATE documents SET title = 'other'");
    expect(await texts()).toEqual([]);
  });

  test('finds what differs, by every digit, is missing, or is too much', async () => {
    await on(
      0,
      `SET session_replication_role = replica; UPDATE documents SET views = 1.00 WHERE (tenant_id, id) = (2, 1);
      DELETE FROM documents_hot WHERE (tenant_id, id) = (3, 2); DELETE FROM documents WHERE (tenant_id, id) = (4, 3)`,
    );
    await on(1, 'SET session_replication_role = replica; UPDATE documents SET seen = now() WHERE id = 7');
    expect(await texts()).toEqual([
      'one: the hot half, in public.documents_hot, is missing, or not the same, of 2 rows: ["1", "2"], ["2", "3"]',
      'one: the half in public.documents is missing of 1 rows: ["3", "4"]',
      'two: the hot half, in public.documents_hot, is missing, or not the same, of 1 rows: ["7", "8"]',
    ]);
    const [first] = await audit(catalog, false);
    expect(first).toMatchObject({ kind: 'halves', object: 'public.documents', outcome: 'open' });
    // The remedy is one.
    const sql = first?.remedy.replace(/^[^:]*: /, '').replace('WHERE …', 'WHERE id < 3') as string;
    await on(0, sql);
    expect(await texts()).toEqual([
      'one: the half in public.documents is missing of 1 rows: ["3", "4"]',
      'two: the hot half, in public.documents_hot, is missing, or not the same, of 1 rows: ["7", "8"]',
    ]);
  });
});

describe('where they are apart, an audit', () => {
  beforeEach(() => moveHot(catalog, TABLE, split, 'two', 'views = -1'));

  test('finds nothing when each row has both, whatever the table says of the hot columns', async () => {
    await on(1, 'UPDATE documents_hot SET views = 5');
    await on(1, 'SET session_replication_role = replica; UPDATE documents SET views = 5');
    expect(await texts()).toEqual([]);
  });

  test('finds rows that have but one half, and waits for what is being committed on the other shard', async () => {
    await on(
      0,
      `SET session_replication_role = replica; DELETE FROM documents WHERE (tenant_id, id) = (2, 1);
      INSERT INTO documents VALUES (1, 500, 'half', 0, NULL), (1, 501, 'soon whole', 0, NULL)`,
    );
    // It is committed on the one shard, and will be on the other while the audit looks.
    await on(1, "BEGIN; INSERT INTO documents_hot VALUES (1, 501, 0, NULL); PREPARE TRANSACTION 'soon'");
    const looking = texts();
    // Whether the audit has looked for it before or looks after this.
    await on(1, "COMMIT PREPARED 'soon'");
    expect(await looking).toEqual([
      'one: the hot half, in public.documents_hot on shard "two", is missing of 1 rows: ["500", "1"]',
      'two: the half in public.documents on shard "one" is missing of 1 rows: ["1", "2"]',
    ]);
  });

  test('says nothing of rows while somebody keeps a transaction prepared that may be theirs', async () => {
    await on(0, "SET session_replication_role = replica; INSERT INTO documents VALUES (1, 501, 'soon whole', 0, NULL)");
    await on(1, "BEGIN; INSERT INTO documents_hot VALUES (1, 501, 0, NULL); PREPARE TRANSACTION 'soon'");
    expect(await texts()).toEqual([]);
    await on(1, "ROLLBACK PREPARED 'soon'");
    expect(await texts()).toHaveLength(1);
  });

  test('says nothing of rows while the hot half moves', async () => {
    await on(0, "SET session_replication_role = replica; INSERT INTO documents VALUES (1, 500, 'half', 0, NULL)");
    expect(await texts()).toHaveLength(1);
    await catalog.pool.query(
      `INSERT INTO foreshard.migration (kind, spec, state) VALUES ('move', '{"kind": "move", "keyspace": "hot", "lo": null, "hi": null, "from": "two", "to": "one"}', 'copying')`,
    );
    expect(await texts()).toEqual([]);
  });
});

describe('of what keeps halves together, an audit finds', () => {
  test('triggers that are missing or disabled', async () => {
    await on(0, `DROP TRIGGER ${quoteIdent(`${trigger}_u`)} ON documents`);
    await on(
      1,
      `ALTER TABLE documents DISABLE TRIGGER ${quoteIdent(`${trigger}_log`)};
      ALTER TABLE documents_hot ENABLE TRIGGER ${quoteIdent(trigger)}`,
    );
    const halves = (await audit(catalog, false)).filter(({ kind }) => kind === 'halves');
    expect(halves.map(({ shard, text }) => `${shard}: ${text}`)).toEqual([
      'one: triggers of public.documents that keep public.documents_hot the same are missing',
      `two: trigger ${trigger}_log of public.documents is disabled, or fires when it should not`,
      `two: trigger ${trigger} of public.documents_hot is disabled, or fires when it should not`,
    ]);
    for (const { shard, remedy } of halves) await on(shard === 'one' ? 0 : 1, remedy.replace(/\. Then audit.*/, ''));
    expect(await texts()).toEqual([]);
    await on(0, `DROP TRIGGER ${quoteIdent(trigger)} ON documents_hot`);
    expect(await texts()).toContain(
      'one: the trigger of public.documents_hot is missing that brings its rows back to public.documents',
    );
  });

  test('an outbox that is missing, or is not empty', async () => {
    await on(0, `BEGIN; ${sayHalvesSql(HALVES_LOG)}; UPDATE documents SET title = 'by a person' WHERE id = 4; COMMIT`);
    await on(1, `DROP TABLE ${quoteTable(outbox)}`);
    expect(await texts()).toEqual([
      `one: 1 writes of public.documents are in foreshard_shard.${outbox.table}, and were not done to public.documents_hot: their transactions were not a proxy's`,
      `two: foreshard_shard.${outbox.table}, the outbox of public.documents, is missing: writes of both halves fail`,
    ]);
  });
});
