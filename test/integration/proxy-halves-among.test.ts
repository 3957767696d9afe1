import type pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createHold, dropHold, endTransactions, holdStatus } from '../../topology/catalog/leases.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import type { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import { Documents, state } from './documents.js';

let documents: Documents;
let sharded: Sharded;
beforeAll(async () => {
  documents = await Documents.start();
  ({ sharded } = documents);
  await documents.part();
}, 120_000);
afterAll(() => documents.stop());
beforeEach(() => documents.reset());

/** Resolves when so many wait for locks on a shard. */
const waiting = (shard: 0 | 1, n = 1) =>
  waitFor(
    async () =>
      (
        await (documents.shards[shard] as pg.Client).query(
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
  const [title] = await state(documents.base, `SELECT title FROM documents ${where}`);
  const [views] = await state(documents.hot, `SELECT views::int FROM documents_hot ${where}`);
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
  await documents.nothingLeft();
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
  expect(await state(documents.hot, keys('documents_hot'))).toEqual(await state(documents.base, keys('documents')));
  await documents.nothingLeft();
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
  await documents.nothingLeft();
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
  await documents.nothingLeft();
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
  await documents.nothingLeft();
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
  await documents.nothingLeft();
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
  await documents.quiet();
  expect(await document(1)).toEqual({ title: 'title 1', views: 11 });
  await documents.nothingLeft();
});

it.each([[0], [1]] as const)('a server process that dies on shard %i takes all with it', async (shard) => {
  const [client, other] = [await sharded.connect({ application_name: 'dies' }), await sharded.connect()];
  await other.query('BEGIN');
  await view(other, 1);
  const refused = expect(rename(client, 1, 'new')).rejects.toThrow();
  await waiting(1);
  await (documents.shards[shard] as pg.Client).query(
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dies'`,
  );
  await other.query('COMMIT');
  await refused;
  await documents.quiet();
  expect(await document(1)).toEqual({ title: 'title 1', views: 11 });
  await documents.nothingLeft();
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
  await documents.nothingLeft();
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
    await documents.hot.query('BEGIN');
    try {
      await documents.hot.query('SELECT FROM documents_hot WHERE tenant_id = 1 AND id = 1 FOR UPDATE');
      if (inBlock) await client.query('BEGIN');
      const refused = expect(rename(client, 1, 'lost')).rejects.toMatchObject({ code: '40001' });
      await waiting(1);
      const id = await hold();
      await endTransactions(sharded.catalog.pool, id);
      await refused;
      await acked(id);
      if (inBlock) expect((await client.query('ROLLBACK')).command).toBe('ROLLBACK');
    } finally {
      await documents.hot.query('COMMIT');
    }
    await letGo();
    await rename(client, 1, 'again');
    expect(await document(1)).toEqual({ title: 'again', views: 10 });
    await documents.nothingLeft();
  });
});

it('what is deferred to the end fails the statement', async () => {
  const why = 'not in the end';
  await documents.base.query(`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '${why}'; END $$;
    CREATE CONSTRAINT TRIGGER no AFTER UPDATE ON documents DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()`);
  try {
    const client = await sharded.connect();
    await expect(rename(client, 1, 'new')).rejects.toMatchObject({ message: why });
    expect(await document(1)).toEqual({ title: 'title 1', views: 10 });
    await documents.nothingLeft();
  } finally {
    await documents.base.query('DROP FUNCTION no CASCADE');
  }
});

it('more rows than are to be in memory at once are not written', async () => {
  await documents.base.query(`INSERT INTO documents SELECT 9, i, 'title', 'body' FROM generate_series(1, 10001) i`);
  const client = await sharded.connect();
  const many = `UPDATE documents SET title = 'x' WHERE tenant_id = 9`;
  await expect(client.query(many)).rejects.toMatchObject({
    code: '54000',
    hint: expect.stringMatching(/fewer rows/),
  });
  await client.query('BEGIN');
  await expect(client.query(many)).rejects.toMatchObject({ code: '54000' });
  expect((await client.query('COMMIT')).command).toBe('ROLLBACK');
  expect(await state(documents.base, `SELECT DISTINCT title FROM documents WHERE tenant_id = 9`)).toEqual([['title']]);
  await rename(client, 1, 'x');
  expect(await document(1)).toEqual({ title: 'x', views: 10 });
  await documents.nothingLeft();
});

it.each([
  ['several statements in one message', `SELECT 1; UPDATE documents SET title = 'x' WHERE tenant_id = 1 AND id = 1`],
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
