import type pg from 'pg';
import { describe, expect, it } from 'vitest';
import {
  encodeBind,
  encodeDescribe,
  encodeExecute,
  encodeParse,
  encodeQuery,
  SYNC,
} from '../../proxy/wire/frontend.js';
import { administered, failure, show, type Values } from '../support/administered.js';
import { RawPeer } from '../support/raw-peer.js';
import { waitFor } from '../support/wait-for.js';

const at = administered();
const { admin } = at;

const VIEWS = [
  ...['HELP', 'VERSION', 'CLIENTS', 'SERVERS', 'SOCKETS', 'POOLS', 'SHARD_POOLS', 'PINS', 'STATS', 'STATS_TOTALS'],
  ...['STATS_AVERAGES', 'TOTALS', 'LISTS', 'DATABASES', 'USERS', 'CONFIG', 'STATE', 'MEM', 'SHARDS', 'KEYSPACES'],
  ...['RANGES', 'REPLICAS', 'TEMPLATES', 'MIGRATIONS', 'PLANS'],
];

describe('login', () => {
  it('lets in those who are named, with the password that the proxy knows', async () => {
    const client = await admin();
    expect((await show(client, 'VERSION'))[0]).toEqual({ version: expect.stringMatching(/^Foreshard \d/) });
    expect((await failure(admin('root', 'wrong'))).code).toBe('28P01');
    const error = await failure(admin('nobody', 'nothing'));
    expect(error.code).toBe('28000');
    expect(error.hint).toContain('proxy.admin.users');
    // Their own passwords are as good as for any other database.
    await show(await admin('app', 'secret'), 'VERSION');
  });

  it('lets a user who may only look do no more', async () => {
    const watcher = await admin('watcher', 'eyes');
    for (const view of VIEWS) await show(watcher, view);
    for (const command of ['PAUSE', 'RESUME', 'KILL', 'RELOAD', 'SHUTDOWN', 'KILL_CLIENT 1', 'DISABLE shop']) {
      const error = await failure(watcher.query(command));
      expect([command, error.code, error.message]).toEqual([command, '42501', 'admin access needed']);
    }
  });

  it('says the parameters that drivers and psql look at', async () => {
    const peer = await RawPeer.connect(at.s.proxy.port);
    const told = await peer.login({ user: 'root', password: 'toor', database: 'foreshard_admin' });
    const names = told.filter((m) => m.type === 'S').map((m) => m.body.toString('latin1').split('\0').slice(0, 2));
    expect(Object.fromEntries(names as [string, string][])).toMatchObject({
      server_version: expect.stringMatching(/^\d.*\/foreshard$/),
      client_encoding: 'UTF8',
      standard_conforming_strings: 'on',
      DateStyle: 'ISO',
    });
    peer.end();
  });
});

