import type { ErrorFields } from '../wire/error-response.js';
import { READ_MEMORY } from '../wire/read-memory.js';
import type { Backend } from './backend.js';
import type { Lane } from './lane.js';
import type { LaneBundle } from './lane-bundle.js';

/** So much of an answer is held back until it is complete: until then it can be had from elsewhere. */
const HELD_BYTES = 16 * 1024;

/** What is known of a template's executions; times in ms. */
export interface LanePace {
  readonly expectedMs: number;
  served(ms: number, bytes: number, lateMs: number): void;
  /** It keeps others waiting, for so long until now, while `busy` connections are at work. @returns whether that counts: it is not to be told of the same run again */
  late(ms: number, busy: number, lateMs: number): boolean;
  /** Whether it may be said in one with others. */
  readonly joins: boolean;
  /** It has failed, and so have all that were said in one with it. */
  broke(): void;
}

/** Why a read is to be run elsewhere: what is ahead of it is late, the connection is lost, or the server would have it said again. */
export type AgainReason = 'late' | 'lost' | 'refused';

/**
 * One read in one lane, until its answer is complete or nobody waits for it there any more. Answers are held back while they are
 * small, so that the client is told all of it at once, or nothing.
 */
export abstract class LaneRead {
  next: LaneRead | null = null;
  submittedAt = 0;
  /** Since when the server can have been at it. */
  headAt = 0;
  expectedMs = 0;
  /** Bytes of its answer. */
  size = 0;
  rowCount = 0;
  /** Nobody waits for its answer here. */
  dropped = false;
  /** The client has been told something of it. */
  told = false;
  /** A cancel request was sent for it. */
  canceled = false;
  /** It was put on the connection. */
  sent = false;
  /** With which others it was said in one; null: it is by itself. */
  bundle: LaneBundle | null = null;
  pace: LanePace;
  #lane: Lane | null = null;
  /** What is held back: whole buffers, then a stretch of one that may still grow. */
  #held: Buffer[] = [];
  #memory: ArrayBufferLike | null = null;
  #from = 0;
  #to = 0;
  #refused = false;

  constructor(pace: LanePace) {
    this.pace = pace;
    this.expectedMs = pace.expectedMs;
  }

  /** Nothing is known of it any more: it is another read from now on. */
  protected anew(pace: LanePace): void {
    this.pace = pace;
    this.expectedMs = pace.expectedMs;
    this.size = 0;
    this.rowCount = 0;
    this.told = false;
    this.canceled = false;
    this.#refused = false;
    // Of an answer that was not to be told.
    this.#held = [];
    this.#memory = null;
  }

  /** Puts its messages on the connection, ending with a Query or a Sync. */
  abstract send(backend: Backend): void;
  /** Whether it may still be said there, as it was when it joined: what was prepared may have been forgotten since. */
  fits(_backend: Backend): boolean {
    return true;
  }
  /** As what it may be said in one with others on this connection now; null: it is said by itself. */
  joins(_backend: Backend): 'query' | 'batch' | null {
    return null;
  }
  /** How many bytes `put` takes at most. */
  get mostBytes(): number {
    return 0;
  }
  /** Puts what is to be said of it there: its text, or its messages without the Sync. @returns bytes */
  put(_backend: Backend, _into: Buffer, _at: number): number {
    throw new Error('it is said by itself');
  }
  /** It was described, by a message of this type. */
  protected described(_type: number, _frame: Buffer): void {}
  /** Whether what the server has read is still what it should be read from. */
  protected abstract get isCertain(): boolean;
  /** Part of an answer that is not complete. */
  protected abstract deliver(bytes: Buffer): void;
  /** The rest of the answer. @param ms the server's time for it @param ready the ReadyForQuery, if it is not in `bytes` */
  protected abstract answered(bytes: Buffer, ms: number, ready: Buffer | null): void;
  /** Has it run elsewhere, from its start. */
  abstract again(why: AgainReason): void;
  /** The connection is lost in the middle of an answer that the client knows part of. */
  abstract cutShort(error: Error): void;
  /** An error as the client is to see it; null: the statement is to be said again elsewhere. @param byMistake a cancel request was meant for another */
  protected abstract worded(fields: ErrorFields, frame: Buffer, byMistake: boolean): Buffer | null;

