import { contains, type Interval, type Position } from '../topology/key.js';
import { encodeText, positionTypes } from '../topology/key-codec.js';
import type { Keyspace, Range, Shard, ShardName, Topology } from '../topology/topology.js';
import { type Cut, cutAt, hottestKey, isSequentialFront, type SegmentLoad } from './cut.js';
import type { KeySample, SegmentSeries } from './history-store.js';
import { type Assessment, type Grid, meanOver, peakWindow, quickForecast, rangesOn, segmentsIn } from './outlook.js';
import { formatLoad, formatPercent } from './report/format.js';

export interface PlanningInput {
  readonly topology: Topology;
  readonly grid: Grid;
  /** Of all keyspaces, each keyspace's in its order, on the grid. */
  readonly segments: readonly SegmentSeries[];
  readonly samples: ReadonlyMap<bigint, readonly KeySample[]>;
  /** Shards whose capacity is set and whose history allows a forecast. */
  readonly assessments: ReadonlyMap<ShardName, Assessment>;
  /** A shard is relieved when its p50 passes the capacity, or its score reaches this. Default 0.5. */
  readonly minScore?: number;
}

/** One part of a cut range that could leave. */
export interface Move {
  readonly interval: Interval;
  readonly splitAt: Position;
  /** Forecast load in the peak window, ms of busy backend per second. */
  readonly load: number;
  /** Per segment of the range, in order, the share of its load that moves: 0 or 1, or between where the cut falls inside. */
  readonly shares: readonly number[];
}

/** A shard to relieve, and the moves that would. */
export interface SplitChoice {
  readonly kind: 'split';
  readonly source: Shard;
  readonly target: Shard;
  readonly keyspace: Keyspace;
  readonly range: Range;
  readonly loads: readonly SegmentLoad[];
  /** Steps of the horizon. */
  readonly window: { readonly from: number; readonly to: number };
  /** Forecast loads of the shards in the window, ms of busy backend per second. */
  readonly sourceLoad: number;
  readonly targetLoad: number;
  /** Nearest to the wanted load first. */
  readonly moves: readonly Move[];
}

export interface NoSplit {
  readonly kind: 'none';
  /** Whether some shard needs relief that a split cannot give. */
  readonly needed: boolean;
  readonly reasons: readonly string[];
}

export const DEFAULT_MIN_SCORE = 0.5;
/** A split must lower the highest utilisation by at least this much of it, or it is work for nothing. */
const MIN_GAIN = 0.05;
/** A key with this share of its shard's load makes every split lopsided. */
const DOMINANT = 0.5;

/** Whether a shard is expected to pass its capacity. */
function needsRelief(assessment: Assessment, minScore: number): boolean {
  const { crossesAt, score } = assessment.outlook;
  return crossesAt !== null || score >= minScore;
}

/**
 * Which shard to relieve, of which part, to where. The hottest range of the shard most at risk is cut where it halves the
 * *load* of the forecast peak (or, when the target already carries some, where both end equally utilised).
 */
export function chooseSplit(input: PlanningInput): SplitChoice | NoSplit {
  const { topology, assessments, minScore = DEFAULT_MIN_SCORE } = input;
  const all = [...assessments.values()];
  const hot = all.filter((a) => needsRelief(a, minScore)).sort(byUrgency);
  if (hot.length === 0) {
    const reasons = all.map(
      ({ outlook: o }) =>
        `shard "${o.shard}" stays below its capacity of ${formatLoad(o.capacityMsPerSecond)}: forecast peak ${formatLoad(o.peak.p50)}, score ${formatPercent(o.score)}`,
    );
    return { kind: 'none', needed: false, reasons };
  }
  const reasons: string[] = [];
  for (const assessment of hot) {
    const choice = relieve(topology.shards.get(assessment.outlook.shard) as Shard, assessment, input);
    if (choice.kind === 'split') return choice;
    reasons.push(...choice.reasons);
  }
  return { kind: 'none', needed: true, reasons };
}

