import { encodeClose, FLUSH, SYNC } from '../wire/frontend.js';
import { kept } from '../wire/read-memory.js';

/** Behind all Syncs of a COPY that has failed: ends what the server skips, and is answered by what no other message there is. */
export const COUNT_SYNCS = Buffer.concat([SYNC, encodeClose('statement', 'foreshard_copy'), FLUSH]);

/**
 * Syncs sent into a COPY FROM STDIN. PostgreSQL ignores those that it reads before the COPY is at an end, or fails; those behind a failure it
 * answers. How many they were only it knows: it is asked for something else behind them all.
 */
export class CopySyncs {
  /** Sent into the one under way. */
  #sent = 0;
  /** While they are counted: the answers, that to the Sync of `COUNT_SYNCS` included, and the last. */
  #answers = 0;
  #last: Buffer | null = null;

  /** Whether any will be answered if the COPY fails. */
  get any(): boolean {
    return this.#sent > 0;
  }

  sent(): void {
    this.#sent += 1;
  }

  /** The COPY is over, and had not failed; or none is under way. */
  forget(): void {
    this.#sent = 0;
  }

  /** It has failed: the answers are counted from here on. */
  failed(): void {
    this.#answers = 0;
  }

  /** ReadyForQuery, while they are counted. */
  answered(frame: Buffer): void {
    this.#answers += 1;
    this.#last = kept(frame);
  }

  /** All have been counted. @returns how many of the client's were answered, and the last answer */
  take(): { readonly answered: number; readonly last: Buffer } {
    const counted = { answered: this.#answers - 1, last: this.#last as Buffer };
    this.#sent = 0;
    this.#last = null;
    return counted;
  }
}