describe('protocol', () => {
  it('gives every view the same rows in the simple and in the extended protocol', async () => {
    const client = await admin();
    for (const view of VIEWS) {
      const simple = await client.query(`SHOW ${view}`);
      const extended = await client.query({ text: `SHOW ${view};`, name: `s_${view}`, values: [] });
      const named = (fields: pg.FieldDef[]) => fields.map((f) => [f.name, f.dataTypeID]);
      expect(named(extended.fields)).toEqual(named(simple.fields));
      expect(new Set(simple.fields.map((f) => f.name)).size).toBe(simple.fields.length);
      for (const row of simple.rows) expect(Object.keys(row)).toHaveLength(simple.fields.length);
      if (!['MEM', 'CLIENTS', 'SOCKETS', 'STATS', 'TOTALS', 'STATS_TOTALS'].includes(view))
        expect(extended.rows).toEqual(simple.rows);
    }
  });

  it('describes columns with their types, and gives values in binary when asked to', async () => {
    const peer = await RawPeer.login(at.s.proxy.port, { user: 'root', password: 'toor', database: 'foreshard_admin' });
    peer.send(
      encodeParse('', 'SHOW LISTS'),
      encodeDescribe('statement', ''),
      encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [0, 1] }),
      encodeExecute('', 1),
      encodeExecute('', 0),
      SYNC,
    );
    await peer.expect('1');
    expect((await peer.expect('t')).body.readInt16BE(0)).toBe(0);
    await peer.expect('T');
    await peer.expect('2');
    const row = await peer.expect('D');
    expect(row.body.subarray(0, 15)).toEqual(Buffer.from('\0\x02\0\0\0\x09databases', 'latin1'));
    expect(row.body.subarray(15)).toEqual(Buffer.from([0, 0, 0, 4, 0, 0, 0, 1]));
    await peer.expect('s');
    const rest = await peer.until('Z');
    expect(rest.map((m) => m.type).join('')).toMatch(/^D+CZ$/);
    peer.end();
  });

  it('takes what drivers send unasked', async () => {
    const client = await admin();
    for (const sql of [
      'SET extra_float_digits = 3',
      `SET client_encoding TO 'UTF8'`,
      `SET SESSION application_name = 'x'`,
      `SET TIME ZONE 'UTC'`,
      'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
      'DISCARD ALL',
      'UNLISTEN *',
      'DEALLOCATE ALL',
      'RESET ALL',
      '',
      ';',
      '/* ping */ -- nothing',
    ])
      await client.query(sql);
    expect((await client.query('SELECT 1')).rows).toEqual([{ '?column?': 1 }]);
    expect((await client.query('SHOW TRANSACTION ISOLATION LEVEL')).rows).toEqual([
      { transaction_isolation: 'read committed' },
    ]);
    expect((await client.query('SHOW client_encoding')).rows).toEqual([{ client_encoding: 'UTF8' }]);
    const several = (await client.query('BEGIN; SHOW VERSION; COMMIT')) as unknown as pg.QueryResult[];
    expect(several.map((r) => r.command)).toEqual(['BEGIN', 'SHOW', 'COMMIT']);
  });

  it('refuses what it does not understand in PostgreSQL’s terms, and goes on', async () => {
    const client = await admin();
    const unknown = await failure(client.query('SELECT * FROM orders'));
    expect([unknown.code, unknown.hint]).toEqual(['42601', expect.stringContaining('SHOW HELP')]);
    expect((await failure(client.query('SHOW NOTHING'))).code).toBe('42601');
    const parameter = await failure(client.query('KILL_CLIENT $1', [1]));
    expect([parameter.code, parameter.message]).toEqual([
      '0A000',
      'parameters are not supported in the admin database',
    ]);
    expect((await failure(client.query({ text: 'SHOW VERSION', values: [1] }))).code).toBe('08P01');
    expect((await failure(client.query('SUSPEND'))).code).toBe('0A000');
    expect((await failure(client.query('RELOAD'))).code).toBe('0A000'); // the test runs no "foreshard serve"
    expect((await failure(client.query('SET no_such_thing = 1'))).code).toBe('42704');
    await client.query('BEGIN');
    expect((await failure(client.query('nonsense'))).code).toBe('42601');
    expect((await failure(client.query('SHOW VERSION'))).code).toBe('25P02');
    expect((await client.query('COMMIT')).command).toBe('ROLLBACK');
    expect(await show(client, 'VERSION')).toHaveLength(1);
  });

  it('skips to Sync after an error, and knows statements and portals by name', async () => {
    const peer = await RawPeer.login(at.s.proxy.port, { user: 'root', password: 'toor', database: 'foreshard_admin' });
    const bind = (statement: string) =>
      encodeBind({ portal: '', statement, formats: [], values: [], resultFormats: [] });
    peer.send(bind('missing'), encodeExecute(''), encodeParse('a', 'SHOW VERSION'), SYNC);
    expect((await peer.expectError()).sqlstate).toBe('26000');
    await peer.expect('Z');
    peer.send(encodeParse('a', 'SHOW VERSION'), encodeParse('a', 'SHOW VERSION'), SYNC);
    await peer.expect('1');
    expect((await peer.expectError()).sqlstate).toBe('42P05');
    await peer.expect('Z');
    peer.send(bind('a'), encodeExecute(''), encodeExecute('other'), SYNC);
    expect((await peer.until('E')).map((m) => m.type)).toEqual(['2', 'D', 'C', 'E']);
    await peer.expect('Z');
    peer.send(encodeQuery('SHOW VERSION'), encodeQuery('SHOW VERSION'));
    expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    expect((await peer.until('Z')).map((m) => m.type).join('')).toBe('TDCZ');
    peer.end();
  });
});

