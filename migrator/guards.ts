import { createHash } from 'node:crypto';
import { loadSql } from '../sql/load.js';
import { HALVES_TOGETHER } from '../topology/halves-sql.js';
import { intervalPredicate } from '../topology/interval-sql.js';
import type { Interval } from '../topology/key.js';
import type { KeyScheme } from '../topology/key-codec.js';
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

/** Of what rows the guards of a move are. */
export interface Guarded {
  readonly keyspace: KeyScheme;
  readonly interval: Interval;
  /** Key columns of all tables that get guards; none: all rows of a table. */
  readonly keys: readonly (readonly string[])[];
}

/** Gate and guard functions on one side; the source's gate is open, the destination's closed. */
export function gateAction(names: ObjectNames, guarded: Guarded, on: Side, shard: string): Action {
  return {
    name: `guards-${on}`,
    on,
    text: `install the gate (${on === 'source' ? 'open' : 'closed'}) and the guard`,
    mode: 'transaction',
    cleanup: [{ kind: 'guards', shard, object: { trigger: names.trigger } }],
    sql: [
      CREATE_SHARD_SCHEMA,
      `CREATE SEQUENCE IF NOT EXISTS ${quoteTable(names.gate)} MINVALUE ${GATE_OPEN} MAXVALUE ${GATE_CLOSED}`,
      setGateSql(names, on === 'source' ? GATE_OPEN : GATE_CLOSED),
      ...guardFunctionsSql(names, guarded),
      loadSql('shard/truncate.sql').replaceAll(':function', quoteTable(ourFunction(names, 'truncate'))),
    ],
  };
}

/** The guard functions: of which rows they refuse to have written what, and what they return else. */
const GUARDS = {
  INSERT: { moves: (has: HasRow) => has('NEW'), row: 'NEW' },
  UPDATE: { moves: (has: HasRow) => `${has('OLD')} OR ${has('NEW')}`, row: 'NEW' },
  DELETE: { moves: (has: HasRow) => has('OLD'), row: 'OLD' },
  /** By an update, from outside of the interval. */
  ARRIVAL: { moves: (has: HasRow) => `NOT ${has('OLD')} AND ${has('NEW')}`, row: 'NEW' },
};
type HasRow = (row: 'OLD' | 'NEW') => string;

/**
 * Which rows move a guard function asks itself: PostgreSQL reads the WHEN clause of a trigger anew for each statement, which takes longer than all of the
 * guard. It asks a function whose names have been looked up when it was made, and which PostgreSQL writes out where it is called: no names of its writer's
 * are met, and nothing is called.
 */
function guardFunctionsSql(names: ObjectNames, { keyspace, interval, keys }: Guarded): string[] {
  const lists = new Map(keys.map((columns) => [labelOf(columns), columns]));
  const has = quoteTable(ourFunction(names, 'has'));
  const parameters = keyspace.keyTypes.map((_, i) => `k${i}`);
  const fill = {
    ':gate': `${quoteLiteral(quoteTable(names.gate))}::pg_catalog.regclass`,
    ':class': String(GUARD_LOCK_CLASS),
    ':operation': String(names.operation),
  };
  const sql = [
    `CREATE OR REPLACE FUNCTION ${has}(${keyspace.keyTypes.map((type, i) => `${parameters[i]} ${type}`).join(', ')}) RETURNS boolean
       LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (${intervalPredicate(keyspace, parameters, interval)})`,
  ];
  const text = loadSql('shard/guard.sql');
  for (const columns of lists.values()) {
    const hasRow: HasRow = (which) =>
      columns.length === 0 ? 'true' : `${has}(${columns.map((c) => `${which}.${quoteIdent(c)}`).join(', ')})`;
    for (const [kind, { moves, row }] of Object.entries(GUARDS)) {
      const own: Record<string, string> = {
        ...fill,
        ':function': guardFunction(names, columns, kind),
        ':moves': moves(hasRow),
        ':row': row,
      };
      sql.push(text.replace(/:(function|gate|class|operation|moves|row)\b/g, (word) => own[word] as string));
    }
  }
  return sql;
}

/** One for all tables with key columns of these names. */
function guardFunction(names: ObjectNames, columns: readonly string[], kind: string): string {
  return quoteTable(ourFunction(names, `${kind.toLowerCase()}_${labelOf(columns)}`));
}

function labelOf(columns: readonly string[]): string {
  return createHash('sha256').update(JSON.stringify(columns)).digest('hex').slice(0, 12);
}