  get lane(): Lane {
    return this.#lane as Lane;
  }

  joined(lane: Lane, now: number): void {
    this.#lane = lane;
    this.submittedAt = now;
    this.sent = false;
    this.bundle = null;
  }

  /** Whether the server can have begun with it, and with nothing else. */
  get isHead(): boolean {
    return this.lane.isHead(this);
  }

  /** Nothing of its answer was looked at, and somebody waits for it: one that has begun goes on as it began. */
  get isFresh(): boolean {
    return this.size === 0 && !this.dropped && !this.#refused;
  }

  /** Bytes of its answer, in order. */
  take(slice: Buffer): void {
    this.size += slice.length;
    if (this.dropped) return;
    if (this.told) {
      this.deliver(slice);
      return;
    }
    this.#hold(slice);
    if (this.size > HELD_BYTES) this.show();
  }

  /** What has come of the answer goes to the client now. */
  show(): void {
    if (this.dropped || this.#refused) return;
    if (!this.isCertain) {
      this.#refused = true;
      return;
    }
    const bytes = this.#release();
    if (bytes === null) return;
    this.told = true;
    this.deliver(bytes);
  }

  onError(fields: ErrorFields, frame: Buffer, byMistake: boolean): void {
    const words = this.worded(fields, frame, byMistake);
    if (words !== null) this.take(words);
    else this.#refused = true;
  }

  /**
   * All of its answer has come at once.
   * @param described where in it the RowDescription or NoData begins; -1: there is none
   * @param ready the ReadyForQuery, if it is not in `answer`
   */
  whole(answer: Buffer, rows: number, described: number, ms: number, ready: Buffer | null): void {
    this.size = answer.length;
    this.rowCount = rows;
    this.pace.served(ms, answer.length, this.lane.lateMs);
    if (described >= 0) {
      const end = described + 1 + answer.readInt32BE(described + 1);
      this.described(answer[described] as number, answer.subarray(described, end));
    }
    if (this.isCertain) this.answered(answer, ms, ready);
    else this.again('refused');
  }

  /** The server is done with it. */
  end(ready: Buffer, ms: number): void {
    if (this.#refused || (!this.told && !this.isCertain)) {
      this.again('refused');
      return;
    }
    this.#hold(ready);
    this.answered(this.#release() as Buffer, ms, null);
  }

  /** What is held back may be overwritten from now on. */
  keep(): void {
    if (this.#memory === null || this.#memory !== READ_MEMORY.buffer) return;
    this.#held.push(Buffer.from(READ_MEMORY.subarray(this.#from, this.#to)));
    this.#memory = null;
  }

  #hold(slice: Buffer): void {
    const { buffer, byteOffset, length } = slice;
    // Mostly all of an answer lies in one chunk, and goes on as one slice of it.
    if (buffer === this.#memory && byteOffset === this.#to) {
      this.#to += length;
      return;
    }
    if (this.#memory !== null)
      this.#held.push(Buffer.from(this.#memory as ArrayBuffer, this.#from, this.#to - this.#from));
    this.#memory = buffer;
    this.#from = byteOffset;
    this.#to = byteOffset + length;
  }

  #release(): Buffer | null {
    if (this.#memory === null) {
      if (this.#held.length === 0) return null;
      const held = Buffer.concat(this.#held);
      this.#held = [];
      return held;
    }
    const last = Buffer.from(this.#memory as ArrayBuffer, this.#from, this.#to - this.#from);
    this.#memory = null;
    if (this.#held.length === 0) return last;
    const all = Buffer.concat([...this.#held, last]);
    this.#held = [];
    return all;
  }
}
