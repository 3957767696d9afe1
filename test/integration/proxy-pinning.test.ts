import type pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
const open: pg.Client[] = [];

async function connect(): Promise<pg.Client> {
  const c = await s.connect();
  open.push(c);
  return c;
}

afterEach(async () => {
  for (const c of open.splice(0)) await c.end();
  await waitFor(() => [...s.proxy.clients].length === 0, { what: 'the end of the sessions' });
});

/** Why each session is pinned. */
const pinned = () => [...s.proxy.clients].map(({ session }) => session.pinned);

async function value(c: pg.Client, sql: string): Promise<unknown> {
  const { rows } = await c.query({ text: sql, rowMode: 'array' });
  return (rows as unknown[][])[0]?.[0];
}

async function sqlstate(run: Promise<unknown>): Promise<string> {
  try {
    await run;
  } catch (error) {
    return (error as { code: string }).code;
  }
  return 'no error';
}

const SCHEMA = `
CREATE TABLE numbered (id serial PRIMARY KEY, a int);
CREATE SEQUENCE other;
CREATE FUNCTION makes_temp() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'CREATE TEMP TABLE made (a int)'; END $$;
CREATE FUNCTION calls_it() RETURNS void LANGUAGE sql AS $$ SELECT makes_temp() $$;
CREATE FUNCTION hears() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'LISTEN inside'; END $$;
CREATE FUNCTION runs(sql text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE sql; RETURN 1; END $$;
CREATE FUNCTION tells() RETURNS int LANGUAGE plpgsql AS $$
  BEGIN RAISE NOTICE 'SET x'; PERFORM set_config('my.y', lower(coalesce('A', 'b')), true); RETURN 1; END $$;
CREATE TABLE marked (a int);
CREATE FUNCTION marks() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN PERFORM set_config('my.mark', NEW.a::text, false); RETURN NEW; END $$;
CREATE TRIGGER marking BEFORE INSERT ON marked FOR EACH ROW EXECUTE FUNCTION marks();
CREATE FUNCTION notes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('my.mark', 'x', false); RETURN NULL; END $$;
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE SET NULL);
CREATE TRIGGER marking AFTER UPDATE ON tree FOR EACH ROW EXECUTE FUNCTION notes();
CREATE TABLE boughs (id int PRIMARY KEY);
CREATE TABLE leaves (bough int REFERENCES boughs ON DELETE CASCADE);
CREATE TRIGGER marking AFTER DELETE ON leaves FOR EACH ROW EXECUTE FUNCTION notes();
INSERT INTO tree VALUES (1, NULL), (2, 1);
INSERT INTO boughs VALUES (1);
INSERT INTO leaves VALUES (1);
CREATE FUNCTION clean() RETURNS int LANGUAGE sql VOLATILE AS $$ SELECT 1 $$`;

