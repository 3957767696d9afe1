import { errorCode } from '../topology/connection.js';
import { ForeshardError } from '../topology/errors.js';
import { dropBaseHalfSql, dropHotHalfSql } from '../topology/halves-sql.js';
import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import type { Action } from './action.js';
import type { CrashPoint } from './crash-points.js';
import { type CleanupRecord, tableOf } from './migration-row.js';
import type { Move } from './move.js';
import { guardTriggers, SHARD_SCHEMA } from './names.js';
import { removeRows } from './remove-rows.js';
import { takeOutOfService } from './replica.js';
import { DROP_SHARD_SCHEMA, dropPublicationSql } from './replication.js';
import { dropSlots } from './slots.js';
import { Throttle } from './throttle.js';
import { restoreTriggers } from './trigger-actions.js';

const DEPENDENT_OBJECTS = '2BP01';

/** Takes back what a clean-up record names, whether it was made or not, all of it or a part. May be repeated. @throws ForeshardError 55000 when something is used that others have made */
export async function undo(m: Move, record: CleanupRecord): Promise<void> {
  const on = record.shard === m.spec.from ? 'source' : 'destination';
  const publisher = on === 'source' ? 'destination' : 'source';
  const session = on === 'source' ? m.source : m.destination;
  const { object } = record;
  const named = (): string => quoteTable(tableOf(record));
  const act = (name: Action['name'], text: string, sql: readonly string[], mode: Action['mode'] = 'single') =>
    m.exec.perform({ name, on, text, sql, mode });

  switch (record.kind) {
    case 'hold':
      await dropHolds(m);
      return;

    case 'replica':
      await takeOutOfService(m);
      return;

    case 'subscription': {
      const name = object.name as string;
      const found = await session.query<{ oid: string }>(
        `SELECT oid::text FROM pg_subscription WHERE subname = $1 AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())`,
        [name],
      );
      const oid = found[0]?.oid;
      if (oid === undefined) return;
      // Slots of table syncs may stay behind at the publisher and hold its WAL; after the drop their names are not known any more.
      const shard = publisher === 'source' ? m.spec.from : m.spec.to;
      await m.exec.record({ kind: 'slot', shard, object: { prefix: `pg_${oid}_sync_` } });
      await act('undo-subscription', 'drop the subscription', [
        `ALTER SUBSCRIPTION ${quoteIdent(name)} DISABLE`,
        // Without a slot the drop does not ask the publisher, which may be away.
        `ALTER SUBSCRIPTION ${quoteIdent(name)} SET (slot_name = NONE)`,
        `DROP SUBSCRIPTION ${quoteIdent(name)}`,
      ]);
      await untilDropped(m, publisher, `starts_with(slot_name, ${quoteLiteral(`pg_${oid}_sync_`)})`);
      return;
    }

    case 'slot':
      m.exec.at('recorded:undo-slot');
      if (object.prefix !== undefined)
        await untilDropped(m, on, `starts_with(slot_name, ${quoteLiteral(object.prefix)})`);
      else await untilDropped(m, on, `slot_name = ${quoteLiteral(object.name as string)}`);
      m.exec.at('after:undo-slot');
      return;

    case 'publication':
      await act('undo-publication', 'drop the publication', [dropPublicationSql(object.name as string)], 'locking');
      return;

    case 'marker':
      await act('undo-marker', 'drop the marker table', [
        `DROP TABLE IF EXISTS ${quoteTable({ schema: SHARD_SCHEMA, table: object.table as string })}`,
        DROP_SHARD_SCHEMA,
      ]);
      return;

    case 'guards':
      await dropGuards(m, on, object.trigger as string);
      return;

    case 'triggers':
      await restoreTriggers(m, record, on);
      return;

    case 'rows': {
      const table = m.tables.find((t) => t.schema === object.schema && t.table === object.table);
      if (table !== undefined) await removeRows(m, on, table, new Throttle(m));
      return;
    }

    case 'table':
      await dropTable(m, record, on);
      return;

    case 'base-half':
      await act(
        'undo-half',
        `drop what ${tableId(tableOf(record))} has of its other half`,
        [...dropBaseHalfSql(tableOf(record)), DROP_SHARD_SCHEMA],
        'locking',
      );
      return;
    case 'hot-half':
      await act(
        'undo-half',
        `drop what goes to ${tableId(tableOf(record))} from its other half`,
        [...dropHotHalfSql(tableOf(record)), DROP_SHARD_SCHEMA],
        'locking',
      );
      return;

    case 'function':
      await act('undo-function', `drop function ${object.signature}`, [
        dropUnlessUsed(`FUNCTION IF EXISTS ${object.signature}`),
      ]);
      return;
    case 'sequence':
      await act('undo-sequence', `drop sequence ${object.schema}.${object.table}`, [
        dropUnlessUsed(`SEQUENCE IF EXISTS ${named()}`),
      ]);
      return;
    case 'type':
      await act('undo-type', `drop type ${object.schema}.${object.table}`, [
        dropUnlessUsed(`TYPE IF EXISTS ${named()}`),
      ]);
      return;
    case 'schema':
      await act('undo-schema', `drop schema ${object.name}`, [
        dropUnlessUsed(`SCHEMA IF EXISTS ${quoteIdent(object.name as string)}`),
      ]);
      return;
  }
}

