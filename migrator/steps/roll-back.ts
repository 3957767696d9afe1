import { setTimeout as delay } from 'node:timers/promises';
import { tableId } from '../../topology/topology.js';
import { assertGateSql } from '../guards.js';
import { isReference, type Move } from '../move.js';
import { GATE_OPEN } from '../names.js';
import { turned } from '../turned.js';
import { dropHolds, undoAll } from '../undo.js';
import { AS_OF_FLIP_BACK, compareAsOf } from './as-of-flip.js';
import { waitUntilCaughtUp } from './catch-up.js';
import { cross } from './fence.js';
import { openGates } from './open.js';
import { waitForLongWriters } from './ready.js';

/** rolling_back → flipped_back, or reversing when the fence cannot be had: the same flip, the other way. */
export async function rollBack(m: Move): Promise<void> {
  const back = turned(m);
  // What a driver that died between fence and flip has left.
  await letGoOn(back);
  await waitUntilCaughtUp(back);
  await waitForLongWriters(back);
  try {
    await cross(back, {
      to: 'flipped_back',
      timings: 'backTimings',
      missed: (why) => retreatBack(back, why),
    });
  } finally {
    m.row = back.row;
    m.snapshot = back.snapshot;
  }
}

/** The owner before the flip back takes writes, and the proxies let them pass. */
async function letGoOn(back: Move): Promise<void> {
  await back.source.query(assertGateSql(back.names, GATE_OPEN));
  await dropHolds(back);
}

async function retreatBack(back: Move, why: string): Promise<void> {
  await letGoOn(back);
  const { maxFenceTries, fenceBackoffMs } = back.options;
  const tries = Number(back.row.facts.backTries ?? 0) + 1;
  if (tries >= maxFenceTries) {
    const error = `${tries} fences were missed on the way back; the last one because ${why}`;
    back.row = await back.exec.transition(back.row, 'reversing', { facts: { backTries: 0 }, error, detail: { why } });
    return;
  }
  back.row = await back.exec.noteFacts(back.row, { backTries: tries });
  await back.exec.progress({ note: why });
  const until = performance.now() + fenceBackoffMs * 2 ** (tries - 1);
  await back.exec.wait('the pause between two fences', async () => {
    await delay(Math.min(200, fenceBackoffMs));
    return performance.now() >= until;
  });
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
      const { schema, table } = record.object;
      if (kept.has(tableId({ schema: schema as string, table: table as string }))) await m.exec.markCleanupDone(record);
    }
}
