import { describe, expect, test } from 'vitest';
import { waitsForSomebody } from '../../cli/migration-watch.js';
import { lastComparison } from '../../migrator/comparison.js';
import {
  requestAbort,
  requestComparison,
  requestEnd,
  requestFlip,
  requestRepair,
  setPaused,
} from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import { lastRepair, type Repair } from '../../migrator/repair.js';
import { doubtedTables, sampledDifference } from '../../migrator/sampled.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, approveReplica, forgetProxy, leftovers, pauseOnEntering, registerProxy } from './setting.js';
import { audit } from './writers.js';

const HOUR = 3_600_000;

const moves = shopMoves(12, 100);
const { s } = moves;

/** Past the gate, as nobody should. */
const tamper = (url: string, sql: string) =>
  withClient(url, async (c) => {
    await c.query('SET session_replication_role = replica');
    await c.query(sql);
  });

const oneValue = <T>(url: string, sql: string): Promise<T> =>
  withClient(url, async (c) => Object.values((await c.query(sql)).rows[0] ?? {})[0] as T);

/** An order at the source, by its place among those of a tenant. */
const orderOf = (tenant: number, place: number) =>
  oneValue<string>(s.urlOne, `SELECT id FROM orders WHERE tenant_id = ${tenant} ORDER BY id OFFSET ${place} LIMIT 1`);

/** Has the next migration rest before it compares for the first time. */
async function restBeforeComparison(id: bigint): Promise<void> {
  await pauseOnEntering(s, 'verifying');
  moves.atStop(() => pauseOnEntering(s, null));
  await moves.noted(id, /^paused$/);
  await pauseOnEntering(s, null);
}

/** Goes on, until it is found that both sides differ. */
async function goOnUntilDifferent(id: bigint): Promise<void> {
  await setPaused(s.catalog.pool, id, false, 'test');
  await waitFor(async () => lastComparison(await moves.load(id)) !== null, { what: 'the difference' });
}

async function repair(id: bigint): Promise<Repair> {
  const request = await requestRepair(s.catalog.pool, id, 'test');
  return waitFor(
    async () => {
      const last = lastRepair(await moves.load(id));
      return last?.request === request && last.at !== null ? last : null;
    },
    { what: 'the repair' },
  );
}

