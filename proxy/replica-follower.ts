import { randomInt, randomUUID } from 'node:crypto';
import pg from 'pg';
import type { Logger } from 'pino';
import { quoteTable } from '../topology/quote.js';
import type { RangeReplica, Shard } from '../topology/topology.js';

/** From the beginning of one round to that of the next, ms. */
const ROUND_MS = 50;
/** Between two looks at what has arrived, ms. */
const LOOK_MS = 2;
/** Who asks for a round of its own waits no longer than this, ms. */
const FRESH_MS = 40;
/** When nobody has wanted to know for so long, it is not asked any more; and later the connections are closed. ms */
const WANTED_MS = 2_000;
const IDLE_MS = 30_000;
const RETRY_MS = 500;
const TIMEOUT_MS = 5_000;
/** Tokens under way at most. */
const TOKENS = 256;
/** Rows of proxies that have not gone on for so long are taken away. */
const FORGOTTEN = '1 hour';

/** What is known of a replica; times on performance.now()'s clock. */
export interface ReplicaProgress {
  /** It has everything that was to be seen at its source at this moment. */
  readonly asOf: number;
  /**
   * When it was asked. It holds for connections that were there by then: a server that crashes may forget what it has applied, but no connection
   * outlives that.
   */
  readonly checkedAt: number;
  /** When the answer came. */
  readonly knownAt: number;
}

interface Clients {
  readonly source: pg.Client;
  readonly destination: pg.Client;
}

/**
 * Knows how far one replica is. In each round it takes the time, writes a new token to the source, in a row of its own of the table that is
 * replicated with the interval, and looks for it at the replica. Replication carries out transactions in the order of their commits: where the token
 * is, everything is that was visible when the round began. Neither side's clock is asked, and no position in a log, of which the one that
 * is reported soonest is that of what has been received, not applied.
 *
 * Rounds are made only while somebody wants to read there.
 */
export class ReplicaFollower {
  progress: ReplicaProgress | null = null;
  readonly #replica: RangeReplica;
  readonly #source: Shard;
  readonly #shard: Shard;
  readonly #logger: Logger;
  /** Of our row. 1 is the migrator's. */
  readonly #row = randomInt(2, 2 ** 31);
  /** When the round of a token began. */
  readonly #sent = new Map<string, number>();
  #clients: Clients | null = null;
  #wantedAt = 0;
  #running = false;
  #closed = false;
  #failed = false;
  /** Ends the pause before the next round. */
  #next: () => void = () => undefined;
  #waiting: { readonly since: number; readonly done: () => void }[] = [];
  #idle: NodeJS.Timeout | null = null;

  constructor(replica: RangeReplica, source: Shard, shard: Shard, logger: Logger) {
    this.#replica = replica;
    this.#source = source;
    this.#shard = shard;
    this.#logger = logger;
  }

  /** Somebody would read there. */
  want(now: number): void {
    this.#wantedAt = now;
    if (!this.#running && !this.#closed) void this.#run();
  }

  /** Resolves when a round that begins now has ended, or is not to be waited for any longer. Never rejects. */
  fresh(): Promise<void> {
    const since = performance.now();
    this.want(since);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, FRESH_MS);
      this.#waiting.push({
        since,
        done: () => {
          clearTimeout(timer);
          resolve();
        },
      });
      this.#next();
    });
  }

  close(): void {
    this.#closed = true;
    this.#next();
    if (!this.#running) void this.#disconnect();
  }

  async #run(): Promise<void> {
    this.#running = true;
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    while (!this.#closed && performance.now() - this.#wantedAt < WANTED_MS) {
      const began = performance.now();
      let pause = ROUND_MS;
      try {
        await this.#round(began);
        this.#failed = false;
      } catch (error) {
        if (!this.#failed && !this.#closed)
          this.#logger.warn(
            { err: error, migration: String(this.#replica.id), shard: this.#shard.name },
            'cannot tell how far the replica is; its interval is read at the owner',
          );
        this.#failed = true;
        pause = RETRY_MS;
        await this.#disconnect();
      }
      const left = began + pause - performance.now();
      if (left > 0 && (this.#failed || this.#waiting.length === 0)) await this.#pause(left);
    }
    this.#running = false;
    this.progress = null;
    this.#settle(Number.POSITIVE_INFINITY);
    if (this.#closed) await this.#disconnect();
    else {
      this.#idle = setTimeout(() => void this.#disconnect(), IDLE_MS);
      this.#idle.unref();
    }
  }

  async #round(began: number): Promise<void> {
    const { source, destination } = this.#clients ?? (await this.#connect());
    const marker = quoteTable(this.#replica.marker);
    const at = performance.now();
    const token = randomUUID();
    if (this.#sent.size >= TOKENS) this.#sent.clear();
    this.#sent.set(token, at);
    await source.query(
      `INSERT INTO ${marker} (id, token) VALUES ($1, $2)
       ON CONFLICT (id) DO UPDATE SET token = excluded.token, at = clock_timestamp()`,
      [this.#row, token],
    );
    for (;;) {
      const checkedAt = performance.now();
      const { rows } = await destination.query<{ token: string }>(`SELECT token FROM ${marker} WHERE id = $1`, [
        this.#row,
      ]);
      const found = rows[0]?.token;
      const asOf = found === undefined ? undefined : this.#sent.get(found);
      if (asOf !== undefined) this.#arrived(asOf, checkedAt);
      if (found === token || performance.now() - began >= ROUND_MS || this.#closed) return;
      await this.#pause(LOOK_MS);
    }
  }

  #arrived(asOf: number, checkedAt: number): void {
    this.progress = { asOf, checkedAt, knownAt: performance.now() };
    for (const [token, at] of this.#sent) if (at < asOf) this.#sent.delete(token);
    this.#settle(asOf);
  }

  #settle(asOf: number): void {
    const done = this.#waiting.filter(({ since }) => since <= asOf);
    this.#waiting = this.#waiting.filter(({ since }) => since > asOf);
    for (const waiter of done) waiter.done();
  }

  async #connect(): Promise<Clients> {
    const [source, destination] = await Promise.all([
      // Decoded is what has been flushed: a server that commits asynchronously would let us wait for that.
      this.#client(this.#source, "SET synchronous_commit = 'local'"),
      this.#client(this.#shard, 'SET default_transaction_read_only = on'),
    ]);
    this.#clients = { source, destination };
    await source.query(
      `DELETE FROM ${quoteTable(this.#replica.marker)} WHERE id > 1 AND at < clock_timestamp() - interval '${FORGOTTEN}'`,
    );
    return this.#clients;
  }

  async #client(shard: Shard, settings: string): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: shard.url,
      connectionTimeoutMillis: TIMEOUT_MS,
      query_timeout: TIMEOUT_MS,
      keepAlive: true,
      application_name: 'foreshard replica',
    });
    // The round under way fails with it.
    client.on('error', () => {
      this.progress = null;
    });
    await client.connect();
    await client.query(`SET lock_timeout = ${TIMEOUT_MS}; ${settings}`);
    return client;
  }

  async #disconnect(): Promise<void> {
    const clients = this.#clients;
    this.#clients = null;
    this.progress = null;
    this.#sent.clear();
    if (clients === null) return;
    const { source, destination } = clients;
    if (this.#closed)
      await source
        .query(`DELETE FROM ${quoteTable(this.#replica.marker)} WHERE id = $1`, [this.#row])
        .catch(() => undefined); // the table goes with the replica
    await Promise.all([source, destination].map((client) => client.end().catch(() => undefined))); // gone already
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#next = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
