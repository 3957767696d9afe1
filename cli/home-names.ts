import pg from 'pg';
import { loadMetadata, type Metadata } from '../proxy/router/metadata.js';
import { explainConnectError, redactUrl } from '../topology/connection.js';
import { ForeshardError, UsageError } from '../topology/errors.js';
import type { Topology } from '../topology/topology.js';

export interface HomeNames {
  readonly metadata: Metadata;
  readonly searchPath: readonly string[];
  readonly user: string;
}

/**
 * What names in a statement mean: the home shard's schema, and the search path that a session has there.
 * @throws UsageError when there is no shard yet, ForeshardError when it cannot be read
 */
export async function readHome(topology: Topology): Promise<HomeNames> {
  const home = topology.shards.get(topology.home);
  if (home === undefined) throw new UsageError('there is no shard yet', 'Add one first: foreshard shard add.');
  const pool = new pg.Pool({
    connectionString: home.url,
    max: 1,
    connectionTimeoutMillis: 10_000,
    application_name: 'foreshard explain',
  });
  pool.on('error', () => undefined);
  pool.on('connect', (client) => client.on('error', () => undefined)); // the query under way is told
  try {
    const { rows } = await pool.query<{ path: string[]; user: string }>(
      'SELECT pg_catalog.current_schemas(false)::text[] AS path, current_user::text AS user',
    );
    const row = rows[0] as { path: string[]; user: string };
    return { metadata: await loadMetadata(pool), searchPath: row.path, user: row.user };
  } catch (error) {
    const { reason, hint } = explainConnectError(error);
    throw new ForeshardError(
      '08001',
      `cannot read the schema of shard "${home.name}" at ${redactUrl(home.url)}: ${reason}`,
      { hint, cause: error },
    );
  } finally {
    await pool.end();
  }
}
