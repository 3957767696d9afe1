import { sameBound } from './key.js';
import type { Keyspace, Range } from './topology.js';

/**
 * Whether two keyspaces have the same key, and each position of it the same shard in both: then rows of their tables with equal keys are
 * together. So it is when tables were separated, until the first range of them moves.
 */
export function sameLayout(a: Keyspace, b: Keyspace): boolean {
  if (a.method !== b.method || a.keyTypes.join() !== b.keyTypes.join()) return false;
  const ours = stretches(a);
  const theirs = stretches(b);
  return ours.length === theirs.length && ours.every((range, i) => isLike(range, theirs[i] as Range));
}

function isLike(a: Range, b: Range): boolean {
  return a.shard === b.shard && sameBound(a.lo, b.lo);
}

/** The first of each row of neighbours on one shard. */
function stretches({ ranges }: Keyspace): Range[] {
  return ranges.filter((range, i) => range.shard !== ranges[i - 1]?.shard);
}
