import pg from 'pg';
import { ForeshardError } from '../../topology/errors.js';
import { endPrepared, type Outcome } from '../../topology/prepared-transactions.js';
import type { ShardName, Topology } from '../../topology/topology.js';

/** A server that takes longer is one that is away, ms. */
const ANSWER_MS = 5_000;

/** Whatever role and database say. */
const SETTINGS = `SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET search_path = pg_catalog`;

/**
 * Runs `use` over a new connection to a shard, as the user of its URL, and closes it.
 * @throws ForeshardError 08001 when the topology has no such shard (any more); else what the driver, the server or `use` throws
 */
export async function withOwnConnection<T>(
  topology: Topology,
  name: ShardName,
  use: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const shard = topology.shards.get(name);
  if (shard === undefined) throw new ForeshardError('08001', `there is no shard "${name}" any more`);
  const client = new pg.Client({
    connectionString: shard.url,
    connectionTimeoutMillis: ANSWER_MS,
    query_timeout: ANSWER_MS,
    application_name: 'foreshard transactions',
  });
  // The statement under way fails with it.
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query(SETTINGS);
    return await use(client);
  } finally {
    // Not waited for: a server that has gone without a word says no good-bye.
    client.end().catch(() => undefined);
  }
}

/** Ends one prepared transaction. @returns false when there was none (any more) */
export function endOverOwnConnection(
  topology: Topology,
  shard: ShardName,
  gid: string,
  outcome: Outcome,
): Promise<boolean> {
  return withOwnConnection(topology, shard, (client) => endPrepared(client, gid, outcome));
}
