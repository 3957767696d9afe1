import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import { ProxyLeases } from '../../topology/catalog/leases.js';
import { withClient } from '../support/client.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

const REFUSED = { code: '0A000' };

/** Two proxies of one catalog; `a` and `b` are clients of them. */
async function twoProxies(splitAt: number | null) {
  const s = await Sharded.start({ splitAt });
  await withClient(s.clusters[0].url('shop'), async (c) => {
    await c.query('GRANT CREATE ON SCHEMA public TO app');
  });
  const other = await startProxy(s.catalog, s.options);
  const a = await s.connect();
  const b = await s.connect({ connectionString: `postgres://app:secret@127.0.0.1:${other.port}/shop` });
  return { s, other, a, b };
}

/** While the function is there, whoever locks `settings` keeps the schema from being read. */
const UNREADABLE =
  'CREATE FUNCTION shown() RETURNS SETOF text LANGUAGE sql BEGIN ATOMIC SELECT name FROM settings; END';

/** Keeps the schema of the home shard from being read until it is called. Resolves when somebody has been stopped by it. */
async function unreadable(s: Sharded, begin: () => Promise<unknown>): Promise<() => Promise<void>> {
  const locker = new pg.Client({ connectionString: s.clusters[0].url('shop') });
  await locker.connect();
  await locker.query('BEGIN; LOCK TABLE settings IN ACCESS EXCLUSIVE MODE');
  await begin();
  await waitFor(
    async () =>
      (
        await s.onShard(
          0,
          `SELECT FROM pg_stat_activity WHERE application_name = 'foreshard schema' AND wait_event_type = 'Lock'`,
        )
      ).length > 0,
    { what: 'a reading that waits' },
  );
  return async () => {
    await locker.query('COMMIT');
    await locker.end();
  };
}

const generation = async (s: Sharded) => (await s.catalog.loadTopology()).schemaGeneration;

describe('while several shards have data', () => {
  let s: Sharded;
  let other: ProxyServer;
  let a: pg.Client;
  let b: pg.Client;

  beforeAll(async () => {
    ({ s, other, a, b } = await twoProxies(100));
    for (const id of [1, 150]) {
      await a.query(`INSERT INTO tenants VALUES (${id}, 'tenant')`);
      await a.query(`INSERT INTO orders VALUES (${id}, 1, 'x')`);
    }
  });
  afterAll(async () => {
    await b?.end();
    await other?.close();
    await s?.stop();
  });

  it('another proxy knows what DDL has made by the time its client hears that it is done', async () => {
    await a.query('CREATE TABLE marks (mark int)');
    await a.query('INSERT INTO marks VALUES (1)');
    const sql = 'SELECT id FROM orders, marks WHERE tenant_id = 1 FOR UPDATE';
    await b.query({ name: 'prepared before', text: sql });
    for (let i = 0; i < 10; i++) {
      expect((await b.query(sql)).rowCount).toBe(1);
      // Now it may be a column of either table, and the statement locks orders of any tenant.
      await a.query('ALTER TABLE marks ADD tenant_id bigint DEFAULT 1');
      await expect(b.query(sql)).rejects.toMatchObject(REFUSED);
      await expect(b.query({ name: 'prepared before', text: sql })).rejects.toMatchObject(REFUSED);
      await a.query('ALTER TABLE marks DROP tenant_id');
    }
  });

  it('DDL in a transaction block is announced when it is committed, and waits for every live proxy to hear of it', async () => {
    const leases = new ProxyLeases(s.catalog.pool);
    const { epoch, schemaGeneration } = await s.catalog.loadTopology();
    const facts = { ttlMs: 3_600_000, epochAcked: epoch, schemaHeard: schemaGeneration };
    const id = randomUUID();
    await leases.register({ id, name: 'slow', listen: 'none', ...facts });
    await a.query('BEGIN; CREATE TABLE slow (x int)');
    expect(await generation(s)).toBe(schemaGeneration);
    let answered = false;
    const commit = a.query('COMMIT').then(() => {
      answered = true;
    });
    await waitFor(async () => (await generation(s)) > schemaGeneration, { what: 'the announcement' });
    // Whoever reads with us has heard of it long before.
    expect((await b.query('SELECT id FROM orders WHERE tenant_id = 150')).rowCount).toBe(1);
    expect(answered).toBe(false);
    await leases.renew(id, { ...facts, schemaHeard: await generation(s) });
    await commit;
    await leases.unregister(id);
  });

  it('nothing new is routed until the schema can be read, while transactions under way go on', async () => {
    await s.onShard(0, UNREADABLE);
    const open = await s.connect();
    await open.query('BEGIN; SELECT FROM orders WHERE tenant_id = 150');
    const release = await unreadable(s, () => a.query('CREATE TABLE unseen (x int)'));
    let answered = false;
    const waiting = b.query('SELECT id FROM orders WHERE tenant_id = 150').then(() => {
      answered = true;
    });
    expect((await open.query('SELECT id FROM orders WHERE tenant_id = 150')).rowCount).toBe(1);
    await open.query('COMMIT');
    expect(answered).toBe(false);
    await release();
    await waiting;
    await s.onShard(0, 'DROP FUNCTION shown');
  });

  it('temporary tables are nobody else’s matter', async () => {
    const before = await generation(s);
    await a.query('CREATE TEMP TABLE mine (x int)');
    await a.query('CREATE TEMP VIEW seen AS SELECT 1 AS one');
    await a.query('CREATE TABLE everybodys (x int)');
    expect(await generation(s)).toBe(before + 1n);
  });

  it('what is done directly on the home shard is found without being asked for', async () => {
    await b.query('SELECT name FROM settings');
    await s.onShard(0, 'CREATE VIEW counted AS SELECT count(*) FROM orders; GRANT SELECT ON counted TO app');
    const refused = await waitFor(
      () =>
        b.query('SELECT * FROM counted').then(
          () => null,
          (error: unknown) => error,
        ),
      { what: 'the view to be known' },
    );
    expect(refused).toMatchObject({ code: '0A000' });
  });
});

