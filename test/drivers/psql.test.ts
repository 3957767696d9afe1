import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { findTools, run } from '../support/tools.js';
import { waitFor } from '../support/wait-for.js';

const tools = findTools();

/** What a script starts from, directly and through the proxy. */
const SCHEMA = `
DROP SCHEMA IF EXISTS shopping CASCADE;
CREATE SCHEMA shopping;
SET search_path = shopping;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL UNIQUE, mood mood DEFAULT 'ok', born date);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int REFERENCES customers ON DELETE CASCADE,
  amount numeric(10,2) CHECK (amount >= 0), qty positive, placed timestamptz DEFAULT '2024-02-29 12:00+00', tags text[]);
CREATE INDEX orders_by_customer ON orders (customer) WHERE amount > 10;
CREATE VIEW big_orders AS SELECT * FROM orders WHERE amount > 100;
CREATE MATERIALIZED VIEW totals AS SELECT customer, sum(amount) AS total FROM orders GROUP BY customer;
CREATE FUNCTION twice(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i * 2';
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.placed := '2024-03-01 00:00+00'; RETURN NEW; END$$;
CREATE TRIGGER stamped BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION stamp();
COMMENT ON TABLE orders IS 'What was bought';
INSERT INTO customers (name, mood, born) SELECT 'c' || i, 'ok', date '2000-01-01' + i FROM generate_series(1, 20) i;
INSERT INTO orders (customer, amount, qty, tags) SELECT 1 + i % 20, i * 3.5, i, ARRAY['t' || i, NULL] FROM generate_series(1, 100) i;
`;

const PATH = 'SET search_path = shopping;\n';

