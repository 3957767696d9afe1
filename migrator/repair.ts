import { setTimeout as delay } from 'node:timers/promises';
import { errorCode } from '../topology/connection.js';
import { ForeshardError } from '../topology/errors.js';
import { tableId } from '../topology/topology.js';
import { goThroughGateSql, keepWritersWaitingSql } from './guards.js';
import { type RowsOf, rowsByKey } from './keyed-rows.js';
import type { MigrationRow } from './migration-row.js';
import type { Move, MovingTable } from './move.js';
import { countOf, replaceRows, type WrongRows, wrongRows } from './replace-rows.js';
import { hasAllWithin } from './replication.js';
import type { TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';
import { writersInFlight } from './writers-in-flight.js';

/** How long writers that come wait for those in flight before they are let go on, and how long until it is tried again, ms. */
const LOCK_MS = 250;
const LOCK_PAUSE_MS = 500;
/** How long it is tried, ms. */
const PATIENCE_MS = 20_000;
/** How long writers wait at most while rows are copied, ms. */
const COPY_MS = 5000;
/** How much longer than for all that they wait for somebody who says nothing any more, ms. */
const SILENCE_MS = 1000;

/** What has become of rows of one table that differed. */
export interface RepairedTable extends WrongRows {
  readonly table: string;
}

/** A repair that somebody has asked for. */
export interface Repair {
  /** `MigrationControls.repair` that it answers. */
  readonly request: string;
  /** When it ended, ISO 8601; null: it has not. */
  readonly at: string | null;
  readonly tables: readonly RepairedTable[];
  /** Why it went no further; null: it went through. Whether both sides are the same since, the last comparison says. */
  readonly refused: string | null;
}

export function lastRepair(row: Pick<MigrationRow, 'facts'>): Repair | null {
  return (row.facts.repair as Repair | undefined) ?? null;
}

/** The rows cannot be repaired now, or not at all. Those of this table are as they were. */
export class RepairRefusal extends ForeshardError {
  constructor(message: string, hint: string) {
    super('55000', message, { hint });
  }
}

/**
 * Makes the rows with these keys at the destination what they are at the source, value by value. Meanwhile nobody writes to the interval there, and the destination has
 * applied all that has been written: what is read is what replication goes on from. Neither triggers nor foreign keys act.
 * @throws RepairRefusal
 */
export async function repairRows(
  m: Move,
  t: MovingTable,
  info: TableInfo,
  keys: readonly string[],
): Promise<RepairedTable> {
  const rows: RowsOf = { sql: t.sql, where: t.predicate(), info };
  // Connected before anybody waits.
  const reader = await ShardSession.open(m.source.shard, null);
  try {
    return await whileNobodyWrites(m, async () => {
      if (!(await hasAllWithin(m, m.options.drainMs)))
        throw new RepairRefusal(
          `shard "${m.spec.to}" did not apply what shard "${m.spec.from}" has written within ${m.options.drainMs} ms`,
          'Ask again when replication has caught up.',
        );
      const here = await rowsByKey(reader, rows, keys);
      const there = await rowsByKey(m.destination, rows, keys);
      const wrong = wrongRows(here, there);
      if (countOf(wrong) > 0) await replaceAtDestination(m, rows, reader, wrong);
      return { table: tableId(t), ...wrong };
    });
  } finally {
    await reader.close();
  }
}

/** With the lock of the guards, which all writers of the interval share, and which is let go when our session ends. */
async function whileNobodyWrites<T>(m: Move, work: () => Promise<T>): Promise<T> {
  const until = performance.now() + PATIENCE_MS;
  const keepWaiting = keepWritersWaitingSql(m.names, LOCK_MS, m.options.drainMs + COPY_MS + SILENCE_MS);
  for (;;) {
    try {
      await m.source.query(keepWaiting);
      break;
    } catch (error) {
      if (errorCode(error) !== '55P03') throw error;
    }
    const writers = (await writersInFlight(m)).slice(0, 5).join(', ');
    if (performance.now() >= until)
      throw new RepairRefusal(
        `transactions kept writing to the interval for ${PATIENCE_MS / 1000} s: ${writers}`,
        'Ask again when they have ended.',
      );
    await m.exec.progress({ note: `to repair rows, waiting for ${writers}` });
    m.exec.check();
    await delay(LOCK_PAUSE_MS);
  }
  try {
    return await work();
  } finally {
    await m.source.query(goThroughGateSql(m.names));
  }
}

/** In one transaction of the destination. */
async function replaceAtDestination(m: Move, rows: RowsOf, reader: ShardSession, wrong: WrongRows): Promise<void> {
  const { destination } = m;
  const signal = AbortSignal.timeout(COPY_MS);
  await destination.query(
    `BEGIN; SET LOCAL session_replication_role = replica; SET LOCAL lock_timeout = ${LOCK_MS}; SET LOCAL statement_timeout = ${COPY_MS}`,
  );
  try {
    m.exec.at('before:replace-rows');
    await replaceRows(reader, destination, rows, wrong, signal);
    m.exec.at('after:replace-rows');
    // A session that has been ended for its silence keeps nobody waiting any more: what was read may be old.
    await m.source.query('SELECT');
    await destination.query('COMMIT');
  } catch (error) {
    await destination.query('ROLLBACK').catch(() => undefined); // the first error says more
    throw refusal(m, rows, error, signal.aborted);
  }
}

/** SQLSTATEs of what the rows themselves are in the way of, or somebody who uses them. */
const REFUSED = /^(22|23|42501|53|54|55P03|40P01|57014)/;

function refusal(m: Move, { sql }: RowsOf, error: unknown, isLate: boolean): unknown {
  const anew = `Abort the migration ("foreshard migrate abort ${m.row.id}"), and start it again.`;
  if (isLate) return new RepairRefusal(`the rows of ${sql} could not be copied within ${COPY_MS} ms`, anew);
  if (!REFUSED.test(errorCode(error))) return error;
  const { message, detail } = error as Error & { detail?: string };
  return new RepairRefusal(
    `the rows of ${sql} cannot be written on shard "${m.spec.to}": ${message}${detail === undefined ? '' : ` (${detail})`}`,
    `Find out who else writes there. ${anew}`,
  );
}
