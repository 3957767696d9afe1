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
    const sql = 'SELECT id FROM orders, marks WHERE tenant_id = 1';
    await b.query({ name: 'prepared before', text: sql });
    for (let i = 0; i < 10; i++) {
      expect((await b.query(sql)).rowCount).toBe(1);
      // Now it may be a column of either table, and the statement is not about one tenant's orders.
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
    await a.query('CREATE VIEW shown AS SELECT name FROM settings');
    const open = await s.connect();
    await open.query('BEGIN; SELECT FROM orders WHERE tenant_id = 150');
    const locker = new pg.Client({ connectionString: s.clusters[0].url('shop') });
    await locker.connect();
    await locker.query('BEGIN; LOCK TABLE settings IN ACCESS EXCLUSIVE MODE');
    await a.query('CREATE TABLE unseen (x int)');
    let answered = false;
    const waiting = b.query('SELECT id FROM orders WHERE tenant_id = 150').then(() => {
      answered = true;
    });
    expect((await open.query('SELECT id FROM orders WHERE tenant_id = 150')).rowCount).toBe(1);
    await open.query('COMMIT');
    expect(answered).toBe(false);
    await locker.query('COMMIT');
    await waiting;
    await locker.end();
  });

  it('what is done directly on the home shard is found without being asked for', async () => {
    await b.query('SELECT name FROM settings');
    await s.onShard(0, 'CREATE VIEW counted AS SELECT count(*) FROM orders; GRANT SELECT ON counted TO app');
    await waitFor(
      async () => {
        try {
          await b.query('SELECT * FROM counted');
          return false;
        } catch (error) {
          return (error as pg.DatabaseError).code === '0A000';
        }
      },
      { what: 'the view to be known' },
    );
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
