import type { Writable } from 'node:stream';

/** Above this many unsent bytes `write` answers false; `onDrain` is called once they have fallen to a quarter of it. */
const DEFAULT_HIGH_WATER_BYTES = 256 * 1024;

/** Gathered buffers up to this size in all are joined and written as one: one copy is cheaper than a long writev. */
const JOIN_BYTES = 32 * 1024;

/**
 * Gathers everything written to a socket during one turn of the event loop and hands it over in one call.
 *
 * The turn ends with setImmediate, not with a microtask: microtasks run after each socket's data event, so two clients
 * whose statements share a server connection would still cost two writes. setImmediate runs after all sockets that were
 * readable in this poll, and before the next poll waits, so nothing is delayed by more than this turn's own work.
 */
export class GatheredWriter {
  readonly #socket: Writable;
  readonly #onDrain: () => void;
  readonly #highWaterBytes: number;
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #scheduled: NodeJS.Immediate | null = null;
  #needsDrain = false;
  #flushed = 0;

  /** `onDrain`: called after `write` has returned false, when it makes sense to go on. */
  constructor(socket: Writable, onDrain: () => void, highWaterBytes: number = DEFAULT_HIGH_WATER_BYTES) {
    this.#socket = socket;
    this.#onDrain = onDrain;
    this.#highWaterBytes = highWaterBytes;
  }

  /** Bytes accepted and not yet given to the kernel. */
  get buffered(): number {
    return this.#pendingBytes + this.#socket.writableLength;
  }

  /** `write` has answered false, and `onDrain` has yet to come. */
  get isFull(): boolean {
    return this.#needsDrain;
  }

  /** Bytes handed to the socket in all. */
  get flushed(): number {
    return this.#flushed;
  }

  /** Takes the buffers; they must not be changed afterwards. False: stop reading from where they come until `onDrain`. */
  write(data: Buffer | readonly Buffer[]): boolean {
    if (Buffer.isBuffer(data)) this.#add(data);
    else for (const buffer of data) this.#add(buffer);
    if (this.#scheduled === null && this.#pendingBytes > 0) this.#scheduled = setImmediate(this.flush);
    if (this.buffered < this.#highWaterBytes) return true;
    this.#needsDrain = true;
    return false;
  }

  /** Takes the buffer, and writes it with all that was gathered before it now: nothing will follow in this turn. */
  writeNow(data: Buffer): boolean {
    this.#add(data);
    this.flush();
    if (this.buffered < this.#highWaterBytes) return true;
    this.#needsDrain = true;
    return false;
  }

  /** Writes what has been gathered now instead of at the end of the turn. */
  readonly flush = (): void => {
    if (this.#scheduled !== null) {
      clearImmediate(this.#scheduled);
      this.#scheduled = null;
    }
    const buffers = this.#pending;
    const bytes = this.#pendingBytes;
    if (bytes === 0) return;
    this.#pending = [];
    this.#pendingBytes = 0;
    // A socket that has died reports it by its own error and close events; what was gathered for it is void.
    if (this.#socket.destroyed || this.#socket.writableEnded) return;
    this.#flushed += bytes;
    if (buffers.length === 1) this.#socket.write(buffers[0] as Buffer, this.#written);
    else if (bytes <= JOIN_BYTES) this.#socket.write(Buffer.concat(buffers, bytes), this.#written);
    else {
      const last = buffers.length - 1;
      this.#socket.cork();
      for (let i = 0; i < last; i++) this.#socket.write(buffers[i] as Buffer);
      this.#socket.write(buffers[last] as Buffer, this.#written);
      this.#socket.uncork();
    }
  };

  /** Flushes, then ends the socket: `data`, if any, is the last thing written. */
  end(data?: Buffer): void {
    if (data !== undefined) this.#add(data);
    this.flush();
    if (!this.#socket.destroyed) this.#socket.end();
  }

  #add(buffer: Buffer): void {
    if (buffer.length === 0) return;
    this.#pending.push(buffer);
    this.#pendingBytes += buffer.length;
  }

  // Node's own 'drain' only follows a write beyond the socket's own mark, and knows nothing of what is gathered here:
  // waiting for it could wait for ever.
  readonly #written = (): void => {
    if (!this.#needsDrain || this.buffered > this.#highWaterBytes / 4) return;
    this.#needsDrain = false;
    this.#onDrain();
  };
}
