import { setTimeout as delay } from 'node:timers/promises';
import { createMigration, requestAbort, requestEnd, setPaused } from '../../migrator/migration-requests.js';
import {
  listMigrations,
  loadMigration,
  type MigrationRow,
  RESTING_STATES,
  type StoredSpec,
} from '../../migrator/migration-row.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { ForeshardError } from '../../topology/errors.js';
import { contains, type Position, sameBound } from '../../topology/key.js';
import type { Range, Topology } from '../../topology/topology.js';
import { oneOf, type Random } from '../support/random.js';
import { KEYSPACE, TENANTS } from './world.js';

/** A migration that has not come to rest in so long, while nothing was disturbed, never will, ms. */
const STUCK_MS = 120_000;
const LOOK_MS = 50;
const RETRY_MS = 200;

/** What is done to the map, one after the other. */
export interface Change {
  readonly name: string;
  /**
   * Enters it.
   * @returns the id of its migration, or null when the map as it stands offers no such change
   */
  enter(catalog: Catalog, topology: Topology, random: Random): Promise<bigint | null>;
}

/** What becomes of a migration on its way. */
type Turn = 'none' | 'abort' | 'pause' | 'rollback' | 'finish';
const TURNS: readonly Turn[] = ['none', 'none', 'none', 'abort', 'pause', 'rollback', 'rollback', 'finish'];

/** An interval of some range goes to another shard. */
const move: Change = {
  name: 'move',
  async enter(catalog, topology, random) {
    const keyspace = topology.keyspaces.get(KEYSPACE);
    if (keyspace === undefined) throw new Error('the keyspace is gone');
    const range = oneOf(random, keyspace.ranges);
    const low = range.lo === null ? 1 : Number(range.lo[0]);
    const high = range.hi === null ? TENANTS + 1 : Number(range.hi[0]);
    const cut = () => low + random(Math.max(1, high - low + 1));
    const [a, b] = [cut(), cut()].toSorted((x, y) => x - y) as [number, number];
    const lo: Position | null = random(3) === 0 || a <= low ? range.lo : [BigInt(a)];
    const hi: Position | null = random(3) === 0 || b >= high ? range.hi : [BigInt(b)];
    if (lo !== null && hi !== null && (lo[0] as bigint) >= (hi[0] as bigint)) return null;
    const others = [...topology.shards.keys()].filter((name) => name !== range.shard);
    const spec = {
      kind: 'move',
      keyspace: KEYSPACE,
      lo,
      hi,
      from: range.shard,
      to: oneOf(random, others),
    } as const;
    return createMigration(catalog.pool, keyspace, spec, { actor: 'chaos' });
  },
};

/** A range is cut in two, or two become one; no row goes anywhere. */
const recut: Change = {
  name: 'recut',
  async enter(catalog, topology, random) {
    const keyspace = topology.keyspaces.get(KEYSPACE);
    if (keyspace === undefined) throw new Error('the keyspace is gone');
    const at = random(keyspace.ranges.length);
    const range = keyspace.ranges[at] as Range;
    const next = keyspace.ranges[at + 1];
    const joins = next !== undefined && next.shard === range.shard;
    const point: Position = [BigInt(2 + random(TENANTS - 1))];
    if (!joins && (!contains(range, point) || (range.lo !== null && sameBound(range.lo, point)))) return null;
    const spec = {
      kind: 'recut',
      keyspace: KEYSPACE,
      shard: range.shard,
      cut: joins ? [] : [point],
      join: joins && next.lo !== null ? [next.lo] : [],
    } as const;
    return createMigration(catalog.pool, keyspace, spec, { actor: 'chaos' });
  },
};

export const CHANGES: readonly Change[] = [move, move, move, recut];

function wordsFor(spec: StoredSpec, back: boolean): string {
  if (spec.kind !== 'move') return JSON.stringify(spec);
  const { lo, hi, from, to } = spec;
  return `[${lo ?? ''}, ${hi ?? ''}) ${back ? `${to} → ${from}, back` : `${from} → ${to}`}`;
}

export interface DirectorOptions {
  readonly catalog: Catalog;
  readonly random: Random;
  readonly changes: readonly Change[];
  /** Time in which nothing was disturbed, ms. */
  readonly calmMs: () => number;
  readonly log: (text: string) => void;
  readonly violate: (text: string) => void;
}

/** Has one change made after the other, some of them taken back, and counts the flips. */
export class Director {
  flips = 0;
  readonly pausesMs: number[] = [];
  /** How migrations ended, and how often. */
  readonly ends = new Map<string, number>();
  readonly #options: DirectorOptions;
  readonly #running: Promise<void>;
  #stopped = false;
  #onFlip: (() => void)[] = [];

