import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;
let c: pg.Client;
let plain: pg.Client;

/** On the home shard and on a plain PostgreSQL that has all rows. */
const FUNCTIONS = `
CREATE FUNCTION put(n text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN INSERT INTO settings VALUES (n, n); RETURN (SELECT count(*) FROM settings); END $$;
CREATE FUNCTION all_orders() RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT count(*) FROM orders $$;
CREATE FUNCTION around() RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT all_orders() $$;
CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO orders VALUES (1, 99, 'by trigger'); RETURN NEW; END $$;
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.value := upper(NEW.value); RETURN NEW; END $$;
CREATE PROCEDURE put_all(a text, b text) LANGUAGE sql AS $$ INSERT INTO settings VALUES (a, '1'), (b, '2') $$;
CREATE TABLE logged (a int);
CREATE TRIGGER t AFTER INSERT ON logged FOR EACH ROW EXECUTE FUNCTION log_it();
CREATE TABLE tenant_notes (tenant_id bigint REFERENCES tenants, note text);
CREATE VIEW order_count AS SELECT count(*) FROM orders;
CREATE FUNCTION has_orders(a bigint, b bigint) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT count(*) > b FROM orders WHERE tenant_id >= a $$;
CREATE OPERATOR ==> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = has_orders);
CREATE FUNCTION is_set(a text, b text) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT EXISTS (SELECT FROM settings WHERE name = a) = b::boolean $$;
CREATE OPERATOR ~==> (LEFTARG = text, RIGHTARG = text, FUNCTION = is_set);
CREATE TYPE total AS (n bigint);
CREATE FUNCTION to_total(int) RETURNS total LANGUAGE sql STABLE AS $$ SELECT row(count(*))::total FROM orders $$;
CREATE CAST (int AS total) WITH FUNCTION to_total(int) AS ASSIGNMENT;
CREATE TABLE totals (t total);
CREATE DOMAIN busy AS bigint CHECK (has_orders(VALUE, 0));
CREATE TABLE busy_tenants (b busy);
CREATE TABLE kinds (kind int PRIMARY KEY);
ALTER TABLE items ADD kind int REFERENCES kinds;
GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
`;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
  await s.onShard(0, FUNCTIONS);
  const admin = await s.connect();
  await s.onShard(0, `CREATE DATABASE plain TEMPLATE template0`);
  plain = await s.connect({ connectionString: s.clusters[0].url('plain') });
  await plain.query(
    `CREATE TABLE tenants (tenant_id bigint PRIMARY KEY, name text NOT NULL);
     CREATE TABLE orders (tenant_id bigint NOT NULL REFERENCES tenants, id bigint NOT NULL, note text, PRIMARY KEY (tenant_id, id));
     CREATE TABLE items (tenant_id bigint NOT NULL, order_id bigint NOT NULL, n int NOT NULL, qty int);
     CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL);
     CREATE TABLE settings (name text PRIMARY KEY, value text);
     GRANT ALL ON SCHEMA public TO app; GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
     INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland');`,
  );
  await plain.query(FUNCTIONS);
  await plain.query('SET SESSION AUTHORIZATION app');
  for (const client of [admin, plain])
    for (const id of [1, 150]) {
      await client.query(`INSERT INTO tenants VALUES (${id}, 'tenant ${id}')`);
      await client.query(`INSERT INTO orders VALUES (${id}, 1, 'x')`);
    }
  c = await s.connect();
  await schemaRead();
});

afterAll(() => s?.stop());

/** The proxy reads the schema anew after DDL that passes through it. */
async function schemaRead(): Promise<void> {
  await c.query('CREATE TABLE made (a int)');
  await c.query('DROP TABLE made');
  await waitFor(
    async () => {
      const put = await run(c, `SELECT put('asked')`);
      await c.query(`DELETE FROM settings`);
      return Array.isArray(put);
    },
    { what: 'the schema to be read' },
  );
}

/** Rows, or the SQLSTATE. */
async function run(client: pg.Client, sql: string): Promise<unknown> {
  try {
    const result = await client.query({ text: sql, rowMode: 'array' });
    return (Array.isArray(result) ? result : [result]).map((r) => [r.command, r.rowCount, r.rows]);
  } catch (error) {
    return (error as { code: string }).code;
  }
}

