import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { errorCode } from '../topology/connection.js';
import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import type { Action } from './action.js';
import type { WaitOptions } from './executor.js';
import { CREATE_SHARD_SCHEMA } from './guards.js';
import type { Move } from './move.js';
import { type ObjectNames, SHARD_SCHEMA } from './names.js';
import { fromLeaves } from './schema-partitions.js';
import type { TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';
import { Supervisor } from './supervisor.js';

/** How often replication is looked after while a marker is waited for, ms. */
const SUPERVISE_MS = 1000;
/** How often it is looked whether a marker has arrived that others wait for, ms. */
const MARKER_POLL_MS = 2;

/** How long a server is asked again to follow one to which it cannot connect, and how often, ms. */
const CONNECT_PATIENCE_MS = 20_000;
const CONNECT_RETRY_MS = 500;

export function markerAction(m: Move, on: 'source' | 'destination'): Action {
  const marker = quoteTable(m.names.marker);
  return {
    name: `create-marker-${on}`,
    on,
    text: 'create the marker table',
    mode: 'transaction',
    cleanup: [
      { kind: 'marker', shard: on === 'source' ? m.spec.from : m.spec.to, object: { table: m.names.marker.table } },
    ],
    sql: [
      CREATE_SHARD_SCHEMA,
      `CREATE TABLE IF NOT EXISTS ${marker} (id int PRIMARY KEY, token uuid NOT NULL, at timestamptz NOT NULL DEFAULT now())`,
    ],
  };
}

export function publicationAction(m: Move): Action {
  const name = m.names.replication;
  const tables = m.tables.map((t) => (t.keyColumns.length === 0 ? t.sql : `${t.sql} WHERE (${t.predicate()})`));
  return {
    name: 'create-publication',
    on: 'source',
    text: 'publish the rows of the interval',
    mode: 'single',
    cleanup: [{ kind: 'publication', shard: m.spec.from, object: { name } }],
    present: `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = ${quoteLiteral(name)}) AS present`,
    // TRUNCATE is not published: it would empty the destination's whole table. What partitions there are is each side's own matter.
    sql: [
      `CREATE PUBLICATION ${quoteIdent(name)} FOR TABLE ${[...tables, quoteTable(m.names.marker)].join(', ')} WITH (publish = 'insert, update, delete', publish_via_partition_root = true)`,
    ],
  };
}

/**
 * Drops a publication, if it is there. An UPDATE or DELETE looks for the publications of its table, and then at each: one that goes in between fails it with
 * XX000 ("cache lookup failed for publication"). So nobody writes to its tables while it goes; whoever comes behind it looks anew. To be tried again on a lock timeout.
 */
export function dropPublicationSql(name: string): string {
  return `DO $foreshard$ DECLARE tab text; BEGIN
  FOR tab IN SELECT format('%I.%I', n.nspname, c.relname) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
               JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = ${quoteLiteral(name)} ORDER BY c.oid LOOP
    BEGIN
      EXECUTE 'LOCK TABLE ' || tab || ' IN SHARE MODE';
    EXCEPTION WHEN undefined_table THEN NULL; -- dropped since
    END;
  END LOOP;
  DROP PUBLICATION IF EXISTS ${quoteIdent(name)};
END $foreshard$`;
}

/** After the publication has been committed: a slot that is older does not know it. */
export function slotAction(m: Move): Action {
  const name = m.names.replication;
  return {
    name: 'create-slot',
    on: 'source',
    text: 'create the replication slot (waits for every transaction that now writes to that server)',
    mode: 'single',
    cleanup: [{ kind: 'slot', shard: m.spec.from, object: { name } }],
    present: `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = ${quoteLiteral(name)}) AS present`,
    sql: [`SELECT pg_create_logical_replication_slot(${quoteLiteral(name)}, 'pgoutput')`],
  };
}

/** @param how what stands in WITH besides the slot, and what it does, for people */
function subscribeAction(m: Move, text: string, how: string): Action {
  const name = m.names.replication;
  return {
    name: 'create-subscription',
    on: 'destination',
    text,
    mode: 'single',
    cleanup: [{ kind: 'subscription', shard: m.spec.to, object: { name } }],
    present: subscriptionPresent(m.names),
    // The statement holds a password: it must not get into the server's log. Also reset by the end of the session.
    // disable_on_error: an error that would come again and again stops the worker instead of filling the disk with its logs.
    sql: [
      "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'",
      `CREATE SUBSCRIPTION ${quoteIdent(name)} CONNECTION ${quoteLiteral(m.source.shard.url)} PUBLICATION ${quoteIdent(name)}
         WITH (create_slot = false, slot_name = ${quoteLiteral(name)}, ${how}, enabled = true, disable_on_error = true)`,
      'RESET log_statement; RESET log_min_duration_statement; RESET log_min_error_statement',
    ],
  };
}

/**
 * Carries out one of the actions below. The publisher may be starting, or the network cut, just now: while the server says that it cannot connect
 * there, it is asked again for a while. That we cannot connect there ourselves, as it takes no connections (any more), is an outage.
 * @throws ShardUnavailableError, or what the server says in the end
 */
export async function subscribe(m: Move, action: Action): Promise<void> {
  const until = performance.now() + CONNECT_PATIENCE_MS;
  for (;;) {
    try {
      return await m.exec.perform(action);
    } catch (error) {
      if (!errorCode(error).startsWith('08') || performance.now() >= until) throw error;
      await m.exec.progress({ note: `${(error as Error).message}: it is tried again` });
    }
    const probe = await ShardSession.open(m.source.shard, null);
    await probe.close();
    await delay(CONNECT_RETRY_MS);
    m.exec.check();
  }
}

/** @param tables as they are at either end */
export function subscriptionAction(m: Move, tables: readonly TableInfo[]): Action {
  return subscribeAction(m, 'subscribe: copies the rows, then follows', `copy_data = true${rights(m, tables)}`);
}

/**
 * The workers write as the tables' owners do (PostgreSQL 16), and those whom policies hold for may not. Then they have the rights of the subscription's
 * owner, as they always have before.
 */
function rights(m: Move, tables: readonly TableInfo[]): string {
  const isForced = tables.flatMap(fromLeaves).some(({ rowSecurity }) => rowSecurity.enabled && rowSecurity.forced);
  return isForced && m.destination.version >= 160_000 ? ', run_as_owner = true' : '';
}

/** Of a move that is turned: what clients have written since the slot was made, and nothing that came from there. */
export function followAction(m: Move, tables: readonly TableInfo[]): Action {
  const how = knowsOrigin(m) ? 'copy_data = false, origin = none' : 'copy_data = false';
  return subscribeAction(m, 'subscribe: follows the new owner', how + rights(m, tables));
}

/** Has the slot begin with what is written from now on; where there is none, nothing happens. */
export async function advanceSlot(session: ShardSession, { replication }: ObjectNames): Promise<void> {
  await session.query(
    'SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots WHERE slot_name = $1',
    [replication],
  );
}

/** Whether replication can leave out what has itself been replicated (PostgreSQL 16). */
export function knowsOrigin(m: Move): boolean {
  return m.source.version >= 160_000 && m.destination.version >= 160_000;
}

export function subscriptionPresent(names: ObjectNames): string {
  return `SELECT EXISTS (SELECT FROM pg_subscription WHERE subname = ${quoteLiteral(names.replication)}
            AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())) AS present`;
}

/** Writes a new token at the source, in a transaction of its own. */
export function writeMarkerSql(names: ObjectNames, token: string): string {
  return `INSERT INTO ${quoteTable(names.marker)} (id, token) VALUES (1, ${quoteLiteral(token)}::uuid)
          ON CONFLICT (id) DO UPDATE SET token = excluded.token`;
}

/** Whether the destination has applied everything up to the marker with this token. Exact once every table is ready. */
export async function markerArrived(m: Move, token: string): Promise<boolean> {
  const rows = await m.destination.query<{ token: string }>(
    `SELECT token::text FROM ${quoteTable(m.names.marker)} WHERE id = 1`,
  );
  return rows[0]?.token === token;
}

/** As `followed`, for whoever keeps others waiting meanwhile: the migration is not paused here. @returns whether the destination has everything up to now within `ms` */
export async function hasAllWithin(m: Move, ms: number): Promise<boolean> {
  const token = randomUUID();
  const until = performance.now() + ms;
  await m.source.query(writeMarkerSql(m.names, token));
  while (!(await markerArrived(m, token))) {
    if (performance.now() >= until) return false;
    m.exec.check();
    await delay(MARKER_POLL_MS);
  }
  return true;
}

/**
 * Waits until the destination has applied all that the source has committed until now: a marker is sent through. Without a deadline replication is looked
 * after meanwhile, else a marker that can never come would be waited for, whatever else is asked of the migration.
 * @returns false when the deadline passed first
 */
export async function followed(m: Move, options: WaitOptions): Promise<boolean> {
  const token = randomUUID();
  await m.source.query(writeMarkerSql(m.names, token));
  const supervisor = new Supervisor(m);
  let supervisedAt = performance.now();
  return m.exec.wait(
    'the marker arrives at the destination',
    async () => {
      if (await markerArrived(m, token)) return true;
      if (options.deadlineMs === undefined && performance.now() - supervisedAt > SUPERVISE_MS) {
        await supervisor.check();
        supervisedAt = performance.now();
      }
      return false;
    },
    options,
  );
}

/** @returns ms that a marker takes to get through, or null when it did not come in time */
export async function roundTrip(m: Move, deadlineMs: number): Promise<number | null> {
  const sent = performance.now();
  return (await followed(m, { everyMs: 10, deadlineMs })) ? performance.now() - sent : null;
}

/**
 * Schema of our objects, dropped when nothing of another migration is left in it. That is looked at first: an attempt, though refused in the end, locks
 * everything in the schema against everybody, and so deadlocks with writers whose triggers use it.
 */
export const DROP_SHARD_SCHEMA = `DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
                 AND refobjid = pg_catalog.to_regnamespace(${quoteLiteral(quoteIdent(SHARD_SCHEMA))})) THEN
    DROP SCHEMA IF EXISTS ${quoteIdent(SHARD_SCHEMA)} RESTRICT;
  END IF;
  EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$`;
