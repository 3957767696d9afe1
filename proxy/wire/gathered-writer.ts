import type { Writable } from 'node:stream';
import { isBorrowed } from './read-memory.js';
import { giveBackSendBuffer, takeSendBuffer } from './send-buffers.js';

/** Above this many unsent bytes `write` answers false; `onDrain` is called once they have fallen to a quarter of it. */
const DEFAULT_HIGH_WATER_BYTES = 256 * 1024;

/** What is no longer than this is copied, to be one piece with what is written before and after it: cheaper than a long writev. */
const COPY_BYTES = 8 * 1024;

/** Memory that is being filled with what is to be written; or, full, that the socket has yet to be done with. */
interface Filling {
  readonly memory: Buffer;
  /** The socket has been given what is before this. */
  given: number;
  filled: number;
  /** The number of the write with the last that it has been given. */
  write: number;
}

/**
 * Gathers everything written to a socket during one turn of the event loop and hands it over in one call.
 *
 * The turn ends with setImmediate, not with a microtask: microtasks run after each socket's data event, so two clients
 * whose statements share a server connection would still cost two writes. setImmediate runs after all sockets that were
 * readable in this poll, and before the next poll waits, so nothing is delayed by more than this turn's own work.
 *
 * What is borrowed from a server's read (see READ_MEMORY) is copied before `write` returns. So is what is short. The memory for that is used again when
 * the socket is done with it, which it mostly is at once.
 */
export class GatheredWriter {
  readonly #socket: Writable;
  readonly #onDrain: () => void;
  readonly #highWaterBytes: number;
  /** In order, before what is in `#filling` and was not given to the socket. */
  #pending: Buffer[] = [];
  #pendingBytes = 0;
  #filling: Filling | null = null;
  /** Full ones, oldest first. */
  readonly #full: Filling[] = [];
  #scheduled: NodeJS.Immediate | null = null;
  #needsDrain = false;
  #flushed = 0;
  /** Writes given to the socket; it has at most one at a time, of so many bytes. */
  #writes = 0;
  #writing = 0;
  /** The socket is being given one: it may be done with it at once. */
  #handing = false;
  #ended = false;

  /** `onDrain`: called after `write` has returned false, when it makes sense to go on. */
  constructor(socket: Writable, onDrain: () => void, highWaterBytes: number = DEFAULT_HIGH_WATER_BYTES) {
    this.#socket = socket;
    this.#onDrain = onDrain;
    this.#highWaterBytes = highWaterBytes;
  }

  /** Bytes accepted and not yet given to the kernel. */
  get buffered(): number {
    return this.#pendingBytes + this.#writing;
  }

  /** `write` has answered false, and `onDrain` has yet to come. */
  get isFull(): boolean {
    return this.#needsDrain;
  }

  /** Nothing is taken any more. */
  get isEnded(): boolean {
    return this.#ended;
  }

  /** Bytes handed to the socket in all. */
  get flushed(): number {
    return this.#flushed;
  }

  /**
   * Takes the buffers; they must not be changed afterwards, but by the next read if they are borrowed from it. False: stop reading from where they
   * come until `onDrain`.
   */
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

  /** Writes what has been gathered now instead of at the end of the turn; or, while the socket is busy, when it is not. */
  readonly flush = (): void => {
    if (this.#scheduled !== null) {
      clearImmediate(this.#scheduled);
      this.#scheduled = null;
    }
    const bytes = this.#pendingBytes;
    if (bytes === 0 || this.#writing > 0) return;
    this.#pendingBytes = 0;
    this.#cut();
    const buffers = this.#pending;
    this.#pending = [];
    const socket = this.#socket;
    // A socket that has died reports it by its own error and close events; what was gathered for it is void.
    if (socket.destroyed || socket.writableEnded) return;
    this.#flushed += bytes;
    this.#writes += 1;
    this.#writing = bytes;
    this.#handing = true;
    const last = buffers.length - 1;
    // Past the queue that a stream keeps, since there is one here: it costs as much as half of the system call.
    if (last === 0 && socket.writableLength === 0)
      socket._write(buffers[0] as Buffer, 'buffer' as BufferEncoding, this.#written);
    else {
      socket.cork();
      for (let i = 0; i < last; i++) socket.write(buffers[i] as Buffer);
      socket.write(buffers[last] as Buffer, this.#written);
      socket.uncork();
    }
    this.#handing = false;
    // Mostly the kernel has taken all of it. Whoever writes now is not to be called back from within.
    if (this.#needsDrain && this.#writing === 0) process.nextTick(this.#drain);
  };

  /** Flushes, then ends the socket: `data`, if any, is the last thing written. */
  end(data?: Buffer): void {
    if (this.#ended) return;
    if (data !== undefined) this.#add(data);
    this.#ended = true;
    this.flush();
    this.#endSocket();
  }

  #endSocket(): void {
    if (this.#ended && this.buffered === 0 && !this.#socket.destroyed) this.#socket.end();
  }

  #add(buffer: Buffer): void {
    if (buffer.length === 0 || this.#ended) return;
    this.#pendingBytes += buffer.length;
    if (buffer.length <= COPY_BYTES || isBorrowed(buffer)) {
      this.#copy(buffer);
      return;
    }
    this.#cut();
    this.#pending.push(buffer);
  }

  #copy(buffer: Buffer): void {
    for (let at = 0; at < buffer.length; ) {
      this.#filling ??= { memory: takeSendBuffer(buffer.length - at), given: 0, filled: 0, write: 0 };
      const into = this.#filling;
      const bytes = buffer.copy(into.memory, into.filled, at);
      into.filled += bytes;
      at += bytes;
      if (into.filled < into.memory.length) continue;
      this.#cut();
      this.#full.push(into);
      this.#filling = null;
    }
  }

  /** What has been copied stands before what comes from here on. */
  #cut(): void {
    const from = this.#filling;
    if (from === null || from.given === from.filled) return;
    this.#pending.push(from.memory.subarray(from.given, from.filled));
    from.given = from.filled;
    from.write = this.#writes + 1;
  }

  /** The socket is done with all writes up to this one. */
  #giveBack(write: number): void {
    while (this.#full[0] !== undefined && this.#full[0].write <= write)
      giveBackSendBuffer((this.#full.shift() as Filling).memory);
    const filling = this.#filling;
    if (filling === null || filling.given < filling.filled || filling.write > write) return;
    this.#filling = null;
    giveBackSendBuffer(filling.memory);
  }

  // Node's own 'drain' only follows a write beyond the socket's own mark, and knows nothing of what is gathered here:
  // waiting for it could wait for ever.
  readonly #written = (error?: Error | null): void => {
    this.#writing = 0;
    const socket = this.#socket;
    if (error) socket.destroy(error);
    // Memory that a dead socket may still look at is nobody's.
    if (socket.destroyed) return;
    this.#giveBack(this.#writes);
    if (this.#handing) return;
    this.flush();
    this.#drain();
    this.#endSocket();
  };

  readonly #drain = (): void => {
    if (!this.#needsDrain || this.buffered > this.#highWaterBytes / 4) return;
    this.#needsDrain = false;
    this.#onDrain();
  };
}
