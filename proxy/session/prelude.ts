import type { SessionEffect } from '../router/route.js';

/** Beyond, a transaction is not followed any more, and stays where it is. */
const STATEMENTS = 1_000;
const BYTES = 64 * 1024;

/** What has made a transaction what it is, apart from rows: said again on another shard, it opens the same transaction there. */
export class Prelude {
  /** BEGIN, SAVEPOINT, SET … in order, the first BEGIN before all. */
  readonly texts: Buffer[];
  /** What would be missing there, so that the transaction cannot have a part on another shard; null: nothing. */
  tied: string | null;
  /** Those of `texts` that are BEGIN: more than one, when the others did nothing but change its modes. */
  readonly begins: Set<Buffer>;
  /** Settings are among it. */
  sets: boolean;
  #bytes = 0;
  /** The savepoint that the last of `texts` has set; null: that is another statement. */
  #last: string | null = null;

  /** @param texts BEGIN, or some of `of` @param of a transaction that has done more than these by now */
  constructor(texts: readonly Buffer[] = [], of: Prelude | null = null) {
    this.texts = [...texts];
    this.begins = new Set(of?.begins ?? texts);
    this.tied = of?.tied ?? null;
    this.sets = of?.sets ?? false;
    for (const text of texts) this.#bytes += text.length;
  }

  /** The transaction has something where it is that it would not have elsewhere. */
  tie(why: string): void {
    this.tied ??= why;
  }

  /** A statement has been done. @returns false: it cannot be said again */
  add(effect: SessionEffect, text: Buffer | null): boolean {
    // A prepared transaction must not have listened.
    if (effect.kind === 'listen' || effect.kind === 'unlisten') this.tie('LISTEN');
    // What it goes back to is the login's, which is said on each connection behind it.
    if (effect.kind === 'set' && effect.reset) this.tie('RESET');
    if (effect.kind === 'set') this.sets = true;
    if (text === null || this.texts.length >= STATEMENTS || this.#bytes + text.length > BYTES) {
      this.tie(text === null ? 'a setting given by a parameter' : 'too many savepoints and settings');
      return false;
    }
    // Nothing stands between the two: an application that sets a savepoint around every statement leaves nothing here.
    if (effect.kind === 'release' && effect.name === this.#last) {
      this.#bytes -= (this.texts.pop() as Buffer).length;
      this.#last = null;
      return true;
    }
    if (effect.kind === 'rollback-to' && effect.name === this.#last) return true;
    this.#bytes += text.length;
    if (effect.kind === 'begin') {
      this.begins.add(text);
      // What stood before it in its message is in its transaction, as nothing is that is said before it elsewhere.
      if (this.begins.size === 1) {
        this.texts.unshift(text);
        return true;
      }
    }
    this.texts.push(text);
    this.#last = effect.kind === 'savepoint' ? effect.name : null;
    return true;
  }
}
