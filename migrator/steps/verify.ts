import { type Topology, tableId } from '../../topology/topology.js';
import { type Comparison, compareFrozen, compareLive, type Place } from '../compare.js';
import {
  areAllNamed,
  type ComparedTable,
  type ComparisonResult,
  differingTables,
  lastComparison,
  withinBounds,
} from '../comparison.js';
import { ComparisonRun } from '../comparison-run.js';
import { type DifferedTable, differedTable, KEYS_KEPT } from '../differed.js';
import { MigrationFailure } from '../executor.js';
import { checkArrived } from '../halves-arrived.js';
import { type RowsOf, rowsByKey } from '../keyed-rows.js';
import type { Move } from '../move.js';
import {
  comparedAs,
  isAsCompared,
  type PartitionState,
  partitionState,
  sameState,
  withCommonPartitions,
} from '../partitions.js';
import { wrongRows } from '../replace-rows.js';
import { doubtText, sampledDifference } from '../sampled.js';
import { readWholeTable, shapeDifferences } from '../schema-partitions.js';
import { Throttle } from '../throttle.js';
import { asMeant } from '../trigger-modes.js';
import { readSourceTables } from './prepare.js';
import { repairOnRequest } from './repair.js';
import { waitWhile } from './wait-while.js';

const WHY_ROWS_DIFFER =
  'Something else writes to the destination, a column does not survive replication, or a partition was attached with rows or detached, which is not replicated: compare these rows on both shards. Then start the migration again: it copies all anew.';
/** Keys of differing rows in the text of an error, and in an event, per table. */
const KEYS_TOLD = 3;
const KEYS_IN_EVENTS = 20;

/** How often the catalog is told where a comparison is, ms: what comes after that is compared again after a crash. */
const NOTE_MS = 1000;

/**
 * verifying → ready, or following: every table by hash, while it is written to. What has passed is not read again after a crash. Rows that differ are for somebody to have
 * repaired, or to abort the migration for.
 */
export async function verify(m: Move): Promise<void> {
  m.exec.at('before:verify');
  if (m.exec.dry) await m.exec.wait('every table is compared, by hash, on both sides', async () => true);
  else {
    if (differingTables(m.row).length === 0) await verifyTables(m);
    if (differingTables(m.row).length > 0) await waitUntilSame(m);
    await checkArrived(m);
  }
  m.exec.at('after:verify');
  const follows = m.row.replica !== null && m.row.requested !== 'promote';
  m.row = await m.exec.transition(m.row, follows ? 'following' : 'ready');
}

async function waitUntilSame(m: Move): Promise<void> {
  await waitWhile(m, 'both sides are the same', async () => {
    await answerRequests(m, m);
    const differing = differingTables(m.row);
    if (differing.length === 0) return null;
    return `both sides differ: "foreshard migrate verify ${m.row.id} --repair", or "foreshard migrate abort ${m.row.id}": ${doubtText(differing)}`;
  });
}

/** Does what people ask for while both sides follow one another. @param view the same migration with source and destination as they are now */
export async function answerRequests(m: Move, view: Move): Promise<void> {
  await repairOnRequest(m, view);
  await compareOnRequest(m, view);
}

/** Where the comparison of a table was when it was last noted. */
interface Unfinished extends Place {
  readonly table: string;
  readonly partitions: PartitionState;
}

async function verifyTables(m: Move): Promise<void> {
  const run = await ComparisonRun.begin(m, new Throttle(m));
  const found: ComparedTable[] = [];
  for (const { t, info, volume } of run.tables) {
    const id = tableId(t);
    const verified = (m.row.facts.verified ?? {}) as Readonly<Record<string, number>>;
    const partitions = await partitionState(m, t);
    if (verified[id] !== undefined && isAsCompared(m, t, partitions)) {
      run.skip(verified[id]);
      continue;
    }
    const unfinished = m.row.facts.verifying as Unfinished | null | undefined;
    const began = performance.now();
    let notedAt = began;
    const how = run.how(volume, `comparing ${id}`, {
      ...(unfinished?.table === id && sameState(unfinished.partitions, partitions) ? { from: unfinished } : {}),
      passed: async (place) => {
        if (place.after === null || performance.now() - notedAt < NOTE_MS) return;
        m.row = await m.exec.noteFacts(m.row, { verifying: { table: id, partitions, ...place } satisfies Unfinished });
        notedAt = performance.now();
      },
    });
    const compared = comparedTable(id, await compareLive(m, t, info, how), began);
    if (compared.differing > 0) found.push(compared);
    const passed = compared.differing === 0 ? { verified: { ...verified, [id]: compared.rows } } : {};
    m.row = await m.exec.noteFacts(m.row, { ...passed, ...comparedAs(m, t, partitions), verifying: null });
  }
  await run.end();
  if (found.length > 0) await noteDifference(m, found);
}

/** @throws MigrationFailure when so many rows differ that they have to be copied anew */
async function noteDifference(m: Move, found: readonly ComparedTable[]): Promise<void> {
  const tables = withinBounds(found);
  const comparison: ComparisonResult = { request: null, at: m.exec.now.toISOString(), tables };
  const differing = tables.map(({ table, differing, keys }) => ({
    table,
    differing,
    keys: keys.slice(0, KEYS_IN_EVENTS),
  }));
  m.log.error({ migration: m.row.id.toString(), differing }, 'both sides differ before the flip');
  m.row = await m.exec.noteFacts(m.row, { comparison }, { differing });
  if (areAllNamed(tables)) return;
  const text = tables.map((t) => `${t.differing} rows of "${t.table}"`).join(', ');
  const keys = tables.flatMap((t) => t.keys).slice(0, KEYS_TOLD);
  throw new MigrationFailure(
    `${text} differ between the shards, among them ${keys.join(', ')}: more than can be repaired`,
    WHY_ROWS_DIFFER,
  );
}

