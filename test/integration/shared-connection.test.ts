import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: null, poolSize: 1 });
});
afterAll(() => s.stop());

/** Process of the server that answers. */
async function pid(client: { query(sql: string): Promise<{ rows: { pid: number }[] }> }): Promise<number> {
  // Not by pg_backend_pid(): whoever asks for it keeps the connection.
  return (await client.query(`SELECT pid FROM pg_stat_activity WHERE usename = 'app'`)).rows[0]?.pid as number;
}

describe('two clients that share one server connection', () => {
  it('have each its own settings, whichever way they were set, changed, reset or undone', async () => {
    const a = await s.connect({ options: '-c work_mem=5MB', application_name: 'a' });
    const b = await s.connect({ application_name: 'b' });
    expect(await pid(a)).toBe(await pid(b));
    const show = async (client: typeof a, name: string) =>
      Object.values((await client.query(`SHOW ${name}`)).rows[0] as Record<string, string>)[0];
    const check = async (name: string, ofA: string, ofB: string) => {
      for (let i = 0; i < 2; i++) expect([await show(a, name), await show(b, name)]).toEqual([ofA, ofB]);
    };
    await check('work_mem', '5MB', '4MB');
    await a.query(`SET work_mem = '6MB'`);
    await check('work_mem', '6MB', '4MB');
    await b.query(`SELECT set_config('work_mem', '7MB', false)`);
    await check('work_mem', '6MB', '7MB');
    await b.query(`BEGIN; SET work_mem = '8MB'; SET TimeZone = 'Asia/Tokyo'`);
    await b.query('ROLLBACK');
    await check('work_mem', '6MB', '7MB');
    await a.query('RESET work_mem');
    await b.query('RESET work_mem');
    await check('work_mem', '5MB', '4MB');
    await a.query('SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE');
    await check('transaction_isolation', 'serializable', 'read committed');
    await b.query(`SELECT set_config('work_mem', n || 'MB', false) FROM generate_series(8, 9) n`);
    await check('work_mem', '5MB', '9MB');
    await check('transaction_isolation', 'serializable', 'read committed');
    await b.query('DISCARD ALL');
    await check('work_mem', '5MB', '4MB');
    await check('application_name', 'a', 'b');
    await a.query('DISCARD ALL');
    await check('work_mem', '5MB', '4MB');
    await check('transaction_isolation', 'read committed', 'read committed');
    await a.end();
    await b.end();
  });

  it('are ended by their own time-outs, and the connection they share is not', async () => {
    const a = await s.connect();
    const b = await s.connect();
    const process = await pid(b);
    // The server has it in force as well, until the connection is given back, however long a busy machine takes for that.
    await a.query(`SET idle_session_timeout = '1h'`);
    expect((await b.query('SHOW idle_session_timeout')).rows).toEqual([{ idle_session_timeout: '0' }]);
    expect((await a.query('SHOW idle_session_timeout')).rows).toEqual([{ idle_session_timeout: '1h' }]);
    // This one asks for nothing, so that the server never has it.
    const idle = await s.connect({ options: '-c idle_session_timeout=50ms' });
    const ended = new Promise<Error>((resolve) => idle.on('error', resolve));
    expect(await ended).toMatchObject({ code: '57P05', message: 'terminating connection due to idle-session timeout' });
    expect((await b.query('SHOW idle_session_timeout')).rows).toEqual([{ idle_session_timeout: '0' }]);
    expect(await pid(b)).toBe(process);
    await a.end();
    await b.end();
  });

  it('are not bound by each other’s transaction_timeout', async () => {
    const b = await s.connect();
    const process = await pid(b);
    const { rows } = await b.query('SHOW server_version_num');
    if (Number(rows[0]?.server_version_num) < 170_000) return b.end(); // has none
    const c = await s.connect({ options: '-c transaction_timeout=100' });
    for (let i = 0; i < 2; i++) {
      expect((await c.query('SHOW transaction_timeout')).rows).toEqual([{ transaction_timeout: '100ms' }]);
      await b.query('SELECT pg_sleep(0.2)');
    }
    expect(await pid(b)).toBe(process);
    await b.end();
    await c.end();
  });

  it('never see what a function of the other has set by a text that was put together', async () => {
    const a = await s.connect();
    const b = await s.connect();
    await a.query(
      `CREATE FUNCTION runs(sql text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE sql; RETURN 1; END $$;
       CREATE TABLE watched (a int); CREATE FUNCTION watches() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN EXECUTE concat('S', 'ET my.row = ', quote_literal(NEW.a)); RETURN NEW; END $$;
       CREATE TRIGGER watching BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watches()`,
    );
    const seen = async (name: string) =>
      (await b.query(`SELECT current_setting('my.${name}', true) AS v`)).rows[0]?.v as string | null;
    const process = await pid(a);
    for (const [name, sql] of [
      ['direct', `SELECT runs('SE' || 'T my.direct = ''of a''')`],
      ['block', `DO $$ BEGIN EXECUTE concat('SE', 'T my.block = ''of a'''); END $$`],
      ['row', 'INSERT INTO watched VALUES (1)'],
      ['failed', `BEGIN; SELECT runs('SE' || 'T my.failed = ''of a'''); COMMIT; SELECT 1/0`],
    ] as const) {
      await a.query(sql).catch((error: { code: string }) => expect(error.code).toBe('22012'));
      expect(['', null], name).toContain(await seen(name));
    }
    expect(await pid(b)).toBe(process);
    await a.query('DROP TABLE watched; DROP FUNCTION runs, watches');
    await a.end();
    await b.end();
  });

  it('never see what a function sets that was another one before the same transaction, or the same Query', async () => {
    const a = await s.connect();
    const b = await s.connect();
    const process = await pid(a);
    const making = (body: string) =>
      `CREATE OR REPLACE FUNCTION changes() RETURNS int LANGUAGE plpgsql AS $$ BEGIN ${body} RETURN 1; END $$`;
    const sets = (name: string) => making(`EXECUTE concat('S', 'ET my.${name} = ''of a''');`);
    const seen = async (name: string) =>
      (await b.query(`SELECT current_setting('my.${name}', true) AS v`)).rows[0]?.v as string | null;
    await a.query(making(''));
    await a.query('SELECT changes()');
    await a.query('BEGIN');
    await a.query(sets('later'));
    await a.query('SELECT changes()');
    await a.query('COMMIT');
    expect(['', null]).toContain(await seen('later'));
    await a.query(making(''));
    await a.query('SELECT changes()');
    await a.query(`${sets('together')}; SELECT changes()`);
    expect(['', null]).toContain(await seen('together'));
    expect(await pid(b)).toBe(process);
    await a.query('DROP FUNCTION changes');
    await a.end();
    await b.end();
  });

  it('keep both halves of DateStyle, though each is set alone', async () => {
    const a = await s.connect({ options: '-c datestyle=postgres' });
    const b = await s.connect();
    const style = async (client: typeof a) => (await client.query('SHOW datestyle')).rows[0]?.DateStyle as string;
    const check = async (ofA: string, ofB: string) => {
      for (let i = 0; i < 2; i++) expect([await style(a), await style(b)]).toEqual([ofA, ofB]);
    };
    await check('Postgres, MDY', 'ISO, MDY');
    await a.query('SET datestyle = ymd');
    await b.query('SET datestyle = german');
    await check('Postgres, YMD', 'German, DMY');
    await a.query('SET datestyle = sql');
    await b.query(`SELECT set_config('datestyle', 'mdy', false)`);
    await check('SQL, YMD', 'German, MDY');
    await a.query('RESET datestyle');
    await b.query('BEGIN; SET datestyle = iso; ROLLBACK');
    await check('Postgres, MDY', 'German, MDY');
    await a.end();
    await b.end();
  });

  it('have each its own prepared statements under the same names, by PREPARE and by Parse', async () => {
    const a = await s.connect();
    const b = await s.connect();
    const first = async (client: typeof a, sql: string) =>
      Object.values((await client.query(sql)).rows[0] as object)[0];
    await a.query(`PREPARE q AS SELECT 'a' AS x`);
    await expect(b.query('EXECUTE q')).rejects.toMatchObject({ code: '26000' });
    await expect(b.query('DEALLOCATE q')).rejects.toMatchObject({ code: '26000' });
    await b.query(`PREPARE q AS SELECT 'b' AS x`);
    await b.query({ name: 'p', text: `SELECT 'pb' AS x` });
    await a.query({ name: 'p', text: `SELECT 'pa' AS x` });
    for (let i = 0; i < 3; i++) {
      expect([await first(a, 'EXECUTE q'), await first(b, 'EXECUTE q')]).toEqual(['a', 'b']);
      expect([await first(a, 'EXECUTE p'), await first(b, 'EXECUTE p')]).toEqual(['pa', 'pb']);
    }
    await a.query('DEALLOCATE ALL');
    await expect(a.query('EXECUTE q')).rejects.toMatchObject({ code: '26000' });
    expect([await first(b, 'EXECUTE q'), await first(b, 'EXECUTE p')]).toEqual(['b', 'pb']);
    await a.query(`PREPARE q AS SELECT 'b' AS x`);
    await b.query('DEALLOCATE q');
    expect(await first(a, 'EXECUTE q')).toBe('b');
    await a.query('DISCARD ALL');
    expect(await first(b, 'EXECUTE p')).toBe('pb');
    expect(await pid(a)).toBe(await pid(b));
    await a.end();
    await b.end();
  });

  it('never hear that a plan is out of date, whoever changed the columns, outside of a transaction', async () => {
    const a = await s.connect();
    const b = await s.connect();
    await a.query('CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)');
    const named = { name: 'all', text: 'SELECT * FROM changing' };
    const both = async (row: object) => {
      for (const client of [a, b]) expect((await client.query(named)).rows).toEqual([row]);
    };
    await both({ a: 1 });
    await a.query('PREPARE q AS SELECT * FROM changing');
    // Through the proxy, and behind its back.
    await b.query('ALTER TABLE changing ADD COLUMN b int');
    await both({ a: 1, b: null });
    expect((await a.query('EXECUTE q')).rows).toEqual([{ a: 1, b: null }]);
    await s.onShard(0, 'ALTER TABLE changing DROP COLUMN a');
    await both({ b: null });
    await s.onShard(0, 'ALTER TABLE changing ADD COLUMN c int');
    expect((await a.query('EXECUTE q')).rows).toEqual([{ b: null, c: null }]);
    await s.onShard(0, 'ALTER TABLE changing ADD COLUMN d int');
    const c = await s.connect();
    expect((await c.query(named)).rows).toEqual([{ b: null, c: null, d: null }]);
    await s.onShard(0, 'ALTER TABLE changing ADD COLUMN e int');
    await a.query('BEGIN');
    await expect(a.query(named)).rejects.toMatchObject({ code: '0A000', routine: 'RevalidateCachedQuery' });
    await a.query('ROLLBACK');
    await both({ b: null, c: null, d: null, e: null });
    await a.query('BEGIN');
    await a.query('ALTER TABLE changing DROP COLUMN e');
    await a.query('COMMIT');
    await both({ b: null, c: null, d: null });
    await a.query('DROP TABLE changing');
    for (const client of [a, b, c]) await client.end();
  });

  it('never see what a DO block, a procedure or a function of the other has set or prepared', async () => {
    const b = await s.connect();
    const show = async (client: typeof b, name: string) =>
      Object.values((await client.query(`SELECT current_setting('${name}', true)`)).rows[0] as object)[0];
    await b.query(`
      CREATE FUNCTION sets(v text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('my.tenant', v, false); END $$;
      CREATE FUNCTION calls_sets() RETURNS void LANGUAGE sql AS $$ SELECT sets('seen') $$;
      CREATE PROCEDURE sets_too() LANGUAGE plpgsql AS $$ BEGIN UPDATE pg_temp.none SET a = 1; EXCEPTION WHEN OTHERS THEN
        SET my.tenant = 'seen'; END $$;
      CREATE FUNCTION hidden(name text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE concat('S', 'ET ', name, ' = 77'); END $$;
      CREATE FUNCTION for_now() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('my.tenant', 'x', true); SET LOCAL my.tenant = 'y'; END $$`);
    await waitFor(
      async () => {
        const c = await s.connect();
        await c.query('SELECT calls_sets()');
        const known = [...s.proxy.clients].some(({ session }) => session.pinned === 'settings of a function');
        await c.end();
        return known;
      },
      { what: 'the schema to be read' },
    );
    for (const [sql, name, value] of [
      [`DO $$ BEGIN SET enable_bitmapscan = off; END $$`, 'enable_bitmapscan', 'off'],
      [`DO $$ BEGIN PERFORM calls_sets(); END $$`, 'my.tenant', 'seen'],
      [`BEGIN; DO $$ BEGIN EXECUTE 'SET my.tenant = ''seen'''; END $$; COMMIT`, 'my.tenant', 'seen'],
      ['SELECT calls_sets()', 'my.tenant', 'seen'],
      ['CALL sets_too()', 'my.tenant', 'seen'],
      [`SELECT hidden('work_mem')`, 'work_mem', '77kB'],
    ] as const) {
      const a = await s.connect();
      const before = await show(b, name);
      await a.query(sql);
      for (let i = 0; i < 2; i++) expect(await show(a, name)).toBe(value);
      // A setting that fails must not undo it, nor one that does not.
      await expect(a.query('SET my.other = 1; SELECT 1/0')).rejects.toMatchObject({ code: '22012' });
      await a.query('SET my.other = 1');
      expect(await show(a, name)).toBe(value);
      await a.query('DISCARD ALL');
      expect(await show(b, name)).toBe(before ?? '');
      await a.query(sql);
      await a.end();
      expect((await show(b, name)) || null).toBe(before || null);
    }
    const a = await s.connect();
    await a.query('SELECT for_now()');
    expect(await show(b, 'my.tenant')).toBeOneOf([null, '']);
    await a.query(`DO $$ BEGIN EXECUTE 'PREPARE q AS SELECT 1'; END $$`);
    expect((await a.query('EXECUTE q')).rowCount).toBe(1);
    await a.query('DISCARD ALL');
    await expect(b.query('EXECUTE q')).rejects.toMatchObject({ code: '26000' });
    await b.query('PREPARE p AS SELECT 2 AS x');
    await a.query(`DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$`);
    expect((await b.query('EXECUTE p')).rows).toEqual([{ x: 2 }]);
    await a.end();
    await b.end();
  });

  it('are not canceled by the time-out of the other while settings are made', async () => {
    const many = Array.from({ length: 300 }, (_, i) => `-c my.s${i}=${i}`).join(' ');
    const a = await s.connect({ options: '-c statement_timeout=1ms' });
    const b = await s.connect({ options: many });
    const c = await s.connect({ options: `${many} -c statement_timeout=1ms` });
    for (let i = 0; i < 5; i++) {
      await a.query('SET my.own = 1');
      expect((await b.query('SELECT pg_sleep(0.01)')).rowCount).toBe(1);
      await expect(a.query('SELECT pg_sleep(10)')).rejects.toMatchObject({ code: '57014' });
      await expect(c.query('SELECT pg_sleep(10)')).rejects.toMatchObject({
        code: '57014',
        message: 'canceling statement due to statement timeout',
      });
    }
    await a.end();
    await b.end();
    await c.end();
  });
});