describe('rows that differ before the flip', () => {
  test('stop the migration, are repaired while clients write to them, and it goes on', async () => {
    const { proxy, writers } = await moves.startLoad(12, { stale: false });
    const id = await approveMove(s, [6n], null);
    moves.startMigrator({ compareRows: 100 });
    await restBeforeComparison(id);
    const [missing, other, childless] = await Promise.all([orderOf(6, 3), orderOf(7, 90), orderOf(8, 20)]);
    // Somebody goes on writing to a row that is missing there, and to its neighbour, which comes and goes.
    let on = true;
    let updates = 0;
    const busy = (async () => {
      for (; on; updates++) {
        const write = (tenant: number, sql: string) => proxy.run([BigInt(tenant)], [{ sql, values: [] }]);
        await write(6, `UPDATE orders SET version = version + 1 WHERE tenant_id = 6 AND id = ${missing}`);
        if (updates % 2 === 0) await write(6, 'INSERT INTO orders (tenant_id, id) VALUES (6, 1)');
        else await write(6, 'DELETE FROM orders WHERE tenant_id = 6 AND id = 1');
      }
    })();
    moves.atStop(async () => {
      on = false;
      await busy;
    });
    await tamper(
      s.urlTwo,
      `DELETE FROM orders WHERE id = ${missing}; UPDATE orders SET body = 'other' WHERE id = ${other};
       INSERT INTO orders (tenant_id, id) VALUES (11, 7000002); DELETE FROM "Odd Items" WHERE order_id = ${childless};
       UPDATE tenants SET name = '' WHERE id = 12; UPDATE countries SET name = name || '!' WHERE code = 'AA'`,
    );
    await goOnUntilDifferent(id);
    const stopped = await moves.load(id);
    expect(stopped.state).toBe('verifying');
    expect(lastComparison(stopped)?.tables.map((t) => [t.table, t.keys.toSorted()] as const)).toEqual([
      ['public.countries', ['["AA"]']],
      ['public.Odd Items', [`["8", "1", "${childless}"]`]],
      [
        'public.orders',
        [
          [missing, 6],
          [other, 7],
          ['7000002', 11],
        ]
          .map(([o, t]) => `["${o}", "${t}"]`)
          .toSorted(),
      ],
      ['public.tenants', ['["12"]']],
    ]);
    expect(waitsForSomebody(stopped)).toMatch(/verify \d+ --repair/);
    await expect(requestFlip(s.catalog.pool, id, 'test')).rejects.toMatchObject({
      hint: expect.stringMatching(/--repair/),
    });

    const { tables, refused } = await repair(id);
    expect(refused).toBeNull();
    expect(tables).toEqual([
      { table: 'public.countries', added: [], replaced: ['["AA"]'], removed: [] },
      { table: 'public.Odd Items', added: [`["8", "1", "${childless}"]`], replaced: [], removed: [] },
      {
        table: 'public.orders',
        added: [`["${missing}", "6"]`],
        replaced: [`["${other}", "7"]`],
        removed: ['["7000002", "11"]'],
      },
      { table: 'public.tenants', added: [], replaced: ['["12"]'], removed: [] },
    ]);
    expect(await moves.atRest(id)).toBe('done');
    on = false;
    await busy;
    await writers.stop();
    const { migration, events } = await showMigration(s.catalog.pool, id);
    // The comparison as of the flip, row for row.
    expect(migration.facts.exact).toBe('identical');
    const told = (what: string) => events.findIndex(({ detail }) => what in detail);
    expect(told('repairing')).toBeGreaterThan(0);
    expect(told('repaired')).toBeGreaterThan(told('repairing'));
    expect(told('comparedAgain')).toBeGreaterThan(told('repaired'));
    expect(await oneValue(s.urlTwo, `SELECT version FROM orders WHERE id = ${missing}`)).toBe(updates);
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 6)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('are repaired value by value, whatever their types', async () => {
    await withClient(s.urlOne, async (c) => {
      await c.query(`CREATE TABLE odd (tenant_id int, id bigint GENERATED ALWAYS AS IDENTITY, big text, bytes bytea, fixed char(5), short varchar(3), loose bpchar,
        amount numeric(20, 5), free numeric, real float4, double float8, span interval, at timestamptz, bits bit(3), list text[], docs jsonb, raw json, mark "char", feeling mood,
        many quantity, whole int GENERATED ALWAYS AS (tenant_id * 2) STORED, PRIMARY KEY (tenant_id, id))`);
      await c.query(`INSERT INTO odd (tenant_id, big, bytes, fixed, short, loose, amount, free, real, double, span, at, bits, list, docs, raw, mark, feeling, many)
        SELECT t, v.* FROM generate_series(6, 8) t, (VALUES
          (repeat(E'tab\\there\\\\ and \\n there', 100000), decode(repeat('00ff5c', 300000), 'hex'), ' a', 'a  ', 'a  ', 1.50000, 1.500, 'NaN'::float4, '-0'::float8,
           '1 mon -3 days'::interval, 'infinity'::timestamptz, B'101', ARRAY[NULL, 'NULL', '', '{"x"}', E'\\\\.'], '{"a": [1.0, null]}'::jsonb, '{"b" : 1,  "b":2}'::json, 'x'::"char", 'hot'::mood, 7),
          ('', '', '', '', '', NULL, NULL, 'Infinity', 1e-310, NULL, '0001-01-01 BC', NULL, '{}', 'null', 'null', NULL, 'calm', 0)) AS v`);
    });
    await s.catalog.pool.query(`INSERT INTO foreshard.sharded_table VALUES ('public', 'odd', 'tenant', '{tenant_id}')`);
    await s.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    const values = (url: string) =>
      oneValue<string>(url, `SELECT string_agg(o::text, ';' ORDER BY tenant_id, id) FROM odd o WHERE tenant_id >= 6`);
    const before = await values(s.urlOne);
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    await restBeforeComparison(id);
    await tamper(
      s.urlTwo,
      `UPDATE odd SET bytes = 'x', big = NULL, raw = '{}' WHERE tenant_id = 6; DELETE FROM odd WHERE tenant_id > 6`,
    );
    await goOnUntilDifferent(id);
    expect(await repair(id)).toMatchObject({ refused: null, tables: [{ table: 'public.odd' }] });
    await moves.inState(id, 'ready');
    expect((await values(s.urlTwo)) === before).toBe(true);
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
  });

  test('are too many to be repaired: the migration is undone', async () => {
    const id = await approveMove(s, [1n], null);
    moves.startMigrator();
    await restBeforeComparison(id);
    await tamper(
      s.urlTwo,
      `UPDATE orders SET body = 'other' WHERE ctid < '(1000,0)' AND id <= 1001 + (SELECT min(id) - 1 FROM orders)`,
    );
    await goOnUntilDifferent(id);
    expect(await moves.atRest(id)).toBe('aborted');
    const { error } = await moves.load(id);
    expect(error).toMatch(
      /^1001 rows of "public.orders" differ between the shards, .*: more than can be repaired\. .*copies all anew/,
    );
    await expect(requestRepair(s.catalog.pool, id, 'test')).rejects.toThrow(
      /more rows of migration \d+ differ than can be repaired/,
    );
    expect(await leftovers(s)).toEqual([]);
  });

  test('stop it until somebody aborts it, also with a driver that comes anew', async () => {
    const id = await approveMove(s, [6n], null);
    moves.startMigrator();
    await restBeforeComparison(id);
    await tamper(s.urlTwo, 'DELETE FROM tenants WHERE id = 12');
    await goOnUntilDifferent(id);
    await expect(requestComparison(s.catalog.pool, id, 'test')).resolves.toMatch(/-/);
    await waitFor(async () => lastComparison(await moves.load(id))?.request !== null, { what: 'the comparison' });
    await moves.stop();
    moves.startMigrator();
    await moves.noted(id, /both sides differ: .*1 rows of "public.tenants"/);
    expect((await moves.load(id)).state).toBe('verifying');
    await requestAbort(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('aborted');
    expect(await leftovers(s)).toEqual([]);
  });

  test('are not repaired over the head of whoever has locked them; writers in flight are waited for', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator();
    await moves.inState(id, 'ready');
    await expect(requestRepair(s.catalog.pool, id, 'test')).rejects.toThrow(
      /no rows of migration \d+ are known to differ/,
    );
    await tamper(s.urlTwo, `UPDATE tenants SET name = 'other' WHERE id = 12`);
    await requestComparison(s.catalog.pool, id, 'test');
    await waitFor(async () => lastComparison(await moves.load(id)) !== null, { what: 'the comparison' });
    await withClient(s.urlTwo, async (c) => {
      await c.query('BEGIN');
      await c.query('SELECT FROM tenants WHERE id = 12 FOR UPDATE');
      expect(await repair(id)).toMatchObject({ tables: [], refused: expect.stringMatching(/lock timeout/) });
    });
    expect(doubtedTables(await moves.load(id))).toMatchObject([{ table: 'public.tenants', differing: 1 }]);
    await withClient(s.urlOne, async (c) => {
      await c.query('BEGIN');
      await c.query(`UPDATE tenants SET name = 'new' WHERE id = 12`);
      const repairing = repair(id);
      await moves.noted(id, /^to repair rows, waiting for pid/);
      await c.query('COMMIT');
      expect((await repairing).refused).toBeNull();
    });
    expect(await oneValue(s.urlTwo, 'SELECT name FROM tenants WHERE id = 12')).toBe('new');
    await requestFlip(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('done');
  });
});

describe('rows of a way back', () => {
  test('are repaired from the new owner', async () => {
    const id = await approveMove(s, [6n], null);
    moves.startMigrator({ wayBackMs: HOUR, sampleMs: 1 });
    // Until then it is compared as of its flip.
    await waitFor(async () => (await moves.load(id)).facts.exact !== undefined, { what: 'the way back' });
    await tamper(
      s.urlOne,
      `UPDATE tenants SET name = 'other' WHERE id = 12; DELETE FROM "Odd Items" WHERE "Tenant Id" = 7`,
    );
    // Of the one table all that are named.
    await waitFor(
      async () =>
        sampledDifference(await moves.load(id))
          ?.tables.map((t) => t.keys.length)
          .toSorted((a, b) => a - b)
          .join() === '1,20',
      { what: 'the samples' },
    );
    // The comparison comes after them, whatever a clock says that has been set back.
    await s.catalog.pool.query(
      `UPDATE foreshard.migration SET facts = jsonb_set(facts, '{sampled,at}', '"2100-01-01T00:00:00.000Z"') WHERE id = $1`,
      [id.toString()],
    );
    await requestComparison(s.catalog.pool, id, 'test');
    await waitFor(async () => lastComparison(await moves.load(id)) !== null, { what: 'the comparison' });
    expect(await repair(id)).toMatchObject({
      refused: null,
      tables: [{ table: 'public.Odd Items' }, { table: 'public.tenants', replaced: ['["12"]'] }],
    });
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    expect((await moves.load(id)).facts.backExact).toBe('identical');
    expect(await audit(s, null, () => false)).toEqual([]);
  });

  test('are not given back to the source as they were when they were repaired before the flip', async () => {
    const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
    moves.startMigrator({ wayBackMs: HOUR, maxFenceTries: 1, ackMs: 50, sampleMs: 0 });
    await moves.inState(id, 'ready');
    // A fence that is missed leaves the way back as it is made before.
    await registerProxy(s, 'deaf');
    await requestFlip(s.catalog.pool, id, 'test');
    await waitFor(async () => (await moves.load(id)).facts.fenceTries === 0, { what: 'the fence to be missed' });
    await forgetProxy(s, 'deaf');
    await moves.inState(id, 'ready');
    await tamper(s.urlTwo, `UPDATE tenants SET name = 'other' WHERE id = 12`);
    await requestComparison(s.catalog.pool, id, 'test');
    await waitFor(async () => lastComparison(await moves.load(id)) !== null, { what: 'the comparison' });
    expect((await repair(id)).refused).toBeNull();
    await withClient(s.urlOne, (c) => c.query(`UPDATE tenants SET name = 'later' WHERE id = 12`));
    await requestFlip(s.catalog.pool, id, 'test');
    await moves.inState(id, 'reversing');
    const again = await requestComparison(s.catalog.pool, id, 'test');
    const found = await waitFor(
      async () => {
        const last = lastComparison(await moves.load(id));
        return last?.request === again ? last : null;
      },
      { what: 'the comparison of the way back' },
    );
    expect(found.tables.map((t) => t.differing)).toEqual([0, 0, 0]);
    await requestEnd(s.catalog.pool, id, 'finish', 'test');
    expect(await moves.atRest(id)).toBe('done');
  });
});

test('rows of a replica are repaired before it is read', async () => {
  const id = await approveReplica(s, [6n], null);
  moves.startMigrator();
  await restBeforeComparison(id);
  await tamper(s.urlTwo, 'DELETE FROM tenants WHERE id = 12');
  await goOnUntilDifferent(id);
  expect((await s.catalog.loadTopology()).replicas).toEqual([]);
  expect(await repair(id)).toMatchObject({ refused: null, tables: [{ added: ['["12"]'] }] });
  await moves.inState(id, 'following');
  expect(await oneValue(s.urlTwo, 'SELECT name FROM tenants WHERE id = 12')).toBe('tenant 12');
  await requestAbort(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('aborted');
});

test('a comparison that has locked a row for its last look lets it go when the destination is behind', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator();
  await moves.noted(id, /^ready to flip/);
  await tamper(s.urlTwo, 'DELETE FROM tenants WHERE id = 12');
  const gate = await moves.session(s.urlTwo);
  await gate.query('SELECT pg_advisory_lock(42)');
  // Seven looks behind a marker come after the first one; the next has the row locked.
  const marker = await oneValue<string>(
    s.urlTwo,
    "SELECT oid::regclass FROM pg_class WHERE relname ~ '^marker_' AND relkind = 'r'",
  );
  await gate.query(`CREATE SEQUENCE public.markers;
    CREATE FUNCTION public.late() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN IF nextval('public.markers') > 8 THEN PERFORM pg_advisory_xact_lock_shared(42); END IF; RETURN NEW; END $$;
    CREATE TRIGGER late BEFORE INSERT OR UPDATE ON ${marker} FOR EACH ROW EXECUTE FUNCTION public.late();
    ALTER TABLE ${marker} ENABLE ALWAYS TRIGGER late`);
  await requestComparison(s.catalog.pool, id, 'test');
  const blocked = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted";
  await waitFor(async () => (await gate.query(blocked)).rowCount === 1, { what: 'a marker that does not arrive' });
  await withClient(s.urlOne, async (c) => {
    await c.query("SET lock_timeout = '20s'");
    await c.query("UPDATE tenants SET mood = 'hot' WHERE id = 12");
  });
  expect((await gate.query(blocked)).rowCount).toBe(1);
  await gate.query('SELECT pg_advisory_unlock_all()');
  const found = await waitFor(async () => lastComparison(await moves.load(id)), { what: 'the comparison' });
  expect(found.tables.map((t) => t.differing)).toEqual([0, 0, 0, 1]);
  await requestAbort(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('aborted');
});
