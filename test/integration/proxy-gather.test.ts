import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { withClient } from '../support/client.js';
import { QUERIES, QUERIES_WITH_PARAMETERS, rowsOf, TYPES } from '../support/gathered.js';
import { SHOP_SCHEMA, Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// Queries over the rows of two shards, answered by the home shard, as one database answers them that has all rows: rows, columns, tags, errors.

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
  it.each(QUERIES)('%s', (sql) => compare(sql));
});

it('a Query has no parameters', async () => {
  const query = { text: 'SELECT count(*) FROM orders WHERE id = $1' };
  expect(await told(client, query, false)).toEqual(await told(whole, query, false));
});

describe('queries with parameters', () => {
  it.each(QUERIES_WITH_PARAMETERS)('%s %j', (sql, values) => compare(sql, [...values]));
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
