import { once } from 'node:events';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { B, bytewise, type Conversation, DP, E, H, Oracle, P, Q, S, whole } from '../support/oracle.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const one = (sql: string, ...values: string[]) => [P('', sql), B('', '', ...values), DP(''), E(''), S];
const ORDER = 'INSERT INTO orders (tenant_id, id) VALUES ($1, $2)';
const RENAME = 'UPDATE tenants SET name = $2 WHERE tenant_id = $1 RETURNING name';
const order = (tenant: number, id: number) => Q(`INSERT INTO orders (tenant_id, id) VALUES (${tenant}, ${id})`);

/** Tenant 1 is on the first shard, 150 and 151 on the second. */
const CONVERSATIONS: readonly Conversation[] = [
  {
    name: 'queries here and there, committed and rolled back',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', order(1, 1)],
      ['Z', order(150, 1)],
      ['Z', order(1, 2)],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 1 ORDER BY id')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id')],
      ['Z', Q('COMMIT')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id')],
      ['Z', Q('BEGIN')],
      ['Z', order(150, 2)],
      ['Z', order(1, 3)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q('START TRANSACTION')],
      ['Z', order(150, 4)],
      ['Z', order(1, 4)],
      ['Z', order(151, 4)],
      ['Z', Q('END')],
      ['Z', Q('SELECT 1')],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'batches',
    steps: [
      ['Z', ...one('BEGIN')],
      ['Z', ...one(ORDER, '1', '1')],
      ['Z', ...one(ORDER, '150', '1')],
      ['Z', ...one(RENAME, '1', 'x')],
      ['Z', ...one(RENAME, '150', 'y')],
      ['Z', ...one('COMMIT')],
      ['Z', P('b', 'BEGIN'), P('i', ORDER), P('c', 'COMMIT'), P('r', 'ROLLBACK'), S],
      ['Z', B('', 'b'), E(''), S],
      ['Z', B('', 'i', '1', '2'), E(''), S],
      ['Z', B('', 'i', '150', '2'), E(''), S],
      ['Z', B('', 'i', '1', '3'), DP(''), E(''), S],
      ['Z', B('', 'c'), DP(''), E(''), S],
      ['Z', B('', 'b'), E(''), S],
      ['Z', B('', 'i', '150', '9'), E(''), S],
      ['Z', B('', 'i', '1', '9'), E(''), S],
      ['Z', B('', 'r'), E(''), S],
      ['Z', B('', 'b'), E(''), S],
      ['Z', B('', 'i', '150', '10'), E(''), S],
      ['Z', B('', 'i', '1', '10'), E(''), S],
      ['1', P('', ORDER), H],
      ['Z', B('', '', '1', '11'), E(''), S],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'errors fail the whole transaction',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', order(1, 1)],
      ['Z', order(150, 1)],
      ['Z', order(150, 1)],
      ['Z', order(1, 2)],
      ['Z', Q('COMMIT')],
      ['Z', Q('BEGIN')],
      ['Z', order(150, 1)],
      ['Z', order(1, 1)],
      ['Z', Q('SELECT nothing')],
      ['Z', Q('ROLLBACK')],
      ['Z', ...one('BEGIN')],
      ['Z', ...one(ORDER, '150', '1')],
      ['Z', ...one(ORDER, '1', '1')],
      ['Z', ...one(ORDER, '150', 'no number')],
      ['Z', ...one(ORDER, '1', '1')],
      ['Z', ...one('COMMIT')],
      ['Z', Q('BEGIN')],
      ['Z', order(1, 5)],
      ['Z', order(150, 5)],
      ['Z', Q('syntax error')],
      ['Z', Q('ROLLBACK')],
      ['Z', order(1, 6)],
    ],
  },
  {
    name: 'savepoints are there on all shards',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', order(1, 1)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', order(150, 1)],
      ['Z', order(1, 2)],
      ['Z', Q('SAVEPOINT b')],
      ['Z', order(1, 3)],
      ['Z', order(150, 3)],
      ['Z', Q('ROLLBACK TO b')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 1 ORDER BY id')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id')],
      ['Z', order(150, 1)],
      ['Z', Q('ROLLBACK TO SAVEPOINT b')],
      ['Z', order(1, 4)],
      ['Z', Q('RELEASE b')],
      ['Z', Q('ROLLBACK TO b')],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 150 ORDER BY id')],
      ['Z', Q('SELECT id FROM orders WHERE tenant_id = 1 ORDER BY id')],
      ['Z', order(151, 7)],
      ['Z', Q('SAVEPOINT c')],
      ['Z', Q('RELEASE c')],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'a savepoint around every statement',
    steps: [
      ['Z', Q('BEGIN')],
      ...[1, 150, 1, 151, 150].flatMap((tenant, i): Conversation['steps'] => [
        ['Z', Q('SAVEPOINT s')],
        ['Z', order(tenant, i)],
        ['Z', Q('RELEASE s')],
      ]),
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'settings, in the transaction and beyond',
    steps: [
      ['Z', Q('BEGIN')],
      ['Z', Q(`SET LOCAL TimeZone TO 'Asia/Tokyo'`)],
      ['Z', order(1, 1)],
      ['Z', Q(`SELECT name, current_setting('TimeZone') FROM tenants WHERE tenant_id = 150 FOR UPDATE`)],
      ['Z', Q(`SET DateStyle TO 'German'`)],
      ['Z', Q(`SELECT date '2026-11-22' FROM tenants WHERE tenant_id = 1`)],
      ['Z', Q(`SELECT date '2026-11-22' FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q('SAVEPOINT a')],
      ['Z', Q(`SET application_name TO 'other'`)],
      ['Z', Q(`SELECT current_setting('application_name') FROM tenants WHERE tenant_id = 1`)],
      ['Z', Q('ROLLBACK TO a')],
      ['Z', Q(`SELECT current_setting('application_name') FROM tenants WHERE tenant_id = 1`)],
      ['Z', Q(`SELECT current_setting('application_name') FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q('COMMIT')],
      ['Z', Q(`SELECT date '2026-11-22', current_setting('TimeZone') FROM tenants WHERE tenant_id = 150`)],
      ['Z', Q(`SELECT date '2026-11-22', current_setting('TimeZone') FROM tenants WHERE tenant_id = 1`)],
      ['Z', Q('BEGIN')],
      ['Z', order(1, 2)],
      ['Z', Q(`SET TimeZone TO 'UTC'`)],
      ['Z', order(150, 2)],
      ['Z', Q('ROLLBACK')],
      ['Z', Q(`SELECT current_setting('TimeZone') FROM tenants WHERE tenant_id = 1`)],
      ['Z', Q(`SELECT current_setting('TimeZone') FROM tenants WHERE tenant_id = 150`)],
    ],
  },
  {
    name: 'reads only, and one that writes',
    steps: [
      ['Z', Q('BEGIN READ ONLY')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 1 AND current_setting($$TimeZone$$) <> $$$$')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', order(150, 1)],
      ['Z', Q('COMMIT')],
      ['Z', Q('BEGIN')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 1 FOR UPDATE')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 150')],
      ['Z', Q('COMMIT')],
      ['Z', Q('BEGIN')],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 1')],
      ['Z', order(150, 1)],
      ['Z', Q('SELECT name FROM tenants WHERE tenant_id = 1')],
      ['Z', Q('COMMIT')],
    ],
  },
  {
    name: 'statements sent without waiting for answers',
    steps: [
      ['ZZZZZ', Q('BEGIN'), order(1, 1), order(150, 1), order(1, 2), Q('COMMIT')],
      ['ZZZZ', ...one('BEGIN'), ...one(ORDER, '150', '3'), ...one(ORDER, '1', '3'), ...one('COMMIT')],
      ['ZZZZ', Q('BEGIN'), order(1, 4), order(150, 4), Q('ROLLBACK')],
      ['ZZ', Q('SELECT 1'), Q('SELECT 2')],
    ],
  },
];

