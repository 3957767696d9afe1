import { quoteLiteral } from '../topology/quote.js';
import type { Action } from './action.js';
import type { CleanupRecord } from './migration-row.js';
import type { TableInfo } from './schema-read.js';
import { behaviourSql, loudRecord, quietSql, restoreSql } from './schema-triggers.js';

/** What is done to triggers on one side. */
type Side = Action['on'];

/** Triggers and policies of a table that this migration has made. Empty: it has none. */
export function behaviourActions(table: TableInfo, shard: string): Action[] {
  const sql = behaviourSql(table);
  if (sql.length === 0) return [];
  const loud = loudRecord(table, shard);
  const { triggers, rowSecurity } = table;
  return [
    {
      name: 'create-triggers',
      on: 'destination',
      text: `create the triggers and policies of ${table.schema}.${table.table}`,
      mode: 'transaction',
      cleanup: loud === null ? [] : [loud],
      // All or none are there.
      present: `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = ${quoteLiteral(table.schema)} AND c.relname = ${quoteLiteral(table.table)} AND c.relrowsecurity = ${rowSecurity.enabled}
          AND (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) = ${rowSecurity.policies.length}
          AND (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid AND tgname IN (${['', ...triggers.map((t) => t.name)].map(quoteLiteral).join(', ')})) = ${triggers.length}) AS present`,
      sql,
    },
  ];
}

/** Has a table's triggers not fire for what is replicated, until the record is undone. Empty: they do not anyway. */
export function quietActions(table: TableInfo, on: Side, shard: string): Action[] {
  const loud = loudRecord(table, shard);
  if (loud === null) return [];
  return [
    {
      name: `quiet-triggers-${on}`,
      on,
      text: `have the triggers of ${table.schema}.${table.table} fire for ordinary sessions only`,
      mode: 'locking',
      cleanup: [loud],
      sql: quietSql(table),
    },
  ];
}

/** @param there triggers that the table has; null: all */
export function restoreAction(record: CleanupRecord, on: Side, there: readonly string[] | null): Action {
  const { schema, table } = record.object;
  return {
    name: `restore-triggers-${on}`,
    on,
    text: `have the triggers of ${schema}.${table} fire for replicated rows again`,
    mode: 'locking',
    sql: restoreSql(record, there),
  };
}