describe('one shard, a pool of two', () => {
  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, poolSize: 2 });
    const c = await s.connect();
    await c.query(SCHEMA);
    // The router knows the functions once it has read the schema again.
    await waitFor(
      async () => {
        await c.query('SELECT calls_it()');
        const known = pinned()[0] === 'temporary table';
        await c.query('DISCARD ALL');
        return known;
      },
      { what: 'the schema to be read' },
    );
    await c.end();
  });
  afterAll(() => s.stop());

  it.each([
    ['CREATE TEMP TABLE t (a int)', 'temporary table', 'DROP TABLE t'],
    ['CREATE TABLE pg_temp.t (a int)', 'temporary table', 'DISCARD TEMP'],
    ['SELECT 1 AS a INTO TEMP t', 'temporary table', 'DROP TABLE t'],
    ['CREATE TEMP VIEW t AS SELECT 1', 'temporary table', 'DROP VIEW t'],
    ['CREATE TEMP SEQUENCE t', 'temporary table', 'DROP SEQUENCE t'],
    [
      `CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`,
      'temporary table',
      'DROP FUNCTION pg_temp.f()',
    ],
    ['CREATE TYPE pg_temp.e AS ENUM ()', 'temporary table', 'DROP TYPE pg_temp.e'],
    ['CREATE COLLATION pg_temp.c FROM "C"', 'temporary table', 'DROP COLLATION pg_temp.c'],
    ['SELECT pg_advisory_lock(5)', 'session advisory lock', 'SELECT pg_advisory_unlock(5)'],
    ['SELECT 1 WHERE pg_try_advisory_lock_shared(5)', 'session advisory lock', 'SELECT pg_advisory_unlock_all()'],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'WITH HOLD cursor', 'CLOSE c'],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'WITH HOLD cursor', 'CLOSE ALL'],
    ['SELECT makes_temp()', 'temporary table', 'DISCARD TEMP'],
    ['SELECT calls_it()', 'temporary table', 'DROP TABLE made'],
    [`DO $$ BEGIN PERFORM pg_advisory_lock(5); END $$`, 'session advisory lock', 'SELECT pg_advisory_unlock(5)'],
    ['SELECT pg_backend_pid()', 'pg_backend_pid', 'DISCARD ALL'],
    ['SELECT setseed(0.5)', 'setseed', 'DISCARD ALL'],
    ['SELECT hears()', 'LISTEN in a function', 'DISCARD ALL'],
    [`SELECT runs('SET my.x = 1')`, 'settings of a function', 'DISCARD ALL'],
    ['INSERT INTO marked VALUES (1)', 'settings of a function', 'DISCARD ALL'],
    ['DELETE FROM tree WHERE id = 1', 'settings of a function', 'DISCARD ALL'],
    ['DELETE FROM boughs', 'settings of a function', 'DISCARD ALL'],
  ])('%s pins (%s) until %s', async (begin, reason, end) => {
    const c = await connect();
    const before = s.proxy.pins.all.get(reason) ?? 0;
    await c.query(begin);
    expect(pinned()).toEqual([reason]);
    expect(s.proxy.pins.all.get(reason)).toBe(before + 1);
    await c.query('SELECT 1');
    expect(pinned()).toEqual([reason]);
    await c.query(end);
    expect(pinned()).toEqual([null]);
  });

  it.each([
    'SELECT clean()',
    'SELECT tells()',
    `SELECT runs('UPDATE marked SET a = 1')`,
    `DO $$ BEGIN RAISE NOTICE 'SET x'; SET LOCAL my.x = 1; END $$`,
    'DO $$ BEGIN END $$',
    'SELECT pg_advisory_xact_lock(5)',
    'SELECT pg_advisory_unlock(5)',
    'BEGIN; CREATE TEMP TABLE t (a int) ON COMMIT DROP; COMMIT',
    'BEGIN; CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1 AS a; COMMIT',
    'CREATE TEMP TABLE t (a int) ON COMMIT DROP',
    'BEGIN; CREATE TEMP TABLE t (a int); ROLLBACK',
    'BEGIN; DECLARE c CURSOR FOR SELECT 1; COMMIT',
    `BEGIN; SELECT lo_open(lo_create(0), 131072); ROLLBACK`,
  ])('%s leaves nothing', async (sql) => {
    const c = await connect();
    await c.query(sql);
    expect(pinned()).toEqual([null]);
  });

  it('keeps the lock of a statement that failed', async () => {
    const c = await connect();
    expect(await sqlstate(c.query('SELECT pg_advisory_lock(6), 1 / 0 FROM generate_series(1, 1)'))).toBe('22012');
    const held = await s.onShard<{ n: number }>(
      0,
      `SELECT count(*)::int AS n FROM pg_locks WHERE locktype = 'advisory'`,
    );
    expect(pinned()).toEqual([held[0]?.n === 1 ? 'session advisory lock' : null]);
    await c.query('SELECT pg_advisory_unlock_all()');
    await c.query('BEGIN');
    await c.query('SELECT pg_advisory_lock(6)');
    await c.query('ROLLBACK');
    expect(pinned()).toEqual(['session advisory lock']);
    expect(await value(await connect(), 'SELECT pg_try_advisory_lock(6)')).toBe(false);
  });

  it('keeps what a text that was handed to a function has set, and what a trigger has', async () => {
    const [a, b] = [await connect(), await connect()];
    await a.query('SELECT runs($1)', [`SET my.own = 'of a'`]);
    await a.query('INSERT INTO marked VALUES (5)');
    for (let i = 0; i < 3; i++) {
      expect(await value(a, 'SHOW my.own')).toBe('of a');
      expect(await value(a, 'SHOW my.mark')).toBe('5');
      expect(await value(b, `SELECT nullif(current_setting('my.own', true), '')`)).toBe(null);
      expect(await value(b, `SELECT nullif(current_setting('my.mark', true), '')`)).toBe(null);
    }
  });

  it('has what it keeps to itself', async () => {
    const [a, b] = [await connect(), await connect()];
    await a.query('CREATE TEMP TABLE mine (a int)');
    await a.query('INSERT INTO mine VALUES (1)');
    for (let i = 0; i < 4; i++) expect(await sqlstate(b.query('SELECT * FROM mine'))).toBe('42P01');
    await b.query('CREATE TEMP TABLE mine (a int)');
    expect(await value(b, 'SELECT count(*)::int FROM mine')).toBe(0);
    expect(await value(a, 'SELECT count(*)::int FROM mine')).toBe(1);
  });

  it('leaves nothing behind when the client goes', async () => {
    const a = await connect();
    await a.query('CREATE TEMP TABLE mine (a int)');
    await a.query('SELECT pg_advisory_lock(9)');
    open.splice(open.indexOf(a), 1);
    await a.end();
    const b = await connect();
    await waitFor(async () => value(b, 'SELECT pg_try_advisory_lock(9)'), { what: 'the lock' });
    expect(await sqlstate(b.query('SELECT * FROM mine'))).toBe('42P01');
  });

  it('tells the server process’s id, which stays true', async () => {
    const [a, b] = [await connect(), await connect()];
    const pid = await value(a, 'SELECT pg_backend_pid()');
    for (let i = 0; i < 3; i++) {
      await b.query('SELECT 1');
      expect(await value(a, 'SELECT pg_backend_pid()')).toBe(pid);
    }
    const sleeping = sqlstate(a.query('SELECT pg_sleep(60)'));
    await waitFor(async () => value(b, `SELECT state = 'active' FROM pg_stat_activity WHERE pid = ${pid}`), {
      what: 'the query to run',
    });
    expect(await value(b, `SELECT pg_cancel_backend(${pid})`)).toBe(true);
    expect(await sleeping).toBe('57014');
  });

  it('shows the client’s application_name on the server', async () => {
    const a = await s.connect({ application_name: 'one' });
    const b = await s.connect({ application_name: 'two' });
    open.push(a, b);
    const shown = `SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()`;
    for (let i = 0; i < 3; i++) {
      expect(await value(a, shown)).toBe('one');
      expect(await value(b, shown)).toBe('two');
    }
    await a.query(`SET application_name = 'three'`);
    expect(await value(a, shown)).toBe('three');
  });

  it('hears what a function listens to', async () => {
    const c = await connect();
    const heard: string[] = [];
    c.on('notification', (n) => heard.push(n.payload ?? ''));
    await c.query('SELECT hears()');
    await c.query(`NOTIFY inside, 'x'`);
    expect(heard).toEqual(['x']);
  });

  it('answers defaults that ask for currval by the numbers of the session itself', async () => {
    const [a, b] = [await connect(), await connect()];
    await a.query(
      "CREATE SEQUENCE drawn; CREATE TABLE mirrored (x int DEFAULT nextval('drawn'), z int DEFAULT -currval('drawn'))",
    );
    await waitFor(
      async () => {
        await a.query('INSERT INTO mirrored DEFAULT VALUES');
        return pinned().includes('currval or lastval');
      },
      { what: 'the schema to be read' },
    );
    // PostgreSQL's own words: the session has drawn none.
    expect(await sqlstate(b.query('INSERT INTO mirrored (x) VALUES (1)'))).toBe('55000');
    const z = await value(b, 'INSERT INTO mirrored DEFAULT VALUES RETURNING z');
    await a.query('INSERT INTO mirrored DEFAULT VALUES');
    expect(await value(b, 'INSERT INTO mirrored (x) VALUES (0) RETURNING z')).toBe(z);
    expect(await value(b, `SELECT -currval('drawn')`)).toBe(String(z));
  });
});