/** Each in this order; all of them answered as by one PostgreSQL. */
const SAME = [
  'CREATE TABLE notes (id int PRIMARY KEY, body text DEFAULT lower($$A$$))',
  `INSERT INTO notes VALUES (1, 'one'), (2, DEFAULT), (3, 'three') RETURNING *`,
  'CREATE TABLE replies (id serial PRIMARY KEY, note int REFERENCES notes ON DELETE CASCADE)',
  'INSERT INTO replies (note) VALUES (1), (1), (2) RETURNING *',
  'INSERT INTO replies (note) VALUES (9)',
  'CREATE INDEX notes_body ON notes (upper(body))',
  'CREATE VIEW short_notes AS SELECT id, left(body, 2) AS body FROM notes',
  'SELECT * FROM short_notes ORDER BY id',
  `INSERT INTO short_notes (id) VALUES (7)`,
  'DROP TABLE notes',
  'CREATE MATERIALIZED VIEW note_count AS SELECT count(*) FROM notes',
  'REFRESH MATERIALIZED VIEW note_count',
  'TABLE note_count',
  'CREATE TABLE copied AS SELECT n.id, c.name FROM notes n, countries c',
  'SELECT * FROM copied ORDER BY 1, 2',
  'ALTER TABLE copied RENAME TO copies',
  'ALTER TABLE copies ADD COLUMN more int DEFAULT 5',
  'SELECT * FROM copies ORDER BY 1, 2',
  'CREATE TRIGGER loud BEFORE INSERT ON settings FOR EACH ROW EXECUTE FUNCTION shout()',
  `INSERT INTO settings VALUES ('a', 'quiet') RETURNING *`,
  `SELECT put('b')`,
  `CALL put_all('c', 'd')`,
  `DO $$ BEGIN FOR i IN 1..3 LOOP INSERT INTO settings VALUES (i, i); END LOOP; END $$`,
  'TABLE settings',
  `SELECT 'a'::text ~==> 'true', 'z'::text ~==> 'true'`,
  'DELETE FROM notes WHERE id = 1',
  'SELECT * FROM replies',
  'COMMENT ON TABLE notes IS $$x$$',
  `SELECT obj_description('notes'::regclass)`,
  'GRANT SELECT ON notes TO PUBLIC',
  'ANALYZE notes, replies',
  'VACUUM notes',
  'REINDEX TABLE notes',
  'LOCK TABLE notes',
  'BEGIN',
  'LOCK TABLE notes',
  'CREATE TABLE passing (a int)',
  'INSERT INTO passing VALUES (1)',
  'TRUNCATE replies',
  'ROLLBACK',
  'SELECT count(*) FROM replies',
  'TABLE passing',
  'CREATE SEQUENCE numbers OWNED BY notes.id',
  `SELECT nextval('numbers')`,
  'TRUNCATE notes',
  'TRUNCATE notes CASCADE',
  'DROP TABLE copies, replies',
  'SELECT nummultirange(numrange(1, 5)), similar_to_escape($$a%$$)',
  'DROP TABLE notes CASCADE',
  'TABLE short_notes',
  `SELECT nextval('numbers')`,
  // Temporary objects, at the end because they pin the session.
  'CREATE TEMP TABLE scratch (a int)',
  'INSERT INTO scratch VALUES (1), (2)',
  'CREATE INDEX ON scratch (a)',
  'ALTER TABLE scratch ADD b text',
  'ANALYZE scratch',
  'TABLE scratch',
  'ALTER TABLE pg_temp.scratch RENAME TO scratched',
  'TRUNCATE scratched',
  'CREATE TEMP VIEW look AS TABLE scratched',
  'TABLE look',
  'DROP VIEW look',
  'DROP TABLE scratched',
];

/** What would be answered or done by half. */
const REFUSED = [
  'SELECT all_orders()',
  'SELECT around()',
  'TABLE order_count',
  'INSERT INTO logged VALUES (1)',
  `INSERT INTO tenant_notes VALUES (150, 'x')`,
  'DELETE FROM kinds',
  'DROP TABLE kinds CASCADE',
  'TRUNCATE kinds CASCADE',
  'CREATE VIEW v AS SELECT count(*) FROM orders',
  'CREATE TABLE x (t bigint REFERENCES tenants)',
  'CREATE TABLE orders_2 () INHERITS (orders)',
  'ALTER TABLE settings RENAME TO orders',
  'CREATE TEMP TABLE orders (a int)',
  'CREATE TRIGGER t AFTER INSERT ON settings FOR EACH ROW EXECUTE FUNCTION log_it()',
  'DO $$ BEGIN UPDATE orders SET note = NULL; END $$',
  `DO $$ BEGIN EXECUTE 'UPDATE orders SET note = NULL'; END $$`,
  'DROP INDEX orders_pkey',
  'ALTER TABLE orders ADD COLUMN y int',
  'GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC',
  `SELECT pg_total_relation_size('orders')`,
  `SELECT table_to_xml('orders', true, true, '')`,
  'CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$',
  // Functions that nobody calls by name: of operators, casts and domains.
  'SELECT 1::bigint ==> 0',
  'SELECT name FROM settings WHERE 1::bigint ==> 0',
  'SELECT name FROM tenants WHERE tenant_id = 150 AND tenant_id ==> 0',
  'SELECT name FROM tenants WHERE tenant_id = 150 AND tenant_id ==> ANY (SELECT 1::bigint)',
  `SELECT name FROM tenants WHERE tenant_id = 150 AND 'a'::text ~==> 'true'`,
  'SELECT 1::total',
  'INSERT INTO totals VALUES (1)',
  'SELECT 150::busy',
  'INSERT INTO busy_tenants VALUES (150)',
];

describe('tables of no keyspace, while others are on several shards', () => {
  it('refuses what would reach beyond the home shard, and changes nothing', async () => {
    for (const sql of REFUSED) expect([sql, await run(c, sql)]).toEqual([sql, '0A000']);
    const shards = [0, 1] as const;
    const counts = await Promise.all(shards.map((i) => s.onShard(i, 'SELECT tenant_id, id, note FROM orders')));
    expect(counts.map((rows) => rows.length)).toEqual([1, 1]);
  });

  it('answers everything else as one PostgreSQL does', async () => {
    for (const sql of SAME) expect([sql, await run(c, sql)]).toEqual([sql, await run(plain, sql)]);
  });

  it('has made nothing on the other shard', async () => {
    const names = `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i' ORDER BY 1`;
    expect((await s.onShard<{ relname: string }>(1, names)).map((r) => r.relname)).toEqual([
      'countries',
      'items',
      'orders',
      'settings',
      'tenants',
    ]);
  });

  it('tells DO blocks apart though they are one template', async () => {
    await c.query(`DO $$ BEGIN DELETE FROM settings; END $$`);
    expect(await run(c, `DO $$ BEGIN DELETE FROM orders; END $$`)).toBe('0A000');
    expect(await run(c, `DO $$ BEGIN DELETE FROM settings; END $$`)).toEqual([['DO', null, []]]);
  });
});
