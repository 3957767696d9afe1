import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Registry } from '../../topology/catalog/registry.js';
import { withClient } from '../support/client.js';
import { QUERIES, QUERIES_WITH_PARAMETERS, rowsOf, TYPES } from '../support/gathered.js';
import { B, bytewise, type Conversation, CP, DP, DS, E, H, Oracle, P, Q, S, whole } from '../support/oracle.js';
import { SHOP_SCHEMA, Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

// Queries over the rows of two shards inside of transaction blocks: with the block's own changes, settings and failures, as one database has them.

const one = (sql: string, ...values: string[]) => [P('', sql), B('', '', ...values), DP(''), E(''), S];
const COUNT = 'SELECT count(*), max(name) FROM tenants';
const NAMES = 'SELECT name FROM tenants WHERE name > $1 ORDER BY name';
const PAIRS = 'SELECT t.name, o.id FROM orders o JOIN tenants t ON o.id < t.tenant_id ORDER BY 1, 2';
const UNION = `SELECT name FROM tenants WHERE tenant_id IN (1, 150) AND name = 't150'`;
const order = (tenant: number, id: number) => Q(`INSERT INTO orders (tenant_id, id) VALUES (${tenant}, ${id})`);

/** Tenant 1 is on the first shard, 150 and 151 on the second. */
const CONVERSATIONS: readonly Conversation[] = [
  {
    name: 'queries before and after writes',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(COUNT)],
      ['Z', Q(UNION)],
      ['Z', Q(PAIRS)],
      ['Z', order(1, 1)],
      ['Z', Q(COUNT)],
      ['Z', Q(PAIRS)],
      ['Z', order(150, 2)],
      ['Z', Q(PAIRS)],
      ['Z', Q(`UPDATE tenants SET name = 'z' WHERE tenant_id = 150`)],
      ['Z', Q(`SELECT name FROM tenants WHERE tenant_id IN (1, 150) AND name = 'z'`)],
      ['Z', Q(COUNT)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q('DELETE FROM tenants WHERE tenant_id = 151')],
      ['Z', Q(COUNT)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q(COUNT)],
      ['Z', Q('COMMIT')],
      ['Z', Q(COUNT)],
      ['Z', Q('BEGIN')],
      ['Z', Q(COUNT)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(PAIRS)],
    ],
  },
  {
    name: 'batches, statements with names, descriptions',
    steps: [
      ['Z', ...one('BEGIN')],
      ['Z', ...one(NAMES, 'a')],
      ['Z', P('n', NAMES), DS('n'), S],
      ['Z', B('', 'n', 't1'), DP(''), E(''), S],
      ['Z', ...one(`UPDATE tenants SET name = 'new' WHERE tenant_id = 150`)],
      ['Z', B('', 'n', 'a'), E(''), CP(''), S],
      ['Z', ...one(UNION)],
      ['1', P('', NAMES), H],
      ['Z', B('', '', 'm'), DP(''), E(''), S],
      ['1', P('u', UNION), H],
      ['Z', B('', 'u'), DP(''), E(''), S],
      ['Z', ...one(`UPDATE tenants SET name = 'newer' WHERE tenant_id = 1`)],
      ['Z', B('', 'n', 'a'), E(''), S],
      ['Z', B('', 'u'), E(''), S],
      ['Z', ...one('COMMIT')],
      ['Z', B('', 'n', 'a'), E(''), S],
    ],
  },
  {
    name: 'what fails, fails the block on all shards',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q('SELECT count(nope) FROM tenants')],
      ['Z', Q(COUNT)],
      ['Z', Q('COMMIT')],
      ['Z', Q('BEGIN')],
      ['Z', order(1, 1)],
      ['Z', order(150, 1)],
      ['Z', Q('SELECT 1 / (count(*) - 3) FROM tenants')],
      ['Z', Q('SELECT 1')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(PAIRS)],
      ['Z', Q('BEGIN')],
      ['Z', order(150, 1)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q(`SELECT name FROM tenants WHERE name::int = 1 AND tenant_id IN (1, 150)`)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q(PAIRS)],
      ['Z', order(1, 1)],
      ['Z', P('', 'SELECT 1 / (count(*) - 3) FROM tenants'), B('', ''), E(''), S],
      ['Z', ...one(COUNT)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', P('fails', 'SELECT 1 / (count(*) - 3) FROM tenants'), B('', 'fails'), E(''), S],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q('DELETE FROM tenants WHERE tenant_id = 151')],
      ['Z', B('', 'fails'), E(''), S],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'settings of the block',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET LOCAL DateStyle = 'German'`)],
      ['Z', Q(`SET LOCAL my.own = '7'`)],
      ['Z', Q(`SELECT max('2024-02-01'::date), max(current_setting('my.own')) FROM tenants`)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q(`SET my.own = '8'`)],
      ['Z', Q(`SELECT max(current_setting('my.own')), count(*) FROM tenants`)],
      ['Z', order(150, 1)],
      ['Z', Q(`SELECT max(current_setting('my.own')), count(*) FROM tenants`)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q(`SELECT max(current_setting('my.own')), count(*) FROM orders`)],
      ['Z', ...one(`SELECT max(current_setting('my.own')), max('2024-02-01'::date) FROM tenants`)],
      ['Z', Q(UNION)],
      ['Z', Q('SET LOCAL search_path = pg_catalog')],
      ['Z', Q('SELECT count(*) FROM public.tenants')],
      ['Z', Q('SELECT count(*) FROM tenants')],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(`SELECT max('2024-02-01'::date) FROM tenants`)],
      ['Z', Q('START TRANSACTION')],
      ['Z', Q('SET TRANSACTION ISOLATION LEVEL READ COMMITTED')],
      ['Z', Q(COUNT)],
      ['Z', Q('COMMIT')],
    ],
  },
];

describe('a block is what PostgreSQL makes of it on one shard', () => {
  let oracle: Oracle;
  beforeAll(async () => {
    // One connection to each shard: nobody waits for his own.
    oracle = await Oracle.start({ poolSize: 1 });
    await oracle.split();
  });
  afterAll(() => oracle.stop());
  for (const c of CONVERSATIONS) it(c.name, () => oracle.compareSpanning(c, whole));
  it('a byte at a time', () => oracle.compareSpanning(CONVERSATIONS[1] as Conversation, bytewise));
});

let s: Sharded;
let alone: pg.Client;
let client: pg.Client;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 101, poolSize: 2 });
  await withClient(s.clusters[0].url('postgres'), (c) => c.query('CREATE DATABASE whole'));
  const url = s.clusters[0].url('whole');
  const onWhole = (sql: string) => withClient(url, (c) => c.query(sql));
  const grants = `GRANT ALL ON SCHEMA public, archive TO app; GRANT ALL ON ALL TABLES IN SCHEMA public, archive TO app`;
  await onWhole(
    `${SHOP_SCHEMA} ${TYPES} ${grants}; INSERT INTO countries VALUES ('at', 'Austria'), ('ch', 'Switzerland')`,
  );
  for (const shard of [0, 1] as const) await s.onShard(shard, `${TYPES} ${grants}`);
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
  alone = new pg.Client({ connectionString: asApp.href });
  await alone.connect();
  client = await s.connect();
  const all = `SELECT count(DISTINCT m) FROM kinds`;
  await waitFor(async () => (await client.query(all)).rows[0]?.count === '3', { what: 'the proxy to know the tables' });
}, 90_000);
afterAll(async () => {
  await alone?.end();
  await s?.stop();
});

async function told(on: pg.Client, query: pg.QueryConfig, sorted: boolean): Promise<object> {
  try {
    const { rows, fields, command, rowCount } = await on.query({ ...query, rowMode: 'array' } as pg.QueryArrayConfig);
    const shown = rows.map((row) => JSON.stringify(row));
    const columns = fields.map((f) => [f.name, f.dataTypeID < 16384 && f.dataTypeID, f.dataTypeModifier, f.format]);
    return { rows: sorted ? shown.sort() : shown, columns, command, rowCount };
  } catch (error) {
    const { code, message, position, severity, detail, hint } = error as pg.DatabaseError;
    return { code, message: message.replace(/"note \d+"/, '"note"'), position, severity, detail, hint };
  }
}

const onBoth = async (sql: string) => {
  for (const c of [alone, client]) await c.query(sql);
};

/** Own changes on both shards, of all that the queries look at. */
const WRITES = [
  `INSERT INTO tenants VALUES (77777, 'tenant new'), (77778, 'tenant newer')`,
  `INSERT INTO orders VALUES (77777, 1, 'note 2'), (77777, 2, NULL), (77778, 3, 'note 99')`,
  `UPDATE orders SET note = 'note 0' WHERE tenant_id = 150`,
  `DELETE FROM items WHERE tenant_id = 150 AND qty < 9`,
  `UPDATE kinds SET m = 'happy', n = n * 2, vc = 'abc' || id WHERE tenant_id = 101`,
  `INSERT INTO parts VALUES (190, 19, 'own')`,
  `UPDATE "Größe" SET "Länge" = 'eigen' WHERE tenant_id = 111`,
];
const WRITES_AT_HOME = [
  `UPDATE orders SET note = 'note 0' WHERE tenant_id = 3`,
  `DELETE FROM items WHERE tenant_id = 3 AND qty < 9`,
  `UPDATE kinds SET m = 'sad', n = n * 2, cn = 'a' || id WHERE tenant_id = 1`,
  `INSERT INTO parts VALUES (90, 19, 'own')`,
  `UPDATE "Größe" SET "Länge" = 'eigen' WHERE tenant_id = 11`,
];

const TELLS = /\b(now|today)\b/;
const AT_HOME = /archive\.|FROM countries/;

const REFUSED = { code: '0A000' };

describe.each([
  ['that has done nothing', []],
  ['that has written beyond the home shard', WRITES],
  ['that has written on both', [...WRITES, ...WRITES_AT_HOME]],
] as const)('a block %s', (_, writes) => {
  const all: (readonly [string, readonly unknown[]])[] = [
    ...QUERIES.map((sql) => [sql, []] as const),
    ...QUERIES_WITH_PARAMETERS,
  ];
  it('answers queries as one database does', async () => {
    const wrongs: unknown[] = [];
    await onBoth('BEGIN');
    try {
      for (const sql of writes) await onBoth(sql);
      for (const [i, [text, values]] of all.entries()) {
        const sorted = !/ORDER BY [^()]*$/.test(text);
        const query = i % 3 === 0 && values.length === 0 ? { text } : { text, values: [...values] };
        const asked = i % 3 === 1 ? { ...query, name: `b${writes.length} ${i}` } : query;
        await onBoth('SAVEPOINT q');
        const [expected, got] = [await told(alone, asked, sorted), await told(client, asked, sorted)];
        const refused = TELLS.test(text) || (writes.length > WRITES.length && AT_HOME.test(text));
        const wanted = refused ? expect.objectContaining(REFUSED) : expected;
        try {
          expect({ query: asked, ...got }).toEqual(refused ? wanted : { query: asked, ...expected });
        } catch (error) {
          wrongs.push(JSON.stringify([text, expected, got]), (error as Error).message.slice(0, 80));
        }
        await onBoth('ROLLBACK TO q');
      }
    } finally {
      await onBoth('ROLLBACK');
    }
    expect(wrongs).toEqual([]);
  }, 120_000);
});
