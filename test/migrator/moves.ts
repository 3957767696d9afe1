import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, expect } from 'vitest';
import type { ClusterOptions } from '../../deploy/embedded/cluster.js';
import { requestEnd } from '../../migrator/migration-requests.js';
import { loadMigration, type MigrationRow, RESTING_STATES } from '../../migrator/migration-row.js';
import { Migrator } from '../../migrator/migrator.js';
import type { Position } from '../../topology/key.js';
import type { MigrationState } from '../../topology/migration.js';
import { waitFor } from '../support/wait-for.js';
import { MiniProxy } from './mini-proxy.js';
import { approveMove, leftovers, resetShop, type Setting, silent, startSetting } from './setting.js';
import { whereItStands } from './where-it-stands.js';
import { audit, Writers } from './writers.js';

/** Moves on a setting of their own, in the tests of this file or of this `describe`: what each starts ends with it, and the setting with all of them. */
export function startMoves(servers?: ClusterOptions): Moves {
  const moves = new Moves(servers);
  beforeAll(() => moves.start());
  afterEach(({ task }) => moves.endTest(task.result?.state === 'fail'));
  afterAll(() => moves.close());
  return moves;
}

/** The same; each finds the shop with `tenants` tenants of `orders` orders each, all on the first shard. */
export function shopMoves(tenants: number, orders: number, servers?: ClusterOptions): Moves {
  const moves = startMoves(servers);
  beforeEach(() => moves.reset(tenants, orders));
  return moves;
}

/** What is particular to a way there and back. */
interface ThereAndBack {
  /** Default: all tenants from `lo` on. */
  readonly hi?: Position;
  /** Done as soon as it is approved. */
  begun?(id: bigint): Promise<unknown>;
  /** Done while the interval is there, and the way back open. */
  there?(id: bigint): Promise<void>;
  /** Of `startLoad`. */
  readonly pauseMs?: number;
  /** Whether a tenant belongs to the second shard before and afterwards. Default: none. */
  onTwo?(tenant: number): boolean;
}

/** Migrators, writers and sessions of a test, on one setting. */
export class Moves {
  readonly #servers: ClusterOptions | undefined;
  readonly #stops: (() => Promise<void>)[] = [];
  #setting: Setting | null = null;
  /** Whether a test has failed, and may have left anything. */
  #isSoiled = false;
  /** The setting as it is now. */
  readonly s: Setting;

