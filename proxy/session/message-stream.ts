import type { Backend } from '../backend/backend.js';

/** A large message on its way to a server, whose beginning has been sent: the rest goes on as it comes. */
export class MessageStream {
  #backend: Backend | null = null;
  #full = false;

  get active(): boolean {
    return this.#backend !== null;
  }

  /** The server does not take it as fast as the client sends it. */
  get full(): boolean {
    return this.#full;
  }

  begin(backend: Backend): void {
    this.#backend = backend;
  }

  /** `remaining`: bytes that come after this piece. */
  forward(piece: Buffer, remaining: number): void {
    if (this.#backend?.sendRaw(piece) === false) this.#full = true;
    if (remaining === 0) this.#backend = null;
  }

  /** The server takes more again. */
  drained(): void {
    this.#full = false;
  }
}
