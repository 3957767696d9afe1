import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { HALVES_LOG, halvesNames, sayHalvesSql } from '../../topology/halves-sql.js';
import { quoteLiteral, quoteTable } from '../../topology/quote.js';
import type { ColumnSplit } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { moveHot, splitColumns } from '../support/halves.js';
import { Sharded } from '../support/sharded.js';

// Queries that need both halves of rows whose hot columns are on another shard: as one PostgreSQL answers them that has the rows whole, and never half of what
// a transaction has changed.

const DOCUMENTS = { schema: 'public', table: 'documents' };
const HOT = { schema: 'public', table: 'documents_hot' };

const SCHEMA = `
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE documents (tenant_id bigint NOT NULL, id int NOT NULL, title text NOT NULL, views int NOT NULL DEFAULT 0, body text, last_seen timestamptz,
  mood mood, score numeric(10, 3), PRIMARY KEY (id, tenant_id));
CREATE TABLE authors (tenant_id bigint NOT NULL, document_id int NOT NULL, name text COLLATE "C", PRIMARY KEY (tenant_id, document_id, name));
CREATE TABLE foreshard_base (tenant_id bigint PRIMARY KEY, note text);
CREATE TABLE foreshard_hot (note text);
GRANT ALL ON documents, authors, foreshard_base, foreshard_hot TO app`;

const rowsOf = (lo: number, hi: number) => `
INSERT INTO documents SELECT t, i, 'title ' || (i * 7 % 5), t * i % 11, repeat('body ', i), '2026-01-01'::timestamptz + (i || ' hours')::interval,
  (ARRAY['sad', 'ok', 'happy', NULL]::mood[])[1 + i % 4], i / 3.0 FROM generate_series(${lo}, ${hi}) t, generate_series(1, 6) i;
INSERT INTO authors SELECT t, i, 'author ' || (t + i) % 7 FROM generate_series(${lo}, ${hi}) t, generate_series(1, 6, 2) i;
INSERT INTO foreshard_base SELECT t, 'note ' || t FROM generate_series(${lo}, ${hi}) t;`;

let s: Sharded;
let split: ColumnSplit;
let whole: pg.Client;
let client: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 11 });
  await withClient(s.clusters[0].url('postgres'), (c) => c.query('CREATE DATABASE whole'));
  // Types have other OIDs there.
  await s.onShard(1, 'CREATE TYPE before AS ENUM ()');
  const url = new URL(s.clusters[0].url('whole'));
  await withClient(url.href, (c) =>
    c.query(
      `${SCHEMA}; GRANT ALL ON SCHEMA public TO app; ${rowsOf(1, 20)}; INSERT INTO foreshard_hot VALUES ('home')`,
    ),
  );
  await s.onShard(0, `${SCHEMA}; ${rowsOf(1, 10)}; INSERT INTO foreshard_hot VALUES ('home')`);
  await s.onShard(1, `${SCHEMA}; ${rowsOf(11, 20)}`);
  const registry = new Registry(s.catalog, 'test');
  for (const table of ['documents', 'authors', 'foreshard_base'])
    await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['tenant_id'] });
  split = await splitColumns(s.catalog, {
    table: DOCUMENTS,
    columns: ['views', 'last_seen', 'mood'],
    hot: HOT,
    as: 'hot_documents',
  });
  // Rows of tenants from 11 on are together; the table's own values of the others' hot columns are nobody's to see.
  await moveHot(s.catalog, DOCUMENTS, split, 's2', `views = -1, last_seen = NULL, mood = 'sad'`);
  for (const shard of [0, 1] as const) await s.onShard(shard, 'GRANT ALL ON documents_hot TO app');
  await s.reloaded();
  url.username = 'app';
  url.password = 'secret';
  whole = new pg.Client({ connectionString: url.href });
  await whole.connect();
  client = await s.connect();
}, 120_000);
afterAll(async () => {
  await whole?.end();
  await s?.stop();
});

