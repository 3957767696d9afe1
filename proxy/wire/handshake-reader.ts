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
 * The time limit spans the whole handshake, until `release`.
 */
export class HandshakeReader {
  #socket: Duplex;
  #waiter: Waiter | null = null;
  #failure: Error | null = null;
  readonly #timeoutMs: number;
  readonly #onTimeout: () => Error;
  #timer: NodeJS.Timeout | null = null;

  /** `onTimeout` makes the error that the pending and every later read fails with. `timeoutMs` 0: no limit. */
  constructor(socket: Duplex, timeoutMs: number, onTimeout: () => Error) {
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
    this.#onTimeout = onTimeout;
    this.startClock();
    this.#listen(socket);
  }

  /** What is read and may be written to: after `secure` the encrypted stream. */
  get socket(): Duplex {
    return this.#socket;
  }

  /** Gives back what was read last, to be read again. */
  unread(bytes: Buffer): void {
    this.#socket.unshift(bytes);
  }

  /**
   * Takes the connection to TLS: `handshake` is given the socket, with what has arrived on it and was not read, and resolves
   * with the encrypted stream over it, from which is read from then on. The same time limit goes on. Rejects as `read` does, and
   * with what `handshake` fails with.
   */
  async secure(handshake: (socket: Duplex) => Promise<Duplex>): Promise<void> {
    const plain = this.#socket;
    plain.off('readable', this.#onReadable);
    // As in `release`: Node lets a stream out of 'readable' mode only with the next tick.
    await new Promise<void>((resolve) => process.nextTick(resolve));
    if (this.#failure !== null) throw this.#failure;
    // The listeners for its errors and its end stay on: that is also how a handshake ends that never gets done.
    const lost = new Promise<never>((_, reject) => {
      this.#waiter = { bytes: 0, resolve: () => undefined, reject };
    });
    const secured = await Promise.race([handshake(plain), lost]);
    this.#waiter = null;
    plain.off('end', this.#onEnd);
    this.#socket = secured;
    this.#listen(secured);
  }

  #listen(socket: Duplex): void {
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

  /** Resolves after `ms`; rejects at once when the peer closes, at the time limit, and as `read` would. No read meanwhile. */
  async pause(ms: number): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    let timer: NodeJS.Timeout | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        // A waiter that no number of bytes satisfies hears of failures alone.
        this.#waiter = { bytes: Number.POSITIVE_INFINITY, resolve: () => undefined, reject };
        timer = setTimeout(resolve, ms);
      });
    } finally {
      clearTimeout(timer);
      this.#waiter = null;
    }
  }

  /** The time limit begins anew. */
  startClock(): void {
    this.stopClock();
    if (this.#timeoutMs > 0) this.#timer = setTimeout(() => this.#fail(this.#onTimeout()), this.#timeoutMs);
  }

  /** No time limit from now on: what the peer waits for is not up to the peer. */
  stopClock(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  /**
   * Stops the clock for good and lets go of the socket. Attach 'data', 'error' and 'close' as soon as it resolves, in the same turn.
   * Rejects when the connection was lost meanwhile.
   *
   * It takes a tick because Node lets a stream out of 'readable' mode only then, and would undo a `pause` made before.
   * Until `detach`, our own listeners for errors and the end stay on (and harmless).
   */
  async release(): Promise<void> {
    this.stopClock();
    this.socket.off('readable', this.#onReadable);
    await new Promise<void>((resolve) => process.nextTick(resolve));
    if (this.#failure !== null) throw this.#failure;
  }

  /** The new owner listens: nothing of this is needed any more. */
  detach(): void {
    const { socket } = this;
    socket.off('end', this.#onEnd);
    socket.off('error', this.#onError);
    socket.off('close', this.#onEnd);
  }

  readonly #onReadable = (): void => {
    const waiter = this.#waiter;
    if (waiter === null || waiter.bytes === Number.POSITIVE_INFINITY) return;
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
    this.stopClock();
    this.#failure ??= error;
    const waiter = this.#waiter;
    this.#waiter = null;
    waiter?.reject(this.#failure);
  }
}