// Last: from here on sessions of this user keep their connections when they may have drawn numbers.
describe('clients that use a connection one after the other', () => {
  it('never get the other’s numbers from sequences by a default, a trigger or a function', async () => {
    const as = async (...sql: string[]) => {
      const client = await s.connect();
      try {
        for (const one of sql) await client.query(one);
      } finally {
        await client.end();
      }
    };
    // Sessions of a user who has once asked keep their connections: each is gone before the next comes.
    const none = async (...sql: string[]) => {
      await as(`SELECT nextval('numbers')`);
      await expect(as(...sql), sql.join()).rejects.toMatchObject({ code: '55000' });
    };
    await as('CREATE SEQUENCE numbers; CREATE TABLE plain (a int)');
    const table = `CREATE TABLE asking (a int DEFAULT currval('numbers'))`;
    await none(`${table}; INSERT INTO asking DEFAULT VALUES`);
    await none(table, 'INSERT INTO asking DEFAULT VALUES');
    await none('INSERT INTO asking DEFAULT VALUES');
    await none(`CREATE FUNCTION asks() RETURNS bigint LANGUAGE sql AS 'SELECT lastval()'`, 'SELECT asks()');
    await none(
      `CREATE TABLE fires (a int); CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM asks(); RETURN NEW; END $$;
       CREATE TRIGGER firing BEFORE INSERT ON fires FOR EACH ROW EXECUTE FUNCTION fire()`,
      'INSERT INTO fires VALUES (1)',
    );
    await none('ALTER TABLE plain ALTER COLUMN a SET DEFAULT asks()', 'INSERT INTO plain DEFAULT VALUES');
    await as('DROP TABLE plain, asking, fires; DROP FUNCTION fire, asks; DROP SEQUENCE numbers');
  });
});

