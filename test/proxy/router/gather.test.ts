import { loadModule, type Node, parseSync } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { strings } from '../../../proxy/router/ast.js';
import { expressionText } from '../../../proxy/router/expression-text.js';
import { fetches } from '../../../proxy/router/gather-program.js';
import type { Reduction } from '../../../proxy/router/reduction.js';
import type { ShardName } from '../../../topology/topology.js';
import { makeRouter, SESSION, spreadTopology } from './setting.js';

beforeAll(() => loadModule());

const topology = spreadTopology();
const router = makeRouter(() => topology);

function programOf(sql: string, session = SESSION) {
  const analyzed = router.analyze(Buffer.from(sql), session);
  const route = router.route(analyzed, 0, null, topology);
  expect(route.kind, `${sql}: ${JSON.stringify(route, (_, v) => (typeof v === 'bigint' ? String(v) : v))}`).toBe(
    'gather',
  );
  const program = router.gatherProgram(analyzed, route.kind === 'gather' ? route.shards : []);
  if (program === null) throw new Error(`no program for ${sql}`);
  return program;
}

const INT8 = 20;
const NUMERIC = 1700;
const FLOAT8 = 701;

describe('the rows that shards send', () => {
  const sent = (sql: string) =>
    programOf(sql).tables.map(
      ({ table, columns, filter }) => `${table}(${columns.join(' ')})${filter === null ? '' : ` ${filter}`}`,
    );

  it.each([
    // Columns that are named anywhere, and the key's.
    [
      'SELECT note FROM orders WHERE id IN (SELECT order_id FROM items)',
      ['orders(tenant_id id note)', 'items(tenant_id order_id)'],
    ],
    [
      'SELECT o.* FROM orders o WHERE EXISTS (SELECT FROM items i WHERE i.qty = o.id)',
      ['orders(tenant_id id note total country placed_at)', 'items(tenant_id qty)'],
    ],
    // A name says whose column it is; without one, it may be anybody's.
    [
      'SELECT o.note, i.tenant_id, country FROM orders o, items i',
      ['orders(tenant_id note country)', 'items(tenant_id)'],
    ],
    [
      'SELECT x.id, public.orders.total FROM public.orders, (SELECT order_id AS id, 1 AS note FROM items) x',
      ['orders(tenant_id total)', 'items(tenant_id order_id)'],
    ],
    // What a level says of one table alone.
    [
      "SELECT note FROM orders WHERE note LIKE 'a%' AND id IN (SELECT order_id FROM items WHERE qty > 5 AND sku = note)",
      ['orders(tenant_id id note) ("t"."note" LIKE \'a%\')', 'items(tenant_id order_id sku qty) ("t"."qty" > 5)'],
    ],
    [
      'SELECT o.note FROM orders o JOIN items i ON i.order_id = o.id AND i.qty = 3 WHERE o.total > 7',
      ['orders(tenant_id id note total) ("t"."total" > 7)', 'items(tenant_id order_id qty) ("t"."qty" = 3)'],
    ],
    // Rows that an outer join makes up are not of the table.
    [
      'SELECT o.note FROM orders o LEFT JOIN items i ON i.order_id = o.id AND i.qty = 3 AND o.total = 1 WHERE i.sku IS NULL AND o.note > $1',
      ['orders(tenant_id id note total) ("t"."note" > $1)', 'items(tenant_id order_id sku qty) ("t"."qty" = 3)'],
    ],
    [
      'SELECT o.note FROM orders o FULL JOIN items i ON i.order_id = o.id AND i.qty = 3 WHERE o.total = 1',
      ['orders(tenant_id id note total)', 'items(tenant_id order_id qty)'],
    ],
    // Several uses of a table: rows of each.
    [
      'SELECT a.note FROM orders a, orders b WHERE a.id = b.total AND a.note = $1 AND b.country = $2',
      ['orders(tenant_id id note total country) (("t"."note" = $1)) OR (("t"."country" = $2))'],
    ],
    ['SELECT a.note FROM orders a, orders b WHERE a.id = b.total AND a.note = $1', ['orders(tenant_id id note total)']],
    // What differs from moment to moment, or from place to place, is looked at in the end.
    [
      "SELECT max(note) FROM orders, items WHERE placed_at > now() AND note = 'x' AND country = 'today'",
      ['orders(tenant_id note country placed_at) ("t"."note" = \'x\')', 'items(tenant_id)'],
    ],
    // Nothing may fail that something else would have kept from being looked at.
    [
      'SELECT note FROM orders, items WHERE id = (SELECT 1) AND 1 / total > 1',
      ['orders(tenant_id id note total)', 'items(tenant_id)'],
    ],
    [
      'SELECT note FROM orders, items WHERE total <> round(random()) AND 1 / total > 1 AND id > 3',
      ['orders(tenant_id id note total) ("t"."id" > 3)', 'items(tenant_id)'],
    ],
    // Columns by place.
    [
      'SELECT c, x.tenant_id FROM orders AS o(a, b, c), items x WHERE b = 3',
      ['orders(tenant_id id note total country placed_at) ("t"."id" = 3)', 'items(tenant_id)'],
    ],
    [
      'SELECT j.note FROM (orders o JOIN items i ON true) AS j',
      ['orders(tenant_id id note total country placed_at)', 'items(tenant_id order_id sku qty)'],
    ],
  ])('%s', (sql, expected) => {
    expect(sent(sql)).toEqual(expected);
  });

  it('are those that the shard owns', () => {
    const [table] = programOf('SELECT max(id) FROM orders, items').tables;
    const texts = fetches(table as NonNullable<typeof table>, topology);
    expect([...texts.keys()].sort()).toEqual(['a', 'b', 'c']);
    expect(texts.get('b' as ShardName)).toMatch(
      /^SELECT "t"\."tenant_id", "t"\."id" FROM "public"\."orders" AS "t" WHERE \(CASE WHEN .*100.*200.* THEN true END\)$/,
    );
  });
});

