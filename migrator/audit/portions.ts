import { setTimeout as delay } from 'node:timers/promises';
import { errorCode } from '../../topology/connection.js';
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
   * @param most pages for one statement
   * @param resumes whether to go on where an earlier call for the same shard and table was stopped
   * @param look what is done with the pages from `first` on, `end` not among them; gives the number of what it has found
   * @returns the sum of what was found
   * @throws AuditInterrupted
   */
  async of(
    session: ShardSession,
    sql: string,
    { most, resumes }: { readonly most: number; readonly resumes: boolean },
    look: (first: number, end: number) => Promise<number>,
  ): Promise<number> {
    const id = `${session.shard.name} ${sql}`;
    let { page, found } = (resumes ? this.#places.get(id) : undefined) ?? { page: 0, found: 0 };
    let pages = most;
    const all = await pagesOf(session, sql);
    while (page < all) {
      if (await this.#interrupted()) throw new AuditInterrupted('the audit was interrupted');
      const began = performance.now();
      try {
        found += await look(page, page + pages);
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
