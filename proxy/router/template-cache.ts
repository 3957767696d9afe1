import type { Lexer } from './lexer.js';

/** What keys are told apart by, besides their bytes: what names mean to the session. */
export interface KeyScope {
  /** Differs between scopes, for the hash only. */
  readonly id: number;
}

interface Entry<S, V> {
  readonly hash: number;
  readonly scope: S;
  readonly words: Int32Array;
  readonly length: number;
  readonly value: V;
  readonly cost: number;
  /** Hits since it was put where it is, up to {@link MOST_USES}. */
  uses: number;
  /** Another one with the same hash. */
  next: Entry<S, V> | undefined;
  /** The one behind it in its queue. */
  behind: Entry<S, V> | undefined;
}

export interface TemplateCacheLimits {
  /** Templates, of all scopes together. */
  readonly entries: number;
  /** Bytes of keys, and of what is said to be kept with them. */
  readonly bytes: number;
}

const MOST_USES = 3;
/** The part for templates that have not proved themselves: most of a flood goes through it and is gone. */
const PROBATION = 0.1;

/**
 * Templates by the bytes of their keys, bounded in entries and in bytes, which a flood of templates that are used once or twice does not
 * empty: S3-FIFO (Yang et al., SOSP 2023). What is new waits in a short queue; what was used there more than once moves to the main one,
 * where it comes round again as long as it is used. A hit costs a count, nothing is moved. Of what fell out of the short queue the hash is
 * remembered, so that it comes into the main one when it is seen again.
 *
 * A hash alone is never trusted: a hit has been compared, byte by byte. No strings are made.
 */
export class TemplateCache<S extends KeyScope, V> {
  readonly #limits: TemplateCacheLimits;
  /** So that nobody outside knows which keys have the same hash. */
  readonly #seed = Math.floor(Math.random() * 2 ** 32) | 0;
  readonly #byHash = new Map<number, Entry<S, V>>();
  readonly #short = new Queue<S, V>();
  readonly #main = new Queue<S, V>();
  /** Hashes, oldest first. */
  readonly #gone = new Set<number>();

  constructor(limits: TemplateCacheLimits) {
    this.#limits = limits;
  }

  /** What is kept for the key of the lexer's last scan. */
  get(lexer: Lexer, scope: S): V | undefined {
    const entry = this.#find(this.#hash(lexer, scope), lexer, scope);
    if (entry === undefined) return undefined;
    if (entry.uses < MOST_USES) entry.uses += 1;
    return entry.value;
  }

  /** Keeps a value for the key of the lexer's last scan, unless it has one. `bytes`: what the value takes, about. */
  set(lexer: Lexer, scope: S, value: V, bytes: number): void {
    const hash = this.#hash(lexer, scope);
    if (this.#find(hash, lexer, scope) !== undefined) return;
    const words = lexer.keyWords();
    // As many bytes as an entry may take on average, at least: so one sum bounds both.
    const cost = Math.max(words.byteLength + bytes, this.#limits.bytes / this.#limits.entries);
    const next = this.#byHash.get(hash);
    const entry = { hash, scope, words, length: lexer.keyLength, value, cost, uses: 0, next, behind: undefined };
    this.#byHash.set(hash, entry);
    (this.#gone.delete(hash) ? this.#main : this.#short).push(entry);
    const { bytes: limit } = this.#limits;
    while (this.#short.cost + this.#main.cost > limit)
      if (this.#main.first === undefined || this.#short.cost > limit * PROBATION) this.#judge();
      else this.#sweep();
  }

  /** Entries. */
  get size(): number {
    return this.#short.size + this.#main.size;
  }

  /** Bytes that count towards the limit. */
  get bytes(): number {
    return this.#short.cost + this.#main.cost;
  }

  #hash(lexer: Lexer, scope: S): number {
    return lexer.hash(this.#seed ^ Math.imul(scope.id, 0x9e3779b1));
  }

  #find(hash: number, lexer: Lexer, scope: S): Entry<S, V> | undefined {
    let entry = this.#byHash.get(hash);
    while (entry !== undefined && !(entry.scope === scope && lexer.keyIs(entry.words, entry.length)))
      entry = entry.next;
    return entry;
  }

  /** The oldest of the short queue goes on, or goes. */
  #judge(): void {
    const entry = this.#short.shift();
    if (entry === undefined) return;
    if (entry.uses > 1) {
      entry.uses = 0;
      this.#main.push(entry);
      return;
    }
    this.#drop(entry);
    this.#gone.add(entry.hash);
    if (this.#gone.size <= this.#limits.entries) return;
    for (const oldest of this.#gone) {
      this.#gone.delete(oldest);
      return;
    }
  }

  /** The oldest of the main queue comes round again, or goes. */
  #sweep(): void {
    const entry = this.#main.shift();
    if (entry === undefined) return;
    if (entry.uses === 0) this.#drop(entry);
    else {
      entry.uses -= 1;
      this.#main.push(entry);
    }
  }

  #drop(entry: Entry<S, V>): void {
    let at = this.#byHash.get(entry.hash);
    if (at === entry) {
      if (entry.next === undefined) this.#byHash.delete(entry.hash);
      else this.#byHash.set(entry.hash, entry.next);
      return;
    }
    while (at !== undefined && at.next !== entry) at = at.next;
    if (at !== undefined) at.next = entry.next;
  }
}

/** First in, first out. */
class Queue<S, V> {
  first: Entry<S, V> | undefined;
  size = 0;
  cost = 0;
  #last: Entry<S, V> | undefined;

  push(entry: Entry<S, V>): void {
    if (this.#last === undefined) this.first = entry;
    else this.#last.behind = entry;
    this.#last = entry;
    this.size += 1;
    this.cost += entry.cost;
  }

  shift(): Entry<S, V> | undefined {
    const entry = this.first;
    if (entry === undefined) return undefined;
    this.first = entry.behind;
    if (this.first === undefined) this.#last = undefined;
    entry.behind = undefined;
    this.size -= 1;
    this.cost -= entry.cost;
    return entry;
  }
}
