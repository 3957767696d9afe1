import { setTimeout as delay } from 'node:timers/promises';
import {
  requestAbort,
  requestComparison,
  requestEnd,
  requestFlip,
  setEndTransactions,
  setPaused,
} from '../../migrator/migration-requests.js';
import { loadMigration, type MigrationRow, RESTING_STATES } from '../../migrator/migration-row.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { oneOf, type Random } from '../support/random.js';
import { ask, persist } from './entry.js';

/** Migrations that have not changed in so long, while nothing was disturbed, never will, ms. */
const STUCK_MS = 120_000;
const LOOK_MS = 150;
/** What takes longer than this is told, ms. */
const SLOW_MS = 10_000;
/** Something is asked for after at most so long, ms. */
const ASK_MS = 2000;

/** What becomes of a migration on its way. */
type Turn = 'none' | 'abort' | 'pause' | 'hurry' | 'rollback' | 'finish';
const TURNS: readonly Turn[] = [
  'none',
  'none',
  'abort',
  'pause',
  'hurry',
  'rollback',
  'rollback',
  'rollback',
  'finish',
];
/** One of the others ends all of a change. */
const TURNS_OF_MEMBERS: readonly Turn[] = ['none', 'none', 'none', 'finish', 'finish', 'pause', 'abort', 'rollback'];

/** From now on transactions in the way of the flip are ended after so long, ms; null: never. */
const HURRY_MS = [null, 0, 500] as const;

/** Who is told what. */
export interface Told {
  /** Time in which nothing was disturbed, ms. */
  readonly calmMs: () => number;
  /** Whether anything was disturbed after this moment. */
  readonly disturbedSince: (moment: number) => boolean;
  readonly log: (text: string) => void;
  readonly violate: (text: string) => void;
}

interface Followed {
  readonly id: bigint;
  turn: Turn;
  row: MigrationRow | null;
  /** Since when it has been as far as its turn needs. */
  reachedAt: number | null;
  done: boolean;
}

/** Watches migrations until they rest, has something happen to them on their way, and counts what became of them. */
export class Follower {
  flips = 0;
  readonly pausesMs: number[] = [];
  /** How what was entered ended, and how often. */
  readonly ends = new Map<string, number>();
  readonly #options: Told & { readonly catalog: Catalog; readonly random: Random };
  readonly #flips = new Set<string>();
  /** Those that were asked not to come through. */
  readonly #asked = new Set<bigint>();
  /** When they were first looked at. */
  readonly #from = new Map<bigint, number>();
  #onFlip: (() => void)[] = [];

  constructor(options: Told & { readonly catalog: Catalog; readonly random: Random }) {
    this.#options = options;
  }

  count(end: string): void {
    this.ends.set(end, (this.ends.get(end) ?? 0) + 1);
  }

  /** It was asked not to come through. */
  asked(id: bigint): void {
    this.#asked.add(id);
  }

  /** Resolves at the next flip, after so long, or when all is over. */
  async flip(atMostMs: number): Promise<void> {
    const over = new AbortController();
    const flipped = new Promise<void>((resolve) => {
      this.#onFlip.push(resolve);
    });
    await Promise.race([flipped, delay(atMostMs, undefined, { signal: over.signal }).catch(() => undefined)]);
    over.abort();
  }

  /** Nothing flips any more. */
  over(): void {
    const waiting = this.#onFlip;
    this.#onFlip = [];
    for (const resolve of waiting) resolve();
  }

  /** Until a replica can be read, or the migration rests. */
  async untilServing(name: string, id: bigint): Promise<void> {
    const one: Followed = { id, turn: 'none', row: null, reachedAt: null, done: false };
    await this.#until(name, [one], async () => {
      if (one.row?.state !== 'following') return one.row !== null && RESTING_STATES.includes(one.row.state);
      return (await persist(() => this.#options.catalog.loadTopology())).replicas.some((r) => r.id === id);
    });
    if (one.row?.state === 'following') this.count(`${name}: following`);
    else if (one.row !== null) this.#ended(name, one.row, false);
  }

