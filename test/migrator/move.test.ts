import { beforeEach, describe, expect, test } from 'vitest';
import { differedAsOfFlip } from '../../migrator/differed.js';
import { dryRun } from '../../migrator/dry-run.js';
import {
  acceptDifference,
  createMigration,
  requestAbort,
  requestComparison,
  requestRepair,
  setPaused,
} from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import type { Keyspace, KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { startMoves } from './moves.js';
import {
  abortOnEntering,
  approveMove,
  forgetProxy,
  leftovers,
  moveSpec,
  pauseOnEntering,
  registerProxy,
} from './setting.js';
import { audit, countOrders } from './writers.js';

const moves = startMoves();
const { s } = moves;

describe('a move under load', () => {
  beforeEach(() => moves.reset(40, 500));

  test('loses nothing, doubles nothing, and leaves nothing behind', async () => {
    const { proxy, writers } = await moves.startLoad(40, { pauseMs: 0 });
    await waitFor(() => writers.acknowledged > 200, { what: 'writers to be at work' });
    const id = await approveMove(s, [20n], [36n]);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('done');
    const before = writers.acknowledged;
    await waitFor(() => writers.acknowledged > before + 200, { what: 'writes after the move' });
    await writers.stop();

    expect(writers.errors).toEqual([]);
    const inside = (tenant: number) => tenant >= 20 && tenant < 36;
    // The guards are gone at the end, as the doc says: whoever still writes past the proxies is on their own.
    const strays = await withClient(s.urlOne, async (c) =>
      c.query(
        'DELETE FROM orders WHERE id >= 900000000 AND tenant_id >= 20 AND tenant_id < 36 RETURNING tenant_id, id',
      ),
    );
    for (const r of strays.rows as { tenant_id: number; id: string }[])
      writers.journal.delete(`${r.tenant_id}/${r.id}`);
    expect(await audit(s, writers, inside)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    expect(writers.refused).toBeGreaterThan(0);

    const { migration, events } = await showMigration(s.catalog.pool, id);
    expect(migration.progress.rowsCopied).toBeGreaterThan(16 * 500);
    expect(migration.progress.pauseMs).toBeGreaterThan(0);
    expect(migration.facts.exact).toBe('identical');
    expect(events.map((e) => e.state)).toEqual([
      'approved',
      'preparing',
      'copying',
      'catching_up',
      'verifying',
      'ready',
      'fencing',
      'flipped',
      'cleaning',
      'done',
    ]);
    const topology = await s.catalog.loadTopology();
    expect(topology.keyspaces.get('tenant' as never)?.ranges.map((r) => [r.lo, r.hi, r.shard])).toEqual([
      [null, [20n], 'one'],
      [[20n], [36n], 'two'],
      [[36n], null, 'one'],
    ]);
    expect(topology.referenceTables.get('public.countries')?.shards).toEqual(['one', 'two']);
    const segments = await s.catalog.pool.query(
      'SELECT lo, hi FROM foreshard.segment ORDER BY (lo->>0)::int NULLS FIRST',
    );
    expect(segments.rows).toEqual([
      { lo: null, hi: ['20'] },
      { lo: ['20'], hi: ['30'] },
      { lo: ['30'], hi: ['36'] },
      { lo: ['36'], hi: null },
    ]);
    console.log(
      `pause ${migration.progress.pauseMs} ms, longest statement ${proxy.longestMs.toFixed(1)} ms, ${writers.acknowledged} writes, ${proxy.retries} retries`,
    );

    // The destination is a full home: constraints, indexes, defaults and sequences work there.
    await withClient(s.urlTwo, async (c) => {
      await expect(c.query('INSERT INTO orders (tenant_id, version) VALUES (20, -1)')).rejects.toThrow(
        /version_is_positive/,
      );
      await expect(c.query('INSERT INTO orders (tenant_id) VALUES (999)')).rejects.toThrow(/foreign key/);
      const { rows } = await c.query('INSERT INTO orders (tenant_id) VALUES (20) RETURNING id, serial_no, quantity');
      expect(Number(rows[0].serial_no)).toBeGreaterThan(20_000);
      const shape = await c.query("SELECT indexname FROM pg_indexes WHERE tablename = 'orders' ORDER BY 1");
      expect(shape.rows.map((r) => r.indexname)).toEqual(['orders_at', 'orders_pkey']);
      expect((await c.query("SELECT obj_description('orders'::regclass) AS d")).rows[0].d).toBe('what tenants ordered');
    });
  });

  test('goes there and back again', async () => {
    const { writers } = await moves.startLoad(40, { stale: false });
    moves.startMigrator();
    expect(await moves.atRest(await approveMove(s, [20n], null))).toBe('done');
    expect(await countOrders(s.urlTwo)).toBeGreaterThan(20 * 500);
    expect(await moves.atRest(await approveMove(s, [20n], null, 'two', 'one'))).toBe('done');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, () => false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('an abort', () => {
  const states = ['approved', 'preparing', 'copying', 'catching_up', 'verifying', 'ready', 'fencing'] as const;

  test.each(states)('asked for in state %s leaves everything as it was', async (state) => {
    await moves.reset(12, 50);
    const { writers } = await moves.startLoad(12, { stale: false });
    const id = await approveMove(s, [6n], null);
    if (state === 'approved') await requestAbort(s.catalog.pool, id, 'test');
    else await abortOnEntering(s, state);
    moves.startMigrator();
    const end = await moves.atRest(id);
    await abortOnEntering(s, null);
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    expect(end).toBe('aborted');
    expect(await audit(s, writers, () => false)).toEqual([]);
    await withClient(s.urlTwo, async (c) => {
      const r = await c.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace UNION ALL SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace",
      );
      expect(r.rows).toEqual([]);
    });
  });

  test('after the flip is refused', async () => {
    await moves.reset(12, 20);
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('done');
    await expect(requestAbort(s.catalog.pool, id, 'test')).rejects.toThrow(/already done/);
  });
});

describe('before a move', () => {
  beforeEach(() => moves.reset(12, 20));

  test('preflight names every reason and touches nothing', async () => {
    await withClient(s.urlOne, async (c) => {
      await c.query('CREATE TABLE payments (id int PRIMARY KEY, tenant_id int REFERENCES tenants)');
      await c.query('CREATE UNIQUE INDEX global_serial ON orders (serial_no)');
      await c.query('ALTER TABLE "Odd Items" DROP CONSTRAINT "Odd Items_pkey"');
      await c.query('ALTER TABLE tenants REPLICA IDENTITY NOTHING');
      await c.query('CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$');
      await c.query('CREATE RULE mine AS ON DELETE TO tenants DO ALSO SELECT 1');
      await c.query('CREATE ROLE reporting');
      await c.query('GRANT SELECT ON tenants TO reporting');
    });
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('failed');
    const { error } = await moves.load(id);
    for (const reason of [
      /global_serial/,
      /payments/,
      /Odd Items.*no primary key/,
      /tenants.*serves nothing.*REPLICA IDENTITY DEFAULT/,
      /rules \(mine\)/,
      /role "reporting"/,
      /functions of shard "one" are missing on shard "two": (public\.)?f\(\)/,
    ])
      expect(error).toMatch(reason);
    expect(await leftovers(s)).toEqual([]);
    await withClient(s.urlOne, async (c) => {
      await c.query('DROP OWNED BY reporting');
      await c.query('DROP ROLE reporting');
    });
  });

  test('rows of the interval at the destination are nobody’s to delete', async () => {
    await withClient(s.urlTwo, async (c) => {
      await c.query('CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL)');
      await c.query("INSERT INTO countries VALUES ('zz', 'stray')");
    });
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('failed');
    expect((await moves.load(id)).error).toMatch(/already has rows.*countries/);
  });

  test('a dry run shows the statements and changes nothing', async () => {
    const run = await dryRun(s.catalog, moveSpec([6n], null));
    expect(run.findings.every((f) => f.severity === 'warning')).toBe(true);
    const sql = run.steps.flatMap((step) => step.sql).join('\n');
    for (const part of [
      'CREATE PUBLICATION',
      'pg_create_logical_replication_slot',
      'CREATE SUBSCRIPTION',
      'CREATE TABLE "public"."orders"',
      'BEFORE INSERT',
      'setval',
      'UPDATE foreshard.meta',
    ])
      expect(sql).toContain(part);
    expect(sql).not.toContain(new URL(s.urlOne).password);
    expect(run.steps.map((step) => step.state)).toContain('cleaning');
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('rows that are hard to move', () => {
  test('arrive whole when an update brings them into the interval during the move', async () => {
    await moves.reset(12, 50);
    await withClient(s.urlOne, async (c) => {
      // Large and incompressible, so that it is stored out of line; the update below does not touch it.
      await c.query(
        `INSERT INTO orders (tenant_id, id, body) SELECT 1, 5000000, string_agg(md5(i::text), '') FROM generate_series(1, 2000) i`,
      );
      await c.query('ALTER TABLE orders ALTER body SET STORAGE EXTERNAL');
    });
    await pauseOnEntering(s, 'catching_up');
    const id = await approveMove(s, [6n], null);
    await moves.startProxy();
    moves.startMigrator();
    await moves.noted(id, /^paused$/);
    await pauseOnEntering(s, null);
    await withClient(s.urlOne, (c) => c.query('UPDATE orders SET tenant_id = 7 WHERE tenant_id = 1 AND id = 5000000'));
    await setPaused(s.catalog.pool, id, false, 'test');
    expect(await moves.atRest(id)).toBe('done');
    const found = (url: string) =>
      withClient(
        url,
        async (c) => (await c.query('SELECT tenant_id, length(body) AS n FROM orders WHERE id = 5000000')).rows,
      );
    expect(await found(s.urlOne)).toEqual([]);
    expect(await found(s.urlTwo)).toEqual([{ tenant_id: 7, n: 64_000 }]);
    expect(await audit(s, null, (t) => t >= 6)).toEqual([]);
  });
});

describe('a fence that cannot be had', () => {
  const impatient = { ackMs: 200, fenceMs: 200, maxFenceTries: 2, fenceBackoffMs: 20 };

  test('names the proxy that did not answer, and undoes everything', async () => {
    await moves.reset(12, 20);
    const { writers } = await moves.startLoad(12, { stale: false });
    await registerProxy(s, 'deaf');
    const id = await approveMove(s, [6n], null);
    moves.startMigrator(impatient);
    expect(await moves.atRest(id)).toBe('aborted');
    expect((await moves.load(id)).error).toMatch(/2 fences were missed.*deaf/);
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, () => false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('waits for a proxy only as long as its lease', async () => {
    await moves.reset(12, 20);
    await registerProxy(s, 'dead', { epoch: 0n, lease: '4 seconds' });
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    expect(await moves.atRest(id)).toBe('done');
    expect((await moves.load(id)).facts.fenceTries).toBeUndefined();
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('a keyspace by hash', () => {
  test('moves the rows whose hash lies in the interval', async () => {
    await moves.reset(1, 1);
    await withClient(s.urlOne, async (c) => {
      await c.query('CREATE TABLE notes (owner text, at timestamptz, n int, body text, PRIMARY KEY (owner, at, n))');
      await c.query(
        "INSERT INTO notes SELECT 'user ' || i % 500, '2024-02-03', i, 'note' FROM generate_series(1, 5000) i",
      );
    });
    const { pool } = s.catalog;
    await pool.query("INSERT INTO foreshard.keyspace (name, method, key_types) VALUES ('users', 'hash', '{text}')");
    await pool.query("INSERT INTO foreshard.sharded_table VALUES ('public', 'notes', 'users', '{owner}')");
    await pool.query("INSERT INTO foreshard.range (keyspace, shard) VALUES ('users', 'one')");
    const keyspace = (await s.catalog.loadTopology()).keyspaces.get('users' as KeyspaceName) as Keyspace;
    const spec = { ...moveSpec([0n], null), keyspace: keyspace.name };
    const id = await createMigration(pool, keyspace, spec, { actor: 'test' });
    moves.startMigrator({ compareRows: 400 });
    expect(await moves.atRest(id)).toBe('done');
    let rows = 0;
    for (const [url, upper] of [
      [s.urlOne, false],
      [s.urlTwo, true],
    ] as const)
      await withClient(url, async (c) => {
        const r = await c.query(
          'SELECT count(*)::int AS n, count(*) FILTER (WHERE (hashtextextended(owner, 0) >= 0) <> $1)::int AS wrong FROM notes',
          [upper],
        );
        expect(r.rows[0].wrong).toBe(0);
        expect(r.rows[0].n).toBeGreaterThan(1000);
        rows += r.rows[0].n;
      });
    expect(rows).toBe(5000);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('shards that differ as of the flip', () => {
  test('stop the migration before a row of the source is removed, until a person accepts it', async () => {
    await moves.reset(12, 20);
    // A row that only the source has, made when the source is frozen: as if replication had lost it.
    await moves.startProxy();
    const id = await approveMove(s, [6n], null);
    // A proxy that is still on the old epoch keeps the migration from comparing before the row is there.
    const slow = await registerProxy(s, 'slow', { epoch: 0n });
    const ack = setInterval(() => {
      void s.catalog.pool.query(
        'INSERT INTO foreshard.hold_ack (hold_id, proxy_id) SELECT id, $1 FROM foreshard.hold ON CONFLICT DO NOTHING',
        [slow],
      );
    }, 20);
    moves.atStop(() => clearInterval(ack));
    moves.startMigrator();
    await moves.inState(id, 'cleaning');
    await withClient(s.urlOne, async (c) => {
      await c.query(
        `SET session_replication_role = replica; INSERT INTO orders (tenant_id, id, body) VALUES (7, 777777, 'only here');
         UPDATE tenants SET name = 'other' WHERE id = 12; DELETE FROM "Odd Items" WHERE "Tenant Id" = 8`,
      );
    });
    await forgetProxy(s, 'slow');
    expect(await moves.atRest(id)).toBe('failed');
    const failed = await moves.load(id);
    expect(failed.error).toMatch(
      /as of the flip: .*1 rows of "public\.orders", among them \["777777", "7"\].* Nothing is repaired by itself: .* on shard "two" since, which owns them\. .*"foreshard migrate show \d+" has their keys; the rows of shard "one" are kept/,
    );
    expect(await countOrders(s.urlOne)).toBe(12 * 20 + 1);
    const differed = differedAsOfFlip(failed);
    const counts = differed?.tables.map((t) => [t.table, t.differing, t.missing.length, t.extra.length, t.changed]);
    expect([differed?.owner, differed?.former, counts]).toEqual([
      'two',
      'one',
      [
        ['public.Odd Items', 20, 0, 20, []],
        ['public.orders', 1, 1, 0, []],
        ['public.tenants', 1, 0, 0, ['["12"]']],
      ],
    ]);
    for (const request of [requestRepair, requestComparison])
      await expect(request(s.catalog.pool, id, 'test')).rejects.toMatchObject({
        message: expect.stringMatching(/found rows that differed as of its flip/),
        hint: expect.stringMatching(/write it through the proxy; then "foreshard migrate accept/),
      });

    await acceptDifference(s.catalog.pool, id, 'test');
    await moves.inState(id, 'done');
    expect(await audit(s, null, (t) => t >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});
