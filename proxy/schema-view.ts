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
import type { CodeChange } from './router/code-change.js';
import { EMPTY_METADATA, loadMetadata, type Metadata, schemaSignature } from './router/metadata.js';
import type { Execution } from './session/placement.js';
import { UnreadCode } from './unread-code.js';

/** How often it is looked whether somebody has changed the schema behind the proxies' backs: more seldom the longer a look takes. */
const MIN_PAUSE_MS = 5_000;
const MAX_PAUSE_MS = 60_000;
/** Looking takes at most this part of the time. */
const SHARE = 1 / 200;
/** After DDL that no statement waits for, this many times as long as the last reading took passes before the next. */
const REST = 10;
/** After a flip, when no statement waits for it. */
const AFTER_FLIP_MS = 1000;
/** After one that has failed. */
const RETRY_MS = 500;

export interface SchemaViewOptions {
  readonly live: LiveTopology;
  readonly catalog: Catalog;
  readonly leaseTtlMs: number;
  /** How long statements wait at most, while one shard has everything, for code that they may run to be known. */
  readonly holdTimeoutMs: number;
  readonly logger: Logger;
}

/**
 * What the router knows of the database: the home shard's schema, read with a connection of our own.
 *
 * While one shard has everything no route depends on it, and it follows changes in the background. But what functions, triggers and the
 * like leave on a server connection does: statements that name code which our clients have made, and which may leave something, wait
 * until it is known, and their clients hear that it is made when the other proxies know it. While several have, nothing is routed by
 * a schema that was read before
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
  /** Generations that we have announced ourselves, newer than what was seen. */
  readonly #own = new Set<bigint>();
  #announcing = false;
  /** A look has begun since data is on several shards. */
  #spread = false;
  /** Grows whenever one shard has everything, or may have had. */
  #era = 0;
  #epoch = 0n;
  #ready = true;
  readonly #unread = new UnreadCode();
  #lookMs = 0;
  #readMs = 0;
  #readAt = 0;
  #timer: { readonly timeout: NodeJS.Timeout; readonly at: number } | null = null;
  /** The last error that was logged. */
  #logged: unknown = null;
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

  /** Nothing is known to have been changed since it was read. */
  get fresh(): boolean {
    const { generation, changes } = this.#seen;
    return this.#ready && changes === this.#changes && generation >= this.#options.live.current.schemaGeneration;
  }

  /** No proxy that has told the catalog so is behind this generation: nothing is routed here by the schema from before it. */
  get heard(): bigint {
    const { current } = this.#options.live;
    // Statements wait as long as it is not read; while one shard has everything they do not.
    return soleShard(current) === null ? current.schemaGeneration : this.#seen.generation;
  }

  /** All that our clients have made, and that may leave something on a server connection, is known. */
  get allRead(): boolean {
    return this.#unread.isEmpty;
  }

  /** Whether one of these statements may run what our clients have made and is not known yet. */
  mayRunUnread(executions: readonly Execution[]): boolean {
    return !this.#unread.isEmpty && this.#unread.mayBeRunBy(executions);
  }

  /** Whether they are to wait for it. Who waits hears from `LiveTopology.changed`. */
  holdsUp(executions: readonly Execution[]): boolean {
    return !this.#unread.isEmpty && this.#unread.mayBeRunBy(executions, performance.now());
  }

  /** Whether the text names some of it. */
  namesUnread(text: Buffer): boolean {
    return this.#unread.isNamedIn(text);
  }

  /**
   * One of our clients has committed DDL. Resolves when no proxy routes by the schema from before any more. While one shard has
   * everything: at once, unless there is `code` that other proxies have to know of. Never rejects.
   */
  async changed(code: readonly CodeChange[]): Promise<void> {
    this.#changes += 1;
    const { live, leaseTtlMs, holdTimeoutMs, logger } = this.#options;
    const sole = soleShard(live.current) !== null;
    if (sole && code.length > 0) this.#holdUp(code);
    this.#judge();
    const announced = this.#announcements.run();
    this.#lookSoon();
    if (sole && code.length === 0) return;
    // With several shards: by then a proxy that has not heard of it has lost its lease, or we have lost ours.
    const patienceMs = sole ? holdTimeoutMs : 2 * leaseTtlMs;
    const patience = new AbortController();
    const enough = delay(patienceMs, false, { signal: patience.signal }).catch(() => false);
    const heard = announced.then((generation) => this.#untilHeard(generation, patience.signal));
    if (!(await Promise.race([heard, enough])))
      logger.warn('could not tell all proxies of a change of the schema in time; they find it by themselves');
    patience.abort();
  }

  #holdUp(code: readonly CodeChange[]): void {
    const { live, holdTimeoutMs } = this.#options;
    const until = performance.now() + holdTimeoutMs;
    for (const change of code) this.#unread.add({ ...change, number: this.#changes, until });
    setTimeout(() => live.wake(), holdTimeoutMs + 1).unref();
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.#clearTimer();
    await this.#pool?.pool.end();
    this.#pool = null;
  }

  /** Until the catalog has taken it. @returns the generation; -1 when we are closed before */
  async #announceOnce(): Promise<bigint> {
    const { catalog, logger } = this.#options;
    while (!this.#closed) {
      try {
        this.#announcing = true;
        const generation = await raiseSchemaGeneration(catalog.pool).finally(() => {
          this.#announcing = false;
        });
        if (generation > this.#seen.generation) this.#own.add(generation);
        if (this.#othersHaveChanged) this.#tryLook();
        return generation;
      } catch (error) {
        if (!this.#closed) logger.warn({ err: error }, 'could not announce a change of the schema; trying again');
        await this.#pause(RETRY_MS);
      }
    }
    return -1n;
  }

  async #untilHeard(generation: bigint, signal: AbortSignal): Promise<boolean> {
    const { catalog, live, logger } = this.#options;
    for (let ms = 2; !signal.aborted && !this.#closed; ms = Math.min(2 * ms, 100)) {
      try {
        if (await schemaHeardByAll(catalog.pool, generation, live.id)) return true;
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
    const flipped = current.epoch !== this.#epoch;
    this.#epoch = current.epoch;
    this.#judge();
    if (this.#othersHaveChanged) this.#tryLook();
    else if (current.schemaGeneration > this.#seen.generation || !this.#ready) this.#lookSoon();
    // All proxies hear of it at once, when clients that were held have more need of the home shard.
    else if (flipped) this.#schedule(AFTER_FLIP_MS);
    else this.#schedule();
  }

  /** Other proxies have announced what was not seen here yet; they may wait for us. */
  get #othersHaveChanged(): boolean {
    const { schemaGeneration } = this.#options.live.current;
    let own = 0;
    for (const generation of this.#own) if (generation <= schemaGeneration) own += 1;
    // The word of our own may come before its number does.
    return schemaGeneration - this.#seen.generation > BigInt(this.#announcing ? own + 1 : own);
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
    const rest = this.#readAt + REST * this.#readMs - performance.now();
    if (this.#ready && this.#unread.isEmpty && rest > 0) this.#schedule(rest);
    else this.#tryLook();
  }

  #tryLook(): void {
    this.#clearTimer();
    this.#looks.run().then(
      () => this.#schedule(),
      (error: unknown) => {
        if (this.#closed) return;
        // Everybody who has asked for the same look hears of it.
        if (error !== this.#logged)
          this.#options.logger.warn({ err: error }, 'could not read the schema; the last one is used');
        this.#logged = error;
        this.#schedule(this.#ready && this.#unread.isEmpty ? MIN_PAUSE_MS : RETRY_MS);
      },
    );
  }

  /** Unless there is a look before. */
  #schedule(ms = Math.min(MAX_PAUSE_MS, Math.max(MIN_PAUSE_MS, this.#lookMs / SHARE))): void {
    const at = performance.now() + ms;
    if (this.#closed || (this.#timer !== null && this.#timer.at <= at)) return;
    this.#clearTimer();
    this.#timer = { timeout: setTimeout(() => this.#tryLook(), ms).unref(), at };
  }

  #clearTimer(): void {
    if (this.#timer !== null) clearTimeout(this.#timer.timeout);
    this.#timer = null;
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
      this.#readAt = performance.now();
      this.#readMs = this.#readAt - began;
      this.#signature = signature;
      this.#current = metadata;
    }
    const before = this.#ready;
    this.#seen = seen;
    for (const generation of this.#own) if (generation <= seen.generation) this.#own.delete(generation);
    if (spread && era === this.#era) this.#spread = true;
    this.#judge();
    const read = this.#unread.read(seen.changes);
    if (read || this.#ready !== before) live.wake();
    live.tellHeard();
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
      // It would take longer to compile the query than to run it.
      onConnect: async (client) => {
        await client.query('SET jit = off');
      },
    });
    // An idle connection that dies is replaced when it is needed.
    pool.on('error', () => undefined);
    // The pool does not listen to one that is in use or being closed, and an error that nobody listens to ends the process.
    pool.on('connect', (client) => client.on('error', () => undefined));
    this.#pool = { url, pool };
    return pool;
  }
}
