import { comparePositions, type Position } from '../topology/key.js';
import type { Keyspace } from '../topology/topology.js';
import type { KeySample, SegmentSeries } from './history-store.js';

/** A place to cut a range in two, with the load to the left of it. */
export interface Cut {
  readonly at: Position;
  readonly left: number;
  /** Index of the segment the cut lies in, and the share of its load to the left: 0 on the segment's lower bound. */
  readonly segment: number;
  readonly share: number;
}

export interface SegmentLoad {
  readonly segment: SegmentSeries;
  /** Forecast load in the peak window, ms of busy backend per second. */
  readonly load: number;
}

/** A cut on a segment's bound is taken when it misses the wanted load by no more than this share of the range's. */
const BOUND_TOLERANCE = 0.02;
/** Fewer distinct sampled keys say nothing about where the load inside a segment lies. */
const MIN_SAMPLES = 8;

/**
 * The cut of a range that leaves `wanted` load on its left, as nearly as can be: on a bound between segments, or, where the
 * place falls inside a segment, before one of its sampled keys, each weighted with the server time it stood for. Of a composite key in a
 * `range` keyspace the cut names the first column only, so that no tenant's rows are torn apart.
 * @returns null when the range cannot be cut at all: one segment, without enough samples
 */
export function cutAt(
  keyspace: Keyspace,
  loads: readonly SegmentLoad[],
  samples: ReadonlyMap<bigint, readonly KeySample[]>,
  wanted: number,
): Cut | null {
  const total = loads.reduce((sum, s) => sum + s.load, 0);
  let best: Cut | null = null;
  const offer = (cut: Cut): void => {
    if (best === null || Math.abs(cut.left - wanted) < Math.abs(best.left - wanted)) best = cut;
  };
  let left = 0;
  loads.forEach(({ segment, load }, i) => {
    if (i > 0 && segment.lo !== null) offer({ at: segment.lo, left, segment: i, share: 0 });
    left += load;
  });
  const bound = best as Cut | null;
  if (bound !== null && Math.abs(bound.left - wanted) <= BOUND_TOLERANCE * total) return bound;

  left = 0;
  loads.forEach(({ segment, load }, i) => {
    // Only the segment in which the wanted place lies is cut inside.
    if (left <= wanted && wanted <= left + load)
      for (const { at, share } of cutsInside(keyspace, segment, samples.get(segment.id) ?? []))
        offer({ at, left: left + load * share, segment: i, share });
    left += load;
  });
  return best;
}

function cutsInside(
  keyspace: Keyspace,
  segment: SegmentSeries,
  samples: readonly KeySample[],
): { at: Position; share: number }[] {
  if (samples.length < MIN_SAMPLES) return [];
  const total = samples.reduce((sum, s) => sum + s.weight, 0);
  if (!(total > 0)) return [];
  const whole = keyspace.method === 'range' && keyspace.keyTypes.length > 1 ? 1 : undefined;
  const cuts: { at: Position; share: number }[] = [];
  let before = 0;
  let previous: Position | null = null;
  for (const sample of samples) {
    const at = sample.position.slice(0, whole);
    const isNew = previous === null || comparePositions(previous, at) !== 0;
    if (isNew && (segment.lo === null || comparePositions(at, segment.lo) > 0)) {
      if (before > 0) cuts.push({ at, share: before / total });
    }
    before += sample.weight;
    previous = at;
  }
  return cuts;
}

/** The heaviest sampled key among the segments, with its estimated load. */
export function hottestKey(
  loads: readonly SegmentLoad[],
  samples: ReadonlyMap<bigint, readonly KeySample[]>,
): { readonly position: Position; readonly load: number } | null {
  let hottest: { position: Position; load: number } | null = null;
  // Over the whole range: a segment in which one key has all the load has one sample.
  if (loads.reduce((n, { segment }) => n + (samples.get(segment.id)?.length ?? 0), 0) < MIN_SAMPLES) return null;
  for (const { segment, load } of loads) {
    const keys = samples.get(segment.id) ?? [];
    const total = keys.reduce((sum, s) => sum + s.weight, 0);
    for (const key of keys) {
      const estimate = total > 0 ? (load * key.weight) / total : 0;
      if (hottest === null || estimate > hottest.load) hottest = { position: key.position, load: estimate };
    }
  }
  return hottest;
}

/** Samples that say whether a front moves. */
const MIN_FRONT_SAMPLES = 20;
const FRONT_CORRELATION = 0.8;

/**
 * Whether the load follows the keys upwards (a serial key, a timestamp): the later a key was last seen, the further up
 * it lies (Spearman's rank correlation). Whatever is cut off behind such a front takes no future load with it.
 */
export function isSequentialFront(
  keyspace: Keyspace,
  loads: readonly SegmentLoad[],
  samples: ReadonlyMap<bigint, readonly KeySample[]>,
): boolean {
  if (keyspace.method === 'hash') return false;
  const keys = loads.flatMap(({ segment }) => samples.get(segment.id) ?? []);
  if (keys.length < MIN_FRONT_SAMPLES) return false;
  const sorted = [...keys].sort((a, b) => comparePositions(a.position, b.position));
  return correlation(ranks(sorted.map((_, i) => i)), ranks(sorted.map((k) => k.seenAt))) >= FRONT_CORRELATION;
}

/** Ranks, ties sharing the mean of theirs. */
function ranks(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => (values[a] as number) - (values[b] as number));
  const out = new Array<number>(values.length);
  for (let i = 0; i < order.length; ) {
    let j = i;
    while (j < order.length && values[order[j] as number] === values[order[i] as number]) j++;
    for (let k = i; k < j; k++) out[order[k] as number] = (i + j - 1) / 2;
    i = j;
  }
  return out;
}

function correlation(a: readonly number[], b: readonly number[]): number {
  const n = a.length;
  const [ma, mb] = [a, b].map((v) => v.reduce((x, y) => x + y, 0) / n) as [number, number];
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < n; i++) {
    const [x, y] = [(a[i] as number) - ma, (b[i] as number) - mb];
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return aa === 0 || bb === 0 ? 0 : ab / Math.sqrt(aa * bb);
}
