import { createHash } from 'node:crypto';
import { quoteIdent, quoteLiteral, quoteTable } from './quote.js';
import type { ColumnSplit, TableName } from './topology.js';

/**
 * What a shard has for a table whose columns are split, as SQL. Where the table itself is: triggers that do to its hot table what is done to it, or, when
 * the hot half is elsewhere, write down in the outbox what is to be done there. Where the hot table is: a trigger that brings what replication has
 * written to it into the table, if that is there.
 */

/**
 * The setting by which whoever writes the table says what its triggers are to do: see `sayHalvesSql`. Not set: the same to the hot table beside it. As
 * anybody can set it for a session or a role, it counts in the one transaction that it names.
 */
export const HALVES_SETTING = 'foreshard.halves';
/** The hot half is elsewhere: the outbox gets a row for every row that is inserted, updated, deleted. */
export const HALVES_LOG = 'log';
/** The values are those of the hot half: nothing is to be done. */
export const HALVES_BRING = 'bring';

const SCHEMA = 'foreshard_shard';

/** What the setting is in the transaction that asks, when it counts. */
const inThis = (mode: typeof HALVES_LOG | typeof HALVES_BRING) =>
  `pg_catalog.concat('${mode}:', pg_catalog.pg_current_xact_id())`;

const MODE = `COALESCE(pg_catalog.current_setting('${HALVES_SETTING}', true), '')`;
/** In a trigger's WHEN: who writes the table takes both halves to be together. Whoever knows better has said so in this transaction. */
export const HALVES_TOGETHER = `${MODE} NOT IN (${inThis(HALVES_LOG)}, ${inThis(HALVES_BRING)})`;

/** Says, in a transaction and until its end, what the triggers are to do. */
export function sayHalvesSql(mode: typeof HALVES_LOG | typeof HALVES_BRING): string {
  return `SELECT pg_catalog.set_config('${HALVES_SETTING}', ${inThis(mode)}, true)`;
}

/** Names of the objects of one split; the same on all shards. */
export interface HalvesNames {
  readonly outbox: TableName;
  /** Does the same to the hot table. */
  readonly together: TableName;
  /** Writes to the outbox. */
  readonly log: TableName;
  /** Brings what has been replicated to the hot table into the table. */
  readonly arrive: TableName;
  /** What its triggers' names have in common. They come behind all others in the order of names, in which PostgreSQL fires them. */
  readonly trigger: string;
}

/** @param table the one that is split */
export function halvesNames(table: TableName): HalvesNames {
  // Names can be as long as PostgreSQL's own allow; ours must not be cut.
  const part = createHash('sha256')
    .update(JSON.stringify([table.schema, table.table]))
    .digest('hex')
    .slice(0, 16);
  const name = (kind: string) => ({ schema: SCHEMA, table: `${kind}_${part}` });
  return {
    outbox: name('outbox'),
    together: name('halves'),
    log: name('halves_log'),
    arrive: name('halves_arrive'),
    trigger: `~foreshard_halves_${part}`,
  };
}

/**
 * Takes what this transaction has written to the outbox, in the order in which it happened, and leaves nothing. Columns, all text but the first, in this
 * order: `op` ('I', 'U', 'D'); `old_1` … the primary key before, in the order of `split.primaryKey` (null of an insert); `new_1` … the same after
 * (null of a delete); `hot_1` … values of `split.columns` after (null of a delete, and of an update but for `assigned`: what nobody has given may be in
 * characters that the client's encoding has not). The values are in a form that means the same whatever a session's settings are.
 * @param assigned of `split.columns`, those that an update gives values
 */
export function outboxTakeSql(table: TableName, split: ColumnSplit, assigned: readonly string[]): string {
  const keys = outboxColumns({ ...split, columns: [] });
  const hot = split.columns.map((column, i) => {
    const name = `hot_${i + 1}`;
    return assigned.includes(column) ? name : `CASE WHEN op = 'I' THEN ${name} END AS ${name}`;
  });
  const columns = [...keys, ...hot].join(', ');
  return `WITH foreshard_taken AS (DELETE FROM ${quoteTable(halvesNames(table).outbox)} WHERE xid = pg_catalog.pg_current_xact_id() RETURNING *) SELECT op, ${columns} FROM foreshard_taken ORDER BY n`;
}

function outboxColumns({ primaryKey, columns }: ColumnSplit): string[] {
  return [
    ...primaryKey.map((_, i) => `old_${i + 1}`),
    ...primaryKey.map((_, i) => `new_${i + 1}`),
    ...columns.map((_, i) => `hot_${i + 1}`),
  ];
}

