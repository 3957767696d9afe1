import { beforeEach, describe, expect, test } from 'vitest';
import { waitsForSomebody } from '../../cli/migration-watch.js';
import { dryRun } from '../../migrator/dry-run.js';
import { acceptDifference, requestComparison, requestEnd } from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import { doubtedTables } from '../../migrator/sampled.js';
import type { KeyspaceName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { startMoves } from './moves.js';
import { approveMove, leftovers, moveSpec } from './setting.js';
import { audit, countOrders } from './writers.js';

const moves = startMoves();
const { s } = moves;

const HOUR = 3_600_000;

describe('the way back', () => {
  beforeEach(() => moves.reset(40, 300));

  test('is open after the flip, and a rollback takes everything along that was written since', async () => {
    const { id, proxy, writers } = await moves.thereAndBack(40, [20n], {
      pauseMs: 0,
      hi: [36n],
      there: async () => {
        const topology = await s.catalog.loadTopology();
        const ranges = topology.keyspaces.get('tenant' as KeyspaceName)?.ranges;
        expect(ranges?.map((r) => r.shard)).toEqual(['one', 'two', 'one']);
      },
    });
    const { migration, events } = await showMigration(s.catalog.pool, id);
    expect(events.map((e) => e.state).slice(-5)).toEqual([
      'flipped',
      'reversing',
      'rolling_back',
      'flipped_back',
      'rolled_back',
    ]);
    // A table that others may use by now stays; what was moved does not.
    await withClient(s.urlTwo, async (c) => {
      const { rows } = await c.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
      );
      expect(rows).toEqual([{ relname: 'countries' }]);
    });
    console.log(
      `rollback: pause ${migration.progress.pauseMs} ms, longest statement ${proxy.longestMs.toFixed(1)} ms, ${writers.acknowledged} writes`,
    );
  });

  test('updates that bring a row into the interval there carry their large values back', async () => {
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await moves.inState(id, 'reversing');
    const large = Array.from({ length: 2000 }, (_, i) => Math.sin(i).toString(36)).join('');
    await withClient(s.urlTwo, async (c) => {
      // A row of another interval, such as a move in the past may have brought here.
      await c.query("INSERT INTO tenants (id, name) VALUES (5, 'five')");
      await c.query('INSERT INTO orders (tenant_id, id, body) VALUES (5, 7000077, $1)', [large]);
      await c.query('UPDATE orders SET tenant_id = 25, version = 3 WHERE tenant_id = 5 AND id = 7000077');
    });
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    await withClient(s.urlOne, async (c) => {
      const { rows } = await c.query('SELECT tenant_id, version, body FROM orders WHERE id = 7000077');
      expect(rows.map((r) => [r.tenant_id, r.version, r.body === large])).toEqual([[25, 3, true]]);
    });
    expect(await leftovers(s)).toEqual([]);
  });

  test('leaves what it has filled of a reference table that was there before, empty', async () => {
    await withClient(s.urlTwo, (c) => c.query('CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL)'));
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    // All that leads back replicates, and nothing of the way there does any more.
    const replication = (url: string) =>
      withClient(url, async (c) => {
        const { rows } = await c.query<{ n: number }>(`SELECT count(*)::int AS n FROM pg_subscription
          UNION ALL SELECT count(*)::int FROM pg_replication_slots UNION ALL SELECT count(*)::int FROM pg_publication`);
        return rows.map(({ n }) => n).join();
      });
    const isOpen = async () => (await replication(s.urlOne)) === '1,0,0';
    await waitFor(isOpen, { what: 'the source to follow, and to be followed no more' });
    expect(await replication(s.urlTwo)).toBe('0,1,1');
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    expect((await s.catalog.loadTopology()).referenceTables.get('public.countries')?.shards).toEqual(['one', 'two']);
    const { rows } = await withClient(s.urlTwo, (c) => c.query('SELECT count(*)::int AS n FROM countries'));
    expect(rows).toEqual([{ n: 100 }]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('ends when somebody finishes the migration', async () => {
    const { writers } = await moves.startLoad(40, { stale: false });
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await moves.inState(id, 'reversing');
    await requestEnd(s.catalog.pool, id, 'finish', 'test');
    expect(await moves.atRest(id)).toBe('done');
    await expect(requestEnd(s.catalog.pool, id, 'rollback', 'test')).rejects.toThrow(/has no way back: it is done/);
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= 20)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('ends by itself when its time is over', async () => {
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: 300 });
    expect(await moves.atRest(id)).toBe('done');
    const { events } = await showMigration(s.catalog.pool, id);
    const at = (state: string) => events.find((e) => e.state === state)?.at.getTime() ?? Number.NaN;
    expect(at('cleaning') - at('reversing')).toBeGreaterThanOrEqual(300);
    expect(await audit(s, null, (tenant) => tenant >= 20)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('is refused by preflight where the destination cannot publish', async () => {
    await withClient(s.urlTwo, async (c) => {
      const { rows } = await c.query<{ max: number }>("SELECT current_setting('max_replication_slots')::int AS max");
      const max = rows[0]?.max ?? 0;
      for (let i = 0; i < max; i++) await c.query('SELECT pg_create_physical_replication_slot($1)', [`taken_${i}`]);
    });
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    expect(await moves.atRest(id)).toBe('failed');
    expect((await moves.load(id)).error).toMatch(
      /there would be no way back: shard "two" has no free replication slot.* or set migrator.wayBackMs to 0/s,
    );
    await withClient(s.urlTwo, (c) => c.query('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots'));
    expect(await leftovers(s)).toEqual([]);
  });

  test('is in the dry run', async () => {
    const { steps } = await dryRun(s.catalog, moveSpec([20n], null), { wayBackMs: HOUR });
    const back = steps.filter((step) => step.sql.some((sql) => sql.includes('_0_back')));
    expect(back.map(({ state, on, text }) => `${state} ${on}: ${text}`)).toEqual([
      'ready destination: publish the rows of the interval',
      'ready destination: create the replication slot (waits for every transaction that now writes to that server)',
      'reversing source: subscribe: follows the new owner',
    ]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('is not there where the source cannot follow: the migration can be finished all the same', async () => {
    await withClient(s.urlOne, async (c) => {
      await c.query(`CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'not on this server'; END $$`);
      await c.query(
        `CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE SUBSCRIPTION') EXECUTE FUNCTION public.refuse()`,
      );
    });
    await withClient(s.urlTwo, (c) =>
      c.query(`CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$`),
    );
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await waitFor(async () => (await moves.load(id)).facts.wayBackLost !== undefined, {
      what: 'the refusal',
    });
    await expect(requestEnd(s.catalog.pool, id, 'rollback', 'test')).rejects.toThrow(
      /cannot be taken back: shard "one" cannot follow shard "two": not on this server/,
    );
    await requestEnd(s.catalog.pool, id, 'finish', 'test');
    expect(await moves.atRest(id)).toBe('done');
    expect(await audit(s, null, (tenant) => tenant >= 20)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('waits for room where the source’s disk is full, unless somebody finishes the migration', async () => {
    await withClient(s.urlOne, (c) =>
      c.query(`CREATE FUNCTION public.no_room() RETURNS event_trigger LANGUAGE plpgsql AS
          $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$;
        CREATE EVENT TRIGGER full_disk ON ddl_command_start WHEN TAG IN ('CREATE SUBSCRIPTION') EXECUTE FUNCTION public.no_room()`),
    );
    await withClient(s.urlTwo, (c) =>
      c.query('CREATE FUNCTION public.no_room() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$'),
    );
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await moves.noted(
      id,
      /^the disk is full on shard "one": no room\. Make room there: the migration goes on by itself\.$/,
    );
    expect((await moves.load(id)).facts.wayBackLost).toBeUndefined();
    await requestEnd(s.catalog.pool, id, 'finish', 'test');
    expect(await moves.atRest(id)).toBe('done');
    expect(await audit(s, null, (tenant) => tenant >= 20)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });

  test('is lost with its slot: a rollback is refused, and the migration can be finished', async () => {
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR });
    await moves.inState(id, 'reversing');
    await dropSlots(s.urlTwo);
    await waitFor(async () => (await moves.load(id)).facts.wayBackLost !== undefined, {
      what: 'the loss to be noticed',
    });
    await expect(requestEnd(s.catalog.pool, id, 'rollback', 'test')).rejects.toThrow(/cannot be taken back: .*slot/);
    await requestEnd(s.catalog.pool, id, 'finish', 'test');
    expect(await moves.atRest(id)).toBe('done');
    expect(await audit(s, null, (tenant) => tenant >= 20)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});

/** Past everybody who needs them. */
function dropSlots(url: string): Promise<void> {
  const use = 'SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL';
  const drop = 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots';
  return withClient(url, async (c) => {
    const dropped = async () => {
      await c.query(use);
      await c.query(drop).catch(() => undefined); // taken again
      return (await c.query('SELECT FROM pg_replication_slots')).rowCount === 0;
    };
    await waitFor(dropped, { what: 'the slots to be dropped' });
  });
}

test('a rollback that was asked for before the way back was found to be lost is not begun', async () => {
  await moves.reset(12, 20);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator({ wayBackMs: HOUR });
  await waitFor(async () => (await moves.load(id)).facts.exact === 'identical', { what: 'the flip' });
  await moves.stop();
  await dropSlots(s.urlTwo);
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  moves.startMigrator({ wayBackMs: HOUR });
  await waitFor(async () => (await moves.load(id)).facts.wayBackLost !== undefined, { what: 'the loss to be noticed' });
  await requestEnd(s.catalog.pool, id, 'finish', 'test');
  expect(await moves.atRest(id)).toBe('done');
  const { events } = await showMigration(s.catalog.pool, id);
  expect(events.map((e) => e.state)).not.toContain('rolling_back');
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

describe('the way back is sampled', () => {
  // So few rows that a sample has all of a table.
  beforeEach(() => moves.reset(40, 10));

  const sampled = async (id: bigint) => (await moves.load(id)).progress.sampled?.rows ?? 0;
  const begun = (id: bigint) => waitFor(async () => (await sampled(id)) > 0, { what: 'a sample' });
  /** Past the gate, as nobody should. */
  const tamper = (url: string, sql: string) =>
    withClient(url, async (c) => {
      await c.query('SET session_replication_role = replica');
      await c.query(sql);
    });

  test('while rows change, come and go: what is on its way is no difference', async () => {
    await moves.startLoad(40);
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR, sampleMs: 1 });
    await begun(id);
    let on = true;
    // Some rows come and go, with other values each time.
    const flicker = withClient(s.urlTwo, async (c) => {
      for (let n = 0; on; n++) {
        await c.query(`INSERT INTO tenants (id, name) SELECT i, 'flicker ${n}' FROM generate_series(1000, 1100) i`);
        await c.query('DELETE FROM tenants WHERE id >= 1000');
      }
    });
    moves.atStop(async () => {
      on = false;
      await flicker;
    });
    const before = await sampled(id);
    await waitFor(async () => (await sampled(id)) > before + 2500, { what: 'samples under load' });
    on = false;
    await flicker;
    const { migration } = await showMigration(s.catalog.pool, id);
    expect(migration.facts.sampled).toBeUndefined();
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
  });

  test('and rows that differ are named: it is refused until they are put right', async () => {
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR, sampleMs: 1 });
    await begun(id);
    const { rows } = await withClient(s.urlTwo, (c) =>
      c.query('SELECT min(id) AS id FROM orders WHERE tenant_id = 30'),
    );
    const order = rows[0].id as string;
    await tamper(s.urlOne, `UPDATE tenants SET name = 'other' WHERE id = 25`);
    await tamper(s.urlOne, `DELETE FROM "Odd Items" WHERE "Tenant Id" = 30 AND order_id = ${order}`);
    await tamper(s.urlOne, `INSERT INTO orders (tenant_id, id) VALUES (26, 7000001)`);
    const found = () => moves.load(id).then((row) => doubtedTables(row));
    await waitFor(async () => (await found()).length === 3, { what: 'the differences' });
    expect((await found()).toSorted((a, b) => (a.table < b.table ? -1 : 1))).toEqual([
      { table: 'public.Odd Items', differing: 1, keys: [`["30", "1", "${order}"]`] },
      { table: 'public.orders', differing: 1, keys: ['["7000001", "26"]'] },
      { table: 'public.tenants', differing: 1, keys: ['["25"]'] },
    ]);
    const { events, migration } = await showMigration(s.catalog.pool, id);
    expect(events.map((e) => e.detail.differing)).toContainEqual({ table: 'public.tenants', keys: ['["25"]'] });
    expect(waitsForSomebody(migration)).toMatch(
      /its way back is not to be trusted: .*1 rows of "public.tenants" differ/,
    );
    await expect(requestEnd(s.catalog.pool, id, 'rollback', 'test')).rejects.toThrow(/is not taken back: .*differ/);

    await tamper(
      s.urlOne,
      `DELETE FROM orders WHERE id = 7000001; UPDATE tenants SET name = 'tenant 25' WHERE id = 25`,
    );
    await tamper(
      s.urlOne,
      `INSERT INTO "Odd Items" SELECT tenant_id, id, 1, ARRAY['a', body] FROM orders WHERE id = ${order}`,
    );
    await requestComparison(s.catalog.pool, id, 'test');
    await waitFor(async () => (await found()).length === 0, { what: 'the comparison' });
    await requestEnd(s.catalog.pool, id, 'rollback', 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
  });

  test('and one that is not trusted does not end by itself; taken by force, nothing is removed', async () => {
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: HOUR, sampleMs: 1 });
    await begun(id);
    await tamper(s.urlOne, `UPDATE tenants SET name = 'other' WHERE id = 25`);
    const doubted = async () => doubtedTables(await moves.load(id)).length === 1;
    await waitFor(doubted, { what: 'the difference' });
    // Its time is over by now, as far as the next migrator knows.
    await moves.stop();
    await s.catalog.pool.query(`UPDATE foreshard.migration SET facts = facts || '{"wayBackMs": 1}' WHERE id = $1`, [
      id.toString(),
    ]);
    const before = await sampled(id);
    moves.startMigrator({ wayBackMs: HOUR, sampleMs: 1 });
    await waitFor(async () => (await sampled(id)) > before, { what: 'samples after that' });
    expect((await moves.load(id)).state).toBe('reversing');
    await requestEnd(s.catalog.pool, id, 'rollback', 'test', { force: true });
    expect(await moves.atRest(id)).toBe('failed');
    expect((await moves.load(id)).error).toMatch(
      /the shards differ as of the flip back: 1 rows of "public.tenants", .* on shard "one" since, which owns them\. .* the rows of shard "two" are kept/,
    );
    expect(await countOrders(s.urlTwo)).toBe(21 * 10);
    await acceptDifference(s.catalog.pool, id, 'test');
    expect(await moves.atRest(id)).toBe('rolled_back');
    expect(await leftovers(s)).toEqual([]);
  });

  test('unless that is turned off', async () => {
    const id = await approveMove(s, [20n], null);
    moves.startMigrator({ wayBackMs: 300, sampleMs: 0 });
    expect(await moves.atRest(id)).toBe('done');
    expect((await moves.load(id)).progress.sampled).toBeNull();
  });
});