async function told(on: pg.Client, text: string, values: unknown[], name?: string): Promise<object> {
  try {
    const asked = { text, values, rowMode: 'array', ...(name === undefined ? {} : { name }) } as pg.QueryArrayConfig;
    const { rows, fields, command, rowCount } = await on.query(asked);
    const shown = rows.map((row) => JSON.stringify(row));
    return {
      rows: /ORDER BY [^()]*$/.test(text) ? shown : shown.sort(),
      fields: fields.map((f) => [f.name, f.dataTypeID < 16384 && f.dataTypeID, f.dataTypeModifier, f.format]),
      command,
      rowCount,
    };
  } catch (error) {
    const { code, message, position } = error as pg.DatabaseError;
    return { code, message, position };
  }
}

const QUERIES: [string, unknown[]?][] = [
  ['SELECT * FROM documents WHERE tenant_id = 3 AND id = 2'],
  ['SELECT * FROM documents WHERE tenant_id = $1 AND id = $2', [3, 2]],
  ['SELECT * FROM documents WHERE tenant_id = $1::bigint AND id = abs($2::int)', [13, -2]],
  ['SELECT * FROM documents WHERE tenant_id = 3 AND id = 200'],
  ['SELECT title, views FROM documents WHERE tenant_id = 3 ORDER BY id'],
  ['SELECT * FROM documents ORDER BY tenant_id, id'],
  ['TABLE documents'],
  ['SELECT d.* FROM public.documents AS d WHERE d.tenant_id IN (2, 12) ORDER BY d.views, d.tenant_id, d.id'],
  ['SELECT public.documents.views, body FROM public.documents WHERE tenant_id = 5'],
  ['SELECT title, views FROM documents WHERE tenant_id = 3 AND views > 3 AND title = $1', ['title 2']],
  ['SELECT tenant_id, id FROM documents WHERE views > 3 AND score < 1 ORDER BY 1, 2'],
  [`SELECT tenant_id, id FROM documents WHERE mood = 'happy' AND title LIKE '%1' ORDER BY 1, 2`],
  ['SELECT mood, count(*), sum(views), max(title) FROM documents GROUP BY mood ORDER BY mood'],
  ['SELECT id, title, views FROM documents WHERE tenant_id = 4 ORDER BY views DESC, id LIMIT 2 OFFSET 1'],
  [
    'SELECT a.name, d.views FROM documents d JOIN authors a ON a.tenant_id = d.tenant_id AND a.document_id = d.id WHERE d.tenant_id = 7 ORDER BY 1, 2',
  ],
  [
    'SELECT name, sum(views) FROM authors a LEFT JOIN documents d ON d.tenant_id = a.tenant_id AND d.id = a.document_id AND d.views > 4 GROUP BY name ORDER BY name',
  ],
  [
    'SELECT x.title, y.views FROM documents x JOIN documents y ON x.tenant_id = y.tenant_id AND x.id = y.id + 1 WHERE x.views > 2 AND y.title > $1 ORDER BY 1, 2',
    ['title 1'],
  ],
  [
    'WITH v AS (SELECT tenant_id, max(views) AS m FROM documents GROUP BY tenant_id) SELECT d.tenant_id, d.id, d.title FROM documents d JOIN v ON v.tenant_id = d.tenant_id AND v.m = d.views ORDER BY 1, 2',
  ],
  [
    'SELECT id, title, views, rank() OVER (PARTITION BY tenant_id ORDER BY views DESC, id) FROM documents WHERE tenant_id < 4 ORDER BY tenant_id, id',
  ],
  [
    'SELECT d.id, d.title, d.views, f.note, h.note FROM documents d JOIN foreshard_base f USING (tenant_id), foreshard_hot h WHERE tenant_id = 2 ORDER BY d.id',
  ],
  ['SELECT note FROM foreshard_hot WHERE EXISTS (SELECT FROM documents WHERE views = 10 AND body IS NOT NULL)'],
  ['SELECT title, last_seen FROM documents WHERE tenant_id = 3 AND id > 0 AND 10 / views > 1 ORDER BY id'],
  ['SELECT title, 10 / views FROM documents WHERE tenant_id = 3 AND views > 0 AND 10 / views > 1 ORDER BY id'],
  ['SELECT title, views, missing FROM documents WHERE tenant_id = 3'],
  ['SELECT id, title, count(views) FROM documents WHERE tenant_id = 3 GROUP BY id, tenant_id ORDER BY id'],
  ['SELECT coalesce(title, $1), views::text FROM documents WHERE tenant_id = 1 AND mood = $2::mood', ['x', 'ok']],
];

