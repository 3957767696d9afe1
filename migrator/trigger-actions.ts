import { quoteLiteral, quoteTable } from '../topology/quote.js';
import type { Action, Side } from './action.js';
import type { CleanupRecord } from './migration-row.js';
import type { Move } from './move.js';
import { OURS } from './names.js';
import { readWholeTable } from './schema-partitions.js';
import { readTables, type TableInfo } from './schema-read.js';
import { behaviourSql } from './schema-triggers.js';
import {
  asMeant,
  loudRecord,
  quietSql,
  recordedSql,
  recordsOf,
  relationsIn,
  restoreDetachedSql,
  restoreSql,
} from './trigger-modes.js';

/** Triggers and policies of a table that this migration has made, and of its partitions. Empty: it has none. */
export function behaviourActions(table: TableInfo, shard: string): Action[] {
  const sql = behaviourSql(table);
  if (sql.length === 0) return [];
  const loud = loudRecord(table, shard);
  const tree = `(SELECT to_regclass(${quoteLiteral(quoteTable(table))}) UNION SELECT relid FROM pg_partition_tree(to_regclass(${quoteLiteral(quoteTable(table))})))`;
  return [
    {
      name: 'create-triggers',
      on: 'destination',
      text: `create the triggers and policies of ${table.schema}.${table.table}`,
      mode: 'transaction',
      cleanup: loud === null ? [] : [loud],
      // All or none are there.
      present: `SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid IN ${tree} AND NOT tgisinternal AND tgname !~ '${OURS}')
        OR EXISTS (SELECT FROM pg_policy WHERE polrelid IN ${tree})
        OR EXISTS (SELECT FROM pg_class WHERE oid IN ${tree} AND (relrowsecurity OR relforcerowsecurity)) AS present`,
      sql,
    },
  ];
}

/**
 * Has a table's triggers, and its partitions', not fire for what is replicated, until the record is undone. Empty: they do not anyway.
 * @param meant the same table, as it is meant to be
 */
export function quietActions(table: TableInfo, meant: TableInfo, on: Side, shard: string): Action[] {
  const sql = quietSql(table);
  const loud = loudRecord(meant, shard);
  if (sql.length === 0 || loud === null) return [];
  return [
    {
      name: `quiet-triggers-${on}`,
      on,
      text: `have the triggers of ${table.schema}.${table.table} fire for ordinary sessions only`,
      mode: 'locking',
      cleanup: [loud],
      sql,
    },
  ];
}

/** As a dry run shows it: nothing has been quieted. */
export function restoreAction(record: CleanupRecord, on: Side, sql: readonly string[] = recordedSql(record)): Action {
  const { schema, table } = record.object;
  return {
    name: `restore-triggers-${on}`,
    on,
    text: `have the triggers of ${schema}.${table} fire for replicated rows again`,
    mode: 'locking',
    sql,
  };
}

/** Has triggers fire again as they are meant to. The last record of a table says how; those before it are ticked off with it. */
export async function restoreTriggers(m: Move, record: CleanupRecord, on: Side): Promise<void> {
  const records = recordsOf(
    { schema: record.object.schema as string, table: record.object.table as string },
    await m.exec.openCleanup('triggers'),
    record.shard,
  );
  if (records.at(-1)?.id !== record.id) return;
  const { reader } = on === 'source' ? m.source : m.destination;
  const [root, ...partitions] = relationsIn(record).map(quoteTable);
  for (;;) {
    const tree = await readWholeTable(reader, root as string);
    const there = new Set((tree?.partitions ?? []).map((p) => p.table.oid));
    const detached = (await readTables(reader, partitions)).filter((t) => !there.has(t.oid));
    const sql = [
      ...(tree === null ? [] : restoreSql(tree, asMeant(tree, [record], record.shard))),
      ...detached.flatMap((t) => restoreDetachedSql(t, record)),
    ];
    // A partition that has come meanwhile, before its parent was restored, is found by looking again.
    if (sql.length === 0) break;
    await m.exec.perform(restoreAction(record, on, sql));
  }
  for (const older of records) if (older.id !== record.id) await m.exec.markCleanupDone(older);
}
