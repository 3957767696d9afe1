import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { withClient } from '../support/client.js';
import { SHOP_SCHEMA, Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// Queries over the rows of two shards, answered by the home shard, as one database answers them that has all rows: rows, columns, tags, errors.

const TYPES = `
CREATE SCHEMA archive;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE TYPE about AS (what regclass, n int);
CREATE TYPE spread AS RANGE (subtype = numeric);
CREATE TABLE kinds (tenant_id bigint NOT NULL, id int, gone int, n numeric, nn numeric(10, 2), ts timestamptz, tsl timestamp, d date, tm time, iv interval,
  f4 float4, f8 float8, arr int[], tarr text[], j json, jb jsonb, m mood, ms mood[], p pair, po posint, r int4range, mr spread, by bytea, bi bit(3), vb varbit,
  i inet, u uuid, c char(5), vc varchar(10), cn text COLLATE "C", rc regclass, rcf regconfig, x xml, mo money, "Grüße" text, "Mixed Case" int, tsv tsvector,
  nm name, ch "char", ab about[], g int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (tenant_id, id));
ALTER TABLE kinds DROP COLUMN gone;
CREATE TABLE archive.orders (tenant_id bigint, id bigint, note text);
CREATE TABLE "Größe" (tenant_id bigint PRIMARY KEY, "Länge" text);
CREATE TABLE parts (tenant_id bigint NOT NULL, id int NOT NULL, v text, PRIMARY KEY (tenant_id, id)) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (10) TO (20);
`;

function rowsOf(lo: number, hi: number): string {
  return `
INSERT INTO tenants SELECT i, 'tenant ' || i FROM generate_series(${lo}, ${hi}) i;
INSERT INTO orders SELECT i, j, 'note ' || ((i * 7 + j) % 13) FROM generate_series(${lo}, ${hi}) i, generate_series(1, 5) j;
INSERT INTO items SELECT i, j, k, (i * j * k) % 17 FROM generate_series(${lo}, ${hi}) i, generate_series(1, 5) j, generate_series(1, 3) k;
INSERT INTO "Größe" SELECT i, 'läng ' || i FROM generate_series(${lo}, ${hi}, 10) i;
INSERT INTO parts SELECT i, i % 20, 'v' || i FROM generate_series(${lo}, ${hi}) i;
INSERT INTO kinds SELECT ${lo}, k, k / 3.0, k * 1.005, '2024-02-29 12:00+00'::timestamptz + k * interval '1 hour', '2024-02-29 12:00', '2024-03-01'::date + k, '12:00',
  '1 day 2 hours', '1e-30', 'Infinity', ARRAY[k, NULL], ARRAY['a,b', NULL], '{"a" : 1}', '{"b":[1,2]}', (ARRAY['sad', 'ok', 'happy']::mood[])[1 + k % 3],
  ARRAY['sad']::mood[], ROW(k, 'x')::pair, k, int4range(k, k + 2), spread(1, 2), '\\x00ff', B'101', B'1', '10.0.0.1/8', '00000000-0000-0000-0000-000000000001', 'ab', 'xyz',
  'Z', 'kinds', 'english', '<a>1</a>', '12.34', 'ß€', 7, 'a b c', 'nm', 'c', '{}' FROM generate_series(1, 4) k;
INSERT INTO kinds (tenant_id, id) VALUES (${hi}, 1);
INSERT INTO "Größe" VALUES (${hi + 1000 * (lo > 100 ? 1 : -1)}, repeat('weit ', 400000));`;
}

let s: Sharded;
let whole: pg.Client;
let client: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 101 });
  await withClient(s.clusters[0].url('postgres'), (c) => c.query('CREATE DATABASE whole'));
  const url = s.clusters[0].url('whole');
  const onWhole = (sql: string) => withClient(url, (c) => c.query(sql));
  // Types have other OIDs there.
  await s.onShard(1, 'CREATE TYPE before AS ENUM (); CREATE TYPE this AS (a int); CREATE TABLE one (a int)');
  const grants = `GRANT ALL ON SCHEMA public, archive TO app; GRANT ALL ON ALL TABLES IN SCHEMA public, archive TO app`;
  await onWhole(
    `${SHOP_SCHEMA} ${TYPES} ${grants}; INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland')`,
  );
  for (const shard of [0, 1] as const) await s.onShard(shard, `${TYPES} ${grants}`);
  await s.onShard(1, 'DROP TABLE archive.orders');
  const registry = new Registry(s.catalog, 'test');
  for (const table of ['kinds', 'Größe', 'parts'])
    await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['tenant_id'] });
  const home = `INSERT INTO settings VALUES ('a', '1'), ('b', '2'); INSERT INTO archive.orders VALUES (1, 1, 'archived')`;
  for (const run of [onWhole, (sql: string) => s.onShard(0, sql)]) await run(`${home}; ${rowsOf(1, 100)}`);
  for (const run of [onWhole, (sql: string) => s.onShard(1, sql)]) await run(rowsOf(101, 200));
  await s.reloaded();
  const asApp = new URL(url);
  asApp.username = 'app';
  asApp.password = 'secret';
  whole = new pg.Client({ connectionString: asApp.href });
  await whole.connect();
  client = await s.connect();
  const all = `SELECT count(DISTINCT m) FROM kinds`;
  await waitFor(async () => (await client.query(all)).rows[0]?.count === '3', { what: 'the proxy to know the tables' });
}, 90_000);
afterAll(async () => {
  await whole?.end();
  await s?.stop();
});

