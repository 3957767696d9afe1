import { setTimeout as delay } from 'node:timers/promises';
import { errorCode } from '../../topology/connection.js';
import { heapsOf } from '../heaps.js';
import { pagesOf } from '../keyed-rows.js';
import type { ShardSession } from '../shard-session.js';

/** No statement of an audit takes longer, ms; one that would is tried with half as many pages. */
export const STATEMENT_MS = 20_000;
const QUERY_CANCELED = '57014';

/** An audit was asked to stop; another one goes on where it was. */
export class AuditInterrupted extends Error {}

/** How far a table has been looked through. */
interface Place {
  readonly page: number;
  readonly found: number;
}

interface How {
  /** Pages for one statement. */
  readonly most: number;
  /** Whether to go on where an earlier call for the same shard and table was stopped. */
  readonly resumes: boolean;
}

/**
 * What is done with the pages from `first` on, `end` not among them, of the table, or of one of its partitions, with the name `heap`; gives the number
 * of what it has found.
 */
type Look = (heap: string, first: number, end: number) => Promise<number>;

/** How an audit goes through tables: some pages at a time, each by a statement of its own, so that no snapshot is held for long. */
export class Portions {
  readonly #gently: boolean;
  readonly #interrupted: () => Promise<boolean>;
  readonly #places = new Map<string, Place>();

  /**
   * @param gently after each portion it rests for as long as that took
   * @param interrupted asked before each portion, whether to stop
   */
  constructor(gently: boolean, interrupted: () => Promise<boolean> = async () => false) {
    this.#gently = gently;
    this.#interrupted = interrupted;
  }

  /**
   * Goes through a table. Rows that are updated meanwhile may be met twice, or not.
   * @returns the sum of what was found
   * @throws AuditInterrupted
   */
  async of(session: ShardSession, sql: string, { most, resumes }: How, look: Look): Promise<number> {
    let found = 0;
    for (const heap of await heapsOf(session, sql)) found += await this.#heap(session, heap, { most, resumes }, look);
    return found;
  }

  /**
   * Goes through something else, which keeps its place by itself, in portions of so many rows.
   * @param look gives whether there is no more @throws AuditInterrupted
   */
  async byRows(most: number, look: (rows: number) => Promise<boolean>): Promise<void> {
    let rows = most;
    for (let isLast = false; !isLast; ) {
      if (await this.#interrupted()) throw new AuditInterrupted('the audit was interrupted');
      const began = performance.now();
      try {
        isLast = await look(rows);
      } catch (error) {
        if (errorCode(error) !== QUERY_CANCELED || rows === 1) throw error;
        rows = Math.ceil(rows / 2);
      }
      if (this.#gently && !isLast) await delay(performance.now() - began);
    }
  }

  async #heap(session: ShardSession, heap: string, { most, resumes }: How, look: Look): Promise<number> {
    const id = `${session.shard.name} ${heap}`;
    let { page, found } = (resumes ? this.#places.get(id) : undefined) ?? { page: 0, found: 0 };
    let pages = most;
    const all = await pagesOf(session, heap);
    while (page < all) {
      if (await this.#interrupted()) throw new AuditInterrupted('the audit was interrupted');
      const began = performance.now();
      try {
        found += await look(heap, page, page + pages);
        page += pages;
        if (resumes) this.#places.set(id, { page, found });
      } catch (error) {
        if (errorCode(error) !== QUERY_CANCELED || pages === 1) throw error;
        pages = Math.ceil(pages / 2);
      }
      if (this.#gently && page < all) await delay(performance.now() - began);
    }
    return found;
  }
}
