import type { ShardSession } from './shard-session.js';

/**
 * Tries to drop replication slots of the session's database, ending whoever streams from them: their subscription, if there was one, is gone by now,
 * but its walsender may not have noticed yet.
 *
 * @param condition on pg_replication_slots
 * @returns whether none is left
 */
export async function dropSlots(session: ShardSession, condition: string): Promise<boolean> {
  const is = `FROM pg_replication_slots WHERE ${condition} AND database = current_database()`;
  await session.query(`SELECT pg_terminate_backend(active_pid) ${is} AND active_pid IS NOT NULL`);
  await session.query(`DO $$ BEGIN PERFORM pg_drop_replication_slot(slot_name) ${is} AND active_pid IS NULL;
    EXCEPTION WHEN object_in_use OR undefined_object THEN NULL; END $$`);
  return (await session.query(`SELECT ${is}`)).length === 0;
}