describe('what is shown', () => {
  it('shows clients with what they do, and the server they have', async () => {
    const client = await at.s.connect({ application_name: 'shop front' });
    const look = await admin();
    const mine = async () => {
      const { processID } = client as unknown as { processID: number };
      return (await show(look, 'CLIENTS')).find((row) => Number(row.id) === processID) as Values;
    };
    expect(await mine()).toMatchObject({
      type: 'C',
      user: 'app',
      database: 'shop',
      state: 'idle',
      activity: 'idle',
      application_name: 'shop front',
      addr: '127.0.0.1',
      pinned: null,
      link: '',
    });
    await client.query('BEGIN');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 150');
    const busy = await mine();
    expect(busy).toMatchObject({ state: 'active', activity: 'idle in transaction', shard: 's2' });
    const server = (await show(look, 'SERVERS')).find((row) => row.ptr === busy.link) as Values;
    expect(server).toMatchObject({ type: 'S', state: 'active', shard: 's2', link: busy.ptr, client_id: busy.id });
    expect((await client.query('SELECT name FROM tenants WHERE tenant_id = 150')).rows).toHaveLength(0);
    const pids = await at.s.onShard<{ pid: number }>(1, `SELECT pid FROM pg_stat_activity WHERE usename = 'app'`);
    expect(pids.map((r) => r.pid)).toContain(server.remote_pid);
    await client.query('ROLLBACK');
    expect(await mine()).toMatchObject({ state: 'idle', activity: 'idle', shard: null });
    expect(Number((await mine()).queries)).toBe(4);
    await client.end();
    await waitFor(async () => !(await mine()), { what: 'the client to be gone' });
    const self = (await show(look, 'CLIENTS')).find(
      (row) => Number(row.id) === (look as unknown as { processID: number }).processID,
    );
    expect(self).toMatchObject({
      database: 'foreshard_admin',
      user: 'root',
      state: 'active',
      application_name: 'the console',
    });
  });

  it('shows clients that wait, for how long, and pools that are full', async () => {
    const late = await at.s.connect();
    const holders = await Promise.all([at.s.connect(), at.s.connect(), at.s.connect()]);
    for (const holder of holders) {
      await holder.query('BEGIN');
      await holder.query('SELECT name FROM tenants WHERE tenant_id = 1');
    }
    const waiting = late.query('SELECT name FROM tenants WHERE tenant_id = 2');
    const look = await admin();
    const pool = await waitFor(
      async () => (await show(look, 'SHARD_POOLS')).find((row) => row.shard === 's1' && row.cl_waiting === 1),
      { what: 'a client to wait' },
    );
    expect(pool).toMatchObject({ user: 'app', sv_active: 3, sv_idle: 0, pool_mode: 'transaction' });
    const [total] = await show(look, 'POOLS');
    expect(total).toMatchObject({ database: 'shop', user: 'app', cl_waiting: 1 });
    const client = (await show(look, 'CLIENTS')).find((row) => row.state === 'waiting');
    expect(client).toMatchObject({ activity: 'waiting' });
    for (const holder of holders) await holder.query('COMMIT');
    await waiting;
    await waitFor(async () => (await show(look, 'SHARD_POOLS')).every((row) => row.cl_waiting === 0), {
      what: 'nobody to wait',
    });
    const [stats] = await show(look, 'STATS');
    expect(Number(stats?.total_wait_time)).toBeGreaterThan(0);
    for (const client of [...holders, late]) await client.end();
  });

  it('counts templates, with quantiles of their latency', async () => {
    const client = await at.s.connect();
    for (let i = 0; i < 20; i++) await client.query(`SELECT note FROM orders WHERE tenant_id = ${i} AND id = 77`);
    await client.query(`SELECT note FROM orders WHERE note = 'x'`);
    const rows = await show(await admin(), 'TEMPLATES');
    const one = rows.find((row) => /id = /.test(String(row.template)) && Number(row.calls) === 20) as Values;
    expect(one).toMatchObject({ route: 's1', spread_calls: '0' });
    // Where they were fast enough for it, most of them ran among others'.
    expect(['lane', 'lease']).toContain(one.way);
    expect(String(one.template)).not.toContain('77');
    const [p50, p95, p99] = [one.p50_time, one.p95_time, one.p99_time].map(Number) as [number, number, number];
    expect(p50).toBeGreaterThan(0);
    expect(p95).toBeGreaterThanOrEqual(p50);
    expect(p99).toBeGreaterThanOrEqual(p95);
    expect(rows.find((row) => /where note = /i.test(String(row.template)))).toMatchObject({ way: 'fan-out' });
    await client.end();
  });

  it('counts statements, bytes and prepared statements as PgBouncer does', async () => {
    const look = await admin();
    const before = (await show(look, 'STATS_TOTALS'))[0] as Values;
    const client = await at.s.connect();
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    for (let i = 0; i < 3; i++)
      await client.query({ name: 'q', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: ['1'] });
    await client.end();
    await waitFor(async () => (await show(look, 'CLIENTS')).every((row) => row.database !== 'shop'), {
      what: 'it to be gone',
    });
    const after = (await show(look, 'STATS_TOTALS'))[0] as Values;
    const grown = (name: string) => Number(after[name]) - Number(before[name]);
    expect(grown('query_count')).toBe(4);
    expect(grown('xact_count')).toBe(4);
    expect(grown('client_parse_count')).toBe(1);
    expect(grown('bind_count')).toBe(3);
    expect(grown('server_parse_count')).toBe(1);
    expect(grown('bytes_received')).toBeGreaterThan(100);
    expect(grown('bytes_sent')).toBeGreaterThan(100);
    expect(grown('query_time')).toBeGreaterThan(0);
    const [stats] = await show(look, 'STATS');
    expect(stats?.total_query_count).toBe(after.query_count);
  });

  it('shows who is pinned and why, now and since the start', async () => {
    const look = await admin();
    const client = await at.s.connect();
    const pins = async () => (await show(look, 'PINS')).find((row) => row.reason === 'temporary table');
    const before = Number((await pins())?.total ?? 0);
    await client.query('BEGIN');
    await client.query('SELECT name FROM tenants WHERE tenant_id = 1');
    await client.query('CREATE TEMPORARY TABLE mine (n int)');
    await client.query('COMMIT');
    expect(await pins()).toEqual({ reason: 'temporary table', clients: '1', total: String(before + 1) });
    const row = (await show(look, 'CLIENTS')).find((r) => r.pinned !== null);
    expect(row).toMatchObject({ pinned: 'temporary table', state: 'active', activity: 'idle', shard: 's1' });
    await client.end();
    await waitFor(async () => (await pins())?.clients === '0', { what: 'nobody to be pinned' });
    expect((await pins())?.total).toBe(String(before + 1));
  });

  it('shows shards, keyspaces, ranges and configuration, and no password', async () => {
    const look = await admin();
    const shards = await show(look, 'SHARDS');
    expect(shards).toMatchObject([
      { name: 's1', home: true, paused: false, ranges: '1' },
      { name: 's2', home: false, paused: false, ranges: '1' },
    ]);
    expect(await show(look, 'KEYSPACES')).toMatchObject([
      { name: 'main', method: 'range', key_types: 'int8', tables: '3' },
    ]);
    expect(await show(look, 'RANGES')).toMatchObject([
      { keyspace: 'main', lo: null, hi: '100', shard: 's1', held: false },
      { keyspace: 'main', lo: '100', hi: null, shard: 's2', held: false },
    ]);
    const config = await show(look, 'CONFIG');
    expect(config.find((row) => row.key === 'max_client_conn')?.value).toBe('200');
    const lists = new Map((await show(look, 'LISTS')).map((row) => [row.list, row.items]));
    expect([lists.get('databases'), lists.get('shards')]).toEqual([1, 2]);
    for (const view of VIEWS) expect(JSON.stringify(await show(look, view))).not.toMatch(/toor|secret|SCRAM-SHA/);
  });

  it('has no two pools or databases that an exporter could not tell apart', async () => {
    const look = await admin();
    const keys = (rows: Values[], names: string[]) => rows.map((row) => names.map((n) => row[n]).join('|'));
    for (const [view, names] of [
      ['POOLS', ['database', 'user']],
      ['DATABASES', ['name', 'host', 'port', 'database', 'force_user', 'pool_mode']],
      ['STATS', ['database']],
    ] as const) {
      const found = keys(await show(look, view), [...names]);
      expect(found.length).toBeGreaterThan(0);
      expect(new Set(found).size).toBe(found.length);
    }
  });
});

