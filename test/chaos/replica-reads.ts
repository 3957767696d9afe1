import { setTimeout as delay } from 'node:timers/promises';
import { withClient } from '../support/client.js';
import type { World } from './world.js';

const LOOK_MS = 500;

/** Counts what replicas have answered, by what proxies say of themselves. A proxy counts anew in each of its lives, and forgets replicas that are no more. */
export class ReplicaReads {
  total = 0;
  /** By proxy and replica, as it was told last. */
  readonly #told = new Map<string, number>();
  readonly #world: World;
  readonly #stopping = new AbortController();
  readonly #running: Promise<unknown>;

  constructor(world: World) {
    this.#world = world;
    this.#running = Promise.all(world.proxies.map((proxy, n) => this.#loop(proxy, n)));
  }

  /** To be called when nothing is in the way of anybody any more. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  async #loop(proxy: World['proxies'][number], n: number): Promise<void> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      await this.#look(proxy, n);
      await delay(LOOK_MS, undefined, { signal }).catch(() => undefined);
    }
  }

  async #look(proxy: World['proxies'][number], n: number): Promise<void> {
    try {
      await withClient(this.#world.consoleUrl(proxy), async (c) => {
        const { rows } = await c.query<Record<string, string>>('SHOW REPLICAS');
        for (const row of rows) this.#count(`${n} ${row.migration}`, Number(row.reads));
      });
    } catch {
      // It is disturbed just now.
    }
  }

  #count(key: string, reads: number): void {
    const told = this.#told.get(key) ?? 0;
    this.total += reads >= told ? reads - told : reads;
    this.#told.set(key, reads);
  }
}
