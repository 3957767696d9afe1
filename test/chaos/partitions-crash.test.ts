import { beforeEach, expect, test } from 'vitest';
import { CRASH_POINTS, type CrashPoint } from '../../migrator/crash-points.js';
import { requestEnd, setPaused } from '../../migrator/migration-requests.js';
import { shopMoves } from '../migrator/moves.js';
import { behaviour, effectsOf, guardOrders, loud } from '../migrator/partition-triggers.js';
import { abortOnEntering, approveMove, leftovers, pauseOnEntering } from '../migrator/setting.js';
import { audit, type Writers } from '../migrator/writers.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { startLives } from './lives.js';

// What is passed only where tables have triggers, and partitions that come while they move: a migrator dies on either side of each effect.

const TENANTS = 12;
const moves = shopMoves(TENANTS, 20);
const { s } = moves;
const lives = startLives(moves);
beforeEach(() => guardOrders(s));

const one = (sql: string) => withClient(s.urlOne, (c) => c.query(sql));
const two = (sql: string) => withClient(s.urlTwo, (c) => c.query(sql));

const MADE: readonly CrashPoint[] = [
  'recorded:create-function',
  'after:create-function',
  'recorded:create-tables',
  'after:create-tables',
  'recorded:create-triggers',
  'after:create-triggers',
];
const CAME: readonly CrashPoint[] = [
  'recorded:make-partition',
  'after:make-partition',
  'before:guard-partition',
  'after:guard-partition',
  'recorded:quiet-partition',
  'after:quiet-partition',
];
const CAME_BACK = CAME.map((point) => `back-${point}` as CrashPoint);
/** Of a table that was there before, of the rows that are removed, and what is undone. */
const quieted = (on: 'source' | 'destination') =>
  [`recorded:quiet-triggers-${on}`, `after:quiet-triggers-${on}`] as const;
const restored = (on: 'source' | 'destination') =>
  [`recorded:restore-triggers-${on}`, `after:restore-triggers-${on}`] as const;

test('every such point is passed below', () => {
  expect(CRASH_POINTS.filter((point) => /-partition$/.test(point)).sort()).toEqual([...CAME, ...CAME_BACK].sort());
});

async function dieAt(points: readonly CrashPoint[], wayBack: boolean): Promise<void> {
  for (const point of points) expect([point, await lives.untilCrash(point, wayBack)]).toEqual([point, 'SIGKILL']);
}

/** A job makes one partition where the rows are written, and another one, with a trigger that fires for what is replicated, on both. */
async function partitionsCome(at: typeof one, other: typeof one): Promise<void> {
  const byHand = `BEGIN; CREATE TABLE by_hand PARTITION OF orders FOR VALUES FROM (6000000) TO (7000000);
    CREATE TRIGGER loudest AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION app_private.log('loudest');
    ALTER TABLE by_hand ENABLE ALWAYS TRIGGER loudest; ALTER TABLE by_hand OWNER TO shop_owner; COMMIT`;
  await other(byHand);
  await at(byHand);
  await at(`BEGIN; CREATE TABLE orders_next PARTITION OF orders FOR VALUES FROM (5000000) TO (6000000);
    CREATE TRIGGER next AFTER INSERT ON orders_next FOR EACH ROW EXECUTE FUNCTION app_private.log('next');
    ALTER TABLE orders_next ENABLE ALWAYS TRIGGER next; ALTER TABLE orders_next DISABLE TRIGGER always;
    ALTER TABLE orders_next OWNER TO shop_owner; COMMIT`);
}

const INTO_THEM = 'INSERT INTO orders (tenant_id, id) VALUES (7, 5000000), (7, 6000000)';
const THEIRS = [
  '5000000 next INSERT',
  '5000000 row INSERT',
  '5000000 statement',
  '6000000 always INSERT',
  '6000000 loudest INSERT',
  '6000000 row INSERT',
  '6000000 statement',
];

async function expectAllOnce(writers: Writers, owner: typeof one, onTwo: (tenant: number) => boolean): Promise<void> {
  await writers.stop();
  expect(writers.errors).toEqual([]);
  expect(await audit(s, writers, onTwo)).toEqual([]);
  const gone = await owner('DELETE FROM order_log WHERE order_id >= 5000000 RETURNING order_id, what');
  expect(gone.rows.map((row) => `${row.order_id} ${row.what}`).sort()).toEqual(THEIRS);
  expect(await effectsOf(s, writers, TENANTS, onTwo)).toEqual([]);
  expect((await loud(s.urlOne)).filter((line) => /by_hand|next/.test(line))).toEqual([
    'by_hand always A',
    'by_hand loudest A',
    'orders_next next A',
  ]);
  expect(await leftovers(s)).toEqual([]);
}

test('a migrator dies again and again as it makes triggers, and partitions that come, and has them fire again', async () => {
  const before = await behaviour(s.urlOne);
  const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 2 });
  await pauseOnEntering(s, 'catching_up');
  const id = await approveMove(s, [6n], null);
  await dieAt(MADE, false);
  const life = lives.until(CAME[0] as CrashPoint, false);
  await moves.noted(id, /^paused$/);
  await pauseOnEntering(s, null);
  await partitionsCome(one, two);
  await setPaused(s.catalog.pool, id, false, 'test');
  expect(await life.ended).toBe('SIGKILL');
  await dieAt(CAME.slice(1), false);
  await one(INTO_THEM);
  await dieAt([...quieted('source'), ...restored('destination'), ...restored('source')], false);
  expect(await lives.toTheEnd(id)).toBe('done');
  const ended = writers.acknowledged;
  await waitFor(() => writers.acknowledged > ended + 50, { what: 'writes after it' });
  await expectAllOnce(writers, two, (tenant) => tenant >= 6);
  const behind = await behaviour(s.urlOne);
  expect(behind.filter((line) => !/by_hand|orders_next/.test(line))).toEqual(before);
  expect(await behaviour(s.urlTwo)).toEqual(behind);
});

test('and as partitions come to the new owner, and it is taken back', async () => {
  const before = await behaviour(s.urlOne);
  const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 2 });
  const id = await approveMove(s, [6n], null);
  const life = lives.until(CAME_BACK[0] as CrashPoint, true);
  await moves.inState(id, 'reversing');
  await partitionsCome(two, one);
  expect(await life.ended).toBe('SIGKILL');
  await dieAt(CAME_BACK.slice(1), true);
  await two(INTO_THEM);
  await requestEnd(s.catalog.pool, id, 'rollback', 'test');
  await dieAt([...restored('destination'), ...restored('source')], true);
  expect(await lives.toTheEnd(id)).toBe('rolled_back');
  await expectAllOnce(writers, one, () => false);
  const behind = await behaviour(s.urlOne);
  expect(behind.filter((line) => !/by_hand|orders_next/.test(line))).toEqual(before);
  expect(await behaviour(s.urlTwo)).toEqual([]);
});

test('and as triggers of a table that was there before are quieted, and all is undone', async () => {
  const before = await behaviour(s.urlOne);
  const first = await approveMove(s, [10n], null);
  expect(await lives.toTheEnd(first)).toBe('done');
  await abortOnEntering(s, 'verifying');
  const id = await approveMove(s, [6n], [10n]);
  await dieAt([...quieted('destination'), ...restored('destination')], false);
  expect(await lives.toTheEnd(id)).toBe('aborted');
  await abortOnEntering(s, null);
  expect([await behaviour(s.urlOne), await behaviour(s.urlTwo)]).toEqual([before, before]);
  expect(await audit(s, null, (tenant) => tenant >= 10)).toEqual([]);
  expect(await leftovers(s)).toEqual([]);
});