/** Scripts whose output must be the same to the last byte. */
const SCRIPTS: Readonly<Record<string, string>> = {
  'describes everything': String.raw`\d
\d+ orders
\d customers
\d big_orders
\d+ totals
\dt
\di+ orders*
\dv
\dm
\ds
\dT+
\dD
\df
\df+ twice
\sf stamp
\sv big_orders
\dn
\dp orders
\dy
\dx
\dd
\dg
\dO
\dC date
\da max
\do ~~
\db
\dRp
\l shop*
\encoding`,
  'shows types, values and lines as they are': String.raw`SELECT * FROM orders ORDER BY id LIMIT 3;
\x on
SELECT * FROM customers ORDER BY id LIMIT 2;
\x off
\pset null '(null)'
\pset format unaligned
SELECT NULL, 'a' || chr(10) || 'b', E'\\x00ff'::bytea, '{"a": [1, 2]}'::jsonb, interval '1 day 2 hours', 1.0/3, 'NaN'::float8;
\pset format csv
SELECT * FROM orders ORDER BY id LIMIT 3;
\pset format html
SELECT 1 AS "<a>";`,
  'describes results without running them': String.raw`SELECT id, amount, tags, mood FROM orders JOIN customers USING (id) \gdesc
SELECT 1/0 \gdesc
DELETE FROM orders \gdesc
SELECT nothing FROM orders \gdesc
SELECT \gdesc
SELECT count(*) FROM orders;`,
  'runs, keeps and pivots what a query gives': String.raw`SELECT format('SELECT %s AS n', i) FROM generate_series(1, 3) i \gexec
SELECT 42 AS answer, 'x y' AS words \gset got_
\echo :got_answer :'got_words'
SELECT id % 3 AS a, id % 2 AS b, count(*) FROM orders GROUP BY 1, 2 ORDER BY 1, 2 \crosstabview
SELECT 1 \g (format=csv)
SELECT 1; SELECT 2 \; SELECT 3 \; SELECT 4;
\if :got_answer
\echo yes
\endif`,
  'copies in and out': String.raw`\copy (SELECT id, name FROM customers ORDER BY id LIMIT 3) TO STDOUT
\copy customers (name, mood) FROM STDIN WITH (FORMAT csv, HEADER)
name,mood
zoe,happy
"y, z",sad
\.
COPY customers (name) FROM STDIN;
plain
tab	extra
\.
COPY customers (name) FROM STDIN;
after the error
\.
SELECT name, mood FROM customers WHERE id > 20 ORDER BY name;
COPY (SELECT 1, NULL, 'a' || chr(9) || 'b') TO STDOUT;
COPY (SELECT 1, NULL, 'x') TO STDOUT (FORMAT csv, FORCE_QUOTE *);
BEGIN; COPY customers (name) FROM STDIN; SELECT count(*) FROM customers; ROLLBACK;
in a transaction
\.
SELECT count(*) FROM customers;
COPY nowhere FROM STDIN;
COPY customers FROM STDIN (FORMAT nonsense);
SELECT 'still in step';`,
  'copies to a program and from a file': String.raw`\copy orders (id, amount) TO :file
CREATE TABLE copied (LIKE orders INCLUDING DEFAULTS);
\copy copied (id, amount) FROM :file
SELECT count(*), sum(amount) FROM copied;
\copy (SELECT * FROM orders ORDER BY id) TO PROGRAM 'cksum'
\copy orders TO :file WITH (FORMAT binary)
TRUNCATE copied;
\copy copied FROM :file WITH (FORMAT binary)
SELECT count(*), sum(amount) FROM copied;`,
  'repeats a query until it fails': String.raw`CREATE SEQUENCE times;
SELECT 'round', 1 / (4 - nextval('times')) \watch 0.01`,
  'goes through large results with a cursor': String.raw`\set FETCH_COUNT 7
SELECT id, amount FROM orders ORDER BY id;
SELECT 10 / (50 - id) FROM orders ORDER BY id;
BEGIN;
SELECT id FROM orders ORDER BY id LIMIT 20;
COMMIT;`,
  'rolls back single statements, and transactions it opened itself': String.raw`\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO customers (name) VALUES ('kept');
INSERT INTO customers (name) VALUES ('kept');
SELECT 1/0;
COMMIT;
SELECT name FROM customers WHERE name = 'kept';
\set ON_ERROR_ROLLBACK off
\set AUTOCOMMIT off
INSERT INTO customers (name) VALUES ('gone');
ROLLBACK;
SELECT count(*) FROM customers WHERE name = 'gone';
COMMIT;
\set AUTOCOMMIT on
BEGIN;
SELECT 1/0;
SELECT 'skipped';
\echo :LAST_ERROR_SQLSTATE :ERROR
END;
COMMIT;`,
  'shows errors whole': String.raw`\set VERBOSITY verbose
\set SHOW_CONTEXT always
SELECT * FROM orders WHERE amuont = 1;
SELECT 'a'::int;
INSERT INTO customers (id, name) VALUES (1, 'again');
INSERT INTO orders (customer, amount) VALUES (999, 1);
INSERT INTO orders (customer, amount) VALUES (1, -1);
DO $$BEGIN RAISE NOTICE 'said %', 1; RAISE WARNING 'warned'; RAISE EXCEPTION 'no' USING ERRCODE = 'P0042', HINT = 'try', DETAIL = 'so'; END$$;
SELECT 1; SELECT nonsense; SELECT 2;
SELECT 1 \; SELECT 1/0 \; SELECT 3;
\set VERBOSITY sqlstate
SELECT 1/0;`,
  'prepares, executes and forgets': `PREPARE q (int) AS SELECT name FROM customers WHERE id = $1;
EXECUTE q(3);
EXECUTE q(4);
EXPLAIN (COSTS off) EXECUTE q(5);
EXECUTE q('x');
EXECUTE q;
PREPARE q AS SELECT 1;
DEALLOCATE q;
EXECUTE q(3);
DEALLOCATE q;
PREPARE r AS SELECT 1; EXECUTE r; DISCARD ALL; EXECUTE r;`,
  'keeps what a session has set': String.raw`SET work_mem = '3MB';
SHOW work_mem;
BEGIN;
SET LOCAL work_mem = '4MB';
SAVEPOINT s;
SET work_mem = '5MB';
ROLLBACK TO s;
SHOW work_mem;
COMMIT;
SHOW work_mem;
SET datestyle = 'SQL, DMY';
SELECT date '2024-02-29';
SET datestyle = 'MDY';
SELECT date '2024-02-29';
RESET datestyle;
SELECT date '2024-02-29';
SET TIME ZONE 'Europe/Vienna';
SELECT timestamptz '2024-02-29 12:00+00';
SET search_path = public;
\dt
SELECT set_config('search_path', 'shopping', false);
\dt
RESET ALL;
SHOW search_path;`,
  'keeps what a session has opened': String.raw`DECLARE c CURSOR WITH HOLD FOR SELECT id FROM orders ORDER BY id;
FETCH 2 FROM c;
FETCH 2 FROM c;
CLOSE c;
SELECT pg_advisory_lock(7);
SELECT pg_advisory_unlock(7);
LISTEN news;
NOTIFY news, 'hello';
SELECT pg_backend_pid() = pg_backend_pid();
UNLISTEN *;
CREATE TEMP TABLE mine (i int);
INSERT INTO mine VALUES (1), (2);
SELECT sum(i) FROM mine;
\d mine
DISCARD ALL;
SELECT * FROM mine;`,
  'knows what its sequences gave': `SELECT nextval('customers_id_seq') > 0;
SELECT currval('customers_id_seq') = lastval();
INSERT INTO customers (name) VALUES ('by sequence');
SELECT lastval() = currval('customers_id_seq');
SELECT currval('orders_id_seq');
DISCARD ALL;
SELECT lastval();`,
  'keeps large objects': String.raw`SELECT lo_from_bytea(4711, decode(repeat('00ff', 5000), 'hex'));
\lo_export 4711 :file
SELECT md5(lo_get(4711));
BEGIN;
SELECT lo_open(4711, 262144) AS fd \gset
SELECT length(loread(:fd, 100)), length(loread(:fd, 100000));
COMMIT;
\lo_unlink 4711
\lo_list`,
};

