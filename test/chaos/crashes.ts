import { beforeEach, expect } from 'vitest';
import type { ClusterOptions } from '../../deploy/embedded/cluster.js';
import { audit as auditShards } from '../../migrator/audit/audit.js';
import { CRASH_POINTS, type CrashPoint } from '../../migrator/crash-points.js';
import { requestAbort } from '../../migrator/migration-requests.js';
import { RESTING_STATES } from '../../migrator/migration-row.js';
import { addTriggers, behaviour, effectsOf } from '../migrator/behaviour.js';
import { type Moves, startMoves } from '../migrator/moves.js';
import {
  abortOnEntering,
  approveMove,
  approveReplica,
  leftovers,
  promoteOnFollowing,
  resetShop,
  rollBackOnReversing,
} from '../migrator/setting.js';
import { audit } from '../migrator/writers.js';
import { withClient } from '../support/client.js';
import { waitFor } from '../support/wait-for.js';
import { type Lives, type Place, startLives } from './lives.js';

const TENANTS = 12;
const CUT = 6;

const named = (...patterns: readonly RegExp[]): readonly CrashPoint[] =>
  CRASH_POINTS.filter((point) => patterns.some((pattern) => pattern.test(point)));

/** By what it takes to pass them. */
export const POINTS = {
  /** The destination has never had the tables. */
  fresh: named(/:create-(schema|function|type|sequence|tables|triggers|index)$/),
  /** It takes back what was made. */
  aborting: named(/^after:abort-reopen$/, /^after:undo$/),
  /** It does so where the destination had never had the tables. */
  undoingTables: named(/:undo-(table|sequence|type|function|schema)$/),
  /** It is a replica; the last ones: and is dropped. */
  ofReplicas: named(/:(serve|stop)-replica$/),
  /** Its tables are looked at again. */
  notingGenerations: named(/:note-generation$/),
  /** Transactions on the interval are ended for the flip. */
  endingTransactions: named(/:end-transactions$/),
  /** A flip that somebody has asked for is given up. */
  givingUp: named(/:withdraw-flip$/),
  repairing: named(/:repair$/, /:(replace|repair)-rows$/, /^before:compare-again$/),
  pausing: named(/^after:stop-following$/, /^after:follow-again$/),
  /** A copy begins again. */
  ofLostCopies: named(/:empty-tables$/, /:forget-copy$/),
  /** One before it has died while clients were held. */
  reopening: named(/^after:(reopen-gate|drop-hold)$/),
  /** It has a way back, and takes it. */
  onTheWayBack: named(/\bback-(?!.*[-:](partition|end-transactions)$)/),
  /** Partitions come while it moves: see partitions-crash.test.ts. */
  ofPartitions: named(/-partition$/),
  /** PostgreSQL 15, with a way back. */
  of15: named(/^after:advance-slot$/),
  /** It changes bounds alone. */
  recut: named(/:recut$/),
  /** It takes tables out of a keyspace. */
  separate: named(/:separate$/),
  /** It is of columns that are split: see halves-crash.test.ts. */
  ofHalves: named(/:((make|follow|fill|commit|undo)-)?(halve|halves|half|unite)$/),
  /** It is an audit that repairs. */
  auditing: named(/:audit-repair$/),
};

/** All others: every move passes them. */
export const PASSED_BY_ALL: readonly CrashPoint[] = CRASH_POINTS.filter(
  (point) => !Object.values(POINTS).some((some) => some.includes(point)),
);

/** The points in `number` rows of about as many, each in the order in which they are passed, with others between any two. */
export function dealt(points: readonly CrashPoint[], number: number): (readonly [CrashPoint, readonly CrashPoint[]])[] {
  const rows = Array.from({ length: number }, (_, row) => points.filter((_point, i) => i % number === row));
  return rows.map((row) => [row[0] as CrashPoint, row]);
}

/**
 * Every `n`th of them, from one on that differs from run to run: what takes a migration for each point takes minutes for all. All of them, and so the same
 * each time, with FORESHARD_CRASHES=all.
 */
export function someOf<T>(all: readonly T[], n: number): readonly T[] {
  if (process.env.FORESHARD_CRASHES === 'all') return all;
  const from = Math.floor(Math.random() * n);
  return all.filter((_one, i) => i % n === from);
}

/** Migrators that die, one behind the other, in the tests of this file or of this `describe`. */
export function startCrashes(servers?: ClusterOptions): Crashes {
  const moves = startMoves(servers);
  const crashes = new Crashes(moves, startLives(moves));
  // What each test leaves, the next one goes on with. Behind one that failed, it begins anew, so as not to fail for it.
  beforeEach(() => crashes.beginAnew());
  return crashes;
}

/** A shop whose orders have triggers of all kinds and policies, of which an interval moves to and fro. */
export class Crashes {
  readonly moves: Moves;
  readonly #lives: Lives;
  #owner: 'one' | 'two' = 'one';
  #isMade = false;
  /** Triggers, their functions and policies, as they were made. */
  #meant: readonly unknown[] = [];

  constructor(moves: Moves, lives: Lives) {
    this.moves = moves;
    this.#lives = lives;
  }

