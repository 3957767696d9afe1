import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Carrier, drain, type Piece, rebalance } from '../../migrator/changes/balance.js';
import { changeState } from '../../migrator/changes/change-row.js';
import {
  columnsMembers,
  mergeMembers,
  moveMembers,
  splitMembers,
  uniteMembers,
} from '../../migrator/changes/members.js';
import type { MigrationRow } from '../../migrator/migration-row.js';
import { rangesAfter, withRanges } from '../../migrator/ranges.js';
import { contains, type Position } from '../../topology/key.js';
import { sameLayout } from '../../topology/layout.js';
import type { MigrationState, RangeSpec } from '../../topology/migration.js';
import type { Keyspace, KeyspaceName, Range, ShardName, Topology } from '../../topology/topology.js';

const NAME = 'tenant' as KeyspaceName;
const shard = (name: string) => name as ShardName;

/** `owners` by `bounds`: one owner more than bounds. */
function keyspace(bounds: readonly number[], owners: readonly string[]): Keyspace {
  const ranges = owners.map((owner, i): Range => {
    const at = (n: number): Position | null => (bounds[n] === undefined ? null : [BigInt(bounds[n])]);
    return { id: BigInt(i + 1), keyspace: NAME, lo: at(i - 1), hi: at(i), shard: shard(owner) };
  });
  return { name: NAME, method: 'range', keyTypes: ['int8'], tables: [], ranges };
}

const shape = (k: Keyspace) => k.ranges.map((r) => [r.lo?.[0] ?? null, r.hi?.[0] ?? null, r.shard]);
/** The members carried out, one after the other. */
const carriedOut = (k: Keyspace, members: readonly RangeSpec[]) =>
  members.reduce((now, spec) => withRanges(now, rangesAfter(now, spec)), k);

const [TABLE, HOT] = [
  { schema: 'public', table: 'documents' },
  { schema: 'public', table: 'documents_hot' },
];

