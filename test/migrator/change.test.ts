import { beforeEach, describe, expect, test } from 'vitest';
import { audit } from '../../migrator/audit/audit.js';
import { drain } from '../../migrator/changes/balance.js';
import {
  abortChange,
  approveChange,
  createChange,
  type NewChange,
  startChange,
} from '../../migrator/changes/change-requests.js';
import { type Change, type ChangeState, changeState, loadChange } from '../../migrator/changes/change-row.js';
import { dryRunChange } from '../../migrator/changes/dry-run-change.js';
import {
  columnsMembers,
  mergeMembers,
  moveMembers,
  splitMembers,
  verticalMembers,
} from '../../migrator/changes/members.js';
import { requestAbort, requestFlip, setPaused } from '../../migrator/migration-requests.js';
import { showMigration } from '../../migrator/migration-row.js';
import { turnSql } from '../../migrator/turn.js';
import { joinKeyspaces } from '../../topology/catalog/separate.js';
import type { MigrationSpec } from '../../topology/migration.js';
import type { MigrationControls } from '../../topology/migration-controls.js';
import { intervalOf } from '../../topology/successor.js';
import type { Keyspace, KeyspaceName, ShardName } from '../../topology/topology.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { shopMoves } from './moves.js';
import { addNotes, approveMove, approveReplica, keyspaceOf, moveSpec, NOTES, pauseOnEntering } from './setting.js';
import type { Writers } from './writers.js';

const TENANTS = 24;
const TENANT = 'tenant' as KeyspaceName;
const moves = shopMoves(TENANTS, 20);
const { s } = moves;
/** Databases of the four shards: three and four are on the servers of two and one. */
let urls: Record<string, string>;

beforeEach(async () => {
  urls = { one: s.urlOne, two: s.urlTwo, three: s.two.url('app3'), four: s.one.url('app4') };
  for (const [cluster, database] of [
    [s.two, 'app3'],
    [s.one, 'app4'],
  ] as const)
    await withClient(cluster.url('postgres'), async (c) => {
      await c.query(`DROP DATABASE IF EXISTS ${database} WITH (FORCE)`);
      await c.query(`CREATE DATABASE ${database}`);
    });
  await s.catalog.pool.query(`INSERT INTO foreshard.shard (name, url) VALUES ('three', $1), ('four', $2)`, [
    urls.three,
    urls.four,
  ]);
});

async function plan(
  kind: NewChange['kind'],
  members: (k: Keyspace) => readonly MigrationSpec[],
  concurrency = 1,
): Promise<bigint> {
  const topology = await s.catalog.loadTopology();
  const change = { kind, request: {}, members: members(await keyspaceOf(s)), concurrency };
  return createChange(s.catalog.pool, topology, change, 'test');
}

async function approve(id: bigint, controls: Partial<MigrationControls> = {}): Promise<Change> {
  return approveChange(s.catalog.pool, id, { actor: 'test', controls });
}

async function planVertical(): Promise<bigint> {
  const topology = await s.catalog.loadTopology();
  const members = verticalMembers(topology, TENANT, [NOTES], 'notes' as KeyspaceName, shard('two'));
  return createChange(s.catalog.pool, topology, { kind: 'vertical', request: {}, members, concurrency: 1 }, 'test');
}

/** A transaction that waits for an advisory lock. */
const WAITS = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";

const load = (id: bigint) => loadChange(s.catalog.pool, id);
const ended = (id: bigint): Promise<ChangeState> =>
  waitFor(
    async () => {
      const state = changeState(await load(id));
      return state === 'running' || state === 'stopping' ? null : state;
    },
    { what: `change ${id} to end` },
  );
const carryOut = async (...planned: Parameters<typeof plan>) => {
  const id = await plan(...planned);
  await approve(id);
  return ended(id);
};
const ranges = async () => (await keyspaceOf(s)).ranges.map((r) => [r.lo?.[0] ?? null, r.hi?.[0] ?? null, r.shard]);
const states = async (id: bigint) => (await load(id)).members.map((m) => m.state);
const shard = (name: string) => name as ShardName;

