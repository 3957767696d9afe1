import { loadModule } from 'libpg-query';
import pg from 'pg';
import type { Logger } from 'pino';
import { ForeshardError } from '../topology/errors.js';
import { soleShard } from '../topology/topology.js';
import type { LiveTopology } from './live-topology.js';
import { type Metadata, MetadataCache } from './router/metadata.js';

/** A client's DDL is held up so long at most, until the schema is read again: the statements behind it are for what it has made. */
const REREAD_PATIENCE_MS = 250;

/** What the router knows of the database: the home shard's schema, read with a connection of our own and kept for a while. */
export class SchemaView {
  readonly #live: LiveTopology;
  readonly #cache: MetadataCache;
  #pool: { readonly url: string; readonly pool: pg.Pool } | null = null;

  /** Reads the schema once, and loads the parser. @throws ForeshardError 08001 when the home shard cannot be asked */
  static async start(live: LiveTopology, logger: Logger): Promise<SchemaView> {
    await loadModule();
    const view = new SchemaView(live, logger);
    if (live.current.shards.size === 0) return view;
    try {
      await view.#cache.load();
    } catch (error) {
      await view.close();
      throw new ForeshardError('08001', `cannot read the schema of shard "${live.current.home}"`, {
        detail: error instanceof Error ? error.message : String(error),
        hint: 'Check that the home shard is up; "foreshard check" says more.',
        cause: error,
      });
    }
    return view;
  }

  private constructor(live: LiveTopology, logger: Logger) {
    this.#live = live;
    this.#cache = new MetadataCache(
      () => this.#home(),
      (error) => logger.warn({ err: error }, 'could not read the schema; the last one is used'),
    );
  }

  get current(): Metadata {
    return this.#cache.current();
  }

  /**
   * DDL has been committed. Resolves when it is known what it has made, or when that takes too long to wait for; at once while one
   * shard has everything, where no answer depends on it. Never rejects.
   */
  async changed(): Promise<void> {
    this.#cache.drop();
    const read = this.#cache.load().catch(() => undefined);
    if (soleShard(this.#live.current) !== null) return;
    let timer: NodeJS.Timeout | undefined;
    const enough = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, REREAD_PATIENCE_MS);
    });
    // Whoever looks next tries again, and logs what is wrong.
    await Promise.race([read, enough]);
    clearTimeout(timer);
  }

  async close(): Promise<void> {
    await this.#pool?.pool.end();
    this.#pool = null;
  }

  #home(): pg.Pool {
    const { shards, home } = this.#live.current;
    const url = shards.get(home)?.url;
    if (url === undefined)
      throw new ForeshardError('08001', 'there is no home shard yet', { hint: 'Add one with "foreshard shard add".' });
    if (this.#pool?.url === url) return this.#pool.pool;
    // The home shard has another address now; what still waits on the old pool ends with it.
    void this.#pool?.pool.end();
    const pool = new pg.Pool({
      connectionString: url,
      max: 1,
      idleTimeoutMillis: 10_000,
      connectionTimeoutMillis: 10_000,
      application_name: 'foreshard schema',
    });
    // An idle connection that dies is replaced when it is needed.
    pool.on('error', () => undefined);
    // The pool does not listen to one that is in use or being closed, and an error that nobody listens to ends the process.
    pool.on('connect', (client) => client.on('error', () => undefined));
    this.#pool = { url, pool };
    return pool;
  }
}
