import { expect, test } from 'vitest';
import { requestFlip, setPaused, setThrottle } from '../../migrator/migration-requests.js';
import type { ThrottleLimits } from '../../topology/migration-controls.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { approveMove, leftovers, pauseOnEntering } from './setting.js';
import { audit } from './writers.js';

const moves = shopMoves(12, 1000);
const { s } = moves;

const OFF: ThrottleLimits = { maxRate: null, maxLagMs: null, maxLatencyMs: null };
const SLOW = { throttle: { ...OFF, maxRate: 2000 } };
const copying = () =>
  waitFor(
    () =>
      withClient(
        s.urlTwo,
        async (c) =>
          (await c.query("SELECT FROM pg_stat_progress_copy WHERE relid = 'orders'::regclass")).rowCount === 1,
      ),
    { what: 'the copy' },
  );

test('a row that is in the way of the copy is named, and the copy goes on when it is gone', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', SLOW);
  moves.startMigrator();
  await copying();
  const last = await withClient(s.urlOne, async (c) =>
    Number((await c.query('SELECT max(id) AS id FROM orders WHERE tenant_id = 12')).rows[0].id),
  );
  await withClient(s.urlTwo, async (c) => {
    await c.query('SET session_replication_role = replica');
    await c.query('INSERT INTO orders (tenant_id, id, serial_no) VALUES (12, $1, 1)', [last]);
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    await moves.noted(
      id,
      new RegExp(`"public.orders" on shard "two" has rows of the interval .*\\["${last}", "12"\\]`),
    );
    await c.query('DELETE FROM orders WHERE tenant_id = 12 AND id = $1', [last]);
  });
  expect(await moves.atRest(id)).toBe('done');
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

test('a destination whose disk is full when its tables are to be made is waited for', async () => {
  const there = await moves.session(s.urlTwo);
  // What is drawn is counted although the statement fails.
  await there.query(`CREATE SEQUENCE tries;
    CREATE FUNCTION no_room() RETURNS event_trigger LANGUAGE plpgsql AS $$
      BEGIN IF nextval('public.tries') > 0 THEN RAISE EXCEPTION 'could not extend file "base/5/1": No space left on device' USING ERRCODE = '53100', HINT = 'Check free disk space.'; END IF; END $$;
    CREATE EVENT TRIGGER no_room ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION no_room()`);
  const id = await approveMove(s, [6n], null);
  moves.startMigrator();
  const tries = async () => Number((await there.query('SELECT last_value FROM tries')).rows[0].last_value);
  // An error that nobody has foreseen has the migration undone at the fifth.
  await waitFor(async () => (await tries()) > 6, { what: 'the seventh try' });
  const { state, progress } = await moves.load(id);
  expect(state).toBe('preparing');
  expect(progress.note).toBe(
    `the disk is full on shard "two": could not extend file "base/5/1": No space left on device (Check free disk space.). Make room there: the migration goes on by itself. Or "foreshard migrate abort ${id}".`,
  );
  await there.query('DROP EVENT TRIGGER no_room');
  expect(await moves.atRest(id)).toBe('done');
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});

test('a disk that is full when rows are replicated is waited for, and replication is not started before there is room', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator();
  await moves.noted(id, /^ready to flip/);
  const there = await moves.session(s.urlTwo);
  // What is applied finds no room, nor does whoever tries whether there is some. What is drawn is counted all the same.
  await there.query(`CREATE SEQUENCE applied; CREATE SEQUENCE tried;
    CREATE FUNCTION full_of_rows() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN IF nextval('public.applied') > 0 THEN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END IF; END $$;
    CREATE TRIGGER full_of_rows BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION full_of_rows();
    ALTER TABLE orders ENABLE ALWAYS TRIGGER full_of_rows;
    CREATE FUNCTION no_room() RETURNS event_trigger LANGUAGE plpgsql AS $$
      BEGIN IF nextval('public.tried') > 0 THEN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END IF; END $$;
    CREATE EVENT TRIGGER no_room ON ddl_command_start WHEN TAG IN ('CREATE TABLE AS') EXECUTE FUNCTION no_room()`);
  await withClient(s.urlOne, (c) => c.query('UPDATE orders SET version = version + 1 WHERE tenant_id = 7'));
  const drawn = async (sequence: string) =>
    Number((await there.query(`SELECT last_value AS n FROM ${sequence}`)).rows[0].n);
  await waitFor(async () => (await drawn('tried')) > 4, { what: 'it to be tried whether there is room' });
  expect(await drawn('applied')).toBe(1);
  await moves.noted(id, /^the disk of shard "two" is full: make room there, or "foreshard migrate abort \d+"$/);
  await there.query('DROP TRIGGER full_of_rows ON orders; DROP EVENT TRIGGER no_room');
  await moves.noted(id, /^ready to flip/);
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect((await moves.load(id)).facts.exact).toBe('identical');
  expect(await leftovers(s)).toEqual([]);
});

test('a source that takes no new connections when it is to be followed is waited for', async () => {
  const id = await approveMove(s, [6n], null);
  await pauseOnEntering(s, 'preparing');
  moves.startMigrator();
  await moves.noted(id, /^paused$/);
  await pauseOnEntering(s, null);
  const accept = (on: boolean) =>
    withClient(s.one.url('postgres'), (c) => c.query(`ALTER DATABASE app ALLOW_CONNECTIONS ${on}`));
  moves.atStop(() => accept(true).then(() => undefined));
  await accept(false);
  await setPaused(s.catalog.pool, id, false, 'test');
  await moves.noted(id, /^cannot use shard "one" .*not currently accepting connections/);
  await accept(true);
  expect(await moves.atRest(id)).toBe('done');
  expect(await leftovers(s)).toEqual([]);
});

