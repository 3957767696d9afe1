import { expect, describe as group, it } from 'vitest';
import { chooseSplit, type NoSplit, type PlanningInput, type SplitChoice } from '../../planner/choose-split.js';
import type { KeySample, SegmentSeries } from '../../planner/history-store.js';
import { type Assessment, assess, type Grid, rangesOn, segmentsIn, sumSeries } from '../../planner/outlook.js';
import { cheapest, propose } from '../../planner/propose.js';
import { DEFAULT_RATES } from '../../planner/rates.js';
import type { Interval, KeyType, Position } from '../../topology/key.js';
import type { Epoch, Keyspace, KeyspaceName, Range, Shard, ShardName, Topology } from '../../topology/topology.js';
import { hourly } from './series.js';

const HOURS = 24 * 21;
const GRID: Grid = { stepSeconds: 3600, start: Date.UTC(2026, 0, 5), length: HOURS, horizon: 24 };
const SHAPE = hourly(HOURS, 1, 0.05);

interface Setup {
  /** Mean load of each segment, ms/s, and the lowest key of all but the first. */
  readonly segments: readonly {
    readonly lo: Position | null;
    readonly load: number;
    readonly samples?: readonly KeySample[];
  }[];
  /** Lowest key of each range and its shard. */
  readonly ranges?: readonly { readonly lo: Position | null; readonly shard: string }[];
  readonly capacities?: Readonly<Record<string, number | null>>;
  readonly keyTypes?: readonly KeyType[];
}

function intervals(los: readonly (Position | null)[]): Interval[] {
  return los.map((lo, i) => ({ lo, hi: los[i + 1] ?? null }));
}

function input(setup: Setup): PlanningInput {
  const { ranges = [{ lo: null, shard: 'a' }], capacities = { a: 1000, b: 1000 }, keyTypes = ['int8'] } = setup;
  const name = 'tenant' as KeyspaceName;
  const shards = new Map(
    Object.entries(capacities).map(([shard, capacity], i): [ShardName, Shard] => [
      shard as ShardName,
      { name: shard as ShardName, url: '', home: i === 0, capacityMsPerSecond: capacity },
    ]),
  );
  const rangeBounds = intervals(ranges.map((r) => r.lo));
  const keyspace: Keyspace = {
    name,
    method: 'range',
    keyTypes,
    tables: [],
    ranges: ranges.map(
      (r, i): Range => ({
        ...(rangeBounds[i] as Interval),
        id: BigInt(i + 1),
        keyspace: name,
        shard: r.shard as ShardName,
      }),
    ),
  };
  const topology: Topology = {
    epoch: 1n as Epoch,
    database: 'shop',
    shards,
    home: 'a' as ShardName,
    keyspaces: new Map([[name, keyspace]]),
    shardedTables: new Map(),
    referenceTables: new Map(),
    holds: [],
    replicas: [],
    schemaGeneration: 0n,
  };
  const bounds = intervals(setup.segments.map((s) => s.lo));
  const segments = setup.segments.map(
    (s, i): SegmentSeries => ({
      ...(bounds[i] as Interval),
      id: BigInt(i + 1),
      keyspace: name,
      load: SHAPE.map((v) => v * s.load),
      writes: SHAPE.map((v) => v * s.load * 0.1),
    }),
  );
  const samples = new Map(setup.segments.map((s, i) => [BigInt(i + 1), s.samples ?? []]));
  const assessments = new Map<ShardName, Assessment>();
  for (const shard of shards.values()) {
    const own = rangesOn(topology, shard.name).flatMap(({ range }) => segmentsIn(range, segments));
    if (shard.capacityMsPerSecond === null || own.length === 0) continue;
    const load = sumSeries(
      own.map((s) => s.load),
      HOURS,
    );
    assessments.set(shard.name, assess(shard.name, shard.capacityMsPerSecond, load, GRID) as Assessment);
  }
  return { topology, grid: GRID, segments, samples, assessments };
}