async function compare(text: string, values: unknown[] = []): Promise<void> {
  const expected = await told(whole, text, values);
  expect(await told(client, text, values)).toEqual(expected);
  expect(await told(client, text, values, text.slice(0, 60))).toEqual(expected);
}

describe('queries', () => {
  it.each<[string, unknown[]?]>(QUERIES)('%s', (text, values) => compare(text, values));

  it('do not take rows for whole that are together on one shard', async () => {
    // On the shard of both halves the table has them; on the other one it says something else of its own.
    const [own] = await s.onShard<{ views: number }>(0, 'SELECT views FROM documents WHERE tenant_id = 3 AND id = 2');
    expect(own?.views).toBe(-1);
    const { rows } = await client.query('SELECT title, views FROM documents WHERE tenant_id = 3 AND id = 2');
    expect(rows).toEqual([{ title: 'title 4', views: 6 }]);
  });

  it('leave nothing behind', async () => {
    await client.query('SELECT title, views FROM documents');
    const left = await s.onShard(0, `SELECT relname FROM pg_class WHERE relpersistence = 't'`);
    expect(left).toEqual([]);
  });
});

const onBoth = async (sql: string) => {
  for (const c of [whole, client]) await c.query(sql);
};

const ON_SECOND = [`UPDATE foreshard_base SET note = 'own' WHERE tenant_id = 12`];
const HOT_ALONE = [
  'UPDATE documents SET views = views + 5 WHERE tenant_id = 3 AND id = 2',
  `UPDATE documents SET mood = 'happy' WHERE tenant_id = 4`,
];
const OF_BOTH_HALVES = [
  `UPDATE documents SET title = 'title 9', views = 10 WHERE tenant_id = 3 AND id = 4`,
  `UPDATE documents SET title = 'title 2' WHERE tenant_id = 12 AND id = 1`,
  'DELETE FROM documents WHERE tenant_id = 4 AND id = 1',
  `INSERT INTO documents (tenant_id, id, title, views, mood) VALUES (4, 20, 'title 1', 10, 'ok'), (4, 21, 'title 1', 9, NULL)`,
  `INSERT INTO documents (tenant_id, id, title) VALUES (16, 20, 'title 3')`,
  `UPDATE documents SET body = body || views WHERE tenant_id = 2 AND views > 4`,
  `UPDATE authors SET name = 'author 0' WHERE tenant_id = 7`,
];
const SETTINGS = [`SET LOCAL DateStyle = 'German'`, `SET LOCAL extra_float_digits = 0`, `SET LOCAL my.own = '7'`];

const BLOCKS: [string, readonly string[], nth: number][] = [
  ['that has settings of its own', SETTINGS, 3],
  ['that has written other rows', ON_SECOND, 4],
  ['that has written hot columns', HOT_ALONE, 2],
  ['that has written both halves', [...OF_BOTH_HALVES, ...HOT_ALONE], 1],
  ['that has settings, and has written', [...SETTINGS, ...OF_BOTH_HALVES], 3],
];

/** With changes and settings of the block's own, as one database has them. */
async function compareInBlock(statements: readonly string[], nth: number): Promise<void> {
  const wrong: unknown[] = [];
  await onBoth('BEGIN');
  try {
    for (const sql of statements) await onBoth(sql);
    for (const [i, [text, values = []]] of QUERIES.entries()) {
      if (i % nth !== 0) continue;
      const name = i % 2 === 0 ? `b${statements.length} ${i}` : undefined;
      await onBoth('SAVEPOINT q');
      const [expected, got] = [await told(whole, text, values, name), await told(client, text, values, name)];
      await onBoth('ROLLBACK TO q');
      // The home shard's own rows, where the block has written there.
      const { message = '' } = got as { message?: string };
      const refused = /\bforeshard_hot\b/.test(text) && / has written there$/.test(message);
      const wanted = refused ? { code: '0A000' } : expected;
      try {
        expect(got).toMatchObject(wanted);
      } catch {
        wrong.push([text, wanted, got]);
      }
    }
  } finally {
    await onBoth('ROLLBACK');
  }
  expect(wrong).toEqual([]);
}

