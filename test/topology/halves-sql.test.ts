import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { hotTableInfo, primaryKeyOf } from '../../migrator/hot-table.js';
import { readTable, type TableInfo } from '../../migrator/schema-read.js';
import { createTableSql } from '../../migrator/schema-sql.js';
import { Registry } from '../../topology/catalog/registry.js';
import {
  baseHalfSql,
  baseTriggersPresent,
  baseTriggersSql,
  dropBaseHalfSql,
  dropHotHalfSql,
  HALVES_BRING,
  HALVES_LOG,
  HALVES_SETTING,
  halvesNames,
  hotHalfSql,
  outboxTakeSql,
  sayHalvesSql,
} from '../../topology/halves-sql.js';
import type { ColumnSplit } from '../../topology/topology.js';
import { startTestCluster } from '../support/cluster.js';
import { moveHot, splitColumns } from '../support/halves.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const TABLE = { schema: 'public', table: 'documents' };
const HOT = { schema: 'public', table: 'documents_hot' };

let server: EmbeddedCluster;
let db: pg.Client;
let split: ColumnSplit;

beforeAll(async () => {
  server = await startTestCluster({ settings: { max_prepared_transactions: '5' } });
  db = await connect('postgres');
  await db.query(`CREATE ROLE app LOGIN PASSWORD '${server.password}'; CREATE ROLE other;
    CREATE TABLE documents (tenant_id bigint, id text COLLATE "C", title text NOT NULL, views numeric NOT NULL DEFAULT 0 CHECK (views >= 0),
      seen timestamptz, extra json, PRIMARY KEY (tenant_id, id));
    INSERT INTO documents VALUES (1, 'a', 'A', 1, NULL, NULL), (1, 'b', 'B', 2, '2026-01-01 00:00+00', '{"x": 1}');
    GRANT SELECT, INSERT, UPDATE, DELETE ON documents TO app`);
  await db.query('SET search_path = pg_catalog');
  const info = (await readTable(db, 'public.documents')) as TableInfo;
  split = { hot: HOT, columns: ['views', 'seen', 'extra'], primaryKey: primaryKeyOf(info) };
  for (const sql of createTableSql(hotTableInfo(info, split))) await db.query(sql);
  await db.query('RESET search_path');
});

afterAll(async () => {
  await db.end();
});

beforeEach(async () => {
  await db.query(`RESET SESSION AUTHORIZATION; RESET ALL`);
  // Twice: what was made when a migrator died is made again.
  for (let i = 0; i < 2; i++)
    for (const sql of [...baseHalfSql(TABLE, split), ...baseTriggersSql(TABLE, split), ...hotHalfSql(TABLE, split)])
      await db.query(sql);
  await db.query(`SET session_replication_role = replica; TRUNCATE documents, documents_hot;
    INSERT INTO documents VALUES (1, 'a', 'A', 1, NULL, NULL), (1, 'b', 'B', 2, '2026-01-01 00:00+00', '{"x": 1}');
    TRUNCATE documents_hot; INSERT INTO documents_hot SELECT tenant_id, id, views, seen, extra FROM documents;
    SET session_replication_role = origin`);
});

async function connect(user: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: server.url('postgres', user) });
  await client.connect();
  return client;
}

const hot = async () =>
  (
    await db.query({
      text: `SELECT tenant_id, id, views::text, seen, extra::text FROM documents_hot ORDER BY 1, 2`,
      rowMode: 'array',
    })
  ).rows;
const base = async () =>
  (
    await db.query({
      text: `SELECT tenant_id, id, views::text, seen, extra::text FROM documents ORDER BY 1, 2`,
      rowMode: 'array',
    })
  ).rows;
const outboxRows = async () =>
  (await db.query(`SELECT FROM foreshard_shard.${halvesNames(TABLE).outbox.table}`)).rowCount;

