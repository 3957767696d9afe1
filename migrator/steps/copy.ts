import { quoteLiteral, quoteTable } from '../../topology/quote.js';
import type { TableName } from '../../topology/topology.js';
import { MigrationFailure } from '../executor.js';
import { type CopiedTable, LostCopies } from '../lost-copy.js';
import type { Move } from '../move.js';
import { unpaceTableAction } from '../pace.js';
import { fromLeaves, readWholeTable } from '../schema-partitions.js';
import { type FinishItem, finishForeignKeys, finishIndexes } from '../schema-sql.js';
import { Supervisor } from '../supervisor.js';
import { Throttle } from '../throttle.js';
import { measureVolumes, sumOf } from '../volumes.js';
import { readSourceTables } from './prepare.js';

/** Copies that may be lost before the migration is given up. */
const MAX_LOST = 5;

/** copying → catching_up: waits for the copy, then builds what was left out for its sake. Or → preparing, when it has to begin again. */
export async function copy(m: Move): Promise<void> {
  m.exec.at('before:copy-wait');
  if (m.exec.dry)
    await m.exec.wait('every table is copied and follows the source (pg_subscription_rel: all "r")', async () => true);
  else {
    const lost = await waitForCopy(m);
    if (lost !== null) return copyAgain(m, lost);
  }
  m.exec.at('after:copy-wait');
  for (const t of m.tables) await m.exec.perform(unpaceTableAction(m.names, t));

  await buildAll(m);
  m.exec.at('after:create-indexes');
  for (const t of m.tables)
    await m.exec.perform({
      name: 'analyze-table',
      on: 'destination',
      text: `analyze ${t.schema}.${t.table}`,
      mode: 'single',
      sql: [`ANALYZE ${t.sql}`],
    });
  m.exec.at('after:analyze');
  m.row = await m.exec.transition(m.row, 'catching_up');
}

async function copyAgain(m: Move, table: string): Promise<void> {
  const lost = Number(m.row.facts.lostCopies ?? 0) + 1;
  const why = `shard "${m.spec.to}" went away just as the copy of ${table} ended there`;
  if (lost > MAX_LOST)
    throw new MigrationFailure(
      `the copy was lost ${lost} times; the last one because ${why}`,
      'See in the log of that server why it goes away, then start the migration again.',
    );
  m.row = await m.exec.transition(m.row, 'preparing', {
    facts: { lostCopies: lost, forgetCopy: true },
    detail: { why: `${why}: it begins again` },
  });
}

/** Indexes, then foreign keys, one at a time: when every table has its rows and its indexes. */
async function buildAll(m: Move): Promise<void> {
  const infos = await readSourceTables(m, readWholeTable);
  const items = [finishIndexes, finishForeignKeys].flatMap((itemsOf) =>
    infos.flatMap(fromLeaves).flatMap((info) => itemsOf(info).map((item) => ({ info, item }))),
  );
  for (const [i, { info, item }] of items.entries()) {
    await m.exec.progress({ note: `building ${item.kind} ${item.name} (${i + 1} of ${items.length})` });
    await build(m, info, item);
  }
  await m.exec.progress({ note: null });
}

async function build(m: Move, table: TableName, item: FinishItem): Promise<void> {
  const name = quoteLiteral(item.name);
  const regclass = `to_regclass(${quoteLiteral(quoteTable(table))})`;
  // A build cannot be slowed down; it can be kept from taking more than one processor.
  const isThrottled = new Throttle(m).limits.maxRate !== null;
  await m.exec.perform({
    name: 'create-index',
    on: 'destination',
    text: `build ${item.kind} ${item.name}`,
    mode: 'single',
    present:
      item.kind === 'constraint'
        ? `SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = ${regclass} AND conname = ${name}) AS present`
        : `SELECT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE x.indrelid = ${regclass} AND c.relname = ${name}) AS present`,
    sql: [`${isThrottled ? 'SET' : 'RESET'} max_parallel_maintenance_workers${isThrottled ? ' = 0' : ''}`, item.sql],
  });
}

/** @returns the table whose copy was lost, so that all has to be copied again; null: every table is there */
async function waitForCopy(m: Move): Promise<string | null> {
  const measured = await measureVolumes(m);
  const volumes = new Map(measured.map((v) => [v.name, v]));
  const total = sumOf(measured);
  const supervisor = new Supervisor(m);
  const throttle = new Throttle(m);
  const lostCopies = new LostCopies(m);
  let lost: string | null = null;
  const name = quoteLiteral(m.names.replication);
  const started = performance.now();
  let first: number | null = null;
  // The marker is one of them.
  const expected = m.tables.length + 1;
  await m.exec.wait(
    'every table is copied and follows the source',
    async () => {
      const state = await supervisor.check();
      const tables = await m.destination.query<CopiedTable & { tuples: string | null; bytes: string | null }>(
        `SELECT r.srrelid::regclass::text AS name, r.srsubstate AS state, format('pg_%s_sync_%s_', s.oid, r.srrelid) AS slot, p.tuples_processed::text AS tuples, p.bytes_processed::text AS bytes
           FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
           LEFT JOIN pg_stat_progress_copy p ON p.relid = r.srrelid AND p.command = 'COPY FROM' AND p.type = 'CALLBACK'
          WHERE s.subname = ${name}`,
      );
      await throttle.paceCopy(tables.filter((t) => t.state === 'd').length);
      let rows = 0;
      let bytes = 0;
      for (const t of tables) {
        const volume = volumes.get(t.name) ?? { rows: 0, bytes: 0 };
        // i: not begun, d: copying; from f on its rows are there.
        if (t.state === 'i' || t.state === 'd') {
          rows += Math.min(Number(t.tuples ?? 0), volume.rows);
          bytes += Math.min(Number(t.bytes ?? 0), volume.bytes);
        } else {
          rows += volume.rows;
          bytes += volume.bytes;
        }
      }
      first ??= bytes;
      const rate = ((bytes - first) * 1000) / Math.max(1, performance.now() - started);
      await m.exec.progress({
        rowsCopied: rows,
        rowsTotal: total.rows,
        bytesCopied: bytes,
        bytesTotal: total.bytes,
        bytesPerSecond: rate,
        lagBytes: state.lagBytes,
        etaSeconds: rate > 0 ? (total.bytes - bytes) / rate : null,
        note: state.note ?? throttle.note,
      });
      lost = await lostCopies.look(tables);
      return lost !== null || (tables.length === expected && tables.every((t) => t.state === 'r'));
    },
    { everyMs: 100 },
  );
  await throttle.release();
  if (lost !== null) return lost;
  await m.exec.progress({
    rowsCopied: total.rows,
    rowsTotal: total.rows,
    bytesCopied: total.bytes,
    bytesTotal: total.bytes,
    // Over the whole of the copy, also when it was too quick to be seen at work.
    bytesPerSecond: ((total.bytes - (first === total.bytes ? 0 : (first ?? 0))) * 1000) / (performance.now() - started),
    etaSeconds: 0,
  });
  return null;
}