describe.skipIf(tools === null)('psql', () => {
  const { binDir } = tools as NonNullable<typeof tools>;
  const dir = mkdtempSync(join(tmpdir(), 'foreshard-psql-'));
  let s: Sharded;

  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, binDir });
    await s.onShard(0, 'GRANT CREATE ON DATABASE shop TO app; ALTER ROLE app SUPERUSER');
  });
  afterAll(async () => {
    await s.stop();
    rmSync(dir, { recursive: true });
  });
  beforeEach(() => s.onShard(0, `${SCHEMA}; SELECT lo_unlink(oid) FROM pg_largeobject_metadata`));

  const psql = (port: number, input: string, more: readonly string[] = []) =>
    run(join(binDir, 'psql'), ['-X', '-a', ...more, `postgres://app:secret@127.0.0.1:${port}/shop`], {
      input: input.replaceAll(':file', join(dir, 'file')),
    });

  for (const [name, script] of Object.entries(SCRIPTS))
    it(name, async () => {
      const direct = await psql(s.clusters[0].port, `${PATH}${script}\n`);
      await s.onShard(0, `${SCHEMA}; SELECT lo_unlink(oid) FROM pg_largeobject_metadata`);
      const through = await psql(s.proxy.port, `${PATH}${script}\n`);
      expect(alike(through.stdout)).toBe(alike(direct.stdout));
      expect(alike(through.stderr)).toBe(alike(direct.stderr));
      expect(through.code).toBe(direct.code);
      expect(direct.stdout.length).toBeGreaterThan(50);
    });

  it('runs a script as one transaction, all or nothing', async () => {
    const failing = "INSERT INTO shopping.customers (name) VALUES ('one');\nSELECT 1/0;\n";
    const outcome = await psql(s.proxy.port, failing, ['-1', '-v', 'ON_ERROR_STOP=1']);
    expect(outcome.code).toBe(3);
    expect(await s.onShard(0, `SELECT FROM shopping.customers WHERE name = 'one'`)).toEqual([]);
    expect((await psql(s.proxy.port, failing.replace('1/0', '1'), ['-1'])).code).toBe(0);
    expect(await s.onShard(0, `SELECT FROM shopping.customers WHERE name = 'one'`)).toHaveLength(1);
  });

  it('cancels a statement when it is interrupted', async () => {
    const child = spawn(
      join(binDir, 'psql'),
      ['-X', '-c', 'SELECT pg_sleep(60)', `postgres://app:secret@127.0.0.1:${s.proxy.port}/shop`],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    let stderr = '';
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const running = `SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid <> pg_backend_pid()`;
    await waitFor(async () => (await s.onShard(0, running)).length > 0, { what: 'the statement to run' });
    child.kill('SIGINT');
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect(stderr).toContain('canceling statement due to user request');
    expect(code).toBe(1);
    expect(await s.onShard(0, running)).toEqual([]);
  });

  it('reads what it wrote with \\copy to a file', async () => {
    await psql(s.proxy.port, `\\copy shopping.customers (id, name) TO :file\n`);
    expect(readFileSync(join(dir, 'file'), 'utf8').split('\n')).toHaveLength(21);
  });
});

/** Numbers of server processes differ, the schemas of temporary tables, which are numbered by them, and the time that \watch shows. */
function alike(text: string): string {
  return text
    .replace(/(server process with PID|"pg_temp_)\s?\d+ */g, '$1 …')
    .replace(/^\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4} (?=\(every )/gm, '… ');
}
