import { errorCode } from '../topology/connection.js';
import { quoteIdent, quoteTable } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import { makeFunctions } from './make-functions.js';
import type { Move, MovingTable } from './move.js';
import { backNames } from './names.js';
import type { Partition } from './partition-list.js';
import type { Finding } from './preflight-finding.js';
import { checkPartition } from './preflight-partitions.js';
import { createPartitionSql, readWholeTable } from './schema-partitions.js';
import type { TableInfo } from './schema-read.js';
import { partitionBehaviourSql } from './schema-triggers.js';
import type { ShardSession } from './shard-session.js';
import { asMeant, loudRecord } from './trigger-modes.js';

/** How long what locks an application's table for a partition's sake may make others queue, ms. */
export const LOCK_TIMEOUT_MS = 200;
/** SQLSTATEs of a lock that was not to be had in time, of a deadlock, and of something that has changed since it was looked at. */
export const NOT_NOW: ReadonlySet<string> = new Set(['55P03', '40P01', '57014', '42P01', '42P07', '42710']);
/** How long a statement takes at most that takes rows of a new partition from the default one, ms: nobody else gets at these meanwhile. */
const FILL_MS = 5000;
/** Of a default partition that has rows of a new one. */
const CHECK_VIOLATION = '23514';

/**
 * Makes a partition at the destination that has come to the source since the move began: with its indexes, and with its triggers and policies, which are
 * its parent's and its own; the triggers quiet, as all are there. @returns why it cannot be made now; null: it is there
 */
export async function makeThere(m: Move, partition: Partition): Promise<string | null> {
  const id = tableId(partition.name);
  const root = m.tables[partition.of] as MovingTable;
  const whole = await readWholeTable(m.source.reader, root.sql);
  const there = await readWholeTable(m.destination.reader, root.sql);
  const quieted = await m.exec.openCleanup('triggers');
  const meant = whole === null ? null : asMeant(whole, quieted, m.spec.from);
  const made = meant?.partitions?.find((p) => tableId(p.table) === id);
  if (meant === null || made === undefined || there === null) return `partition "${id}" has just changed`;
  const findings: Finding[] = [];
  await checkPartition(m, root, meant, made.table, (severity, text, remedy) =>
    findings.push({ severity, text, remedy }),
  );
  const blocker = findings.find((f) => f.severity === 'blocker');
  if (blocker !== undefined) return `${blocker.text}: ${blocker.remedy}`;

  await makeFunctions(m, [made.table], [made.table.schema]);
  const before = asMeant(there, quieted, m.spec.to);
  const loud = loudRecord({ ...before, partitions: [...(before.partitions ?? []), made] }, m.spec.to);
  if (loud !== null) await m.exec.record(loud);
  m.exec.at('recorded:make-partition');
  const parent = [meant, ...(meant.partitions ?? []).map((p) => p.table)].find(
    (t) => tableId(t) === tableId(made.parent),
  ) as TableInfo;
  const create = [...createPartitionSql(made, true), ...partitionBehaviourSql(made.table, parent)];
  const waiting = `partition "${id}" is to be made on shard "${m.spec.to}": waiting for a lock on "${tableId(made.parent)}"`;
  try {
    if (!(await attempt(m.destination, create))) return waiting;
  } catch (error) {
    if (errorCode(error) !== CHECK_VIOLATION) throw error;
    const fill = await fillSql(m, partition, made.table, create);
    if (fill === null || !(await attempt(m.destination, fill)))
      return `${waiting}, or for you: the default partition there has rows of it; make it there as on shard "${m.spec.from}", with these rows (as session_replication_role = replica)`;
  }
  m.exec.at('after:make-partition');
  return null;
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
export async function attempt(session: ShardSession, sql: readonly string[]): Promise<boolean> {
  try {
    await session.transaction([`SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`, ...sql]);
    return true;
  } catch (error) {
    if (NOT_NOW.has(errorCode(error))) return false;
    throw error;
  }
}
