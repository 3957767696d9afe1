import { flipHeldBackBy } from '../../topology/migration-controls.js';
import { differingTables } from '../comparison.js';
import { MigrationFailure } from '../executor.js';
import type { Move } from '../move.js';
import { GUARD_LOCK_CLASS } from '../names.js';
import { Supervisor } from '../supervisor.js';
import { waitUntilCaughtUp } from './catch-up.js';
import { followOn } from './follow.js';
import { makeWayBack } from './reverse.js';
import { checkShapes, compareOnRequest, refuseNewTables } from './verify.js';

/** A writer of the interval that has been at it for longer than this is waited for before anybody is held. */
const LONG_TRANSACTION = '500 ms';
const PATIENCE_MS = 60_000;

/** Nobody's session: nobody but its coordinator can end it. */
const PREPARED = 'a prepared transaction';

/** How often a migration that waits for its flip is looked after, ms. */
const SUPERVISE_MS = 1000;

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
  const supervisor = new Supervisor(m);
  let supervisedAt = 0;
  await m.exec.wait('it may flip', async () => {
    await compareOnRequest(m, m);
    const [differing] = differingTables(m.row);
    const cause =
      differing === undefined
        ? flipHeldBackBy(m.exec.controls, m.exec.now)
        : `a comparison ("foreshard migrate verify ${m.row.id}") that finds both sides the same; in the last one ${differing.differing} rows of "${differing.table}" differed`;
    if (cause === null) return true;
    if (performance.now() - supervisedAt > SUPERVISE_MS) {
      supervisedAt = performance.now();
      const { lagBytes, note } = await supervisor.check();
      await m.exec.progress({ lagBytes, note: note ?? `ready to flip: waiting for ${cause}` });
    }
    return false;
  });
  await m.exec.progress({ note: null });
}

/** Sessions that hold the guard's lock, the oldest first. */
export async function writersInFlight(m: Move, olderThan = '0 ms'): Promise<string[]> {
  const rows = await m.source.query<{ pid: number; who: string | null; state: string | null; age: string }>(
    `SELECT l.pid, coalesce(nullif(a.application_name, ''), a.usename::text) AS who, a.state,
            coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start))::text, '?') AS age
       FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
      WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ShareLock'
        AND l.classid = $1::int8::oid AND l.objid = ($2::int8 & 4294967295)::oid
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND coalesce(a.xact_start < clock_timestamp() - $3::interval, true)
      ORDER BY a.xact_start NULLS FIRST`,
    [GUARD_LOCK_CLASS, m.names.operation, olderThan],
  );
  // Without a process it is a prepared transaction.
  return rows.map((r) => (r.pid === null ? PREPARED : `pid ${r.pid} (${r.who ?? '?'}, ${r.state ?? '?'}, ${r.age} s)`));
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
