import type { ClusterOptions } from '../../deploy/embedded/cluster.js';
import { loadMigration, RESTING_STATES } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import { waitFor } from '../support/wait-for.js';
import { MiniProxy } from './mini-proxy.js';
import { resetShop, type Setting, silent, startSetting } from './setting.js';
import { Writers } from './writers.js';

/** Migrators and writers of a test, on one setting. */
export class Moves {
  #s: Setting;
  readonly #servers: ClusterOptions | undefined;
  readonly #stops: (() => Promise<void>)[] = [];
  /** Whether a test has failed, and may have left anything. */
  #isSoiled = false;

  private constructor(s: Setting, servers: ClusterOptions | undefined) {
    this.#s = s;
    this.#servers = servers;
  }

  static async start(servers?: ClusterOptions): Promise<Moves> {
    return new Moves(await startSetting(servers), servers);
  }

  get s(): Setting {
    return this.#s;
  }

  /** The shop as it was; behind a test that failed on a setting of its own, so as not to fail for it. @returns the setting */
  async reset(tenants: number, orders: number): Promise<Setting> {
    if (this.#isSoiled) {
      await this.close();
      this.#s = await startSetting(this.#servers);
      this.#isSoiled = false;
    }
    await resetShop(this.#s, tenants, orders);
    return this.#s;
  }

  startMigrator(options: Record<string, number> = {}): void {
    const controller = new AbortController();
    const running = new Migrator({ catalog: this.s.catalog, logger: silent, pollMs: 100, ...options }).run(
      controller.signal,
    );
    this.#stops.push(async () => {
      controller.abort();
      await running;
    });
  }

  /** @param stale also a writer that goes past the proxy, to the source, all the time */
  async startLoad(tenants: number, stale = true): Promise<{ proxy: MiniProxy; writers: Writers }> {
    const proxy = await MiniProxy.start(this.s.catalogUrl, 'tenant');
    const writers = new Writers();
    writers.start(proxy, 4, tenants);
    if (stale) writers.startStale(this.s.urlOne, tenants);
    this.#stops.push(async () => {
      await writers.stop();
      await proxy.close();
    });
    return { proxy, writers };
  }

  /** To be called by `stop`. */
  atStop(stop: () => Promise<void> | void): void {
    this.#stops.push(async () => stop());
  }

  /** @returns the state in which the migration rests */
  async atRest(id: bigint): Promise<string> {
    return waitFor(
      async () => {
        const row = await loadMigration(this.s.catalog.pool, id);
        return RESTING_STATES.includes(row.state) ? row.state : null;
      },
      { what: `migration ${id} to end` },
    );
  }

  /** What was started, the last first. @param task the test that is over */
  async stop(task?: { readonly result?: { readonly state: string } | undefined }): Promise<void> {
    const isSoiled = this.#isSoiled || task?.result?.state === 'fail';
    // Also when it cannot be stopped.
    this.#isSoiled = true;
    for (const stop of this.#stops.splice(0).reverse()) await stop();
    this.#isSoiled = isSoiled;
  }

  async close(): Promise<void> {
    await this.s.catalog.close();
  }
}