it('a statement that others prepared before a change of its table is prepared anew for a transaction', async () => {
  const two = await Sharded.start({ splitAt: null, poolSize: 2 });
  try {
    const [a, b, c] = await Promise.all([two.connect(), two.connect(), two.connect()]);
    const text = 'SELECT * FROM mine';
    await a.query('CREATE TABLE mine (a int); INSERT INTO mine VALUES (1)');
    // Both server connections know the text with one column.
    await a.query('BEGIN');
    await a.query({ name: 'first', text });
    await b.query({ name: 'first', text });
    await a.query('ALTER TABLE mine ADD COLUMN b int');
    await a.query('COMMIT');
    // One of them is kept while b is told of two columns on the other, and the other while b begins its transaction.
    await a.query('BEGIN');
    await a.query('SELECT 1');
    expect((await b.query({ name: 'second', text })).rows).toEqual([{ a: 1, b: null }]);
    await c.query('BEGIN');
    await c.query('SELECT 1');
    await a.query('COMMIT');
    await b.query('BEGIN');
    expect((await b.query({ name: 'second', text })).rows).toEqual([{ a: 1, b: null }]);
    await b.query('COMMIT');
    await c.query('COMMIT');
    await Promise.all([a.end(), b.end(), c.end()]);
  } finally {
    await two.stop();
  }
});