function keys(...list: [key: bigint | Position, weight: number, seenAt?: number][]): KeySample[] {
  return list.map(([key, weight, seenAt = 0]) => ({ position: typeof key === 'bigint' ? [key] : key, weight, seenAt }));
}

const uniform = (from: number, count: number, weight = 1) =>
  keys(
    ...Array.from({ length: count }, (_, i): [bigint, number, number] => [BigInt(from + i), weight, (i * 7919) % 100]),
  );

function split(setup: Setup): SplitChoice {
  const choice = chooseSplit(input(setup));
  if (choice.kind !== 'split') throw new Error(choice.reasons.join('; '));
  return choice;
}

function refusal(setup: Setup): NoSplit {
  const choice = chooseSplit(input(setup));
  if (choice.kind !== 'none') throw new Error('a split was chosen');
  return choice;
}

group('where a shard is cut', () => {
  it('halves the load, not the keys', () => {
    const { moves, target } = split({
      segments: [
        { lo: null, load: 100 },
        { lo: [100n], load: 100 },
        { lo: [200n], load: 100 },
        { lo: [900n], load: 700 },
        { lo: [950n], load: 100 },
      ].map((s) => ({ ...s, load: s.load as number })),
      capacities: { a: 1200, b: 1200 },
    });
    expect(target.name).toBe('b');
    expect(moves[0]?.splitAt).toEqual([900n]);
  });

  it('cuts inside a segment at the weighted median of its sampled keys', () => {
    const { moves } = split({
      segments: [
        {
          lo: null,
          load: 1000,
          samples: keys(
            ...Array.from({ length: 20 }, (_, i): [bigint, number, number] => [
              BigInt(i),
              i < 10 ? 1 : 9,
              (i * 7) % 11,
            ]),
          ),
        },
      ],
    });
    // 10 + 9·(k − 10) of 100 lie below key k: half of it at 14 or 15.
    expect([14n, 15n]).toContain(moves[0]?.splitAt[0]);
  });

  it('never tears the rows of one first key column apart', () => {
    const samples = keys(
      ...Array.from({ length: 30 }, (_, i): [Position, number, number] => [
        [BigInt(Math.floor(i / 10)), BigInt(i)],
        1,
        (i * 7) % 11,
      ]),
    );
    const { moves } = split({ segments: [{ lo: null, load: 1000, samples }], keyTypes: ['int8', 'int8'] });
    for (const move of moves) expect(move.splitAt).toHaveLength(1);
  });

  it('takes the least loaded target with room, and only as much as leaves both equal', () => {
    const { target, moves, sourceLoad, targetLoad } = split({
      segments: [
        { lo: null, load: 450 },
        { lo: [10n], load: 150 },
        { lo: [20n], load: 150 },
        { lo: [30n], load: 150 },
        { lo: [40n], load: 900 },
        { lo: [50n], load: 300 },
      ],
      ranges: [
        { lo: null, shard: 'a' },
        { lo: [40n], shard: 'b' },
        { lo: [50n], shard: 'c' },
      ],
      capacities: { a: 1000, b: 2000, c: 2000, d: null },
    });
    expect(target.name).toBe('c');
    expect(targetLoad).toBeGreaterThan(0);
    const after = [(sourceLoad - (moves[0]?.load as number)) / 1000, (targetLoad + (moves[0]?.load as number)) / 2000];
    expect(Math.abs((after[0] as number) - (after[1] as number))).toBeLessThan(0.3);
  });
});

