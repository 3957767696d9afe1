import { sameBound } from './key.js';
import type { Keyspace, Range, ShardName } from './topology.js';

/**
 * Whether two keyspaces have the same key, and each position of it the same shard in both: then rows of their tables with equal keys are
 * together. So it is when tables were separated, until the first range of them moves.
 */
export function sameLayout(a: Keyspace, b: Keyspace): boolean {
  if (a.method !== b.method || a.keyTypes.join() !== b.keyTypes.join()) return false;
  const ours = stretches(a);
  const theirs = stretches(b);
  return ours.length === theirs.length && ours.every((stretch, i) => isLike(stretch, theirs[i] as Stretch));
}

function isLike(a: Stretch, b: Stretch): boolean {
  return a.shard === b.shard && sameBound(a.lo, b.lo);
}

type Stretch = Pick<Range, 'lo' | 'hi' | 'shard'>;

/** Intervals whose owner is not that of their neighbours: ranges side by side on one shard are one. */
export function stretches({ ranges }: Keyspace): Stretch[] {
  const found: { lo: Range['lo']; hi: Range['hi']; shard: ShardName }[] = [];
  for (const { lo, hi, shard } of ranges) {
    const last = found.at(-1);
    if (last?.shard === shard) last.hi = hi;
    else found.push({ lo, hi, shard });
  }
  return found;
}
