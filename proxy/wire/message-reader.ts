import { HEADER_BYTES } from './message-types.js';
import { ProtocolError } from './protocol-error.js';

/**
 * Reads the body of one whole message, checking every length as PostgreSQL's pqformat.c does and complaining in its
 * words. Slices share the message's memory.
 */
export class MessageReader {
  readonly #message: Buffer;
  #offset: number;

  /** `message`: the whole frame with its header, or, with `offset` 0, a bare body. */
  constructor(message: Buffer, offset: number = HEADER_BYTES) {
    this.#message = message;
    this.#offset = offset;
  }

  /** Where the next read starts, from the start of the frame. */
  get offset(): number {
    return this.#offset;
  }

  get remaining(): number {
    return this.#message.length - this.#offset;
  }

  byte(): number {
    const value = this.#message[this.#offset];
    if (value === undefined) throw new ProtocolError('no data left in message');
    this.#offset += 1;
    return value;
  }

  int16(): number {
    return this.#message.readInt16BE(this.#take(2));
  }

  uint16(): number {
    return this.#message.readUInt16BE(this.#take(2));
  }

  int32(): number {
    return this.#message.readInt32BE(this.#take(4));
  }

  uint32(): number {
    return this.#message.readUInt32BE(this.#take(4));
  }

  bytes(length: number): Buffer {
    const start = this.#take(length);
    return this.#message.subarray(start, start + length);
  }

  rest(): Buffer {
    return this.bytes(this.remaining);
  }

  /** The bytes before the next NUL, which is skipped. */
  cstring(): Buffer {
    const end = this.#message.indexOf(0, this.#offset);
    if (end < 0) throw new ProtocolError('invalid string in message');
    const value = this.#message.subarray(this.#offset, end);
    this.#offset = end + 1;
    return value;
  }

  /** A NUL-terminated string decoded as UTF-8. */
  text(): string {
    return this.cstring().toString('utf8');
  }

  /**
   * A NUL-terminated name as a byte string: one latin1 character per byte. Names are compared, mapped and sent back, and
   * the client's encoding is not always UTF-8: decoding them would let two names fall together.
   */
  name(): string {
    return this.cstring().toString('latin1');
  }

  /** The body must have been read to its end. */
  end(): void {
    if (this.#offset !== this.#message.length) throw new ProtocolError('invalid message format');
  }

  #take(length: number): number {
    if (length < 0 || length > this.remaining) throw new ProtocolError('insufficient data left in message');
    const start = this.#offset;
    this.#offset += length;
    return start;
  }
}