const list = (names: readonly string[], prefix = '') => names.map((n) => `${prefix}${quoteIdent(n)}`).join(', ');
/** Each a column of its own row: there may be but one. */
const row = (names: readonly string[], prefix: string) => `ROW(${list(names, prefix)})`;
const pairs = (names: readonly string[], left: string, right: string, between: string) =>
  names.map((n) => `${left}${quoteIdent(n)} = ${right}${quoteIdent(n)}`).join(between);
/** By every bit: 1.0 and 1.00 are equal, and not the same; and not every type has an "=". */
const differ = (names: readonly string[], left: string, right: string) =>
  `pg_catalog.record_image_ne(${row(names, left)}, ${row(names, right)})`;

/** Else anybody could write the hot table, by a trigger of a table of his own. It is asked for when a trigger is made, not when it fires. */
const noOthers = (fn: TableName) => `REVOKE ALL ON FUNCTION ${quoteTable(fn)}() FROM PUBLIC`;

const definer = (settings = '') =>
  `RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp${settings}`;

/**
 * Schema, outbox and functions of the table's own side. It locks nothing that others use, and can be said again.
 * @param filling the hot table has not all rows yet: those that are written come into it
 */
export function baseHalfSql(table: TableName, split: ColumnSplit, filling = false): string[] {
  const { outbox, together, log } = halvesNames(table);
  const name = quoteTable(outbox);
  const index = (what: string) => quoteIdent(`${outbox.table}_${what}`);
  return [
    `CREATE SCHEMA IF NOT EXISTS ${quoteIdent(SCHEMA)}`,
    // The outbox is read in the client's own transaction, as the client's role; nobody's rows but its own transaction's are ever there to be seen.
    `GRANT USAGE ON SCHEMA ${quoteIdent(SCHEMA)} TO PUBLIC`,
    // Every row is deleted in the transaction that has written it: vacuum has to come often, or the table only grows.
    `CREATE TABLE IF NOT EXISTS ${name} (
  n bigint GENERATED ALWAYS AS IDENTITY, xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), op "char" NOT NULL, pending bytea,
  ${outboxColumns(split)
    .map((c) => `${c} text`)
    .join(', ')}
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0)`,
    `CREATE INDEX IF NOT EXISTS ${index('xid')} ON ${name} (xid)`,
    `CREATE UNIQUE INDEX IF NOT EXISTS ${index('pending')} ON ${name} (pending)`,
    `GRANT SELECT, DELETE ON ${name} TO PUBLIC`,
    togetherFunction(table, split, filling),
    noOthers(together),
    logFunction(table, split),
    noOthers(log),
  ];
}

/** The hot table is filled: from here on a row that is not in it is on another shard. */
export function filledSql(table: TableName, split: ColumnSplit): string[] {
  return [togetherFunction(table, split, false)];
}

function togetherFunction(table: TableName, { hot, primaryKey, columns }: ColumnSplit, filling: boolean): string {
  const name = quoteTable(hot);
  const all = [...primaryKey, ...columns];
  const insert = (prefix: string) => `INSERT INTO ${name} (${list(all)}) VALUES (${list(all, prefix)})`;
  const old = pairs(primaryKey, '', 'OLD.', ' AND ');
  const unseen = `current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted')`;
  const notHere = `IF NOT FOUND THEN
      -- It may have come since this transaction's snapshot, which then does not see it. Then this fails (40001).
      IF ${unseen} THEN
        ${insert('OLD.')} ON CONFLICT (${list(primaryKey)}) DO NOTHING;
      END IF;
      RAISE EXCEPTION USING ERRCODE = 'SH001',
        MESSAGE = format('some columns of this row of table "%s" are not on this shard', TG_TABLE_NAME),
        HINT = 'Their owner has changed: reload the topology and try again.';
    END IF;`;
  const [updated, kept, deleted] = filling
    ? [
        `IF NOT FOUND THEN
      ${insert('NEW.')} ON CONFLICT (${list(primaryKey)}) DO UPDATE SET ${pairs(all, '', 'EXCLUDED.', ', ')};
    END IF;`,
        '',
        `-- The row may have been filled in since this transaction's snapshot, which then does not see it, and it would live on. Then this fails (40001).
    IF NOT FOUND AND ${unseen} THEN
      ${insert('OLD.')} ON CONFLICT (${list(primaryKey)}) DO NOTHING;
      DELETE FROM ${name} WHERE ${old};
    END IF;`,
      ]
    : [
        notHere,
        `IF ${unseen} THEN
      PERFORM FROM ${name} WHERE ${old} FOR KEY SHARE; -- one that has gone since this transaction's snapshot is still in that
    ELSE
      PERFORM FROM ${name} WHERE ${old};
    END IF;
    ${notHere}`,
        notHere,
      ];
  return `CREATE OR REPLACE FUNCTION ${quoteTable(halvesNames(table).together)}() ${definer()} AS $halves$
#variable_conflict use_column
BEGIN
  CASE TG_OP
  WHEN 'INSERT' THEN
    ${insert('NEW.')};
  WHEN 'UPDATE' THEN
    -- Nothing is to be done to the other half. But who takes it to be here may have read hot columns, which then are of the past.
    IF TG_NARGS > 0 THEN
      ${kept}
      RETURN NULL;
    END IF;
    UPDATE ${name} SET ${pairs(all, '', 'NEW.', ', ')} WHERE ${old};
    ${updated}
  WHEN 'DELETE' THEN
    DELETE FROM ${name} WHERE ${old};
    ${deleted}
  WHEN 'TRUNCATE' THEN
    IF current_setting('${HALVES_SETTING}', true) IN (${inThis(HALVES_LOG)}, ${inThis(HALVES_BRING)}) THEN
      RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
        MESSAGE = format('cannot truncate table "%s" while some of its columns are on another shard', TG_TABLE_NAME), HINT = 'Use DELETE.';
    END IF;
    TRUNCATE ${name};
  END CASE;
  RETURN NULL;
END
$halves$`;
}

