import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { ProxyServer } from '../../proxy/proxy-server.js';
import {
  encodeCancelRequest,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
  TERMINATE,
} from '../../proxy/wire/frontend.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { createHold, dropHold, holdStatus } from '../../topology/catalog/leases.js';
import { Registry } from '../../topology/catalog/registry.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { startTestCluster } from '../support/cluster.js';
import { type RawMessage, RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';
import {
  ADD,
  bind,
  connectTo,
  errorsIn,
  loginAt as login,
  POOL_OF_ONE,
  proxyOn,
  twoTenants,
  untilQuiet,
} from './faults.js';

let s: Sharded;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100, poolSize: 4 });
});
afterAll(() => s.stop());

beforeEach(() => twoTenants(s));

describe('a pool of one', () => {
  let one: ProxyServer;
  const connect = () => connectTo(one);
  beforeAll(async () => {
    one = await proxyOn(s.catalog, { poolSize: 1, leaseTtlMs: 10_000 });
  });
  afterAll(() => one.close());

  it('tells who waits in vain 53300, and serves when the connection is back', async () => {
    const holder = await connect();
    await holder.query('BEGIN');
    await holder.query('SELECT name FROM tenants WHERE tenant_id = 150');
    const other = await connect();
    await one.reload({ pool: { ...POOL_OF_ONE, queueTimeoutMs: 100 } });
    await expect(other.query('SELECT name FROM tenants WHERE tenant_id = 150')).rejects.toMatchObject({
      code: '53300',
    });
    await one.reload({ pool: POOL_OF_ONE });
    const waiting = other.query('SELECT name FROM tenants WHERE tenant_id = 150');
    await holder.query('COMMIT');
    expect((await waiting).rowCount).toBe(1);
  });

  it('lets a waiting client leave, or cancel, without losing the connection', async () => {
    const holder = await connect();
    const leaver = await login(one.port);
    const canceler = await RawPeer.connect(one.port);
    const key = (await canceler.login({ user: 'app', password: 'secret', database: 'shop' })).find(
      (m) => m.type === 'K',
    );
    await holder.query('BEGIN');
    await holder.query('SELECT name FROM tenants WHERE tenant_id = 150');
    leaver.send(encodeQuery(ADD));
    canceler.send(encodeQuery(ADD));
    leaver.destroy();
    const cancel = await RawPeer.connect(one.port);
    cancel.send(encodeCancelRequest(key?.body.readInt32BE(0) as number, key?.body.subarray(4) as Buffer));
    await cancel.expectClose();
    expect(errorsIn(await canceler.until('Z'))).toEqual(['ERROR 57014']);
    await holder.query('COMMIT');
    canceler.send(encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
    expect((await canceler.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    await untilQuiet(s);
    expect(await s.onShard(1, 'SELECT * FROM orders')).toEqual([]);
    canceler.destroy();
  });

  describe('the first statement of a transaction, or one alone, that waits for its connection', () => {
    const batch = (sql: string) => [encodeParse('', sql), bind(), encodeExecute(''), SYNC];
    const query = (sql: string) => [encodeQuery(sql)];
    const KINDS = [
      { kind: 'a Query', say: query, done: 'CZ', block: false },
      { kind: 'a Query', say: query, done: 'CZ', block: true },
      { kind: 'a batch', say: batch, done: '12CZ', block: false },
      { kind: 'a batch', say: batch, done: '12CZ', block: true },
    ];
    const rename = (to: string, tenant = 150) => `UPDATE tenants SET name = ${to} WHERE tenant_id = ${tenant}`;
    const waiting = () => [...one.pools.all].reduce((n, { counts }) => n + counts.waiting, 0);
    const untilItWaits = () => waitFor(() => waiting() === 1, { what: 'the statement to wait' });
    const BEHIND = 'SELECT FROM foreshard.meta m JOIN foreshard.proxy p ON p.epoch_acked < m.epoch';
    const untilHeard = () =>
      waitFor(async () => (await s.catalog.pool.query(BEHIND)).rowCount === 0, {
        what: 'the new epoch to be heard of',
      });
    const ask = async (peer: RawPeer, ...messages: Buffer[]) => {
      peer.send(...messages);
      return peer.until('Z');
    };

    /** One whose statements go the short way, as they do behind the first; what it sends waits, in a block if it is to. */
    async function waiter({ say, block }: (typeof KINDS)[number], sql: string): Promise<[RawPeer, RawMessage]> {
      const peer = await RawPeer.connect(one.port);
      peers.push(peer);
      // As pg has it: with other settings than the holder's it would go the long way when its turn comes.
      const parameters = { client_encoding: 'UTF8' };
      const login = await peer.login({ user: 'app', password: 'secret', database: 'shop', parameters });
      await ask(peer, encodeQuery(rename('name')));
      await holder.query('BEGIN');
      await holder.query(rename(`'held'`, held));
      if (block) await ask(peer, ...say('BEGIN'));
      peer.send(...say(sql));
      await untilItWaits();
      return [peer, login.find((m) => m.type === 'K') as RawMessage];
    }
    /** Has the only connection to the second shard meanwhile. */
    let holder: pg.Client;
    let held = 150;
    beforeEach(async () => {
      held = 150;
      holder = await connect();
    });
    const peers: RawPeer[] = [];
    afterEach(async () => {
      for (const peer of peers.splice(0)) peer.destroy();
      await holder.end();
    });

    it.each(KINDS)('is answered before what comes behind it: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`name || ' and more'`));
      // The first of these needs no connection.
      peer.send(encodeQuery(''), encodeQuery('SELECT name FROM tenants WHERE tenant_id = 150'));
      await holder.query('COMMIT');
      const told = await peer.until('Z');
      expect(told.map((m) => m.type).join('')).toBe(how.done);
      expect(told.at(-1)?.body.toString()).toBe(how.block ? 'T' : 'I');
      expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('IZ');
      expect((await peer.until('Z')).map((m) => m.body.toString('latin1')).join()).toContain('held and more');
      if (how.block) await ask(peer, ...how.say('COMMIT'));
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'held and more' }]);
    });

    it.each(KINDS)('is not done when it is canceled: $kind, in a block: $block', async (how) => {
      const [peer, key] = await waiter(how, rename(`'never'`));
      const cancel = await RawPeer.connect(one.port);
      cancel.send(encodeCancelRequest(key.body.readInt32BE(0), key.body.subarray(4)));
      await cancel.expectClose();
      const told = await peer.until('Z');
      expect(errorsIn(told)).toEqual(['ERROR 57014']);
      expect(told.at(-1)?.body.toString()).toBe(how.block ? 'E' : 'I');
      await holder.query('COMMIT');
      if (how.block) await ask(peer, ...how.say('ROLLBACK'));
      expect((await ask(peer, ...how.say(rename(`name || '!'`)))).map((m) => m.type).join('')).toBe(how.done);
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'held!' }]);
    });

    it.each(KINDS)('is not done when its client has gone: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`'never'`));
      peer.destroy();
      await waitFor(() => waiting() === 0, { what: 'it to leave' });
      await holder.query('COMMIT');
      await untilQuiet(s);
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'held' }]);
    });

    it('is told 53300 when that takes too long, and the next is served', async () => {
      await one.reload({ pool: { ...POOL_OF_ONE, queueTimeoutMs: 200 } });
      for (const how of KINDS) {
        if (how.block) continue;
        const [peer] = await waiter(how, rename(`'never'`));
        expect(errorsIn(await peer.until('Z'))).toEqual(['ERROR 53300']);
        await holder.query('COMMIT');
        await ask(peer, ...how.say(rename(`'done'`)));
        expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 'done' }]);
      }
      await one.reload({ pool: POOL_OF_ONE });
    });

    it.each(KINDS)('has its own settings: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`current_setting('my.setting', true)`));
      await holder.query(`SET my.setting = 'of another'`);
      await holder.query('COMMIT');
      expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
      if (how.block) await ask(peer, ...how.say('COMMIT'));
      expect([{ name: '' }, { name: null }]).toContainEqual((await s.onShard(1, 'SELECT name FROM tenants'))[0]);
    });

    it.each(KINDS)('goes where its rows have moved to meanwhile: $kind, in a block: $block', async (how) => {
      held = 500;
      await s.onShard(1, `INSERT INTO tenants VALUES (500, 't500')`);
      await s.onShard(0, `INSERT INTO tenants VALUES (150, 'moved')`);
      const [peer] = await waiter(how, rename(`name || ' and found'`));
      try {
        await s.flipTo(300);
        await untilHeard();
        await holder.query('COMMIT');
        expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
        if (how.block) await ask(peer, ...how.say('COMMIT'));
        expect(await s.onShard(0, 'SELECT name FROM tenants WHERE tenant_id = 150')).toEqual([
          { name: 'moved and found' },
        ]);
        expect(await s.onShard(1, 'SELECT name FROM tenants WHERE tenant_id = 150')).toEqual([{ name: 't150' }]);
      } finally {
        await s.flipTo(100);
        await untilHeard();
      }
    });

    it.each(KINDS)('belongs to several shards meanwhile: $kind, in a block: $block', async (how) => {
      held = 500;
      await s.onShard(1, `INSERT INTO tenants VALUES (500, 't500'), (200, 't200')`);
      await s.onShard(0, `INSERT INTO tenants VALUES (150, 'moved')`);
      const [peer] = await waiter(how, 'SELECT name FROM tenants WHERE tenant_id IN (150, 200)');
      try {
        await s.flipTo(180);
        await untilHeard();
        await holder.query('COMMIT');
        const told = await peer.until('Z');
        expect(told.at(-1)?.body.toString()).toBe(how.block ? 'T' : 'I');
        expect(told.filter((m) => m.type === 'D').map((m) => m.body.toString('latin1', 6))).toEqual(['moved', 't200']);
        // It keeps no connection.
        if (how.block) await ask(peer, ...how.say('ROLLBACK'));
        expect((await holder.query('SELECT name FROM tenants WHERE tenant_id = 500')).rowCount).toBe(1);
        const kept = () => [...one.pools.all].reduce((n, { status }) => n + status.clActive, 0);
        await waitFor(() => kept() === 0, { what: 'all connections to be given back' });
      } finally {
        await s.flipTo(100);
        await untilHeard();
      }
    });

    it.each(KINDS)(
      'lets others have the connection while its range is held: $kind, in a block: $block',
      async (how) => {
        await s.onShard(1, `INSERT INTO tenants VALUES (500, 't500')`);
        held = 500;
        const [peer] = await waiter(how, rename(`'done'`));
        const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
        const id = await createHold(s.catalog.pool, {
          migrationId: 1n,
          keyspace,
          lo: [100n],
          hi: [300n],
          referenceTables: false,
          deadlineMs: 20_000,
        });
        try {
          // What waits for a connection is not waited for.
          await waitFor(async () => (await holdStatus(s.catalog.pool, id)).waitingFor.length === 0, {
            what: 'the hold',
          });
          await holder.query('COMMIT');
          await holder.query(rename(`'again'`, held));
          expect(await s.onShard(1, 'SELECT name FROM tenants ORDER BY 1')).toEqual([
            { name: 'again' },
            { name: 't150' },
          ]);
        } finally {
          await dropHold(s.catalog.pool, id);
        }
        expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
        if (how.block) await ask(peer, ...how.say('COMMIT'));
        expect(await s.onShard(1, 'SELECT name FROM tenants ORDER BY 1')).toEqual([
          { name: 'again' },
          { name: 'done' },
        ]);
      },
    );

    it.each(KINDS.slice(1, 3))('goes on over another when its own is cut: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`name || '!'`));
      await s.onShard(
        1,
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND state <> 'idle'`,
      );
      expect((await peer.until('Z')).map((m) => m.type).join('')).toBe(how.done);
      if (how.block) await ask(peer, ...how.say('COMMIT'));
      expect(await s.onShard(1, 'SELECT name FROM tenants')).toEqual([{ name: 't150!' }]);
    });

    it.each(KINDS.slice(1, 3))('is carried out after a goodbye: $kind, in a block: $block', async (how) => {
      const [peer] = await waiter(how, rename(`name || '!'`));
      if (how.block) peer.send(...how.say('COMMIT'));
      peer.send(TERMINATE);
      peer.socket.end();
      await holder.query('COMMIT');
      await waitFor(
        async () => (await s.onShard<{ name: string }>(1, 'SELECT name FROM tenants'))[0]?.name === 'held!',
        {
          what: 'what it had asked for',
        },
      );
      await untilQuiet(s);
    });
  });

  it('runs many statements for several shards at once without a deadlock', async () => {
    const clients = await Promise.all(Array.from({ length: 4 }, () => connect()));
    const answers = await Promise.all(
      clients.flatMap((c) => [
        c.query('SELECT name FROM tenants'),
        c.query('SELECT name FROM tenants WHERE tenant_id > $1', [0]),
      ]),
    );
    for (const { rows } of answers) expect(rows.map((r) => r.name).sort()).toEqual(['t1', 't150']);
  });

  it('lets clients go that leave while they wait for their login’s connection', async () => {
    const holder = await connect();
    await holder.query('BEGIN');
    await holder.query('SELECT name FROM tenants WHERE tenant_id = 1');
    for (let i = 0; i < 5; i++) {
      const peer = await RawPeer.connect(one.port);
      const loggingIn = peer.login({ user: 'app', password: 'secret', database: 'shop' }).catch(() => undefined);
      await waitFor(() => peer.socket.bytesWritten > 180, { what: 'the last message of the login' });
      peer.destroy();
      await loggingIn;
    }
    await holder.query('COMMIT');
    const next = await connect();
    expect((await next.query('SELECT name FROM tenants WHERE tenant_id = 1')).rowCount).toBe(1);
    await untilQuiet(s);
  });
});

describe('the catalog goes away', () => {
  it('serves until the lease ends, then refuses, and serves again when the catalog is back', async () => {
    const cluster = await startTestCluster();
    await withClient(cluster.url('postgres'), (c) => c.query('CREATE DATABASE foreshard'));
    const pool = new pg.Pool({ connectionString: cluster.url('foreshard') });
    await initCatalog(pool, 'shop');
    await pool.end();
    const catalog = await Catalog.connect(cluster.url('foreshard'));
    const registry = new Registry(catalog, 'test');
    await registry.addShard({ name: 's1', url: s.clusters[0].url('shop') });
    await registry.createKeyspace({ name: 'main', method: 'range', keyTypes: ['int8'] });
    await registry.addTable({
      table: { schema: 'public', table: 'tenants' },
      keyspace: 'main',
      keyColumns: ['tenant_id'],
    });
    const proxy = await proxyOn(catalog, { poolSize: 2, leaseTtlMs: 3000, holdTimeoutMs: 500 });
    const c = await connectTo(proxy);
    const add = (id: number) => c.query(`INSERT INTO tenants VALUES (${id}, 'x')`);
    await add(2);
    await cluster.crash();
    await add(3);
    const ended = await waitFor(
      () =>
        c.query('SELECT name FROM tenants WHERE tenant_id = 1').then(
          () => null,
          (error: unknown) => error,
        ),
      { what: 'the end of the lease' },
    );
    expect(ended).toMatchObject({ code: '57P03' });
    const asked = performance.now();
    await expect(add(4)).rejects.toMatchObject({ code: '57P03' });
    expect(performance.now() - asked).toBeGreaterThan(450);
    // A transaction that no server has heard of fails as PostgreSQL's would, and the session lives on.
    await c.query('BEGIN');
    await expect(add(4)).rejects.toMatchObject({ code: '57P03' });
    await expect(add(4)).rejects.toMatchObject({ code: '25P02' });
    expect((await c.query('ROLLBACK')).command).toBe('ROLLBACK');
    await cluster.restart();
    await waitFor(() => add(5).then(() => true), { what: 'the proxy to serve again' });
    expect((await c.query('SELECT tenant_id::int AS id FROM tenants ORDER BY 1')).rows.map((r) => r.id)).toEqual([
      1, 2, 3, 5,
    ]);
    await c.end();
    await proxy.close();
    await catalog.close();
  });
});
