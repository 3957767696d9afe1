import { setTimeout as delay } from 'node:timers/promises';
import { tableId } from '../../topology/topology.js';
import { tableOf } from '../migration-row.js';
import { isReference, type Move } from '../move.js';
import { turned } from '../turned.js';
import { undoAll } from '../undo.js';
import { AS_OF_FLIP_BACK, compareAsOf } from './as-of-flip.js';
import { waitUntilCaughtUp } from './catch-up.js';
import { cross } from './fence.js';
import { letGoOn, missed } from './missed-fence.js';
import { openGates } from './open.js';
import { waitForLongWriters } from './ready.js';
import { compareChangedPartitions } from './verify.js';

/** rolling_back → flipped_back, or reversing when the fence cannot be had: the same flip, the other way. */
export async function rollBack(m: Move): Promise<void> {
  const back = turned(m);
  // What a driver that died between fence and flip has left.
  await letGoOn(back);
  await waitUntilCaughtUp(back);
  await waitForLongWriters(back);
  const difference = await compareChangedPartitions(m, back);
  back.row = m.row;
  if (difference !== null) {
    await stay(back, difference, difference);
    m.row = back.row;
    return;
  }
  try {
    await cross(back, {
      to: 'flipped_back',
      timings: 'backTimings',
      missed: (why) =>
        missed(back, 'backTries', why, {
          again: (tries) => tryAgain(back, tries, why),
          enough: (error) => stay(back, error, why),
        }),
    });
  } finally {
    m.row = back.row;
    m.snapshot = back.snapshot;
  }
}

async function tryAgain(back: Move, tries: number, why: string): Promise<void> {
  back.row = await back.exec.noteFacts(back.row, { backTries: tries });
  await back.exec.progress({ note: why });
  const { fenceBackoffMs } = back.options;
  const until = performance.now() + fenceBackoffMs * 2 ** (tries - 1);
  await back.exec.wait('the pause between two fences', async () => {
    await delay(Math.min(200, fenceBackoffMs));
    return performance.now() >= until;
  });
}

/** The way back stays open, and says why it was not taken. */
async function stay(back: Move, error: string, why: string): Promise<void> {
  back.row = await back.exec.transition(back.row, 'reversing', { facts: { backTries: 0 }, error, detail: { why } });
}

/** flipped_back → rolled_back: the source owns the interval again; everything that was made at the destination goes. */
export async function undoAfterFlipBack(m: Move): Promise<void> {
  const back = turned(m);
  back.snapshot = m.snapshot;
  // Behind the comparison the gates go: whoever comes back after that has had them opened, and may find none.
  if (m.row.facts.backExact === undefined) await openGates(back);
  if (!(await compareAsOf(AS_OF_FLIP_BACK, m, back))) return;
  await keepReferenceTables(m);
  await undoAll(m, 'back-after:undo');
  m.row = await m.exec.transition(m.row, 'rolled_back');
}

/** Their copies at the destination are as good as any since the flip, and others may use them. */
async function keepReferenceTables(m: Move): Promise<void> {
  const kept = new Set(m.tables.filter(isReference).map(tableId));
  for (const kind of ['table', 'rows'] as const)
    for (const record of await m.exec.openCleanup(kind)) {
      if (kept.has(tableId(tableOf(record)))) await m.exec.markCleanupDone(record);
    }
}
