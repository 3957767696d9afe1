import { flipHeldBackBy } from '../../topology/migration-controls.js';
import { differingTables } from '../comparison.js';
import { MigrationFailure } from '../executor.js';
import type { Move } from '../move.js';
import { PREPARED, writersInFlight } from '../writers-in-flight.js';
import { waitUntilCaughtUp } from './catch-up.js';
import { followOn } from './follow.js';
import { makeWayBack } from './reverse.js';
import { answerRequests, checkShapes, refuseNewTables } from './verify.js';
import { waitWhile } from './wait-while.js';

/** A writer of the interval that has been at it for longer than this is waited for before anybody is held. */
const LONG_TRANSACTION = '500 ms';
const PATIENCE_MS = 60_000;

/** ready → fencing: waits until it may flip; then the last look around. */
export async function ready(m: Move): Promise<void> {
  if (!m.exec.dry) await waitForPermission(m);
  if (!m.exec.dry) {
    refuseNewTables(m, await m.catalog.loadTopology());
    await checkShapes(m);
  }
  await makeWayBack(m);
  if (!m.exec.dry) {
    await waitUntilCaughtUp(m);
    try {
      await waitForLongWriters(m);
    } catch (error) {
      if (!(error instanceof MigrationFailure) || m.row.replica === null) throw error;
      await followOn(m, error.message);
      return;
    }
  }
  m.row = await m.exec.transition(m.row, 'fencing');
}

/** Meanwhile the destination goes on following the source. */
async function waitForPermission(m: Move): Promise<void> {
  await waitWhile(m, 'it may flip', async () => {
    await answerRequests(m, m);
    const [differing] = differingTables(m.row);
    const cause =
      differing === undefined
        ? flipHeldBackBy(m.exec.controls, m.exec.now)
        : `a comparison ("foreshard migrate verify ${m.row.id}") that finds both sides the same; in the last one ${differing.differing} rows of "${differing.table}" differed`;
    return cause === null ? null : `ready to flip: waiting for ${cause}`;
  });
}

/** A huge transaction would drain for seconds behind the fence: it is let end first. */
export async function waitForLongWriters(m: Move): Promise<void> {
  let last: string[] = [];
  const since = performance.now();
  const clear = await m.exec.wait(
    'no long transaction writes to the interval',
    async () => {
      last = await writersInFlight(m, LONG_TRANSACTION);
      await m.exec.progress({ note: last.length === 0 ? null : `waiting for ${last.slice(0, 3).join(', ')}` });
      const { endTransactionsAfterMs } = m.exec.controls;
      const isLong = endTransactionsAfterMs !== null && performance.now() - since >= endTransactionsAfterMs;
      // The proxies end theirs when they hold.
      return last.length === 0 || (isLong && !last.includes(PREPARED));
    },
    { deadlineMs: PATIENCE_MS },
  );
  if (!clear)
    throw new MigrationFailure(
      `sessions have been writing to the interval for too long: ${last.slice(0, 5).join(', ')}`,
      'End these transactions, then start the migration again.',
    );
}