test('a lock that the destination waits for is said', async () => {
  const { writers } = await moves.startLoad(12, { stale: false });
  const id = await approveMove(s, [6n], null, 'one', 'two', { auto: false });
  moves.startMigrator();
  await moves.noted(id, /^ready to flip/);
  await withClient(s.urlTwo, async (c) => {
    await c.query("SET application_name = 'somebody'");
    await c.query('BEGIN');
    await c.query('LOCK TABLE orders IN SHARE MODE');
    await moves.noted(id, /waits for a lock of pid \d+ \(somebody, idle in transaction\)/);
    await c.query('COMMIT');
  });
  await moves.noted(id, /^ready to flip/);
  await requestFlip(s.catalog.pool, id, 'test');
  expect(await moves.atRest(id)).toBe('done');
  await writers.stop();
  expect(writers.errors).toEqual([]);
});

/** Until the migrator has said twice how far it is: the second time it has looked at the servers since. */
async function lookedAgain(id: bigint): Promise<void> {
  for (let i = 0; i < 2; i++) {
    const { updatedAt } = await moves.load(id);
    await waitFor(async () => (await moves.load(id)).updatedAt > updatedAt, { what: 'the migrator to look again' });
  }
}

test('a log that is not kept for much longer is said, and a slot that is lost ends the migration', async () => {
  await withClient(s.one.url('postgres'), async (c) => {
    await c.query("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'");
    await c.query('SELECT pg_reload_conf()');
  });
  moves.atStop(async () =>
    withClient(s.one.url('postgres'), async (c) => {
      await c.query('ALTER SYSTEM RESET max_slot_wal_keep_size');
      await c.query('SELECT pg_reload_conf()');
    }),
  );
  const id = await approveMove(s, [6n], null, 'one', 'two', SLOW);
  moves.startMigrator();
  await copying();
  await withClient(s.urlOne, async (c) => {
    await c.query('CREATE TABLE filler (body text)');
    let noted = false;
    await waitFor(
      async () => {
        // A segment of the log at a time.
        await c.query("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 4000)");
        await c.query('SELECT pg_switch_wal()');
        noted ||= /keeps its log for this migration for \d+ MB more only/.test(
          (await moves.load(id)).progress.note ?? '',
        );
        if (noted) await c.query('CHECKPOINT');
        else await lookedAgain(id);
        return (await moves.load(id)).error !== null;
      },
      { what: 'the slot to be lost' },
    );
    expect(noted).toBe(true);
  });
  expect(await moves.atRest(id)).toBe('aborted');
  expect((await moves.load(id)).error).toMatch(/the replication slot on shard "one" is lost.*max_slot_wal_keep_size/);
  expect(await leftovers(s)).toEqual([]);
});

test('a worker that the server may not start is said', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', SLOW);
  moves.startMigrator();
  await copying();
  const set = async (sql: string) => {
    await withClient(s.two.url('postgres'), (c) => c.query(sql));
    await s.two.restart();
  };
  moves.atStop(() => set('ALTER SYSTEM RESET max_logical_replication_workers'));
  await set('ALTER SYSTEM SET max_logical_replication_workers = 0');
  await moves.noted(id, /shard "two" has started no worker for logical replication for \d+ s/);
  await set('ALTER SYSTEM RESET max_logical_replication_workers');
  await setThrottle(s.catalog.pool, id, OFF, 'test');
  expect(await moves.atRest(id)).toBe('done');
  expect(await leftovers(s)).toEqual([]);
});

test('a copy whose slot went with the server that had just dropped it begins again', async () => {
  const id = await approveMove(s, [6n], null, 'one', 'two', SLOW);
  moves.startMigrator();
  await copying();
  await withClient(s.urlTwo, async (c) => {
    const apply = await c.query<{ pid: number }>('SELECT pid FROM pg_stat_subscription WHERE relid IS NULL');
    const { pid } = apply.rows[0] as { pid: number };
    // It does not answer the workers that have copied their table: they do not get to their end.
    process.kill(pid, 'SIGSTOP');
    await setThrottle(s.catalog.pool, id, OFF, 'test');
    await waitFor(
      async () =>
        (await c.query("SELECT FROM pg_subscription_rel WHERE srrelid = 'orders'::regclass AND srsubstate = 'f'"))
          .rowCount,
      { what: 'the orders to be copied' },
    );
    // What the workers have committed is on disk with it.
    await c.query('CHECKPOINT');
    const crashed = s.two.crash();
    process.kill(pid, 'SIGKILL');
    await crashed;
  });
  await withClient(s.urlOne, async (c) => {
    const slots = "FROM pg_replication_slots WHERE slot_name ~ '^pg_.*_sync_'";
    await waitFor(async () => (await c.query(`SELECT ${slots} AND active`)).rowCount === 0, { what: 'idle slots' });
    expect((await c.query(`SELECT pg_drop_replication_slot(slot_name) ${slots}`)).rowCount).toBeGreaterThan(0);
  });
  await s.two.restart();
  expect(await moves.atRest(id)).toBe('done');
  const events = await s.catalog.pool.query(
    "SELECT detail->>'why' AS why FROM foreshard.migration_event WHERE migration_id = $1 AND state = 'preparing'",
    [id.toString()],
  );
  expect(events.rows.at(-1)?.why).toMatch(
    /^shard "two" went away just as the copy of .* ended there: it begins again$/,
  );
  expect(await audit(s, null, (tenant) => tenant >= 6)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});