interface Asked {
  readonly text: string;
  readonly values?: unknown[];
  readonly name?: string;
}

/** What a client is told; OIDs only of PostgreSQL's own types. @param sorted the order is free */
async function told(on: pg.Client, query: Asked, sorted: boolean): Promise<object> {
  try {
    const { rows, fields, command, rowCount } = await on.query({ ...query, rowMode: 'array' } as pg.QueryArrayConfig);
    const shown = rows.map((row) => JSON.stringify(row));
    return {
      rows: sorted ? shown.sort() : shown,
      fields: fields.map((f) => [
        f.name,
        f.dataTypeID < 16384 && f.dataTypeID,
        f.dataTypeModifier,
        f.columnID,
        f.format,
      ]),
      command,
      rowCount,
    };
  } catch (error) {
    const { code, message, position, severity, detail, hint } = error as pg.DatabaseError;
    // Which row it is that fails first nobody says.
    return { code, message: message.replace(/"note \d+"/, '"note"'), position, severity, detail, hint };
  }
}

async function compare(text: string, values: unknown[] = []): Promise<void> {
  const sorted = !/ORDER BY [^()]*$/.test(text);
  const asked: Asked[] = [
    { text, values },
    { text, values, name: text.slice(0, 60) },
  ];
  if (values.length === 0) asked.unshift({ text });
  for (const query of asked) {
    const expected = await told(whole, query, sorted);
    expect({ query, ...(await told(client, query, sorted)) }).toEqual({ query, ...expected });
  }
}

async function within(settings: readonly string[], use: () => Promise<void>): Promise<void> {
  for (const c of [whole, client]) for (const sql of settings) await c.query(`SET ${sql}`);
  try {
    await use();
  } finally {
    for (const c of [whole, client]) await c.query('RESET ALL');
  }
}

