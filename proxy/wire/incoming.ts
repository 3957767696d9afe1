import type { Socket } from 'node:net';
import { kept, poison, READ_MEMORY } from './read-memory.js';

/**
 * What comes over a socket in the clear, read into READ_MEMORY. It goes into the socket's stream, as usual, while the handshake lasts, and to whoever
 * takes it as it comes from then on; `pause`, `resume`, and the events of the socket's end are as usual, too.
 */
export class Incoming {
  /** For the socket, when it is made. */
  readonly onread = {
    buffer: READ_MEMORY,
    callback: (bytes: number): boolean => this.#read(READ_MEMORY.subarray(0, bytes)),
  };
  /** The socket that was made with `onread`. */
  socket: Socket | null = null;
  #take: ((chunk: Buffer) => void) | null = null;

  /** From now on `take` gets all that is read. It is borrowed; see READ_MEMORY. */
  takeBy(take: (chunk: Buffer) => void): void {
    this.#take = take;
  }

  #read(chunk: Buffer): boolean {
    if (this.#take === null) return this.socket?.push(kept(chunk)) !== false;
    this.#take(chunk);
    poison(chunk);
    return true;
  }
}
