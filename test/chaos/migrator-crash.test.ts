import { spawn } from 'node:child_process';
import { beforeEach, describe, expect, test } from 'vitest';
import { audit as auditShards } from '../../migrator/audit/audit.js';
import { approveChange, createChange } from '../../migrator/changes/change-requests.js';
import { changeState, loadChange } from '../../migrator/changes/change-row.js';
import { splitMembers, verticalMembers } from '../../migrator/changes/members.js';
import { lastComparison } from '../../migrator/comparison.js';
import type { CrashPoint } from '../../migrator/crash-points.js';
import {
  createMigration,
  requestAbort,
  requestFlip,
  requestRepair,
  setPaused,
} from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import { lastRepair } from '../../migrator/repair.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { startMoves } from '../migrator/moves.js';
import {
  addNotes,
  approveMove,
  approveReplica,
  forgetProxy,
  keyspaceOf,
  leftovers,
  NOTES,
  pauseOnEntering,
  registerProxy,
  resetShop,
  rollBackOnReversing,
} from '../migrator/setting.js';
import { audit } from '../migrator/writers.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { POINTS } from './crashes.js';
import { startLives } from './lives.js';

const TENANTS = 12;
const CUT = 6;

const moves = startMoves();
const { s } = moves;
const lives = startLives(moves);

// What each test leaves, the next one begins without: it has a shop of its own. Behind one that failed, also servers.
beforeEach(() => moves.beginAnew());

