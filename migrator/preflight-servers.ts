import { one } from './preflight-finding.js';
import type { ShardSession } from './shard-session.js';

/** Reports what is missing. The remedy has no full stop: something may follow it. */
export type Block = (text: string, remedy: string) => void;

/** What a server needs to publish to another. @param needed slots and WAL senders */
export async function checkPublisher(session: ShardSession, needed: number, block: Block): Promise<void> {
  const name = `shard "${session.shard.name}"`;
  const p = await one<{ wal_level: string; slots: number; senders: number; replication: boolean }>(
    session,
    `SELECT current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int AS slots,
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication)::int AS senders,
       r.rolsuper OR r.rolreplication AS replication
     FROM pg_roles r WHERE r.rolname = current_user`,
  );
  if (p.wal_level !== 'logical')
    block(`wal_level of ${name} is ${p.wal_level}`, 'ALTER SYSTEM SET wal_level = logical, and restart the server');
  if (p.slots < needed)
    block(few(name, p.slots, needed, 'replication slot'), 'Raise max_replication_slots, and restart the server');
  if (p.senders < needed)
    block(few(name, p.senders, needed, 'WAL sender'), 'Raise max_wal_senders, and restart the server');
  if (!p.replication) block(`the user of ${name} may not replicate`, 'ALTER ROLE … REPLICATION, or use a superuser');
}

/** What a server needs to subscribe to another. @param needed logical replication workers and origins */
export async function checkSubscriber(session: ShardSession, needed: number, block: Block): Promise<void> {
  const name = `shard "${session.shard.name}"`;
  const s = await one<{ workers: number; origins: number; super: boolean }>(
    session,
    `SELECT current_setting('max_logical_replication_workers')::int - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL)::int AS workers,
       coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int
         - (SELECT count(*) FROM pg_replication_origin)::int AS origins,
       r.rolsuper AS super
     FROM pg_roles r WHERE r.rolname = current_user`,
  );
  if (s.workers < needed)
    block(
      few(name, s.workers, needed, 'logical replication worker'),
      'Raise max_logical_replication_workers and max_worker_processes, and restart the server',
    );
  if (s.origins < needed)
    block(
      few(name, s.origins, needed, 'replication origin'),
      'Raise max_active_replication_origins (max_replication_slots before 18), and restart the server',
    );
  if (!s.super)
    block(
      `the user of ${name} is not a superuser`,
      'Use a superuser: creating subscriptions and moving their origins forward needs it',
    );
}

function few(name: string, free: number, needed: number, what: string): string {
  return needed === 1 ? `${name} has no free ${what}` : `${name} has ${free} free ${what}s, ${needed} are needed`;
}
