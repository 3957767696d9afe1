import { spawn } from 'node:child_process';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { approveChange, createChange } from '../../migrator/changes/change-requests.js';
import { changeState, loadChange } from '../../migrator/changes/change-row.js';
import { splitMembers, verticalMembers } from '../../migrator/changes/members.js';
import { lastComparison } from '../../migrator/comparison.js';
import { CRASH_POINTS, type CrashPoint } from '../../migrator/crash-points.js';
import { createMigration, requestRepair, setPaused } from '../../migrator/migration-requests.js';
import { RESTING_STATES, showMigration } from '../../migrator/migration-row.js';
import { lastRepair } from '../../migrator/repair.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { startMoves } from '../migrator/moves.js';
import {
  abortOnEntering,
  addNotes,
  approveMove,
  approveReplica,
  askOnChange,
  entering,
  keyspaceOf,
  leftovers,
  NOTES,
  pauseOnEntering,
  promoteOnFollowing,
  resetShop,
  rollBackOnReversing,
} from '../migrator/setting.js';
import { audit } from '../migrator/writers.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { startLives } from './lives.js';

/** Passed only where the destination has never had the tables. */
const FRESH: readonly CrashPoint[] = ['recorded:create-tables', 'after:create-tables'];
/** Passed only by an abort. */
const ABORTING: readonly CrashPoint[] = ['after:abort-reopen', 'after:undo'];
/** Passed only by a replica; the last by one that is dropped. */
const OF_REPLICAS: readonly CrashPoint[] = ['recorded:serve-replica', 'after:serve-replica', 'after:stop-replica'];
/** Passed only by a migration whose rows are repaired. */
const REPAIRING: readonly CrashPoint[] = [
  'recorded:repair',
  'after:repair-rows',
  'before:compare-again',
  'after:repair',
];
/** Passed only by a migration that has a way back, and takes it. */
const ON_THE_WAY_BACK = CRASH_POINTS.filter((point) => /\bback-/.test(point));
/** Passed only by a migration that changes bounds alone. */
const RECUT: readonly CrashPoint[] = ['before:recut', 'after:recut'];
/** Passed only by one that takes tables out of a keyspace. */
const SEPARATE: readonly CrashPoint[] = ['before:separate', 'after:separate'];
/** Passed only by a copy that begins again. */
const OF_LOST_COPIES: readonly CrashPoint[] = ['after:forget-copy'];
const TENANTS = 12;
const CUT = 6;

const moves = startMoves();
const { s } = moves;
const lives = startLives(moves);
let owner: 'one' | 'two' = 'one';

// What each test leaves, the next one goes on with. Behind one that failed, it begins anew, so as not to fail for it.
beforeEach(async () => {
  if (!(await moves.beginAnew())) return;
  await resetShop(s, TENANTS, 30);
  owner = 'one';
});

/** Migrators come, each takes back one thing more than the one before it, and dies behind the next, until there is none. */
async function dieBehindEach(point: CrashPoint, id: bigint, wayBack: boolean): Promise<number> {
  for (let deaths = 0; ; deaths++) {
    const life = lives.until(`${point}#2`, wayBack);
    let signal: string | null | undefined;
    void life.ended.then((by) => {
      signal = by;
    });
    await waitFor(async () => signal !== undefined || RESTING_STATES.includes((await moves.load(id)).state), {
      what: 'the end of the migrator, or of the migration',
    });
    life.stop();
    if ((await life.ended) !== 'SIGKILL') return deaths;
  }
}

/**
 * The interval moves to where it is not, under load; a migrator dies at the first of `points`, the next one goes on and dies at the second, and so on,
 * and the last goes on to the end. @param often it dies too at the last, each time that it has got further
 */