describe('a transaction on several shards is what PostgreSQL makes of it on one', () => {
  let oracle: Oracle;
  beforeAll(async () => {
    // One connection to each shard: nobody waits for his own.
    oracle = await Oracle.start({ poolSize: 1 });
    await oracle.split();
  });
  afterAll(() => oracle.stop());
  for (const c of CONVERSATIONS) it(c.name, () => oracle.compareSpanning(c, whole));
  for (const c of CONVERSATIONS) it(`${c.name}, a byte at a time`, () => oracle.compareSpanning(c, bytewise));
});

describe('what can go wrong with a transaction on several shards', () => {
  let sharded: Sharded;
  beforeAll(async () => {
    sharded = await Sharded.start({ splitAt: 100, poolSize: 3 });
    await sharded.onShard(0, `INSERT INTO tenants SELECT n, 'here' FROM generate_series(1, 20) n`);
    await sharded.onShard(1, `INSERT INTO tenants SELECT n, 'there' FROM generate_series(101, 120) n`);
  });
  afterAll(() => sharded.stop());

  const names = async (here: number, there: number) => [
    (await sharded.onShard<{ name: string }>(0, 'SELECT name FROM tenants WHERE tenant_id = $1', [here]))[0]?.name,
    (await sharded.onShard<{ name: string }>(1, 'SELECT name FROM tenants WHERE tenant_id = $1', [there]))[0]?.name,
  ];
  const rename = (client: pg.Client, tenant: number, name: string) =>
    client.query('UPDATE tenants SET name = $2 WHERE tenant_id = $1', [tenant, name]);
  const nothingPrepared = async () => {
    for (const shard of [0, 1] as const)
      expect(await sharded.onShard(shard, 'SELECT gid FROM pg_prepared_xacts')).toEqual([]);
  };

  it('a deferred constraint that fails when it is committed takes all of it back', async () => {
    await sharded.onShard(1, 'ALTER TABLE orders ALTER CONSTRAINT orders_tenant_id_fkey DEFERRABLE INITIALLY DEFERRED');
    const client = await sharded.connect();
    await client.query('BEGIN');
    await rename(client, 1, 'new');
    await client.query('INSERT INTO orders (tenant_id, id) VALUES (999, 1)');
    await expect(client.query('COMMIT')).rejects.toMatchObject({ code: '23503' });
    expect(await names(1, 101)).toEqual(['here', 'there']);
    await client.query('SELECT 1');
    await nothingPrepared();
  });

  it.each([0, 1] as const)('a server process that dies on shard %i takes all of it back', async (shard) => {
    const client = await sharded.connect({ application_name: `dies-${shard}` });
    await client.query('BEGIN');
    await rename(client, 2, 'new');
    await rename(client, 102, 'new');
    await sharded.onShard(
      shard,
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dies-${shard}'`,
    );
    await waitFor(
      async () =>
        (await sharded.onShard(shard, `SELECT FROM pg_stat_activity WHERE application_name = 'dies-${shard}'`))
          .length === 0,
      { what: 'the end of the server process' },
    );
    await expect(rename(client, 2, 'once more')).rejects.toThrow();
    await client.query('COMMIT').catch(() => undefined);
    await waitFor(
      async () =>
        (
          await sharded.onShard(
            shard === 0 ? 1 : 0,
            `SELECT FROM pg_stat_activity WHERE application_name = 'dies-${shard}' AND state <> 'idle'`,
          )
        ).length === 0,
      { what: 'the rollback on the other shard' },
    );
    expect(await names(2, 102)).toEqual(['here', 'there']);
    await nothingPrepared();
  });

  it('a client that goes away leaves nothing', async () => {
    const client = await sharded.connect({ application_name: 'goes' });
    await client.query('BEGIN');
    await rename(client, 3, 'new');
    await rename(client, 103, 'new');
    await client.end();
    for (const shard of [0, 1] as const)
      await waitFor(
        async () =>
          (
            await sharded.onShard(
              shard,
              `SELECT FROM pg_stat_activity WHERE application_name = 'goes' AND state <> 'idle'`,
            )
          ).length === 0,
        { what: 'the rollback' },
      );
    expect(await names(3, 103)).toEqual(['here', 'there']);
  });

  it('a statement canceled on one shard fails the transaction, and it can go back to a savepoint', async () => {
    const [client, other] = [await sharded.connect(), await sharded.connect()];
    await other.query('BEGIN');
    await rename(other, 104, 'locked');
    await client.query('BEGIN');
    await rename(client, 4, 'new');
    await client.query('SAVEPOINT a');
    const waits = rename(client, 104, 'new');
    const refused = expect(waits).rejects.toMatchObject({ code: '57014' });
    await waitFor(
      async () =>
        (await sharded.onShard(1, `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'`)).length === 1,
      { what: 'the wait' },
    );
    await sharded.cancel(client);
    await refused;
    await client.query('ROLLBACK TO a');
    await rename(client, 105, 'new');
    await client.query('COMMIT');
    await other.query('ROLLBACK');
    expect(await names(4, 104)).toEqual(['new', 'there']);
    expect(await names(4, 105)).toEqual(['new', 'new']);
  });

  it('two that wait for each other on different shards are told apart', async () => {
    const [a, b] = [await sharded.connect(), await sharded.connect()];
    for (const client of [a, b]) await client.query('BEGIN');
    await rename(a, 6, 'a');
    await rename(b, 106, 'b');
    const outcomes = await Promise.allSettled([rename(a, 106, 'a'), rename(b, 6, 'b')]);
    const failed = outcomes.flatMap((o) => (o.status === 'rejected' ? [o.reason as { code: string }] : []));
    expect(failed).toMatchObject([{ code: '40P01' }]);
    const tags = await Promise.all([a.query('COMMIT'), b.query('COMMIT')]);
    const winner = outcomes[0]?.status === 'fulfilled' ? 'a' : 'b';
    expect(tags.map((tag) => tag.command)).toEqual(winner === 'a' ? ['COMMIT', 'ROLLBACK'] : ['ROLLBACK', 'COMMIT']);
    expect(await names(6, 106)).toEqual([winner, winner]);
  });

  it('more of them than the pools have connections, from both ends', async () => {
    const clients = await Promise.all(Array.from({ length: 6 }, () => sharded.connect()));
    await Promise.all(
      clients.map(async (client, i) => {
        const tenants = i % 2 === 0 ? [7 + i, 107 + i] : [107 + i, 7 + i];
        await client.query('BEGIN');
        await rename(client, tenants[0] as number, `by ${i}`);
        await rename(client, tenants[1] as number, `by ${i}`);
        await client.query('COMMIT');
      }),
    );
    for (const i of clients.keys()) expect(await names(7 + i, 107 + i)).toEqual([`by ${i}`, `by ${i}`]);
    await nothingPrepared();
  });

  it.each([
    ['REPEATABLE READ', 'a transaction on several shards cannot be REPEATABLE READ'],
    ['SERIALIZABLE', 'a transaction on several shards cannot be SERIALIZABLE'],
  ])('%s stays on one shard', async (level, message) => {
    const client = await sharded.connect();
    await client.query(`BEGIN ISOLATION LEVEL ${level}`);
    await rename(client, 15, 'new');
    await expect(rename(client, 115, 'new')).rejects.toMatchObject({ code: '0A000', message });
    await expect(client.query('SELECT 1')).rejects.toMatchObject({ code: '25P02' });
    await client.query('ROLLBACK');
    expect(await names(15, 115)).toEqual(['here', 'there']);
  });

  it.each([['COMMIT AND CHAIN'], ['ROLLBACK; BEGIN'], ['SELECT 1; COMMIT'], ['COMMIT; SELECT 1']])(
    'its end is sent alone: %s',
    async (text) => {
      const client = await sharded.connect();
      await client.query('BEGIN');
      await rename(client, 16, 'new');
      await rename(client, 116, 'new');
      await expect(client.query(text)).rejects.toMatchObject({ code: '0A000' });
      expect((await client.query('COMMIT')).command).toBe('ROLLBACK');
      expect(await names(16, 116)).toEqual(['here', 'there']);
    },
  );

  it('what was set on the way leaves nothing on a connection that others get', async () => {
    const client = await sharded.connect();
    await client.query('BEGIN');
    await client.query(`SET TimeZone TO 'Asia/Tokyo'`);
    // It has not done anything yet, and moves.
    await rename(client, 119, 'new');
    await rename(client, 19, 'new');
    await client.query('COMMIT');
    await client.end();
    for (const tenant of [19, 119])
      for (let n = 0; n < 3; n++) {
        const other = await sharded.connect({ options: '-c TimeZone=UTC' });
        const { rows } = await other.query(
          `SELECT current_setting('TimeZone') AS zone, pg_sleep(0) FROM tenants WHERE tenant_id = ${tenant}`,
        );
        expect(rows).toMatchObject([{ zone: 'UTC' }]);
        await other.end();
      }
  });

  it.each([['ROLLBACK TO a'], ['ROLLBACK']])(
    'what stands behind the end of its failure, in one message, is not sent to where that was: %s',
    async (end) => {
      const client = await sharded.connect();
      await client.query('BEGIN');
      await rename(client, 20, 'new');
      await client.query('SAVEPOINT a');
      await rename(client, 120, 'new');
      await expect(client.query('SELECT nothing FROM tenants WHERE tenant_id = 20')).rejects.toThrow();
      await expect(
        client.query(`${end}; UPDATE tenants SET name = 'lost' WHERE tenant_id = 120`),
      ).rejects.toMatchObject({
        code: '0A000',
      });
      await client.query('ROLLBACK');
      expect(await names(20, 120)).toEqual(['here', 'there']);
    },
  );

  it('ROLLBACK is answered whatever has become of its parts', async () => {
    const client = await sharded.connect({ application_name: 'parted' });
    await client.query('BEGIN');
    await rename(client, 20, 'new');
    await rename(client, 120, 'new');
    const gone = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'parted'`;
    await sharded.onShard(0, gone);
    await waitFor(async () => (await sharded.onShard(0, gone)).length === 0, { what: 'the end of the server process' });
    expect((await client.query('ROLLBACK')).command).toBe('ROLLBACK');
    expect((await rename(client, 20, 'here')).rowCount).toBe(1);
    expect(await names(20, 120)).toEqual(['here', 'there']);
  });

  it('a commit that waits at one of its shards can be canceled', async () => {
    await sharded.onShard(0, 'ALTER TABLE orders ALTER CONSTRAINT orders_tenant_id_fkey DEFERRABLE INITIALLY DEFERRED');
    const blocker = new pg.Client(sharded.clusters[0].url('shop'));
    await blocker.connect();
    await blocker.query('BEGIN; INSERT INTO tenants VALUES (50, $$being made$$)');
    const client = await sharded.connect();
    await client.query('BEGIN');
    await client.query('INSERT INTO orders (tenant_id, id) VALUES (1, 77)');
    await client.query(`DELETE FROM tenants WHERE tenant_id = 1 AND name = 'none'`);
    await blocker.query('SELECT FROM tenants WHERE tenant_id = 1 FOR UPDATE');
    await rename(client, 120, 'new');
    const commit = client.query('COMMIT');
    const refused = expect(commit).rejects.toMatchObject({ code: '57014' });
    await waitFor(
      async () =>
        (await sharded.onShard(0, `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'`)).length === 1,
      { what: 'the wait' },
    );
    await sharded.cancel(client);
    await refused;
    await blocker.end();
    expect(await names(20, 120)).toEqual(['here', 'there']);
    expect(await sharded.onShard(0, 'SELECT FROM orders WHERE id = 77')).toEqual([]);
    await client.query('SELECT 1');
    await nothingPrepared();
  });

  it.each([
    ['SET CONSTRAINTS ALL DEFERRED', 'SET CONSTRAINTS is not supported in a transaction on several shards'],
    ['SELECT lastval() FROM tenants WHERE tenant_id = 20', expect.stringContaining('currval() and lastval()')],
  ])('%s cannot be answered by one part of it', async (sql, message) => {
    const client = await sharded.connect();
    await client.query('BEGIN');
    for (const [tenant, id] of [
      [20, 90],
      [120, 90],
    ])
      await client.query('INSERT INTO orders (tenant_id, id) VALUES ($1, $2)', [tenant, id]);
    await client.query('SELECT name FROM tenants WHERE tenant_id = 20');
    await expect(client.query(sql)).rejects.toMatchObject({ code: '0A000', message });
    await client.query('ROLLBACK');
  });

  it('the time of the transaction is told by the part that was there first', async () => {
    const client = await sharded.connect();
    const told = {
      code: '0A000',
      message: expect.stringContaining('which is that of its part on shard "s1"'),
    };
    await client.query('BEGIN');
    await rename(client, 18, 'new');
    const before = (await client.query<{ now: Date }>('SELECT now()')).rows[0]?.now;
    await client.query('SAVEPOINT a');
    await expect(client.query('UPDATE tenants SET name = now()::text WHERE tenant_id = 118')).rejects.toMatchObject(
      told,
    );
    await client.query('ROLLBACK TO a');
    await rename(client, 118, 'new');
    // Wherever the last statement was.
    expect((await client.query<{ now: Date }>('SELECT now()')).rows[0]?.now).toEqual(before);
    expect((await client.query<{ now: Date }>('SELECT now() FROM tenants WHERE tenant_id = 18')).rows[0]?.now).toEqual(
      before,
    );
    await client.query('SAVEPOINT b');
    await expect(client.query('SELECT CURRENT_DATE FROM tenants WHERE tenant_id = 118')).rejects.toMatchObject(told);
    await client.query('ROLLBACK TO b');
    await client.query('COMMIT');
    expect(await names(18, 118)).toEqual(['new', 'new']);
  });

  it('so it is behind views, and by values', async () => {
    const client = await sharded.connect();
    await client.query(`CREATE TABLE notes (a int, at timestamptz DEFAULT now()); CREATE VIEW noted AS SELECT a FROM notes;
      CREATE VIEW lately AS SELECT a FROM notes WHERE at < CURRENT_TIMESTAMP`);
    const told = { code: '0A000', message: expect.stringContaining('which is that of its part on shard "s2"') };
    await client.query('BEGIN');
    await rename(client, 116, 'new');
    for (const [sql, ...values] of [
      ['INSERT INTO noted (a) VALUES (1)'],
      ['SELECT a FROM lately'],
      ['INSERT INTO notes VALUES (1, $1)', 'now'],
      ['INSERT INTO notes VALUES ($1, $2)', '1', ' Today 12:00'],
    ] as const) {
      await client.query('SAVEPOINT a');
      await expect(client.query(sql, [...values])).rejects.toMatchObject(told);
      await client.query('ROLLBACK TO a');
    }
    await client.query('INSERT INTO notes VALUES (2, $1)', ['2026-11-22']);
    await client.query('INSERT INTO settings VALUES ($1, $2)', ['mood', 'as good as it is now']);
    await client.query('COMMIT');
    expect(await sharded.onShard(0, 'SELECT a FROM notes')).toEqual([{ a: 2 }]);
  });

  it('one that has listened, or has a cursor, stays on its shard', async () => {
    const client = await sharded.connect();
    await client.query('BEGIN');
    await client.query('NOTIFY something');
    await rename(client, 17, 'new');
    await expect(rename(client, 117, 'new')).rejects.toMatchObject({
      code: '0A000',
      message: 'the transaction runs on shard "s1" (NOTIFY), and this statement belongs to shard "s2"',
    });
    await client.query('ROLLBACK');
  });
});

