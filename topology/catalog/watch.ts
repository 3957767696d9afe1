import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { timedQuery } from './timed-query.js';

const POLL_MS = 1000;
const FIRST_BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 5000;

/** What the poll compares: cheap to read, and different whenever a proxy has something to learn. */
const SIGNATURE = `
SELECT m.epoch || ' ' || m.schema_generation || ' ' || coalesce((SELECT string_agg(h.id || '@' || extract(epoch FROM h.deadline) || h.ends_transactions, ',' ORDER BY h.id)
                                     FROM foreshard.hold h), '')
  || ' ' || coalesce((SELECT string_agg(r.migration_id || '@' || r.schema_generation, ',' ORDER BY r.migration_id)
                        FROM foreshard.range_replica r WHERE r.since IS NOT NULL), '') AS signature
FROM foreshard.meta m`;

/**
 * Tells a listener that the topology may have changed. LISTEN on a connection of its own is fast; a connection can die
 * without anybody noticing, so a poll over the pool stands behind it.
 */
export class TopologyWatch {
  readonly #url: string;
  readonly #pool: pg.Pool;
  readonly #listener: () => void;
  readonly #heard: (announcement: string) => boolean;
  readonly #closing = new AbortController();
  #client: pg.Client | null = null;
  #signature: string | null = null;
  #telling = false;
  #loops: Promise<unknown> = Promise.resolve();

  /** @param heard whether an announcement says all that there is to know: then `listener` is not called for it */
  constructor(url: string, pool: pg.Pool, listener: () => void, heard: (announcement: string) => boolean) {
    this.#url = url;
    this.#pool = pool;
    this.#listener = listener;
    this.#heard = heard;
  }

  /** Resolves when LISTEN is in place, after the first call of the listener. */
  async start(): Promise<void> {
    const { ended } = await this.#connect();
    this.#loops = Promise.all([this.#keepListening(ended), this.#poll()]);
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#client?.end().catch(ignoreConnectionError);
    await this.#loops;
  }

  /** `ended` resolves when the new connection is gone. */
  async #connect(): Promise<{ ended: Promise<void> }> {
    const client = new pg.Client({
      connectionString: this.#url,
      connectionTimeoutMillis: 10_000,
      keepAlive: true,
      application_name: 'foreshard watch',
    });
    const ended = new Promise<void>((resolve) => {
      client.once('end', resolve);
      client.once('error', () => resolve());
    });
    client.on('error', () => undefined); // `ended` has been told by the first one
    client.on('notification', ({ payload = '' }) => {
      if (this.#closed() || !this.#heard(payload)) this.#tellOnce();
    });
    try {
      await client.connect();
      await client.query('LISTEN foreshard_topology');
    } catch (error) {
      await client.end().catch(ignoreConnectionError);
      throw error;
    }
    this.#client = client;
    // Whatever happened while nobody listened is covered by this call.
    this.#tell();
    return { ended };
  }

  async #keepListening(firstEnd: Promise<void>): Promise<void> {
    let ended = firstEnd;
    while (!this.#closed()) {
      await ended;
      const dead = this.#client;
      this.#client = null;
      await dead?.end().catch(ignoreConnectionError);
      let backoffMs = FIRST_BACKOFF_MS;
      while (!this.#closed()) {
        try {
          ended = (await this.#connect()).ended;
          break;
        } catch {
          // The catalog is away; the poll and the proxy's lease deal with that. Here it is only tried again.
          await this.#pause(backoffMs);
          backoffMs = Math.min(backoffMs * 2, MAX_BACKOFF_MS);
        }
      }
    }
    await this.#client?.end().catch(ignoreConnectionError);
  }

  async #poll(): Promise<void> {
    while (!this.#closed()) {
      try {
        const signature =
          (await this.#pool.query<{ signature: string }>(timedQuery(SIGNATURE))).rows[0]?.signature ?? null;
        if (this.#signature !== null && signature !== this.#signature) this.#tell();
        this.#signature = signature;
      } catch {
        // Away or too slow: asked again at the next tick, and what was missed shows in the signature then.
      }
      await this.#pause(POLL_MS);
    }
  }

  /** A change that concerns several tables is announced for each of them, in one packet. */
  #tellOnce(): void {
    if (this.#telling) return;
    this.#telling = true;
    setImmediate(() => {
      this.#telling = false;
      this.#tell();
    });
  }

  #tell(): void {
    if (!this.#closed()) this.#listener();
  }

  #closed(): boolean {
    return this.#closing.signal.aborted;
  }

  async #pause(ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#closing.signal }).catch(ignoreAbort);
  }
}

/** Ending a connection that is already broken may fail: it is gone either way. */
function ignoreConnectionError(): void {}

/** The pause was cut short by close(). */
function ignoreAbort(): void {}