describe('queries', () => {
  it.each([
    'SELECT sum(id)::text, tenant_id FROM orders WHERE id > tenant_id - 100 GROUP BY tenant_id HAVING sum(id) > 3 ORDER BY sum(id), tenant_id',
    'SELECT max(tenant_id)::text AS t, note FROM orders GROUP BY note ORDER BY max(tenant_id), note LIMIT 3',
    "SELECT string_agg('a', ''), count(*) FROM orders GROUP BY tenant_id ORDER BY tenant_id",
    "SELECT string_agg('a', '') FROM orders HAVING count(*) > 0",
    'SELECT stddev(1), id FROM orders GROUP BY id ORDER BY id',
    'SELECT id FROM orders WHERE tenant_id IN (1, 150) ORDER BY tenant_id, id LIMIT 0.5 OFFSET 0.5',
    'SELECT id FROM orders WHERE tenant_id IN (1, 150) ORDER BY tenant_id, id LIMIT 1.5 OFFSET 1.5',
    'SELECT note, p2 FROM (SELECT note, id AS p2 FROM orders) o ORDER BY p2, note LIMIT 5',
    'SELECT tenant_id, id, n FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, nn FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, ts FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, tsl FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, d FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, tm FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, iv FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, f4 FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, f8 FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, arr FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, tarr FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, j FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, jb FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, m FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, ms FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, p FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, po FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, r FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, mr FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, by FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, bi FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, vb FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, i FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, u FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, c FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, vc FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, cn FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, x FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, mo FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, "Grüße" FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, "Mixed Case" FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, g FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, tsv FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, nm FROM kinds ORDER BY 1, 2',
    'SELECT tenant_id, id, ch FROM kinds ORDER BY 1, 2',
    'SELECT max("Länge"), count(*) FROM "Größe" WHERE "Länge" > \'läng 3\'',
    'SELECT count(*) FROM public.orders WHERE EXISTS (SELECT FROM archive.orders WHERE public.orders.id = archive.orders.id)',
    'SELECT count(*) FROM public.orders, archive.orders WHERE public.orders.id = archive.orders.id',
    'SELECT count(*) FROM public.orders WHERE EXISTS (SELECT FROM tenants orders WHERE public.orders.tenant_id = orders.tenant_id)',
    'WITH orders AS (SELECT * FROM public.orders WHERE id = 3) SELECT count(*) FROM orders',
    'WITH orders AS (SELECT * FROM orders WHERE id = 3) SELECT count(*) FROM orders',
    'SELECT (SELECT count(*) FROM (SELECT 5 AS id) orders WHERE public.orders.id = orders.id) FROM public.orders ORDER BY 1 DESC LIMIT 3',
    'SELECT count(*) FROM public.orders WHERE EXISTS (WITH orders AS (SELECT 5 AS id) SELECT FROM orders WHERE public.orders.id = 3)',
    'SELECT count(*) FROM tenants WHERE tenant_id < 0 AND EXISTS (SELECT FROM orders WHERE 1 / (id - 3) > 0)',
    'SELECT count(*) FROM orders WHERE false AND note::int > 3',
    'SELECT count(*) FROM public /* a */ . /* b */ orders',
    'SELECT count(*) FROM "public"."orders" AS "public"',
    'SELECT public.orders.* FROM public.orders ORDER BY public.orders.tenant_id, public.orders.id LIMIT 2',
    'SELECT * FROM orders o JOIN items USING (tenant_id) WHERE tenant_id = 5 OR tenant_id = 105 ORDER BY 1, 2, 3, 4, 5 LIMIT 5',
    'SELECT * FROM orders NATURAL JOIN tenants ORDER BY 1, 2 LIMIT 5',
    'SELECT j.name FROM (tenants t JOIN orders o USING (tenant_id)) AS j ORDER BY 1 LIMIT 3',
    "SELECT t.*, x.* FROM tenants t, LATERAL (SELECT * FROM orders o WHERE o.tenant_id = t.tenant_id AND t.name LIKE '%7' ORDER BY id DESC LIMIT 1) x ORDER BY 1",
    "SELECT '😀😀', CAST('x' || id AS int) FROM public.orders ORDER BY id",
    'SELECT tenant_id FROM orders EXCEPT SELECT tenant_id FROM items WHERE qty = 3 ORDER BY 1',
    'WITH RECURSIVE r AS (SELECT tenant_id, id FROM orders WHERE id = 1 UNION SELECT o.tenant_id, o.id FROM orders o JOIN r ON r.tenant_id = o.tenant_id - 1 AND o.id = r.id + 1) SELECT count(*), max(id) FROM r',
    'SELECT DISTINCT ON (note) note, tenant_id FROM orders ORDER BY note, tenant_id DESC',
    'SELECT note, grouping(note), count(*) FROM orders GROUP BY ROLLUP (note) ORDER BY 1',
    'SELECT o.*, count(*) FROM orders o JOIN items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id GROUP BY o.tenant_id, o.id ORDER BY 1, 2 LIMIT 3',
    "SELECT t.name, (SELECT count(*) FROM orders o WHERE o.tenant_id = t.tenant_id AND o.note > 'note 4') FROM tenants t ORDER BY 2 DESC, 1 LIMIT 3",
    ';SELECT count(*) FROM orders;;',
    "SELECT count(*) FROM kinds WHERE d = 'today' OR ts < now()",
    'SELECT mode() WITHIN GROUP (ORDER BY note), percentile_cont(0.5) WITHIN GROUP (ORDER BY qty) FROM orders, items WHERE items.tenant_id = 3',
    'SELECT xmlagg(x), json_agg(jb ORDER BY id) FROM kinds WHERE tenant_id = 1 OR tenant_id = 101',
    'SELECT * FROM (VALUES (1), (2)) v(a) JOIN orders ON id = a ORDER BY tenant_id, id LIMIT 3',
    'SELECT note FROM orders GROUP BY 1 HAVING count(*) > (SELECT avg(n) FROM (SELECT count(*) n FROM orders GROUP BY note) y) ORDER BY 1',
    'SELECT count(* FROM orders',
    'SELECT sum(note) FROM orders',
    'SELECT count(*) FROM orders WHERE note',
    'SELECT (SELECT note FROM orders ORDER BY 1)',
    'SELECT name FROM tenants WHERE name = (SELECT note FROM orders)',
    'SELECT nope.a FROM orders ORDER BY 1',
    'SELECT count(*) FROM orders LIMIT -1',
    'SELECT count(*) FROM orders ORDER BY 2',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id LIMIT 2.5 OFFSET 1.5',
    'SELECT tenant_id, id FROM orders WHERE tenant_id > 100 OR id > 0 ORDER BY tenant_id DESC, id LIMIT 0.5 OFFSET 0.5',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id LIMIT NULL OFFSET 990',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id LIMIT 3 OFFSET NULL',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id LIMIT 9223372036854775807 OFFSET 998',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id LIMIT -1',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id OFFSET -1',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id LIMIT 1 OFFSET -1',
    'SELECT tenant_id, id FROM orders ORDER BY tenant_id, id FETCH FIRST 3 ROWS ONLY',
    'SELECT note FROM orders ORDER BY note FETCH FIRST 1 ROWS WITH TIES',
    'SELECT avg(qty), sum(qty), avg(n::numeric), avg(qty::int8), avg(qty::float8), min(qty), max(n), count(qty), count(*) FILTER (WHERE qty > 3) FROM items',
    'SELECT avg(n), sum(n), avg(nn), sum(nn), max(n), min(nn) FROM kinds',
    'SELECT avg(n), sum(n) FROM kinds WHERE id > 100',
    "SELECT avg(n)+1, round(avg(nn), 2), sum(id)::text || 'x' FROM kinds GROUP BY id % 2 ORDER BY 1",
    'SELECT max(ts), min(d), max(tm), max(iv), max(m), min(c), max(vc), max(cn), max(i), min(arr), max(mo), max(f8), min(f4) FROM kinds',
    'SELECT sum(iv), avg(iv), sum(mo), sum(f4), avg(f8), bit_and(id), bool_or(id > 3), every(id > 0), max(tarr), bit_or(bi) FROM kinds',
    'SELECT max(ms), max(u::text), max(r), max(by) FROM kinds',
    'SELECT max(p) FROM kinds',
    'SELECT m, count(*) FROM kinds GROUP BY m ORDER BY m DESC NULLS LAST',
    'SELECT ms, count(*) FROM kinds GROUP BY ms',
    'SELECT c, vc, n::numeric(10,1), count(*) FROM kinds GROUP BY 1, 2, 3 ORDER BY 3',
    'SELECT c || vc, max(c || vc) FROM kinds GROUP BY 1 ORDER BY 1',
    'SELECT cn || vc, count(*) FROM kinds GROUP BY 1 ORDER BY 1',
    'SELECT note AS id, count(*) FROM orders GROUP BY id ORDER BY 2, 1',
    'SELECT note AS id, count(*) FROM orders GROUP BY note ORDER BY id',
    'SELECT id AS note FROM orders ORDER BY note LIMIT 3',
    'SELECT id % 3 AS x, count(*) FROM orders GROUP BY x HAVING count(*) > 1 ORDER BY x',
    'SELECT 1 + id % 3 AS x, sum(id % 3) FROM orders GROUP BY id % 3 ORDER BY 1',
    'SELECT count(*) FROM orders HAVING count(*) > 5',
    'SELECT count(*) FROM orders HAVING false',
    'SELECT 1 FROM orders HAVING true',
    'SELECT 1 FROM orders GROUP BY note',
    'SELECT DISTINCT count(*) FROM orders GROUP BY note ORDER BY 1',
    'SELECT DISTINCT note, 1 FROM orders ORDER BY note LIMIT 3',
    'SELECT DISTINCT lower(note) FROM orders ORDER BY 1 LIMIT 3',
    'SELECT DISTINCT ON (id) id, tenant_id FROM orders ORDER BY id, tenant_id DESC LIMIT 3',
    "SELECT t.name, count(o.id) FROM tenants t LEFT JOIN orders o ON o.tenant_id = t.tenant_id AND o.note = 'note 2' GROUP BY t.name ORDER BY 2 DESC, 1 LIMIT 4",
    "SELECT t.name, count(o.id) FROM orders o RIGHT JOIN tenants t ON o.tenant_id = t.tenant_id AND o.note = 'note 2' GROUP BY t.name ORDER BY 2 DESC, 1 LIMIT 4",
    'SELECT count(*), count(t.name), count(o.note) FROM orders o FULL JOIN tenants t ON o.tenant_id = t.tenant_id AND o.id = 9',
    'SELECT count(*), count(t.name), count(o.note) FROM orders o FULL JOIN tenants t USING (tenant_id)',
    'SELECT tenant_id, count(*) FROM orders o FULL JOIN tenants t USING (tenant_id) GROUP BY tenant_id ORDER BY 2, 1 LIMIT 3',
    "SELECT c.name, count(o.id) FROM countries c LEFT JOIN orders o ON o.note = 'note 1' AND c.code = 'at' GROUP BY 1 ORDER BY 1",
    "SELECT c.name, count(o.id) FROM orders o LEFT JOIN countries c ON o.note = 'note 1' AND c.code = 'at' GROUP BY 1 ORDER BY 1",
    'SELECT count(*) FROM orders -- c',
    'SELECT count(*) FROM orders WHERE id > 2 -- c',
    "SELECT count(*) /* from x */ FROM /* where */ orders WHERE note <> 'where' /* group by */",
    'SELECT extract(year FROM max(ts)), max(ts IS DISTINCT FROM NULL) FROM kinds',
    'SELECT max(ts)::date, ts::date, count(*) FROM kinds GROUP BY 2 ORDER BY 2',
    'SELECT id, tenant_id FROM orders ORDER BY id DESC, tenant_id LIMIT 3',
    'SELECT tenant_id FROM orders ORDER BY note, tenant_id, id LIMIT 3',
    'SELECT * FROM orders ORDER BY 3, 2, 1 LIMIT 4 OFFSET 2',
    'SELECT o.*, i.qty FROM orders o JOIN items i ON i.tenant_id = o.tenant_id AND i.order_id = o.id ORDER BY i.qty DESC, o.tenant_id, o.id, i.n LIMIT 4',
    'SELECT "Länge", count(*) FROM "Größe" GROUP BY 1 ORDER BY 1 LIMIT 3',
    'SELECT m FROM kinds ORDER BY m, tenant_id, id LIMIT 3',
    'SELECT ms FROM kinds ORDER BY tenant_id, id LIMIT 3',
    'SELECT id FROM kinds ORDER BY m::text COLLATE "C", tenant_id, id LIMIT 3',
    'SELECT cn, max(cn) FROM kinds GROUP BY cn ORDER BY cn LIMIT 3',
    'SELECT sum(9223372036854775807), count(*) FROM orders WHERE id < 0',
    'SELECT sum(id + 2147483647) FROM orders',
    'SELECT 1/(count(*) - 1000) FROM orders',
    'SELECT sum(1/(id-3)) FROM orders',
    'SELECT count(*) FROM orders WHERE 1/(id-3) > 0',
    'SELECT max(note), random() < 2 FROM orders GROUP BY random() < 2',
    'SELECT now() - now(), count(*) FROM orders GROUP BY 1',
    'SELECT count(*) AS "count", sum(id) "order" FROM orders ORDER BY "order"',
    'SELECT avg(tenant_id) FROM orders WHERE tenant_id IN (3, 150)',
    'SELECT tenant_id, avg(qty) FROM items WHERE tenant_id IN (3, 150) GROUP BY tenant_id ORDER BY avg(qty) DESC',
    "SELECT count(*) FROM orders o, items i WHERE o.tenant_id = i.tenant_id AND o.tenant_id = ANY('{3,150}')",
    'SELECT count(*) FROM orders o, items i WHERE o.tenant_id = 3 AND i.tenant_id = 150',
    'SELECT count(*) FROM orders o, items i WHERE o.tenant_id IN (3, 150) AND i.tenant_id = 150',
    'SELECT count(*) FROM orders o WHERE o.tenant_id IN (3, 150) OR EXISTS (SELECT FROM items WHERE tenant_id = 7)',
    'SELECT count(*) FROM orders WHERE tenant_id = NULL OR tenant_id IN (1, 150)',
    'SELECT max(g), sum(g) FROM kinds',
    'SELECT id FROM orders GROUP BY id ORDER BY count(*) DESC, id',
    'SELECT note, id FROM orders GROUP BY note, id HAVING min(tenant_id) > 2 ORDER BY 1, 2 LIMIT 4',
    'WITH never AS (SELECT * FROM orders WHERE 1 / (id - 3) > 0) SELECT count(*) FROM tenants',
    'SELECT count(*) FROM tenants WHERE CASE WHEN false THEN EXISTS (SELECT FROM orders WHERE 1 / (id - 3) > 0) ELSE true END',
    'SELECT count(*) FROM (SELECT * FROM orders WHERE 1 / (id - 3) > 0 LIMIT 0) x',
    'SELECT count(*) FROM orders WHERE note::int > 3',
    'SELECT note::int FROM orders ORDER BY 1 LIMIT 3',
    'SELECT count(*), max(v) FROM parts',
    'SELECT count(*), max(v) FROM parts_high WHERE id <> 12',
    'SELECT l.v, h.v FROM parts_low l JOIN parts_high h ON h.tenant_id = l.tenant_id + 10 ORDER BY 1, 2 LIMIT 3',
    'SELECT length("Länge"), md5("Länge"), row_number() OVER (ORDER BY tenant_id) FROM "Größe" ORDER BY 1 DESC, 3 LIMIT 3',
    'SELECT "Länge" FROM "Größe" ORDER BY length("Länge") DESC, 1 LIMIT 2',
    "SELECT max(current_setting('my.own', true)), max(current_setting('DateStyle')) FROM orders",
  ])('%s', (sql) => compare(sql));
});