describe('a transaction of which a part hangs', () => {
  let sharded: Sharded;
  beforeAll(async () => {
    sharded = await Sharded.start({
      splitAt: 100,
      limits: { prepareTimeoutMs: 2_000 },
      pool: { connectTimeoutMs: 2_000 },
    });
    await sharded.onShard(0, `INSERT INTO tenants SELECT n, 'here' FROM generate_series(1, 3) n`);
    await sharded.onShard(1, `INSERT INTO tenants SELECT n, 'there' FROM generate_series(101, 103) n`);
    await sharded.onShard(1, 'ALTER TABLE orders ALTER CONSTRAINT orders_tenant_id_fkey DEFERRABLE INITIALLY DEFERRED');
  });
  afterAll(() => sharded.stop());

  const rename = (client: pg.Client, tenant: number) =>
    client.query(`UPDATE tenants SET name = 'new' WHERE tenant_id = $1`, [tenant]);
  const processOn = async (name: string): Promise<number> =>
    (
      await sharded.onShard<{ pid: number }>(1, 'SELECT pid FROM pg_stat_activity WHERE application_name = $1', [name])
    )[0]?.pid as number;
  /** Whatever its server process does. */
  const nothingOf = async (pid: number, ...tenants: number[]) => {
    await waitFor(
      async () => (await sharded.onShard(1, 'SELECT FROM pg_stat_activity WHERE pid = $1', [pid])).length === 0,
      { what: 'the end of the server process' },
    );
    for (const shard of [0, 1] as const) {
      expect(await sharded.onShard(shard, 'SELECT gid FROM pg_prepared_xacts')).toEqual([]);
      const sql = `UPDATE tenants SET name = name WHERE tenant_id = ANY($1) AND name = 'new'`;
      expect(await sharded.onShard(shard, `${sql} RETURNING tenant_id`, [tenants])).toEqual([]);
    }
  };

  it.each(['COMMIT', 'ROLLBACK', 'ROLLBACK TO a', 'a statement that fails'])(
    'is told so at %s, and rolled back',
    async (what) => {
      const client = await sharded.connect({ application_name: what });
      await client.query('BEGIN; SAVEPOINT a');
      await rename(client, 101);
      await rename(client, 1);
      const pid = await processOn(what);
      process.kill(pid, 'SIGSTOP');
      try {
        if (what === 'ROLLBACK') expect((await client.query(what)).command).toBe(what);
        else if (what === 'COMMIT')
          await expect(client.query(what)).rejects.toMatchObject({
            code: '08006',
            detail: 'shard "s2" has not answered for 2000 ms',
          });
        else {
          if (what === 'ROLLBACK TO a') await client.query(what);
          else await expect(client.query('SELECT nothing')).rejects.toMatchObject({ code: '42703' });
          if (what === 'ROLLBACK TO a') await expect(rename(client, 1)).rejects.toMatchObject({ code: '08006' });
          expect((await client.query('COMMIT')).command).toBe('ROLLBACK');
        }
        // Its other part is over, and the client goes on.
        await sharded.onShard(0, `SET lock_timeout = '10s'; UPDATE tenants SET name = 'here' WHERE tenant_id = 1`);
        expect((await client.query('SELECT name FROM tenants WHERE tenant_id = 1')).rows).toEqual([{ name: 'here' }]);
      } finally {
        process.kill(pid, 'SIGCONT');
      }
      await nothingOf(pid, 1, 101);
    },
  );

  it.each(['ROLLBACK', 'COMMIT'])('ends its client when that has the last statement, at %s', async (what) => {
    const client = await sharded.connect({ application_name: `last ${what}` });
    await client.query('BEGIN');
    await rename(client, 2);
    await rename(client, 102);
    const pid = await processOn(`last ${what}`);
    if (what === 'COMMIT') {
      // An error is told before its server is through with the statement.
      const through = once(client, 'drain');
      await expect(client.query('SELECT nothing')).rejects.toMatchObject({ code: '42703' });
      await through;
    }
    process.kill(pid, 'SIGSTOP');
    try {
      await expect(client.query(what)).rejects.toMatchObject({
        severity: 'FATAL',
        code: '08006',
        detail: 'shard "s2" has not answered for 2000 ms',
      });
      await sharded.onShard(0, `SET lock_timeout = '10s'; UPDATE tenants SET name = 'here' WHERE tenant_id = 2`);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    await nothingOf(pid, 2, 102);
  });

  it.each([
    [
      'waits for too long',
      false,
      { code: '08006', message: 'shard "s2" has not committed its part of the transaction in time' },
    ],
    ['hangs', true, { code: '08007', detail: 'shard "s2" has not answered for 2000 ms' }],
  ])('is told so when the only part that has written %s at the COMMIT', async (_, hangs, told) => {
    const blocker = new pg.Client(sharded.clusters[1].url('shop'));
    await blocker.connect();
    await blocker.query('BEGIN');
    const client = await sharded.connect({ application_name: `only ${hangs}` });
    await client.query('BEGIN');
    await client.query('INSERT INTO orders (tenant_id, id) VALUES (102, 1)');
    await blocker.query('SELECT FROM tenants WHERE tenant_id = 102 FOR UPDATE');
    await client.query('SELECT FROM tenants WHERE tenant_id = 2');
    const pid = await processOn(`only ${hangs}`);
    try {
      const refused = expect(client.query('COMMIT')).rejects.toMatchObject(told);
      await waitFor(
        async () =>
          (await sharded.onShard(1, `SELECT FROM pg_locks WHERE NOT granted AND pid = $1`, [pid])).length === 1,
        { what: 'the wait' },
      );
      if (hangs) process.kill(pid, 'SIGSTOP');
      await refused;
      expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    } finally {
      if (hangs) process.kill(pid, 'SIGCONT');
      await blocker.end();
    }
    if (hangs) await nothingOf(pid, 102);
    expect(await sharded.onShard(1, 'SELECT FROM orders')).toEqual([]);
  });

  it('is rolled back when it waits for too long to be prepared', async () => {
    const blocker = new pg.Client(sharded.clusters[1].url('shop'));
    await blocker.connect();
    await blocker.query('BEGIN');
    const client = await sharded.connect({ application_name: 'prepares' });
    await client.query('BEGIN');
    await client.query('INSERT INTO orders (tenant_id, id) VALUES (103, 1)');
    await blocker.query('SELECT FROM tenants WHERE tenant_id = 103 FOR UPDATE');
    await rename(client, 3);
    const pid = await processOn('prepares');
    try {
      await expect(client.query('COMMIT')).rejects.toMatchObject({
        code: '08006',
        message: 'shard "s2" has not prepared its part of the transaction in time',
      });
      await nothingOf(pid, 3, 103);
    } finally {
      await blocker.end();
    }
    expect(await sharded.onShard(1, 'SELECT FROM orders')).toEqual([]);
  });
});