describe('while one shard has everything', () => {
  let s: Sharded;
  let other: ProxyServer;
  let a: pg.Client;
  let b: pg.Client;
  let ofOther: pg.Client;

  const sets = (name: string) =>
    `CREATE OR REPLACE FUNCTION ${name}() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('my.${name}', 'kept', false); RETURN 1; END $$`;
  /** What a client has is seen only where it is: on its own connection, which others use too unless it keeps it. */
  const kept = async (client: pg.Client, name: string) => {
    for (let i = 0; i < 3; i++) {
      expect((await client.query(`SELECT current_setting('my.${name}', true) AS v`)).rows[0].v).toBe('kept');
      expect(
        (await (await s.connect()).query(`SELECT nullif(current_setting('my.${name}', true), '') AS v`)).rows[0].v,
      ).toBe(null);
    }
  };

  beforeAll(async () => {
    s = await Sharded.start({ splitAt: null, holdTimeoutMs: 60_000, poolSize: 4 });
    await s.onShard(0, `${UNREADABLE}; GRANT CREATE ON SCHEMA public TO app`);
    await s.onShard(
      0,
      `CREATE FUNCTION harmless() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION harmless() OWNER TO app`,
    );
    await s.onShard(
      0,
      'CREATE TABLE watched (x int); CREATE TABLE others (x int); ALTER TABLE watched OWNER TO app; ALTER TABLE others OWNER TO app',
    );
    await s.proxy.close();
    s.proxy = await startProxy(s.catalog, s.options);
    a = await s.connect();
    b = await s.connect();
  });
  afterAll(() => s?.stop());

  it.each([
    ['a function that was made', sets('made'), 'SELECT made()', 'made'],
    ['one that was harmless before', sets('harmless'), 'SELECT harmless()', 'harmless'],
    [
      'a trigger',
      `CREATE FUNCTION watches() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('my.watches', 'kept', false); RETURN NEW; END $$;
       CREATE TRIGGER watching BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watches()`,
      'INSERT INTO watched VALUES (1)',
      'watches',
    ],
    ['a view', `${sets('viewed')}; CREATE VIEW looking AS SELECT viewed() AS x`, 'SELECT * FROM looking', 'viewed'],
  ])('DDL waits for nothing, and what may run it, %s, until it is known', async (_, ddl, use, name) => {
    const release = await unreadable(s, () => a.query(ddl));
    let answered = false;
    const waiting = b.query(use).then(() => {
      answered = true;
    });
    // Nor does anything else.
    for (const sql of [
      'INSERT INTO others VALUES (1)',
      'SELECT * FROM others',
      'CREATE TABLE more (x int)',
      'DROP TABLE more',
    ])
      await a.query(sql);
    expect(answered).toBe(false);
    await release();
    await waiting;
    expect(s.proxy.pins.all.get('settings of a function')).toBeGreaterThan(0);
    await kept(b, name);
    await b.query('DISCARD ALL');
  });

  it('statements of a transaction that is open wait for nothing, and leave nothing to others', async () => {
    await b.query('BEGIN');
    await b.query('SELECT * FROM others');
    const release = await unreadable(s, () => a.query(sets('late')));
    await b.query('SELECT late()');
    await b.query('COMMIT');
    await release();
    for (let i = 0; i < 8; i++) {
      const c = await s.connect();
      expect((await c.query(`SELECT nullif(current_setting('my.late', true), '') AS v`)).rows[0].v).toBe(null);
    }
  });

  it('other proxies have read the schema when code is said to be made', async () => {
    other = await startProxy(s.catalog, s.options);
    ofOther = await s.connect({ connectionString: `postgres://app:secret@127.0.0.1:${other.port}/shop` });
    let answered = false;
    let making: Promise<unknown> | undefined;
    const release = await unreadable(s, async () => {
      making = a.query(sets('elsewhere')).then(() => {
        answered = true;
      });
    });
    await ofOther.query('SELECT * FROM others');
    expect(answered).toBe(false);
    await release();
    await making;
    expect(answered).toBe(true);
    await ofOther.query('SELECT elsewhere()');
    await kept(ofOther, 'elsewhere');
    await ofOther.end();
    await other.close();
  });
});

describe('when data comes to be on several shards', () => {
  let all: Awaited<ReturnType<typeof twoProxies>>;
  beforeEach(async () => {
    all = await twoProxies(null);
  });

  it('what nobody has announced is known too', async () => {
    const { s, other, a, b } = all;
    await a.query(`DO $$ BEGIN CREATE VIEW counted AS SELECT count(*) FROM orders; END $$`);
    expect((await b.query('SELECT * FROM counted')).rowCount).toBe(1);
    await s.flipTo(100);
    await waitFor(
      async () => {
        const { rows } = await s.catalog.pool.query<{ all: boolean }>(
          'SELECT bool_and(epoch_acked = epoch) AS all FROM foreshard.proxy, foreshard.meta',
        );
        return rows[0]?.all === true;
      },
      { what: 'both proxies to serve the new epoch' },
    );
    for (const client of [a, b]) await expect(client.query('SELECT * FROM counted')).rejects.toMatchObject(REFUSED);
    await b.end();
    await other.close();
    await s.stop();
  });
});