it('a Query has no parameters', async () => {
  const query = { text: 'SELECT count(*) FROM orders WHERE id = $1' };
  expect(await told(client, query, false)).toEqual(await told(whole, query, false));
});

describe('queries with parameters', () => {
  it.each<[string, unknown[]]>([
    ['SELECT count(*) FROM kinds WHERE m = $1', ['sad']],
    ['SELECT count(*) FROM kinds WHERE m = ANY($1::mood[])', ['{sad,ok}']],
    ['SELECT m, count(*) FROM kinds WHERE po > $1 AND by = $2 GROUP BY 1 ORDER BY 1', [1, Buffer.from([0, 255])]],
    ['SELECT $1, count(*) FROM orders', ['x']],
    ['SELECT $1::text, count(*) FROM orders WHERE tenant_id = ANY($2)', ['x', [1, 150]]],
    ['SELECT count(*) FROM orders WHERE tenant_id = $1 OR id = $2', [null, '3']],
    ['SELECT count(*) FROM orders WHERE id = $1 LIMIT $2', ['x', 3]],
    ['SELECT count(*) FROM orders WHERE id = $1 LIMIT $2', ['1', -3]],
    ['SELECT note FROM orders ORDER BY note LIMIT $1', [2]],
    ['SELECT note, count(*) FROM orders WHERE id > $1 GROUP BY 1 ORDER BY 1 LIMIT $2 OFFSET $3', [2, 3, 1]],
    ['SELECT note || $1, count(*) FROM orders GROUP BY note || $1 ORDER BY 1 LIMIT 2', ['x']],
    [
      'SELECT tenant_id FROM orders WHERE note = $1 ORDER BY tenant_id DESC, id LIMIT $2 OFFSET $3',
      ['note 3', 3, null],
    ],
    ['SELECT m, count(*) FROM kinds WHERE m > $1 GROUP BY 1 ORDER BY 1', ['sad']],
    ['SELECT $1::int + sum(id), max(note) FROM orders WHERE id <> $1', [5]],
  ])('%s %j', (sql, values) => compare(sql, values));
});

