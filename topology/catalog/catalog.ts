import pg from 'pg';
import { checkUrl } from '../check-url.js';
import { errorCode, explainConnectError, redactUrl } from '../connection.js';
import { CatalogUnavailableError, ForeshardError } from '../errors.js';
import type { Topology } from '../topology.js';
import { currentSchemaVersion } from './schema.js';
import { readTopology } from './topology-reader.js';
import { TopologyWatch } from './watch.js';

/** How long a connection to the catalog may take to come up, and a question of the watch to be answered. */
const CONNECT_TIMEOUT_MS = 10_000;

/** The catalog in PostgreSQL: the one place where topology, plans, migrations and history live. */
export class Catalog {
  /** URL with the password: for connecting, never for printing. */
  readonly url: string;
  readonly pool: pg.Pool;

  private constructor(url: string, pool: pg.Pool) {
    this.url = url;
    this.pool = pool;
  }

  /**
   * A pool to a catalog's database, be there a catalog in it or not yet (see `initCatalog`).
   * @param url libpq URL
   */
  static pool(url: string): pg.Pool {
    checkUrl(url, 'the catalog');
    const pool = new pg.Pool({
      connectionString: url,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      application_name: 'foreshard catalog',
    });
    // An idle connection that dies is dropped from the pool; whoever asks next gets a new one, or the error.
    pool.on('error', () => undefined);
    // The pool listens to idle connections alone, and an error that nobody listens to ends the process: one in use may die between
    // two statements. Its user hears of that from the next one.
    pool.on('connect', (client) => client.on('error', () => undefined));
    return pool;
  }

  /**
   * Connects to an initialised catalog.
   * @throws CatalogUnavailableError that says what failed, where, and what to do
   */
  static async connect(url: string): Promise<Catalog> {
    const pool = Catalog.pool(url);
    try {
      const meta = await pool.query<{ schema_version: number }>('SELECT schema_version FROM foreshard.meta');
      checkVersion(meta.rows[0]?.schema_version ?? 0);
      return new Catalog(url, pool);
    } catch (error) {
      await pool.end();
      throw asCatalogError(error, url);
    }
  }

  /** The whole topology, read by one statement, so from one snapshot. */
  async loadTopology(): Promise<Topology> {
    try {
      return await readTopology(this.pool);
    } catch (error) {
      throw asCatalogError(error, this.url);
    }
  }

  /**
   * Calls `listener` once when the watch is in place, then whenever the topology or a hold may have changed (LISTEN, with
   * a poll every second behind it), and after every reconnect. It may be called without need, never too seldom.
   * @param heard whether an announcement says all that there is to know (`announcedHold`): then `listener` is not called for it
   * @throws CatalogUnavailableError when the first connection fails; later failures are retried for ever
   */
  async watch(
    listener: () => void,
    heard: (announcement: string) => boolean = () => false,
  ): Promise<{ close(): Promise<void> }> {
    const watch = new TopologyWatch(this.url, this.pool, listener, heard);
    try {
      await watch.start();
    } catch (error) {
      await watch.close();
      throw asCatalogError(error, this.url);
    }
    return watch;
  }

  /**
   * A connection besides the pool, for whoever keeps clients waiting. Its user ends it.
   * @throws CatalogUnavailableError
   */
  async connectAlone(): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: this.url,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      application_name: 'foreshard catalog',
    });
    client.on('error', () => undefined); // the next query says so, too
    try {
      await client.connect();
    } catch (error) {
      await client.end().catch(() => undefined); // it never came up
      throw asCatalogError(error, this.url);
    }
    return client;
  }

  async close(): Promise<void> {
    await this.pool.end();
  }
}

function checkVersion(version: number): void {
  const known = currentSchemaVersion();
  if (version > known)
    throw new CatalogUnavailableError(`the catalog has schema version ${version}, this program knows only ${known}`, {
      hint: 'Run a Foreshard at least as new as the one that made the catalog.',
    });
  if (version < known)
    throw new CatalogUnavailableError(`the catalog has schema version ${version}, this program needs ${known}`, {
      hint: 'Run "foreshard init" to bring the catalog up to date.',
    });
}

/** Connection troubles and missing tables as CatalogUnavailableError; anything else as it is. */
function asCatalogError(error: unknown, url: string): unknown {
  if (error instanceof ForeshardError) return error;
  const where = redactUrl(url);
  const code = errorCode(error);
  if (code === '42P01' || code === '3F000')
    return new CatalogUnavailableError(`there is no catalog in ${where}`, {
      hint: 'Run "foreshard init" first, or correct the catalog\'s URL.',
      cause: error,
    });
  const { reason, hint } = explainConnectError(error);
  return new CatalogUnavailableError(`cannot use the catalog at ${where}: ${reason}`, { hint, cause: error });
}
