import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { B, E, P, Q, S } from '../support/oracle.js';
import { RawPeer } from '../support/raw-peer.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
});
afterAll(() => s.stop());

beforeEach(async () => {
  for (const shard of [0, 1] as const) await s.onShard(shard, 'TRUNCATE tenants, orders, items, settings CASCADE');
});

async function seed(c: pg.Client): Promise<void> {
  for (const id of [1, 2, 150, 151]) {
    await c.query('INSERT INTO tenants (tenant_id, name) VALUES ($1, $2)', [id, `t${id}`]);
    await c.query('INSERT INTO orders (tenant_id, id, note) VALUES ($1, $2, $3)', [id, 1, `first of ${id}`]);
  }
}

/** SQLSTATE of what `run` rejects with. */
async function sqlstate(run: Promise<unknown>): Promise<string> {
  try {
    await run;
  } catch (error) {
    return (error as { code: string }).code;
  }
  return 'no error';
}

describe('routing', () => {
  it('sends rows to the shard of their key, simple and extended', async () => {
    const c = await s.connect();
    await seed(c);
    await c.query(`INSERT INTO tenants (tenant_id, name) VALUES (3, 'simple'), (4, 'simple')`);
    expect(await s.onShard(0, 'SELECT tenant_id::int AS id FROM tenants ORDER BY 1')).toEqual([
      { id: 1 },
      { id: 2 },
      { id: 3 },
      { id: 4 },
    ]);
    expect(await s.onShard(1, 'SELECT tenant_id::int AS id FROM tenants ORDER BY 1')).toEqual([
      { id: 150 },
      { id: 151 },
    ]);
    const { rows } = await c.query('SELECT name FROM tenants WHERE tenant_id = $1', ['150']);
    expect(rows).toEqual([{ name: 't150' }]);
    const joined = await c.query(
      'SELECT o.note FROM tenants t JOIN orders o ON o.tenant_id = t.tenant_id WHERE t.tenant_id = 151',
    );
    expect(joined.rows).toEqual([{ note: 'first of 151' }]);
  });

  it('joins the answers of several shards when nothing but their union is asked for', async () => {
    const c = await s.connect();
    await seed(c);
    const simple = await c.query('SELECT tenant_id::int AS id FROM tenants');
    expect(simple.rows.map((r: { id: number }) => r.id).sort((a, b) => a - b)).toEqual([1, 2, 150, 151]);
    expect(simple.rowCount).toBe(4);
    const extended = await c.query('SELECT name FROM tenants WHERE name LIKE $1', ['t%1']);
    expect(extended.rows.map((r: { name: string }) => r.name).sort()).toEqual(['t1', 't151']);
    const inList = await c.query('SELECT name FROM tenants WHERE tenant_id IN (1, 150)');
    expect(inList.rows.map((r: { name: string }) => r.name).sort()).toEqual(['t1', 't150']);
    // The connection is as usable as before.
    expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 2')).rows).toEqual([{ name: 't2' }]);
  });

  it('tells an error of any shard, and goes on', async () => {
    const c = await s.connect();
    await seed(c);
    expect(await sqlstate(c.query('SELECT 1 / (tenant_id - 151) FROM tenants'))).toBe('22012');
    expect((await c.query('SELECT name FROM tenants WHERE tenant_id = 2')).rows).toEqual([{ name: 't2' }]);
  });

  it('refuses what would not be exact', async () => {
    const c = await s.connect();
    await seed(c);
    for (const sql of [
      'SELECT name FROM tenants ORDER BY name FOR UPDATE',
      'SELECT t, count(*) FROM tenants t GROUP BY t',
      'SELECT count(*) FROM ONLY tenants',
      'EXPLAIN SELECT count(*) FROM tenants',
      `UPDATE tenants SET name = 'x'`,
      'DELETE FROM tenants',
      `INSERT INTO tenants (tenant_id, name) VALUES (5, 'a'), (155, 'b')`,
      `INSERT INTO countries VALUES ('de', 'Germany')`,
      'ALTER TABLE tenants ADD COLUMN a int',
    ])
      expect([sql, await sqlstate(c.query(sql))]).toEqual([sql, '0A000']);
    expect(await s.onShard(0, 'SELECT count(*)::int AS n FROM tenants')).toEqual([{ n: 2 }]);
  });

  it('answers from rows of several shards', async () => {
    const c = await s.connect();
    await seed(c);
    expect((await c.query('SELECT count(*)::int AS n, max(name) FROM tenants')).rows).toEqual([{ n: 4, max: 't2' }]);
    expect((await c.query('SELECT name FROM tenants ORDER BY tenant_id DESC LIMIT $1', [3])).rows).toEqual([
      { name: 't151' },
      { name: 't150' },
      { name: 't2' },
    ]);
  });

  it('answers from any shard what is the same everywhere', async () => {
    const c = await s.connect();
    expect((await c.query('SELECT name FROM countries ORDER BY name')).rows).toEqual([
      { name: 'Austria' },
      { name: 'Switzerland' },
    ]);
    expect((await c.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  });

  it('keeps tables of no keyspace on the home shard', async () => {
    const c = await s.connect();
    await c.query(`INSERT INTO settings VALUES ('a', 'b')`);
    expect(await s.onShard(0, 'SELECT * FROM settings')).toEqual([{ name: 'a', value: 'b' }]);
    expect(await s.onShard(1, 'SELECT * FROM settings')).toEqual([]);
  });
});

/** What no key tells the shard of: a row may leave its shard. */
const REFUSED = 'UPDATE tenants SET tenant_id = tenant_id + 1000';

describe('transactions', () => {
  it('opens the transaction on the shard of its first key', async () => {
    const c = await s.connect();
    await seed(c);
    await c.query('BEGIN');
    await c.query('SELECT 1');
    await c.query('SAVEPOINT a');
    await c.query(`UPDATE tenants SET name = 'new' WHERE tenant_id = 150`);
    await c.query('ROLLBACK TO a');
    await c.query(`UPDATE tenants SET name = 'newer' WHERE tenant_id = 151`);
    await c.query('COMMIT');
    expect(await s.onShard(1, 'SELECT name FROM tenants ORDER BY tenant_id')).toEqual([
      { name: 't150' },
      { name: 'newer' },
    ]);
  });

  it('fails the transaction as PostgreSQL would when something in it is refused, and rolls back', async () => {
    const c = await s.connect();
    await seed(c);
    await c.query('BEGIN');
    await c.query(`UPDATE tenants SET name = 'lost' WHERE tenant_id = 1`);
    expect(await sqlstate(c.query(REFUSED))).toBe('0A000');
    expect(await sqlstate(c.query('SELECT 1'))).toBe('25P02');
    expect((await c.query('COMMIT')).command).toBe('ROLLBACK');
    expect(await s.onShard(0, 'SELECT name FROM tenants WHERE tenant_id = 1')).toEqual([{ name: 't1' }]);
  });

  it('lets a savepoint heal a refusal', async () => {
    const c = await s.connect();
    await seed(c);
    await c.query('BEGIN');
    await c.query(`UPDATE tenants SET name = 'kept' WHERE tenant_id = 1`);
    await c.query('SAVEPOINT a');
    expect(await sqlstate(c.query(REFUSED))).toBe('0A000');
    await c.query('ROLLBACK TO a');
    await c.query('COMMIT');
    expect(await s.onShard(0, 'SELECT name FROM tenants WHERE tenant_id = 1')).toEqual([{ name: 'kept' }]);
  });

  it('ends a transaction that no server has heard of', async () => {
    const c = await s.connect();
    expect((await c.query('BEGIN')).command).toBe('BEGIN');
    expect((await c.query('COMMIT')).command).toBe('COMMIT');
    await c.query('BEGIN');
    expect(await sqlstate(c.query(REFUSED))).toBe('0A000');
    expect(await sqlstate(c.query('SELECT 1'))).toBe('25P02');
    expect((await c.query('ROLLBACK')).command).toBe('ROLLBACK');
    expect((await c.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
  });

  it('runs several statements of one Query as one transaction', async () => {
    const c = await s.connect();
    await expect(
      c.query(`INSERT INTO tenants VALUES (7, 'a'); INSERT INTO tenants VALUES (7, 'again')`),
    ).rejects.toMatchObject({ code: '23505' });
    expect(await s.onShard(0, 'SELECT count(*)::int AS n FROM tenants')).toEqual([{ n: 0 }]);
    expect(await sqlstate(c.query(`INSERT INTO tenants VALUES (7, 'a'); INSERT INTO tenants VALUES (170, 'b')`))).toBe(
      '0A000',
    );
  });

  it('gives server connections back: many clients share few', async () => {
    const clients = await Promise.all(Array.from({ length: 30 }, () => s.connect()));
    await Promise.all(
      clients.map(async (c, i) => {
        for (let k = 0; k < 5; k++) {
          await c.query('BEGIN');
          await c.query('INSERT INTO tenants (tenant_id, name) VALUES ($1, $2)', [1000 + i * 10 + k, 'x']);
          await c.query('COMMIT');
        }
      }),
    );
    expect(await s.onShard(1, 'SELECT count(*)::int AS n FROM tenants')).toEqual([{ n: 150 }]);
    const [row] = await s.onShard<{ n: number }>(
      1,
      `SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'app'`,
    );
    expect(row?.n).toBeLessThanOrEqual(10);
  });

  it('rolls back what a client that goes away has left open', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(`INSERT INTO tenants VALUES (8, 'gone')`);
    await c.end();
    await waitFor(
      async () =>
        (
          await s.onShard<{ n: number }>(
            0,
            `SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in%'`,
          )
        )[0]?.n === 0,
      { what: 'the rollback' },
    );
    expect(await s.onShard(0, 'SELECT count(*)::int AS n FROM tenants')).toEqual([{ n: 0 }]);
  });
});

describe('sessions', () => {
  it('refuses a wrong password, an unknown user and an unknown database as PostgreSQL does', async () => {
    const login = async (url: string) => {
      const c = new pg.Client({ connectionString: url });
      try {
        await c.connect();
        await c.end();
        return 'in';
      } catch (error) {
        return (error as { code: string; message: string }).message;
      }
    };
    const port = s.proxy.port;
    expect(await login(`postgres://app:wrong@127.0.0.1:${port}/shop`)).toBe(
      'password authentication failed for user "app"',
    );
    expect(await login(`postgres://nobody:x@127.0.0.1:${port}/shop`)).toBe(
      'password authentication failed for user "nobody"',
    );
    expect(await login(`postgres://app:secret@127.0.0.1:${port}/other`)).toBe('database "other" does not exist');
    expect(await login(s.url)).toBe('in');
  });

  it('acts on the shards as the client’s own user', async () => {
    const c = await s.connect();
    expect((await c.query('SELECT current_user AS u')).rows).toEqual([{ u: 'app' }]);
    expect(await sqlstate(c.query('SELECT * FROM pg_authid'))).toBe('42501');
  });

  it('takes a session’s settings along from connection to connection and shard to shard', async () => {
    const a = await s.connect({ application_name: 'one' });
    const b = await s.connect({ application_name: 'two' });
    await a.query(`SET statement_timeout = '12345ms'`);
    for (let i = 0; i < 3; i++) {
      expect((await a.query('SHOW statement_timeout')).rows).toEqual([{ statement_timeout: '12345ms' }]);
      expect((await b.query('SHOW statement_timeout')).rows).toEqual([{ statement_timeout: '0' }]);
      expect(
        (
          await a.query(
            `SELECT current_setting('statement_timeout') AS t, current_setting('application_name') AS n FROM tenants WHERE tenant_id = 150`,
          )
        ).rows,
      ).toEqual([]);
    }
    await a.query('INSERT INTO tenants VALUES (160, current_setting($1))', ['statement_timeout']);
    expect(await s.onShard(1, 'SELECT name FROM tenants WHERE tenant_id = 160')).toEqual([{ name: '12345ms' }]);
    await a.query('BEGIN');
    await a.query(`SET statement_timeout = '777ms'`);
    await a.query('ROLLBACK');
    expect((await a.query('SHOW statement_timeout')).rows).toEqual([{ statement_timeout: '12345ms' }]);
    await a.query('RESET statement_timeout');
    expect((await a.query('SHOW statement_timeout')).rows).toEqual([{ statement_timeout: '0' }]);
    expect((await a.query('SHOW application_name')).rows).toEqual([{ application_name: 'one' }]);
  });

  it('keeps named statements across connections and shards, and tells the errors PostgreSQL tells', async () => {
    const c = await s.connect();
    await seed(c);
    for (const id of [1, 150, 2, 151, 1])
      expect(
        (await c.query({ name: 'by-id', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: [id] })).rows,
      ).toEqual([{ name: `t${id}` }]);
    expect(
      await sqlstate(c.query({ name: 'bad', text: 'SELECT nothing FROM tenants WHERE tenant_id = $1', values: [1] })),
    ).toBe('42703');
    expect(
      (await c.query({ name: 'by-id', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: [150] })).rows,
    ).toEqual([{ name: 't150' }]);
  });

  it('keeps a connection for what lives in one: temporary tables', async () => {
    const c = await s.connect();
    const other = await s.connect();
    await c.query('CREATE TEMP TABLE scratch (a int)').catch(async (error: { code: string }) => {
      // On several shards DDL is refused; a temporary table is the session's own and lives on the home shard.
      expect(error.code).toBe('0A000');
    });
    expect((await other.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
  });

  it('answers an empty query, a syntax error and an unknown table', async () => {
    const c = await s.connect();
    expect((await c.query('')).rows).toEqual([]);
    expect(await sqlstate(c.query('SELEKT 1'))).toBe('42601');
    expect(await sqlstate(c.query('SELECT * FROM no_such_table'))).toBe('42P01');
    expect((await c.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
  });

  it('cancels the statement of the client that asks, and only that', async () => {
    const c = await s.connect();
    const running = sqlstate(c.query('SELECT pg_sleep(60)'));
    await waitFor(
      async () =>
        (
          await s.onShard<{ n: number }>(
            0,
            `SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'app' AND query LIKE '%pg_sleep%' AND state = 'active'`,
          )
        )[0]?.n === 1,
      { what: 'the statement to run' },
    );
    await s.cancel(c, 'wrong');
    await s.cancel(c);
    expect(await running).toBe('57014');
    expect((await c.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
  });
});

describe('what names in SQL mean', () => {
  const NAME = 'SELECT name FROM tenants WHERE tenant_id = 150';
  const ours = [{ name: 'ours' }];
  const archived = [{ name: 'archived' }];

  beforeAll(async () => {
    await s.onShard(0, 'CREATE SCHEMA archive');
    await s.onShard(0, 'CREATE TABLE archive.tenants (tenant_id bigint, name text)');
    await s.onShard(0, `INSERT INTO archive.tenants VALUES (150, 'archived')`);
    await s.onShard(0, 'GRANT USAGE ON SCHEMA archive TO app');
    await s.onShard(0, 'GRANT ALL ON archive.tenants TO app');
    for (const shard of [0, 1] as const) {
      await s.onShard(shard, 'CREATE TABLE words (word text COLLATE "C" PRIMARY KEY)');
      await s.onShard(shard, 'GRANT ALL ON words TO app');
    }
    const registry = new Registry(s.catalog, 'test');
    await registry.createKeyspace({ name: 'words', method: 'range', keyTypes: ['text'] });
    await registry.addTable({
      table: { schema: 'public', table: 'words' },
      keyspace: 'words',
      keyColumns: ['word'],
    });
    const { pool } = s.catalog;
    await pool.query(`DELETE FROM foreshard.range WHERE keyspace = 'words'`);
    await pool.query(
      `INSERT INTO foreshard.range (keyspace, lo, hi, shard) VALUES ('words', NULL, '["m"]', 's1'), ('words', '["m"]', NULL, 's2')`,
    );
    await pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    // It reads the schema when it starts.
    await s.proxy.close();
    s.proxy = await startProxy(s.catalog, s.options);
  });

  beforeEach(async () => {
    await s.onShard(1, `INSERT INTO tenants VALUES (150, 'ours')`);
  });

  it('follows SET LOCAL, its end and ROLLBACK TO', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query('SET LOCAL search_path = archive, public');
    expect((await c.query(NAME)).rows).toEqual(archived);
    expect((await c.query('SELECT name FROM tenants WHERE tenant_id = $1', [150])).rows).toEqual(archived);
    await c.query('COMMIT');
    expect((await c.query(NAME)).rows).toEqual(ours);
    await c.query('BEGIN');
    await c.query('SAVEPOINT a');
    await c.query('SET LOCAL search_path = archive');
    await c.query('ROLLBACK TO a');
    expect((await c.query(NAME)).rows).toEqual(ours);
    await c.query('ROLLBACK');
  });

  it('follows set_config, for the transaction and for the session', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(`SELECT set_config('search_path', 'archive', true)`);
    expect((await c.query(NAME)).rows).toEqual(archived);
    await c.query('ROLLBACK');
    expect((await c.query(NAME)).rows).toEqual(ours);
    await c.query('SELECT set_config($1, $2, false)', ['search_path', '"$user", "archive"']);
    expect((await c.query(NAME)).rows).toEqual(archived);
  });

  it('follows ALTER ROLE … SET, and the login’s value through RESET', async () => {
    for (const shard of [0, 1] as const) await s.onShard(shard, 'ALTER ROLE app SET search_path = archive, public');
    try {
      await s.proxy.close();
      s.proxy = await startProxy(s.catalog, s.options);
      const c = await s.connect();
      expect((await c.query(NAME)).rows).toEqual(archived);
      const other = await s.connect({ options: '-c search_path=public' });
      expect((await other.query(NAME)).rows).toEqual(ours);
      await other.query('SET search_path = archive');
      expect((await other.query(NAME)).rows).toEqual(archived);
      await other.query('RESET search_path');
      expect((await other.query(NAME)).rows).toEqual(ours);
    } finally {
      for (const shard of [0, 1] as const) await s.onShard(shard, 'ALTER ROLE app RESET search_path');
      await s.proxy.close();
      s.proxy = await startProxy(s.catalog, s.options);
    }
  });

  it('refuses a statement when shards disagree', async () => {
    await s.onShard(1, 'ALTER ROLE app SET search_path = nowhere');
    try {
      await s.proxy.close();
      s.proxy = await startProxy(s.catalog, s.options);
      const c = await s.connect();
      expect(await sqlstate(c.query('SELECT name FROM public.tenants'))).toBe('0A000');
      expect((await c.query('SELECT 1 AS x')).rows).toEqual([{ x: 1 }]);
    } finally {
      await s.onShard(1, 'ALTER ROLE app RESET search_path');
      await s.proxy.close();
      s.proxy = await startProxy(s.catalog, s.options);
    }
  });

  it('analyses a prepared statement again when search_path has changed, as PostgreSQL does', async () => {
    const c = await s.connect();
    const by = { name: 'by-id', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: [150] };
    expect((await c.query(by)).rows).toEqual(ours);
    await c.query('SET search_path = archive');
    expect((await c.query(by)).rows).toEqual(archived);
    await c.query('SET search_path = public');
    expect((await c.query(by)).rows).toEqual(ours);
  });

  it('refuses what would be resolved before it is known where', async () => {
    const c = await s.connect();
    for (const change of [
      'SET search_path = archive',
      'BEGIN; SET LOCAL search_path = archive',
      `BEGIN; SELECT set_config('search_path', 'archive', true)`,
      'RESET ALL',
    ]) {
      expect([change, await sqlstate(c.query(`${change}; ${NAME}`))]).toEqual([change, '0A000']);
      await c.query('ROLLBACK');
    }
    const other = await c.query(`BEGIN; SELECT set_config('my.tenant', '150', true); ${NAME}; COMMIT`);
    expect((other as unknown as pg.QueryResult[])[2]?.rows).toEqual(ours);
  });

  it('takes no key for certain that the server gets in other bytes than the client sent', async () => {
    const c = await s.connect();
    await c.query(`INSERT INTO words VALUES ('zoë')`);
    await c.query(`SET client_encoding = 'LATIN1'`);
    expect(await sqlstate(c.query(`INSERT INTO words VALUES ('élan')`))).toBe('0A000');
    await c.query(`INSERT INTO words VALUES ('able')`);
    expect(await s.onShard(0, 'SELECT word FROM words')).toEqual([{ word: 'able' }]);
    expect(await s.onShard(1, 'SELECT word FROM words')).toEqual([{ word: 'zoë' }]);
  });

  it('ends a session whose encoding it cannot read safely', async () => {
    for (const change of [
      `SET client_encoding = 'SJIS'`,
      `SET NAMES 'gb18030'`,
      `SELECT set_config('client_encoding', 'BIG5', false)`,
    ]) {
      const c = await s.connect();
      const ended = new Promise<unknown>((resolve) => c.on('error', resolve));
      await expect(c.query(change)).rejects.toMatchObject({ severity: 'FATAL', code: '22023' });
      await ended;
    }
    const c = await s.connect();
    expect((await c.query('SHOW client_encoding')).rows).toEqual([{ client_encoding: 'UTF8' }]);
  });
});

describe('a refusal behind a BEGIN that came with it', () => {
  const run = (sql: string) => [P('', sql), B('', ''), E('')];

  it.each([
    ['Query', [Q(`BEGIN; ${REFUSED}; COMMIT`)], 'C E Z:E'],
    ['Query with more before', [Q(`START TRANSACTION; SELECT 1; ${REFUSED}`)], 'C E Z:E'],
    ['Query that has ended the transaction', [Q(`BEGIN; COMMIT; ${REFUSED}`)], 'E Z:I'],
    ['batch', [...run('BEGIN'), ...run(REFUSED), ...run('COMMIT'), S], '1 2 C E Z:E'],
    [
      'batch that changes something',
      [...run('BEGIN'), ...run(`INSERT INTO settings VALUES ('a', 'b')`), ...run(REFUSED), S],
      '1 2 C 1 2 C 1 E Z:E',
    ],
    ['batch that has ended the transaction', [...run('BEGIN'), ...run('COMMIT'), ...run(REFUSED), S], 'E Z:I'],
  ] as const)('fails the transaction, as PostgreSQL would: %s', async (_, messages, expected) => {
    const peer = await RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    const heard = async (...send: Buffer[]) => {
      peer.send(...send);
      const all = await peer.until('Z');
      return all.map(({ type, body }) => (type === 'Z' ? `Z:${body.toString('latin1')}` : type)).join(' ');
    };
    expect(await heard(...messages)).toBe(expected);
    if (expected.endsWith('E')) {
      peer.send(Q('SELECT 1'));
      expect((await peer.expectError()).sqlstate).toBe('25P02');
      await peer.until('Z');
    }
    // Outside of a transaction there would be a warning.
    expect(await heard(Q('ROLLBACK'))).toBe(expected.endsWith('E') ? 'C Z:I' : 'N C Z:I');
    expect(await s.onShard(0, 'TABLE settings')).toEqual([]);
    peer.end();
  });
});