describe('sequences', () => {
  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, poolSize: 2 });
    const c = await s.connect();
    await c.query(SCHEMA);
    await c.end();
  });
  afterAll(() => s.stop());

  const draw = 'INSERT INTO numbered (a) VALUES (1) RETURNING id';

  it('answers on the connection that drew, then keeps it', async () => {
    const [a, b] = [await connect(), await connect()];
    expect(await sqlstate(a.query('SELECT lastval()'))).toBe('55000');
    const id = await value(a, draw);
    expect(Number(await value(a, 'SELECT lastval()'))).toBe(id);
    expect(pinned()).toEqual(['currval or lastval', null]);
    for (let i = 0; i < 5; i++) await b.query(draw);
    expect(Number(await value(a, `SELECT currval('numbered_id_seq')`))).toBe(id);
    expect(Number(await value(b, `SELECT lastval()`))).toBe((id as number) + 5);
    await a.query('DISCARD SEQUENCES');
    expect(await sqlstate(a.query('SELECT lastval()'))).toBe('55000');
  });

  it('never tells another client’s number', async () => {
    const [a, b] = [await connect(), await connect()];
    await b.query('BEGIN');
    await b.query(`SELECT nextval('other')`);
    await b.query('COMMIT');
    await a.query('BEGIN');
    expect(await sqlstate(a.query('SELECT lastval()'))).toBe('55000');
    await a.query('ROLLBACK');
    await a.query('BEGIN');
    expect(await sqlstate(a.query(`SELECT currval('other')`))).toBe('55000');
    await a.query('ROLLBACK');
    await a.query('BEGIN');
    const id = await value(a, draw);
    expect(Number(await value(a, 'SELECT lastval()'))).toBe(id);
    expect(await sqlstate(a.query(`SELECT currval('other')`))).toBe('55000');
    await a.query('ROLLBACK');
  });
});