describe('the text that the workspace runs', () => {
  it.each([
    ['SELECT count(*) FROM orders, items', 'SELECT count(*) FROM pg_temp.orders, pg_temp.items'],
    [
      'SELECT "public"."orders"."id", public . items.* FROM "public"."orders", public.items -- done\n;',
      'SELECT pg_temp."orders"."id", pg_temp.items.* FROM pg_temp."orders", pg_temp.items -- done\n;',
    ],
    [
      'WITH orders AS (SELECT id FROM public.orders) SELECT (SELECT max(id) FROM orders), currencies FROM items, currencies',
      'WITH orders AS (SELECT id FROM pg_temp.orders) SELECT (SELECT max(id) FROM orders), currencies FROM pg_temp.items, currencies',
    ],
    [
      "SELECT 'orders', $$orders$$ AS orders FROM orders o, items",
      "SELECT 'orders', $$orders$$ AS orders FROM pg_temp.orders o, pg_temp.items",
    ],
  ])('%s', (sql, expected) => {
    expect(programOf(sql).text.toString()).toBe(expected);
  });

  it('has positions that are told as in the text that was sent', () => {
    const sql = 'SELECT public.orders.id, note FROM public.orders, items WHERE sku';
    const { text, positionAsSent } = programOf(sql);
    for (const word of ['note', 'FROM', 'WHERE', 'sku'])
      expect(positionAsSent(text.indexOf(word) + 1), word).toBe(sql.indexOf(word) + 1);
  });
});

