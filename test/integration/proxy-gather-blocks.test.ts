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
    name: 'BEGIN in one batch with the first statement',
    steps: [
      ['Z', P('', 'BEGIN'), B('', ''), E(''), P('', COUNT), B('', ''), DP(''), E(''), S],
      ['Z', order(150, 1)],
      ['Z', ...one(PAIRS)],
      ['Z', ...one('COMMIT')],
      ['Z', P('b', 'BEGIN'), P('n', NAMES), P('u', UNION), S],
      ['Z', B('', 'b'), E(''), B('', 'n', 'a'), E(''), S],
      ['Z', B('', 'u'), DP(''), E(''), S],
      ['Z', Q('ROLLBACK')],
      ['Z', B('', 'b'), DP(''), E(''), B('', 'u'), E(''), S],
      ['Z', B('', 'n', 't1'), E(''), S],
      ['Z', Q('COMMIT')],
      ['Z', P('', 'BEGIN'), B('', ''), E(''), P('', 'SELECT count(nope) FROM tenants'), B('', ''), E(''), S],
      ['Z', Q('SELECT 1')],
      ['Z', Q('ROLLBACK')],
      ['Z', P('', 'BEGIN'), B('', ''), E(''), P('f', 'SELECT 1 / (count(*) - 3) FROM tenants'), B('', 'f'), E(''), S],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(`DELETE FROM tenants WHERE tenant_id = 151`)],
      ['Z', B('', 'f'), E(''), S],
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
      ['Z', Q(`SET LOCAL my.own = '9'; BEGIN`)],
      ['Z', Q(`SELECT max(current_setting('my.own')) FROM tenants`)],
      ['Z', order(1, 1)],
      ['Z', Q(`SELECT max(current_setting('my.own')) FROM tenants`)],
      ['Z', order(150, 2)],
      ['Z', Q(`SELECT current_setting('my.own') FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('BEGIN; BEGIN')],
      ['Z', Q(`SET LOCAL my.own = '10'`)],
      ['Z', Q(`SELECT max(current_setting('my.own')) FROM tenants`)],
      ['Z', Q('ROLLBACK')],
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
  const dated = `CREATE TABLE dated (tenant_id bigint PRIMARY KEY); ALTER TABLE dated ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON dated USING (CURRENT_DATE > '2000-01-01');
    CREATE VIEW moment AS SELECT CURRENT_TIMESTAMP AS at;
    CREATE TABLE judged (tenant_id bigint PRIMARY KEY); ALTER TABLE judged ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON judged USING (1 / (tenant_id - 151) < 5)`;
  for (const shard of [0, 1] as const) await s.onShard(shard, `${TYPES} ${dated}; ${grants}`);
  const registry = new Registry(s.catalog, 'test');
  for (const table of ['kinds', 'Größe', 'parts', 'dated', 'judged'])
    await registry.addTable({ table: { schema: 'public', table }, keyspace: 'main', keyColumns: ['tenant_id'] });
  const home = `INSERT INTO settings VALUES ('a', '1'), ('b', '2'); INSERT INTO archive.orders VALUES (1, 1, 'archived')`;
  for (const run of [onWhole, (sql: string) => s.onShard(0, sql)]) await run(`${home}; ${rowsOf(1, 100)}`);
  for (const run of [onWhole, (sql: string) => s.onShard(1, sql)]) await run(rowsOf(101, 200));
  await s.onShard(1, 'INSERT INTO judged VALUES (151)');
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
  `INSERT INTO orders VALUES (77777, 1, 'note 2'), (77777, 2, 'note 98'), (77778, 3, 'note 99')`,
  `UPDATE orders SET note = 'note 0' WHERE tenant_id = 150`,
  `DELETE FROM items WHERE tenant_id = 150 AND qty < 9`,
  `UPDATE kinds SET m = 'happy', n = n * 2 WHERE tenant_id = 101`,
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
  ['that has done nothing', [], 3],
  ['that has written beyond the home shard', WRITES, 3],
  ['that has written on both', [...WRITES, ...WRITES_AT_HOME], 1],
] as const)('a block %s', (_, writes, nth) => {
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
        // All of them once; the others are for what differs in how they are asked.
        if (i % nth !== 0) continue;
        const sorted = !/ORDER BY [^()]*$/.test(text);
        const query = i % 2 === 0 && values.length === 0 ? { text } : { text, values: [...values] };
        const asked = i % 5 === 1 ? { ...query, name: `b${writes.length} ${i}` } : query;
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

describe('what a block cannot have is refused', () => {
  it.each<[string, readonly string[], string]>([
    [
      'another isolation level',
      ['BEGIN ISOLATION LEVEL REPEATABLE READ'],
      'a transaction on several shards cannot be REPEATABLE READ',
    ],
    [
      'another isolation level, at a server',
      ['BEGIN', 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE'],
      'a transaction on several shards cannot be SERIALIZABLE',
    ],
    [
      'a cursor',
      ['BEGIN', 'DECLARE c CURSOR FOR SELECT * FROM tenants WHERE tenant_id = 1'],
      'a statement for several shards cannot run in a transaction with a cursor',
    ],
    [
      'DDL',
      ['BEGIN', 'CREATE TABLE made_in_block (a int)'],
      'a statement for several shards cannot run in a transaction with DDL',
    ],
    [
      'settings of its own that were made by set_config',
      ['BEGIN', `SELECT set_config('my.own', '7', true)`],
      'a statement for several shards cannot run in a transaction with set_config',
    ],
    [
      'a table of the home shard that it holds for itself',
      ['BEGIN', 'LOCK TABLE settings'],
      'a statement for several shards cannot run in a transaction that holds an ACCESS EXCLUSIVE lock on the home shard',
    ],
  ])('%s', async (_, begin, message) => {
    for (const sql of begin) await client.query(sql);
    await expect(client.query('SELECT count(*) FROM orders')).rejects.toMatchObject({ code: '0A000', message });
    await expect(client.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
    await client.query('ROLLBACK');
    expect((await client.query('SELECT count(*) FROM orders')).rows).toEqual([{ count: '1000' }]);
  });

  it.each([
    'SELECT count(*) FROM dated',
    'SELECT tenant_id FROM dated',
    'SELECT count(*), (SELECT max(at) < now() FROM moment) FROM orders',
    'SELECT count(*), (SELECT max(at) FROM moment) FROM orders',
  ])('the time of its transaction: %s', async (sql) => {
    await client.query(sql);
    await client.query('BEGIN');
    await expect(client.query(sql)).rejects.toMatchObject({
      code: '0A000',
      message: expect.stringContaining('that uses the time or the id of its transaction'),
    });
    await client.query('ROLLBACK');
  });

  it('a part on another shard, behind set_config', async () => {
    await client.query(`BEGIN; INSERT INTO orders VALUES (1, 77, 'own')`);
    await client.query('SELECT set_config($1, $2, true)', ['my.own', '7']);
    await expect(client.query(`INSERT INTO orders VALUES (150, 77, 'own')`)).rejects.toMatchObject({
      code: '0A000',
      message: expect.stringContaining('(set_config)'),
      hint: 'Use SET LOCAL in place of set_config(…, true).',
    });
    await client.query('ROLLBACK');
  });

  it('how long its server waits for locks', async () => {
    await expect(
      client.query(`SELECT count(DISTINCT name), current_setting('lock_timeout') FROM tenants`),
    ).rejects.toMatchObject({ code: '0A000' });
  });

  it('rows of the home shard alone, behind a write there', async () => {
    await client.query(`BEGIN; UPDATE settings SET value = 'x' WHERE name = 'a'`);
    await expect(
      client.query('SELECT count(*), (SELECT value FROM settings LIMIT 1) FROM orders'),
    ).rejects.toMatchObject({ code: '0A000', message: expect.stringContaining('has written there') });
    await client.query('ROLLBACK');
  });
});

describe('a block whose query waits', () => {
  const waiting = async (shard: 0 | 1) =>
    waitFor(
      async () =>
        (
          await s.onShard<{ pid: number }>(
            shard,
            `SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'`,
          )
        )[0]?.pid,
      { what: 'a connection to wait for the lock' },
    );
  const quiet = async () => {
    for (const shard of [0, 1] as const)
      await waitFor(
        async () =>
          (await s.onShard(shard, `SELECT FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`)).length ===
          0,
        { what: 'the end of all work' },
      );
  };
  const holding = async (shard: 0 | 1, use: () => Promise<void>) => {
    const holder = new pg.Client({ connectionString: s.clusters[shard].url('shop') });
    await holder.connect();
    await holder.query('BEGIN; LOCK TABLE items');
    try {
      await use();
    } finally {
      await holder.end();
    }
  };
  const QUERY =
    'SELECT count(*), count(DISTINCT qty) FROM items, tenants WHERE items.tenant_id = 150 OR tenants.tenant_id < 3';
  const OWN = `UPDATE tenants SET name = name || '!' WHERE tenant_id = 150`;

  it.each([
    [0, []],
    [1, []],
    [1, [OWN]],
  ] as const)('is canceled on shard %i behind %j, and goes back', async (shard, before) => {
    const c = await s.connect();
    await c.query('BEGIN');
    for (const sql of before) await c.query(sql);
    await c.query('SAVEPOINT a');
    await holding(shard, async () => {
      const answer = expect(c.query(QUERY)).rejects.toMatchObject({ code: '57014' });
      await waiting(shard);
      await s.cancel(c);
      await answer;
      await expect(c.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
    });
    await c.query('ROLLBACK TO a');
    expect((await c.query(`SELECT max(name) FROM tenants WHERE name > 'tenant 149'`)).rowCount).toBe(1);
    await c.query('ROLLBACK');
    await c.end();
    await quiet();
  });

  it.each([[[]], [[OWN]]] as const)('ends with its client, behind %j', async (before) => {
    const c = await s.connect();
    c.on('error', () => undefined);
    await c.query('BEGIN');
    for (const sql of before) await c.query(sql);
    await holding(1, async () => {
      c.query(QUERY).catch(() => undefined);
      await waiting(1);
      (c as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
      await quiet();
    });
    expect(await s.onShard(1, `SELECT FROM tenants WHERE name LIKE '%!'`)).toEqual([]);
  });

  it.each([[[]], [[OWN]]] as const)('loses the server, behind %j', async (before) => {
    const c = await s.connect();
    c.on('error', () => undefined);
    await c.query('BEGIN');
    for (const sql of before) await c.query(sql);
    await holding(1, async () => {
      const answer = c.query(QUERY).then(
        () => 'answered',
        () => 'failed',
      );
      const pid = await waiting(1);
      await s.onShard(1, `SELECT pg_terminate_backend(${pid})`);
      expect(await answer).toBe('failed');
    });
    await c.query('COMMIT').catch(() => undefined);
    await c.end().catch(() => undefined);
    await quiet();
    expect(await s.onShard(1, `SELECT FROM tenants WHERE name LIKE '%!'`)).toEqual([]);
    expect((await client.query('SELECT count(*) FROM tenants')).rows).toEqual([{ count: '200' }]);
  });

  it('loses a server while another is told its settings', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(`SET LOCAL default_text_search_config = 'pg_catalog.simple'`);
    const holder = new pg.Client({ connectionString: s.clusters[1].url('shop') });
    holder.on('error', () => undefined);
    await holder.connect();
    // Where the setting is looked up.
    await holder.query('BEGIN; LOCK TABLE pg_ts_config');
    const answer = c.query(UNION).then(
      () => 'answered',
      ({ code }: pg.DatabaseError) => code,
    );
    await waiting(1);
    const told = `SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND state = 'idle in transaction' AND query NOT LIKE '%transaction_isolation%'`;
    const pid = await waitFor(async () => (await s.onShard<{ pid: number }>(0, told))[0]?.pid, {
      what: 'the other server to have been told',
    });
    await s.onShard(0, `SELECT pg_terminate_backend(${pid}, 10000)`);
    await holder.end();
    expect(await answer).toBe('57P01');
    await expect(c.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
    await c.query('ROLLBACK');
    expect((await c.query(UNION)).rowCount).toBe(0);
    await c.end();
    await quiet();
  });

  it('does not wait for ever for who waits for its block', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query('SELECT count(*) FROM settings');
    const other = new pg.Client({ connectionString: s.clusters[0].url('shop') });
    other.on('error', () => undefined);
    await other.connect();
    await other.query('BEGIN');
    const altered = other.query('ALTER TABLE settings ADD COLUMN more int');
    const blocked = `SELECT FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE settings%' AND wait_event_type = 'Lock'`;
    await waitFor(async () => (await s.onShard(0, blocked)).length === 1, { what: 'the other to wait' });
    await expect(
      c.query('SELECT count(DISTINCT qty), (SELECT count(*) FROM settings) FROM items'),
    ).rejects.toMatchObject({ code: '40P01' });
    await c.query('ROLLBACK');
    await altered;
    await other.end();
    await c.end();
    await quiet();
  });

  it('fails as a shard does that it has written on, where nothing is left out', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(OWN);
    await expect(c.query('SELECT count(DISTINCT tenant_id) FROM judged')).rejects.toMatchObject({ code: '22012' });
    await c.query('ROLLBACK');
    await c.end();
  });

  it('does not wait for the connections of others that do the same', async () => {
    const clients = await Promise.all(Array.from({ length: 6 }, () => s.connect()));
    await Promise.all(
      clients.map(async (c, i) => {
        await c.query('BEGIN');
        for (const tenant of i % 2 === 0 ? [10 + i, 110 + i] : [110 + i, 10 + i])
          await c.query(`UPDATE orders SET note = 'own' WHERE tenant_id = ${tenant}`);
        const { rows } = await c.query(
          `SELECT count(*), count(DISTINCT tenant_id) AS d FROM orders WHERE note = 'own'`,
        );
        expect(rows).toEqual([{ count: '10', d: '2' }]);
        await c.query('ROLLBACK');
      }),
    );
    await quiet();
  });

  it('fails when rows that it has changed belong to another shard', async () => {
    const c = await s.connect();
    await c.query('BEGIN');
    await c.query(OWN);
    expect((await c.query(`SELECT count(*) FROM tenants WHERE name LIKE '%!'`)).rows).toEqual([{ count: '1' }]);
    await s.flipTo(160);
    const asked = () =>
      c.query('SELECT count(*) FROM tenants').then(
        () => 'answered',
        (error: pg.DatabaseError) => error.code,
      );
    // By the map of before it is answered.
    expect(await waitFor(async () => [await asked()].find((told) => told !== 'answered'), { what: 'the map' })).toBe(
      '40001',
    );
    await c.query('ROLLBACK');
    await s.flipTo(101);
    await s.reloaded();
    await c.query('BEGIN');
    expect((await c.query('SELECT count(*) FROM tenants')).rows).toEqual([{ count: '200' }]);
    await c.query('COMMIT');
    await c.end();
  });
});