  /** Until all of them rest. @param auto whether they flip by themselves */
  async follow(name: string, ids: readonly bigint[], auto: boolean): Promise<void> {
    const { random } = this.#options;
    const turns = ids.length === 1 ? TURNS : TURNS_OF_MEMBERS;
    const all = ids.map(
      (id): Followed => ({ id, turn: oneOf(random, turns), row: null, reachedAt: null, done: false }),
    );
    await this.#until(name, all, async () => {
      for (const one of all) await this.#turn(one, auto);
      return all.every(({ row }) => row !== null && RESTING_STATES.includes(row.state));
    });
    const rows = all.flatMap(({ row }) => (row === null ? [] : [row]));
    // When one of a change does not come through, those behind it do not begin.
    const stops = rows.some(({ id, state }) => state !== 'done' && this.#asked.has(id));
    for (const row of rows) this.#ended(name, row, stops);
  }

  /** @param enough is asked after each look at all of them */
  async #until(name: string, all: readonly Followed[], enough: () => Promise<boolean>): Promise<void> {
    const { calmMs, violate, log, catalog } = this.#options;
    for (const { id } of all) if (!this.#from.has(id)) this.#from.set(id, performance.now());
    let calm = calmMs();
    let seen = '';
    let since = performance.now();
    for (;;) {
      for (const one of all) {
        if (one.row !== null && RESTING_STATES.includes(one.row.state)) continue;
        one.row = await persist(() => loadMigration(catalog.pool, one.id));
        this.#count(name, one.row);
      }
      if (await enough()) return;
      const sight = all.map(({ row }) => `${row?.state} ${row?.generation}`).join();
      if (sight !== seen) {
        seen = sight;
        calm = calmMs();
        since = performance.now();
      } else if (performance.now() - since > SLOW_MS) {
        since = Number.POSITIVE_INFINITY;
        for (const { id, row } of all)
          if (row !== null) log(`migration ${id} is slow: ${row.state}, ${row.progress.note}`);
      } else if (calmMs() - calm > STUCK_MS) {
        for (const { id, turn, row } of all)
          violate(
            `migration ${id} (${name}, ${turn}) is stuck: ${row?.state}, ${JSON.stringify(row?.progress)}, ${row?.error}`,
          );
        return;
      }
      await delay(LOOK_MS);
    }
  }

  /** Asks for what is to become of it, when its time has come. */
  async #turn(one: Followed, auto: boolean): Promise<void> {
    const { row, id, turn } = one;
    const { catalog, random } = this.#options;
    const { pool } = catalog;
    if (row === null || RESTING_STATES.includes(row.state)) return;
    if (!auto && row.state === 'ready' && !row.controls.flipRequested) {
      if (random(2) === 0) await ask(() => requestComparison(pool, id, 'chaos'));
      await ask(() => requestFlip(pool, id, 'chaos'));
    }
    const ends = row.state === 'reversing' && !one.done;
    const asks = (turn === 'abort' || turn === 'pause' || turn === 'hurry') && row.state !== 'approved' && !one.done;
    if (!ends && !asks) return;
    one.reachedAt ??= performance.now() + random(ASK_MS);
    if (performance.now() < one.reachedAt) return;
    if (ends) {
      if (random(3) === 0) await ask(() => requestComparison(pool, id, 'chaos'));
      const end = turn === 'rollback' ? 'rollback' : 'finish';
      if (end === 'rollback') this.#asked.add(id);
      await ask(() => requestEnd(pool, id, end, 'chaos'));
    } else if (turn === 'abort') {
      this.#asked.add(id);
      await ask(() => requestAbort(pool, id, 'chaos'));
    } else if (turn === 'hurry') {
      await ask(() => setEndTransactions(pool, id, oneOf(random, HURRY_MS), 'chaos'));
    } else {
      await ask(() => setPaused(pool, id, true, 'chaos'));
      await delay(random(ASK_MS));
      await ask(() => setPaused(pool, id, false, 'chaos'));
    }
    // One that was asked for something before its flip still has a way back that is to end.
    one.done = ends;
    if (ends) return;
    one.turn = 'none';
    one.reachedAt = null;
  }

  #count(name: string, row: MigrationRow): void {
    const { log } = this.#options;
    for (const fact of ['flipEpoch', 'backEpoch'] as const) {
      if (row.facts[fact] === undefined || this.#flips.has(`${row.id} ${fact}`)) continue;
      this.#flips.add(`${row.id} ${fact}`);
      this.flips += 1;
      log(`flip ${this.flips}: migration ${row.id}, ${name} ${wordsFor(row, fact === 'backEpoch')}`);
      this.over();
    }
  }

  /** @param isStopped another of its change was asked not to come through */
  #ended(name: string, row: MigrationRow, isStopped: boolean): void {
    const { violate, log, disturbedSince } = this.#options;
    const { id, state, error } = row;
    this.count(`${name}: ${state}`);
    if (typeof row.progress.pauseMs === 'number') this.pausesMs.push(row.progress.pauseMs);
    if (error !== null) log(`migration ${id} is ${state}: ${error}`);
    const isExcused = isStopped || this.#asked.has(id) || disturbedSince(this.#from.get(id) ?? 0);
    if (state === 'failed' || (state !== 'done' && !isExcused))
      violate(`migration ${id} (${name}) is ${state}, and nobody asked for it: ${error}`);
  }
}

function wordsFor({ spec }: MigrationRow, back: boolean): string {
  if (spec.kind !== 'move') return JSON.stringify(spec);
  const { keyspace, lo, hi, from, to } = spec;
  return `${keyspace} [${lo ?? ''}, ${hi ?? ''}) ${back ? `${to} → ${from}, back` : `${from} → ${to}`}`;
}
