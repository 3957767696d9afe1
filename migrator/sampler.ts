import { errorCode } from '../topology/connection.js';
import { tableId } from '../topology/topology.js';
import { heapsOf } from './heaps.js';
import { differing, pagesOf, type RowsOf, type RowVersion, rowsByKey, rowsOfPages } from './keyed-rows.js';
import type { Move, MovingTable } from './move.js';
import { followed } from './replication.js';
import { type SampledDifference, sampledDifference } from './sampled.js';
import type { ShardSession } from './shard-session.js';
import { readSourceTables } from './steps/prepare.js';
import { Throttle } from './throttle.js';

/** Rows that are read from one side for one sample, at most. */
const SAMPLE_ROWS = 200;
/** A sample with fewer rows is too small: the next one of that table reads twice as many pages, up to MAX_PAGES. */
const FEW_ROWS = 50;
const MAX_PAGES = 128;
const PAGE_BYTES = 8192;
/** Keys that are kept of one table: it is not sampled any more when there are so many. A comparison finds all. */
const KEYS_KEPT = 20;
/** How often a row is looked at that keeps changing; another sample will come across it. */
const ROUNDS = 5;
/** How long a sample waits for the follower; one that is further behind says nothing about its rows. */
const TO_FOLLOW = { everyMs: 5, deadlineMs: 5000 };
/** How long the shape of the tables is remembered, ms. */
const SHAPES_MS = 60_000;

/**
 * Compares a few rows on both sides of a way back, again and again: of random pages of the new owner with what follows it, and the other way, so that
 * rows are found, too, that should be gone. It locks nothing, and reads what it needs by page and by index.
 */
export class Sampler {
  readonly #m: Move;
  readonly #back: Move;
  readonly #throttle: Throttle;
  #dueAt = performance.now();
  #turn = 0;
  readonly #pages = new Map<string, number>();
  #tables: readonly RowsOf[] | null = null;
  #tablesAt = 0;
  #samples: number;
  #rows: number;

  /** @param back `m` turned: its source is the new owner */
  constructor(m: Move, back: Move) {
    this.#m = m;
    this.#back = back;
    this.#throttle = new Throttle(back);
    this.#samples = m.row.progress.sampled?.samples ?? 0;
    this.#rows = m.row.progress.sampled?.rows ?? 0;
  }

  /** Takes one sample, when it is time for one and the throttle lets it, and notes what differs. */
  async look(): Promise<void> {
    const { sampleMs } = this.#m.options;
    if (sampleMs === 0 || performance.now() < this.#dueAt) return;
    if (!(await this.#throttle.isPaid())) return;
    this.#dueAt = performance.now() + sampleMs;
    try {
      await this.#sample();
    } catch (error) {
      // Somebody has changed a table, which replication will have to say more about.
      if (!errorCode(error).startsWith('42')) throw error;
      this.#tables = null;
    }
  }

  async #sample(): Promise<void> {
    const { tables } = this.#back;
    if (tables.length === 0) return;
    const rowsOf = await this.#readTables();
    const i = this.#turn++ % tables.length;
    const table = tables[i] as MovingTable;
    const known = sampledDifference(this.#m.row)?.tables.find((t) => t.table === tableId(table))?.keys ?? [];
    const rows = rowsOf[i];
    if (rows === undefined || known.length >= KEYS_KEPT) return;
    const { source, destination } = this.#back;
    const owned = await this.#compare(rows, source, destination);
    const followed = await this.#compare(rows, destination, source);
    this.#samples += 1;
    this.#rows += owned.rows + followed.rows;
    await this.#m.exec.progress({ sampled: { samples: this.#samples, rows: this.#rows } });
    const suspects = [...owned.differing, ...followed.differing].filter((key) => !known.includes(key));
    const standing = await this.#standing(rows, suspects);
    if (standing.length > 0) await this.#note(tableId(table), standing);
  }

  async #readTables(): Promise<readonly RowsOf[]> {
    if (this.#tables !== null && performance.now() - this.#tablesAt < SHAPES_MS) return this.#tables;
    const infos = await readSourceTables(this.#back);
    this.#tables = this.#back.tables.map((t, i) => ({
      sql: t.sql,
      where: t.predicate(),
      info: infos[i] as RowsOf['info'],
    }));
    this.#tablesAt = performance.now();
    return this.#tables;
  }

  /** The table, or one of its partitions, the larger the more often. */
  async #anyHeap(session: ShardSession, sql: string): Promise<{ sql: string; pages: number }> {
    const heaps: { sql: string; pages: number }[] = [];
    for (const heap of await heapsOf(session, sql)) heaps.push({ sql: heap, pages: await pagesOf(session, heap) });
    let at = Math.random() * heaps.reduce((sum, heap) => sum + heap.pages, 0);
    for (const heap of heaps) {
      at -= heap.pages;
      if (at < 0) return heap;
    }
    return { sql, pages: 0 };
  }

