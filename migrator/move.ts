import type { Catalog } from '../topology/catalog/catalog.js';
import { ForeshardError } from '../topology/errors.js';
import { intervalPredicate } from '../topology/interval-sql.js';
import type { Interval } from '../topology/key.js';
import type { MigrationSpec, MoveSpec } from '../topology/migration.js';
import { quoteTable } from '../topology/quote.js';
import {
  type Keyspace,
  type KeyspaceName,
  type Shard,
  type TableName,
  type Topology,
  tableId,
} from '../topology/topology.js';
import type { Executor } from './executor.js';
import { decodeSpec, encodeSpec, type MigrationRow, type StoredMove, type StoredSpec } from './migration-row.js';
import { type ObjectNames, objectNames } from './names.js';
import type { MigratorOptions } from './options.js';
import type { ShardSession } from './shard-session.js';
import type { StepLog } from './step-log.js';

/** A table whose rows move (sharded) or are copied in whole (reference). */
export interface MovingTable extends TableName {
  /** A reference table: all of it is copied. */
  readonly reference: boolean;
  /** Empty for a reference table, and for one that is whole on one shard. */
  readonly keyColumns: readonly string[];
  /** Quoted, with its schema. */
  readonly sql: string;
  /** True for the rows that move. `true` for a reference table. */
  predicate(alias?: string): string;
}

/** One migration in the hands of its driver: what every step needs. */
export interface Move {
  /** As of the last transition; steps replace it. */
  row: MigrationRow;
  readonly exec: Executor;
  readonly options: MigratorOptions;
  readonly log: StepLog;
  readonly catalog: Catalog;
  readonly topology: Topology;
  readonly keyspace: Keyspace;
  readonly spec: MoveSpec;
  readonly names: ObjectNames;
  readonly tables: readonly MovingTable[];
  readonly source: ShardSession;
  readonly destination: ShardSession;
  /** A snapshot of the destination taken between drain and flip, for the exact comparison; gone after a crash. */
  snapshot: ShardSession | null;
}

/** What the catalog says about a migration, before anything is connected. */
export interface MoveTarget {
  readonly topology: Topology;
  readonly keyspace: Keyspace;
  readonly spec: MoveSpec;
  readonly from: Shard;
  readonly to: Shard;
  readonly names: ObjectNames;
}

/** @throws ForeshardError 42704 when there is none with this name */
export function findKeyspace(topology: Topology, name: string): Keyspace {
  const keyspace = topology.keyspaces.get(name as KeyspaceName);
  if (keyspace !== undefined) return keyspace;
  throw new ForeshardError('42704', `there is no keyspace "${name}"`, { hint: 'See "foreshard keyspace list".' });
}

/** A spec in the form that the catalog keeps. @throws ForeshardError 42704 when there is no such keyspace */
export function storedIn(topology: Topology, spec: MigrationSpec): StoredSpec {
  if (spec.kind !== 'move' && spec.kind !== 'recut') return spec;
  return encodeSpec(findKeyspace(topology, spec.keyspace), spec);
}

/** Resolves the names in a spec. @throws ForeshardError 42704 for one that is unknown */
export function resolveTarget(topology: Topology, id: bigint, clusterId: string, stored: StoredMove): MoveTarget {
  const keyspace = findKeyspace(topology, stored.keyspace);
  const spec = decodeSpec(keyspace, stored);
  const shard = (name: string): Shard => {
    const found = [...topology.shards.values()].find((s) => s.name === name);
    if (found === undefined)
      throw new ForeshardError('42704', `there is no shard "${name}"`, { hint: 'See "foreshard shard list".' });
    return found;
  };
  return { topology, keyspace, spec, from: shard(spec.from), to: shard(spec.to), names: objectNames(id, clusterId) };
}

/**
 * Tables that take part, parents or not, in a fixed order: the reference tables that the destination lacks, then those of
 * the keyspace. A migration that has begun keeps the list it began with.
 */
export function movingTables(target: MoveTarget, row: MigrationRow): MovingTable[] {
  const { keyspace, spec } = target;
  const begun = row.facts.tables as readonly string[] | undefined;
  const sharded = keyspace.tables.map((t) => shardedTableOf(keyspace, t, spec));
  const reference = [...target.topology.referenceTables.values()]
    .filter((t) => (begun === undefined ? !t.shards.includes(spec.to) : begun.includes(tableId(t))))
    .map((t) => makeTable(keyspace, t, true, [], spec));
  const all = [...reference, ...sharded];
  return begun === undefined ? all : all.filter((t) => begun.includes(tableId(t)));
}

/** A table that has the key of the keyspace, and its rows of the interval, also when these do not move. */
export function shardedTableOf(
  keyspace: Keyspace,
  table: TableName & { readonly keyColumns: readonly string[] },
  interval: Interval,
): MovingTable {
  return makeTable(keyspace, table, false, table.keyColumns, interval);
}

function makeTable(
  keyspace: Keyspace,
  t: TableName,
  reference: boolean,
  keyColumns: readonly string[],
  interval: Interval,
): MovingTable {
  return {
    schema: t.schema,
    table: t.table,
    reference,
    keyColumns,
    sql: quoteTable(t),
    predicate: (alias) =>
      keyColumns.length === 0 ? 'true' : `(${intervalPredicate(keyspace, keyColumns, interval, alias)})`,
  };
}

export function isReference(table: MovingTable): boolean {
  return table.reference;
}