describe('transactions that draw nothing', () => {
  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, poolSize: 4 });
    const c = await s.connect();
    await c.query(SCHEMA);
    await c.query('CREATE TABLE noted (a int)');
    await c.end();
  });
  afterAll(() => s.stop());

  it.each(['simple', 'extended'])('tell nobody’s number, and one’s own when one is drawn (%s)', async (protocol) => {
    const [a, b] = [await connect(), await connect()];
    const say = (c: pg.Client, text: string) =>
      protocol === 'simple' ? c.query(text) : c.query({ text, values: [], name: text });
    let own: string | null = null;
    for (let i = 0; i < 3; i++) {
      await say(b, 'BEGIN');
      await say(b, `SELECT nextval('other')`);
      await say(b, 'COMMIT');
      await say(a, 'BEGIN');
      await say(a, 'INSERT INTO noted VALUES (1)');
      await say(a, 'INSERT INTO noted VALUES (2)');
      // An error, or the number that the client has drawn itself.
      const told = await say(a, 'SELECT lastval()').then(
        ({ rows }) => rows[0].lastval as string,
        () => null,
      );
      if (told !== null) expect(told).toBe(own);
      await say(a, 'ROLLBACK');
      await say(a, 'BEGIN');
      await say(a, 'INSERT INTO noted VALUES (3)');
      const { rows } = await say(a, 'INSERT INTO numbered (a) VALUES (1) RETURNING id');
      own = String(rows[0].id);
      expect((await say(a, 'SELECT lastval()')).rows[0].lastval).toBe(own);
      await say(a, 'COMMIT');
    }
  });

  it('draw when the table has come to in the same transaction', async () => {
    const [a, b] = [await connect(), await connect()];
    await b.query(`BEGIN; SELECT nextval('other'); COMMIT`);
    await a.query('BEGIN');
    await a.query('INSERT INTO noted VALUES (1)');
    await a.query('ALTER TABLE noted ADD id serial');
    const { rows } = await a.query('INSERT INTO noted (a) VALUES (1) RETURNING id');
    expect((await a.query('SELECT lastval()')).rows[0].lastval).toBe(String(rows[0].id));
    await a.query('ROLLBACK');
  });
});

describe('two shards', () => {
  beforeAll(async () => {
    s = await Sharded.start({ splitAt: 100, poolSize: 2 });
    for (const shard of [0, 1] as const) {
      await s.onShard(shard, 'CREATE SEQUENCE one; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app');
      await s.onShard(shard, 'CREATE TABLE log (id bigserial, tenant_id bigint); GRANT ALL ON log TO app');
    }
  });
  afterAll(() => s.stop());

  it('lets a session go to another shard that asked for its process id', async () => {
    const c = await connect();
    await c.query('SELECT pg_backend_pid()');
    expect(pinned()).toEqual(['pg_backend_pid']);
    await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    expect(pinned()).toEqual([null]);
    await c.query('SELECT pg_backend_pid()');
    await c.query('SELECT name FROM tenants');
  });

  it('refuses another shard to one that has a lock', async () => {
    const c = await connect();
    await c.query('SELECT pg_advisory_lock(5)');
    expect(await sqlstate(c.query('SELECT name FROM tenants WHERE tenant_id = 150'))).toBe('0A000');
    await c.query('SELECT pg_advisory_unlock(5)');
    expect(await sqlstate(c.query('SELECT name FROM tenants WHERE tenant_id = 150'))).toBe('no error');
  });

  it('tells currval where it is certain, and refuses where not', async () => {
    const [a, b] = [await connect(), await connect()];
    await a.query('BEGIN');
    const drawn = await value(a, `SELECT nextval('one')`);
    expect(await value(a, `SELECT currval('one')`)).toBe(drawn);
    await a.query('COMMIT');
    expect(await value(a, `SELECT currval('one')`)).toBe(drawn);
    await a.query(`INSERT INTO tenants VALUES (150, 'x')`);
    expect(await sqlstate(a.query(`SELECT currval('one')`))).toBe('0A000');
    expect(await sqlstate(b.query(`SELECT currval('one')`))).toBe('55000');
    expect(pinned()).toEqual([null, null]);
  });

  it('has a transaction tell its time where it has told it first', async () => {
    const c = await connect();
    for (const told of [
      'SELECT now() AS v',
      `SELECT 'today'::date AS v`,
      "SELECT age(DATE '2020-01-01') AS v",
      'SELECT txid_current() AS v',
    ]) {
      await c.query('BEGIN');
      await c.query('SELECT 1');
      const { rows } = await c.query(told);
      await c.query('SELECT name FROM tenants WHERE tenant_id = 1');
      await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
      expect((await c.query(told)).rows).toEqual(rows);
      await c.query('COMMIT');
    }
    await c.query('BEGIN');
    await c.query('SELECT 1');
    await c.query('SELECT name FROM tenants WHERE tenant_id = 150');
    await c.query('ROLLBACK');
  });
});