describe('queries with settings', () => {
  it.each<[string[], string]>([
    [["client_encoding = 'LATIN1'"], "SELECT count(*) FROM kinds WHERE nm = 'nm'"],
    [["client_encoding = 'LATIN1'"], 'SELECT count(*) FROM kinds'],
    [["client_encoding = 'LATIN1'"], 'SELECT max(note) FROM orders'],
    [
      ["DateStyle = 'German'", "TimeZone='Asia/Kolkata'"],
      'SELECT ts, d, tsl, count(*) FROM kinds GROUP BY 1, 2, 3 ORDER BY 1',
    ],
    [
      ["DateStyle = 'German'", "TimeZone='Asia/Kolkata'"],
      "SELECT count(*) FROM kinds WHERE ts > '29.02.2024 20:00' AND ts::date = '01.03.2024'",
    ],
    [["IntervalStyle = 'iso_8601'"], 'SELECT iv, count(*) FROM kinds GROUP BY 1'],
    [['standard_conforming_strings = off'], "SELECT count(*), 'a\\'b' FROM orders WHERE note <> 'x\\'y'"],
    [['standard_conforming_strings = off'], "SELECT count(*) FROM public.orders WHERE note <> 'x\\\\y'"],
    [['default_transaction_read_only = on'], 'SELECT count(*) FROM orders'],
    [['idle_in_transaction_session_timeout = 1'], 'SELECT count(*) FROM orders, items WHERE items.tenant_id = 7'],
    [["TimeZone='Asia/Kolkata'"], "SELECT date_trunc('day', ts), count(*) FROM kinds GROUP BY 1 ORDER BY 1"],
    [
      ['standard_conforming_strings = off'],
      "SELECT note || 'x\\'y', count(*) FROM orders WHERE note <> 'x\\'y' GROUP BY 1 ORDER BY 1",
    ],
  ])('%j: %s', (settings, sql) => within(settings, () => compare(sql)));
});

