import type { Backend } from '../backend/backend.js';
import { FRONTEND } from '../wire/message-types.js';

/** Completes a CopyData that nobody reads any more. */
const FILLER = Buffer.alloc(64 * 1024);

/** COPY FROM STDIN under way: what the client sends goes to the server as it comes, in pieces. */
export class CopyIn {
  #active = false;
  /** Bytes that the server has yet to get of the CopyData sent last. */
  #remaining = 0;
  #full = false;
  #syncs = 0;

  get active(): boolean {
    return this.#active;
  }

  /** The server does not take the data as fast as the client sends it. */
  get full(): boolean {
    return this.#full;
  }

  begin(): void {
    this.#active = true;
    this.#syncs = 0;
  }

  /**
   * Forwards a message, or a piece of one with `remaining` bytes to come. What does not belong into a COPY the server answers
   * in its own words.
   */
  forward(backend: Backend | null, type: number, frame: Buffer, remaining: number): void {
    // Ignored by PostgreSQL too, "for the convenience of libpq"; but not once it has failed.
    if (type === FRONTEND.Sync) this.#syncs += 1;
    if (type === FRONTEND.Sync || type === FRONTEND.Flush) return;
    // One with data behind it is taken for one that was ignored.
    this.#syncs = 0;
    this.#remaining = remaining;
    if (backend?.sendRaw(frame) === false) this.#full = true;
    if (type !== FRONTEND.CopyData) this.end(backend);
  }

  end(backend: Backend | null): void {
    this.#active = false;
    // The server failed in the middle of a message: without its rest it would take what follows for it.
    for (; this.#remaining > 0; this.#remaining -= FILLER.length) backend?.sendRaw(FILLER.subarray(0, this.#remaining));
    this.#remaining = 0;
    this.#full = false;
  }

  /** The server has failed: Syncs that came instead of the end of the data, and are to be answered. */
  takeSyncs(): number {
    const syncs = this.#active ? this.#syncs : 0;
    this.#syncs = 0;
    return syncs;
  }

  /** The server takes more again. */
  drained(): void {
    this.#full = false;
  }
}