function comparedTable(table: string, { rows, differing, chunks }: Comparison, began: number): ComparedTable {
  const ms = Math.round(performance.now() - began);
  return { table, rows, ms, differing: differing.length, keys: differing, chunks };
}

/** Compares all tables once more when somebody has asked for it, and notes what was found: as `facts.comparison`, a `ComparisonResult`. */
async function compareOnRequest(m: Move, view: Move): Promise<void> {
  const request = m.exec.controls.comparison;
  if (request === null || lastComparison(m.row)?.request === request) return;
  const run = await ComparisonRun.begin(view, new Throttle(view));
  const found: ComparedTable[] = [];
  for (const [i, { t, info, volume }] of run.tables.entries()) {
    const began = performance.now();
    const how = run.how(volume, `comparing ${tableId(t)}, as asked for (${i + 1} of ${run.tables.length})`);
    found.push(comparedTable(tableId(t), await compareLive(view, t, info, how), began));
  }
  const tables = withinBounds(found);
  const comparison: ComparisonResult = { request, at: m.exec.now.toISOString(), tables };
  const isSame = tables.every((t) => t.differing === 0);
  // What samples had found has been put right, or is named by now.
  const sampled = isSame ? null : sampledDifference(m.row);
  m.row = await m.exec.noteFacts(m.row, { comparison, sampled: sampled && { ...sampled, compared: true } });
  await run.end();
}

/**
 * Compares the tables whose partitions have come or gone since they were compared.
 * @param view the migration with source and destination as they are now @returns what differs, or null
 */
export async function compareChangedPartitions(m: Move, view: Move): Promise<string | null> {
  const changed = new Map<string, PartitionState>();
  for (const t of m.exec.dry ? [] : view.tables) {
    const partitions = await partitionState(view, t);
    if (!isAsCompared(m, t, partitions)) changed.set(tableId(t), partitions);
  }
  if (changed.size === 0) return null;
  const run = await ComparisonRun.begin(view, new Throttle(view));
  for (const { t, info, volume } of run.tables) {
    const partitions = changed.get(tableId(t));
    if (partitions === undefined) continue;
    const how = run.how(volume, `comparing ${tableId(t)}, whose partitions have changed`);
    const { differing } = await compareLive(view, t, info, how);
    if (differing.length > 0)
      return `${differing.length} rows of "${tableId(t)}", whose partitions have changed, differ between the shards, among them ${differing.slice(0, KEYS_TOLD).join(', ')}: see "foreshard migrate verify ${m.row.id}"`;
    m.row = await m.exec.noteFacts(m.row, comparedAs(m, t, partitions));
  }
  await run.end();
  return null;
}

/** @throws MigrationFailure when tables have been declared that the migration did not begin with */
export function refuseNewTables(m: Move, now: Topology): void {
  const keyspace = now.keyspaces.get(m.keyspace.name);
  const begun = m.row.facts.tables as readonly string[];
  const added = [
    ...(keyspace?.tables ?? []).map(tableId),
    ...[...now.referenceTables.values()].filter((t) => !t.shards.includes(m.spec.to)).map(tableId),
  ].filter((t) => !begun.includes(t));
  if (added.length > 0)
    throw new MigrationFailure(
      `tables were added during the move: ${added.join(', ')}`,
      'Start the migration again: it will take them along.',
    );
}

/** Somebody may have changed a table on one side since. @throws MigrationFailure when the two no longer match */
export async function checkShapes(m: Move): Promise<void> {
  const infos = await readSourceTables(m, readWholeTable);
  const quieted = await m.exec.openCleanup('triggers');
  for (const [i, t] of m.tables.entries()) {
    const there = await readWholeTable(m.destination.reader, t.sql);
    const here = infos[i];
    if (here === undefined) continue;
    const differences =
      there === null
        ? ['the table is gone']
        : shapeDifferences(
            ...withCommonPartitions(asMeant(here, quieted, m.spec.from), asMeant(there, quieted, m.spec.to)),
          );
    if (differences.length > 0)
      throw new MigrationFailure(
        `table "${tableId(t)}" was changed during the move: ${differences.slice(0, 3).join('; ')}`,
        'Change tables before or after a move, then start the migration again.',
      );
  }
}

/**
 * The exact comparison, after the flip: the source is frozen by its gate, the destination is read in a snapshot that was
 * taken between drain and flip. It keeps to no rate, as that snapshot, and the log for the way back, are kept for as long as it takes.
 * @returns tables that differ
 */
export async function compareExactly(m: Move): Promise<DifferedTable[]> {
  const { snapshot } = m;
  if (snapshot === null) return [];
  const run = await ComparisonRun.begin(m, new Throttle(m, { hasRate: false }));
  const found: DifferedTable[] = [];
  let left = KEYS_KEPT;
  for (const { t, info, volume } of run.tables) {
    const how = run.how(volume, `comparing ${tableId(t)} as of the flip`);
    const { differing } = await compareFrozen(m, snapshot, t, info, how);
    if (differing.length === 0) continue;
    const rows: RowsOf = { sql: t.sql, where: t.predicate(), info };
    const kept = differing.slice(0, left);
    left -= kept.length;
    const wrong = wrongRows(await rowsByKey(m.source, rows, kept), await rowsByKey(snapshot, rows, kept));
    found.push(differedTable(tableId(t), differing.length, wrong));
  }
  await run.end();
  return found;
}
