import { setTimeout as delay } from 'node:timers/promises';
import { parseGid } from '../../topology/prepared-transactions.js';
import { quoteIdent, quoteLiteral } from '../../topology/quote.js';
import { crashPoint } from '../crash-points.js';
import { GUARD_LOCK_CLASS, SHARD_SCHEMA } from '../names.js';
import { DROP_SHARD_SCHEMA } from '../replication.js';
import type { ShardSession } from '../shard-session.js';
import { dropSlots } from '../slots.js';
import type { AuditFinding } from './finding.js';
import type { AtWork } from './migrations.js';

/** How long a slot may take to be let go of. */
const SLOT_MS = 5000;

/** Kinds in the order in which they can be taken away. */
export const ORDER = ['subscription', 'slot', 'publication', 'trigger', 'function', 'gate', 'marker'];

interface Found {
  readonly kind: string;
  readonly name: string;
  /** Number of the migration, as its names have it. */
  readonly id: string;
  /** Statements that take it away. */
  readonly drop: readonly string[];
}

/** What bears the name of a migration on one shard. */
export interface ShardObjects {
  readonly session: ShardSession;
  readonly found: readonly Found[];
  readonly prepared: readonly { readonly gid: string; readonly id: string }[];
  readonly remains: Remains;
}

/** What subscriptions that are gone may have left, whose names do not say whose they were. */
interface Remains {
  /** Of the server. */
  readonly system: string;
  /** Numbers of all subscriptions of the server. */
  readonly subscriptions: readonly string[];
  /** Slots of workers that copied a table, not in use: by the server and the number of the subscription that they copied for. */
  readonly slots: readonly { readonly name: string; readonly system: string; readonly subscription: string }[];
}

export async function readObjects(session: ShardSession, cluster: string): Promise<ShardObjects> {
  return {
    session,
    found: await ourObjects(session, cluster),
    prepared: await lockedByPrepared(session),
    remains: await readRemains(session),
  };
}

/** These slots have their names from PostgreSQL: `pg_<subscription>_sync_<table>_<server>`. */
async function readRemains(session: ShardSession): Promise<Remains> {
  const [row] = await session.query<{ remains: Remains }>(`SELECT json_build_object(
    'system', (SELECT system_identifier::text FROM pg_control_system()),
    'subscriptions', (SELECT coalesce(json_agg(oid::text), '[]') FROM pg_subscription),
    'slots', (SELECT coalesce(json_agg(json_build_object('name', slot_name, 'subscription', p[1], 'system', p[2])), '[]')
                FROM pg_replication_slots, regexp_match(slot_name, '^pg_([0-9]+)_sync_[0-9]+_([0-9]+)$') AS p
               WHERE p IS NOT NULL AND NOT active AND database = current_database())
  ) AS remains`);
  return (row as { remains: Remains }).remains;
}

/** Slots of subscriptions that are gone, between shards on which nothing is at work. Those of others' subscriptions are others'. */
export function judgeRemains(shards: readonly ShardObjects[], atWork: AtWork): AuditFinding[] {
  const bySystem = new Map(shards.map((shard) => [shard.remains.system, shard]));
  return shards.flatMap(({ session, remains }) => {
    const { name: shard } = session.shard;
    if (atWork.onShard(shard)) return [];
    return remains.slots.flatMap(({ name, system, subscription }): AuditFinding[] => {
      const copiedTo = bySystem.get(system);
      if (copiedTo === undefined || copiedTo.remains.subscriptions.includes(subscription)) return [];
      const to = copiedTo.session.shard.name;
      if (atWork.onShard(to)) return [];
      return [
        {
          kind: 'slot',
          shard,
          object: name,
          text: `slot ${name} is left of the copy of a table to shard "${to}", whose subscription is gone`,
          remedy: dropSql('slot', name, null).join('; '),
          repair: () => dropSlot(session, name),
        },
      ];
    });
  });
}

/**
 * What of it is left of a migration which is over, or which nobody knows. `atWork` is of a later time than the objects: a migration that began
 * meanwhile is known.
 */
export function judgeObjects({ session, found, prepared }: ShardObjects, atWork: AtWork): AuditFinding[] {
  const { name: shard } = session.shard;
  const objects = found
    .filter(({ id }) => !atWork.has(id))
    .map(
      ({ kind, name, id, drop }): AuditFinding => ({
        kind,
        shard,
        object: name,
        text: `${kind} ${name} is left of migration ${id} (${atWork.state(id)})`,
        remedy: drop.join('; '),
        repair: () => (kind === 'slot' ? dropSlot(session, name) : inOrder(session, withSchema(drop))),
      }),
    );
  const transactions = prepared
    // Those of transactions on several shards are judged by who decides over them.
    .filter(({ gid, id }) => !atWork.has(id) && parseGid(gid) === null)
    .map(
      ({ gid, id }): AuditFinding => ({
        kind: 'prepared transaction',
        shard,
        object: gid,
        text: `prepared transaction "${gid}" has written to rows of migration ${id} (${atWork.state(id)})`,
        remedy: `COMMIT PREPARED or ROLLBACK PREPARED ${quoteLiteral(gid)}, as whoever prepared it would`,
        repair: null,
      }),
    );
  return [...objects, ...transactions];
}