  /** Rows of random pages of one side, looked up on the other. */
  async #compare(
    rows: RowsOf,
    here: ShardSession,
    there: ShardSession,
  ): Promise<{ rows: number; differing: string[] }> {
    const id = `${here.shard.name} ${rows.sql}`;
    const pages = this.#pages.get(id) ?? 1;
    const { sql, pages: all } = await this.#anyHeap(here, rows.sql);
    const first = Math.floor(Math.random() * Math.max(1, all - pages + 1));
    const read = await rowsOfPages(here, { ...rows, sql }, first, first + pages, SAMPLE_ROWS);
    if (read.length < FEW_ROWS && pages < all) this.#pages.set(id, Math.min(MAX_PAGES, pages * 2));
    if (read.length === SAMPLE_ROWS && pages > 1) this.#pages.set(id, pages / 2);
    // What lies side by side here was copied from, or to, places that do so there.
    this.#throttle.owe(2 * pages * PAGE_BYTES);
    if (read.length === 0) return { rows: 0, differing: [] };
    const keys = read.map((row) => row.key);
    return { rows: read.length, differing: differing(read, await rowsByKey(there, rows, keys)) };
  }

  /**
   * Those that differ, and not only because they are being written to. What the owner had when it was first read has arrived when the marker has. A row that is still of the same
   * version at the owner was no other in between, so what the follower had then is wrong. A row that is missing at the owner may have come and gone in between; but what
   * the follower still has of the same version, when it has heard once more that it is missing, is not of that time.
   */
  async #standing(rows: RowsOf, keys: readonly string[]): Promise<string[]> {
    const { source, destination } = this.#back;
    const standing: string[] = [];
    let suspects = keys;
    for (let round = 0; suspects.length > 0 && round < ROUNDS; round++) {
      const [owner, follower] = [[] as RowVersion[], [] as RowVersion[]];
      owner.push(...(await rowsByKey(source, rows, suspects)));
      if (!(await followed(this.#back, TO_FOLLOW))) break;
      follower.push(...(await rowsByKey(destination, rows, suspects)));
      suspects = differing(owner, follower);
      if (suspects.length === 0) break;
      const ownerLater = await rowsByKey(source, rows, suspects);
      if (!(await followed(this.#back, TO_FOLLOW))) break;
      const followerLater = await rowsByKey(destination, rows, suspects);
      const changed = new Set([
        ...differing(owner, ownerLater, 'version'),
        ...differing(follower, followerLater, 'version'),
      ]);
      standing.push(...suspects.filter((key) => !changed.has(key)));
      suspects = suspects.filter((key) => changed.has(key));
    }
    return standing;
  }

  async #note(table: string, keys: readonly string[]): Promise<void> {
    const m = this.#m;
    const at = m.exec.now.toISOString();
    const before = sampledDifference(m.row)?.tables ?? [];
    const found = before.find((t) => t.table === table);
    const now = {
      table,
      differing: (found?.differing ?? 0) + keys.length,
      keys: [...(found?.keys ?? []), ...keys].slice(0, KEYS_KEPT),
    };
    const sampled: SampledDifference = {
      at,
      compared: false,
      tables: [...before.filter((t) => t.table !== table), now],
    };
    m.log.error({ migration: m.row.id.toString(), table, keys }, 'rows differ between the two sides of a way back');
    m.row = await m.exec.noteFacts(m.row, { sampled }, { differing: { table, keys: keys.slice(0, KEYS_KEPT) } });
  }
}