/** In these, what a value is as text means the same to every session. */
const PLAIN_TEXT = ` SET datestyle = 'ISO, YMD' SET intervalstyle = 'iso_8601' SET extra_float_digits = 1 SET bytea_output = 'hex' SET timezone = 'UTC'`;

function logFunction(table: TableName, split: ColumnSplit): string {
  const { outbox, log } = halvesNames(table);
  const values = (names: readonly string[], prefix: string) => names.map((n) => `${prefix}${quoteIdent(n)}::text`);
  const nulls = (names: readonly string[]) => names.map(() => 'NULL');
  const { primaryKey, columns } = split;
  const write = (op: string, pending: string, parts: readonly string[][]) =>
    `INSERT INTO ${quoteTable(outbox)} (op, pending, ${outboxColumns(split).join(', ')}) VALUES ('${op}', ${pending}, ${parts.flat().join(', ')})`;
  const moved = differ(primaryKey, 'OLD.', 'NEW.');
  return `CREATE OR REPLACE FUNCTION ${quoteTable(log)}() ${definer(PLAIN_TEXT)} AS $halves$
BEGIN
  CASE TG_OP
  WHEN 'INSERT' THEN
    ${write('I', pendingSql(split), [nulls(primaryKey), values(primaryKey, 'NEW.'), values(columns, 'NEW.')])};
  WHEN 'UPDATE' THEN
    ${write('U', `CASE WHEN ${moved} THEN ${pendingSql(split)} END`, [values(primaryKey, 'OLD.'), values(primaryKey, 'NEW.'), values(columns, 'NEW.')])};
  WHEN 'DELETE' THEN
    ${write('D', 'NULL', [values(primaryKey, 'OLD.'), nulls(primaryKey), nulls(columns)])};
  END CASE;
  RETURN NULL;
END
$halves$`;
}

/** What stands, in the outbox's unique index, for a row that is being inserted: whoever writes the same waits for the end of that transaction. */
function pendingSql({ primaryKey }: ColumnSplit): string {
  return `sha256(convert_to(${row(primaryKey, 'NEW.')}::text, 'UTF8'))`;
}

/** The triggers of the table. Making them locks it for writers for a moment; it can be said again. */
export function baseTriggersSql(table: TableName, { primaryKey, columns }: ColumnSplit): string[] {
  const names = halvesNames(table);
  const trigger = (what: string, event: string, when: string, fn: TableName, argument = '') =>
    `CREATE OR REPLACE TRIGGER ${quoteIdent(`${names.trigger}_${what}`)} AFTER ${event} ON ${quoteTable(table)} FOR EACH ROW WHEN (${when}) EXECUTE FUNCTION ${quoteTable(fn)}(${argument})`;
  const changed = differ([...primaryKey, ...columns], 'OLD.', 'NEW.');
  return [
    trigger('i', 'INSERT', HALVES_TOGETHER, names.together),
    trigger('u', 'UPDATE', `${HALVES_TOGETHER} AND ${changed}`, names.together),
    trigger('k', 'UPDATE', `${HALVES_TOGETHER} AND NOT ${changed}`, names.together, `'kept'`),
    trigger('d', 'DELETE', HALVES_TOGETHER, names.together),
    trigger('log', 'INSERT OR UPDATE OR DELETE', `${MODE} = ${inThis(HALVES_LOG)}`, names.log),
    `CREATE OR REPLACE TRIGGER ${quoteIdent(`${names.trigger}_t`)} AFTER TRUNCATE ON ${quoteTable(table)} FOR EACH STATEMENT EXECUTE FUNCTION ${quoteTable(names.together)}()`,
  ];
}

