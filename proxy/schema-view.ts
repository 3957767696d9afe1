import { setTimeout as delay } from 'node:timers/promises';
import { loadModule } from 'libpg-query';
import pg from 'pg';
import type { Logger } from 'pino';
import type { Catalog } from '../topology/catalog/catalog.js';
import { raiseSchemaGeneration, schemaHeardByAll } from '../topology/catalog/schema-generation.js';
import { ForeshardError } from '../topology/errors.js';
import { soleShard } from '../topology/topology.js';
import { Coalesced } from './coalesced.js';
import type { LiveTopology } from './live-topology.js';
import { EMPTY_METADATA, loadMetadata, type Metadata, schemaSignature } from './router/metadata.js';

/** How often it is looked whether somebody has changed the schema behind the proxies' backs: more seldom the longer a look takes. */
const MIN_PAUSE_MS = 5_000;
const MAX_PAUSE_MS = 60_000;
/** Looking takes at most this part of the time. */
const SHARE = 1 / 200;
/** A reading that takes longer is not begun at once after each DDL, unless statements wait for it. */
const LONG_READING_MS = 200;
/** After one that has failed. */
const RETRY_MS = 500;
/** How long DDL is held up at most while one shard has everything, when answers depend on what it has made even so. */
const READING_PATIENCE_MS = 5_000;

export interface SchemaViewOptions {
  readonly live: LiveTopology;
  readonly catalog: Catalog;
  readonly leaseTtlMs: number;
  readonly logger: Logger;
}

/**
 * What the router knows of the database: the home shard's schema, read with a connection of our own.
 *
 * While one shard has everything no route depends on it, and it follows changes in the background. While several have, nothing is
 * routed by a schema that was read before
 * - data came to be on several shards: whatever made the schema what it was then, DDL in a function or in another process, is seen;
 * - the last DDL that any proxy has announced. It is announced in the catalog before its client hears that it is done, and that
 *   waits until all other proxies have heard of it (or have stopped serving, because their lease has ended).
 *
 * DDL made directly on the home shard is found by looking from time to time.
 */
export class SchemaView {
  readonly #options: SchemaViewOptions;
  readonly #looks = new Coalesced(() => this.#look());
  readonly #announcements = new Coalesced(() => this.#announceOnce());
  readonly #closing = new AbortController();
  #current: Metadata = EMPTY_METADATA;
  /** The home shard's, from before `#current` was read. */
  #signature = '';
  /** DDL of our own clients. */
  #changes = 0;
  /** What the last look has come after. */
  #seen = { generation: -1n, changes: -1 };
  /** A look has begun since data is on several shards. */
  #spread = false;
  /** Grows whenever one shard has everything, or may have had. */
  #era = 0;
  #epoch = 0n;
  #ready = true;
  #lookMs = 0;
  #readMs = 0;
  #timer: NodeJS.Timeout | null = null;
  #pool: { readonly url: string; readonly pool: pg.Pool } | null = null;