/** The last one takes our schema along, when that is empty then, in one transaction: nobody looks for a schema without anything in it. */
function withSchema(drop: readonly string[]): string[] {
  return drop.map((sql, i) => (i < drop.length - 1 ? sql : `${sql}; ${DROP_SHARD_SCHEMA}`));
}

async function inOrder(session: ShardSession, statements: readonly string[]): Promise<void> {
  for (const [i, sql] of statements.entries()) {
    if (i > 0) crashPoint('within:audit-repair');
    await session.query(sql);
  }
}

async function dropSlot(session: ShardSession, name: string): Promise<void> {
  const deadline = performance.now() + SLOT_MS;
  while (!(await dropSlots(session, `slot_name = ${quoteLiteral(name)}`)) && performance.now() < deadline)
    await delay(20);
}

async function ourObjects(session: ShardSession, cluster: string): Promise<Found[]> {
  const is = (column: string, prefix: string) => `${column} ~ ${quoteLiteral(`^${prefix}_${cluster}_[0-9]+(_|$)`)}`;
  const id = (column: string) => `substring(${column} FROM ${quoteLiteral(`_${cluster}_([0-9]+)`)})`;
  const rows = await session.query<{ kind: string; name: string; id: string; on: string | null }>(`
    SELECT 'subscription' AS kind, subname::text AS name, ${id('subname')} AS id, NULL AS on FROM pg_subscription
     WHERE ${is('subname', 'foreshard')} AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION ALL SELECT 'slot', slot_name::text, ${id('slot_name::text')}, NULL FROM pg_replication_slots
     WHERE ${is('slot_name::text', 'foreshard')} AND database = current_database()
    UNION ALL SELECT 'publication', pubname::text, ${id('pubname')}, NULL FROM pg_publication WHERE ${is('pubname', 'foreshard')}
    UNION ALL SELECT 'trigger', tgname::text, ${id('tgname')}, tgrelid::regclass::text FROM pg_trigger
     WHERE NOT tgisinternal AND tgparentid = 0 AND ${is('tgname', '[!~]?foreshard_guard')}
    UNION ALL SELECT 'function', proname::text, ${id('proname')}, p.oid::regprocedure::text FROM pg_proc p
     WHERE pronamespace = to_regnamespace(${quoteLiteral(SHARD_SCHEMA)}) AND ${is('proname', 'guard')}
    UNION ALL SELECT CASE relkind WHEN 'S' THEN 'gate' ELSE 'marker' END, relname::text, ${id('relname')}, c.oid::regclass::text FROM pg_class c
     WHERE relnamespace = to_regnamespace(${quoteLiteral(SHARD_SCHEMA)}) AND relkind IN ('S', 'r') AND ${is('relname', '(gate|pace|marker)')}`);
  return rows.map(({ kind, name, id: number, on }) => ({ kind, name, id: number, drop: dropSql(kind, name, on) }));
}

function dropSql(kind: string, name: string, on: string | null): string[] {
  switch (kind) {
    case 'subscription':
      return [
        `ALTER SUBSCRIPTION ${quoteIdent(name)} DISABLE`,
        `ALTER SUBSCRIPTION ${quoteIdent(name)} SET (slot_name = NONE)`,
        `DROP SUBSCRIPTION IF EXISTS ${quoteIdent(name)}`,
      ];
    case 'slot':
      return [`SELECT pg_drop_replication_slot(${quoteLiteral(name)})`];
    case 'publication':
      return [`DROP PUBLICATION IF EXISTS ${quoteIdent(name)}`];
    case 'trigger':
      return [`DROP TRIGGER IF EXISTS ${quoteIdent(name)} ON ${on}`];
    case 'function':
      return [`DROP FUNCTION IF EXISTS ${on} RESTRICT`];
    case 'gate':
      return [`DROP SEQUENCE IF EXISTS ${on} RESTRICT`];
    default:
      return [`DROP TABLE IF EXISTS ${on} RESTRICT`];
  }
}

/**
 * A transaction that was prepared on rows that moved holds the guard's lock for as long as nobody ends it. Its locks have no process; their virtual transaction
 * is the one its session had, or after a restart of the server -1 and its number. The lock on its number says whose they are.
 */
function lockedByPrepared(session: ShardSession): Promise<{ gid: string; id: string }[]> {
  return session.query(
    `SELECT p.gid, l.objid::bigint::text AS id
       FROM pg_prepared_xacts p
       JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.granted AND x.pid IS NULL
       JOIN pg_locks l USING (virtualtransaction)
      WHERE l.locktype = 'advisory' AND l.classid = ${GUARD_LOCK_CLASS}::int8::oid AND l.pid IS NULL AND p.database = current_database()`,
  );
}
