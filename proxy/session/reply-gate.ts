import { kept } from '../wire/read-memory.js';

/** Replies beyond this are not held back: the statement can then no longer be run again unseen. */
const GATE_BYTES = 64 * 1024;

/**
 * Holds a write's replies back until the server is done with it, so that a write which met a shard that has just given
 * its range away can be run again at the new owner without the client noticing.
 */
export class ReplyGate {
  #held: Buffer[] | null = null;
  #bytes = 0;
  #refused = false;
  #retry: (() => Promise<void>) | null = null;

  /** Starts to hold back; `retry` runs the same again from the start. */
  close(retry: () => Promise<void>): void {
    this.#held = [];
    this.#bytes = 0;
    this.#refused = false;
    this.#retry = retry;
  }

  get active(): boolean {
    return this.#held !== null;
  }

  get full(): boolean {
    return this.#bytes > GATE_BYTES;
  }

  /** Whether the shard has refused it, so that it must be run again. */
  get refused(): boolean {
    return this.#refused;
  }

  /** Holds a reply. @returns false when nothing is held back, so that it must be sent. */
  take(frame: Buffer): boolean {
    if (this.#held === null) return false;
    if (this.#refused) return true;
    this.#held.push(kept(frame));
    this.#bytes += frame.length;
    return true;
  }

  /** The shard refused the write. @returns whether it can be run again. */
  refuse(): boolean {
    if (this.#held === null) return false;
    this.#refused = true;
    this.#held = [];
    return true;
  }

  /** Lets everything out. */
  open(): readonly Buffer[] {
    const held = this.#held ?? [];
    this.#held = null;
    this.#bytes = 0;
    this.#retry = null;
    this.#refused = false;
    return held;
  }

  takeRetry(): () => Promise<void> {
    const retry = this.#retry as () => Promise<void>;
    this.open();
    return retry;
  }
}
