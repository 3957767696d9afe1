import { setTimeout as delay } from 'node:timers/promises';
import type { Move } from '../move.js';
import { roundTrip } from '../replication.js';
import { Supervisor } from '../supervisor.js';

/** Waits until a marker comes through quickly: the destination is about as far as the source. */
export async function waitUntilCaughtUp(m: Move): Promise<void> {
  const supervisor = new Supervisor(m);
  await m.exec.wait(`a marker reaches the destination within ${m.options.maxLagMs} ms`, async () => {
    const ms = await roundTrip(m, m.options.maxLagMs);
    const { lagBytes, note, partitions } = await supervisor.check();
    await m.exec.progress({ lagBytes, note: note ?? (ms === null ? 'catching up' : null) });
    return ms !== null && partitions === null;
  });
}

/** catching_up → verifying */
export async function catchUp(m: Move): Promise<void> {
  await backOff(m);
  await waitUntilCaughtUp(m);
  m.row = await m.exec.transition(m.row, 'verifying');
}

/** After a fence that failed, the next one waits a while. */
async function backOff(m: Move): Promise<void> {
  const tries = Number(m.row.facts.fenceTries ?? 0);
  if (tries === 0) return;
  const until = performance.now() + m.options.fenceBackoffMs * 2 ** (tries - 1);
  await m.exec.wait('the pause between two fences', async () => {
    await delay(Math.min(200, m.options.fenceBackoffMs));
    return performance.now() >= until;
  });
}