function relieve(source: Shard, assessment: Assessment, input: PlanningInput): SplitChoice | NoSplit {
  const none = (reason: string): NoSplit => ({ kind: 'none', needed: true, reasons: [reason] });
  const { topology, samples, segments, grid } = input;
  const window = peakWindow(assessment.forecast.p50);
  const sourceLoad = meanOver(assessment.forecast.p50, window);

  // Shares of the shard's forecast: the segments' own forecasts, scaled so that together they make it.
  const ranges = rangesOn(topology, source.name).map(({ keyspace, range }) => ({
    keyspace,
    range,
    loads: segmentsIn(range, segments).map((segment) => ({
      segment,
      load: meanOver(quickForecast(segment.load, grid), window),
    })),
  }));
  const raw = ranges.reduce((sum, r) => sum + total(r.loads), 0);
  const scale = raw > 0 ? sourceLoad / raw : 0;
  const hottest = ranges
    .map((r) => ({ ...r, loads: r.loads.map((l) => ({ ...l, load: l.load * scale })) }))
    .sort((a, b) => total(b.loads) - total(a.loads))[0];
  if (hottest === undefined || total(hottest.loads) <= 0)
    return none(`shard "${source.name}" has no load in its ranges that could be moved`);
  const { keyspace, range, loads } = hottest;

  const hotKey = hottestKey(loads, samples);
  if (hotKey !== null && hotKey.load >= DOMINANT * sourceLoad)
    return none(
      `shard "${source.name}" is not split: the single key ${describe(keyspace, hotKey.position)} carries ${formatPercent(hotKey.load / sourceLoad)} of its load, and a key cannot be divided; a read replica, or splitting its tables off, would help`,
    );
  if (isSequentialFront(keyspace, loads, samples))
    return none(
      `shard "${source.name}" is not split: the load of keyspace "${keyspace.name}" follows the newest keys upwards, so whatever is cut off behind that front takes no future load with it; a hash keyspace, or another leading key column, spreads it`,
    );

  const target = chooseTarget(source, window, input);
  if (typeof target === 'string') return none(target);
  const sourceCapacity = source.capacityMsPerSecond as number;
  const targetCapacity = target.shard.capacityMsPerSecond as number;
  const wanted = Math.max(
    0,
    (sourceLoad * targetCapacity - target.load * sourceCapacity) / (sourceCapacity + targetCapacity),
  );
  const whole = total(loads);
  const moves = sides(keyspace, range, loads, samples, wanted, whole).sort(
    (a, b) => Math.abs(a.load - wanted) - Math.abs(b.load - wanted),
  );
  const [best] = moves;
  if (best === undefined)
    return none(
      `shard "${source.name}" cannot be split yet: keyspace "${keyspace.name}" has one segment there and too few sampled keys to know where its load lies`,
    );
  const before = Math.max(sourceLoad / sourceCapacity, target.load / targetCapacity);
  const after = Math.max((sourceLoad - best.load) / sourceCapacity, (target.load + best.load) / targetCapacity);
  if (after > before * (1 - MIN_GAIN)) {
    const why =
      hotKey === null
        ? 'the load lies in one segment, and too few keys were sampled to cut inside it'
        : `key ${describe(keyspace, hotKey.position)} alone carries ${formatPercent(hotKey.load / sourceLoad)} of the load`;
    return none(
      `shard "${source.name}" is not split: no cut lowers the highest utilisation by ${formatPercent(MIN_GAIN)} (${why})`,
    );
  }
  return {
    kind: 'split',
    source,
    target: target.shard,
    keyspace,
    range,
    loads,
    window,
    sourceLoad,
    targetLoad: target.load,
    moves,
  };
}

