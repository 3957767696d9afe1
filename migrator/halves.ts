import type { Catalog } from '../topology/catalog/catalog.js';
import {
  baseHalfSql,
  baseTriggersPresent,
  baseTriggersSql,
  dropBaseHalfSql,
  dropHotHalfSql,
  filledSql,
  hotHalfSql,
} from '../topology/halves-sql.js';
import type { HalveSpec, UniteSpec } from '../topology/migration.js';
import { quoteLiteral, quoteTable } from '../topology/quote.js';
import { type ColumnSplit, shardsOf, type TableName, type Topology, tableId } from '../topology/topology.js';
import type { Action } from './action.js';
import type { Executor } from './executor.js';
import { hotTableInfo } from './hot-table.js';
import type { MigrationRow } from './migration-row.js';
import { findKeyspace } from './move.js';
import type { MigratorOptions } from './options.js';
import { DROP_SHARD_SCHEMA } from './replication.js';
import type { TableInfo } from './schema-read.js';
import { createTableSql } from './schema-sql.js';
import { ShardSession } from './shard-session.js';
import type { StepLog } from './step-log.js';

/** A migration that splits the columns of a table, or takes that back, in the hands of its driver. */
export interface HalvesWork<Spec = HalveSpec | UniteSpec> {
  /** As of the last transition; steps replace it. */
  row: MigrationRow;
  readonly spec: Spec;
  readonly exec: Executor;
  readonly options: MigratorOptions;
  readonly log: StepLog;
  readonly catalog: Catalog;
  readonly topology: Topology;
  /** The shards at which it is at work, by name. */
  readonly sites: ReadonlyMap<string, ShardSession>;
}

/** Shards at which such a migration is at work: those that it began with, if it has. */
export function sitesOf(topology: Topology, spec: HalveSpec | UniteSpec, row: MigrationRow): string[] {
  const begun = row.facts.sites as readonly string[] | undefined;
  if (begun !== undefined) return [...begun];
  // What is taken back may be on shards that own nothing of either half any more.
  if (spec.kind === 'unite') return [...topology.shards.keys()];
  // The home shard's tables are what proxies read the shape from.
  return [...new Set([topology.home, ...shardsOf(findKeyspace(topology, spec.keyspace))])];
}

export function splitOf({ hot, columns, primaryKey }: HalveSpec): ColumnSplit {
  return { hot, columns, primaryKey };
}

/** What stands for all objects of a split on one shard, in its clean-up record. */
const recordOf = (shard: string, table: TableName, hot: TableName) => ({
  kind: 'halves' as const,
  shard,
  object: { schema: table.schema, table: table.table, hotSchema: hot.schema, hotTable: hot.table },
});

/** Hot table, outbox and functions on one shard; they do nothing yet. */
export function objectsAction(shard: string, table: TableInfo, split: ColumnSplit): Action {
  return {
    name: 'make-halves',
    on: { shard },
    text: `create table ${tableId(split.hot)} for columns of ${tableId(table)}`,
    mode: 'transaction',
    cleanup: [recordOf(shard, table, split.hot)],
    present: `SELECT to_regclass(${quoteLiteral(quoteTable(split.hot))}) IS NOT NULL AS present`,
    sql: [
      ...createTableSql(hotTableInfo(table, split)),
      ...baseHalfSql(table, split, true),
      ...hotHalfSql(table, split),
    ],
  };
}

/** From here on the hot table is kept like the table. Whoever writes the table at the moment is waited for. */
export function triggersAction(shard: string, table: TableName, split: ColumnSplit): Action {
  return {
    name: 'follow-halves',
    on: { shard },
    text: `keep ${tableId(split.hot)} like ${tableId(table)}`,
    mode: 'locking',
    present: baseTriggersPresent(table),
    sql: baseTriggersSql(table, split),
  };
}

/** The hot table has all rows: none that it has not is written here any more. */
export function filledAction(shard: string, table: TableName, split: ColumnSplit): Action {
  return {
    name: 'follow-halves',
    on: { shard },
    text: `refuse writes of rows of ${tableId(table)} that ${tableId(split.hot)} does not have`,
    mode: 'transaction',
    sql: filledSql(table, split),
  };
}

/** Takes all objects of a split away from a shard, those that are there. The outbox is empty outside of transactions. */
export function removalAction(shard: string, table: TableName, hot: TableName): Action {
  return {
    name: 'undo-halves',
    on: { shard },
    text: `drop ${tableId(hot)} and what keeps it like ${tableId(table)}`,
    mode: 'locking',
    sql: [
      ...dropBaseHalfSql(table),
      ...dropHotHalfSql(table),
      `DROP TABLE IF EXISTS ${quoteTable(hot)}`,
      DROP_SHARD_SCHEMA,
    ],
  };
}

/**
 * Connects to shards; with an operation, it ends the sessions of an earlier driver.
 * @throws ShardUnavailableError when one is away
 */
export async function openSites(
  topology: Topology,
  names: readonly string[],
  operation: number | null,
): Promise<Map<string, ShardSession>> {
  const sites = new Map<string, ShardSession>();
  try {
    for (const shard of topology.shards.values())
      if (names.includes(shard.name)) sites.set(shard.name, await ShardSession.open(shard, operation));
    return sites;
  } catch (error) {
    for (const session of sites.values()) await session.close();
    throw error;
  }
}