describe('a migrator killed as it repairs rows', () => {
  test('at one place after the other: they are the same in the end, and what was to be done is written down', async () => {
    await resetShop(s, TENANTS, 30);
    const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 2 });
    try {
      const id = await approveMove(s, [BigInt(CUT)], null);
      await pauseOnEntering(s, 'verifying');
      let life = lives.until(POINTS.repairing[0] as CrashPoint, false);
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
      for (const [i, point] of POINTS.repairing.entries()) {
        if (i > 0) life = lives.until(point, false);
        expect([point, await life.ended]).toEqual([point, 'SIGKILL']);
      }
      expect(await lives.toTheEnd(id)).toBe('done');
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

describe('a migrator killed as it pauses', () => {
  beforeEach(async () => {
    await resetShop(s, TENANTS, 30);
    await pauseOnEntering(s, 'catching_up');
  });

  test.each([
    ['and somebody resumes it while it is dead', false],
    ['or as it goes on', true],
  ])('follows its source again (%s)', async (_when, goesOn) => {
    const id = await approveMove(s, [BigInt(CUT)], null);
    expect(await lives.untilCrash('after:stop-following')).toBe('SIGKILL');
    const following = () =>
      withClient(s.urlTwo, async (c) => (await c.query('SELECT subenabled AS on FROM pg_subscription')).rows);
    expect(await following()).toEqual([{ on: false }]);
    await pauseOnEntering(s, null);
    if (goesOn) {
      const life = lives.until('after:follow-again', false);
      await moves.noted(id, /^paused$/);
      await setPaused(s.catalog.pool, id, false, 'test');
      expect(await life.ended).toBe('SIGKILL');
      expect(await following()).toEqual([{ on: true }]);
    } else await setPaused(s.catalog.pool, id, false, 'test');
    await withClient(s.urlOne, (c) => c.query(`UPDATE orders SET version = 1 WHERE tenant_id = ${CUT}`));
    expect(await lives.toTheEnd(id)).toBe('done');
    expect(await audit(s, null, (tenant) => tenant >= CUT)).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
  });
});

describe('a migrator killed around what it writes into the catalog alone', () => {
  const endsTransactions = async () =>
    (await s.catalog.pool.query('SELECT ends_transactions AS ends FROM foreshard.hold')).rows.map(({ ends }) => ends);
  /** Under load; migrators die as `lost` says, and another one goes on to the `end`: nothing is lost, and nothing left. */
  async function underLoad(lost: () => Promise<bigint>, end: string): Promise<void> {
    await resetShop(s, TENANTS, 30);
    const { writers } = await moves.startLoad(TENANTS, { stale: false, count: 1 });
    try {
      expect(await lives.toTheEnd(await lost())).toBe(end);
    } finally {
      await writers.stop();
    }
    expect(writers.errors).toEqual([]);
    expect(await audit(s, writers, (tenant) => tenant >= CUT && end === 'done')).toEqual([]);
    expect(await leftovers(s)).toEqual([]);
    expect(await auditShards(s.catalog, false)).toEqual([]);
  }

  test('as transactions are ended for a flip there and back', async () => {
    await underLoad(async () => {
      const id = await approveMove(s, [BigInt(CUT)], null, 'one', 'two', { endTransactionsAfterMs: 10 });
      // The one that is waited for.
      await registerProxy(s, 'deaf');
      const die = async (point: CrashPoint, ends: boolean) => {
        expect([point, await lives.untilCrash(point, true)]).toEqual([point, 'SIGKILL']);
        expect(await endsTransactions()).toEqual([ends]);
      };
      await die('before:end-transactions', false);
      await die('after:end-transactions', true);
      await forgetProxy(s, 'deaf');
      await rollBackOnReversing(s, true);
      expect(await lives.untilCrash('back-before:hold', true)).toBe('SIGKILL');
      await rollBackOnReversing(s, false);
      await registerProxy(s, 'deaf');
      await die('back-before:end-transactions', false);
      await die('back-after:end-transactions', true);
      await forgetProxy(s, 'deaf');
      return id;
    }, 'rolled_back');
  });

  test('as a flip is given up that somebody has asked for', async () => {
    await underLoad(async () => {
      const id = await approveMove(s, [BigInt(CUT)], null, 'one', 'two', { auto: false, flipRequested: true });
      await registerProxy(s, 'deaf');
      const options = { ackMs: 50, fenceBackoffMs: 10, maxFenceTries: 2 };
      for (const [point, asked] of [
        ['before:withdraw-flip', true],
        ['after:withdraw-flip', false],
      ] as const) {
        expect([point, await lives.untilCrash(point, false, options)]).toEqual([point, 'SIGKILL']);
        const { state, controls } = await moves.load(id);
        expect([state, controls.flipRequested]).toEqual(['fencing', asked]);
        // Whom it held before it gave up is not held any more.
        expect(await endsTransactions()).toEqual([]);
      }
      await forgetProxy(s, 'deaf');
      const stop = moves.startMigrator({ pollMs: 50, leaseMs: 1000 });
      await moves.noted(id, /^ready to flip/);
      await requestFlip(s.catalog.pool, id, 'test');
      await moves.inState(id, 'done');
      await stop();
      return id;
    }, 'done');
  });

  test('as a replica’s tables are looked at again: reads go there again', async () => {
    await underLoad(async () => {
      const id = await approveReplica(s, [BigInt(CUT)], null);
      const served = async () => {
        const { replicas, schemaGeneration } = await s.catalog.loadTopology();
        return replicas.map((replica) => schemaGeneration - replica.schemaGeneration);
      };
      for (const [point, behind] of [
        ['before:note-generation', 1n],
        ['after:note-generation', 0n],
      ] as const) {
        const life = lives.until(point, false);
        await moves.noted(id, /^following, /);
        await waitFor(async () => (await served())[0] === 0n, { what: 'the replica to be in service' });
        await s.catalog.pool.query('UPDATE foreshard.meta SET schema_generation = schema_generation + 1');
        expect([point, await life.ended]).toEqual([point, 'SIGKILL']);
        expect(await served()).toEqual([behind]);
      }
      await requestAbort(s.catalog.pool, id, 'test');
      return id;
    }, 'aborted');
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
  });
});

describe('a migrator killed as it changes bounds', () => {
  test.each(POINTS.recut)('%s', async (point) => {
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
  test.each(POINTS.separate)('%s', async (point) => {
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
