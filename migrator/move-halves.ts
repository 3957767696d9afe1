import {
  baseHalfSql,
  baseTriggersPresent,
  baseTriggersSql,
  hotHalfSql,
  hotTriggerPresent,
} from '../topology/halves-sql.js';
import { quoteTable } from '../topology/quote.js';
import {
  type ColumnSplit,
  type Keyspace,
  rangesIn,
  type ShardedTable,
  type TableName,
  tableId,
} from '../topology/topology.js';
import type { Action } from './action.js';
import { guardHalfAction } from './guards.js';
import { openSites } from './halves.js';
import { type Move, shardedTableOf } from './move.js';
import type { Report } from './preflight-finding.js';
import { checkSplitTable } from './preflight-halves.js';

/**
 * What stands in the way of a move of either half of a table whose columns are split: the table never arrives where its hot half is, nor leaves it
 * alone, and both are read where they belong, not from replicas.
 */
export async function checkHalves(m: Move, report: Report): Promise<void> {
  const { topology, keyspace, spec } = m;
  for (const table of keyspace.tables) {
    const { split, halfOf } = table;
    if (split === undefined && halfOf === undefined) continue;
    if (m.row.replica !== null)
      report(
        'blocker',
        `table "${tableId(table)}" ${split === undefined ? 'has' : 'has some of its'} columns in another table, and replicas of such a table are not supported`,
        'Unite its columns first ("foreshard migrate plan unite").',
      );
    const whole = halfOf === undefined ? undefined : topology.shardedTables.get(tableId(halfOf));
    if (whole !== undefined) {
      await checkSplitTable(topology, whole, m.source, spec.from, report);
      await checkSplitTable(topology, whole, m.destination, spec.to, report);
      await checkElsewhere(m, whole, report);
    }
    const half = split === undefined ? undefined : topology.shardedTables.get(tableId(split.hot));
    const hot = half === undefined ? undefined : topology.keyspaces.get(half.keyspace);
    if (hot === undefined) continue;
    for (const range of rangesIn(hot, spec))
      if (range.shard === spec.from || range.shard === spec.to)
        report(
          'blocker',
          `columns of table "${tableId(table)}" are in keyspace "${hot.name}", whose keys of this interval are on shard "${range.shard}"`,
          `Move those to another shard than these two first, this interval then, and those again; or unite the columns before ("foreshard migrate plan unite ${tableId(table)}").`,
        );
  }
}

/** On the other shards that have rows of the interval of a table whose hot columns move. @throws ShardUnavailableError when one is away */
async function checkElsewhere({ topology, spec }: Move, whole: ShardedTable, report: Report): Promise<void> {
  const keyspace = topology.keyspaces.get(whole.keyspace) as Keyspace;
  const shards = new Set(rangesIn(keyspace, spec).map(({ shard }) => shard));
  const sites = await openSites(
    topology,
    [...shards].filter((shard) => shard !== spec.from && shard !== spec.to),
    null,
  );
  try {
    for (const [shard, session] of sites) await checkSplitTable(topology, whole, session, shard, report);
  } finally {
    for (const session of sites.values()) await session.close();
  }
}

/** What the destination needs besides the tables, before the first row comes; what is there already stays as it is. */
export function halvesActions(m: Move): Action[] {
  return m.keyspace.tables.flatMap((table): Action[] => {
    if (table.split !== undefined) return [baseAction(m, table, table.split)];
    const whole = table.halfOf === undefined ? undefined : m.topology.shardedTables.get(tableId(table.halfOf));
    return whole?.split === undefined ? [] : [hotAction(m, whole, whole.split)];
  });
}

function baseAction(m: Move, table: ShardedTable, split: ColumnSplit): Action {
  return {
    name: 'make-half',
    on: 'destination',
    text: `make what ${tableId(table)} needs for columns that are in ${tableId(split.hot)}`,
    mode: 'locking',
    cleanup: [{ kind: 'base-half', shard: m.spec.to, object: named(table) }],
    present: baseTriggersPresent(table),
    sql: [...baseHalfSql(table, split), ...baseTriggersSql(table, split)],
  };
}

function hotAction(m: Move, table: ShardedTable, split: ColumnSplit): Action {
  return {
    name: 'make-half',
    on: 'destination',
    text: `make what brings into ${tableId(table)} what is replicated to ${tableId(split.hot)}`,
    mode: 'locking',
    cleanup: [{ kind: 'hot-half', shard: m.spec.to, object: named(table) }],
    present: hotTriggerPresent(table, split),
    sql: hotHalfSql(table, split),
  };
}

/** Tables whose hot columns move. */
export function wholeTables({ keyspace, topology }: Pick<Move, 'keyspace' | 'topology'>): ShardedTable[] {
  return keyspace.tables.flatMap(({ halfOf }) => {
    const whole = halfOf === undefined ? undefined : topology.shardedTables.get(tableId(halfOf));
    return whole === undefined ? [] : [whole];
  });
}

/** Of tables whose hot columns move: their guards on this shard, if they are there. */
export async function guardHalves(m: Move, on: 'source' | 'destination'): Promise<void> {
  for (const whole of wholeTables(m)) {
    const [found] = await m[on].query<{ there: boolean }>('SELECT to_regclass($1) IS NOT NULL AS there', [
      quoteTable(whole),
    ]);
    if (found?.there === true)
      await m.exec.perform(guardHalfAction(m.names, on, shardedTableOf(m.keyspace, whole, m.spec)));
  }
}

const named = ({ schema, table }: TableName) => ({ schema, table });
