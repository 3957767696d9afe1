import type { EventEmitter } from 'node:events';
import type pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { Lane } from '../../proxy/backend/lane.js';
import type { LaneTotals } from '../../proxy/backend/lanes.js';
import { encodeBind, encodeDescribe, encodeExecute, encodeParse, SYNC } from '../../proxy/wire/frontend.js';
import { createHold, dropHold, endTransactions, holdStatus } from '../../topology/catalog/leases.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { RawPeer } from '../support/raw-peer.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { waitFor } from '../support/wait-for.js';

let s: Sharded;

/** However busy the machine is, a statement is only late where a test says so. */
const NEVER_LATE = 60_000;
const POOL = { size: 8, idleTimeoutMs: 60_000, connectTimeoutMs: 5000, queueTimeoutMs: 10_000, laneLateMs: NEVER_LATE };

async function pool(options: object): Promise<void> {
  await s.proxy.reload({ pool: { ...POOL, lanes: 'auto', ...options } });
}

function totals(): LaneTotals {
  const sum = { reads: 0, joined: 0, late: 0, rescued: 0, lost: 0 };
  for (const p of s.proxy.pools.all) {
    const t = s.proxy.pools.lanesOf(p).totals;
    for (const key of Object.keys(sum) as (keyof LaneTotals)[]) sum[key] += t[key];
  }
  return sum;
}

function lanes(): Lane[] {
  return [...s.proxy.pools.all].flatMap((p) => [...s.proxy.pools.lanesOf(p).all]);
}

/** Runs it until it has run in a lane. */
async function untilInLane(run: () => Promise<unknown>): Promise<void> {
  const before = totals().reads;
  await waitFor(
    async () => {
      await run();
      return totals().reads > before;
    },
    { what: 'a read in a lane' },
  );
}

const onFree = (n: number) => `SELECT ${n} AS n, (SELECT count(*) FROM free)`;
const onLocked = (n: number) => `SELECT ${n} AS n, (SELECT count(*) FROM locked)`;

beforeAll(async () => {
  s = await Sharded.start({ splitAt: 100 });
  for (const shard of [0, 1] as const) {
    await s.onShard(
      shard,
      `CREATE TABLE free (a int); CREATE TABLE written (pid int); CREATE TABLE locked (a int); CREATE TABLE shaped (a int); INSERT INTO shaped VALUES (1);
       CREATE TABLE big (a text); INSERT INTO big SELECT repeat('x', 10000) FROM generate_series(1, 2000);
       CREATE FUNCTION turns() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
       GRANT ALL ON ALL TABLES IN SCHEMA public TO app; ALTER TABLE shaped OWNER TO app;`,
    );
  }
  await s.onShard(0, `INSERT INTO tenants SELECT n, 'tenant ' || n FROM generate_series(0, 99) n`);
  await s.onShard(1, `INSERT INTO tenants SELECT n, 'tenant ' || n FROM generate_series(100, 199) n`);
  // It has not seen the tables being made.
  await s.proxy.close();
  s.proxy = await startProxy(s.catalog, s.options);
});

beforeEach(() => pool({}));

afterAll(() => s.stop());

