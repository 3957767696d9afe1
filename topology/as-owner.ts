import { sameBound } from './key.js';
import { type Keyspace, type Range, type RangeReplica, rangesIn, type Topology, tableId } from './topology.js';

/** The topology in which a replica owns its interval, with what is kept up to date there: what can be asked of it is what can be asked of an owner. */
export function asOwner(topology: Topology, replica: RangeReplica): Topology {
  const keyspace = topology.keyspaces.get(replica.keyspace);
  if (keyspace === undefined) return topology;
  const inside = new Set(rangesIn(keyspace, replica));
  const ranges = keyspace.ranges.flatMap((range): Range[] => {
    if (!inside.has(range)) return [range];
    // The first and the last may reach beyond it.
    const [first, last] = [keyspace.ranges.find((r) => inside.has(r)), keyspace.ranges.findLast((r) => inside.has(r))];
    const lo = range === first ? replica.lo : range.lo;
    const hi = range === last ? replica.hi : range.hi;
    const parts: Range[] = [{ ...range, lo, hi, shard: replica.shard }];
    if (!sameBound(range.lo, lo)) parts.unshift({ ...range, hi: lo });
    if (!sameBound(range.hi, hi)) parts.push({ ...range, lo: hi });
    return parts;
  });
  const changed: Keyspace = { ...keyspace, ranges };
  const referenceTables = new Map(topology.referenceTables);
  for (const table of replica.referenceTables) {
    const known = referenceTables.get(tableId(table));
    if (known !== undefined && !known.shards.includes(replica.shard))
      referenceTables.set(tableId(table), { ...known, shards: [...known.shards, replica.shard] });
  }
  return { ...topology, keyspaces: new Map(topology.keyspaces).set(keyspace.name, changed), referenceTables };
}
