import { loadSql } from '../sql/load.js';
import { HALVES_TOGETHER } from '../topology/halves-sql.js';
import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import type { TableName } from '../topology/topology.js';
import type { Action } from './action.js';
import type { MovingTable } from './move.js';
import { GATE_CLOSED, GATE_OPEN, GUARD_LOCK_CLASS, guardTriggers, type ObjectNames, SHARD_SCHEMA } from './names.js';
import type { TableInfo } from './schema-read.js';
import { relationsOf } from './schema-triggers.js';

type Side = 'source' | 'destination';

/** The schema of our own objects; it may be there from another migration. */
export const CREATE_SHARD_SCHEMA = `CREATE SCHEMA IF NOT EXISTS ${quoteIdent(SHARD_SCHEMA)}`;

/** Sets a gate. Not undone by a rollback, seen by every snapshot at once, kept by a crash once a commit has followed. */
export function setGateSql(names: ObjectNames, value: typeof GATE_OPEN | typeof GATE_CLOSED): string {
  return `SELECT setval(${quoteLiteral(quoteTable(names.gate))}::regclass, ${value})`;
}

/** Sets a gate again, if it is (still) there: after a crash, what once was set may be lost, or be gone already. */
export function assertGateSql(names: ObjectNames, value: typeof GATE_OPEN | typeof GATE_CLOSED): string {
  return `SELECT setval(oid::regclass, ${value}) FROM pg_class WHERE oid = to_regclass(${quoteLiteral(quoteTable(names.gate))})`;
}

/**
 * Has writers wait for a closed gate, with the guard's lock, which the session takes: a statement that comes before the gate opens need not be refused
 * and tried again. What keeps them out is the gate alone; a session that says nothing for `silenceMs` is ended by its server, and its lock goes with it.
 */
export function waitAtGateSql({ operation }: ObjectNames, silenceMs: number): string {
  return `SET idle_session_timeout = ${silenceMs}; SELECT pg_try_advisory_lock(${GUARD_LOCK_CLASS}, ${operation})`;
}

/** Nobody waits any more. A lock that was not to be had is not missed. */
export function goThroughGateSql({ operation }: ObjectNames): string {
  return `SELECT pg_advisory_unlock(${GUARD_LOCK_CLASS}, ${operation}); RESET idle_session_timeout`;
}

/**
 * Keeps all writers of the interval waiting, until `goThroughGateSql`, when those in flight have ended within `lockMs`; else 55P03, and nothing has changed. The gate stays
 * open. A session that says nothing for `silenceMs` is ended by its server, and they go on.
 */
export function keepWritersWaitingSql({ operation }: ObjectNames, lockMs: number, silenceMs: number): string {
  return `SET lock_timeout = ${lockMs}; SET idle_session_timeout = ${silenceMs}; SELECT pg_advisory_lock(${GUARD_LOCK_CLASS}, ${operation}); SET lock_timeout = 0`;
}

/** One row with `gate`: GATE_OPEN or GATE_CLOSED. */
export function readGateSql(names: ObjectNames): string {
  return `SELECT last_value::int AS gate FROM ${quoteTable(names.gate)}`;
}

/** Gate and guard function on one side; the source's gate is open, the destination's closed. */
export function gateAction(names: ObjectNames, on: Side, shard: string): Action {
  const gate = quoteTable(names.gate);
  const fill: Record<string, string> = {
    ':function': quoteTable(names.guardFunction),
    ':gate': gate,
    ':class': String(GUARD_LOCK_CLASS),
    ':operation': String(names.operation),
  };
  return {
    name: `guards-${on}`,
    on,
    text: `install the gate (${on === 'source' ? 'open' : 'closed'}) and the guard`,
    mode: 'transaction',
    cleanup: [{ kind: 'guards', shard, object: { trigger: names.trigger } }],
    sql: [
      CREATE_SHARD_SCHEMA,
      `CREATE SEQUENCE IF NOT EXISTS ${gate} MINVALUE ${GATE_OPEN} MAXVALUE ${GATE_CLOSED}`,
      setGateSql(names, on === 'source' ? GATE_OPEN : GATE_CLOSED),
      loadSql('shard/guard.sql').replace(/:(function|gate|class|operation)\b/g, (word) => fill[word] as string),
      loadSql('shard/truncate.sql').replaceAll(':function', quoteTable(truncateFunction(names))),
    ],
  };
}

function truncateFunction(names: ObjectNames) {
  return { schema: names.guardFunction.schema, table: `${names.guardFunction.table}_truncate` };
}

/**
 * The guard triggers of one table. In the default mode (ORIGIN): they stop clients and let the apply worker pass. They lock
 * the table for a moment.
 */
