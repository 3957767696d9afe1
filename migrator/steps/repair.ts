import { tableId } from '../../topology/topology.js';
import { compareAgain } from '../compare.js';
import {
  areAllNamed,
  type ComparedTable,
  type ComparisonResult,
  differingTables,
  lastComparison,
  withinBounds,
} from '../comparison.js';
import type { Move } from '../move.js';
import { backNames } from '../names.js';
import { lastRepair, type Repair, RepairRefusal, repairRows } from '../repair.js';
import { countOf } from '../replace-rows.js';
import { advanceSlot } from '../replication.js';
import { type SampledDifference, sampledDifference } from '../sampled.js';
import { readSourceTables } from './prepare.js';

/** Rows of one table that are to be repaired, and where to look once more. */
type Wrong = Pick<ComparedTable, 'table' | 'keys' | 'chunks'>;

/**
 * Repairs rows that the last comparison has named, when somebody has asked for it, and compares what is concerned again. What is to be done, and what has been done, is
 * noted, in `facts.repair` and in events, before anything goes on.
 * @param view the same migration with source and destination as they are now
 */
export async function repairOnRequest(m: Move, view: Move): Promise<void> {
  const request = m.exec.controls.repair;
  const last = lastRepair(m.row);
  if (request === null || (last?.request === request && last.at !== null)) return;
  const found = lastComparison(m.row);
  if (found === null) return;
  const wrong = areAllNamed(differingTables(m.row)) ? wrongRows(m, found) : [];
  let repair: Repair = last?.request === request ? last : { request, at: null, tables: [], refused: null };
  m.row = await m.exec.noteFacts(m.row, { repair }, { repairing: wrong.map(({ table, keys }) => ({ table, keys })) });
  m.exec.at('recorded:repair');
  try {
    for (const [t, info, { keys }] of await tablesOf(view, wrong)) {
      await m.exec.progress({ note: `repairing ${keys.length} rows of ${tableId(t)}` });
      const repaired = await repairRows(view, t, info, keys);
      m.exec.at('after:repair-rows');
      if (countOf(repaired) === 0) continue;
      m.log.warn({ migration: m.row.id.toString(), ...repaired }, 'rows that differed have been repaired');
      repair = { ...repair, tables: [...repair.tables, repaired] };
      m.row = await m.exec.noteFacts(m.row, { repair }, { repaired });
    }
  } catch (error) {
    if (!(error instanceof RepairRefusal)) throw error;
    repair = { ...repair, refused: `${error.message}. ${error.hint}` };
  }
  // Else it would be sent back to where it came from. Behind the flip nothing begins at the old owner.
  if (view === m) await advanceSlot(m.destination, backNames(m.names));
  m.exec.at('before:compare-again');
  const again = new Map<string, Pick<ComparedTable, 'differing' | 'keys' | 'chunks'>>();
  for (const [t, info, { keys, chunks }] of await tablesOf(view, wrong)) {
    await m.exec.progress({ note: `comparing what was repaired of ${tableId(t)}` });
    const left = await compareAgain(view, t, info, { differing: keys, chunks });
    again.set(tableId(t), { differing: left.differing.length, keys: left.differing, chunks: left.chunks });
  }
  const at = m.exec.now.toISOString();
  const tables = withinBounds(found.tables.map((t) => ({ ...t, ...again.get(t.table) })));
  const sampled = stillSampled(sampledDifference(m.row), again);
  const comparison: ComparisonResult = { ...found, tables };
  const left = tables.filter((t) => t.differing > 0).map(({ table, differing }) => ({ table, differing }));
  m.row = await m.exec.noteFacts(
    m.row,
    { comparison, sampled, repair: { ...repair, at } },
    {
      comparedAgain: [...again.keys()],
      differing: left,
      ...(repair.refused === null ? {} : { refused: repair.refused }),
    },
  );
  await m.exec.progress({ note: null });
  m.exec.at('after:repair');
}

/** What the comparison has named, and samples have since. */
function wrongRows(m: Move, found: ComparisonResult): Wrong[] {
  const sampled = sampledDifference(m.row)?.tables ?? [];
  return found.tables.flatMap(({ table, keys, chunks }): Wrong[] => {
    const all = new Set([...keys, ...(sampled.find((s) => s.table === table)?.keys ?? [])]);
    return all.size === 0 ? [] : [{ table, keys: [...all], chunks }];
  });
}

async function tablesOf(view: Move, wrong: readonly Wrong[]) {
  const infos = await readSourceTables(view);
  return view.tables.flatMap((t, i) => {
    const [info, of] = [infos[i], wrong.find((w) => w.table === tableId(t))];
    return info === undefined || of === undefined ? [] : [[t, info, of] as const];
  });
}

/** What samples have found and is not known to be right by now. Not one is taken while a comparison runs, which names all. */
function stillSampled(
  before: SampledDifference | null,
  again: ReadonlyMap<string, { readonly differing: number }>,
): SampledDifference | null {
  if (before === null) return null;
  const tables = before.tables.filter(
    (t) => !(again.get(t.table)?.differing === 0 && (before.compared || t.differing === t.keys.length)),
  );
  return tables.length === 0 ? null : { ...before, tables };
}