async function crashAndResume(points: readonly CrashPoint[], often = false): Promise<string> {
  const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 2 });
  const passes = (some: readonly CrashPoint[]) => points.some((point) => some.includes(point));
  try {
    const to = owner === 'one' ? 'two' : 'one';
    const approve = passes(OF_REPLICAS) ? approveReplica : approveMove;
    const id = await approve(s, [BigInt(CUT)], null, owner, to);
    await promoteOnFollowing(s, true);
    if (passes(['after:stop-replica'])) await abortOnEntering(s, 'ready');
    if (passes(ABORTING)) await abortOnEntering(s, 'verifying');
    const back = passes(ON_THE_WAY_BACK);
    if (back) await rollBackOnReversing(s, true);
    for (const point of points) expect([point, await lives.untilCrash(point, back)]).toEqual([point, 'SIGKILL']);
    if (often) expect(await dieBehindEach(points.at(-1) as CrashPoint, id, back)).toBeGreaterThan(3);
    const end = await lives.toTheEnd(id);
    await abortOnEntering(s, null);
    await rollBackOnReversing(s, false);
    if (end === 'done') owner = to;
    const written = writers.acknowledged;
    await waitFor(() => writers.acknowledged > written + 20, { what: 'writes after the migration' });
    return end;
  } finally {
    await writers.stop();
    const wrong = await audit(s, writers, (tenant) => tenant >= CUT && owner === 'two');
    const left = await leftovers(s);
    // The next one's writers begin anew.
    for (const url of [s.urlOne, s.urlTwo]) await forget(url);
    expect({ errors: writers.errors, wrong, left }).toEqual({ errors: [], wrong: [], left: [] });
  }
}

/** The points in `number` rows of about as many, each in the order in which they are passed, with others between any two. */
function dealt(points: readonly CrashPoint[], number: number): (readonly [CrashPoint, readonly CrashPoint[]])[] {
  const rows = Array.from({ length: number }, (_, row) => points.filter((_point, i) => i % number === row));
  return rows.map((row) => [row[0] as CrashPoint, row]);
}

async function forget(url: string): Promise<void> {
  await withClient(url, async (c) => {
    const there = await c.query<{ there: boolean }>("SELECT to_regclass('orders') IS NOT NULL AS there");
    if (there.rows[0]?.there === true) await c.query('DELETE FROM orders WHERE id >= 1000000');
  });
}

describe('a migrator killed at', () => {
  beforeAll(async () => {
    await resetShop(s, TENANTS, 30);
    owner = 'one';
  });

  test.each(FRESH)('%s, the destination being empty', async (point) => {
    await resetShop(s, TENANTS, 30);
    owner = 'one';
    expect(await crashAndResume([point])).toBe('done');
  });

  const passedBySome = [
    ...[FRESH, ABORTING, OF_REPLICAS, REPAIRING],
    ...[ON_THE_WAY_BACK, RECUT, SEPARATE, OF_LOST_COPIES],
  ].flat();
  const passedByAll = CRASH_POINTS.filter((point) => !passedBySome.includes(point));
  test.each(dealt(passedByAll, 5))('%s and further on, again and again', async (_first, points) => {
    expect(await crashAndResume(points)).toBe('done');
  });

  test.each(OF_LOST_COPIES)('%s, as a copy that has begun begins again', async (point) => {
    const set = `facts := NEW.facts || '{"forgetCopy": true}'; NEW.state := 'preparing'`;
    await askOnChange(s, 'lose_copy', set, `${entering('copying')} AND NOT NEW.facts ? 'forgetCopy'`);
    expect(await crashAndResume([point])).toBe('done');
    await askOnChange(s, 'lose_copy', set, null);
  });

  test.each([
    [OF_REPLICAS.slice(0, 2), 'done'],
    [OF_REPLICAS.slice(2), 'aborted'],
  ] as const)('%j of a replica', async (points, end) => {
    expect(await crashAndResume(points)).toBe(end);
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
  });

  test.each(dealt(ON_THE_WAY_BACK, 3))('%s and further on, again and again', async (_first, points) => {
    expect(await crashAndResume(points)).toBe('rolled_back');
  });

  test.each([
    ['after:undo', 'aborted'],
    ['back-after:undo', 'rolled_back'],
  ] as const)('%s, again and again, each time with one thing less to take back', async (point, end) => {
    expect(await crashAndResume([point], true)).toBe(end);
  });

  test.each(ABORTING)('%s', async (point) => {
    expect(await crashAndResume([point])).toBe('aborted');
  });
});

