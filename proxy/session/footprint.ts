import { contains } from '../../topology/key.js';
import {
  type Hold,
  isKeyless,
  type Keyspace,
  type KeyspaceName,
  rangeOf,
  rangesIn,
  type ShardName,
  type Topology,
  tableId,
} from '../../topology/topology.js';
import type { Touch } from '../router/route.js';

/** What an execution touches: places in keyspaces, perhaps everything there is. For holds and for the end of a range's stay. */
export interface Footprint {
  /** The map whose keyspaces `touches` names: tables may have come to another keyspace since. */
  readonly topology: Topology;
  readonly touches: readonly Touch[];
  /** Nothing is known of what it touches (DDL, DO, a statement the router does not understand). */
  readonly everything: boolean;
  readonly writesReference: boolean;
}

/**
 * The keyspaces that the tables of keyspace `name` of `from` have in `to`: others when tables were separated or joined in between. A
 * position is the same place in all of them, for such keyspaces have the same key. Empty: it is gone.
 */
export function keyspacesIn(to: Topology, name: KeyspaceName, from: Topology): readonly KeyspaceName[] {
  if (to === from) return [name];
  const found = new Set<KeyspaceName>();
  for (const table of from.keyspaces.get(name)?.tables ?? []) {
    const keyspace = to.shardedTables.get(tableId(table))?.keyspace;
    if (keyspace !== undefined) found.add(keyspace);
  }
  if (found.size > 0) return [...found];
  return to.keyspaces.has(name) ? [name] : [];
}

/**
 * Keyspaces without a key by the map `to`, with tables that by `from` were the home shard's own, and of whose use nobody took note. So a
 * footprint by such a map may have touched them.
 */
function adopted(to: Topology, from: Topology): readonly Keyspace[] {
  if (to === from) return [];
  return [...to.keyspaces.values()].filter(
    (keyspace) => isKeyless(keyspace) && keyspace.tables.some((table) => !from.shardedTables.has(tableId(table))),
  );
}

/** Of a keyspace that is no more: whether its tables are the home shard's own again, which they only become there. */
function isReleased(keyspace: Keyspace | undefined): boolean {
  return keyspace !== undefined && isKeyless(keyspace);
}

function isAway(keyspace: Keyspace, topology: Topology): boolean {
  return keyspace.ranges.some((range) => range.shard !== topology.home);
}

/** Whether `footprint` reaches into what `hold`, of the topology `now`, covers. */
export function holdCovers(hold: Hold, footprint: Footprint, now: Topology): boolean {
  if (footprint.everything) return true;
  if (hold.referenceTables && footprint.writesReference) return true;
  for (const touch of footprint.touches) {
    if (touch.position !== null && !contains(hold, touch.position)) continue;
    if (keyspacesIn(now, touch.keyspace, footprint.topology).includes(hold.keyspace)) return true;
  }
  return adopted(now, footprint.topology).some((keyspace) => keyspace.name === hold.keyspace);
}

/** Whether what was touched at another epoch is all on `shard` at this one. */
export function stillOn(shard: ShardName, footprint: Footprint, topology: Topology): boolean {
  for (const touch of footprint.touches) {
    const names = keyspacesIn(topology, touch.keyspace, footprint.topology);
    if (
      names.length === 0 &&
      (shard !== topology.home || !isReleased(footprint.topology.keyspaces.get(touch.keyspace)))
    )
      return false;
    for (const name of names) {
      const keyspace = topology.keyspaces.get(name);
      if (!keyspace) return false;
      if (touch.position === null) {
        if (keyspace.ranges.some((r) => r.shard !== shard)) return false;
      } else if (rangeOf(keyspace, touch.position).shard !== shard) return false;
    }
  }
  if (shard === topology.home && adopted(topology, footprint.topology).some((k) => isAway(k, topology))) return false;
  if (!footprint.everything) return true;
  for (const keyspace of topology.keyspaces.values()) if (keyspace.ranges.some((r) => r.shard !== shard)) return false;
  return true;
}

/**
 * Whether something that `footprint` touches has, or had in between, another owner than at first: nothing is known of epochs that
 * were not seen, in which it may have left and come back.
 */
export function mayHaveMoved(footprint: Footprint, before: Topology, now: Topology): boolean {
  const { everything, touches } = footprint;
  const left = adopted(now, footprint.topology).some((k) => isAway(k, now));
  if (now.epoch > before.epoch + 1n) return everything || touches.length > 0 || left;
  if (left && !adopted(before, footprint.topology).some((k) => isAway(k, before))) return true;
  if (everything) for (const name of before.keyspaces.keys()) if (hasMoved(name, null, before, now)) return true;
  for (const { keyspace, position } of touches)
    for (const name of keyspacesIn(before, keyspace, footprint.topology))
      if (hasMoved(name, position, before, now)) return true;
  return false;
}

function hasMoved(name: KeyspaceName, position: Touch['position'], before: Topology, now: Topology): boolean {
  const then = before.keyspaces.get(name);
  const names = keyspacesIn(now, name, before);
  if (then !== undefined && names.length === 0 && isReleased(then)) return isAway(then, now);
  if (then === undefined || names.length === 0) return true;
  return names.some((own) => {
    const keyspace = now.keyspaces.get(own);
    if (keyspace === undefined) return true;
    if (position !== null) return rangeOf(then, position).shard !== rangeOf(keyspace, position).shard;
    return keyspace.ranges.some((range) => rangesIn(then, range).some((r) => r.shard !== range.shard));
  });
}
