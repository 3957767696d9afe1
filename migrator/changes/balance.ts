import type { Interval } from '../../topology/key.js';
import type { MoveSpec } from '../../topology/migration.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';

// Which ranges go where, so that shards carry alike; pure.

/** A range, or a segment of one, with what it weighs: load, or bytes where there is no history of load. */
export interface Piece extends Interval {
  readonly keyspace: KeyspaceName;
  readonly shard: ShardName;
  /** Pieces of one range, in its order, stand together. */
  readonly range: bigint;
  readonly weight: number;
}

/** A shard that can carry something. */
export interface Carrier {
  readonly name: ShardName;
  /** What it can carry, in the same unit for all. */
  readonly capacity: number;
}

/** A move, and the weight that goes with it. */
export interface WeighedMove {
  readonly spec: MoveSpec;
  readonly weight: number;
}

/** Shards within this share of the mean utilisation are even. */
const DEFAULT_TOLERANCE = 0.1;

/** A move that lowers the higher of two utilisations by less than this share of it is not worth its while. */
const MIN_GAIN = 0.01;

/**
 * Moves that even out what the shards carry, the worst first. Each goes from the shard most utilised to the one least, and lowers the higher
 * utilisation of the two; no piece moves twice. What moves is an end of what is left of a range, or all of it: ranges are not scattered.
 */
export function rebalance(
  pieces: readonly Piece[],
  shards: readonly Carrier[],
  tolerance = DEFAULT_TOLERANCE,
): WeighedMove[] {
  const load = new Map<ShardName, number>(shards.map((s) => [s.name, 0]));
  for (const p of pieces) load.set(p.shard, (load.get(p.shard) ?? 0) + p.weight);
  const used = (s: Carrier) => (load.get(s.name) as number) / s.capacity;
  const capacity = shards.reduce((sum, s) => sum + s.capacity, 0);
  const mean = shards.reduce((sum, s) => sum + (load.get(s.name) as number), 0) / capacity;
  const rests = runs(pieces);
  const moves: WeighedMove[] = [];
  for (;;) {
    const order = shards.toSorted((a, b) => used(b) - used(a));
    const [worst, best] = [order[0], order.at(-1)];
    if (worst === undefined || best === undefined || used(worst) <= mean * (1 + tolerance)) return moves;
    // So much that neither of the two passes the mean.
    const wanted = Math.min((used(worst) - mean) * worst.capacity, (mean - used(best)) * best.capacity);
    const ends = rests.filter((run) => run[0]?.shard === worst.name).flatMap((run) => endsOf(run, rests.indexOf(run)));
    const [end] = ends
      .filter(({ weight }) => {
        const after = Math.max(used(worst) - weight / worst.capacity, used(best) + weight / best.capacity);
        return weight > 0 && after < used(worst) * (1 - MIN_GAIN);
      })
      .sort((a, b) => Math.abs(a.weight - wanted) - Math.abs(b.weight - wanted) || a.weight - b.weight);
    if (end === undefined) return moves;
    const run = rests[end.run] as readonly Piece[];
    const moved = run.slice(end.from, end.to);
    rests[end.run] = [...run.slice(0, end.from), ...run.slice(end.to)];
    load.set(worst.name, (load.get(worst.name) as number) - end.weight);
    load.set(best.name, (load.get(best.name) as number) + end.weight);
    moves.push({ spec: moveOf(moved, best.name), weight: end.weight });
  }
}

/**
 * Moves that leave nothing of a shard: the heaviest range first, each to the shard that is then the least utilised.
 * @param pieces of all shards
 * @param targets without the shard itself; at least one
 */
export function drain(pieces: readonly Piece[], shard: ShardName, targets: readonly Carrier[]): WeighedMove[] {
  const load = new Map<ShardName, number>(targets.map((s) => [s.name, 0]));
  for (const p of pieces) load.set(p.shard, (load.get(p.shard) ?? 0) + p.weight);
  return runs(pieces.filter((p) => p.shard === shard))
    .map((run) => ({ run, weight: weigh(run) }))
    .toSorted((a, b) => b.weight - a.weight)
    .map(({ run, weight }) => {
      const after = (s: Carrier) => ((load.get(s.name) as number) + weight) / s.capacity;
      const to = targets.reduce((a, b) => (after(b) < after(a) ? b : a));
      load.set(to.name, (load.get(to.name) as number) + weight);
      return { spec: moveOf(run, to.name), weight };
    });
}

/** Pieces by their range. */
function runs(pieces: readonly Piece[]): (readonly Piece[])[] {
  const found = new Map<string, Piece[]>();
  for (const p of pieces) {
    const range = `${p.keyspace} ${p.range}`;
    const run = found.get(range);
    if (run === undefined) found.set(range, [p]);
    else run.push(p);
  }
  return [...found.values()];
}

function weigh(run: readonly Piece[]): number {
  return run.reduce((sum, p) => sum + p.weight, 0);
}

/** Both ends of a run, of every length. */
function endsOf(run: readonly Piece[], index: number): { run: number; from: number; to: number; weight: number }[] {
  const total = weigh(run);
  let below = 0;
  return run.flatMap((piece, i) => {
    const left = { run: index, from: 0, to: i + 1, weight: below + piece.weight };
    const right = { run: index, from: i, to: run.length, weight: total - below };
    below += piece.weight;
    return [left, right];
  });
}

function moveOf(run: readonly Piece[], to: ShardName): MoveSpec {
  const [first, last] = [run[0] as Piece, run.at(-1) as Piece];
  return { kind: 'move', keyspace: first.keyspace, lo: first.lo, hi: last.hi, from: first.shard, to };
}