  /** To be started. */
  constructor(servers?: ClusterOptions) {
    this.#servers = servers;
    const now = (): Setting => {
      if (this.#setting === null) throw new Error('not started yet');
      return this.#setting;
    };
    this.s = {
      get catalogUrl() {
        return now().catalogUrl;
      },
      get catalog() {
        return now().catalog;
      },
      get one() {
        return now().one;
      },
      get two() {
        return now().two;
      },
      get urlOne() {
        return now().urlOne;
      },
      get urlTwo() {
        return now().urlTwo;
      },
    };
  }

  async start(): Promise<void> {
    this.#setting = await startSetting(this.#servers);
  }

  async close(): Promise<void> {
    const was = this.#setting;
    this.#setting = null;
    await was?.catalog.close();
  }

  /** Behind a test that failed: other servers, so that the next one does not fail for it. @returns whether it was so */
  async beginAnew(): Promise<boolean> {
    if (!this.#isSoiled) return false;
    const { one, two } = this.s;
    await this.close();
    await Promise.all([one.stop(), two.stop()]);
    await this.start();
    this.#isSoiled = false;
    return true;
  }

  /** The shop as it was. */
  async reset(tenants: number, orders: number): Promise<void> {
    await this.beginAnew();
    await resetShop(this.s, tenants, orders);
  }

  /** @returns ends it before the test does */
  startMigrator(options: Record<string, number> = {}): () => Promise<void> {
    const controller = new AbortController();
    const running = new Migrator({ catalog: this.s.catalog, logger: silent, pollMs: 100, ...options }).run(
      controller.signal,
    );
    const stop = async () => {
      controller.abort();
      await running;
    };
    this.atStop(stop);
    return stop;
  }

  /**
   * @param stale whether another writer goes past the proxy, to the source, all the time
   * @param pauseMs of each writer between two writes: enough that some are under way whatever happens, and the processors have time left for what the test is about; 0: none
   */
  async startLoad(
    tenants: number,
    { stale = true, count = 4, pauseMs = 10 } = {},
  ): Promise<{ proxy: MiniProxy; writers: Writers }> {
    const proxy = await this.startProxy();
    const writers = new Writers(pauseMs);
    writers.start(proxy, count, tenants);
    if (stale) writers.startStale(this.s.urlOne, tenants);
    this.atStop(() => writers.stop());
    return { proxy, writers };
  }

  /**
   * Tenants of the first shard from `lo` on move to the second one, and are taken back, while they are written to: before, between, and behind it. All that was acknowledged is there
   * once, and nothing of the migration is left.
   */
  async thereAndBack(
    tenants: number,
    lo: Position,
    { hi, begun, there, onTwo = () => false, ...load }: ThereAndBack = {},
  ): Promise<{ id: bigint; proxy: MiniProxy; writers: Writers }> {
    const { proxy, writers } = await this.startLoad(tenants, load);
    const writes = async (n: number, what: string) => {
      const before = writers.acknowledged;
      await waitFor(() => writers.acknowledged > before + n, { what });
    };
    const id = await approveMove(this.s, lo, hi ?? null);
    await begun?.(id);
    this.startMigrator({ wayBackMs: 3_600_000 });
    await this.inState(id, 'reversing');
    await there?.(id);
    await writes(300, 'writes at the new owner');
    await requestEnd(this.s.catalog.pool, id, 'rollback', 'test');
    expect(await this.atRest(id)).toBe('rolled_back');
    await writes(200, 'writes after the rollback');
    await writers.stop();
    expect(writers.errors).toEqual([]);
    const { facts } = await this.load(id);
    expect([facts.exact, facts.backExact]).toEqual(['identical', 'identical']);
    expect(await audit(this.s, writers, onTwo)).toEqual([]);
    expect(await leftovers(this.s)).toEqual([]);
    return { id, proxy, writers };
  }

  async startProxy(): Promise<MiniProxy> {
    const proxy = await MiniProxy.start(this.s.catalogUrl, 'tenant');
    this.atStop(() => proxy.close());
    return proxy;
  }

  /** A session that goes past the proxies. */
  async session(url: string): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: url });
    client.on('error', () => undefined);
    await client.connect();
    this.atStop(() => client.end());
    return client;
  }

  /** To be called by `stop`. */
  atStop(stop: () => Promise<void> | void): void {
    this.#stops.push(async () => stop());
  }

  load(id: bigint): Promise<MigrationRow> {
    return loadMigration(this.s.catalog.pool, id);
  }

  /** @returns the state in which the migration rests */
  async atRest(id: bigint): Promise<MigrationState> {
    try {
      return await waitFor(
        async () => {
          const { state } = await this.load(id);
          return RESTING_STATES.includes(state) ? state : null;
        },
        { what: `migration ${id} to end` },
      );
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${await whereItStands(this.s, await this.load(id))}`, {
        cause: error,
      });
    }
  }

  async inState(id: bigint, state: MigrationState): Promise<void> {
    await waitFor(async () => (await this.load(id)).state === state, { what: `migration ${id} to be ${state}` });
  }

  /** Until the migration says so. */
  async noted(id: bigint, note: RegExp): Promise<void> {
    await waitFor(async () => note.test((await this.load(id)).progress.note ?? ''), {
      what: `migration ${id} to say ${note}`,
    });
  }

  /** What was started, the last first. */
  async stop(): Promise<void> {
    const failures: unknown[] = [];
    for (const stop of this.#stops.splice(0).reverse()) await stop().catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw failures[0];
  }

  async endTest(hasFailed: boolean): Promise<void> {
    // Also by what cannot be stopped.
    const isSoiled = this.#isSoiled || hasFailed;
    this.#isSoiled = true;
    await this.stop();
    this.#isSoiled = isSoiled;
  }
}