test('together, what a role without any right of ours does to the table is done to the hot table, to the bit', async () => {
  const app = await connect('app');
  try {
    await app.query(`INSERT INTO documents VALUES (2, 'c', 'C', 1.0, now(), '{}')`);
    await app.query(`UPDATE documents SET views = 1.00 WHERE id = 'c'`);
    await app.query(`UPDATE documents SET extra = '{ }' WHERE id = 'a'`);
    await app.query(`UPDATE documents SET id = 'z', seen = NULL WHERE id = 'b'`);
    expect(await hot()).toEqual(await base());
    expect((await hot()).map(([, id, views]) => [id, views])).toEqual([
      ['a', '1'],
      ['z', '2'],
      ['c', '1.00'],
    ]);
    await app.query(`DELETE FROM documents WHERE id <> 'a'`);
    expect((await hot()).map(([, id]) => id)).toEqual(['a']);
  } finally {
    await app.end();
  }
  await db.query('TRUNCATE documents');
  expect(await hot()).toEqual([]);
  expect(await outboxRows()).toBe(0);
});

test('who writes the table alone, and takes the other half of the row to be there, is refused when it is not', async () => {
  const gone = (id: string) =>
    db.query(
      `SET session_replication_role = replica; DELETE FROM documents_hot WHERE id = '${id}'; SET session_replication_role = origin`,
    );
  await gone('a');
  await expect(db.query(`UPDATE documents SET title = title || views WHERE id = 'a'`)).rejects.toMatchObject({
    code: 'SH001',
  });
  await db.query(`UPDATE documents SET title = title || views WHERE id = 'b'`);
  // Nor by a snapshot in which it still is.
  const app = await connect('app');
  try {
    await app.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM documents');
    await gone('b');
    await expect(app.query(`UPDATE documents SET title = title || views WHERE id = 'b'`)).rejects.toMatchObject({
      code: '40001',
    });
  } finally {
    await app.end();
  }
});

test('the hot table has the checks, privileges and owner of the table, and refuses what it refuses', async () => {
  await expect(db.query(`UPDATE documents_hot SET views = -1`)).rejects.toMatchObject({ code: '23514' });
  await expect(db.query(`UPDATE documents_hot SET views = NULL`)).rejects.toMatchObject({ code: '23502' });
  const { rows } = await db.query(
    `SELECT has_table_privilege('app', 'documents_hot', 'UPDATE') AS app, has_table_privilege('other', 'documents_hot', 'SELECT') AS other`,
  );
  expect(rows).toEqual([{ app: true, other: false }]);
});

test('apart, every row is written down in the order in which it was changed, and taken by the same transaction alone', async () => {
  const app = await connect('app');
  try {
    await app.query(
      `SET datestyle = 'SQL, DMY'; SET extra_float_digits = -5; SET timezone = 'Asia/Tokyo'; BEGIN; ${sayHalvesSql(HALVES_LOG)}`,
    );
    await app.query(`INSERT INTO documents VALUES (2, 'c', 'C', 5, '2026-02-03 00:00+00', '{"y": 2}')`);
    await app.query(`UPDATE documents SET title = 'T' WHERE id = 'b'`);
    await app.query(`DELETE FROM documents WHERE id = 'a'`);
    expect((await db.query(outboxTakeSql(TABLE, split, split.columns))).rows).toEqual([]); // another's
    const { rows } = await app.query({ text: outboxTakeSql(TABLE, split, ['views']), rowMode: 'array' });
    expect(rows).toEqual([
      ['I', null, null, '2', 'c', '5', '2026-02-03 00:00:00+00', '{"y": 2}'],
      ['U', '1', 'b', '1', 'b', '2', null, null], // what was given
      ['D', '1', 'a', null, null, null, null, null],
    ]);
    expect((await app.query(outboxTakeSql(TABLE, split, split.columns))).rows).toEqual([]);
    await app.query('COMMIT');
    await expect(
      app.query(`INSERT INTO foreshard_shard.${halvesNames(TABLE).outbox.table} (op) VALUES ('D')`),
    ).rejects.toMatchObject({ code: '42501' });
  } finally {
    await app.end();
  }
  expect((await hot()).map(([, id]) => id)).toEqual(['a', 'b']); // as it was
  await db.query(`BEGIN; ${sayHalvesSql(HALVES_LOG)}`);
  await expect(db.query('TRUNCATE documents')).rejects.toMatchObject({ code: '0A000' });
  await db.query('ROLLBACK');
});

