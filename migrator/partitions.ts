import { errorCode } from '../topology/connection.js';
import { quoteIdent } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import type { Side as MoveSide } from './action.js';
import { storedGuardsSql, truncateGuardSql } from './guards.js';
import { attempt, LOCK_TIMEOUT_MS, makeThere, NOT_NOW } from './late-partition.js';
import type { Move, MovingTable } from './move.js';
import { listPartitions, type Partition } from './partition-list.js';
import { readWholeTable } from './schema-partitions.js';
import type { TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';
import { quietActions } from './trigger-actions.js';
import { asMeant } from './trigger-modes.js';

const placed = ({ name, parent, bound }: Partition) => JSON.stringify([name, parent, bound]);

/** What there is on one side. */
interface Side {
  readonly on: MoveSide;
  readonly session: ShardSession;
  readonly partitions: readonly Partition[];
  /** No trigger of a user's may fire for what is replicated there: rows come, or will come back. */
  readonly isQuiet: boolean;
}

/** First that to which rows come. */
function sidesOf(m: Move, here: readonly Partition[], there: readonly Partition[]): readonly Side[] {
  return [
    { on: 'destination', session: m.destination, partitions: there, isQuiet: true },
    { on: 'source', session: m.source, partitions: here, isQuiet: m.row.facts.wayBackMs !== undefined },
  ];
}

/**
 * Partitions that came to the source since the move began are made at the destination, and guarded on both sides: rows of theirs could not be
 * applied without. What is attached with rows, or detached, is not replicated; the comparison that follows sees it.
 * @returns what still keeps the two sides apart, and what to do about it; null: nothing
 */
export async function settlePartitions(m: Move): Promise<string | null> {
  const here = await listPartitions(m, m.source);
  let there = await listPartitions(m, m.destination);
  if (here.length + there.length === 0) return null;
  const known = new Set(there.map(placed));
  for (const partition of here.filter((p) => !known.has(placed(p)))) {
    const problem = await makeThere(m, partition);
    if (problem !== null) return problem;
  }
  there = await listPartitions(m, m.destination);
  for (const side of sidesOf(m, here, there)) {
    const waiting = (await guard(m, side)) ?? (await quiet(m, side));
    if (waiting !== null) return waiting;
  }
  if (there.some((p) => p.forced)) await writeAsOwner(m);
  return differenceOf(m, await listPartitions(m, m.source), there);
}

/** Those of its guards that a partition does not get from its parent, and lacks. */
function missingGuards({ names, tables }: Move, { of, name, guarded, unseen }: Partition): string[] {
  return [
    ...(guarded ? [] : [truncateGuardSql(names, name)]),
    ...(unseen ? storedGuardsSql(names, tables[of] as MovingTable, name) : []),
  ];
}

/** @returns what it waits for; null: all are guarded */
async function guard(m: Move, { session, partitions }: Side): Promise<string | null> {
  for (const p of partitions) {
    const sql = missingGuards(m, p);
    if (sql.length === 0) continue;
    m.exec.at('before:guard-partition');
    if (!(await attempt(session, sql)))
      return `waiting for a lock on partition "${tableId(p.name)}" on shard "${session.shard.name}"`;
    m.exec.at('after:guard-partition');
  }
  return null;
}

/** Triggers that came with a partition. @returns what it waits for; null: none fires for what is replicated */
async function quiet(m: Move, { on, session, partitions, isQuiet }: Side): Promise<string | null> {
  const loud = new Set(isQuiet ? partitions.filter((p) => p.loud).map((p) => p.of) : []);
  const { name: shard } = session.shard;
  for (const of of loud) {
    const { sql: name } = m.tables[of] as MovingTable;
    const table = await readWholeTable(session.reader, name);
    if (table === null) continue;
    const meant = asMeant(table, await m.exec.openCleanup('triggers'), shard);
    for (const { cleanup = [], sql } of quietActions(table, meant, on, shard)) {
      for (const record of cleanup) await m.exec.record(record);
      m.exec.at('recorded:quiet-partition');
      if (!(await attempt(session, sql))) return `waiting for a lock on partitions of ${name} on shard "${shard}"`;
      m.exec.at('after:quiet-partition');
    }
  }
  return null;
}

/** Of a partition that has come with row-level security forced, not even its owner may write the rows (PostgreSQL 16): see `subscriptionAction`. */
async function writeAsOwner({ destination, names: { replication } }: Move): Promise<void> {
  if (destination.version < 160_000) return;
  const found = await destination.query(
    `SELECT FROM pg_subscription WHERE subname = $1 AND NOT subrunasowner
        AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())`,
    [replication],
  );
  if (found.length > 0)
    await destination.query(`ALTER SUBSCRIPTION ${quoteIdent(replication)} SET (run_as_owner = true)`);
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
    const [here, there] = [await listPartitions(m, m.source), await listPartitions(m, m.destination)];
    const difference = differenceOf(m, here, there);
    if (difference !== null) return difference;
    for (const { session, partitions, isQuiet } of sidesOf(m, here, there)) {
      const bare = partitions.find((p) => missingGuards(m, p).length > 0 || (isQuiet && p.loud));
      if (bare !== undefined)
        return `partition "${tableId(bare.name)}" on shard "${session.shard.name}" has just come, and is not guarded yet`;
    }
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
