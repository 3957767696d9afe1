import type { TableName } from '../topology/topology.js';

/** Schema on every shard that holds what Foreshard installs there. */
export const SHARD_SCHEMA = 'foreshard_shard';

/** First half of the advisory lock that writers of a moving interval share; the second half is the migration's id. ("fshg") */
export const GUARD_LOCK_CLASS = 0x66736867;
/** First half of the session lock that makes one process at a time the driver of a migration on a shard. ("fshd") */
export const DRIVER_LOCK_CLASS = 0x66736864;

/** `last_value` of a gate. */
export const GATE_OPEN = 1;
export const GATE_CLOSED = 2;

/** Names of the objects of one migration; the same on both shards. */
export interface ObjectNames {
  /** Publication, slot and subscription share it. Slot names allow only a–z, 0–9 and _. */
  readonly replication: string;
  readonly gate: TableName;
  readonly marker: TableName;
  /** Sequence that holds the limit of the copy. */
  readonly pace: TableName;
  readonly guardFunction: TableName;
  /** What the guard triggers' names have in common; see `guardTriggers`. */
  readonly trigger: string;
  /** Second half of the advisory lock. */
  readonly operation: number;
}

/** Names of triggers that are ours, in SQL's regular expressions. */
export const OURS = '^[!~]?foreshard_(guard|halves)_';

/**
 * PostgreSQL fires the triggers of an event in the order of their names, byte by byte. Our first ones refuse a statement before any trigger of a user's has
 * run for it; our last ones see the row as it will be stored, whatever triggers of users' have made of it.
 */
export function guardTriggers({ trigger }: Pick<ObjectNames, 'trigger'>) {
  const first = (part: string) => `!${trigger}_${part}`;
  const last = (part: string) => `~${trigger}_${part}`;
  return {
    insert: first('i'),
    update: first('u'),
    delete: first('d'),
    truncate: first('t'),
    storedInsert: last('i'),
    storedUpdate: last('u'),
    arrival: last('a'),
    pace: last('p'),
  };
}

/** The same for the way back, after the flip. */
export function backNames(names: ObjectNames): ObjectNames {
  return { ...names, replication: `${names.replication}_back` };
}

/** What of a cluster's id is in the names of its objects: it keeps two Foreshards on one server apart. */
export function clusterPart(clusterId: string): string {
  return clusterId.replaceAll('-', '').slice(0, 8);
}

/** The names of migration `id`. */
export function objectNames(id: bigint, clusterId: string): ObjectNames {
  const suffix = `${clusterPart(clusterId)}_${id}`;
  return {
    replication: `foreshard_${suffix}`,
    gate: { schema: SHARD_SCHEMA, table: `gate_${suffix}` },
    marker: { schema: SHARD_SCHEMA, table: `marker_${suffix}` },
    pace: { schema: SHARD_SCHEMA, table: `pace_${suffix}` },
    guardFunction: { schema: SHARD_SCHEMA, table: `guard_${suffix}` },
    trigger: `foreshard_guard_${suffix}`,
    operation: Number(BigInt.asIntN(32, id)),
  };
}
