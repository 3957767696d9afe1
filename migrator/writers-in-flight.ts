import type { Move } from './move.js';
import { GUARD_LOCK_CLASS } from './names.js';

/** Nobody's session: nobody but its coordinator can end it. */
export const PREPARED = 'a prepared transaction';

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