/** Takes back everything that is recorded, the last first. `point`: where a test may kill us, behind each. */
export async function undoAll(m: Move, point: CrashPoint): Promise<void> {
  // Undoing may record more, so look again until none is left.
  for (;;) {
    const record = nextOf(await m.exec.openCleanup());
    if (record === undefined) break;
    await m.exec.progress({ note: `undoing: ${record.kind} on ${record.shard}` });
    await undo(m, record);
    m.exec.at(point);
    await m.exec.markCleanupDone(record);
  }
  await m.exec.progress({ note: null });
}

/**
 * What is undone only behind others, whichever was made first, as partitions that come meanwhile bring things, too: no trigger is to fire for rows that
 * are replicated or removed, and a function that something uses would stay.
 */
const BEHIND: Partial<Record<CleanupRecord['kind'], readonly CleanupRecord['kind'][]>> = {
  triggers: ['subscription', 'rows'],
  function: ['table'],
  schema: ['table'],
};

function nextOf(open: readonly CleanupRecord[]): CleanupRecord | undefined {
  return open.findLast(({ kind }) => !open.some((other) => BEHIND[kind]?.includes(other.kind) === true));
}

/**
 * With the foreign keys and policies by which other tables of this migration use it, which go as well. Whatever else uses it is not ours to take away.
 * @throws ForeshardError 55000 when something does
 */
async function dropTable(m: Move, record: CleanupRecord, on: 'source' | 'destination'): Promise<void> {
  const session = on === 'source' ? m.source : m.destination;
  const name = quoteTable(tableOf(record));
  const id = tableId(tableOf(record));
  const ours = (await m.exec.openCleanup('table')).filter(({ shard }) => shard === record.shard);
  const uses = await session.query<{ sql: string }>(
    `WITH ours AS (SELECT to_regclass(name) AS oid FROM unnest($2::text[]) AS name)
     SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) AS sql FROM pg_constraint
      WHERE contype = 'f' AND conparentid = 0 AND confrelid = to_regclass($1) AND conrelid <> confrelid
        AND coalesce(pg_partition_root(conrelid), conrelid) IN (SELECT oid FROM ours)
     UNION ALL SELECT DISTINCT format('DROP POLICY %I ON %s', polname, polrelid::regclass) FROM pg_policy p
       JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_class'::regclass
      WHERE d.refobjid = to_regclass($1) AND polrelid <> d.refobjid
        AND coalesce(pg_partition_root(polrelid), polrelid) IN (SELECT oid FROM ours)`,
    [name, ours.map((one) => quoteTable(tableOf(one)))],
  );
  try {
    await m.exec.perform({
      name: 'undo-table',
      on,
      text: `drop table ${id}`,
      sql: [...uses.map(({ sql }) => sql), `DROP TABLE IF EXISTS ${name}`],
      mode: 'locking',
    });
  } catch (error) {
    if (errorCode(error) !== DEPENDENT_OBJECTS) throw error;
    const { detail } = error as Error & { detail?: string };
    throw new ForeshardError(
      '55000',
      `table "${id}" on shard "${record.shard}" is used by what is not of this migration: ${detail}`,
      {
        hint: `Drop what uses it on shard "${record.shard}"; then undoing goes on by itself.`,
      },
    );
  }
}

/** What something else uses by now stays: a copy of a reference table that outlives a rollback, or what somebody has made since. */
function dropUnlessUsed(what: string): string {
  return `DO $foreshard$ BEGIN DROP ${what} RESTRICT; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $foreshard$`;
}

async function untilDropped(m: Move, on: 'source' | 'destination', slots: string): Promise<void> {
  const session = on === 'source' ? m.source : m.destination;
  await m.exec.wait('the replication slot is free', () => dropSlots(session, slots));
}

async function dropGuards(m: Move, on: 'source' | 'destination', trigger: string): Promise<void> {
  const session = on === 'source' ? m.source : m.destination;
  const tables = await session.query<{ name: string; triggers: string[] }>(
    `SELECT tgrelid::regclass::text AS name, array_agg(quote_ident(tgname)) AS triggers FROM pg_trigger
      WHERE NOT tgisinternal AND tgparentid = 0 AND tgname = ANY ($1) GROUP BY tgrelid`,
    [Object.values(guardTriggers({ trigger }))],
  );
  for (const t of tables)
    await m.exec.perform({
      name: 'undo-guard-table',
      on,
      text: `remove the guard of ${t.name}`,
      mode: 'locking',
      sql: t.triggers.map((name) => `DROP TRIGGER ${name} ON ${t.name}`),
    });
  const functions = await session.query<{ sql: string }>(
    `SELECT format('DROP FUNCTION %s', oid::regprocedure) AS sql FROM pg_proc
      WHERE pronamespace = to_regnamespace($1) AND (proname = $2 OR starts_with(proname, $2 || '_'))`,
    [quoteIdent(SHARD_SCHEMA), m.names.guardFunction.table],
  );
  await m.exec.perform({
    name: 'undo-guards',
    on,
    text: 'drop gate and guard',
    mode: 'single',
    sql: [
      ...functions.map((f) => f.sql),
      `DROP SEQUENCE IF EXISTS ${quoteTable(m.names.gate)}`,
      `DROP SEQUENCE IF EXISTS ${quoteTable(m.names.pace)}`,
      DROP_SHARD_SCHEMA,
    ],
  });
}

/** What the proxies hold for this migration goes on. */
export async function dropHolds(m: Move): Promise<void> {
  await m.exec.inLease(m.row, (client) =>
    client.query('DELETE FROM foreshard.hold WHERE migration_id = $1', [m.row.id.toString()]),
  );
}