describe('when nothing else works', () => {
  it('is there when all places of clients are taken, and shows thousands of them to a slow reader', async () => {
    const clients = await Promise.all(Array.from({ length: 200 - at.s.proxy.clients.size }, () => at.s.connect()));
    expect((await failure(at.s.connect())).code).toBe('53300');
    const look = await admin();
    expect((await show(look, 'CLIENTS')).filter((row) => row.database === 'shop')).toHaveLength(200);
    const slow = await RawPeer.login(at.s.proxy.port, { user: 'root', password: 'toor', database: 'foreshard_admin' });
    slow.socket.pause();
    for (let i = 0; i < 50; i++) slow.send(encodeQuery('SHOW CLIENTS'));
    await show(look, 'LISTS');
    slow.socket.resume();
    for (let i = 0; i < 50; i++) {
      const rows = (await slow.until('Z')).filter((m) => m.type === 'D').length;
      expect(rows).toBeGreaterThanOrEqual(200);
    }
    slow.end();
    for (const client of clients) await client.end();
  });

  it('is there while clients wait in a PAUSE; they come in at RESUME, however long it took', async () => {
    const limits = { maxClients: 200, loginTimeoutMs: 2000, holdTimeoutMs: 10_000, maxStartups: 2 };
    const port = at.s.proxy.port;
    await at.s.proxy.reload({ limits });
    const root = await admin();
    try {
      await root.query('PAUSE');
      let came = 0;
      const waiting = Array.from({ length: 5 }, async () => {
        const client = await at.s.connect();
        came += 1;
        return client;
      });
      // All of them, though two places are all that there are for those who have not shown who they are.
      const logins = async () => (await show(root, 'CLIENTS')).filter((row) => row.state === 'waiting').length;
      await waitFor(async () => (await logins()) === 5, { what: 'five clients that wait' });
      const fresh = await admin();
      // Somebody who came after them, and says nothing, is told that the time is up.
      const silent = await RawPeer.connect(port);
      expect(await silent.expectError()).toMatchObject({ sqlstate: '57014' });
      expect(came).toBe(0);
      await fresh.query('RESUME');
      for (const client of await Promise.all(waiting)) {
        expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
        await client.end();
      }
    } finally {
      await at.s.proxy.reload({ limits: { ...limits, loginTimeoutMs: 10_000, maxStartups: 500 } });
    }
  });

  it('is there when strangers hold every place of those who start up', async () => {
    const limits = { maxClients: 200, loginTimeoutMs: 60_000, holdTimeoutMs: 10_000, startupQueueMs: 60_000 };
    await at.s.proxy.reload({ limits: { ...limits, maxStartups: 2 } });
    try {
      const strangers = await Promise.all([RawPeer.connect(at.s.proxy.port), RawPeer.connect(at.s.proxy.port)]);
      let isIn = false;
      const client = at.s.connect().then((connected) => {
        isIn = true;
        return connected;
      });
      const root = await admin();
      await waitFor(async () => (await show(root, 'LISTS')).find((row) => row.list === 'login_clients')?.items === 3, {
        what: 'the client to wait for its turn',
      });
      expect(isIn).toBe(false);
      for (const stranger of strangers) stranger.destroy();
      await (await client).end();
    } finally {
      await at.s.proxy.reload({ limits: { ...limits, maxStartups: 500 } });
    }
  });

  it('shows what it knows when every shard and the catalog are down', async () => {
    const root = await admin(); // its password is in the configuration
    await Promise.all(at.s.clusters.map((cluster) => cluster.stop()));
    const fresh = await admin();
    expect(await show(fresh, 'SHARDS')).toHaveLength(2);
    await show(fresh, 'CLIENTS');
    const error = await failure(show(fresh, 'MIGRATIONS'));
    expect([error.code, error.message]).toEqual(['57P03', 'the catalog cannot be asked']);
    await root.query('PAUSE');
    await root.query('RESUME');
  });
});