  /** Reads the schema once, and loads the parser. @throws ForeshardError 08001 when the home shard cannot be asked */
  static async start(options: SchemaViewOptions): Promise<SchemaView> {
    await loadModule();
    const view = new SchemaView(options);
    const { live } = options;
    try {
      await view.#looks.run();
    } catch (error) {
      await view.close();
      throw new ForeshardError('08001', `cannot read the schema of shard "${live.current.home}"`, {
        detail: error instanceof Error ? error.message : String(error),
        hint: 'Check that the home shard is up; "foreshard check" says more.',
        cause: error,
      });
    }
    live.onApplied(() => view.#topologyApplied());
    view.#topologyApplied();
    return view;
  }

  private constructor(options: SchemaViewOptions) {
    this.#options = options;
    this.#epoch = options.live.current.epoch;
  }

  get current(): Metadata {
    return this.#current;
  }

  /** Whether routes may be made by it now. Whoever waits for it hears from `LiveTopology.changed`. */
  get ready(): boolean {
    return this.#ready;
  }

  /**
   * One of our clients has committed DDL. Resolves when no proxy routes by the schema from before any more; at once while one shard
   * has everything, unless `matters`: then when this proxy knows what was made. Never rejects.
   */
  async changed(matters: boolean): Promise<void> {
    this.#changes += 1;
    this.#judge();
    const { live, leaseTtlMs, logger } = this.#options;
    const announced = this.#announcements.run();
    const sole = soleShard(live.current) !== null;
    if (sole && matters) return this.#readInTime();
    this.#lookSoon();
    if (sole) return;
    // By then a proxy that has not heard of it has lost its lease, or we have lost ours.
    const patience = new AbortController();
    const enough = delay(2 * leaseTtlMs, false, { signal: patience.signal }).catch(() => false);
    const heard = announced.then((generation) => this.#untilHeard(generation, patience.signal));
    if (!(await Promise.race([heard, enough])))
      logger.warn('could not tell all proxies of a change of the schema in time; they find it by themselves');
    patience.abort();
  }

  async #readInTime(): Promise<void> {
    const patience = new AbortController();
    const enough = delay(READING_PATIENCE_MS, undefined, { signal: patience.signal });
    // One that fails is tried again, and told of, by the looks that come of themselves.
    await Promise.race([this.#looks.run(), enough]).catch(() => this.#lookSoon());
    patience.abort();
    await enough.catch(() => undefined);
  }

  async close(): Promise<void> {
    this.#closing.abort();
    if (this.#timer !== null) clearTimeout(this.#timer);
    await this.#pool?.pool.end();
    this.#pool = null;
  }

  /** Until the catalog has taken it. @returns the generation; -1 when we are closed before */
  async #announceOnce(): Promise<bigint> {
    const { catalog, logger } = this.#options;
    while (!this.#closed) {
      try {
        return await raiseSchemaGeneration(catalog.pool);
      } catch (error) {
        if (!this.#closed) logger.warn({ err: error }, 'could not announce a change of the schema; trying again');
        await this.#pause(RETRY_MS);
      }
    }
    return -1n;
  }

  async #untilHeard(generation: bigint, signal: AbortSignal): Promise<boolean> {
    const { catalog, logger } = this.#options;
    for (let ms = 2; !signal.aborted && !this.#closed; ms = Math.min(2 * ms, 100)) {
      try {
        if (await schemaHeardByAll(catalog.pool, generation)) return true;
      } catch (error) {
        logger.warn({ err: error }, 'could not ask who has heard of a change of the schema; trying again');
      }
      await this.#pause(ms);
    }
    return false;
  }

  #topologyApplied(): void {
    const { current } = this.#options.live;
    // With an epoch that we have not seen, all may have been on one shard meanwhile.
    if (soleShard(current) !== null || current.epoch > this.#epoch + 1n) {
      this.#spread = false;
      this.#era += 1;
    }
    const look = current.epoch !== this.#epoch || current.schemaGeneration > this.#seen.generation;
    this.#epoch = current.epoch;
    this.#judge();
    if (look || !this.#ready) this.#lookSoon();
    else this.#schedule();
  }

  #judge(): void {
    const { current } = this.#options.live;
    const { generation, changes } = this.#seen;
    this.#ready =
      soleShard(current) !== null ||
      (this.#spread && generation >= current.schemaGeneration && changes === this.#changes);
  }

  /** At once when statements wait; else when the last reading is long enough ago. */
  #lookSoon(): void {
    if (this.#ready && this.#readMs > LONG_READING_MS) this.#schedule(10 * this.#readMs);
    else this.#tryLook();
  }

  #tryLook(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#looks.run().then(
      () => this.#schedule(),
      (error: unknown) => {
        if (this.#closed) return;
        this.#options.logger.warn({ err: error }, 'could not read the schema; the last one is used');
        this.#schedule(this.#ready ? MIN_PAUSE_MS : RETRY_MS);
      },
    );
  }

  #schedule(ms = Math.min(MAX_PAUSE_MS, Math.max(MIN_PAUSE_MS, this.#lookMs / SHARE))): void {
    if (this.#closed || this.#timer !== null) return;
    this.#timer = setTimeout(() => this.#tryLook(), ms).unref();
  }

  async #look(): Promise<void> {
    const { live } = this.#options;
    const { current } = live;
    if (current.shards.size === 0) return;
    const seen = { generation: current.schemaGeneration, changes: this.#changes };
    const spread = soleShard(current) === null;
    const era = this.#era;
    const pool = this.#home();
    const began = performance.now();
    const signature = await schemaSignature(pool);
    this.#lookMs = performance.now() - began;
    if (signature !== this.#signature) {
      const metadata = await loadMetadata(pool, this.#current);
      this.#readMs = performance.now() - began;
      this.#signature = signature;
      this.#current = metadata;
    }
    this.#seen = seen;
    if (spread && era === this.#era) this.#spread = true;
    const before = this.#ready;
    this.#judge();
    if (this.#ready !== before) live.wake();
  }

  get #closed(): boolean {
    return this.#closing.signal.aborted;
  }

  async #pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#closing.signal }).catch(() => undefined);
  }

  #home(): pg.Pool {
    const { shards, home } = this.#options.live.current;
    const url = shards.get(home)?.url;
    if (url === undefined)
      throw new ForeshardError('08001', 'there is no home shard yet', { hint: 'Add one with "foreshard shard add".' });
    if (this.#pool?.url === url) return this.#pool.pool;
    // The home shard has another address now; what still waits on the old pool ends with it.
    void this.#pool?.pool.end();
    this.#signature = '';
    const pool = new pg.Pool({
      connectionString: url,
      max: 1,
      idleTimeoutMillis: 10_000,
      connectionTimeoutMillis: 10_000,
      keepAlive: true,
      // Somebody's DDL that is not committed yet is waited for by asking again.
      lock_timeout: 5_000,
      query_timeout: 60_000,
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