/** Rows of a tenant are read in a block that has written one of them, while others write both halves of each, and always the same to both. */
async function readWhileWritten(tenant: number): Promise<void> {
  const write = 'UPDATE documents SET title = $3, views = $4 WHERE tenant_id = $1 AND id = $2';
  const same = async (id: number, n: number, on: pg.Client) => on.query(write, [tenant, id, `v${n}`, n]);
  for (const id of [1, 2, 3, 4, 5, 6]) for (const on of [whole, client]) await same(id, 0, on);
  const reader = await s.connect();
  await reader.query('BEGIN');
  await same(6, 66, reader);
  const writers = await Promise.all([1, 2, 3].map(() => s.connect()));
  const text = 'SELECT id, title, views FROM documents WHERE tenant_id = $1 ORDER BY id';
  const found: string[] = [];
  try {
    for (let n = 1; n <= 40; n++) {
      const writing = writers.map((writer, i) => same(i + 1, n, writer));
      const { rows } = await reader.query<{ id: number; title: string; views: number }>(text, [tenant]);
      found.push(rows.map(({ id, title, views }) => (title === `v${views}` ? id : `${id} ${title} ${views}`)).join());
      expect(rows[5]).toEqual({ id: 6, title: 'v66', views: 66 });
      await Promise.all(writing);
    }
  } finally {
    await reader.query('ROLLBACK');
    for (const c of [reader, ...writers]) await c.end();
  }
  for (const id of [1, 2, 3]) await same(id, 0, client);
  expect([...new Set(found)]).toEqual(['1,2,3,4,5,6']);
}

describe('in a block', () => {
  it('rows are whole while others write both halves of them', () => readWhileWritten(8), 60_000);

  it.each(BLOCKS)('%s', (_, statements, nth) => compareInBlock(statements, nth), 60_000);

  it('what it has undone is not seen, and what it has done is, step by step', async () => {
    const text = 'SELECT id, title, views, last_seen FROM documents WHERE tenant_id = 6 ORDER BY id';
    const steps = [
      `UPDATE documents SET title = 'first', views = 1 WHERE tenant_id = 6 AND id = 1`,
      'SAVEPOINT a',
      'DELETE FROM documents WHERE tenant_id = 6 AND id = 1',
      'SAVEPOINT b',
      `INSERT INTO documents (tenant_id, id, title) VALUES (6, 1, 'again')`,
      'ROLLBACK TO b',
      'RELEASE b',
      'ROLLBACK TO a',
      'UPDATE documents SET views = 2 WHERE tenant_id = 6 AND id = 1',
      'RELEASE a',
      'SELECT * FROM documents WHERE tenant_id = 6 AND id = 2 FOR UPDATE',
      `SET LOCAL TimeZone = 'Asia/Tokyo'`,
      `UPDATE documents SET title = 'last' WHERE tenant_id = 6`,
    ];
    await onBoth('BEGIN');
    try {
      for (const step of steps) {
        await onBoth(step);
        expect(await told(client, text, [])).toEqual(await told(whole, text, []));
      }
    } finally {
      await onBoth('ROLLBACK');
    }
    expect(await told(client, text, [])).toEqual(await told(whole, text, []));
  });

  it('is refused where all of it is to see one moment', async () => {
    const another = await s.connect();
    await another.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
    await expect(another.query('SELECT * FROM documents WHERE tenant_id = 3')).rejects.toMatchObject({ code: '0A000' });
    await another.query('ROLLBACK');
    await another.end();
  });
});

