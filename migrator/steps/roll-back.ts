import { setTimeout as delay } from 'node:timers/promises';
import { epochAckedByAll } from '../../topology/catalog/leases.js';
import { type Epoch, tableId } from '../../topology/topology.js';
import { assertGateSql } from '../guards.js';
import { isReference, type Move } from '../move.js';
import { GATE_OPEN } from '../names.js';
import { turned } from '../turned.js';
import { dropHolds, undoAll } from '../undo.js';
import { waitUntilCaughtUp } from './catch-up.js';
import { cross } from './fence.js';
import { openGates } from './open.js';
import { waitForLongWriters } from './ready.js';
import { compareExactly } from './verify.js';

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
  await m.exec.progress({ note: 'waiting until every proxy serves the new epoch' });
  await m.exec.wait(
    'every proxy serves the new epoch or has lost its lease',
    () => epochAckedByAll(m.catalog.pool, BigInt(m.row.facts.backEpoch as string) as Epoch),
    { everyMs: 50 },
  );
  m.exec.at('back-after:proxies-acked');
  if (m.row.facts.backExact === undefined && !(await compareBack(m, back))) return;
  await keepReferenceTables(m);
  await undoAll(m, 'back-after:undo');
  m.row = await m.exec.transition(m.row, 'rolled_back');
}

/** @returns whether both sides are the same as of the flip back; if not, the migration has failed, and the destination's rows are kept */
async function compareBack(m: Move, back: Move): Promise<boolean> {
  await m.exec.progress({ note: 'comparing both sides as of the flip back' });
  const difference = await compareExactly(back);
  if (difference !== null) {
    m.row = await m.exec.transition(m.row, 'failed', {
      error: `the shards differ as of the flip back: ${difference}. The rows at shard "${m.spec.to}" were kept; compare them, then "foreshard migrate accept ${m.row.id}"`,
      detail: { difference },
    });
    return false;
  }
  m.row = await m.exec.noteFacts(m.row, {
    backExact: back.snapshot === null ? 'skipped after a restart' : 'identical',
  });
  await back.snapshot?.close();
  m.snapshot = null;
  return true;
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
