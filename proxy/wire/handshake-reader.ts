import type { Duplex } from 'node:stream';
import { ForeshardError } from '../../topology/errors.js';
import { HEADER_BYTES } from './message-types.js';
import { ProtocolError } from './protocol-error.js';

/** The peer closed the connection during a handshake. */
export class ConnectionLostError extends ForeshardError {
  constructor(message: string, cause?: unknown) {
    super('08006', message, { cause });
  }
}

interface Waiter {
  readonly bytes: number;
  readonly resolve: (value: Buffer) => void;
  readonly reject: (reason: Error) => void;
}

/**
 * Reads a socket step by step while a handshake goes on, in either direction, and takes no byte more than it was asked
 * for: what the peer sent ahead stays in the socket for whoever reads it next. One read at a time.
 *
 * The reader listens to the socket's error and close events until `release`; the time limit spans the whole handshake.
 */
export class HandshakeReader {
  readonly socket: Duplex;
  #waiter: Waiter | null = null;
  #failure: Error | null = null;
  readonly #timer: NodeJS.Timeout | null;

  /** `onTimeout` makes the error that the pending and every later read fails with. `timeoutMs` 0: no limit. */
  constructor(socket: Duplex, timeoutMs: number, onTimeout: () => Error) {
    this.socket = socket;
    this.#timer = timeoutMs > 0 ? setTimeout(() => this.#fail(onTimeout()), timeoutMs) : null;
    socket.on('readable', this.#onReadable);
    socket.on('end', this.#onEnd);
    socket.on('error', this.#onError);
    socket.on('close', this.#onEnd);
  }

  /** Bytes that have arrived and were not read. */
  get buffered(): number {
    return this.socket.readableLength;
  }

  /** Exactly `bytes` bytes. Rejects when the peer closes first, on a socket error and at the time limit. */
  read(bytes: number): Promise<Buffer> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    if (bytes === 0) return Promise.resolve(Buffer.alloc(0));
    return new Promise((resolve, reject) => {
      this.#waiter = { bytes, resolve, reject };
      this.#onReadable();
    });
  }

  /** One whole message, header included. `maxBytes`: largest value of its length word. */
  async readMessage(maxBytes: number): Promise<Buffer> {
    const header = await this.read(HEADER_BYTES);
    const length = header.readInt32BE(1);
    if (length < 4 || length > maxBytes) throw new ProtocolError('invalid message length');
    return Buffer.concat([header, await this.read(length - 4)]);
  }

  /** Stops the clock and lets go of the socket: attach 'data', 'error' and 'close' in the same turn. */
  release(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.socket.off('readable', this.#onReadable);
    this.socket.off('end', this.#onEnd);
    this.socket.off('error', this.#onError);
    this.socket.off('close', this.#onEnd);
  }

  readonly #onReadable = (): void => {
    const waiter = this.#waiter;
    if (waiter === null) return;
    const bytes: Buffer | null = this.socket.read(waiter.bytes);
    if (bytes === null) return;
    // A stream that has ended gives what it has left.
    if (bytes.length < waiter.bytes) this.#onEnd();
    else {
      this.#waiter = null;
      waiter.resolve(bytes);
    }
  };

  readonly #onEnd = (): void => this.#fail(new ConnectionLostError('the peer closed the connection unexpectedly'));
  readonly #onError = (error: Error): void =>
    this.#fail(new ConnectionLostError(`the connection was lost: ${error.message}`, error));

  #fail(error: Error): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#failure ??= error;
    const waiter = this.#waiter;
    this.#waiter = null;
    waiter?.reject(this.#failure);
  }
}
