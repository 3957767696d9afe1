import { randomInt } from 'node:crypto';
import type pg from 'pg';
import { ForeshardError, UsageError } from '../errors.js';
import { withShard } from '../shard-client.js';
import type { Shard } from '../topology.js';
import { MIN_SERVER_VERSION } from './schema.js';

interface ServerFacts {
  version: number;
  standby: boolean;
  encoding: string;
  system: string;
}

/**
 * Whether a database can become a shard: reachable, PostgreSQL 15 or later, a primary, UTF-8, and not a shard already
 * under another name.
 */
export async function checkNewShard(
  shard: { readonly name: string; readonly url: string },
  others: readonly Shard[],
): Promise<void> {
  await withShard(shard, async (client) => {
    const facts = await readServerFacts(client);
    if (facts.version < MIN_SERVER_VERSION)
      throw new ForeshardError('0A000', `shard "${shard.name}" runs PostgreSQL ${Math.floor(facts.version / 10000)}`, {
        hint: 'Shards need PostgreSQL 15 or later.',
      });
    if (facts.standby) throw new UsageError(`shard "${shard.name}" is a standby`, 'Give the URL of the primary.');
    if (facts.encoding !== 'UTF8')
      throw new UsageError(
        `the database of shard "${shard.name}" is encoded in ${facts.encoding}`,
        "Keys are compared as UTF-8 bytes: use a database created with ENCODING 'UTF8'.",
      );
    for (const other of others) await refuseSameDatabase(shard.name, client, facts, other);
  });
}

async function readServerFacts(client: pg.Client): Promise<ServerFacts> {
  const { rows } = await client.query<ServerFacts>(
    `SELECT current_setting('server_version_num')::int AS version, pg_catalog.pg_is_in_recovery() AS standby,
            current_setting('server_encoding') AS encoding,
            (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system`,
  );
  return rows[0] as ServerFacts;
}

/**
 * Two URLs may lead to one database, and clusters copied from one another share their system identifier; so it is tried: a
 * session's advisory lock is seen by every other session of the same database, and by no other database.
 */
async function refuseSameDatabase(name: string, client: pg.Client, facts: ServerFacts, other: Shard): Promise<void> {
  const same = await withShard(other, async (there) => {
    if ((await readServerFacts(there)).system !== facts.system) return false;
    const lock = [randomInt(2 ** 31), randomInt(2 ** 31)];
    await client.query('SELECT pg_catalog.pg_advisory_lock($1, $2)', lock);
    try {
      const { rows } = await there.query<{ free: boolean }>(
        'SELECT pg_catalog.pg_try_advisory_lock($1, $2) AS free',
        lock,
      );
      return rows[0]?.free === false;
    } finally {
      await client.query('SELECT pg_catalog.pg_advisory_unlock($1, $2)', lock);
    }
  });
  if (same)
    throw new UsageError(
      `shard "${name}" would be the same database as shard "${other.name}"`,
      'Each shard needs a database of its own.',
    );
}
