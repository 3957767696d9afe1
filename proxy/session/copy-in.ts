import type { Backend } from '../backend/backend.js';
import { type ErrorFields, encodeErrorResponse } from '../wire/error-response.js';
import { encodeCopyFail, FLUSH } from '../wire/frontend.js';
import { FRONTEND } from '../wire/message-types.js';

/** Completes a CopyData that nobody reads any more. */
const FILLER = Buffer.alloc(64 * 1024);
/** Nobody else fails a COPY with these words. */
const INTRUDED = 'foreshard: a message that does not belong into it';
const ENDED = encodeCopyFail('its transaction was ended');
const INTRUSION = encodeCopyFail(INTRUDED);

/** COPY FROM STDIN under way: what the client sends goes to the server as it comes, in pieces. */
export class CopyIn {
  #active = false;
  #extended = false;
  /** Bytes that the server has yet to get of the CopyData sent last. */
  #remaining = 0;
  #full = false;
  /** It is over, and what the server makes of it decides what becomes of what was sent behind it. */
  #ending = false;
  /** Type of a message that came in place of the end. */
  #intruder: number | null = null;

  get active(): boolean {
    return this.#active;
  }

  /** The server does not take the data as fast as the client sends it. */
  get full(): boolean {
    return this.#full;
  }

  /** @param extended whether by the extended protocol */
  begin(extended: boolean): void {
    this.#active = true;
    this.#extended = extended;
    this.#ending = false;
    this.#intruder = null;
  }

  /** Whether it cannot be said yet what a message behind it means to the server. */
  undecided(backend: Backend | null): boolean {
    if (this.#ending && backend?.quiet !== false) this.#ending = false;
    return this.#ending;
  }

  /** Whether messages of this type are looked at meanwhile. */
  takes(type: number): boolean {
    switch (type) {
      case FRONTEND.CopyData:
      case FRONTEND.CopyDone:
      case FRONTEND.CopyFail:
      case FRONTEND.Sync:
      case FRONTEND.Flush:
      case FRONTEND.Terminate:
        return true;
      default:
        return false;
    }
  }

  /** Forwards a message, or a piece of one with `remaining` bytes to come. */
  forward(backend: Backend | null, type: number, frame: Buffer, remaining: number): void {
    if (type === FRONTEND.Flush) return;
    this.#remaining = remaining;
    // A Sync is ignored by PostgreSQL too, "for the convenience of libpq"; but not once it has failed.
    const written = type === FRONTEND.Sync ? backend?.syncInCopy(frame) : backend?.sendRaw(frame);
    if (written === false) this.#full = true;
    if (type !== FRONTEND.CopyDone && type !== FRONTEND.CopyFail) return;
    // Its answer may be waited for before a Sync is sent on.
    if (this.#extended) backend?.sendRaw(FLUSH);
    this.end(backend);
  }

  /**
   * A message has come that does not belong here. PostgreSQL ends the session for it, unless it has failed by then, and would take it for
   * what it says, wherever that belongs: it gets the message only once it is known to have failed.
   */
  intrude(backend: Backend | null, type: number): void {
    this.#intruder = type;
    backend?.sendRaw(INTRUSION);
    this.end(backend);
    this.#ending = true;
  }

  /** Ends it from here: the server fails, and what the client still sends for it is dropped. */
  fail(backend: Backend): void {
    this.end(backend);
    backend.sendRaw(ENDED);
  }

  end(backend: Backend | null): void {
    if (this.#active && backend?.mayAnswerSyncs) this.#ending = true;
    this.#active = false;
    // The server failed in the middle of a message: without its rest it would take what follows for it.
    for (; this.#remaining > 0; this.#remaining -= FILLER.length) backend?.sendRaw(FILLER.subarray(0, this.#remaining));
    this.#remaining = 0;
    this.#full = false;
  }

  /** The server takes more again. */
  drained(): void {
    this.#full = false;
  }

  /** The server has failed. @returns what PostgreSQL says before it ends the session for a message that does not belong; null: it has not failed for that. */
  intrusion(fields: ErrorFields): Buffer | null {
    const type = this.#intruder;
    this.#intruder = null;
    if (type === null || !fields.message.includes(INTRUDED)) return null;
    const code = type.toString(16).padStart(2, '0').toUpperCase();
    const message = `unexpected message type 0x${code} during COPY from stdin`;
    return encodeErrorResponse({ ...fields, sqlstate: '08P01', message });
  }
}