/** Whether an approved migration may begin. */
const hasTurn = async (id: bigint | undefined): Promise<boolean> => {
  const sql = `SELECT FROM foreshard.migration m WHERE id = $1 AND ${turnSql('m')}`;
  return (await s.catalog.pool.query(sql, [id?.toString()])).rowCount === 1;
};

/** Every acknowledged row is there, once and as last acknowledged; nothing is where it does not belong, or left over. */
async function wrong(writers: Writers): Promise<string[]> {
  const seen = new Map<string, number[]>();
  for (const url of Object.values(urls))
    await withClient(url, async (c) => {
      const there = await c.query<{ there: boolean }>("SELECT to_regclass('orders') IS NOT NULL AS there");
      if (there.rows[0]?.there !== true) return;
      const { rows } = await c.query<{ key: string; version: number }>(
        "SELECT tenant_id || '/' || id AS key, version FROM orders",
      );
      for (const { key, version } of rows) seen.set(key, [...(seen.get(key) ?? []), version]);
    });
  const lost = [...writers.journal].flatMap(([key, { version }]) => {
    const found = seen.get(key) ?? [];
    return found.length === 1 && found[0] === version ? [] : [`${key}: acknowledged ${version}, found ${found}`];
  });
  const back = [...writers.deleted.keys()].filter((key) => seen.has(key)).map((key) => `${key} is back`);
  const left = await audit(s.catalog, false);
  return [...lost, ...back, ...left.map((f) => `${f.shard}: ${f.text}`)].slice(0, 10);
}