/** The shard whose forecast load in the window is the smallest part of its capacity; or why there is none. */
function chooseTarget(
  source: Shard,
  window: { from: number; to: number },
  { topology, assessments }: PlanningInput,
): { shard: Shard; load: number } | string {
  const others = [...topology.shards.values()].filter((s) => s.name !== source.name);
  const able = others.flatMap((shard) => {
    const { capacityMsPerSecond: capacity } = shard;
    if (capacity === null) return [];
    const assessment = assessments.get(shard.name);
    // A shard without any range has no load; one with ranges but without a forecast is an unknown.
    if (assessment === undefined)
      return rangesOn(topology, shard.name).length === 0 ? [{ shard, load: 0, capacity }] : [];
    return [{ shard, load: meanOver(assessment.forecast.p50, window), capacity }];
  });
  const roomy = able.filter((t) => t.load < t.capacity).sort((a, b) => a.load / a.capacity - b.load / b.capacity);
  const [best] = roomy;
  if (best !== undefined) return best;
  if (others.length === 0)
    return `shard "${source.name}" cannot be relieved: there is no other shard; add one with "foreshard shard add"`;
  if (able.length === 0)
    return `shard "${source.name}" cannot be relieved: no other shard has a capacity set and a forecast`;
  return `shard "${source.name}" cannot be relieved: no other shard has room at the forecast peak; add one with "foreshard shard add"`;
}

/** The part on the right, the part on the left, and the whole range where it is small enough. */
function sides(
  keyspace: Keyspace,
  range: Range,
  loads: readonly SegmentLoad[],
  samples: ReadonlyMap<bigint, readonly KeySample[]>,
  wanted: number,
  whole: number,
): Move[] {
  const moves: Move[] = [];
  const right = cutAt(keyspace, loads, samples, whole - wanted);
  if (right !== null)
    moves.push({
      interval: { lo: right.at, hi: range.hi },
      splitAt: right.at,
      load: whole - right.left,
      shares: loads.map((_, i) => 1 - leftShare(right, i)),
    });
  const left = cutAt(keyspace, loads, samples, wanted);
  if (left !== null)
    moves.push({
      interval: { lo: range.lo, hi: left.at },
      splitAt: left.at,
      load: left.left,
      shares: loads.map((_, i) => leftShare(left, i)),
    });
  const bound = range.lo ?? range.hi;
  if (bound !== null && whole <= wanted)
    moves.push({ interval: { lo: range.lo, hi: range.hi }, splitAt: bound, load: whole, shares: loads.map(() => 1) });
  return moves.filter((m) => m.load > 0);
}

function leftShare(cut: Cut, segment: number): number {
  return segment < cut.segment ? 1 : segment > cut.segment ? 0 : cut.share;
}

/** The segments of the range, cut where the move cuts them. */
export function segmentsOfMove(
  choice: SplitChoice,
  move: Move,
): { lo: Position | null; hi: Position | null; load: number; moves: boolean }[] {
  return choice.loads.flatMap(({ segment, load }, i) => {
    const share = move.shares[i] as number;
    if (share <= 0 || share >= 1) return [{ lo: segment.lo, hi: segment.hi, load, moves: share >= 1 }];
    const movesLeft = segment.lo === null ? move.interval.lo === null : contains(move.interval, segment.lo);
    const left = movesLeft ? share : 1 - share;
    return [
      { lo: segment.lo, hi: move.splitAt, load: load * left, moves: movesLeft },
      { lo: move.splitAt, hi: segment.hi, load: load * (1 - left), moves: !movesLeft },
    ];
  });
}

function total(loads: readonly SegmentLoad[]): number {
  return loads.reduce((sum, l) => sum + l.load, 0);
}

function byUrgency(a: Assessment, b: Assessment): number {
  const at = (x: Assessment) => x.outlook.crossesAt ?? Infinity;
  return b.outlook.score - a.outlook.score || (at(a) === at(b) ? 0 : at(a) - at(b));
}

/** A position as a person writes it. */
export function describe(keyspace: Keyspace, position: Position): string {
  const types = positionTypes(keyspace);
  const parts = position.map((scalar, i) => encodeText(types[i] as (typeof types)[number], scalar));
  return keyspace.method === 'hash'
    ? `hash ${parts[0]}`
    : parts.length === 1
      ? (parts[0] as string)
      : `(${parts.join(', ')})`;
}