describe('what would tell that these are other tables is refused', () => {
  it.each([
    [
      'SELECT tenant_id, id, ab FROM kinds ORDER BY 1, 2',
      'a column that the query uses has a type whose values cannot be passed from shard to shard',
    ],
    [
      'SELECT tenant_id, id, rc FROM kinds ORDER BY 1, 2',
      'a column that the query uses has a type whose values cannot be passed from shard to shard',
    ],
    [
      'SELECT tenant_id, id, rcf FROM kinds ORDER BY 1, 2',
      'a column that the query uses has a type whose values cannot be passed from shard to shard',
    ],
    [
      'SELECT * FROM kinds ORDER BY tenant_id, id',
      'a column that the query uses has a type whose values cannot be passed from shard to shard',
    ],
    [
      "SELECT count(*), current_setting('transaction_isolation'), current_setting('transaction_read_only') FROM orders",
      'function current_setting() in a query over several shards is not supported',
    ],
    [
      'SELECT count(*), current_schemas(true) FROM orders',
      'function current_schemas() in a query over several shards is not supported',
    ],
    [
      'SELECT count(*), pg_my_temp_schema() FROM orders',
      'function pg_my_temp_schema() cannot be used in a query over several shards',
    ],
    [
      'SELECT sum(pg_column_size(note)) FROM orders',
      'function pg_column_size() in a query over several shards is not supported',
    ],
    [
      'SELECT count(*), txid_current_if_assigned() IS NULL FROM orders',
      'function txid_current_if_assigned() in a query over several shards is not supported',
    ],
    [
      'SELECT o FROM orders o ORDER BY 1',
      'the whole row "o" as a value in a query over several shards is not supported',
    ],
    ['SELECT count(o) FROM orders o', 'the whole row "o" as a value in a query over several shards is not supported'],
    [
      'SELECT row_to_json(o) FROM orders o ORDER BY o.id LIMIT 1',
      'the whole row "o" as a value in a query over several shards is not supported',
    ],
    [
      'SELECT count(*) FROM orders o WHERE o IS NOT NULL',
      'the whole row "o" as a value in a query over several shards is not supported',
    ],
    [
      'SELECT (o).note FROM orders o ORDER BY 1 LIMIT 1',
      'the whole row "o" as a value in a query over several shards is not supported',
    ],
    [
      'SELECT tableoid::regclass, count(*) FROM orders GROUP BY 1',
      'the type regclass in a query over several shards is not supported',
    ],
    ['SELECT max(ctid) FROM orders', 'the system column ctid in a query over several shards is not supported'],
    [
      "SELECT 'orders'::regclass, count(*) FROM orders",
      'the type regclass in a query over several shards is not supported',
    ],
    [
      "SELECT to_regclass('orders'), count(*) FROM orders",
      'function to_regclass() cannot be used in a query over several shards',
    ],
    [
      "SELECT count(*), pg_relation_size('orders') FROM orders",
      'function pg_relation_size() may read or change anything, so it cannot be used while data is on several shards',
    ],
    [
      "SELECT c.relname, count(*) FROM pg_class c, orders WHERE c.relname = 'orders' GROUP BY 1",
      'system catalogs cannot be read together with rows of several shards',
    ],
    [
      'SELECT * FROM orders ORDER BY id FOR UPDATE',
      'FOR UPDATE or FOR SHARE in a query over several shards is not supported',
    ],
    [
      'SELECT count(*) FROM (SELECT * FROM orders FOR UPDATE) x',
      'FOR UPDATE or FOR SHARE in a query over several shards is not supported',
    ],
    [
      'SELECT count(*) INTO zz FROM orders',
      'SELECT from sharded tables is not supported while data is on several shards',
    ],
    [
      'CREATE TABLE zz AS SELECT count(*) FROM orders',
      'CREATE TABLE AS from sharded tables is not supported while data is on several shards',
    ],
    ['COPY (SELECT count(*) FROM orders) TO STDOUT', 'COPY of a query over several shards is not supported yet'],
    ['EXPLAIN SELECT count(*) FROM orders', 'EXPLAIN over several shards is not supported yet'],
    ['DECLARE zz CURSOR FOR SELECT count(*) FROM orders', 'a cursor over several shards is not supported yet'],
    [
      "INSERT INTO settings SELECT 'n' || count(*), 'x' FROM orders",
      'INSERT does not say which tenant_id of "orders" it is about, and data is on several shards',
    ],
    [
      'SELECT count(*), pg_advisory_xact_lock(1) FROM orders',
      'function pg_advisory_xact_lock() cannot run on several shards',
    ],
    ['SELECT count(*) FROM ONLY orders', 'ONLY in a query over several shards is not supported'],
    ['SELECT count(*) FROM orders TABLESAMPLE SYSTEM (100)', 'TABLESAMPLE over several shards is not supported'],
    [
      'SELECT count(*) FROM orders; SELECT 1',
      'a statement for several shards must be sent alone, not with others in one batch',
    ],
    [
      'SELECT lower(name), unknown_function(name) FROM tenants ORDER BY 1',
      'function unknown_function() may read or change anything, so it cannot be used while data is on several shards',
    ],
    [
      'SELECT rc, count(*) FROM kinds GROUP BY 1',
      'a column that the query uses has a type whose values cannot be passed from shard to shard',
    ],
  ])('%s: %s', async (text, message) => {
    for (const query of [{ text }, { text, values: [] }])
      await expect(client.query(query)).rejects.toMatchObject({ code: '0A000', message });
  });

  it('a table that a temporary one would hide', async () => {
    await client.query('SET search_path = archive, public');
    const message = 'another table of the name "orders" in a query over several shards is not supported';
    for (const sql of [
      'SELECT count(*) FROM public.orders o JOIN orders a ON a.id = o.id',
      'SELECT count(*) FROM public.orders WHERE EXISTS (SELECT FROM orders WHERE public.orders.id = archive.orders.id)',
    ])
      await expect(client.query(sql)).rejects.toMatchObject({ code: '0A000', message });
    await client.query('RESET search_path');
  });
});

