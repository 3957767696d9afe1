import { loadSql } from '../sql/load.js';
import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import type { Action } from './action.js';
import { CREATE_SHARD_SCHEMA } from './guards.js';
import type { MovingTable } from './move.js';
import { guardTriggers, type ObjectNames } from './names.js';

/** What is copied between two looks at the limit, bytes. */
const SAMPLE_BYTES = 65_536;
const MAX_SAMPLE_ROWS = 4096;

/** `last_value` of a pace: no limit. */
export const UNLIMITED = 0;
/** The copy goes no further. */
export const STOPPED = 1;

function paceFunction(names: ObjectNames) {
  return { schema: names.guardFunction.schema, table: `${names.guardFunction.table}_pace` };
}

/** Sets how many bytes a second one worker copies, if that is (still) there. A small write, flushed to disk. */
export function assertPaceSql(names: Pick<ObjectNames, 'pace'>, bytesPerSecond: number): string {
  return `SELECT setval(oid::regclass, ${bytesPerSecond}) FROM pg_class WHERE oid = to_regclass(${quoteLiteral(quoteTable(names.pace))})`;
}

/** The same before there is a copy. */
export function setPaceAction(names: ObjectNames, bytesPerSecond: number): Action {
  return {
    name: 'set-pace',
    on: 'destination',
    text: 'set the rate of the copy',
    mode: 'transaction',
    sql: [assertPaceSql(names, bytesPerSecond)],
  };
}

/** Limit of the copy and what heeds it; see sql/shard/pace.sql. It goes with the guards. */
export function paceAction(names: ObjectNames, on: 'source' | 'destination', shard: string): Action {
  const fill: Record<string, string> = {
    ':function': quoteTable(paceFunction(names)),
    ':pace': quoteTable(names.pace),
  };
  const never = quoteTable({ ...paceFunction(names), table: `${paceFunction(names).table}_never` });
  return {
    name: `pace-${on}`,
    on,
    text:
      on === 'source'
        ? 'make the sequence by which the latency is measured'
        : 'install what limits the rate of the copy',
    mode: 'transaction',
    cleanup: [{ kind: 'guards', shard, object: { trigger: names.trigger } }],
    sql: [
      CREATE_SHARD_SCHEMA,
      `CREATE SEQUENCE IF NOT EXISTS ${quoteTable(names.pace)} MINVALUE ${UNLIMITED} START ${UNLIMITED}`,
      ...(on === 'source'
        ? []
        : [
            loadSql('shard/pace.sql').replace(/:(function|pace)\b/g, (word) => fill[word] as string),
            `CREATE OR REPLACE FUNCTION ${never}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`,
            // The workers call it as the owner of the table, whatever default privileges leave to whom.
            `GRANT EXECUTE ON FUNCTION ${quoteTable(paceFunction(names))} TO PUBLIC`,
          ]),
    ],
  };
}

/**
 * The pace of one table at the destination: only workers of logical replication are paced.
 * @param rowBytes of a row, about
 */
export function paceTableAction(names: ObjectNames, table: MovingTable, rowBytes: number): Action {
  const name = guardTriggers(names).pace;
  const rows = 2 ** Math.floor(Math.log2(Math.min(MAX_SAMPLE_ROWS, Math.max(1, SAMPLE_BYTES / rowBytes))));
  const fn = paceFunction(names);
  return {
    name: 'pace-table',
    on: 'destination',
    text: `pace the copy of ${table.schema}.${table.table}`,
    mode: 'locking',
    present: `SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(${quoteLiteral(table.sql)})
                AND tgname = ${quoteLiteral(name)}) AS present`,
    sql: [
      `CREATE TRIGGER ${quoteIdent(name)} AFTER INSERT ON ${table.sql} FOR EACH ROW
         WHEN (hashtid(NEW.ctid) & ${rows - 1} = 0 AND ${quoteTable(fn)}(${Math.round(rows * rowBytes)}))
         EXECUTE FUNCTION ${quoteTable({ ...fn, table: `${fn.table}_never` })}()`,
      `ALTER TABLE ${table.sql} ENABLE REPLICA TRIGGER ${quoteIdent(name)}`,
    ],
  };
}

/** Behind the copy it would only cost those who apply what follows. */
export function unpaceTableAction(names: ObjectNames, table: MovingTable): Action {
  return {
    name: 'unpace-table',
    on: 'destination',
    text: `pace ${table.schema}.${table.table} no more`,
    mode: 'locking',
    sql: [`DROP TRIGGER IF EXISTS ${quoteIdent(guardTriggers(names).pace)} ON ${table.sql}`],
  };
}