describe('under load', () => {
  let writers: Writers;
  beforeEach(async () => {
    ({ writers } = await moves.startLoad(TENANTS, { stale: false }));
    moves.startMigrator();
    await waitFor(() => writers.acknowledged > 50, { what: 'writers to be at work' });
  });
  const settled = async () => {
    const written = writers.acknowledged;
    await waitFor(() => writers.acknowledged > written + 100, { what: 'writes afterwards' });
    await writers.stop();
    expect(writers.errors).toEqual([]);
    expect(await wrong(writers)).toEqual([]);
  };

  test('a range is split in three of which two leave, a key is isolated, and neighbours are merged again', async () => {
    expect(await carryOut('split', (k) => splitMembers(k, [[8n], [16n]], [null, shard('two'), shard('three')]))).toBe(
      'done',
    );
    expect(await ranges()).toEqual([
      [null, 8n, 'one'],
      [8n, 16n, 'two'],
      [16n, null, 'three'],
    ]);
    const key = [11n] as const;
    expect(await carryOut('isolate', (k) => moveMembers(k, intervalOf(k, key), shard('one')))).toBe('done');
    expect(await ranges()).toEqual([
      [null, 8n, 'one'],
      [8n, 11n, 'two'],
      [11n, 12n, 'one'],
      [12n, 16n, 'two'],
      [16n, null, 'three'],
    ]);
    expect(await carryOut('merge', (k) => mergeMembers(k, [16n], shard('two')))).toBe('done');
    expect(await carryOut('merge', (k) => mergeMembers(k, [12n], shard('two')))).toBe('done');
    expect(await carryOut('merge', (k) => mergeMembers(k, [11n], null))).toBe('done');
    expect(await ranges()).toEqual([
      [null, 8n, 'one'],
      [8n, null, 'two'],
    ]);
    await settled();
  });

  test('a shard is drained, to where least is', async () => {
    expect(await carryOut('split', (k) => splitMembers(k, [[8n], [16n]], [null, shard('two'), null]))).toBe('done');
    expect(await carryOut('split', (k) => splitMembers(k, [[12n]], [null, null]))).toBe('done');
    const pieces = (await keyspaceOf(s)).ranges.map((r) => ({ ...r, range: r.id, weight: 4 }));
    const targets = [shard('one'), shard('three')].map((name) => ({ name, capacity: 1 }));
    const members = drain(pieces, shard('two'), targets).map((m) => m.spec);
    expect(await carryOut('drain', () => members)).toBe('done');
    expect(await ranges()).toEqual([
      [null, 8n, 'one'],
      [8n, 12n, 'three'],
      [12n, 16n, 'three'],
      [16n, null, 'one'],
    ]);
    await settled();
  });

  test('two moves of one keyspace run at once when they share no shard, as far as the limit lets them', async () => {
    expect(await carryOut('split', (k) => splitMembers(k, [[12n]], [null, shard('three')]))).toBe('done');
    const pair = (k: Keyspace) => [
      ...moveMembers(k, { lo: null, hi: [12n] }, shard('two')),
      ...moveMembers(k, { lo: [12n], hi: null }, shard('four')),
    ];
    const first = await plan('move', pair, 1);
    await approve(first, { auto: false });
    const atReady = (id: bigint, expected: string[]) =>
      waitFor(async () => (await states(id)).join() === expected.join(), {
        what: `change ${id} to be ${expected.join()}`,
      });
    await atReady(first, ['ready', 'approved']);
    await abortChange(s.catalog.pool, first, 'test');
    expect(await ended(first)).toBe('aborted');

    const { epoch } = await s.catalog.loadTopology();
    const second = await plan('move', pair, 2);
    const { members } = await approve(second, { auto: false });
    await atReady(second, ['ready', 'ready']);
    await Promise.all(members.map((m) => requestFlip(s.catalog.pool, m.id, 'test')));
    expect(await ended(second)).toBe('done');
    expect(await ranges()).toEqual([
      [null, 12n, 'two'],
      [12n, null, 'four'],
    ]);
    expect((await s.catalog.loadTopology()).epoch).toBe(epoch + 2n);
    expect((await s.catalog.loadTopology()).referenceTables.get('public.countries')?.shards).toEqual([
      'four',
      'one',
      'three',
      'two',
    ]);
    await settled();
  });

  test('a flip whose epoch has moved is tried again at once, and counts as no missed fence', async () => {
    const { pool } = s.catalog;
    // When the ranges have been read for the flip.
    await pool.query(`CREATE OR REPLACE FUNCTION public.move_epoch() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN UPDATE foreshard.meta SET epoch = epoch + 1; RETURN NEW; END $$`);
    await pool.query(
      `CREATE TRIGGER move_epoch BEFORE INSERT ON foreshard.hold FOR EACH ROW EXECUTE FUNCTION public.move_epoch()`,
    );
    try {
      const { epoch } = await s.catalog.loadTopology();
      const id = await plan('move', (k) => moveMembers(k, { lo: [12n], hi: null }, shard('two')));
      const [member] = (await approve(id)).members;
      expect(await ended(id)).toBe('done');
      expect((await s.catalog.loadTopology()).epoch).toBe(epoch + 2n);
      const { migration, events } = await showMigration(pool, member?.id as bigint);
      expect(migration.facts.fenceTries).toBeUndefined();
      expect(migration.facts.flipEpoch).toBe((epoch + 2n).toString());
      expect(events.filter((e) => e.state === 'fencing')).toHaveLength(1);
      await settled();
    } finally {
      await pool.query('DROP TRIGGER move_epoch ON foreshard.hold');
    }
  });

  test('a member that fails stops its change: what has not begun is aborted, and what is done stays', async () => {
    // A row of the second member's interval where it is to go: not from a migration.
    expect(await carryOut('split', (k) => splitMembers(k, [[20n]], [null, shard('three')]))).toBe('done');
    await withClient(urls.three as string, (c) => c.query("INSERT INTO tenants (id, name) VALUES (9, 'whose?')"));
    const id = await plan('split', (k) => splitMembers(k, [[8n], [16n]], [shard('two'), shard('three'), shard('two')]));
    const { members } = await approve(id);
    expect(await ended(id)).toBe('stopped');
    expect(await states(id)).toEqual(['done', 'done', 'failed', 'aborted']);
    const [, , failed, aborted] = (await load(id)).members;
    expect(failed?.error).toMatch(/already has rows of the interval/);
    expect(aborted?.error).toMatch(
      new RegExp(`^migration ${failed?.id} of the same change failed: the migration cannot start`),
    );
    expect((await showMigration(s.catalog.pool, members[3]?.id as bigint)).events.at(-1)).toMatchObject({
      state: 'aborted',
      detail: { why: aborted?.error },
    });
    expect(await ranges()).toEqual([
      [null, 8n, 'two'],
      [8n, 16n, 'one'],
      [16n, 20n, 'one'],
      [20n, null, 'three'],
    ]);
    await withClient(urls.three as string, (c) => c.query('DELETE FROM tenants WHERE id = 9'));
    await settled();
  });
});