describe('the members of', () => {
  const k = keyspace([10, 20], ['a', 'a', 'b']);

  test('a move are its ranges on other shards', () => {
    const spec = (lo: bigint | null, hi: bigint | null, from: string, to: string) => ({
      kind: 'move',
      keyspace: NAME,
      lo: lo === null ? null : [lo],
      hi: hi === null ? null : [hi],
      from,
      to,
    });
    expect(moveMembers(k, { lo: [5n], hi: [25n] }, shard('c'))).toEqual([
      spec(5n, 10n, 'a', 'c'),
      spec(10n, 20n, 'a', 'c'),
      spec(20n, 25n, 'b', 'c'),
    ]);
    expect(moveMembers(k, { lo: null, hi: [20n] }, shard('b'))).toEqual([
      spec(null, 10n, 'a', 'b'),
      spec(10n, 20n, 'a', 'b'),
    ]);
    expect(moveMembers(k, { lo: [15n], hi: null }, shard('b'))).toEqual([spec(15n, 20n, 'a', 'b')]);
    expect(() => moveMembers(k, { lo: [20n], hi: null }, shard('b'))).toThrow('shard "b" owns all of that already');
    expect(() => moveMembers(k, { lo: [20n], hi: [20n] }, shard('c'))).toThrow('the interval is empty');
  });

  test('a split of columns are that, and moves of what the new keyspace has elsewhere', () => {
    const table = { ...TABLE, keyspace: NAME, keyColumns: ['id'] };
    const topology = {
      keyspaces: new Map([[NAME, { ...k, tables: [table] }]]),
      shardedTables: new Map([['public.documents', table]]),
    } as unknown as Topology;
    const as = 'hot' as KeyspaceName;
    const spec = {
      kind: 'halve',
      keyspace: NAME,
      table: TABLE,
      columns: ['views'],
      primaryKey: ['id'],
      hot: HOT,
      as,
    } as const;
    const move = { kind: 'move', keyspace: 'hot', from: 'a', to: 'b' };
    expect(columnsMembers(topology, spec, shard('b'))).toEqual([
      spec,
      { ...move, lo: null, hi: [10n] },
      { ...move, lo: [10n], hi: [20n] },
    ]);
    expect(() =>
      columnsMembers({ ...topology, keyspaces: new Map([[NAME, keyspace([], ['b'])]]) }, spec, shard('b')),
    ).toThrow('shard "b" owns all of that already');
  });

  test('a union of columns bring them to where their rows are, and end the split', () => {
    const hot = keyspace([5, 15, 25], ['c', 'a', 'b', 'c']);
    const members = uniteMembers({ keyspace: k, hot }, TABLE);
    expect(members.at(-1)).toEqual({ kind: 'unite', keyspace: NAME, table: TABLE });
    const moves = members.slice(0, -1) as RangeSpec[];
    expect(moves.map((m) => m.kind === 'move' && [m.lo?.[0] ?? null, m.hi?.[0] ?? null, m.from, m.to])).toEqual([
      [null, 5n, 'c', 'a'],
      [15n, 20n, 'b', 'a'],
      [25n, null, 'c', 'b'],
    ]);
    expect(sameLayout(carriedOut(hot, moves), k)).toBe(true);
    expect(uniteMembers({ keyspace: k, hot: k }, TABLE)).toHaveLength(1);
  });

  test('a split are a recut and the parts that leave', () => {
    const members = splitMembers(k, [[17n], [13n], [17n]], [null, shard('c'), shard('b')]);
    expect(members.map((m) => m.kind)).toEqual(['recut', 'move', 'move']);
    expect(shape(carriedOut(k, members))).toEqual([
      [null, 10n, 'a'],
      [10n, 13n, 'a'],
      [13n, 17n, 'c'],
      [17n, 20n, 'b'],
      [20n, null, 'b'],
    ]);
    expect(splitMembers(k, [[13n]], [null, shard('a')])).toHaveLength(1);
    expect(() => splitMembers(k, [[13n], [23n]], [null, null, null])).toThrow('(13) and (23) lie in two ranges');
    expect(() => splitMembers(k, [[10n]], [null, null])).toThrow('(10) is a bound of ranges already');
    expect(() => splitMembers(k, [[13n]], [null])).toThrow('1 position(s) make 2 parts, and 1 shard(s) are named');
  });

  test('a merge are the move of one neighbour, if need be, and a recut', () => {
    for (const [to, owner] of [
      [null, 'a'],
      [shard('b'), 'b'],
    ] as const) {
      const members = mergeMembers(k, [20n], to);
      expect(members.map((m) => m.kind)).toEqual(['move', 'recut']);
      expect(shape(carriedOut(k, members))).toEqual([
        [null, 10n, 'a'],
        [10n, null, owner],
      ]);
    }
    expect(mergeMembers(k, [10n], null)).toEqual([
      { kind: 'recut', keyspace: NAME, shard: 'a', cut: [], join: [[10n]] },
    ]);
    expect(() => mergeMembers(k, [11n], null)).toThrow('(11) is no bound between two ranges');
    expect(() => mergeMembers(k, [20n], shard('c'))).toThrow('shard "c" owns neither of the two ranges');
  });
});

const carrier = (name: string, capacity = 1): Carrier => ({ name: shard(name), capacity });
const pieces = (weights: readonly (readonly [owner: string, weight: number])[]): Piece[] =>
  weights.map(([owner, weight], i) => ({
    keyspace: NAME,
    shard: shard(owner),
    range: BigInt(i),
    lo: i === 0 ? null : [BigInt(i)],
    hi: i === weights.length - 1 ? null : [BigInt(i + 1)],
    weight,
  }));

describe('a drain', () => {
  test('gives the heaviest first to whom has least', () => {
    const moves = drain(
      pieces([
        ['a', 1],
        ['b', 4],
        ['a', 6],
        ['c', 1],
        ['a', 3],
      ]),
      shard('a'),
      [carrier('b'), carrier('c')],
    );
    expect(moves.map((m) => [m.weight, m.spec.to])).toEqual([
      [6, 'c'],
      [3, 'b'],
      [1, 'b'],
    ]);
    const rated = drain(
      pieces([
        ['a', 6],
        ['b', 4],
      ]),
      shard('a'),
      [carrier('b', 10), carrier('c', 1)],
    );
    expect(rated.map((m) => m.spec.to)).toEqual(['b']);
  });
});