  constructor(options: DirectorOptions) {
    this.#options = options;
    this.#running = this.#loop();
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

  /** Ends with the migration that is under way, which comes to rest by itself. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  get failed(): Promise<never> {
    return this.#running.then(() => new Promise<never>(() => undefined));
  }

  async #loop(): Promise<void> {
    const { random, changes, catalog } = this.#options;
    while (!this.#stopped) {
      const change = oneOf(random, changes);
      const turn = oneOf(random, TURNS);
      const id = await this.#enter(change);
      if (id !== null) await this.#follow(id, change.name, turn, catalog);
    }
    this.#wake();
  }

  async #enter(change: Change): Promise<bigint | null> {
    const { catalog, random } = this.#options;
    for (;;) {
      try {
        const [newest] = await listMigrations(catalog.pool);
        // The last try may have come through without our hearing of it.
        if (newest !== undefined && !RESTING_STATES.includes(newest.state)) return newest.id;
        return await change.enter(catalog, await catalog.loadTopology(), random);
      } catch (error) {
        if (error instanceof ForeshardError && !error.sqlstate.startsWith('08')) throw error;
        await delay(RETRY_MS);
      }
    }
  }

  /** Until the migration rests. */
  async #follow(id: bigint, name: string, turn: Turn, catalog: Catalog): Promise<void> {
    const { random, calmMs, log, violate } = this.#options;
    const asksAfterMs = random(3000);
    const from = performance.now();
    const calm = calmMs();
    const flips = new Set<string>();
    let asked = false;
    let told = false;
    for (;;) {
      const row = await this.#look(id, catalog);
      if (row !== null) {
        this.#count(row, name, flips);
        if (RESTING_STATES.includes(row.state)) {
          this.#ended(row, name, turn);
          return;
        }
        const reached =
          turn === 'rollback' || turn === 'finish' ? row.state === 'reversing' : performance.now() - from > asksAfterMs;
        if (!asked && turn !== 'none' && reached) asked = await this.#ask(id, turn, catalog);
        // What waits for its way back to be over is not to wait so long.
        if (row.state === 'reversing' && (turn === 'none' || turn === 'pause' || turn === 'abort') && !asked)
          asked = await this.#ask(id, 'finish', catalog);
        if (!told && calmMs() - calm > STUCK_MS) {
          told = true;
          violate(
            `migration ${id} (${name}, ${turn}) is stuck: ${row.state}, ${JSON.stringify(row.progress)}, ${row.error}`,
          );
          log(`migration ${id} is stuck in ${row.state}`);
          return;
        }
      }
      await delay(LOOK_MS);
    }
  }

  async #look(id: bigint, catalog: Catalog): Promise<MigrationRow | null> {
    try {
      return await loadMigration(catalog.pool, id);
    } catch {
      // The catalog is away; it will be back.
      await delay(RETRY_MS);
      return null;
    }
  }

  #count(row: MigrationRow, name: string, flips: Set<string>): void {
    for (const fact of ['flipEpoch', 'backEpoch'] as const) {
      if (row.facts[fact] === undefined || flips.has(fact)) continue;
      flips.add(fact);
      this.flips += 1;
      this.#options.log(`flip ${this.flips}: migration ${row.id}, ${name} ${wordsFor(row.spec, fact === 'backEpoch')}`);
      this.#wake();
    }
  }

  #wake(): void {
    const waiting = this.#onFlip;
    this.#onFlip = [];
    for (const resolve of waiting) resolve();
  }

  #ended(row: MigrationRow, name: string, turn: Turn): void {
    const { violate, log } = this.#options;
    const end = `${name}: ${row.state}`;
    this.ends.set(end, (this.ends.get(end) ?? 0) + 1);
    if (typeof row.progress.pauseMs === 'number') this.pausesMs.push(row.progress.pauseMs);
    if (row.error !== null) log(`migration ${row.id} is ${row.state}: ${row.error}`);
    if (row.state === 'failed') violate(`migration ${row.id} (${name}, ${turn}) has failed: ${row.error}`);
  }

  /** @returns whether it has been asked, or need not be */
  async #ask(id: bigint, turn: Turn, catalog: Catalog): Promise<boolean> {
    const { pool } = catalog;
    const { random } = this.#options;
    try {
      if (turn === 'abort') await requestAbort(pool, id, 'chaos');
      else if (turn === 'rollback' || turn === 'finish') await requestEnd(pool, id, turn, 'chaos');
      else if (turn === 'pause') {
        await setPaused(pool, id, true, 'chaos');
        await delay(random(2000));
        await this.#resume(id, catalog);
      }
      return true;
    } catch (error) {
      // Too late, which is no harm; else the catalog is away.
      return error instanceof ForeshardError && error.sqlstate === '55000';
    }
  }

  async #resume(id: bigint, { pool }: Catalog): Promise<void> {
    for (;;) {
      try {
        await setPaused(pool, id, false, 'chaos');
        return;
      } catch (error) {
        if (error instanceof ForeshardError && error.sqlstate === '55000') return; // a try before this one came through
        await delay(RETRY_MS);
      }
    }
  }
}