describe('the parts that shards send', () => {
  const reduction = (sql: string): Reduction => {
    const found = programOf(sql).reduction;
    if (found === null) throw new Error(`nothing to be done ahead for ${sql}`);
    return found;
  };

  it.each([
    [
      'SELECT count(*) FROM orders -- all',
      'SELECT pg_catalog.count(*) AS "p1" FROM orders WHERE (own)',
      [INT8],
      'SELECT "r"."p1" FROM (SELECT CAST(coalesce(pg_catalog.sum("p1"), 0) AS int8) AS "p1" FROM pg_temp."foreshard_parts") AS r',
    ],
    [
      "SELECT note AS n, avg(total) FROM orders WHERE country = 'at' GROUP BY n HAVING max(id) > 5 ORDER BY 2 DESC NULLS LAST, n LIMIT 3",
      `SELECT "note" AS "k1", pg_catalog.sum("total") AS "p2", pg_catalog.count("total") AS "p2n", pg_catalog.max("id") AS "p3" FROM orders WHERE (own) AND ( country = 'at') GROUP BY "note"`,
      [25, NUMERIC, INT8, INT8],
      'SELECT "r"."k1", "r"."p2" FROM (SELECT "k1", (pg_catalog.sum("p2") / nullif(pg_catalog.sum("p2n"), 0)) AS "p2", pg_catalog.max("p3") AS "p3" FROM pg_temp."foreshard_parts" GROUP BY "k1") AS r WHERE ("r"."p3" > 5) ORDER BY "r"."p2" DESC NULLS LAST, "r"."k1" LIMIT 3',
    ],
    [
      'SELECT o.note, i.qty FROM orders o JOIN items i ON i.tenant_id = o.tenant_id ORDER BY qty, o.id DESC LIMIT $1 OFFSET $2',
      'SELECT "o"."note" AS "p1", "i"."qty" AS "p2", "o"."id" AS "p3" FROM orders o JOIN items i ON i.tenant_id = o.tenant_id WHERE (own) ORDER BY "i"."qty", "o"."id" DESC LIMIT CAST(least(CAST(CAST($1 AS int8) AS numeric) + greatest(coalesce(CAST(CAST($2 AS int8) AS numeric), 0), 0), 9223372036854775807) AS int8)',
      [25, INT8, INT8],
      'SELECT "r"."p1", "r"."p2" FROM pg_temp."foreshard_parts" AS r ORDER BY "r"."p2", "r"."p3" DESC LIMIT $1 OFFSET $2',
    ],
    [
      'SELECT DISTINCT note FROM orders ORDER BY note LIMIT 2',
      'SELECT DISTINCT "note" AS "p1" FROM orders WHERE (own) ORDER BY "note" LIMIT CAST(least(CAST(CAST(2 AS int8) AS numeric), 9223372036854775807) AS int8)',
      [25],
      'SELECT DISTINCT "r"."p1" FROM pg_temp."foreshard_parts" AS r ORDER BY "r"."p1" LIMIT 2',
    ],
  ])('%s', (sql, partial, types, final) => {
    const found = reduction(sql);
    expect(found.partial('own').replace(/ +/g, ' ')).toBe(partial.replace(/ +/g, ' '));
    expect(found.finish(types)).toBe(final);
  });

  it.each([
    // Each shows more or fewer rows than there are, or is another number on each shard.
    'SELECT unnest(ARRAY[id]) FROM orders ORDER BY id LIMIT 5',
    'SELECT id FROM orders ORDER BY id LIMIT round(random() * 5)',
    'SELECT id FROM orders ORDER BY random() LIMIT 5',
    'SELECT DISTINCT lower(note) FROM orders ORDER BY 1 LIMIT 5',
    'SELECT string_agg(note, $1) FROM orders LIMIT 5',
  ])('are not cut: %s', (sql) => {
    expect(programOf(sql).reduction?.partial('own') ?? '').not.toContain('LIMIT');
  });

  it.each([
    'SELECT count(DISTINCT note) FROM orders',
    'SELECT string_agg(note, $1 ORDER BY id) FROM orders',
    'SELECT note, string_agg(country, $1) FROM orders GROUP BY note',
    'SELECT note, rank() OVER (ORDER BY id) FROM orders',
    'SELECT count(*) FROM orders WHERE placed_at > now()',
    "SELECT count(*) FROM orders WHERE placed_at > 'today'",
    'SELECT count(*) FROM orders o JOIN items i ON i.order_id = o.id',
    'SELECT count(*) FROM currencies c LEFT JOIN orders o ON o.country = c.code',
    'SELECT count(*) FROM orders WHERE id IN (SELECT order_id FROM items)',
    'SELECT count(*) FROM orders NATURAL JOIN items',
    'SELECT id FROM orders ORDER BY id FETCH FIRST 3 ROWS WITH TIES',
    'SELECT DISTINCT ON (note) note, id FROM orders ORDER BY note, id',
    'SELECT note, country, count(*) FROM orders GROUP BY ROLLUP (note, country)',
    'SELECT max(o.note), max(o.id) FROM orders o, countries c WHERE c.code = o.country', // shard c has no copy
    'SELECT count(*) FROM orders UNION ALL SELECT count(*) FROM items',
    "SELECT 5, 'x' AS y, max(id) FROM orders GROUP BY y",
    'SELECT max(random()) FROM orders',
    'SELECT count(*) FROM orders GROUP BY random()',
    'TABLE orders ORDER BY id',
    "SELECT string_agg('a', '') FROM orders GROUP BY note",
    'SELECT note AS p1, id AS p2 FROM orders ORDER BY p1, p2 LIMIT 3',
    "SELECT count(*) FILTER (WHERE placed_at > 'now') FROM orders",
  ])('are none: %s', (sql) => {
    expect(programOf(sql).reduction).toBeNull();
  });

  it('do not add up where sums depend on their order', () => {
    for (const sql of ['SELECT sum(total) FROM orders', 'SELECT avg(total) FROM orders']) {
      expect(reduction(sql).finish([FLOAT8, INT8])).toBeNull();
      expect(reduction(sql).finish([NUMERIC, INT8])).not.toBeNull();
    }
  });
});