describe('a rebalance', () => {
  const load = (all: readonly Piece[], shards: readonly Carrier[], moves: ReturnType<typeof rebalance>) => {
    const on = new Map(shards.map((s) => [s.name, 0]));
    for (const p of all) {
      const move = moves.find(({ spec }) => (p.lo === null ? spec.lo === null : contains(spec, p.lo)));
      const owner = move === undefined ? p.shard : move.spec.to;
      on.set(owner, (on.get(owner) ?? 0) + p.weight);
    }
    return Math.max(...shards.map((s) => (on.get(s.name) as number) / s.capacity));
  };

  test('moves what makes even, and no more', () => {
    const all = pieces([
      ['a', 4],
      ['a', 3],
      ['a', 1],
      ['b', 2],
    ]);
    const moves = rebalance(all, [carrier('a'), carrier('b')]);
    expect(moves.map((m) => [m.weight, m.spec.from, m.spec.to])).toEqual([[3, 'a', 'b']]);
  });

  test('moves the end of a range that has segments', () => {
    const all = pieces([
      ['a', 1],
      ['a', 1],
      ['a', 1],
      ['a', 1],
    ]).map((p) => ({ ...p, range: 1n }));
    const [move, ...more] = rebalance(all, [carrier('a'), carrier('b')]);
    expect(more).toEqual([]);
    expect([move?.spec.lo, move?.spec.hi]).toEqual([null, [2n]]);
  });

  test('moves nothing where all is even, or nothing would help', () => {
    expect(
      rebalance(
        pieces([
          ['a', 3],
          ['b', 3],
        ]),
        [carrier('a'), carrier('b')],
      ),
    ).toEqual([]);
    expect(
      rebalance(
        pieces([
          ['a', 6],
          ['b', 3],
        ]),
        [carrier('a', 2), carrier('b', 1)],
      ),
    ).toEqual([]);
    expect(rebalance(pieces([['a', 9]]), [carrier('a'), carrier('b')])).toEqual([]);
    expect(rebalance([], [carrier('a'), carrier('b')])).toEqual([]);
    expect(rebalance(pieces([['a', 9]]), [])).toEqual([]);
  });

  test('never makes the worst shard worse, moves no key twice, and is done when done', () => {
    const weights = fc.array(fc.tuple(fc.constantFrom('a', 'b', 'c', 'd'), fc.nat(100)), { maxLength: 24 });
    const capacities = fc.tuple(
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 1, max: 5 }),
    );
    fc.assert(
      fc.property(weights, capacities, fc.integer({ min: 1, max: 4 }), (w, [a, b, c], perRange) => {
        const shards = [carrier('a', a), carrier('b', b), carrier('c', c), carrier('d', 2)];
        // Some pieces next to one another on one shard are segments of one range.
        const all = pieces(w);
        let range = 0n;
        const grouped = all.map((p, i) => {
          const before = all[i - 1];
          if (before === undefined || before.shard !== p.shard || i % perRange === 0) range++;
          return { ...p, range };
        });
        const moves = rebalance(grouped, shards);
        const before = load(grouped, shards, []);
        const after = load(grouped, shards, moves);
        expect(after).toBeLessThanOrEqual(before + 1e-9);
        for (const p of grouped) {
          const at = p.lo ?? [-1n];
          expect(moves.filter(({ spec }) => contains(spec, at)).length).toBeLessThanOrEqual(1);
        }
        for (const { spec, weight } of moves) {
          expect(spec.from).not.toBe(spec.to);
          const inside = grouped.filter((p) => contains(spec, p.lo ?? [-1n]));
          expect(new Set(inside.map((p) => p.shard))).toEqual(new Set([spec.from]));
          expect(new Set(inside.map((p) => p.range)).size).toBe(1);
          expect(inside.reduce((sum, p) => sum + p.weight, 0)).toBe(weight);
        }
        // As it would be planned again when all is done: what was moved is a range of its own.
        if (moves.length > 0) expect(after).toBeLessThan(before + 1e-9);
        if (before <= (w.reduce((sum, [, x]) => sum + x, 0) / (a + b + c + 2)) * 1.1) expect(moves).toEqual([]);
      }),
      { numRuns: 500 },
    );
  });
});

test('a change stands as its members do', () => {
  const state = (states: MigrationState[], approved = true, started = approved) =>
    changeState({
      approvedBy: approved ? 'x' : null,
      startedBy: started ? 'x' : null,
      members: states.map((s) => ({ state: s }) as MigrationRow),
    });
  expect(state(['planned', 'planned'], false)).toBe('planned');
  expect(state(['planned', 'planned'], true, false)).toBe('approved');
  expect(state(['approved', 'approved'])).toBe('running');
  expect(state(['done', 'copying', 'approved'])).toBe('running');
  expect(state(['done', 'done'])).toBe('done');
  expect(state(['failed', 'copying', 'aborted'])).toBe('stopping');
  expect(state(['done', 'failed', 'aborted'])).toBe('stopped');
  expect(state(['rolled_back', 'reversing'])).toBe('stopping');
  expect(state(['aborted', 'aborted'], false)).toBe('aborted');
});