function ourFunction({ guardFunction: { schema, table } }: ObjectNames, part: string): TableName {
  return { schema, table: `${table}_${part}` };
}

/**
 * The guard triggers of one table. In the default mode (ORIGIN): they stop clients and let the apply worker pass. They lock
 * the table for a moment.
 */
export function guardTableAction(names: ObjectNames, on: Side, table: MovingTable, info: TableInfo): Action {
  const { insert, update, delete: remove } = guardTriggers(names);
  const sql = [
    rowGuardSql(names, table, table, insert, 'INSERT'),
    rowGuardSql(names, table, table, update, 'UPDATE'),
    rowGuardSql(names, table, table, remove, 'DELETE'),
    // Those on rows are cloned to partitions, also to such as come later.
    ...[table, ...(info.partitions ?? []).map((p) => p.table)].map((t) => truncateGuardSql(names, t)),
    ...(isShaped(info) ? storedGuardsSql(names, table, table) : []),
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
  const row = (name: string, event: keyof typeof GUARDS) =>
    rowGuardSql(names, table, table, name, event, HALVES_TOGETHER);
  return {
    name: `guard-table-${on}`,
    on,
    text: `guard ${table.schema}.${table.table}, whose hot columns move`,
    mode: 'locking',
    present: hasTrigger(table, update),
    sql: [row(insert, 'INSERT'), row(update, 'UPDATE'), row(remove, 'DELETE')],
  };
}

/** @param on the table, or one of its partitions @param when else it lets all pass */
function rowGuardSql(
  names: ObjectNames,
  { keyColumns }: MovingTable,
  on: TableName,
  name: string,
  what: keyof typeof GUARDS,
  when?: string,
): string {
  const event = what === 'ARRIVAL' ? 'UPDATE' : what;
  return `CREATE TRIGGER ${quoteIdent(name)} BEFORE ${event} ON ${quoteTable(on)} FOR EACH ROW ${when === undefined ? '' : `WHEN (${when}) `}EXECUTE FUNCTION ${guardFunction(names, keyColumns, what)}()`;
}

/** What triggers of the user's have brought into the interval. @param on the table, or one of its partitions */
export function storedGuardsSql(names: ObjectNames, table: MovingTable, on: TableName): string[] {
  if (table.keyColumns.length === 0) return [];
  const { storedInsert, storedUpdate } = guardTriggers(names);
  return [
    rowGuardSql(names, table, on, storedInsert, 'INSERT'),
    rowGuardSql(names, table, on, storedUpdate, 'ARRIVAL'),
  ];
}

function hasTrigger(table: MovingTable, name: string): string {
  return `SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(${quoteLiteral(table.sql)})
            AND tgname = ${quoteLiteral(name)}) AS present`;
}

/** A table's own guard of TRUNCATE, which partitions do not have from their parent. */
export function truncateGuardSql(names: ObjectNames, table: TableName): string {
  return `CREATE TRIGGER ${quoteIdent(guardTriggers(names).truncate)} BEFORE TRUNCATE ON ${quoteTable(table)} FOR EACH STATEMENT EXECUTE FUNCTION ${quoteTable(ourFunction(names, 'truncate'))}()`;
}

/** Whether triggers of the user's may change rows before they are stored. */
function isShaped(info: TableInfo): boolean {
  return relationsOf(info).some((r) => r.triggers.some((t) => t.shapesRows));
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
  const fn = quoteTable(ourFunction(names, String(info.oid)));
  // Else only who sets a column of the key changes it: for all others PostgreSQL need not look at the rows.
  const of = isShaped(info) ? '' : ` OF ${table.keyColumns.map(quoteIdent).join(', ')}`;
  // The concatenation makes a new value; a cast of text to text would only pass the old one on.
  const assignments = toastable
    .map((c) => `  NEW.${quoteIdent(c.name)} := (NEW.${quoteIdent(c.name)}::text || '')::${c.type};`)
    .join('\n');
  return [
    loadSql('shard/arrival.sql').replace(/:(function|assignments)\b/g, (word) =>
      word === ':function' ? fn : assignments,
    ),
    `CREATE TRIGGER ${quoteIdent(guardTriggers(names).arrival)} BEFORE UPDATE${of} ON ${table.sql} FOR EACH ROW
       WHEN (NOT ${table.predicate('OLD')} AND ${table.predicate('NEW')}) EXECUTE FUNCTION ${fn}()`,
  ];
}
