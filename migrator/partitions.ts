import { errorCode } from '../topology/connection.js';
import { quoteIdent, quoteTable } from '../topology/quote.js';
import { type TableName, tableId } from '../topology/topology.js';
import { truncateGuardSql } from './guards.js';
import type { Move, MovingTable } from './move.js';
import { backNames, guardTriggers } from './names.js';
import { partitionProblems } from './preflight-partitions.js';
import { createPartitionSql } from './schema-partitions.js';
import { readTable, type TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';

/** How long what locks an application's table for a partition's sake may make others queue, ms. */
const LOCK_TIMEOUT_MS = 200;
/** SQLSTATEs of a lock that was not to be had in time, of a deadlock, and of something that has changed since it was looked at. */
const NOT_NOW = new Set(['55P03', '40P01', '57014', '42P01', '42P07', '42710']);
/** How long a statement takes at most that takes rows of a new partition from the default one, ms: nobody else gets at these meanwhile. */
const FILL_MS = 5000;
/** Of a default partition that has rows of a new one. */
const CHECK_VIOLATION = '23514';

/** A partition on one side. */
interface Partition {
  /** Of the table that moves, in the order of `m.tables`. */
  readonly of: number;
  readonly name: TableName;
  readonly parent: TableName;
  readonly bound: string;
  /** It has the guard of TRUNCATE. */
  readonly guarded: boolean;
}

const NAME = (schema: string, relation: string) => `json_build_object('schema', ${schema}, 'table', ${relation})`;
const PARTITIONS = `
SELECT (t.n - 1)::int AS of, ${NAME('n.nspname', 'c.relname')} AS name, ${NAME('pn.nspname', 'p.relname')} AS parent,
       pg_get_expr(c.relpartbound, c.oid) AS bound,
       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = $2) AS guarded
  FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n) CROSS JOIN LATERAL pg_partition_tree(to_regclass(t.name)) AS part
  JOIN pg_class c ON c.oid = part.relid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class p ON p.oid = part.parentrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE part.level > 0 ORDER BY t.n, part.level, n.nspname, c.relname`;

function read(m: Move, session: ShardSession): Promise<Partition[]> {
  return session.query<Partition & Record<string, unknown>>(PARTITIONS, [
    m.tables.map((t) => t.sql),
    guardTriggers(m.names).truncate,
  ]);
}

const placed = ({ name, parent, bound }: Partition) => JSON.stringify([name, parent, bound]);

/**
 * Partitions that came to the source since the move began are made at the destination, and guarded on both sides: rows of theirs could not be
 * applied without. What is attached with rows, or detached, is not replicated; the comparison that follows sees it.
 * @returns what still keeps the two sides apart, and what to do about it; null: nothing
 */
export async function settlePartitions(m: Move): Promise<string | null> {
  const here = await read(m, m.source);
  let there = await read(m, m.destination);
  if (here.length + there.length === 0) return null;
  const known = new Set(there.map(placed));
  for (const partition of here.filter((p) => !known.has(placed(p)))) {
    const problem = await makeThere(m, partition);
    if (problem !== null) return problem;
  }
  there = await read(m, m.destination);
  for (const [session, partitions] of [
    [m.source, here],
    [m.destination, there],
  ] as const)
    for (const p of partitions.filter((one) => !one.guarded))
      if (!(await attempt(session, [truncateGuardSql(m.names, p.name)])))
        return `waiting for a lock on partition "${tableId(p.name)}" on shard "${session.shard.name}"`;
  return differenceOf(m, await read(m, m.source), there);
}

/** @returns how the partitions of the two sides differ; null: not at all */
function differenceOf(m: Move, here: readonly Partition[], there: readonly Partition[]): string | null {
  const only = (a: readonly Partition[], b: readonly Partition[]) => {
    const others = new Set(b.map(placed));
    return a.find((p) => !others.has(placed(p)));
  };
  const [missing, more] = [only(here, there), only(there, here)];
  if (missing !== undefined) return `partition "${tableId(missing.name)}" is missing on shard "${m.spec.to}"`;
  if (more === undefined) return null;
  const of = tableId(m.tables[more.of] as MovingTable);
  return `partition "${tableId(more.name)}" of "${of}" (${more.bound}) is on shard "${m.spec.to}" only: detach or drop it there, too, or attach it to the table on shard "${m.spec.from}" again`;
}

/** @returns why it cannot be made; null: it is there */
async function makeThere(m: Move, partition: Partition): Promise<string | null> {
  const id = tableId(partition.name);
  const root = m.tables[partition.of] as MovingTable;
  const table = await readTable(m.source.reader, quoteTable(partition.name));
  const whole = await readTable(m.source.reader, root.sql);
  if (table === null || whole === null) return `partition "${id}" has gone from shard "${m.spec.from}"`;
  const [problem] = partitionProblems(root, whole, table);
  if (problem !== undefined) return `partition "${id}" ${problem.text}: ${problem.remedy}`;
  const create = createPartitionSql({ table, ...partition }, true);
  const waiting = `partition "${id}" is to be made on shard "${m.spec.to}": waiting for a lock on "${tableId(partition.parent)}"`;
  try {
    return (await attempt(m.destination, create)) ? null : waiting;
  } catch (error) {
    if (errorCode(error) !== CHECK_VIOLATION) throw error;
    const fill = await fillSql(m, partition, table, create);
    if (fill !== null && (await attempt(m.destination, fill))) return null;
    return `${waiting}, or for you: the default partition there has rows of it; make it there as on shard "${m.spec.from}", with these rows (as session_replication_role = replica)`;
  }
}

/** The same when the default partition has rows of it already, which come along. Null: what follows the destination by now would not hear of it. */
async function fillSql(
  m: Move,
  { name, parent }: Partition,
  table: TableInfo,
  create: readonly string[],
): Promise<string[] | null> {
  const slots = await m.destination.query('SELECT FROM pg_replication_slots WHERE slot_name = $1', [
    backNames(m.names).replication,
  ]);
  const [row] = await m.source.query<{ within: string | null }>(
    'SELECT pg_get_partition_constraintdef(to_regclass($1)) AS within',
    [quoteTable(name)],
  );
  if (slots.length > 0 || row?.within == null) return null;
  const columns = table.columns.filter((c) => c.generated === '').map((c) => quoteIdent(c.name));
  const list = columns.join(', ');
  const above = quoteTable(parent);
  return [
    `SET LOCAL session_replication_role = replica; SET LOCAL statement_timeout = ${FILL_MS}`,
    `CREATE TEMP TABLE foreshard_taken ON COMMIT DROP AS SELECT ${list} FROM ${above} WITH NO DATA`,
    `WITH gone AS (DELETE FROM ${above} WHERE ${row.within} RETURNING ${list}) INSERT INTO foreshard_taken SELECT * FROM gone`,
    ...create,
    `INSERT INTO ${above} (${list}) OVERRIDING SYSTEM VALUE SELECT * FROM foreshard_taken`,
  ];
}

/** @returns whether it could be done now */
async function attempt(session: ShardSession, sql: readonly string[]): Promise<boolean> {
  try {
    await session.transaction([`SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`, ...sql]);
    return true;
  } catch (error) {
    if (NOT_NOW.has(errorCode(error))) return false;
    throw error;
  }
}

/** By shard: what changes whenever a partition is attached or detached there. Null of a table that is not partitioned. */
export type PartitionState = Readonly<Record<string, string>> | null;

/** As of now. */
export async function partitionState(m: Move, t: MovingTable): Promise<PartitionState> {
  const state: Record<string, string> = {};
  for (const session of [m.source, m.destination]) {
    const [row] = await session.query<{ state: string | null }>(
      // Whoever attaches one writes its row anew.
      `SELECT md5(string_agg(concat_ws(' ', i.inhrelid, i.inhparent, i.xmin), ',' ORDER BY i.inhrelid)) AS state
         FROM pg_partition_tree(to_regclass($1)) t JOIN pg_inherits i ON i.inhrelid = t.relid`,
      [t.sql],
    );
    if (row?.state != null) state[session.shard.name] = row.state;
  }
  return Object.keys(state).length === 0 ? null : state;
}

/** The states as of which tables have been compared, by `tableId`. */
function comparedStates(m: Move): Readonly<Record<string, PartitionState>> {
  return (m.row.facts.partitions ?? {}) as Readonly<Record<string, PartitionState>>;
}

/** Facts that say that a table is the same on both sides as of this state. */
export function comparedAs(m: Move, t: MovingTable, state: PartitionState): { partitions?: unknown } {
  return state === null ? {} : { partitions: { ...comparedStates(m), [tableId(t)]: state } };
}

/** Whether no partition has come or gone since the table was compared. */
export function isAsCompared(m: Move, t: MovingTable, state: PartitionState): boolean {
  const compared = comparedStates(m)[tableId(t)] ?? null;
  return state === null ? compared === null : sameState(compared, state);
}

export function sameState(a: PartitionState, b: PartitionState): boolean {
  const text = (state: PartitionState) => JSON.stringify(Object.entries(state ?? {}).sort());
  return text(a) === text(b);
}

/** Keeps partitions of moving tables from being attached and detached on both sides, for as long as a flip takes. */
export class PartitionLocks {
  readonly #sessions: ShardSession[] = [];

  /** @returns why it could not be had: the move has to look at its partitions again; null: it is had, and they are as they were compared */
  async take(m: Move): Promise<string | null> {
    for (const { shard, ...side } of [m.source, m.destination].map((session) => ({ session, shard: session.shard }))) {
      const parents = await side.session.query<{ name: string }>(
        `SELECT format('%I.%I', n.nspname, c.relname) AS name FROM unnest($1::text[]) t CROSS JOIN LATERAL pg_partition_tree(to_regclass(t)) part
           JOIN pg_class c ON c.oid = part.relid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p' ORDER BY 1`,
        [m.tables.map((t) => t.sql)],
      );
      if (parents.length === 0) continue;
      const session = await ShardSession.open(shard, null);
      this.#sessions.push(session);
      const tables = parents.map(({ name }) => `ONLY ${name}`).join(', ');
      // Not in the way of rows that are written; in that of CREATE TABLE … PARTITION OF, ATTACH, DETACH and DROP.
      const lock = `BEGIN; SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}; LOCK TABLE ${tables} IN SHARE UPDATE EXCLUSIVE MODE`;
      try {
        await session.query(lock);
      } catch (error) {
        if (!NOT_NOW.has(errorCode(error))) throw error;
        return `somebody changes or analyzes a partitioned table on shard "${shard.name}"`;
      }
    }
    if (this.#sessions.length === 0) return null;
    const difference = differenceOf(m, await read(m, m.source), await read(m, m.destination));
    if (difference !== null) return difference;
    for (const t of m.tables)
      if (!isAsCompared(m, t, await partitionState(m, t)))
        return `partitions of "${tableId(t)}" have come or gone since it was compared`;
    return null;
  }

  async release(): Promise<void> {
    await Promise.all(this.#sessions.splice(0).map((session) => session.close()));
  }
}

/** Both with those partitions only that both have: the others are for `settlePartitions`. */
export function withCommonPartitions(a: TableInfo, b: TableInfo): [TableInfo, TableInfo] {
  const ids = (info: TableInfo) => new Set((info.partitions ?? []).map((p) => tableId(p.table)));
  const [ofA, ofB] = [ids(a), ids(b)];
  const only = (info: TableInfo): TableInfo =>
    info.partitions === undefined
      ? info
      : {
          ...info,
          partitions: info.partitions.filter((p) => ofA.has(tableId(p.table)) && ofB.has(tableId(p.table))),
        };
  return [only(a), only(b)];
}
