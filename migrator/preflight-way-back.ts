import { errorCode } from '../topology/connection.js';
import type { Move } from './move.js';
import { one, type Report } from './preflight-finding.js';

/** What the destination needs to publish, and the source to subscribe: what `checkServers` looks at, the other way round. */
export async function checkWayBack(m: Move, report: Report): Promise<void> {
  if (m.options.wayBackMs === 0 || m.row.facts.wayBackMs !== undefined) return;
  const without = 'or set migrator.wayBackMs to 0, to do without a way back.';
  const [from, to] = [`shard "${m.spec.from}"`, `shard "${m.spec.to}"`];
  const d = await one<{ wal_level: string; slots: number; senders: number; replication: boolean }>(
    m.destination,
    `SELECT current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int AS slots,
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication)::int AS senders,
       r.rolsuper OR r.rolreplication AS replication
     FROM pg_roles r WHERE r.rolname = current_user`,
  );
  const s = await one<{ workers: number; origins: number; subscribes: boolean }>(
    m.source,
    `SELECT current_setting('max_logical_replication_workers')::int - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL)::int AS workers,
       coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int
         - (SELECT count(*) FROM pg_replication_origin)::int AS origins,
       r.rolsuper AS subscribes
     FROM pg_roles r WHERE r.rolname = current_user`,
  );
  const block = (is: boolean, text: string, remedy: string) => {
    if (is) report('blocker', `there would be no way back: ${text}`, `${remedy}; ${without}`);
  };
  block(
    d.wal_level !== 'logical',
    `wal_level of ${to} is ${d.wal_level}`,
    'ALTER SYSTEM SET wal_level = logical, and restart the server',
  );
  block(d.slots < 1, `${to} has no free replication slot`, 'Raise max_replication_slots, and restart the server');
  block(d.senders < 1, `${to} has no free WAL sender`, 'Raise max_wal_senders, and restart the server');
  block(!d.replication, `the user of ${to} may not replicate`, 'ALTER ROLE … REPLICATION, or use a superuser');
  block(
    s.workers < 1,
    `${from} has no free logical replication worker`,
    'Raise max_logical_replication_workers and max_worker_processes, and restart the server',
  );
  block(
    s.origins < 1,
    `${from} has no free replication origin`,
    'Raise max_active_replication_origins (max_replication_slots before 18), and restart the server',
  );
  block(!s.subscribes, `the user of ${from} is not a superuser`, 'Use a superuser: creating subscriptions needs it');
}

/** Whether the server that was to make a subscription has said no: its own words, not the loss of our connection to it. */
export function isRefusal(error: unknown): error is Error {
  return error instanceof Error && /^[0-9A-Z]{5}$/.test(errorCode(error)) && !errorCode(error).startsWith('57P');
}