  async beginAnew(): Promise<void> {
    if (!(await this.moves.beginAnew()) && this.#isMade) return;
    await this.reset();
  }

  /** All of the shop is on the first shard; the second one has nothing. */
  async reset(): Promise<void> {
    const { s } = this.moves;
    await resetShop(s, TENANTS, 30);
    await addTriggers(s, true);
    this.#meant = await behaviour(s.urlOne);
    this.#owner = 'one';
    this.#isMade = true;
  }

  /** Both shards have the tables. */
  async haveTables(): Promise<void> {
    if (!(await hasShop(this.moves.s.urlTwo))) expect(await this.resume([])).toBe('done');
  }

  /** The second shard has none. */
  async haveNoTables(): Promise<void> {
    if (await hasShop(this.moves.s.urlTwo)) await this.reset();
  }

  /**
   * The interval moves to where it is not, under load; a migrator dies at the first of `places`, the next one goes on and dies at the second, and so on,
   * and the last goes on to the end. @param often it dies too at the last, each time that it has got further @returns the end
   */
  async resume(places: readonly Place[], { often = false, back = false } = {}): Promise<string> {
    const { s } = this.moves;
    const lives = this.#lives;
    const points = places.map((place) => place.replace(/#.*/, '') as CrashPoint);
    const passes = (some: readonly CrashPoint[]) => points.some((point) => some.includes(point));
    const isBack = back || passes(POINTS.onTheWayBack);
    const { writers } = await this.moves.startLoad(TENANTS, { stale: false, count: 1 });
    let end = '';
    try {
      const id = await this.#approve(passes(POINTS.ofReplicas));
      await promoteOnFollowing(s, true);
      if (points.includes('after:stop-replica')) await abortOnEntering(s, 'ready');
      if (passes(POINTS.aborting)) await abortOnEntering(s, 'verifying');
      await rollBackOnReversing(s, isBack);
      for (const place of places) expect([place, await lives.untilCrash(place, isBack)]).toEqual([place, 'SIGKILL']);
      if (often) expect(await this.#dieBehindEach(points.at(-1) as CrashPoint, id, isBack)).toBeGreaterThan(3);
      end = await lives.toTheEnd(id);
      await abortOnEntering(s, null);
      await rollBackOnReversing(s, false);
      if (end === 'done') this.#owner = this.#other;
      const written = writers.acknowledged;
      await waitFor(() => writers.acknowledged > written + 20, { what: 'writes after the migration' });
      return end;
    } finally {
      await writers.stop();
      const onTwo = (tenant: number) => tenant >= CUT && this.#owner === 'two';
      const effects = await effectsOf(s, writers, (await hasShop(s.urlTwo)) ? onTwo : null, true);
      const wrong = [...(await audit(s, writers, onTwo)), ...effects];
      expect({ errors: writers.errors, wrong }).toEqual({ errors: [], wrong: [] });
      await this.#nothingLeft();
      // The next one's writers begin anew.
      for (const url of [s.urlOne, s.urlTwo]) await forget(url);
    }
  }

  /** The same, but it dies once, and the one that goes on finds that it is to be aborted. */
  async abort(point: CrashPoint, back: boolean): Promise<string> {
    const { s } = this.moves;
    const id = await this.#approve(false);
    expect([point, await this.#lives.untilCrash(point, back)]).toEqual([point, 'SIGKILL']);
    await requestAbort(s.catalog.pool, id, 'test');
    const end = await this.#lives.toTheEnd(id);
    expect(await audit(s, null, (tenant) => tenant >= CUT && this.#owner === 'two')).toEqual([]);
    await this.#nothingLeft();
    return end;
  }

  /** Wherever the tables are, all is as it was made; elsewhere there is nothing. */
  async #nothingLeft(): Promise<void> {
    const { s } = this.moves;
    expect(await leftovers(s)).toEqual([]);
    for (const url of [s.urlOne, s.urlTwo])
      expect(await behaviour(url)).toEqual((await hasShop(url)) ? this.#meant : []);
    expect(await auditShards(s.catalog, false)).toEqual([]);
  }

  get #other(): 'one' | 'two' {
    return this.#owner === 'one' ? 'two' : 'one';
  }

  #approve(replica: boolean): Promise<bigint> {
    return (replica ? approveReplica : approveMove)(this.moves.s, [BigInt(CUT)], null, this.#owner, this.#other);
  }

  /** Migrators come, each takes back one thing more than the one before it, and dies behind the next, until there is none. */
  async #dieBehindEach(point: CrashPoint, id: bigint, wayBack: boolean): Promise<number> {
    for (let deaths = 0; ; deaths++) {
      const life = this.#lives.until(`${point}#2`, wayBack);
      let signal: string | null | undefined;
      void life.ended.then((by) => {
        signal = by;
      });
      await waitFor(async () => signal !== undefined || RESTING_STATES.includes((await this.moves.load(id)).state), {
        what: 'the end of the migrator, or of the migration',
      });
      life.stop();
      if ((await life.ended) !== 'SIGKILL') return deaths;
    }
  }
}

const hasShop = (url: string): Promise<boolean> =>
  withClient(url, async (c) => (await c.query("SELECT WHERE to_regclass('orders') IS NOT NULL")).rowCount === 1);

async function forget(url: string): Promise<void> {
  if (!(await hasShop(url))) return;
  await withClient(url, async (c) => {
    await c.query('DELETE FROM orders WHERE id >= 1000000');
    await c.query('DELETE FROM order_log');
  });
}
