import fc from 'fast-check';
import { loadModule } from 'libpg-query';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadMetadata, type Metadata } from '../../../proxy/router/metadata.js';
import { Router } from '../../../proxy/router/router.js';
import { startTestCluster } from '../../support/cluster.js';
import { spreadTopology } from './setting.js';

let pool: pg.Pool;
let metadata: Metadata;
let router: Router;
/** Every function of the server that is volatile. */
let volatile: string[];

beforeAll(async () => {
  await loadModule();
  const cluster = await startTestCluster();
  pool = new pg.Pool({ connectionString: cluster.url() });
  pool.on('error', () => undefined);
  await pool.query(`
    CREATE TABLE plain (a int, b text);
    CREATE TABLE limited (a int);
    ALTER TABLE limited ENABLE ROW LEVEL SECURITY;
    CREATE TABLE parent (a int) PARTITION BY RANGE (a);
    CREATE TABLE child PARTITION OF parent DEFAULT;
    CREATE SEQUENCE numbers;
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE FUNCTION twice(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1 * 2;
    CREATE FUNCTION looks(int) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM plain WHERE a = $1';
    CREATE FUNCTION rows_of(int) RETURNS SETOF plain STABLE LANGUAGE sql AS 'SELECT * FROM plain WHERE a = $1';
    CREATE FUNCTION acts(int) RETURNS int VOLATILE LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION lies(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''numbers''); RETURN $1; END';
    CREATE FUNCTION lies_by_another(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT lies($1)';
    CREATE FUNCTION locks(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT pg_advisory_lock($1); SELECT $1';
    CREATE FUNCTION sets(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT set_config(''a.b'', ''c'', true); SELECT $1';
    CREATE FUNCTION dynamic(text) RETURNS int STABLE LANGUAGE plpgsql AS 'DECLARE n int; BEGIN EXECUTE $1 INTO n; RETURN n; END';
    CREATE FUNCTION twice_or_acts(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;
    CREATE FUNCTION twice_or_acts(text) RETURNS int VOLATILE LANGUAGE sql RETURN 1;
    CREATE FUNCTION of_row(plain) RETURNS int VOLATILE LANGUAGE sql RETURN 1;
    CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
    CREATE OPERATOR ### (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl);
    CREATE FUNCTION op(int, text) RETURNS int VOLATILE LANGUAGE sql RETURN $1;
    CREATE OPERATOR @@@@ (LEFTARG = int, RIGHTARG = text, FUNCTION = op);
    CREATE POLICY p ON limited USING (acts(a) = a);
    CREATE VIEW view_of_plain AS SELECT a, upper(b) AS u, twice(a) FROM plain;
    CREATE VIEW view_of_view AS SELECT * FROM view_of_plain;
    CREATE VIEW view_that_draws AS SELECT nextval('numbers') AS n;
    CREATE VIEW view_with_own_function AS SELECT acts(a) FROM plain;
    CREATE VIEW view_of_limited AS SELECT * FROM limited;
    CREATE VIEW view_of_setting AS SELECT current_setting('work_mem') FROM plain;
    CREATE FUNCTION tells_setting() RETURNS text STABLE LANGUAGE sql AS 'SELECT current_setting(''work_mem'')';
    CREATE VIEW view_of_operator AS SELECT a @@@@ b AS x FROM plain;
    CREATE MATERIALIZED VIEW kept AS SELECT a FROM plain;
    CREATE EXTENSION IF NOT EXISTS file_fdw;
    CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
    CREATE FOREIGN TABLE far (a text) SERVER files OPTIONS (filename '/dev/null');
    CREATE SCHEMA app; CREATE TABLE app.plain (z int);
  `);
  metadata = await loadMetadata(pool);
  const topology = spreadTopology();
  router = new Router({ topology: () => topology, metadata: () => metadata });
  const { rows } = await pool.query<{ name: string }>(
    `SELECT DISTINCT proname AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
     WHERE provolatile = 'v' AND prokind = 'f' AND nspname IN ('pg_catalog', 'public')`,
  );
  volatile = rows.map((r) => r.name);
});

afterAll(() => pool.end());

function isSafe(sql: string, searchPath: readonly string[] = ['public']): boolean {
  const { statements, syntaxError } = router.analyze(Buffer.from(sql), { searchPath, user: 'app' });
  expect(syntaxError, sql).toBe(false);
  return statements.length === 1 && statements[0]?.plan.laneSafe === true;
}

