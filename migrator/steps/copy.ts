import { quoteLiteral } from '../../topology/quote.js';
import { isReference, type Move } from '../move.js';
import { type FinishItem, finishForeignKeys, finishIndexes } from '../schema-sql.js';
import { Supervisor } from '../supervisor.js';
import { Throttle } from '../throttle.js';
import { readSourceTables } from './prepare.js';

/** Rows up to which they are counted rather than estimated. */
const COUNT_BELOW = 2_000_000;

interface Volume {
  readonly rows: number;
  readonly bytes: number;
}

/** copying → catching_up: waits for the copy, then builds what was left out for its sake. */
export async function copy(m: Move): Promise<void> {
  m.exec.at('before:copy-wait');
  if (!m.exec.dry) await waitForCopy(m);
  else
    await m.exec.wait('every table is copied and follows the source (pg_subscription_rel: all "r")', async () => true);
  m.exec.at('after:copy-wait');

  await m.exec.progress({ note: 'building indexes' });
  const infos = await readSourceTables(m);
  for (const info of infos) for (const item of finishIndexes(info)) await build(m, info.oid, info, item);
  for (const info of infos) for (const item of finishForeignKeys(info)) await build(m, info.oid, info, item);
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

async function build(m: Move, _oid: string, table: { schema: string; table: string }, item: FinishItem): Promise<void> {
  const name = quoteLiteral(item.name);
  const relation = m.tables.find((t) => t.schema === table.schema && t.table === table.table)?.sql as string;
  const regclass = `to_regclass(${quoteLiteral(relation)})`;
  await m.exec.perform({
    name: 'create-index',
    on: 'destination',
    text: `build ${item.kind} ${item.name}`,
    mode: 'single',
    present:
      item.kind === 'constraint'
        ? `SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = ${regclass} AND conname = ${name}) AS present`
        : `SELECT EXISTS (SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE x.indrelid = ${regclass} AND c.relname = ${name}) AS present`,
    sql: [item.sql],
  });
}

async function waitForCopy(m: Move): Promise<void> {
  const volumes = await measureVolumes(m);
  const total = sum([...volumes.values()]);
  const supervisor = new Supervisor(m);
  const throttle = new Throttle(m);
  const name = quoteLiteral(m.names.replication);
  const started = performance.now();
  let first: number | null = null;
  // The marker is one of them.
  const expected = m.tables.length + 1;
  await m.exec.wait(
    'every table is copied and follows the source',
    async () => {
      const state = await supervisor.check();
      const tables = await m.destination.query<{
        name: string;
        state: string;
        tuples: string | null;
        bytes: string | null;
      }>(
        `SELECT r.srrelid::regclass::text AS name, r.srsubstate AS state, p.tuples_processed::text AS tuples, p.bytes_processed::text AS bytes
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
      return tables.length === expected && tables.every((t) => t.state === 'r');
    },
    { everyMs: 100 },
  );
  await throttle.release();
  await m.exec.progress({
    rowsCopied: total.rows,
    rowsTotal: total.rows,
    bytesCopied: total.bytes,
    bytesTotal: total.bytes,
    // Over the whole of the copy, also when it was too quick to be seen at work.
    bytesPerSecond: ((total.bytes - (first === total.bytes ? 0 : (first ?? 0))) * 1000) / (performance.now() - started),
    etaSeconds: 0,
  });
}

/** Rows and bytes of each table's part of the interval, by the name that regclass prints. Counted when that is quick, else the planner's estimate. */
async function measureVolumes(m: Move): Promise<Map<string, Volume>> {
  const volumes = new Map<string, Volume>();
  for (const t of m.tables) {
    const [facts] = await m.source.query<{ name: string; tuples: number; bytes: string }>(
      `SELECT c.oid::regclass::text AS name, greatest(c.reltuples, 0)::float8 AS tuples, pg_table_size(c.oid)::text AS bytes
         FROM pg_class c WHERE c.oid = to_regclass($1)`,
      [t.sql],
    );
    if (facts === undefined) continue;
    let whole = facts.tuples;
    let rows: number;
    if (whole < COUNT_BELOW && Number(facts.bytes) < COUNT_BELOW * 100) {
      const [counted] = await m.source.query<{ n: number; all: number }>(
        `SELECT count(*) FILTER (WHERE ${t.predicate()})::float8 AS n, count(*)::float8 AS all FROM ${t.sql}`,
      );
      rows = counted?.n ?? 0;
      whole = counted?.all ?? 0;
    } else if (isReference(t)) rows = whole;
    else {
      const plan = await m.source.query<{ 'QUERY PLAN': { Plan: { 'Plan Rows': number } }[] }>(
        `EXPLAIN (FORMAT JSON) SELECT FROM ${t.sql} WHERE ${t.predicate()}`,
      );
      rows = plan[0]?.['QUERY PLAN'][0]?.Plan['Plan Rows'] ?? 0;
    }
    volumes.set(facts.name, { rows, bytes: whole > 0 ? Math.round((Number(facts.bytes) * rows) / whole) : 0 });
  }
  return volumes;
}

function sum(volumes: readonly Volume[]): Volume {
  return volumes.reduce((a, v) => ({ rows: a.rows + v.rows, bytes: a.bytes + v.bytes }), { rows: 0, bytes: 0 });
}
