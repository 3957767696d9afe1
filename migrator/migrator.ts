import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { Logger } from 'pino';
import type { Catalog } from '../topology/catalog/catalog.js';
import { drive } from './driver.js';
import { DEFAULT_OPTIONS, type MigratorOptions } from './options.js';
import { turnSql } from './turn.js';

/** Migrations that want a driver now. An approved one waits its turn. */
const WORK = `
SELECT m.id::text FROM foreshard.migration m
 WHERE (m.lease_until IS NULL OR m.lease_until < clock_timestamp() OR m.lease_owner = $1)
   AND CASE m.state
     WHEN 'approved' THEN m.abort_requested OR ${turnSql('m')}
     WHEN 'failed' THEN m.abort_requested AND NOT m.facts ? 'flipEpoch'
     WHEN 'planned' THEN m.abort_requested
     ELSE m.state NOT IN ('done', 'rolled_back', 'aborted')
   END
 ORDER BY m.id`;

export interface MigratorSetup extends Partial<MigratorOptions> {
  readonly catalog: Catalog;
  readonly logger: Logger;
}

/** Picks up migrations that are approved or were left unfinished, and drives them. Any number of these may run. */
export class Migrator {
  readonly #catalog: Catalog;
  readonly #log: Logger;
  readonly #options: MigratorOptions;
  /** One per process and life: what an earlier life held must run out. */
  readonly #owner = randomUUID();
  readonly #driving = new Map<string, Promise<void>>();
  #wake: () => void = () => undefined;

  constructor(setup: MigratorSetup) {
    const { catalog, logger, ...options } = setup;
    this.#catalog = catalog;
    this.#log = logger;
    this.#options = { ...DEFAULT_OPTIONS, ...options };
  }

  /** Works until `signal` fires; then stops where it is, which is safe anywhere, gives its leases back and resolves. */
  async run(signal: AbortSignal): Promise<void> {
    const listening = this.#listen(signal);
    let reachable = true;
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      try {
        const work = await this.#catalog.pool.query<{ id: string }>({
          name: 'foreshard work',
          text: WORK,
          values: [this.#owner],
        });
        for (const { id } of work.rows) this.#start(id, signal);
        if (!reachable) this.#log.info('the catalog can be asked for migrations again');
        reachable = true;
      } catch (error) {
        // Once, and not with every poll until it is back.
        if (reachable) this.#log.warn({ error: String(error) }, 'the catalog cannot be asked for migrations');
        reachable = false;
      }
      // The poll stands behind NOTIFY, for the day a notification is lost. Its timer goes as soon as it is not waited for.
      const poll = new AbortController();
      const until = AbortSignal.any([signal, poll.signal]);
      await Promise.race([woken, delay(this.#options.pollMs, undefined, { signal: until }).catch(ignoreAbort)]);
      poll.abort();
    }
    await Promise.all([listening, ...this.#driving.values()]);
  }

  #start(id: string, signal: AbortSignal): void {
    if (this.#driving.has(id)) return;
    const driving = drive({
      catalog: this.#catalog,
      id: BigInt(id),
      owner: this.#owner,
      options: this.#options,
      log: this.#log,
      signal,
    })
      .then(
        () => {
          // The next one in line need not wait for the poll; after an error it had better.
          this.#driving.delete(id);
          this.#wake();
        },
        (error: unknown) => {
          this.#log.error({ migration: id, error: String(error) }, 'the driver of the migration stopped');
        },
      )
      .finally(() => this.#driving.delete(id))
      .then(() => undefined);
    this.#driving.set(id, driving);
  }

  async #listen(signal: AbortSignal): Promise<void> {
    let told = false;
    while (!signal.aborted) {
      const client = new pg.Client({
        connectionString: this.#catalog.url,
        keepAlive: true,
        application_name: 'foreshard migrator (listen)',
      });
      let stop = (): void => undefined;
      try {
        const ended = new Promise<void>((resolve) => {
          stop = resolve;
          client.once('end', resolve);
          client.once('error', () => resolve());
          signal.addEventListener('abort', stop, { once: true });
        });
        client.on('error', () => undefined); // `ended` was told
        client.on('notification', () => this.#wake());
        await client.connect();
        await client.query('LISTEN foreshard_migration');
        told = false;
        await ended;
      } catch (error) {
        if (!told) this.#log.warn({ error: String(error) }, 'cannot listen on the catalog; polling goes on');
        told = true;
      } finally {
        signal.removeEventListener('abort', stop);
      }
      await client.end().catch(() => undefined); // it is gone already
      await delay(1000, undefined, { signal }).catch(ignoreAbort);
    }
  }
}

/** The pause was cut short. */
function ignoreAbort(): void {}