group('what is not split', () => {
  it('a shard that stays below its capacity', () => {
    expect(refusal({ segments: [{ lo: null, load: 100 }] })).toMatchObject({
      needed: false,
      reasons: [expect.stringMatching(/stays below its capacity/)],
    });
  });

  it('a single hot key', () => {
    const samples = [...uniform(0, 10), ...keys([500n, 40])];
    const none = refusal({ segments: [{ lo: null, load: 1000, samples }] });
    expect(none).toMatchObject({
      needed: true,
      reasons: [expect.stringMatching(/single key 500 carries 80 % of its load/)],
    });
  });

  it('a front that moves up with the newest keys', () => {
    const samples = keys(...Array.from({ length: 40 }, (_, i): [bigint, number, number] => [BigInt(i), 1, i * 1000]));
    expect(refusal({ segments: [{ lo: null, load: 1000, samples }] }).reasons[0]).toMatch(/follows the newest keys/);
  });

  it('a shard without samples and with one segment', () => {
    expect(refusal({ segments: [{ lo: null, load: 1000 }] }).reasons[0]).toMatch(/too few sampled keys/);
  });

  it('a shard that has nowhere to go', () => {
    const samples = uniform(0, 40);
    expect(refusal({ segments: [{ lo: null, load: 1000, samples }], capacities: { a: 1000 } }).reasons[0]).toMatch(
      /there is no other shard/,
    );
    expect(
      refusal({ segments: [{ lo: null, load: 1000, samples }], capacities: { a: 1000, b: null } }).reasons[0],
    ).toMatch(/no other shard has a capacity set/);
    const full: Setup = {
      segments: [
        { lo: null, load: 1000, samples },
        { lo: [100n], load: 2000, samples: uniform(100, 40) },
      ],
      ranges: [
        { lo: null, shard: 'a' },
        { lo: [100n], shard: 'b' },
      ],
    };
    for (const reason of refusal(full).reasons) expect(reason).toMatch(/no other shard has room/);
  });
});

group('the proposal', () => {
  const given = input({
    segments: [
      { lo: null, load: 500 },
      { lo: [500n], load: 500 },
    ],
  });
  const choice = chooseSplit(given) as SplitChoice;
  const size = (rows: number, bytes: number) => [{ table: 'public.orders', rows, bytes, exact: true }];

  it('moves the cheaper of two equal halves', () => {
    const costs = choice.moves.map((move) => ({ move, sizes: size(1, move.interval.lo === null ? 10 : 20) }));
    expect(cheapest(choice, costs).move.interval).toEqual({ lo: null, hi: [500n] });
  });

  it('computes its times from sizes and rates, and starts early enough', () => {
    const move = choice.moves[0] as SplitChoice['moves'][number];
    const rates = { ...DEFAULT_RATES, copyBytesPerSecond: 1_000_000, applyRowsPerSecond: 1000, pauseMs: 20 };
    const p = propose(given, choice, { move, sizes: size(5_000_000, 600_000_000) }, { rates, marginSeconds: 100 });
    expect(p.copySeconds).toBe(600);
    expect(p.catchUpSeconds).toBeGreaterThan((600 * 50) / 1000);
    expect(p.catchUpSeconds).toBeLessThan((600 * 150) / 850);
    expect(p.startBy).toBe(Math.floor((p.deadline as number) - (p.copySeconds + p.catchUpSeconds + 100) * 1000 - 20));
    expect(p.movedLoadShare).toBeCloseTo(0.5, 1);
    expect(p.before[0]?.crossesAt).toBe(p.deadline);
    expect(p.after.map((o) => o.crossesAt)).toEqual([null, null]);
    expect(p.segments.map((s) => s.moves)).toContain(true);
    expect(p.blockers).toEqual([]);
    expect(p.crossShardShare).toBeNull();
  });

  it('is blocked when the target could never catch up', () => {
    const move = choice.moves[0] as SplitChoice['moves'][number];
    const p = propose(
      given,
      choice,
      { move, sizes: size(10, 1000) },
      { rates: { ...DEFAULT_RATES, applyRowsPerSecond: 10 } },
    );
    expect(p.blockers).toEqual([expect.stringMatching(/it would never catch up/)]);
  });
});
