import { type Topology, tableId } from '../../topology/topology.js';
import { compareLive, tableSum } from '../compare.js';
import { type ComparedTable, lastComparison, type RequestedComparison } from '../comparison.js';
import { MigrationFailure } from '../executor.js';
import type { Move } from '../move.js';
import { shapeDifferences } from '../preflight.js';
import { readTable } from '../schema-read.js';
import { readSourceTables } from './prepare.js';

const WHY_ROWS_DIFFER =
  'Something else writes to the destination, or a column does not survive replication: compare these rows on both shards.';
/** Keys of differing rows that are kept for people, per table. */
const KEYS_KEPT = 20;

/** verifying → ready, or following: every table by hash, while it is written to. Tables that have passed are not read again after a crash. */
export async function verify(m: Move): Promise<void> {
  m.exec.at('before:verify');
  if (m.exec.dry) await m.exec.wait('every table is compared, by hash, on both sides', async () => true);
  else await verifyTables(m);
  m.exec.at('after:verify');
  const follows = m.row.replica !== null && m.row.requested !== 'promote';
  m.row = await m.exec.transition(m.row, follows ? 'following' : 'ready');
}

async function verifyTables(m: Move): Promise<void> {
  const infos = await readSourceTables(m);
  for (const [i, t] of m.tables.entries()) {
    const verified = (m.row.facts.verified ?? {}) as Readonly<Record<string, number>>;
    const info = infos[i];
    if (info === undefined || verified[tableId(t)] !== undefined) continue;
    await m.exec.progress({ note: `comparing ${tableId(t)}` });
    const { rows, differing } = await compareLive(m, t, info);
    if (differing.length > 0)
      throw new MigrationFailure(
        `${differing.length} rows of "${tableId(t)}" differ between the shards, among them ${differing.slice(0, 3).join(', ')}`,
        WHY_ROWS_DIFFER,
      );
    m.row = await m.exec.noteFacts(m.row, { verified: { ...verified, [tableId(t)]: rows } });
  }
  await m.exec.progress({ note: null });
}

/**
 * Compares all tables once more when somebody has asked for it, and notes what was found: as `facts.comparison`, a `RequestedComparison`.
 * @param view the same migration with source and destination as they are now
 * @returns whether it has
 */
export async function compareOnRequest(m: Move, view: Move): Promise<boolean> {
  const request = m.exec.controls.comparison;
  if (request === null || lastComparison(m.row)?.request === request) return false;
  const infos = await readSourceTables(view);
  const tables: ComparedTable[] = [];
  for (const [i, t] of view.tables.entries()) {
    const info = infos[i];
    if (info === undefined) continue;
    await m.exec.progress({ note: `comparing ${tableId(t)}, as asked for (${i + 1} of ${view.tables.length})` });
    const began = performance.now();
    const { rows, differing } = await compareLive(view, t, info);
    tables.push({
      table: tableId(t),
      rows,
      ms: Math.round(performance.now() - began),
      differing: differing.length,
      keys: differing.slice(0, KEYS_KEPT),
    });
  }
  const comparison: RequestedComparison = { request, at: m.exec.now.toISOString(), tables };
  m.row = await m.exec.noteFacts(m.row, { comparison });
  await m.exec.progress({ note: null });
  return true;
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
  const infos = await readSourceTables(m);
  for (const [i, t] of m.tables.entries()) {
    const there = await readTable(m.destination.reader, t.sql);
    const here = infos[i];
    if (here === undefined) continue;
    const differences = there === null ? ['the table is gone'] : shapeDifferences(here, there);
    if (differences.length > 0)
      throw new MigrationFailure(
        `table "${tableId(t)}" was changed during the move: ${differences.slice(0, 3).join('; ')}`,
        'Change tables before or after a move, then start the migration again.',
      );
  }
}

/**
 * The exact comparison, after the flip: the source is frozen by its gate, the destination is read in a snapshot that was
 * taken between drain and flip. @returns what differs, or null
 */
export async function compareExactly(m: Move): Promise<string | null> {
  const snapshot = m.snapshot;
  if (snapshot === null) return null;
  const infos = await readSourceTables(m);
  const differing: string[] = [];
  for (const [i, t] of m.tables.entries()) {
    const info = infos[i];
    if (info === undefined) continue;
    const [a, b] = await Promise.all([tableSum(m.source, t, info), tableSum(snapshot, t, info)]);
    if (a.rows !== b.rows || a.hash !== b.hash)
      differing.push(
        `"${tableId(t)}": ${a.rows} rows at the source, ${b.rows} at the destination${a.rows === b.rows ? ', with other contents' : ''}`,
      );
  }
  return differing.length === 0 ? null : differing.join('; ');
}