/** Of the hot table, which is there: what replication has written to it is the table's too, if that is on this shard. It can be said again. */
export function hotHalfSql(table: TableName, split: ColumnSplit): string[] {
  const { arrive, outbox, trigger } = halvesNames(table);
  const { hot, primaryKey, columns } = split;
  const bring = `UPDATE ${quoteTable(table)} AS t SET ${pairs(columns, '', 'NEW.', ', ')} WHERE ${pairs(primaryKey, 't.', 'NEW.', ' AND ')} AND ${differ(columns, 't.', 'NEW.')}`;
  const there = `SELECT FROM ${quoteTable(table)} AS t WHERE ${pairs(primaryKey, 't.', 'NEW.', ' AND ')}`;
  const box = quoteLiteral(quoteTable(outbox));
  const name = quoteIdent(trigger);
  return [
    `CREATE SCHEMA IF NOT EXISTS ${quoteIdent(SCHEMA)}`,
    `CREATE OR REPLACE FUNCTION ${quoteTable(arrive)}() ${definer(PLAIN_TEXT)} AS $halves$
DECLARE
  waited bytea;
BEGIN
  IF to_regclass(${quoteLiteral(quoteTable(table))}) IS NULL THEN
    RETURN NULL;
  END IF;
  ${bring};
  -- The row's insertion may be on its way: prepared here, committed there already. Its key is in the outbox then, where nobody sees it, but whoever
  -- inserts the same waits for it. An outbox that has never been used is none to look at: no row of a first copy should have to.
  IF NOT FOUND AND to_regclass(${box}) IS NOT NULL AND pg_relation_size(to_regclass(${box})) > 0 AND NOT EXISTS (${there}) THEN
    waited := ${pendingSql(split)};
    INSERT INTO ${quoteTable(outbox)} (op, pending) VALUES ('P', waited) ON CONFLICT (pending) DO NOTHING;
    DELETE FROM ${quoteTable(outbox)} WHERE pending = waited AND op = 'P' AND xid = pg_current_xact_id();
    ${bring};
  END IF;
  RETURN NULL;
END
$halves$`,
    noOthers(arrive),
    `CREATE OR REPLACE TRIGGER ${name} AFTER INSERT OR UPDATE ON ${quoteTable(hot)} FOR EACH ROW EXECUTE FUNCTION ${quoteTable(arrive)}()`,
    `ALTER TABLE ${quoteTable(hot)} ENABLE REPLICA TRIGGER ${name}`,
  ];
}

/** Removes what `baseTriggersSql` and `baseHalfSql` have made, if it is there. */
export function dropBaseHalfSql(table: TableName): string[] {
  const { outbox, together, log } = halvesNames(table);
  return [
    `DROP FUNCTION IF EXISTS ${quoteTable(together)}() CASCADE`,
    `DROP FUNCTION IF EXISTS ${quoteTable(log)}() CASCADE`,
    `DROP TABLE IF EXISTS ${quoteTable(outbox)}`,
  ];
}

/** Removes what `hotHalfSql` has made, if it is there; the hot table stays. */
export function dropHotHalfSql(table: TableName): string[] {
  return [`DROP FUNCTION IF EXISTS ${quoteTable(halvesNames(table).arrive)}() CASCADE`];
}

/** A query giving `present`: whether the table has the triggers, all of them. */
export function baseTriggersPresent(table: TableName): string {
  const { trigger } = halvesNames(table);
  return `SELECT count(*) = 6 AS present FROM pg_catalog.pg_trigger WHERE tgrelid = pg_catalog.to_regclass(${quoteLiteral(quoteTable(table))}) AND starts_with(tgname::text, ${quoteLiteral(`${trigger}_`)})`;
}

/** A query giving `present`: whether the hot table has its trigger. */
export function hotTriggerPresent(table: TableName, { hot }: ColumnSplit): string {
  return `SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = pg_catalog.to_regclass(${quoteLiteral(quoteTable(hot))}) AND tgname = ${quoteLiteral(halvesNames(table).trigger)} AND tgenabled = 'R') AS present`;
}