export function guardTableAction(names: ObjectNames, on: Side, table: MovingTable, info: TableInfo): Action {
  const { insert, update, delete: remove } = guardTriggers(names);
  const row = (name: string, event: string, when: string) => rowGuardSql(names, table, name, event, when);
  const [before, after] = [table.predicate('OLD'), table.predicate('NEW')];
  const sql = [
    row(insert, 'INSERT', after),
    row(update, 'UPDATE', `${before} OR ${after}`),
    row(remove, 'DELETE', before),
    // Those on rows are cloned to partitions, also to such as come later.
    ...[table, ...(info.partitions ?? []).map((p) => p.table)].map((t) => truncateGuardSql(names, t)),
    ...(relationsOf(info).some((r) => r.triggers.some((t) => t.shapesRows))
      ? storedGuardsSql(names, table, table)
      : []),
  ];
  const arrival = on === 'source' ? arrivalSql(names, table, info) : [];
  return {
    name: `guard-table-${on}`,
    on,
    text: `guard ${table.schema}.${table.table}`,
    mode: 'locking',
    present: hasTrigger(table, guardTriggers(names).truncate),
    sql: [...sql, ...arrival],
  };
}

/**
 * The guard triggers of a table whose hot columns are what moves, on a shard that has it: for those who write its rows as if these were there. What they
 * read of hot columns may be of the past, though they change none, and so write nothing to the table that moves. Whoever knows that they are elsewhere
 * says so to the table's own triggers, and passes.
 */
export function guardHalfAction(names: ObjectNames, on: Side, table: MovingTable): Action {
  const { insert, update, delete: remove } = guardTriggers(names);
  const row = (name: string, event: string, when: string) =>
    rowGuardSql(names, table, name, event, `(${when}) AND ${HALVES_TOGETHER}`);
  const [before, after] = [table.predicate('OLD'), table.predicate('NEW')];
  return {
    name: `guard-table-${on}`,
    on,
    text: `guard ${table.schema}.${table.table}, whose hot columns move`,
    mode: 'locking',
    present: hasTrigger(table, update),
    sql: [row(insert, 'INSERT', after), row(update, 'UPDATE', `${before} OR ${after}`), row(remove, 'DELETE', before)],
  };
}

function rowGuardSql(names: ObjectNames, on: TableName, name: string, event: string, when: string): string {
  return `CREATE TRIGGER ${quoteIdent(name)} BEFORE ${event} ON ${quoteTable(on)} FOR EACH ROW WHEN (${when}) EXECUTE FUNCTION ${quoteTable(names.guardFunction)}()`;
}

/** What triggers of the user's have brought into the interval. @param on the table, or one of its partitions */
export function storedGuardsSql(names: ObjectNames, table: MovingTable, on: TableName): string[] {
  if (table.keyColumns.length === 0) return [];
  const { storedInsert, storedUpdate } = guardTriggers(names);
  const [before, after] = [table.predicate('OLD'), table.predicate('NEW')];
  return [
    rowGuardSql(names, on, storedInsert, 'INSERT', after),
    rowGuardSql(names, on, storedUpdate, 'UPDATE', `NOT ${before} AND ${after}`),
  ];
}

function hasTrigger(table: MovingTable, name: string): string {
  return `SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(${quoteLiteral(table.sql)})
            AND tgname = ${quoteLiteral(name)}) AS present`;
}

/** A table's own guard of TRUNCATE, which partitions do not have from their parent. */
export function truncateGuardSql(names: ObjectNames, table: TableName): string {
  return `CREATE TRIGGER ${quoteIdent(guardTriggers(names).truncate)} BEFORE TRUNCATE ON ${quoteTable(table)} FOR EACH STATEMENT EXECUTE FUNCTION ${quoteTable(truncateFunction(names))}()`;
}

/** Of a table on the side that publishes it on the way back; null: it needs none. See sql/shard/arrival.sql. */
export function arrivalAction(names: ObjectNames, table: MovingTable, info: TableInfo): Action | null {
  const sql = arrivalSql(names, table, info);
  if (sql.length === 0) return null;
  return {
    name: 'guard-arrival',
    on: 'source',
    text: `have updates that bring rows of ${table.schema}.${table.table} into the interval carry all values`,
    mode: 'locking',
    present: hasTrigger(table, guardTriggers(names).arrival),
    sql,
  };
}

/** See sql/shard/arrival.sql: rows that an update brings into the interval must carry all their values. */
function arrivalSql(names: ObjectNames, table: MovingTable, info: TableInfo): string[] {
  const toastable = info.columns.filter((c) => c.toastable && c.generated === '');
  if (table.keyColumns.length === 0 || toastable.length === 0) return [];
  const fn = quoteTable({ schema: names.guardFunction.schema, table: `${names.guardFunction.table}_${info.oid}` });
  // The concatenation makes a new value; a cast of text to text would only pass the old one on.
  const assignments = toastable
    .map((c) => `  NEW.${quoteIdent(c.name)} := (NEW.${quoteIdent(c.name)}::text || '')::${c.type};`)
    .join('\n');
  return [
    loadSql('shard/arrival.sql').replace(/:(function|assignments)\b/g, (word) =>
      word === ':function' ? fn : assignments,
    ),
    `CREATE TRIGGER ${quoteIdent(guardTriggers(names).arrival)} BEFORE UPDATE ON ${table.sql} FOR EACH ROW
       WHEN (NOT ${table.predicate('OLD')} AND ${table.predicate('NEW')}) EXECUTE FUNCTION ${fn}()`,
  ];
}