describe('reads of several clients on one server connection', () => {
  it('are none of a view that was made anew, before it is known', async () => {
    const c = await s.connect();
    for (let i = 0; i < 5; i++) {
      await c.query('CREATE OR REPLACE VIEW renewed AS SELECT a FROM shaped');
      await untilInLane(() => c.query('SELECT a FROM renewed'));
      await c.query('CREATE OR REPLACE VIEW renewed AS SELECT pg_backend_pid() AS a');
      const before = totals().reads;
      await c.query('SELECT a FROM renewed');
      expect(totals().reads).toBe(before);
    }
    await c.query('DROP VIEW renewed');
  });

  it('give everybody its own rows and its own errors, in both protocols', async () => {
    await pool({ lanesMax: 1 });
    const clients = await Promise.all(Array.from({ length: 24 }, () => s.connect()));
    const before = totals().reads;
    const kinds: ((c: pg.Client, id: number, i: number) => Promise<void>)[] = [
      async (c, id, i) => {
        const { rows } = await c.query(`SELECT ${id} AS id, '${id}:${i}' AS token`);
        expect(rows).toEqual([{ id, token: `${id}:${i}` }]);
      },
      async (c, id, i) => {
        const { rows } = await c.query('SELECT $1::int AS id, $2::text AS token', [id, `${id}:${i}`]);
        expect(rows).toEqual([{ id, token: `${id}:${i}` }]);
      },
      async (c, id) => {
        const query = { name: 'tenant', text: 'SELECT name FROM tenants WHERE tenant_id = $1', values: [id] };
        expect((await c.query(query)).rows).toEqual([{ name: `tenant ${id}` }]);
      },
      async (c, id) => {
        const { rows } = await c.query(`SELECT name FROM tenants WHERE tenant_id = ${id + 100}`);
        expect(rows).toEqual([{ name: `tenant ${id + 100}` }]);
      },
      async (c, id) => {
        await expect(c.query(`SELECT ${id} / (${id} - ${id})`)).rejects.toMatchObject({ code: '22012' });
      },
      async (c, id) => {
        await expect(c.query('SELECT $1::int', [`no number ${id}`])).rejects.toMatchObject({
          code: '22P02',
          message: expect.stringContaining(`no number ${id}"`),
        });
      },
      async (c, id) => {
        const { rows } = await c.query({ name: `n${id % 3}`, text: `SELECT ${id % 3} + $1::int AS sum`, values: [id] });
        expect(rows).toEqual([{ sum: (id % 3) + id }]);
      },
      async (c, id) => {
        await expect(c.query(`SELECT * FROM no_table_${id % 2}`)).rejects.toMatchObject({ code: '42P01' });
      },
    ];
    await Promise.all(
      clients.map(async (client, id) => {
        for (let i = 0; i < 120; i++)
          await (kinds[(i * 7 + id * 3) % kinds.length] as (typeof kinds)[number])(client, id, i);
      }),
    );
    expect(totals().reads - before).toBeGreaterThan(500);
  });

  it.each<[string, (id: number, i: number) => pg.QueryConfig]>([
    [
      'simple',
      (id, i) => ({ text: `SELECT name, '${id}:${i}' AS token FROM tenants WHERE tenant_id = ${id} -- mine` }),
    ],
    [
      'extended',
      (id, i) => ({
        text: 'SELECT name, $2::text AS token FROM tenants WHERE tenant_id = $1',
        values: [id, `${id}:${i}`],
      }),
    ],
    [
      'extended, another statement each time',
      (id, i) => ({
        text: `SELECT name, $2::text AS token, ${'0 + '.repeat(i % 3)}1 AS kind FROM tenants WHERE tenant_id = $1`,
        values: [id, `${id}:${i}`],
      }),
    ],
    [
      'prepared',
      (id, i) => ({
        name: `token${id % 5}`,
        text: `SELECT name, $2::text AS token, ${id % 5} AS kind FROM tenants WHERE tenant_id = $1`,
        values: [id, `${id}:${i}`],
      }),
    ],
  ])('are said in one when they come at once: %s', async (_protocol, query) => {
    await pool({ lanesMax: 1 });
    const clients = await Promise.all(Array.from({ length: 24 }, () => s.connect()));
    const before = totals().joined;
    // All of them are looked at behind it: what fails in there is only tried again.
    const rounds: unknown[] = [];
    await waitFor(
      async () => {
        const i = rounds.length + 1;
        const answers = await Promise.all(clients.map((client, id) => client.query(query(id, i))));
        rounds.push(answers.map(({ rows: [row] }) => [row.name, row.token]));
        return totals().joined - before > 200;
      },
      { what: 'reads that are said in one' },
    );
    expect(rounds).toEqual(rounds.map((_, i) => clients.map((_client, id) => [`tenant ${id}`, `${id}:${i + 1}`])));
  });

  it('are of the unnamed statement that was prepared last, be it another each time, or one that has failed', async () => {
    const peer = await RawPeer.login(s.proxy.port, { user: 'app', password: 'secret', database: 'shop' });
    const ask = async (sql: string | null, value: number) => {
      const values = [Buffer.from(String(value))];
      const bind = encodeBind({ portal: '', statement: '', formats: [], values, resultFormats: [] });
      const parse = sql === null ? [] : [encodeParse('', sql)];
      peer.send(Buffer.concat([...parse, bind, encodeDescribe('portal', ''), encodeExecute(''), SYNC]));
      const told = await peer.until('Z');
      const row = told.find((m) => m.type === 'D')?.body;
      return row === undefined ? told.map((m) => m.type).join('') : row.toString('latin1', 6);
    };
    const [one, two] = [`SELECT 'one ' || 6 / $1::int`, `SELECT 'two: ' || 6 / $1::int`];
    await untilInLane(async () => [await ask(one, 1), await ask(two, 2)]);
    const before = totals().reads;
    expect([await ask(one, 3), await ask(null, 2), await ask(two, 3)]).toEqual(['one 2', 'one 3', 'two: 2']);
    expect([await ask(null, 2), await ask(one, 0), await ask(null, 1)]).toEqual(['two: 3', '1EZ', 'one 6']);
    expect(totals().reads).toBeGreaterThanOrEqual(before + 5);
    // One that is not for lanes, and one that is again.
    expect([await ask(`SELECT pg_backend_pid() * 0 + $1::int`, 5), await ask(null, 6)]).toEqual(['5', '6']);
    expect([await ask(two, 6), await ask(null, 0), await ask(null, 1)]).toEqual(['two: 1', 'EZ', 'two: 6']);
    peer.destroy();
  });

  it('are said by themselves when there is a backslash in the text', async () => {
    await pool({ lanesMax: 1 });
    const clients = await Promise.all(Array.from({ length: 24 }, () => s.connect()));
    const token = (id: number) => String.raw`${id}\n`;
    const ask = () => Promise.all(clients.map((client, id) => client.query(`SELECT '${token(id)}' AS token`)));
    await untilInLane(ask);
    const before = totals();
    for (let i = 0; i < 20; i++)
      expect((await ask()).map(({ rows }) => rows[0])).toEqual(clients.map((_, id) => ({ token: token(id) })));
    expect(totals().reads).toBeGreaterThan(before.reads + 100);
    expect(totals().joined).toBe(before.joined);
  });

  it('use their own settings', async () => {
    const OFFSETS: Readonly<Record<string, string>> = {
      'Asia/Tokyo': '+09',
      'America/Lima': '-05',
      'Africa/Cairo': '+02',
    };
    const zones = ['Asia/Tokyo', 'America/Lima', 'Asia/Tokyo', 'America/Lima'];
    const clients = await Promise.all(zones.map((zone) => s.connect({ options: `-c TimeZone=${zone}` })));
    const ask = async (c: pg.Client, zone: string) => {
      const { rows } = await c.query(`SELECT to_char('2026-01-01 00:00Z'::timestamptz, 'OF') AS off`);
      expect(rows).toEqual([{ off: OFFSETS[zone] }]);
    };
    await untilInLane(() => Promise.all(clients.map((c, i) => ask(c, zones[i] as string))));
    await (clients[0] as pg.Client).query(`SET TimeZone = 'Africa/Cairo'`);
    await untilInLane(() =>
      Promise.all(clients.map((c, i) => ask(c, i === 0 ? 'Africa/Cairo' : (zones[i] as string)))),
    );
  });

  it('go elsewhere when one ahead of them is late, unseen', async () => {
    await pool({ lanesMax: 1 });
    const clients = await Promise.all(Array.from({ length: 6 }, () => s.connect()));
    const [one, ...others] = clients as [pg.Client, ...pg.Client[]];
    await untilInLane(() => one.query(onFree(0)));
    await untilInLane(() => one.query(onLocked(0)));
    await withClient(s.clusters[0].url('shop'), async (holder) => {
      await holder.query('BEGIN; LOCK TABLE locked');
      const before = totals();
      const held = one.query(onLocked(1));
      await waitFor(() => lanes().some((l) => l.depth === 1), { what: 'the read to be in its lane' });
      const behind = others.map((c, i) => c.query(onFree(i)));
      await waitFor(() => lanes().some((l) => l.depth === clients.length), { what: 'the others behind it' });
      await pool({ lanesMax: 1, laneLateMs: 2 });
      expect((await Promise.all(behind)).map((r) => r.rows[0]?.n)).toEqual(others.map((_, i) => i));
      expect(totals().late).toBe(before.late + 1);
      expect(totals().rescued).toBe(before.rescued + others.length);
      await holder.query('COMMIT');
      expect((await held).rows[0]?.n).toBe(1);
    });
    await waitFor(() => lanes().every((l) => l.retired === null), { what: 'the late lane to be given back' });
  });

  it('are canceled one by one: at the head by the server, behind it at once', async () => {
    await pool({ lanesMax: 1 });
    const clients = await Promise.all(Array.from({ length: 4 }, () => s.connect()));
    const [head, second, third, fourth] = clients as [pg.Client, pg.Client, pg.Client, pg.Client];
    await untilInLane(() => head.query(onFree(0)));
    await untilInLane(() => head.query(onLocked(0)));
    await withClient(s.clusters[0].url('shop'), async (holder) => {
      await holder.query('BEGIN; LOCK TABLE locked');
      const held = expect(head.query(onLocked(1))).rejects.toMatchObject({ code: '57014' });
      await waitFor(() => lanes().some((l) => l.depth === 1), { what: 'the read to be in its lane' });
      const canceled = expect(second.query(onFree(2))).rejects.toMatchObject({
        code: '57014',
        message: 'canceling statement due to user request',
      });
      const left = [third.query(onFree(3)), fourth.query(onFree(4))];
      await waitFor(() => lanes().some((l) => l.depth === 4), { what: 'the others behind it' });
      await s.cancel(second);
      await canceled;
      // It is ready for more, while the head still waits.
      expect((await second.query(`SELECT 5 AS n, pg_sleep(0)`)).rows[0]?.n).toBe(5);
      await s.cancel(head);
      await held;
      expect((await Promise.all(left)).map((r) => r.rows[0]?.n)).toEqual([3, 4]);
      await holder.query('COMMIT');
    });
    for (const client of clients) expect((await client.query(onFree(6))).rows[0]?.n).toBe(6);
  });

  it('are ended when a flip does not wait for them any longer, and their neighbours are not', async () => {
    await pool({ lanesMax: 1 });
    const [reader, neighbour] = [await s.connect(), await s.connect()];
    const name = (tenant: number) => `SELECT name FROM tenants WHERE tenant_id = ${tenant}`;
    await untilInLane(() => neighbour.query(onFree(0)));
    await untilInLane(() => reader.query(name(1)));
    const keyspace = (await s.catalog.loadTopology()).keyspaces.get('main' as KeyspaceName) as Keyspace;
    const { pool: catalog } = s.catalog;
    await withClient(s.clusters[0].url('shop'), async (holder) => {
      await holder.query('BEGIN; LOCK TABLE tenants');
      const ended = expect(reader.query(name(2))).rejects.toMatchObject({ code: '40001' });
      await waitFor(() => lanes().some((l) => l.depth === 1), { what: 'the read to be in its lane' });
      const behind = neighbour.query(onFree(1));
      await waitFor(() => lanes().some((l) => l.depth === 2), { what: 'the other behind it' });
      const id = await createHold(catalog, {
        migrationId: 1n,
        keyspace,
        lo: [0n],
        hi: [10n],
        referenceTables: false,
        deadlineMs: 20_000,
      });
      const waitingFor = async () => (await holdStatus(catalog, id)).waitingFor.length;
      expect(await waitingFor()).toBe(1);
      await endTransactions(catalog, id);
      await ended;
      expect((await behind).rows[0]?.n).toBe(1);
      await waitFor(async () => (await waitingFor()) === 0, { what: 'the acknowledgement' });
      await dropHold(catalog, id);
      await holder.query('COMMIT');
    });
    expect((await reader.query(name(3))).rows).toEqual([{ name: 'tenant 3' }]);
  });

  it('outlive the server process that they were on', async () => {
    await pool({ size: 30 });
    const clients = await Promise.all(Array.from({ length: 8 }, () => s.connect()));
    await untilInLane(() => Promise.all(clients.map((c) => c.query(onFree(0)))));
    const before = totals().lost;
    let done = false;
    const reading = Promise.all(
      clients.map(async (client, id) => {
        for (let i = 0; !done; i++) {
          const n = id * 100_000 + i;
          expect((await client.query(onFree(n))).rows[0]?.n).toBe(n);
          const { rows } = await client.query('SELECT $1::int AS n', [n]);
          expect(rows).toEqual([{ n }]);
        }
      }),
    );
    await withClient(s.clusters[0].url('shop'), async (admin) => {
      for (let times = 1; times <= 5; times++)
        await waitFor(
          async () => {
            const lane = lanes().find((l) => l.takes && !l.isEmpty);
            if (lane === undefined) return false;
            await admin.query('SELECT pg_terminate_backend($1)', [lane.backend.connection.processId]);
            await waitFor(() => totals().lost >= before + times, { what: 'the lane to be lost' });
            return true;
          },
          { what: 'a lane to kill' },
        );
    }).finally(() => {
      done = true;
    });
    await reading;
  });

  it('see the columns of now after DDL, through the proxy and behind its back', async () => {
    const [one, two] = await Promise.all([s.connect(), s.connect()]);
    const read = async (c: pg.Client) =>
      (await c.query({ name: 'shaped', text: 'SELECT * FROM shaped WHERE a = $1', values: [1] })).rows;
    await untilInLane(() => Promise.all([read(one), read(two)]));
    await s.onShard(0, 'ALTER TABLE shaped ADD COLUMN b int DEFAULT 2');
    expect(await Promise.all([read(one), read(two)])).toEqual([[{ a: 1, b: 2 }], [{ a: 1, b: 2 }]]);
    await untilInLane(() => Promise.all([read(one), read(two)]));
    await s.onShard(0, 'ALTER TABLE shaped ALTER COLUMN b TYPE text');
    expect(await Promise.all([read(one), read(two)])).toEqual([[{ a: 1, b: '2' }], [{ a: 1, b: '2' }]]);
  });

  it('have what would change something said again on a lease, after a function was replaced behind the proxy’s back', async () => {
    const c = await s.connect();
    let before: LaneTotals;
    let lanePids: readonly number[];
    // Where the proxy hears of the new function before the read comes, there is nothing to be seen.
    do {
      await s.onShard(0, 'TRUNCATE written');
      await s.onShard(0, `CREATE OR REPLACE FUNCTION turns() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'`);
      await untilInLane(() => c.query('SELECT turns() AS n'));
      await s.onShard(
        0,
        `CREATE OR REPLACE FUNCTION turns() RETURNS int VOLATILE LANGUAGE plpgsql AS
         'BEGIN INSERT INTO written VALUES (pg_backend_pid()); RETURN 2; END'`,
      );
      before = totals();
      lanePids = lanes().map((lane) => lane.backend.connection.processId);
      expect((await c.query('SELECT turns() AS n')).rows).toEqual([{ n: 2 }]);
    } while (totals().reads === before.reads);
    const written = await s.onShard<{ pid: number }>(0, 'SELECT pid FROM written');
    expect(written).toHaveLength(1);
    expect(lanePids).not.toContain(written[0]?.pid);
    await c.query('SELECT turns()');
    expect(totals().reads).toBe(before.reads + 1);
  });

  it('leave no trace of being read-only to whoever has the connection next', async () => {
    await pool({ size: 1 });
    const c = await s.connect();
    const told: string[] = [];
    const { connection } = c as unknown as { connection: EventEmitter };
    connection.on('parameterStatus', (m: { parameterName: string }) => told.push(m.parameterName));
    await untilInLane(() => c.query('SELECT count(*) FROM free'));
    expect(lanes().map((lane) => lane.backend.settings?.get('default_transaction_read_only')?.sql)).toEqual([
      'SET default_transaction_read_only TO on',
    ]);
    await c.query('INSERT INTO free VALUES (1)');
    await untilInLane(() => c.query('SELECT count(*) FROM free'));
    expect((await c.query('SHOW default_transaction_read_only')).rows).toEqual([
      { default_transaction_read_only: 'off' },
    ]);
    await c.query('SET default_transaction_read_only = on');
    await untilInLane(() => c.query('SELECT count(*) FROM free'));
    await expect(c.query('INSERT INTO free VALUES (1)')).rejects.toMatchObject({ code: '25006' });
    await c.query('RESET default_transaction_read_only');
    await c.query('DELETE FROM free');
    expect(told).toEqual(['default_transaction_read_only', 'default_transaction_read_only']);
  });

  it('leave a statement with a large result on leases, and its slow reader alone', async () => {
    const [slow, quick] = await Promise.all([s.connect(), s.connect()]);
    await untilInLane(() => quick.query(onFree(0)));
    const socket = (slow as unknown as { connection: { stream: { pause(): void; resume(): void } } }).connection.stream;
    const large = slow.query('SELECT * FROM big');
    socket.pause();
    for (let i = 0; i < 50; i++) expect((await quick.query(onFree(i))).rows[0]?.n).toBe(i);
    socket.resume();
    expect((await large).rows).toHaveLength(2000);
  });

  it('share a pool of one connection with transactions', async () => {
    await pool({ size: 1 });
    const clients = await Promise.all(Array.from({ length: 6 }, () => s.connect()));
    await Promise.all(
      clients.map(async (c, id) => {
        for (let i = 0; i < 40; i++) {
          expect((await c.query(onFree(i))).rows[0]?.n).toBe(i);
          if (i % 5 !== id % 5) continue;
          await c.query('BEGIN');
          await c.query('INSERT INTO free SELECT 1 WHERE false');
          await c.query('COMMIT');
        }
      }),
    );
  });

  it('are none when they are switched off', async () => {
    const client = await s.connect();
    await untilInLane(() => client.query(onFree(0)));
    await pool({ lanes: 'off' });
    const before = totals().reads;
    for (let i = 0; i < 20; i++) await client.query(onFree(i));
    expect(totals().reads).toBe(before);
    await waitFor(() => lanes().length === 0, { what: 'the lanes to be given back' });
  });

  it('keep to the time-out that the client has set, and to that of the proxy', async () => {
    await pool({ lanesMax: 2 });
    const hasty = await s.connect({ options: '-c statement_timeout=100' });
    const others = await Promise.all(Array.from({ length: 2 }, () => s.connect()));
    await untilInLane(() => hasty.query(onLocked(0)));
    await untilInLane(() => others[0]?.query(onLocked(0)) as Promise<unknown>);
    await untilInLane(() => others[1]?.query(onFree(0)) as Promise<unknown>);
    await withClient(s.clusters[0].url('shop'), async (holder) => {
      await holder.query('BEGIN; LOCK TABLE locked');
      const timedOut = { code: '57014', message: 'canceling statement due to statement timeout' };
      await untilInLane(() => expect(hasty.query(onLocked(1))).rejects.toMatchObject(timedOut));
      const held = expect(others[0]?.query(onLocked(2))).rejects.toMatchObject(timedOut);
      await waitFor(() => lanes().some((l) => l.depth === 1), { what: 'the read to be in its lane' });
      // It stands behind for as long, so it may be told the same.
      const behind = others[1]?.query(onFree(3)).catch((error: unknown) => expect(error).toMatchObject(timedOut));
      await waitFor(() => lanes().some((l) => l.depth === 2), { what: 'the other behind it' });
      const limits = { maxClients: 200, loginTimeoutMs: 5000, holdTimeoutMs: 10_000 };
      await s.proxy.reload({ limits: { ...limits, queryTimeoutMs: 50 } });
      await held;
      await s.proxy.reload({ limits: { ...limits, queryTimeoutMs: 0 } });
      await holder.query('COMMIT');
      await behind;
    });
    for (const client of [hasty, ...others]) expect((await client.query(onFree(4))).rows[0]?.n).toBe(4);
  });

  it('are seen, with how long they wait', async () => {
    const client = await s.connect();
    await untilInLane(() => client.query(onFree(0)));
    const rows = [...s.proxy.pools.all].map((p) => s.proxy.pools.lanesOf(p));
    expect(rows.reduce((sum, l) => sum + l.waits.count, 0)).toBe(totals().reads);
  });

  it('end with their client, and are waited for by PAUSE', async () => {
    await pool({ lanesMax: 1 });
    const [leaving, staying] = await Promise.all([s.connect(), s.connect()]);
    await untilInLane(() => leaving.query(onLocked(0)));
    await untilInLane(() => staying.query(onFree(0)));
    await withClient(s.clusters[0].url('shop'), async (holder) => {
      await holder.query('BEGIN; LOCK TABLE locked');
      leaving.query(onLocked(1)).catch(() => undefined);
      await waitFor(() => lanes().some((l) => l.depth === 1), { what: 'the read to be in its lane' });
      const behind = staying.query(onFree(2));
      await waitFor(() => lanes().some((l) => l.depth === 2), { what: 'the other behind it' });
      (leaving as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
      await pool({ lanesMax: 1, laneLateMs: 2 });
      expect((await behind).rows[0]?.n).toBe(2);
      // What nobody waits for is canceled, so that the connection is free although the lock is still held.
      await s.proxy.pools.pause(null);
      s.proxy.pools.resume(null);
      await holder.query('COMMIT');
    });
  });
});
