import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { gateAction } from '../../migrator/guards.js';
import { objectNames } from '../../migrator/names.js';
import { Sharded, startProxy } from '../support/sharded.js';

// While a range moves, and until it is cleaned up behind the flip, two shards have its rows; one of them owns them.

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
  for (const shard of [0, 1] as const)
    await s.onShard(
      shard,
      `INSERT INTO tenants SELECT i, CASE WHEN (i < 100) = (${shard} = 0) THEN 'own' ELSE 'foreign' END FROM unnest('{5,7,150,160}'::int[]) i;
       INSERT INTO orders SELECT tenant_id, 1, name FROM tenants`,
    );
});
afterAll(() => s.stop());

const OWN = [5, 7, 150, 160].map((id) => ({ id, name: 'own' }));

describe('a SELECT over several shards shows each row once, as its owner has it', () => {
  it.each([
    ['everything', 'SELECT tenant_id::int AS id, name FROM tenants', OWN],
    ['by TABLE', 'TABLE tenants', OWN.map(({ id, name }) => ({ tenant_id: String(id), name }))],
    [
      'what a condition leaves',
      "SELECT tenant_id::int AS id, name FROM tenants t WHERE name = 'nobody' OR t.tenant_id > 5 LIMIT ALL",
      OWN.slice(1),
    ],
    [
      'the keys of a list',
      'SELECT tenant_id::int AS id, name FROM tenants WHERE tenant_id IN (5, 150)',
      [OWN[0], OWN[2]],
    ],
    [
      'joins by the key',
      `SELECT o.tenant_id::int AS id, t.name FROM orders o LEFT JOIN tenants AS t (k, name) ON o.tenant_id = t.k AND t.name = o.note`,
      OWN,
    ],
    [
      'a join under a name of its own',
      'SELECT j.tenant_id::int AS id, j.name FROM (tenants t JOIN orders o USING (tenant_id)) AS j',
      OWN,
    ],
    ['an aggregate', 'SELECT count(*)::int AS id, min(name) AS name FROM tenants', [{ id: 4, name: 'own' }]],
    [
      'what the home shard finishes',
      'SELECT tenant_id::int AS id, first_value(name) OVER (ORDER BY tenant_id) AS name FROM tenants ORDER BY 1',
      OWN,
    ],
    ['a table whose key has another name', 'SELECT k::int AS id, name FROM tenants AS t (k, name)', OWN],
  ] as const)('%s', async (_, sql, expected) => {
    const c = await s.connect();
    const sorted = (rows: readonly unknown[]) => rows.map((row) => JSON.stringify(row)).sort();
    const simple = await c.query(sql);
    expect(sorted(simple.rows)).toEqual(sorted(expected));
    expect(simple.rowCount).toBe(expected.length);
    for (let i = 0; i < 2; i++)
      expect(sorted((await c.query({ name: 'q', text: sql, values: [] })).rows)).toEqual(sorted(expected));
    await c.end();
  });

  it('by the map of the moment, with a prepared statement', async () => {
    const c = await s.connect();
    const query = {
      name: 'all',
      text: 'SELECT tenant_id::int AS id, name FROM tenants WHERE tenant_id > $1',
      values: [0],
    };
    const ids = async () => (await c.query(query)).rows.map(({ id, name }) => `${id} ${name}`).sort();
    expect(await ids()).toEqual(['150 own', '160 own', '5 own', '7 own']);
    await s.flipTo(155);
    await s.reloaded();
    expect(await ids()).toEqual(['150 foreign', '160 own', '5 own', '7 own']);
    await s.flipTo(100);
    await s.reloaded();
    await c.end();
  });

  it('and tells where an error is in the text that the client sent', async () => {
    const c = await s.connect();
    const sql = 'SELECT name FROM tenants WHERE name = 1::int';
    for (const text of [sql, { text: sql, values: [], name: 'wrong' }])
      await expect(c.query(text as string)).rejects.toMatchObject({ code: '42883', position: '37' });
    await c.end();
  });
});

it('the guards of a migration take nothing away from what is supported, also for a proxy that starts while they are there', async () => {
  const names = objectNames(1n, '00000000-0000-0000-0000-000000000001');
  const guarded = {
    keyspace: { method: 'range', keyTypes: ['int8'] } as const,
    interval: { lo: null, hi: null },
    keys: [['tenant_id']],
  };
  for (const sql of gateAction(names, guarded, 'source', 's1').sql) await s.onShard(0, sql);
  // As the one for updates that bring a row, whose text says nothing of what it may reach.
  await s.onShard(
    0,
    `CREATE FUNCTION ${names.gate.schema}.guard_arrival() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT 1'; RETURN NEW; END $$;
     CREATE TRIGGER ${names.trigger}_i BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION ${names.gate.schema}.guard_arrival()`,
  );
  const proxy = await startProxy(s.catalog, s.options);
  const c = await s.connect({ connectionString: `postgres://app:secret@127.0.0.1:${proxy.port}/shop` });
  try {
    expect((await c.query(`INSERT INTO orders VALUES (5, 2, 'guarded')`)).rowCount).toBe(1);
    expect((await c.query('SELECT note FROM orders WHERE tenant_id = 5 AND id = 2')).rows).toEqual([
      { note: 'guarded' },
    ]);
  } finally {
    await c.end();
    await proxy.close();
  }
});