describe('a transaction that is on its way on both shards', () => {
  const both = 'SELECT id, title, views FROM documents WHERE tenant_id = 1 AND id < 3 ORDER BY id';
  const OLD = [
    { id: 1, title: 'old', views: 1 },
    { id: 2, title: 'old', views: 1 },
  ];
  const NEW = [
    { id: 1, title: 'new', views: 2 },
    { id: 2, title: 'old', views: 2 },
  ];
  const { outbox } = halvesNames(DOCUMENTS);

  beforeEach(async () => {
    await s.onShard(
      0,
      `SET session_replication_role = replica; UPDATE documents SET title = 'old' WHERE tenant_id = 1`,
    );
    await s.onShard(1, 'UPDATE documents_hot SET views = 1 WHERE tenant_id = 1');
  });

  afterAll(async () => {
    const { rows } = await whole.query<{ rows: string }>(
      'SELECT json_agg(d)::text AS rows FROM documents d WHERE tenant_id = 1',
    );
    const from = `FROM json_populate_recordset(NULL::documents, ${quoteLiteral(rows[0]?.rows ?? '')}) r WHERE (d.tenant_id, d.id) = (r.tenant_id, r.id)`;
    await s.onShard(0, `SET session_replication_role = replica; UPDATE documents d SET title = r.title ${from}`);
    await s.onShard(1, `UPDATE documents_hot d SET views = r.views ${from}`);
  });

  const prepare = async () => {
    await s.onShard(
      0,
      `BEGIN; ${sayHalvesSql(HALVES_LOG)}; UPDATE documents SET title = 'new' WHERE tenant_id = 1 AND id = 1;
       DELETE FROM ${quoteTable(outbox)} WHERE xid = pg_current_xact_id(); PREPARE TRANSACTION 'base'`,
    );
    await s.onShard(
      1,
      `BEGIN; UPDATE documents_hot SET views = 2 WHERE tenant_id = 1 AND id < 3; PREPARE TRANSACTION 'hot'`,
    );
  };
  const onBase = (end: string) => s.onShard(0, `${end} PREPARED 'base'`);
  const onHot = (end: string) => s.onShard(1, `${end} PREPARED 'hot'`);

  it('is waited for until it is committed on both', async () => {
    for (const [first, second] of [
      [onBase, onHot],
      [onHot, onBase],
    ] as const) {
      await s.onShard(
        0,
        `SET session_replication_role = replica; UPDATE documents SET title = 'old' WHERE tenant_id = 1`,
      );
      await s.onShard(1, 'UPDATE documents_hot SET views = 1 WHERE tenant_id = 1');
      expect((await client.query(both)).rows).toEqual(OLD);
      await prepare();
      const reading = client.query(both);
      await first('COMMIT');
      await second('COMMIT');
      expect((await reading).rows).toEqual(NEW);
    }
  });

  it('is not seen when it is rolled back', async () => {
    await prepare();
    const reading = client.query(both);
    await onHot('ROLLBACK');
    await onBase('ROLLBACK');
    expect((await reading).rows).toEqual(OLD);
  });

  it.each([
    ['prepared on both', [], [onBase, onHot]],
    ['committed on the shard of the table only', [onBase], [onHot]],
    ['committed on the shard of the hot columns only', [onHot], [onBase]],
  ] as const)('is not read by halves while it stays %s', async (_, before, behind) => {
    await prepare();
    for (const on of before) await on('COMMIT');
    await expect(client.query(both)).rejects.toMatchObject({ code: '40001' });
    // Other rows do not wait for it.
    const { rows } = await client.query('SELECT id, title, views FROM documents WHERE tenant_id = 1 AND id = 5');
    expect(rows).toEqual([{ id: 5, title: 'old', views: 1 }]);
    for (const on of behind) await on('COMMIT');
    expect((await client.query(both)).rows).toEqual(NEW);
  });

  describe('in a block that has written', () => {
    const OWN = { id: 5, title: 'mine', views: 55 };
    const withOwn = 'SELECT id, title, views FROM documents WHERE tenant_id = 1 AND id IN (1, 2, 5) ORDER BY id';
    let another: pg.Client;
    beforeEach(async () => {
      another = await s.connect();
      await another.query('BEGIN');
      await another.query(`UPDATE documents SET title = 'mine', views = 55 WHERE tenant_id = 1 AND id = 5`);
    });
    afterEach(async () => {
      await another.query('ROLLBACK');
      await another.end();
    });

    it('is waited for until it is committed on both, and seen with the block’s own changes', async () => {
      expect((await another.query(withOwn)).rows).toEqual([...OLD, OWN]);
      await prepare();
      const reading = another.query(withOwn);
      await onHot('COMMIT');
      await onBase('COMMIT');
      expect((await reading).rows).toEqual([...NEW, OWN]);
      expect((await another.query(both)).rows).toEqual(NEW);
    });

    it('fails the block while it stays, which can go back, and read what is its own', async () => {
      await another.query('SAVEPOINT a');
      await prepare();
      await onHot('COMMIT');
      await expect(another.query(withOwn)).rejects.toMatchObject({ code: '40001' });
      await expect(another.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
      await another.query('ROLLBACK TO a');
      const { rows } = await another.query('SELECT id, title, views FROM documents WHERE tenant_id = 1 AND id = 5');
      expect(rows).toEqual([OWN]);
      await onBase('COMMIT');
      expect((await another.query(withOwn)).rows).toEqual([...NEW, OWN]);
    });
  });

  it('lets go of a client that gives up meanwhile', async () => {
    await prepare();
    const another = await s.connect();
    const reading = another.query(both);
    await s.cancel(another);
    // It may have come before the query was there to be canceled.
    await expect(reading).rejects.toMatchObject({ code: expect.stringMatching(/^(57014|40001)$/) });
    expect((await another.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await onBase('COMMIT');
    await onHot('COMMIT');
    expect((await another.query(both)).rows).toEqual(NEW);
  });
});

describe('ranges of the hot columns that are other ones', () => {
  it('are answered alike, where each of two shards has halves of the other one', async () => {
    // Tenants up to 4 have both halves on the first shard, from 5 to 10 the hot one on the second, from 11 to 14 both on the second, and then the hot one on the first.
    const list = split.columns.map((c) => `${c} = h.${c}`).join(', ');
    const moved = await s.onShard<{ rows: string }>(
      1,
      `WITH d AS (DELETE FROM documents_hot WHERE tenant_id < 5 OR tenant_id > 14 RETURNING *) SELECT json_agg(d)::text AS rows FROM d`,
    );
    await s.onShard(0, 'INSERT INTO documents_hot SELECT * FROM json_populate_recordset(NULL::documents_hot, $1)', [
      moved[0]?.rows,
    ]);
    await s.onShard(
      0,
      `SET session_replication_role = replica;
       UPDATE documents d SET ${list} FROM documents_hot h WHERE d.tenant_id < 5 AND (h.tenant_id, h.id) = (d.tenant_id, d.id)`,
    );
    await s.onShard(
      1,
      `SET session_replication_role = replica; UPDATE documents SET views = -1, last_seen = NULL, mood = 'sad' WHERE tenant_id > 14`,
    );
    const { pool } = s.catalog;
    await pool.query(`
      BEGIN;
      DELETE FROM foreshard.range WHERE keyspace = 'hot_documents';
      INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ('hot_documents', NULL, '["5"]', 's1'), ('hot_documents', '["5"]', '["15"]', 's2'),
        ('hot_documents', '["15"]', NULL, 's1');
      UPDATE foreshard.meta SET epoch = epoch + 1;
      COMMIT`);
    await s.reloaded();
    for (const [text, values] of QUERIES) await compare(text, values);
    for (const tenant of [4, 5, 10, 11, 14, 15, 20])
      await compare('SELECT id, title, views, mood FROM documents WHERE tenant_id = $1 ORDER BY id', [tenant]);
    for (const [, statements, nth] of BLOCKS) await compareInBlock(statements, nth);
    await readWhileWritten(17);
  }, 120_000);
});