describe('a migrator killed as it repairs rows', () => {
  test('at one place after the other: they are the same in the end, and what was to be done is written down', async () => {
    await resetShop(s, TENANTS, 30);
    owner = 'one';
    const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 2 });
    try {
      const id = await approveMove(s, [BigInt(CUT)], null);
      await pauseOnEntering(s, 'verifying');
      let life = lives.until(REPAIRING[0] as CrashPoint, false);
      await moves.noted(id, /^paused$/);
      await pauseOnEntering(s, null);
      await withClient(s.urlTwo, async (c) => {
        await c.query('SET session_replication_role = replica');
        await c.query(`UPDATE tenants SET name = 'other' WHERE id = 6; DELETE FROM tenants WHERE id = 7`);
        await c.query(`INSERT INTO orders (tenant_id, id) VALUES (8, 7000001)`);
      });
      await setPaused(s.catalog.pool, id, false, 'test');
      await waitFor(async () => lastComparison(await moves.load(id)) !== null, { what: 'the difference' });
      const request = await requestRepair(s.catalog.pool, id, 'test');
      for (const [i, point] of REPAIRING.entries()) {
        if (i > 0) life = lives.until(point, false);
        expect([point, await life.ended]).toEqual([point, 'SIGKILL']);
      }
      expect(await lives.toTheEnd(id)).toBe('done');
      owner = 'two';
      const { migration, events } = await showMigration(s.catalog.pool, id);
      expect(lastRepair(migration)).toMatchObject({ request, refused: null });
      expect(events.map((e) => e.detail.repairing)).toContainEqual([
        { table: 'public.orders', keys: ['["7000001", "8"]'] },
        { table: 'public.tenants', keys: ['["6"]', '["7"]'] },
      ]);
      expect(migration.facts.exact).toBe('identical');
    } finally {
      await writers.stop();
    }
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= CUT)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('a migrator killed as it changes bounds', () => {
  test.each(RECUT)('%s', async (point) => {
    await resetShop(s, 1, 1);
    const keyspace = await keyspaceOf(s);
    const { epoch } = await s.catalog.loadTopology();
    const id = await createMigration(
      s.catalog.pool,
      keyspace,
      { kind: 'recut', keyspace: keyspace.name, shard: 'one' as ShardName, cut: [[5n]], join: [] },
      { actor: 'test' },
    );
    expect(await lives.untilCrash(point)).toBe('SIGKILL');
    expect(await lives.toTheEnd(id)).toBe('done');
    expect((await keyspaceOf(s)).ranges.map((r) => [r.lo, r.hi])).toEqual([
      [null, [5n]],
      [[5n], null],
    ]);
    expect((await s.catalog.loadTopology()).epoch).toBe(epoch + 1n);
  });
});

describe('a migrator killed as it takes tables out of a keyspace', () => {
  test.each(SEPARATE)('%s', async (point) => {
    await resetShop(s, 1, 1);
    await addNotes(s);
    const topology = await s.catalog.loadTopology();
    const { name } = await keyspaceOf(s);
    const members = verticalMembers(topology, name, [NOTES], 'notes' as KeyspaceName, 'two' as ShardName);
    const change = { kind: 'vertical', request: {}, members, concurrency: 1 } as const;
    const id = await createChange(s.catalog.pool, topology, change, 'test');
    const approved = await approveChange(s.catalog.pool, id, { actor: 'test' });
    expect(await lives.untilCrash(point)).toBe('SIGKILL');
    expect(await lives.toTheEnd(approved.members[1]?.id as bigint)).toBe('done');
    const { keyspaces, epoch } = await s.catalog.loadTopology();
    expect([...keyspaces.values()].map((k) => [k.name, k.tables.length, k.ranges.map((r) => r.shard)])).toEqual([
      ['notes', 1, ['two']],
      ['tenant', 3, ['one']],
    ]);
    // That of the separation, and that of the flip.
    expect(epoch).toBe(topology.epoch + 2n);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('a migrator killed in the middle of a change', () => {
  // Of the second of three: between two steps of it, and right behind its flip.
  test.each(['after:copy-wait', 'after:flip'] as const)('at %s', async (point) => {
    await resetShop(s, TENANTS, 30);
    const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 2 });
    const topology = await s.catalog.loadTopology();
    const members = splitMembers(await keyspaceOf(s), [[4n], [8n]], ['two' as ShardName, null, 'two' as ShardName]);
    const change = { kind: 'split', request: {}, members, concurrency: 1 } as const;
    const id = await createChange(s.catalog.pool, topology, change, 'test');
    const approved = await approveChange(s.catalog.pool, id, { actor: 'test' });
    expect(await lives.untilCrash(point)).toBe('SIGKILL');
    const states = (await loadChange(s.catalog.pool, id)).members.map((m) => m.state);
    expect([states[0], states[2]]).toEqual(['done', 'approved']);
    expect(await lives.toTheEnd(approved.members[2]?.id as bigint)).toBe('done');
    expect(changeState(await loadChange(s.catalog.pool, id))).toBe('done');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant < 4 || tenant >= 8)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('a migrator that falls asleep', () => {
  test('can do no harm when it wakes up after another has taken over', async () => {
    await resetShop(s, TENANTS, 200);
    owner = 'one';
    const id = await approveMove(s, [BigInt(CUT)], null);
    const sleeper = spawn(process.execPath, [lives.file, s.catalogUrl], { stdio: 'ignore' });
    const gone = new Promise<void>((resolve) => sleeper.once('exit', () => resolve()));
    try {
      await waitFor(async () => !['approved', 'done'].includes((await moves.load(id)).state), {
        what: 'the sleeper to begin',
      });
      sleeper.kill('SIGSTOP');
      expect(await lives.toTheEnd(id)).toBe('done');
      sleeper.kill('SIGCONT');
      const { generation } = await moves.load(id);
      // It is awake again when it has taken up something new.
      const next = await approveMove(s, [BigInt(CUT)], null, 'two', 'one');
      await moves.inState(next, 'done');
      expect((await moves.load(id)).generation).toBe(generation);
    } finally {
      sleeper.kill('SIGCONT');
      sleeper.kill('SIGTERM');
      await gone;
    }
    expect(await audit(s, null, () => false)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('a server that crashes during a move', () => {
  test('behind the fence, with the migrator: nobody waits for it at the source', async () => {
    await resetShop(s, TENANTS, 30);
    owner = 'one';
    const id = await approveMove(s, [BigInt(CUT)], null);
    expect(await lives.untilCrash('after:fence')).toBe('SIGKILL');
    const write = () =>
      withClient(s.urlOne, (c) => c.query(`UPDATE orders SET version = version + 1 WHERE tenant_id = ${CUT}`));
    await expect(write()).rejects.toMatchObject({ code: 'SH001' });
    await s.two.crash();
    const stop = moves.startMigrator({ pollMs: 50, leaseMs: 1000 });
    try {
      await waitFor(async () => (await write()).rowCount, { what: 'a write at the source' });
      expect((await s.catalog.pool.query('SELECT FROM foreshard.hold')).rowCount).toBe(0);
    } finally {
      await s.two.restart();
      await stop();
    }
    expect(await lives.toTheEnd(id)).toBe('done');
    expect(await leftovers(s)).toEqual([]);
  });

  test('is waited for, and the move goes on', async () => {
    await resetShop(s, TENANTS, 2000);
    owner = 'one';
    // Tenants that stay, so that none meets the crashed server.
    const { writers } = await moves.startLoad(CUT - 1, { stale: false, count: 2 });
    const id = await approveMove(s, [BigInt(CUT)], null);
    moves.startMigrator({ pollMs: 50 });
    await waitFor(async () => !['approved', 'preparing'].includes((await moves.load(id)).state), {
      what: 'the copy to begin',
    });
    await s.two.crash();
    await s.two.restart();
    expect(await moves.atRest(id)).toBe('done');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= CUT)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});