describe('a user who may not do all', () => {
  const everywhere = async (sql: string) => {
    for (const shard of [0, 1] as const) await s.onShard(shard, sql);
    await withClient(s.clusters[0].url('whole'), (c) => c.query(sql));
  };

  it('sees the rows that policies let them see', async () => {
    await everywhere(
      `ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY seen ON items USING (qty > current_setting('my.least')::int)`,
    );
    try {
      await within(['my.least = 5'], async () => {
        await compare('SELECT count(*), min(qty), count(DISTINCT qty) FROM items');
        await compare(
          'SELECT o.note, count(i.qty) FROM orders o LEFT JOIN items i ON i.qty = o.id GROUP BY 1 ORDER BY 1',
        );
      });
    } finally {
      await everywhere('DROP POLICY seen ON items; ALTER TABLE items DISABLE ROW LEVEL SECURITY');
    }
  });

  it('reads the columns that they may read', async () => {
    await everywhere('REVOKE ALL ON tenants, orders FROM app; GRANT SELECT (tenant_id, id) ON orders TO app');
    try {
      for (const sql of [
        'SELECT count(DISTINCT id), max(tenant_id) FROM orders',
        'SELECT id, row_number() OVER (ORDER BY tenant_id, id) FROM orders ORDER BY 2 LIMIT 3',
        'SELECT max(note) FROM orders',
        'SELECT count(DISTINCT note) FROM orders',
        'SELECT * FROM orders ORDER BY 1, 2, 3',
        'SELECT count(*) FROM tenants',
        'SELECT count(DISTINCT name) FROM tenants',
      ])
        await compare(sql);
    } finally {
      await everywhere('GRANT ALL ON tenants, orders TO app');
    }
  });

  it('needs TEMPORARY on the home shard, and is told so', async () => {
    await s.onShard(0, 'REVOKE TEMPORARY ON DATABASE shop FROM PUBLIC');
    try {
      for (const sql of ['SELECT count(*) FROM orders', 'SELECT count(DISTINCT note) FROM orders'])
        await expect(client.query(sql)).rejects.toMatchObject({
          code: '42501',
          hint: expect.stringContaining('GRANT TEMPORARY ON DATABASE'),
        });
    } finally {
      await s.onShard(0, 'GRANT TEMPORARY ON DATABASE shop TO PUBLIC');
    }
    await compare('SELECT count(DISTINCT note) FROM orders');
  });
});
