import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createHold, dropHold, endTransactions, holdStatus } from '../../topology/catalog/leases.js';
import { Registry } from '../../topology/catalog/registry.js';
import type { ColumnSplit, Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { moveHot, splitColumns } from '../support/halves.js';
import { B, type Conversation, CP, converse, DP, DS, E, P, Q, S, whole } from '../support/oracle.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const DOCUMENTS = { schema: 'public', table: 'documents' };
const HOT = { schema: 'public', table: 'documents_hot' };
const TABLE = `
CREATE TABLE documents (tenant_id bigint, id bigint, title text NOT NULL, body text, views bigint NOT NULL DEFAULT 0 CHECK (views >= 0),
  last_seen timestamptz, PRIMARY KEY (tenant_id, id), CHECK (views <> 4711 OR last_seen IS NULL));
GRANT ALL ON documents TO app`;
const ROWS = `SELECT t, i, 'title ' || i, repeat('b', i::int), 10 * i, timestamptz '2026-01-01 00:00+00' + i * interval '1 day'
  FROM generate_series(1, 2) t, generate_series(1, 5) i`;

const bound = (sql: string, ...values: (string | null)[]) => [P('', sql), B('', '', ...values), DP(''), E(''), S];

const CONVERSATIONS: readonly Conversation[] = [
  {
    name: 'hot columns alone',
    steps: [
      ['Z', Q('SELECT views FROM documents WHERE tenant_id = 1 AND id = 1')],
      [
        'Z',
        Q('SELECT id, documents.views AS v, last_seen FROM documents WHERE tenant_id = 1 AND views > 15 ORDER BY id'),
      ],
      ['Z', Q('SELECT d.views FROM documents AS d WHERE d.tenant_id = 1 AND d.id = 2')],
      ['Z', Q('SELECT views FROM public.documents WHERE tenant_id = 1 AND id = 9')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 1')],
      [
        'Z',
        Q(
          'UPDATE documents SET views = documents.views + 1, last_seen = NULL WHERE tenant_id = 1 AND id = 1 RETURNING id, views, last_seen',
        ),
      ],
      ['Z', Q('UPDATE documents d SET views = 0 WHERE d.tenant_id = 2')],
      ['Z', Q(`UPDATE documents SET views = 'x' WHERE tenant_id = 1 AND id = 1`)],
      ['Z', Q('UPDATE documents SET views = views / 0 WHERE tenant_id = 1 AND id = 1')],
      ['Z', Q('SELECT sum(views), max(last_seen) FROM documents WHERE tenant_id = 1')],
      ['Z', ...bound('SELECT views FROM documents WHERE tenant_id = $1 AND id = $2', '1', '3')],
      [
        'Z',
        ...bound(
          'UPDATE documents SET views = views + $3 WHERE tenant_id = $1 AND id = $2 RETURNING views',
          '1',
          '3',
          '5',
        ),
      ],
      ['Z', ...bound(`SELECT views, 'x'::int FROM documents WHERE tenant_id = $1`, '1')],
      ['Z', ...bound('SELECT views FROM documents WHERE tenant_id = $1 AND views > $2', '1', 'no number')],
    ],
  },
  {
    name: 'hot columns alone, prepared',
    steps: [
      ['Z', P('u', 'UPDATE documents SET views = views + $3 WHERE tenant_id = $1 AND id = $2'), DS('u'), S],
      ['Z', B('', 'u', '1', '1', '1'), E(''), S],
      ['Z', B('', 'u', '1', '2', '1'), DP(''), E(''), S],
      [
        'Z',
        P('s', 'SELECT views FROM documents WHERE tenant_id = $1 AND id = $2'),
        DS('s'),
        B('', 's', '1', '1'),
        DP(''),
        E(''),
        S,
      ],
      ['Z', B('a', 's', '1', '1'), E('a'), B('', 's', '1', '2'), E(''), CP('a'), S],
      ['Z', Q('BEGIN')],
      ['Z', B('', 'u', '2', '1', '1'), E(''), S],
      ['Z', B('', 's', '2', '1'), E(''), S],
      ['Z', Q('COMMIT')],
      ['Z', P('', 'SELECT views FROM documents WHERE tenant_id = $1 AND id = $2'), S],
      ['Z', B('', '', '1', '2'), E(''), S],
      ['Z', B('', '', '2', '1'), E(''), S],
    ],
  },
  {
    name: 'both halves, one statement at a time',
    steps: [
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'new')`)],
      [
        'Z',
        Q(
          `INSERT INTO documents (tenant_id, id, title, views, last_seen) VALUES (1, 12, 'new', 7, '2026-05-05 05:05+00'), (1, 13, 'new', 8, NULL) RETURNING *`,
        ),
      ],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'again')`)],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 14, 'less', -1)`)],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 15, NULL)`)],
      ['Z', Q(`UPDATE documents SET title = 'other' WHERE tenant_id = 1 AND id = 1`)],
      ['Z', Q(`UPDATE documents SET title = 'other', views = 99 WHERE tenant_id = 1 AND id = 2`)],
      ['Z', Q(`UPDATE documents SET title = 'seen', last_seen = '2026-06-06 00:00+00' WHERE tenant_id = 1 AND id = 4`)],
      [
        'Z',
        Q(
          `INSERT INTO documents (tenant_id, id, title) VALUES (1, 5, 'seen') ON CONFLICT (tenant_id, id) DO UPDATE SET last_seen = '2026-06-06 00:00+00'`,
        ),
      ],
      [
        'Z',
        Q(`UPDATE documents SET title = title || views, views = views + 1 WHERE tenant_id = 1 AND id = 3 RETURNING *`),
      ],
      ['Z', Q(`UPDATE documents SET body = 'much' WHERE tenant_id = 1 AND views >= 40`)],
      ['Z', Q(`UPDATE documents SET body = 'nothing' WHERE tenant_id = 1 AND id = 99`)],
      ['Z', Q(`UPDATE documents SET title = 'x', views = -5 WHERE tenant_id = 1 AND id = 3`)],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1 AND id = 12')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND views > 30 RETURNING *')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 RETURNING id, last_seen')],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 ORDER BY id FOR UPDATE')],
      ['Z', Q('SELECT title FROM documents WHERE tenant_id = 1 AND id = 1 FOR UPDATE')],
      [
        'Z',
        Q(
          `INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 1, 'there', 1), (1, 31, 'not there', 1) ON CONFLICT (tenant_id, id) DO UPDATE SET views = documents.views + EXCLUDED.views, title = EXCLUDED.title RETURNING *`,
        ),
      ],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 1, 'there', 1) ON CONFLICT DO NOTHING`)],
      ['Z', Q(`UPDATE documents SET title = 'x' WHERE tenant_id = 1 AND nothing = 1`)],
    ],
  },
  {
    name: 'both halves, with parameters',
    steps: [
      [
        'Z',
        ...bound(
          'INSERT INTO documents (tenant_id, id, title, views) VALUES ($1, $2, $3, $4) RETURNING *',
          '1',
          '11',
          'new',
          '3',
        ),
      ],
      ['Z', ...bound('INSERT INTO documents (tenant_id, id, title) VALUES ($1, $2, $3)', '1', '11', 'again')],
      [
        'Z',
        ...bound(
          'UPDATE documents SET title = $3, views = views + $4 WHERE tenant_id = $1 AND id = $2',
          '1',
          '1',
          'p',
          '5',
        ),
      ],
      [
        'Z',
        ...bound(
          'UPDATE documents SET title = $3 WHERE tenant_id = $1 AND id = $2 AND views > $4 RETURNING views, title',
          '1',
          '2',
          'p',
          '5',
        ),
      ],
      ['Z', P('d', 'DELETE FROM documents WHERE tenant_id = $1 AND id = $2 RETURNING *'), DS('d'), S],
      ['Z', B('', 'd', '1', '3'), E(''), S],
      ['Z', B('', 'd', '1', '3'), DP(''), E(''), S],
      ['Z', B('', 'd', '1', 'x'), E(''), S],
      [
        'Z',
        P('f', 'SELECT * FROM documents WHERE tenant_id = $1 AND id = $2 FOR UPDATE'),
        DS('f'),
        B('', 'f', '1', '4'),
        E(''),
        S,
      ],
      [
        'Z',
        P('', 'UPDATE documents SET title = $1 WHERE tenant_id = $2 AND id = $3'),
        B('', '', 'x', '1', '5'),
        E(''),
        S,
      ],
      ['Z', ...bound(`UPDATE documents SET title = $1 WHERE tenant_id = $2 AND views = 'x'`, 'x', '1')],
    ],
  },
  {
    name: 'in transaction blocks',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 1')],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 11, 'new', 5)`)],
      ['Z', Q('SELECT views FROM documents WHERE tenant_id = 1 AND id = 11')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 11 RETURNING views')],
      ['Z', Q(`UPDATE documents SET title = 'v' || views WHERE tenant_id = 1 AND id = 11 RETURNING *`)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1 AND id = 2')],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'again')`)],
      ['Z', Q('SELECT 1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', ...bound('DELETE FROM documents WHERE tenant_id = $1 AND id = $2 RETURNING *', '1', '3')],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 ORDER BY id FOR UPDATE')],
      ['Z', Q('COMMIT')],
      [
        'Z',
        ...[P('', 'BEGIN'), B('', ''), E('')],
        ...bound('UPDATE documents SET title = $3, views = views + 1 WHERE tenant_id = $1 AND id = $2', '2', '5', 'x'),
      ],
      ['Z', ...bound('COMMIT')],
      ['Z', ...bound('BEGIN')],
      ['Z', ...bound('UPDATE documents SET title = $3, views = 1 WHERE tenant_id = $1 AND id = $2', '1', '4', 'gone')],
      ['Z', ...bound('ROLLBACK')],
      ['Z', Q('BEGIN')],
      ['Z', Q(`UPDATE documents SET title = 'kept' WHERE tenant_id = 1 AND id = 5`)],
      ['Z', Q('SAVEPOINT b')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1')],
      ['Z', Q('ROLLBACK TO b')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND id = 1')],
      ['Z', Q('RELEASE b')],
      ['Z', Q('END')],
      ['Z', Q('BEGIN')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND id = 2')],
      ['Z', Q('syntax error')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 2 AND id = 3')],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'both halves are read in transaction blocks',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`UPDATE documents SET title = 'mine' WHERE tenant_id = 1 AND id = 1`)],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 AND id = 1')],
      ['Z', ...bound('SELECT * FROM documents WHERE tenant_id = $1 AND id = $2', '1', '1')],
      ['Z', Q('UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = 2')],
      ['Z', P('s', 'SELECT id, title, views, last_seen FROM documents WHERE tenant_id = $1 ORDER BY id'), DS('s'), S],
      ['Z', B('', 's', '1'), DP(''), E(''), S],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q('DELETE FROM documents WHERE tenant_id = 1 AND id = 3')],
      ['Z', Q(`INSERT INTO documents (tenant_id, id, title) VALUES (1, 11, 'new')`)],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('SELECT sum(views), count(*), max(title) FROM documents WHERE tenant_id = 1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q(`SET LOCAL DateStyle = 'German'`)],
      ['Z', B('', 's', '2'), E(''), S],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 ORDER BY id FOR UPDATE')],
      ['Z', Q('SELECT title, views FROM documents WHERE tenant_id = 1 AND views > 25 ORDER BY id')],
      ['Z', Q('SELECT 1 / (views - 10), title FROM documents WHERE tenant_id = 1 ORDER BY id')],
      ['Z', Q('SELECT * FROM documents WHERE tenant_id = 1 AND id = 1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', ...bound('SELECT title, nothing, views FROM documents WHERE tenant_id = $1', '1')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('COMMIT')],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET LOCAL DateStyle = 'German'`)],
      ['Z', B('', 's', '1'), E(''), S],
      ['Z', Q('ROLLBACK')],
    ],
  },
];

let sharded: Sharded;
let split: ColumnSplit;
/** Superusers: of the two shards, and of a database that has all. */
let shards: pg.Client[];
let plain: pg.Client;
let apart = false;

beforeAll(async () => {
  sharded = await Sharded.start({ splitAt: null });
  const [a, b] = sharded.clusters;
  for (const cluster of [a, b]) await withClient(cluster.url('shop'), (c) => c.query(TABLE));
  await withClient(a.url('postgres'), (c) => c.query('CREATE DATABASE plain'));
  await withClient(a.url('plain'), (c) => c.query(TABLE));
  await new Registry(sharded.catalog, 'test').addTable({
    table: DOCUMENTS,
    keyspace: 'main',
    keyColumns: ['tenant_id'],
  });
  split = await splitColumns(sharded.catalog, {
    table: DOCUMENTS,
    columns: ['views', 'last_seen'],
    hot: HOT,
    as: 'hot',
  });
  await sharded.reloaded();
  shards = [a.url('shop'), b.url('shop')].map((url) => new pg.Client(url));
  plain = new pg.Client(a.url('plain'));
  await Promise.all([...shards, plain].map((client) => client.connect()));
  for (const client of shards) await client.query('SET session_replication_role = replica');
}, 120_000);

afterAll(async () => {
  await Promise.all([...shards, plain].map((client) => client.end()));
  await sharded.stop();
});

const base = () => shards[0] as pg.Client;
const hot = () => shards[apart ? 1 : 0] as pg.Client;

async function reset(): Promise<void> {
  await plain.query(`TRUNCATE documents; INSERT INTO documents ${ROWS}`);
  for (const client of shards) await client.query('TRUNCATE documents, documents_hot');
  await base().query(`INSERT INTO documents ${ROWS}`);
  await hot().query(
    `INSERT INTO documents_hot SELECT r.column1, r.column2, r.column5, r.column6 FROM (${ROWS}) r (column1, column2, column3, column4, column5, column6)`,
  );
  if (apart) await base().query(`UPDATE documents SET views = 4711, last_seen = NULL`);
}

const state = async (client: pg.Client, sql: string) => (await client.query({ text: sql, rowMode: 'array' })).rows;
const BASE = 'SELECT tenant_id, id, title, body FROM documents ORDER BY 1, 2';
const HOT_OF = (table: string) => `SELECT tenant_id, id, views, last_seen FROM ${table} ORDER BY 1, 2`;

/** What is there, on one server with all of it and on the shards. */
async function agree(): Promise<void> {
  expect(await state(base(), BASE)).toEqual(await state(plain, BASE));
  expect(await state(hot(), HOT_OF('documents_hot'))).toEqual(await state(plain, HOT_OF('documents')));
  if (!apart) expect(await state(base(), HOT_OF('documents'))).toEqual(await state(plain, HOT_OF('documents')));
  await nothingLeft();
}

async function nothingLeft(): Promise<void> {
  for (const client of shards) expect(await state(client, 'SELECT gid FROM pg_prepared_xacts')).toEqual([]);
  const [outbox] = await state(
    base(),
    `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE tablename LIKE 'outbox%'`,
  );
  expect(await state(base(), `SELECT count(*)::int FROM ${(outbox as string[])[0]}`)).toEqual([[0]]);
}

/** Nothing of a client runs any more. */
const quiet = () =>
  waitFor(
    async () => {
      const busy = `SELECT FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`;
      const found = await Promise.all([...shards, plain].map((client) => client.query(busy)));
      return found.every(({ rowCount }) => rowCount === 0);
    },
    { what: 'the end of what runs' },
  );

/** Columns have other numbers in the hot table. */
const comparable = (reply: string) => (reply.startsWith('T ') ? reply.replace(/"columnNumber":\d+/g, '') : reply);

async function compare(conversation: Conversation): Promise<void> {
  await reset();
  const alone = await converse(sharded.clusters[0].port, conversation, whole, true, 'plain');
  const proxied = await converse(sharded.proxy.port, conversation, whole, true);
  expect(proxied.replies.map(comparable)).toEqual(alone.replies.map(comparable));
  await quiet();
  await agree();
}

describe('together', () => {
  for (const conversation of CONVERSATIONS) it(conversation.name, () => compare(conversation));
});

describe('apart', () => {
  beforeAll(async () => {
    await reset();
    await moveHot(sharded.catalog, DOCUMENTS, split, 's2', 'views = 4711, last_seen = NULL');
    apart = true;
    await sharded.reloaded();
  });

  for (const conversation of CONVERSATIONS) it(conversation.name, () => compare(conversation));

  describe('among others', () => {
    beforeEach(reset);

    /** Resolves when so many wait for locks on a shard. */
    const waiting = (shard: 0 | 1, n = 1) =>
      waitFor(
        async () =>
          (
            await (shards[shard] as pg.Client).query(
              `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'app'`,
            )
          ).rowCount === n,
        { what: `${n} that wait` },
      );
    const rename = (client: pg.Client, id: number, title: string) =>
      client.query(`UPDATE documents SET title = '${title}' WHERE tenant_id = 1 AND id = ${id}`);
    const view = (client: pg.Client, id: number) =>
      client.query(`UPDATE documents SET views = views + 1 WHERE tenant_id = 1 AND id = ${id}`);
    const document = async (id: number) => {
      const where = `WHERE tenant_id = 1 AND id = ${id}`;
      const [title] = await state(base(), `SELECT title FROM documents ${where}`);
      const [views] = await state(hot(), `SELECT views::int FROM documents_hot ${where}`);
      return { title: title?.[0], views: views?.[0] };
    };

    it('many writers of both halves lose nothing', async () => {
      const clients = await Promise.all(Array.from({ length: 6 }, () => sharded.connect()));
      await Promise.all(
        clients.map(async (client, i) => {
          for (let n = 0; n < 8; n++) {
            if (i % 3 === 0) await view(client, 1);
            else if (i % 3 === 1)
              await client.query(
                `UPDATE documents SET title = title || '+', views = views + 1 WHERE tenant_id = 1 AND id = 1`,
              );
            else {
              await client.query('BEGIN');
              const { rows } = await client.query(
                'SELECT title, views FROM documents WHERE tenant_id = 1 AND id = 2 FOR UPDATE',
              );
              await client.query(`UPDATE documents SET body = $1, views = $2 WHERE tenant_id = 1 AND id = 2`, [
                `${i} ${n}`,
                Number(rows[0].views) + 1,
              ]);
              await client.query('COMMIT');
            }
          }
        }),
      );
      expect(await document(1)).toEqual({ title: `title 1${'+'.repeat(16)}`, views: 10 + 32 });
      expect(await document(2)).toMatchObject({ views: 20 + 16 });
      await nothingLeft();
    });

    it('rows that come and go by many hands are whole or not there', async () => {
      const clients = await Promise.all(Array.from({ length: 4 }, () => sharded.connect()));
      const failures: string[] = [];
      const texts = (i: number, n: number) => [
        `INSERT INTO documents (tenant_id, id, title, views) VALUES (3, ${n % 3}, 'by ${i}', ${i}) ON CONFLICT (tenant_id, id) DO UPDATE SET views = documents.views + 1`,
        `UPDATE documents SET title = title || views WHERE tenant_id = 3`,
        `DELETE FROM documents WHERE tenant_id = 3 AND id = ${(n + i) % 3}`,
      ];
      await Promise.all(
        clients.map(async (client, i) => {
          for (let n = 0; n < 10; n++)
            await client
              .query(texts(i, n)[(n + i) % 3] as string)
              .catch((error: { code: string }) => failures.push(error.code));
        }),
      );
      // What one server may tell its clients, too, or a row that came in between.
      expect(failures.filter((code) => code !== '40001' && code !== '40P01')).toEqual([]);
      const keys = (table: string) => `SELECT tenant_id, id FROM ${table} ORDER BY 1, 2`;
      expect(await state(hot(), keys('documents_hot'))).toEqual(await state(base(), keys('documents')));
      await nothingLeft();
    });

    it('of two that wait for the other half of each other one is ended', async () => {
      const [a, b] = [await sharded.connect(), await sharded.connect()];
      await a.query('BEGIN');
      await view(a, 1);
      const renamed = rename(b, 1, 'b');
      await waiting(1);
      // b has the base half, and waits for the hot half, which a has.
      const outcomes = await Promise.allSettled([rename(a, 1, 'a'), renamed]);
      const failed = outcomes.flatMap((o) => (o.status === 'rejected' ? [(o.reason as { code: string }).code] : []));
      expect(failed).toEqual(['40P01']);
      const won = outcomes[0]?.status === 'fulfilled';
      expect((await a.query('COMMIT')).command).toBe(won ? 'COMMIT' : 'ROLLBACK');
      expect(await document(1)).toEqual(won ? { title: 'a', views: 11 } : { title: 'b', views: 10 });
      await nothingLeft();
    });

    it.each([
      ['outside of a block', false],
      ['in a block', true],
    ])('a wait for the hot half can be canceled, %s', async (_, inBlock) => {
      const [client, other] = [await sharded.connect(), await sharded.connect()];
      await other.query('BEGIN');
      await view(other, 1);
      if (inBlock) await client.query('BEGIN');
      if (inBlock) await client.query('SAVEPOINT a');
      const refused = expect(rename(client, 1, 'new')).rejects.toMatchObject({
        code: '57014',
        message: 'canceling statement due to user request',
      });
      await waiting(1);
      await sharded.cancel(client);
      await refused;
      await other.query('COMMIT');
      if (inBlock) {
        await client.query('ROLLBACK TO a');
        await rename(client, 2, 'went on');
        await client.query('COMMIT');
        expect(await document(2)).toMatchObject({ title: 'went on' });
      }
      expect(await document(1)).toEqual({ title: 'title 1', views: 11 });
      expect((await rename(client, 1, 'later')).rowCount).toBe(1);
      expect(await document(1)).toEqual({ title: 'later', views: 11 });
      await nothingLeft();
    });

    it('statement_timeout ends such a wait', async () => {
      const [client, other] = [await sharded.connect(), await sharded.connect()];
      await other.query('BEGIN');
      await view(other, 1);
      await client.query('SET statement_timeout = 300');
      await expect(rename(client, 1, 'new')).rejects.toMatchObject({
        code: '57014',
        message: 'canceling statement due to statement timeout',
      });
      await other.query('COMMIT');
      expect(await document(1)).toEqual({ title: 'title 1', views: 11 });
      await nothingLeft();
    });

    it('a prepared statement that failed while its rows were being locked is there no more, and can be prepared again', async () => {
      const [client, other] = [await sharded.connect(), await sharded.connect()];
      const named = {
        name: 'both',
        text: 'UPDATE documents SET title = title || views WHERE tenant_id = $1 AND id = $2',
        values: [1, 1],
      };
      await client.query(`SET lock_timeout = '50ms'`);
      await other.query('BEGIN');
      await view(other, 1);
      for (let i = 0; i < 2; i++) await expect(client.query(named)).rejects.toMatchObject({ code: '55P03' });
      await other.query('COMMIT');
      expect((await client.query(named)).rowCount).toBe(1);
      expect(await document(1)).toEqual({ title: 'title 111', views: 11 });
      await nothingLeft();
    });

    it('a client that goes away while it waits leaves nothing', async () => {
      const [client, other] = [await sharded.connect(), await sharded.connect()];
      await other.query('BEGIN');
      await view(other, 1);
      rename(client, 1, 'new').catch(() => undefined);
      await waiting(1);
      (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
      await waiting(1, 0);
      await other.query('COMMIT');
      await quiet();
      expect(await document(1)).toEqual({ title: 'title 1', views: 11 });
      await nothingLeft();
    });

    it.each([[0], [1]] as const)('a server process that dies on shard %i takes all with it', async (shard) => {
      const [client, other] = [await sharded.connect({ application_name: 'dies' }), await sharded.connect()];
      await other.query('BEGIN');
      await view(other, 1);
      const refused = expect(rename(client, 1, 'new')).rejects.toThrow();
      await waiting(1);
      await (shards[shard] as pg.Client).query(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dies'`,
      );
      await other.query('COMMIT');
      await refused;
      await quiet();
      expect(await document(1)).toEqual({ title: 'title 1', views: 11 });
      await nothingLeft();
    });

    it('a row that comes while others are locked is not shown with what does not count', async () => {
      const [client, other, third] = [await sharded.connect(), await sharded.connect(), await sharded.connect()];
      await other.query('BEGIN');
      await view(other, 5);
      const outcome = client.query('SELECT id, views FROM documents WHERE tenant_id = 1 FOR UPDATE').then(
        ({ rows }) => rows.find(({ id }) => id === '6')?.views ?? 'not there',
        (error: { code: string }) => error.code,
      );
      await waiting(1);
      await third.query(`INSERT INTO documents (tenant_id, id, title, views) VALUES (1, 6, 'came', 1)`);
      await view(third, 6);
      await other.query('COMMIT');
      expect(await outcome).toBe('40001');
      await nothingLeft();
    });

    describe('while the hot half is held back for a flip', () => {
      const held: bigint[] = [];
      const letGo = async () => {
        for (const id of held.splice(0)) await dropHold(sharded.catalog.pool, id);
      };
      afterEach(letGo);

      async function hold(): Promise<bigint> {
        const keyspace = (await sharded.catalog.loadTopology()).keyspaces.get('hot' as KeyspaceName) as Keyspace;
        const of = { migrationId: 1n, keyspace, lo: null, hi: null, referenceTables: false };
        const id = await createHold(sharded.catalog.pool, { ...of, deadlineMs: 20_000 });
        held.push(id);
        return id;
      }
      const acked = (id: bigint) =>
        waitFor(async () => (await holdStatus(sharded.catalog.pool, id)).waitingFor.length === 0, {
          what: 'the acknowledgement',
        });

      it('what has not begun waits, and the flip not for it', async () => {
        const client = await sharded.connect();
        const id = await hold();
        await acked(id);
        let done = false;
        const renamed = rename(client, 1, 'late').then(() => {
          done = true;
        });
        // A row without its hot half is as it was.
        expect(
          (await (await sharded.connect()).query('SELECT title FROM documents WHERE tenant_id = 1 AND id = 1')).rows,
        ).toEqual([{ title: 'title 1' }]);
        await acked(id);
        expect(done).toBe(false);
        await letGo();
        await renamed;
        expect(await document(1)).toEqual({ title: 'late', views: 10 });
      });

      it.each([
        ['outside of a block', false],
        ['in a block', true],
      ])('what waits for a lock is ended when the flip waits no more, %s', async (_, inBlock) => {
        const client = await sharded.connect();
        await hot().query('BEGIN');
        try {
          await hot().query('SELECT FROM documents_hot WHERE tenant_id = 1 AND id = 1 FOR UPDATE');
          if (inBlock) await client.query('BEGIN');
          const refused = expect(rename(client, 1, 'lost')).rejects.toMatchObject({ code: '40001' });
          await waiting(1);
          const id = await hold();
          await endTransactions(sharded.catalog.pool, id);
          await refused;
          await acked(id);
          if (inBlock) expect((await client.query('ROLLBACK')).command).toBe('ROLLBACK');
        } finally {
          await hot().query('COMMIT');
        }
        await letGo();
        await rename(client, 1, 'again');
        expect(await document(1)).toEqual({ title: 'again', views: 10 });
        await nothingLeft();
      });
    });

    it('what is deferred to the end fails the statement', async () => {
      const why = 'not in the end';
      await base().query(`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '${why}'; END $$;
        CREATE CONSTRAINT TRIGGER no AFTER UPDATE ON documents DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()`);
      try {
        const client = await sharded.connect();
        await expect(rename(client, 1, 'new')).rejects.toMatchObject({ message: why });
        expect(await document(1)).toEqual({ title: 'title 1', views: 10 });
        await nothingLeft();
      } finally {
        await base().query('DROP FUNCTION no CASCADE');
      }
    });

    it('more rows than are to be in memory at once are not written', async () => {
      await base().query(`INSERT INTO documents SELECT 9, i, 'title', 'body' FROM generate_series(1, 10001) i`);
      const client = await sharded.connect();
      const many = `UPDATE documents SET title = 'x' WHERE tenant_id = 9`;
      await expect(client.query(many)).rejects.toMatchObject({
        code: '54000',
        hint: expect.stringMatching(/fewer rows/),
      });
      await client.query('BEGIN');
      await expect(client.query(many)).rejects.toMatchObject({ code: '54000' });
      expect((await client.query('COMMIT')).command).toBe('ROLLBACK');
      expect(await state(base(), `SELECT DISTINCT title FROM documents WHERE tenant_id = 9`)).toEqual([['title']]);
      await rename(client, 1, 'x');
      expect(await document(1)).toEqual({ title: 'x', views: 10 });
      await nothingLeft();
    });

    it.each([
      [
        'several statements in one message',
        `SELECT 1; UPDATE documents SET title = 'x' WHERE tenant_id = 1 AND id = 1`,
      ],
      ['a hot one among others', 'SELECT 1; UPDATE documents SET views = 1 WHERE tenant_id = 1 AND id = 1'],
      ['EXECUTE', `PREPARE p AS UPDATE documents SET title = 'x' WHERE tenant_id = 1 AND id = 1; EXECUTE p`],
      ['TRUNCATE', 'TRUNCATE documents'],
      ['a new key', 'UPDATE documents SET id = 77 WHERE tenant_id = 1 AND id = 1'],
    ])('refuses %s', async (_, text) => {
      const client = await sharded.connect();
      await expect(client.query(text)).rejects.toMatchObject({ code: '0A000' });
      expect(await document(1)).toEqual({ title: 'title 1', views: 10 });
    });

    it('refuses a snapshot for the whole transaction', async () => {
      const client = await sharded.connect();
      const refusal = (level: string) => ({
        code: '0A000',
        message: `a transaction on several shards cannot be ${level}`,
      });
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
      await expect(rename(client, 1, 'x')).rejects.toMatchObject(refusal('REPEATABLE READ'));
      await client.query('ROLLBACK');
      await client.query('SET default_transaction_isolation = serializable');
      await expect(rename(client, 1, 'x')).rejects.toMatchObject(refusal('SERIALIZABLE'));
      await client.query('RESET default_transaction_isolation');
      await rename(client, 1, 'x');
      expect(await document(1)).toEqual({ title: 'x', views: 10 });
    });
  });
});
