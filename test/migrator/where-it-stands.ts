import type { MigrationRow } from '../../migrator/migration-row.js';
import { withClient } from '../support/client.js';
import type { Setting } from './setting.js';

/** Of either server. */
const QUESTIONS = [
  'SELECT srrelid::regclass AS table, srsubstate AS state, srsublsn FROM pg_subscription_rel',
  'SELECT s.subname, s.subenabled, w.* FROM pg_subscription s LEFT JOIN pg_stat_subscription w ON w.subid = s.oid',
  'SELECT * FROM pg_stat_subscription_stats',
  'SELECT * FROM pg_replication_slots',
  `SELECT pid, backend_type, application_name, state, wait_event, xact_start, left(query, 100) AS query, pg_blocking_pids(pid) AS behind
     FROM pg_stat_activity WHERE pid <> pg_backend_pid()`,
];

/** All that may tell why a migration does not get on, as text. */
export async function whereItStands(s: Setting, { state, facts, progress, error }: MigrationRow): Promise<string> {
  const told: unknown[] = [{ state, facts, progress, error }];
  for (const [cluster, url] of [
    [s.one, s.urlOne],
    [s.two, s.urlTwo],
  ] as const)
    try {
      await withClient(url, async (c) => {
        for (const sql of QUESTIONS) told.push((await c.query(sql)).rows);
      });
      told.push(cluster.log().slice(-3000));
    } catch (problem) {
      told.push(String(problem));
    }
  return told.map((one) => (typeof one === 'string' ? one : JSON.stringify(one))).join('\n');
}