describe('a change', () => {
  const three = (k: Keyspace) => splitMembers(k, [[8n], [16n]], [null, shard('two'), shard('three')]);

  test('is dry-run on the ranges as its members leave them', async () => {
    const topology = await s.catalog.loadTopology();
    const members = await dryRunChange(s.catalog, topology, three(await keyspaceOf(s)), {});
    expect(members.flatMap((m) => m.findings.filter((f) => f.severity === 'blocker'))).toEqual([]);
    const updates = members.map((m) => m.steps.filter((step) => step.on === 'catalog').map((step) => step.text));
    expect(updates[0]).toContain('a new range on shard "one"');
    // The parts are ranges of their own by then, and go as a whole.
    for (const texts of updates.slice(1)) {
      expect(texts).toContain('the range goes to the destination');
      expect(texts).not.toContain('a new range on shard "two"');
    }
    expect(members.map((m) => m.notes.length)).toEqual([0, 0, 0]);
    expect(await ranges()).toEqual([[null, null, 'one']]);
    const twice = [...moveMembers(await keyspaceOf(s), { lo: null, hi: [8n] }, shard('two')), moveSpec([8n], [9n])];
    expect((await dryRunChange(s.catalog, topology, twice, {}))[1]?.notes).toEqual([
      'What migration 1 will have made on shard "two" by then is shown as if it were not there.',
    ]);
  });

  test('is approved once, and only while no range has changed since it was planned', async () => {
    const stale = await plan('split', three);
    const id = await plan('split', three);
    await s.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch + 1');
    await expect(approve(stale)).rejects.toMatchObject({
      message: expect.stringMatching(/^change \d+ was planned at epoch \d+, the topology is at epoch \d+$/),
      hint: 'The ranges have changed since. Abort it, plan it again, and approve that.',
    });
    expect(await states(stale)).toEqual(['planned', 'planned', 'planned']);
    expect(await abortChange(s.catalog.pool, stale, 'test')).toEqual({ kept: [] });
    expect(changeState(await load(stale))).toBe('aborted');
    await expect(abortChange(s.catalog.pool, stale, 'test')).rejects.toThrow(`change ${stale} is aborted`);
    await s.catalog.pool.query('UPDATE foreshard.meta SET epoch = epoch - 1');

    await expect(startChange(s.catalog.pool, id, 'test')).rejects.toThrow(`change ${id} is planned`);
    await approveChange(s.catalog.pool, id, { actor: 'test', later: true });
    expect([changeState(await load(id)), await states(id)]).toEqual(['approved', ['planned', 'planned', 'planned']]);
    await expect(approve(id)).rejects.toThrow(`change ${id} is already approved (approved by test)`);
    expect(changeState(await startChange(s.catalog.pool, id, 'test'))).toBe('running');
    await expect(startChange(s.catalog.pool, id, 'test')).rejects.toThrow(`change ${id} is running`);
    await expect(loadChange(s.catalog.pool, (await load(id)).members[0]?.id as bigint)).rejects.toThrow(
      `is a migration of change ${id}, not a change`,
    );
  });

  test('goes before what has waited less long for its shards, also when that was at hand first', async () => {
    const change = await plan('move', (k) => moveMembers(k, { lo: [12n], hi: null }, shard('two')));
    const single = await plan('move', (k) => moveMembers(k, { lo: null, hi: [4n] }, shard('two')));
    await approve(single, { auto: false });
    await approve(change, { auto: false });
    moves.startMigrator();
    await waitFor(async () => (await states(change))[0] === 'ready', { what: 'the older' });
    expect(await states(single)).toEqual(['approved']);
    await abortChange(s.catalog.pool, change, 'test');
    await waitFor(async () => (await states(single))[0] === 'ready', { what: 'the younger' });
    expect(await states(change)).toEqual(['aborted']);
    await abortChange(s.catalog.pool, single, 'test');
    expect(await ended(single)).toBe('aborted');
  });

  test('that takes tables out of a keyspace waits for whoever is at work on that, and an abort leaves them a keyspace of their own', async () => {
    await addNotes(s);
    const single = await plan('move', (k) => moveMembers(k, { lo: null, hi: [4n] }, shard('two')));
    await approve(single, { auto: false });
    moves.startMigrator();
    await waitFor(async () => (await states(single))[0] === 'ready', { what: 'the move' });
    const id = await planVertical();
    await approve(id, { auto: false });
    // What is entered behind it waits for it.
    const behind = await plan('split', (k) => splitMembers(k, [[9n]], [null, null]));
    await approve(behind);
    const next = async (change: bigint) => hasTurn((await load(change)).members[0]?.id);
    expect([await next(id), await next(behind)]).toEqual([false, false]);
    await abortChange(s.catalog.pool, single, 'test');
    await waitFor(async () => (await states(id))[1] === 'ready', { what: 'the tables’ move' });
    expect(await states(id)).toEqual(['done', 'ready']);
    expect(await abortChange(s.catalog.pool, id, 'test')).toEqual({ kept: [(await load(id)).members[0]?.id] });
    expect(await ended(id)).toBe('stopped');
    expect(await ended(behind)).toBe('done');
    const { keyspaces } = await s.catalog.loadTopology();
    const [notes, tenant] = ['notes', 'tenant'].map((name) => keyspaces.get(name as KeyspaceName) as Keyspace);
    expect(notes?.tables.map((t) => t.table)).toEqual(['notes']);
    expect(notes?.ranges.map((r) => r.shard)).toEqual(['one']);
    expect(tenant?.tables).toHaveLength(3);
    await joinKeyspaces(s.catalog, 'test', 'notes', 'tenant');
    expect((await keyspaceOf(s)).tables).toHaveLength(4);
    expect(await audit(s.catalog, false)).toEqual([]);
  });

  test('that splits columns moves them when they are split, however many of its migrations may go at once', async () => {
    await addNotes(s);
    await withClient(s.urlOne, (c) => c.query('ALTER TABLE notes ADD views int NOT NULL DEFAULT 0'));
    await pauseOnEntering(s, 'copying');
    const topology = await s.catalog.loadTopology();
    const [primaryKey, as] = [['tenant_id', 'id'], 'views' as KeyspaceName];
    const hot = { ...NOTES, table: 'notes_hot' };
    const spec = { kind: 'halve', keyspace: TENANT, table: NOTES, columns: ['views'], primaryKey, hot, as } as const;
    const members = columnsMembers(topology, spec, shard('two'));
    const change = { kind: 'columns', request: {}, members, concurrency: 3 } as const;
    const id = await createChange(s.catalog.pool, topology, change, 'test');
    const [halve, move] = (await approve(id)).members;
    moves.startMigrator();
    await moves.noted(halve?.id as bigint, /^paused$/);
    expect(await hasTurn(move?.id)).toBe(false);
    await pauseOnEntering(s, null);
    await setPaused(s.catalog.pool, halve?.id as bigint, false, 'test');
    expect(await ended(id)).toBe('done');
    expect((await s.catalog.loadTopology()).keyspaces.get(as)?.ranges.map((r) => r.shard)).toEqual(['two']);
  });

  test('that takes tables out of a keyspace does nothing when something has tied them to the others since', async () => {
    await addNotes(s);
    const id = await planVertical();
    await withClient(s.urlOne, (c) =>
      c.query('ALTER TABLE notes ADD CONSTRAINT owner FOREIGN KEY (tenant_id) REFERENCES tenants'),
    );
    const topology = await s.catalog.loadTopology();
    const specs = verticalMembers(topology, TENANT, [NOTES], 'notes' as KeyspaceName, shard('two'));
    const tie = {
      severity: 'blocker',
      text: 'foreign key "owner" from "public.notes" to "public.tenants" would cross keyspaces',
      remedy: 'Let both tables go, or neither, or ALTER TABLE public.notes DROP CONSTRAINT owner.',
    };
    expect((await dryRunChange(s.catalog, topology, specs, {}))[0]?.findings).toEqual([tie]);
    await approve(id);
    moves.startMigrator();
    expect(await ended(id)).toBe('stopped');
    expect(await states(id)).toEqual(['failed', 'aborted']);
    expect((await load(id)).members[0]?.error).toContain(tie.text);
    expect((await s.catalog.loadTopology()).epoch).toBe(topology.epoch);
  });

  test('that takes tables out of a keyspace does not begin while a replica has them', async () => {
    await addNotes(s);
    const replica = await approveReplica(s, null, [4n]);
    moves.startMigrator();
    await moves.inState(replica, 'following');
    const id = await planVertical();
    await approve(id);
    expect(await ended(id)).toBe('stopped');
    expect((await load(id)).members[0]?.error).toMatch(/keeps a replica of keyspace "tenant"\. Have it promoted/);
    await requestAbort(s.catalog.pool, replica, 'test');
    expect(await moves.atRest(replica)).toBe('aborted');
  });

  test('takes all tables with it that the keyspace has when it begins', async () => {
    const client = await s.catalog.pool.connect();
    try {
      // The lock under which migrations begin: it has looked at all tables, and now waits.
      await client.query(`BEGIN; SELECT pg_advisory_xact_lock(${0x66736862})`);
      const id = await approveMove(s, [8n], null);
      moves.startMigrator();
      await waitFor(async () => (await s.catalog.pool.query(WAITS)).rowCount !== 0, { what: 'the migration to begin' });
      await addNotes(s);
      await client.query('COMMIT');
      expect(await moves.atRest(id)).toBe('done');
      expect((await moves.load(id)).facts.tables).toContain('public.notes');
      const there = await withClient(s.urlTwo, (c) => c.query('SELECT min(tenant_id), count(*)::int AS n FROM notes'));
      expect(there.rows).toEqual([{ min: 8, n: 13 }]);
    } finally {
      client.release(true);
    }
  });

  test('is stopped when somebody aborts a member', async () => {
    const id = await plan('split', three);
    const { members } = await approve(id, { auto: false });
    const second = members[1]?.id as bigint;
    moves.startMigrator();
    await waitFor(async () => (await states(id))[1] === 'ready', { what: 'the second member' });
    await requestAbort(s.catalog.pool, second, 'test');
    await moves.atRest(second);
    expect(await states(id)).toEqual(['done', 'aborted', 'aborted']);
    expect((await load(id)).members[2]?.error).toBe(`migration ${second} of the same change was aborted`);
    expect(await audit(s.catalog, false)).toEqual([]);
  });
});