test('what is set for longer than a transaction, or by somebody who guesses, changes nothing', async () => {
  await db.query(`BEGIN; ${sayHalvesSql(HALVES_LOG)}`);
  const { rows } = await db.query<{ value: string }>(`SELECT current_setting('${HALVES_SETTING}') AS value`);
  await db.query('COMMIT');
  let views = 10;
  for (const value of ['log', 'bring', rows[0]?.value ?? '']) {
    await db.query(`SELECT set_config('${HALVES_SETTING}', $1, false)`, [value]);
    await db.query(`UPDATE documents SET views = ${++views}`);
    expect((await hot()).map((row) => row[2])).toEqual([String(views), String(views)]);
  }
  expect(await outboxRows()).toBe(0);
  await db.query('TRUNCATE documents');
});

test('nobody else can have their triggers call what may write the hot table', async () => {
  const app = await connect('app');
  try {
    await app.query('CREATE TEMP TABLE mine (LIKE documents)');
    const { together, log, arrive } = halvesNames(TABLE);
    for (const { schema, table } of [together, log, arrive])
      await expect(
        app.query(`CREATE TRIGGER t AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION ${schema}.${table}()`),
      ).rejects.toMatchObject({ code: '42501' });
  } finally {
    await app.end();
  }
});

test('what is brought is nobody else’s to hear of', async () => {
  await db.query(`BEGIN; ${sayHalvesSql(HALVES_BRING)}; UPDATE documents SET views = 9; COMMIT`);
  expect((await hot()).map(([, , views]) => views)).toEqual(['1', '2']);
  expect(await outboxRows()).toBe(0);
});

test('what replication writes to the hot table is the table’s too, and goes no further', async () => {
  await db.query(`SET session_replication_role = replica; UPDATE documents_hot SET views = 7 WHERE id = 'a'; DELETE FROM documents_hot WHERE id = 'b';
    INSERT INTO documents_hot VALUES (1, 'b', 8, NULL, NULL), (1, 'nobody', 8, NULL, NULL); SET session_replication_role = origin`);
  expect((await base()).map(([, id, views]) => [id, views])).toEqual([
    ['a', '7'],
    ['b', '8'],
  ]);
  await db.query(`UPDATE documents_hot SET views = 1`); // not replicated
  expect((await base()).map(([, , views]) => views)).toEqual(['7', '8']);
  expect(await outboxRows()).toBe(0);
});

test('what is replicated waits for the row’s own insertion, when that is prepared and not yet committed', async () => {
  await db.query(`BEGIN; ${sayHalvesSql(HALVES_LOG)}; INSERT INTO documents VALUES (3, 'p', 'P', 1, NULL, NULL)`);
  expect((await db.query(outboxTakeSql(TABLE, split, split.columns))).rowCount).toBe(1);
  await db.query(`PREPARE TRANSACTION 'p'`);
  const apply = await connect('postgres');
  try {
    await apply.query('SET session_replication_role = replica');
    const { rows } = await apply.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    // The other half is committed, and has been changed since.
    const applied = apply.query(`INSERT INTO documents_hot VALUES (3, 'p', 42, NULL, NULL)`);
    await waitFor(
      async () =>
        (await db.query(`SELECT FROM pg_locks WHERE pid = $1 AND NOT granted`, [rows[0]?.pid])).rowCount === 1,
      { what: 'the replicated row to wait for the prepared transaction' },
    );
    await db.query(`COMMIT PREPARED 'p'`);
    await applied;
  } finally {
    await apply.end();
  }
  expect((await base()).filter(([, id]) => id === 'p')).toEqual([['3', 'p', '42', null, null]]);
  expect(await outboxRows()).toBe(0);
});

test('a transaction that does not see a row that was filled in meanwhile does not leave it behind', async () => {
  for (const sql of baseHalfSql(TABLE, split, true)) await db.query(sql);
  await db.query('TRUNCATE documents_hot');
  const old = await connect('app');
  try {
    await old.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM documents');
    await db.query('INSERT INTO documents_hot SELECT tenant_id, id, views, seen, extra FROM documents');
    await expect(old.query(`DELETE FROM documents WHERE id = 'a'`)).rejects.toMatchObject({ code: '40001' });
    await old.query('ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM documents');
    await db.query(`TRUNCATE documents_hot`);
    await db.query(`INSERT INTO documents_hot SELECT tenant_id, id, views, seen, extra FROM documents`);
    await expect(old.query(`UPDATE documents SET views = 5 WHERE id = 'a'`)).rejects.toMatchObject({ code: '40001' });
    await old.query('ROLLBACK');
    // Not filled in yet.
    await db.query(`TRUNCATE documents_hot`);
    await old.query(`UPDATE documents SET views = 5 WHERE id = 'a'; DELETE FROM documents WHERE id = 'b'`);
  } finally {
    await old.end();
  }
  expect((await hot()).map(([, id, views]) => [id, views])).toEqual([['a', '5']]);
});

