import pg from 'pg';
import { checkUrl } from './check-url.js';
import { explainConnectError, redactUrl } from './connection.js';
import { ForeshardError } from './errors.js';

const CONNECT_TIMEOUT_MS = 10_000;

/**
 * Connects to a shard's database, runs `use`, and disconnects. The session's settings that change what is printed are
 * fixed: DateStyle ISO, TimeZone UTC, an empty search_path.
 * @throws ForeshardError (08001) that names the shard when it cannot be reached; what `use` throws passes through
 */
export async function withShard<T>(
  shard: { readonly name: string; readonly url: string },
  use: (client: pg.Client) => Promise<T>,
): Promise<T> {
  checkUrl(shard.url, `shard "${shard.name}"`);
  const client = new pg.Client({
    connectionString: shard.url,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    application_name: 'foreshard check',
  });
  // A connection that breaks fails the query in flight, and that is where it is reported.
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query(`SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET search_path = ''`);
  } catch (error) {
    const { reason, hint } = explainConnectError(error);
    throw new ForeshardError('08001', `cannot connect to shard "${shard.name}" at ${redactUrl(shard.url)}: ${reason}`, {
      hint,
      cause: error,
    });
  }
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}