describe('what cannot be answered from copies', () => {
  it.each([
    ['SELECT o FROM orders o ORDER BY 1', 'the whole row "o" as a value'],
    ['SELECT row_to_json(o.*) FROM orders o ORDER BY id', 'a whole row as a value'],
    ['SELECT o.lower FROM orders o ORDER BY id', '"lower" of a whole row'],
    ['SELECT ctid FROM orders ORDER BY id', 'the system column ctid'],
    ["SELECT 'orders'::regclass, count(*) FROM orders", 'the type regclass'],
    ['SELECT (NULL::orders).id, count(*) FROM orders', 'the row type "orders"'],
    ['SELECT count(*) FROM ONLY orders', 'ONLY'],
    ['SELECT id FROM orders ORDER BY id FOR UPDATE', 'FOR UPDATE or FOR SHARE'],
    ['SELECT count(*), current_query() FROM orders', 'function current_query()'],
    ['SELECT count(*) FROM orders, pg_class', 'system catalogs'],
    ["SELECT count(*), nextval('s') FROM orders", 'function nextval()'],
  ])('%s', (sql, reason) => {
    const route = router.route(router.analyze(Buffer.from(sql), SESSION), 0, null, topology);
    expect(route.kind === 'refused' ? `${route.refusal.sqlstate} ${route.refusal.message}` : route.kind).toMatch(
      new RegExp(`^0A000 ${reason.replace(/[()]/g, '\\$&')}`),
    );
  });
});

describe('an expression in other words', () => {
  const expression = (sql: string): Node => {
    const [statement] = parseSync(`SELECT ${sql}`).stmts ?? [];
    const stmt = statement?.stmt;
    const [target] = stmt && 'SelectStmt' in stmt ? (stmt.SelectStmt.targetList ?? []) : [];
    return (target as { ResTarget: { val: Node } }).ResTarget.val;
  };

  it.each([
    [
      "a = -5 AND NOT (b <> 'it''s' OR c IS NOT TRUE)",
      `(("x"."a" = (-5)) AND (NOT (("x"."b" <> 'it''s') OR ("x"."c" IS NOT TRUE))))`,
    ],
    [String.raw`a LIKE E'\\%' OR b NOT ILIKE 'z'`, String.raw`(("x"."a" LIKE E'\\%') OR ("x"."b" NOT ILIKE 'z'))`],
    ['a NOT BETWEEN SYMMETRIC 1 AND 2.50', '("x"."a" NOT BETWEEN SYMMETRIC 1 AND 2.50)'],
    [
      "a IN (1, $2) AND b = ANY ('{1}'::int[])",
      `(("x"."a" IN (1, $2)) AND ("x"."b" = ANY (CAST('{1}' AS "pg_catalog"."int4"[]))))`,
    ],
    [
      "a::numeric(5,2) - coalesce(b, 0) > x'ff'::int",
      `((CAST("x"."a" AS "pg_catalog"."numeric"(5, 2)) - COALESCE("x"."b", 0)) > CAST(x'ff' AS "pg_catalog"."int4"))`,
    ],
    [
      'CASE a WHEN 1 THEN b ELSE lower(c COLLATE "C") END',
      '(CASE "x"."a" WHEN 1 THEN "x"."b" ELSE "lower"(("x"."c" COLLATE "C")) END)',
    ],
    ['a OPERATOR(pg_catalog.<) "B" ', '("x"."a" OPERATOR("pg_catalog".<) "x"."B")'],
    ['a IS NOT DISTINCT FROM NULL', '("x"."a" IS NOT DISTINCT FROM NULL)'],
  ])('%s', (sql, expected) => {
    expect(expressionText(expression(sql), (ref) => ['x', ...strings(ref.fields)])).toBe(expected);
  });

  it.each(['(SELECT 1)', 'count(*) FILTER (WHERE a)', 'ROW(1, 2)', 'max(a) OVER ()', '(a).b', 'CURRENT_DATE'])(
    '%s has none',
    (sql) => {
      expect(expressionText(expression(sql), () => ['x'])).toBeNull();
    },
  );
});