test('when all is filled in, what is not there is on another shard, and is not written here', async () => {
  for (const isolation of ['READ COMMITTED', 'REPEATABLE READ'])
    for (const write of [`UPDATE documents SET views = 5 WHERE id = 'a'`, `DELETE FROM documents WHERE id = 'a'`]) {
      await db.query('DELETE FROM documents_hot');
      await db.query(`BEGIN ISOLATION LEVEL ${isolation}`);
      await expect(db.query(write)).rejects.toMatchObject({ code: 'SH001' });
      await db.query('ROLLBACK');
      await db.query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM documents');
      const other = await connect('postgres');
      await other
        .query('INSERT INTO documents_hot SELECT tenant_id, id, views, seen, extra FROM documents')
        .finally(() => other.end());
      await expect(db.query(write)).rejects.toMatchObject({ code: '40001' });
      await db.query('ROLLBACK');
    }
  expect((await hot()).map(([, id]) => id)).toEqual(['a', 'b']);
});

test('without the table beside it, the hot table takes what is replicated; and all of it goes again', async () => {
  await db.query('ALTER TABLE documents RENAME TO elsewhere');
  await db.query(
    `SET session_replication_role = replica; INSERT INTO documents_hot VALUES (9, 'x', 1, NULL, NULL); SET session_replication_role = origin`,
  );
  await db.query('ALTER TABLE elsewhere RENAME TO documents');
  expect((await db.query(baseTriggersPresent(TABLE))).rows).toEqual([{ present: true }]);
  for (let i = 0; i < 2; i++)
    for (const sql of [...dropBaseHalfSql(TABLE), ...dropHotHalfSql(TABLE)]) await db.query(sql);
  expect((await db.query(baseTriggersPresent(TABLE))).rows).toEqual([{ present: false }]);
  const { rows } =
    await db.query(`SELECT tgname FROM pg_trigger WHERE tgname LIKE '%foreshard%' UNION ALL SELECT relname FROM pg_class WHERE relnamespace = 'foreshard_shard'::regnamespace
    UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'foreshard_shard'::regnamespace`);
  expect(rows).toEqual([]);
});

test('a split can be set up at once, and its halves be apart', async () => {
  const s = await Sharded.start({ splitAt: 100 });
  try {
    for (const shard of [0, 1] as const)
      await s.onShard(
        shard,
        `CREATE TABLE documents (tenant_id bigint, id bigint, title text, views int NOT NULL, PRIMARY KEY (tenant_id, id))`,
      );
    await s.onShard(0, `INSERT INTO documents VALUES (1, 1, 'low', 1)`);
    await s.onShard(1, `INSERT INTO documents VALUES (100, 1, 'high', 2)`);
    const registry = new Registry(s.catalog, 'test');
    await registry.addTable({ table: TABLE, keyspace: 'main', keyColumns: ['tenant_id'] });
    const made = await splitColumns(s.catalog, { table: TABLE, columns: ['views'], hot: HOT, as: 'views' });
    expect((await s.catalog.loadTopology()).shardedTables.get('public.documents')).toMatchObject({
      keyspace: 'main',
      split: made,
    });
    expect(await s.onShard(1, 'SELECT * FROM documents_hot')).toEqual([{ tenant_id: '100', id: '1', views: 2 }]);
    await moveHot(s.catalog, TABLE, made, 's2', 'views = -1');
    expect(await s.onShard(0, 'SELECT * FROM documents_hot')).toEqual([]);
    expect(await s.onShard(0, 'SELECT views FROM documents')).toEqual([{ views: -1 }]);
    expect(await s.onShard(1, 'SELECT tenant_id, views FROM documents_hot ORDER BY 1')).toEqual([
      { tenant_id: '1', views: 1 },
      { tenant_id: '100', views: 2 },
    ]);
  } finally {
    await s.stop();
  }
});
