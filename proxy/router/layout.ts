import { sameBound } from '../../topology/key.js';
import type { KeyspaceName, Range, Topology } from '../../topology/topology.js';
import type { Refusal } from './route.js';

/** Tables named in a hint, of each keyspace. */
const TABLES = 5;

const known = new WeakMap<Topology, Map<string, boolean>>();

/**
 * Whether these keyspaces have the same key and the same ranges on the same shards, so that rows of their tables with equal keys are
 * together, as they are after tables were separated and before the first range of them has moved.
 */
export function sameLayout(topology: Topology, names: readonly KeyspaceName[]): boolean {
  let layouts = known.get(topology);
  if (layouts === undefined) {
    layouts = new Map();
    known.set(topology, layouts);
  }
  const id = names.join(' ');
  let same = layouts.get(id);
  if (same === undefined) {
    same = names.every((name) => isLike(topology, name, names[0] as KeyspaceName));
    layouts.set(id, same);
  }
  return same;
}

function isLike(topology: Topology, name: KeyspaceName, other: KeyspaceName): boolean {
  const a = topology.keyspaces.get(name);
  const b = topology.keyspaces.get(other);
  if (a === undefined || b === undefined) return false;
  if (a.method !== b.method || a.keyTypes.join() !== b.keyTypes.join() || a.ranges.length !== b.ranges.length)
    return false;
  return a.ranges.every((range, i) => {
    const like = b.ranges[i] as Range;
    return range.shard === like.shard && sameBound(range.lo, like.lo);
  });
}

/** What a statement that uses several keyspaces is told when their rows are not together. */
export function apart(topology: Topology, names: readonly KeyspaceName[]): Refusal {
  const tables = names.map((name) => {
    const all = (topology.keyspaces.get(name)?.tables ?? []).map((t) => t.table);
    return `"${name}" has ${all.slice(0, TABLES).join(', ')}${all.length > TABLES ? ', …' : ''}`;
  });
  return {
    sqlstate: '0A000',
    message: `this statement uses tables of keyspaces ${inWords(names)}, whose rows are on different shards`,
    hint: `Use the tables of each keyspace in a statement of its own: ${tables.join('; ')}.`,
  };
}

/** `"a", "b" and "c"` */
export function inWords(names: readonly KeyspaceName[]): string {
  const quoted = names.map((name) => `"${name}"`);
  return quoted.length < 2 ? quoted.join('') : `${quoted.slice(0, -1).join(', ')} and ${quoted.at(-1)}`;
}
