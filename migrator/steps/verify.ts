import { tableId } from '../../topology/topology.js';
import { compareLive, tableSum } from '../compare.js';
import { MigrationFailure } from '../executor.js';
import type { Move } from '../move.js';
import { shapeDifferences } from '../preflight.js';
import { readTable } from '../schema-read.js';
import { readSourceTables } from './prepare.js';

/** verifying → ready: every table by hash, while it is written to. Tables that have passed are not read again after a crash. */
export async function verify(m: Move): Promise<void> {
  m.exec.at('before:verify');
  if (m.exec.dry) await m.exec.wait('every table is compared, by hash, on both sides', async () => true);
  else await verifyTables(m);
  m.exec.at('after:verify');
  m.row = await m.exec.transition(m.row, 'ready');
}

async function verifyTables(m: Move): Promise<void> {
  const infos = await readSourceTables(m);
  for (const [i, t] of m.tables.entries()) {
    const verified = (m.row.facts.verified ?? {}) as Readonly<Record<string, number>>;
    const info = infos[i];
    if (info === undefined || verified[tableId(t)] !== undefined) continue;
    await m.exec.progress({ note: `comparing ${tableId(t)}` });
    const rows = await compareLive(m, t, info);
    m.row = await m.exec.noteFacts(m.row, { verified: { ...verified, [tableId(t)]: rows } });
  }
  await m.exec.progress({ note: null });
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