describe('what may share a server connection', () => {
  it.each([
    'SELECT 1',
    'SELECT $1::int + 2',
    'SELECT a, b FROM plain WHERE a = 5',
    'SELECT * FROM plain p JOIN app.plain q ON p.a = q.z ORDER BY 1 LIMIT 3',
    'SELECT count(*), max(a) FILTER (WHERE a > 1) FROM plain GROUP BY b HAVING sum(a) > 1',
    'SELECT sum(a) OVER (PARTITION BY b ORDER BY a) FROM plain',
    'WITH x AS (SELECT a FROM plain) SELECT * FROM x WHERE a IN (SELECT z FROM app.plain)',
    'WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t',
    'SELECT * FROM parent',
    'SELECT * FROM view_of_plain',
    'SELECT * FROM view_of_view',
    'SELECT * FROM kept',
    'SELECT twice(a), public.twice(2) FROM plain',
    'SELECT looks(1)',
    'SELECT * FROM rows_of(1)',
    'SELECT 1 ### 2',
    'SELECT random(), clock_timestamp(), gen_random_uuid(), now(), current_date',
    `SELECT '5'::numeric, CAST('a' AS varchar(3)), ARRAY[1,2]::int8[], date_trunc('day', now())`,
    'SELECT CASE WHEN a > 1 THEN coalesce(b, upper(b)) END FROM plain',
    `SELECT '{"a":1}'::jsonb ->> 'a', jsonb_build_object('a', a), string_agg(b, ',' ORDER BY a) FROM plain GROUP BY a`,
    'SELECT * FROM generate_series(1, 3) AS g(n)',
    'VALUES (1), (2)',
    'TABLE plain',
    'SELECT * FROM orders WHERE tenant_id = 5',
    'SELECT p.a, (p).b FROM plain p',
  ])('takes %s', async (sql) => {
    if (sql.includes('orders')) {
      await pool.query('CREATE TABLE IF NOT EXISTS orders (tenant_id bigint)');
      metadata = await loadMetadata(pool);
    }
    expect(isSafe(sql)).toBe(true);
  });

  it.each([
    'SELECT 1; SELECT 2',
    'SELECT * FROM plain FOR UPDATE',
    'SELECT * FROM (SELECT * FROM plain FOR SHARE) x',
    'SELECT a INTO other FROM plain',
    'WITH x AS (DELETE FROM plain RETURNING a) SELECT * FROM x',
    `SELECT nextval('numbers')`,
    `SELECT currval('numbers')`,
    'SELECT lastval()',
    'SELECT * FROM numbers',
    `SELECT set_config('a.b', 'c', false)`,
    'SELECT setseed(0.5)',
    `SELECT current_setting('work_mem')`,
    'SELECT * FROM view_of_setting',
    'SELECT tells_setting()',
    'SELECT * FROM pg_show_all_settings()',
    'SELECT * FROM pg_settings',
    `SELECT table_to_xml('plain', true, true, '')`,
    `SELECT schema_to_xml('pg_catalog', true, true, '')`,
    'SELECT pg_backend_pid()',
    'SELECT 1 FROM plain WHERE a = pg_backend_pid()',
    'SELECT pg_sleep(0)',
    'SELECT pg_catalog.pg_sleep(0)',
    'SELECT pg_advisory_lock(1)',
    'SELECT pg_try_advisory_xact_lock(1)',
    `SELECT pg_notify('a', 'b')`,
    'SELECT pg_current_xact_id()',
    'SELECT txid_current()',
    `SELECT query_to_xml('SELECT 1', true, true, '')`,
    `SELECT * FROM dblink('', 'SELECT 1') AS t(a int)`,
    `SELECT lo_get(1)`,
    'SELECT acts(1)',
    'SELECT public.acts(1)',
    'SELECT twice_or_acts(1)',
    'SELECT lies(1)',
    'SELECT lies_by_another(1)',
    'SELECT locks(1)',
    'SELECT sets(1)',
    `SELECT dynamic('SELECT 1')`,
    'SELECT total(a) FROM plain',
    'SELECT p.of_row FROM plain p',
    'SELECT (p).of_row FROM plain p',
    'SELECT not_there(1)',
    'SELECT app.twice(1)',
    `SELECT 1 @@@@ 'a'`,
    'SELECT * FROM plain ORDER BY a USING @@@@',
    'SELECT 1::positive',
    `SELECT '(1,a)'::plain`,
    'SELECT * FROM limited',
    'SELECT * FROM view_that_draws',
    'SELECT * FROM view_with_own_function',
    'SELECT * FROM view_of_limited',
    'SELECT * FROM view_of_operator',
    'SELECT * FROM far',
    'SELECT * FROM not_there',
    'SELECT * FROM pg_stat_activity',
    'SELECT * FROM pg_prepared_statements',
    'SELECT * FROM information_schema.tables',
    'SELECT * FROM pg_temp.plain',
    'SELECT * FROM plain TABLESAMPLE system (10)',
    'SHOW search_path',
    'EXPLAIN SELECT 1',
    'EXPLAIN ANALYZE SELECT 1',
    'COPY plain TO STDOUT',
    'FETCH 1 FROM c',
    'DECLARE c CURSOR FOR SELECT 1',
    'INSERT INTO plain VALUES (1)',
    'BEGIN',
    'PREPARE x AS SELECT 1',
  ])('leaves out %s', (sql) => {
    expect(isSafe(sql)).toBe(false);
  });

  it('leaves out everything where names mean the user’s own before PostgreSQL’s', () => {
    expect(isSafe('SELECT 1', ['public', 'pg_catalog'])).toBe(false);
    expect(isSafe('SELECT 1', ['pg_catalog', 'public'])).toBe(true);
  });

  it('leaves out everything while a cast runs a volatile function, or an operator that nobody writes is one', async () => {
    await pool.query(`
      CREATE TYPE pair AS (a int, b int);
      CREATE FUNCTION of_pair(pair) RETURNS text VOLATILE LANGUAGE sql RETURN 'x';
      CREATE CAST (pair AS text) WITH FUNCTION of_pair(pair) AS IMPLICIT`);
    metadata = await loadMetadata(pool);
    expect(isSafe('SELECT 1')).toBe(false);
    await pool.query(`
      DROP CAST (pair AS text);
      CREATE FUNCTION same(pair, pair) RETURNS bool VOLATILE LANGUAGE sql RETURN true;
      CREATE OPERATOR = (LEFTARG = pair, RIGHTARG = pair, FUNCTION = same)`);
    metadata = await loadMetadata(pool);
    expect(isSafe('SELECT 1')).toBe(false);
    await pool.query('DROP OPERATOR = (pair, pair)');
    metadata = await loadMetadata(pool);
    expect(isSafe('SELECT 1')).toBe(true);
  });

  it('lets no volatile function in but those it knows to be harmless', () => {
    const harmless =
      /^(array_sample|array_shuffle|clock_timestamp|gen_random_uuid|random|random_normal|timeofday|uuidv[47])$/;
    const dangerous = volatile.filter((name) => !harmless.test(name) && /^[a-z_0-9]+$/.test(name));
    expect(dangerous.length).toBeGreaterThan(100);
    const shape = fc.constantFrom(
      (call: string) => `SELECT ${call}`,
      (call: string) => `SELECT * FROM ${call} AS f`,
      (call: string) => `SELECT a FROM plain WHERE a IS NOT NULL OR ${call} IS NULL`,
      (call: string) => `WITH x AS (SELECT ${call} AS y) SELECT y FROM x`,
      (call: string) => `SELECT a FROM plain ORDER BY upper(b), ${call}`,
      (call: string) => `SELECT CASE WHEN a = 1 THEN (SELECT ${call}) END FROM plain`,
      (call: string) => `SELECT count(*) FILTER (WHERE ${call} IS NULL) FROM plain LIMIT (SELECT 5)`,
      (call: string) => `VALUES (ARRAY[${call}])`,
      (call: string) => `SELECT 1 UNION ALL (SELECT 2 FROM plain LEFT JOIN kept ON ${call} IS NULL)`,
    );
    const args = fc.constantFrom('', '1', `'a'`, `'a', 1`, '$1, $2', 'VARIADIC ARRAY[1]');
    const qualified = fc.constantFrom('', 'pg_catalog.', 'public.');
    fc.assert(
      fc.property(fc.constantFrom(...dangerous), shape, args, qualified, (name, make, list, schema) => {
        expect(isSafe(make(`${schema}${name}(${list})`))).toBe(false);
      }),
      { numRuns: 3000 },
    );
  });
});
