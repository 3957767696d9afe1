import { HEADER_BYTES } from './message-types.js';
import { ProtocolError } from './protocol-error.js';

/** Writes one message: fields in order, then `finish`. */
export class MessageBuilder {
  #buffer: Buffer;
  #length: number;

  /** `type` null: a start-up packet, which has no type byte. */
  constructor(type: number | null, expectedBytes: number = 64) {
    this.#buffer = Buffer.allocUnsafe(HEADER_BYTES + expectedBytes);
    if (type === null) {
      this.#length = 4;
    } else {
      this.#buffer[0] = type;
      this.#length = HEADER_BYTES;
    }
    this.#lengthAt = this.#length - 4;
  }

  readonly #lengthAt: number;

  byte(value: number): this {
    // In two steps: growing may replace the buffer, which a single assignment would have looked up before.
    const at = this.#grow(1);
    this.#buffer[at] = value;
    return this;
  }

  int16(value: number): this {
    const at = this.#grow(2);
    this.#buffer.writeInt16BE(value, at);
    return this;
  }

  /** A count that the protocol writes as an unsigned int16, as PostgreSQL reads those of parameters and columns. */
  count16(value: number): this {
    if (value > 0xffff) throw new ProtocolError(`a message cannot carry ${value} items`);
    const at = this.#grow(2);
    this.#buffer.writeUInt16BE(value, at);
    return this;
  }

  int32(value: number): this {
    const at = this.#grow(4);
    this.#buffer.writeInt32BE(value, at);
    return this;
  }

  uint32(value: number): this {
    const at = this.#grow(4);
    this.#buffer.writeUInt32BE(value, at);
    return this;
  }

  bytes(value: Buffer): this {
    const at = this.#grow(value.length);
    value.copy(this.#buffer, at);
    return this;
  }

  /** Bytes and the NUL that ends them. */
  cstring(value: Buffer): this {
    if (value.includes(0)) throw new ProtocolError('a string in a message cannot contain a zero byte');
    return this.bytes(value).byte(0);
  }

  /** A NUL-terminated string in UTF-8. */
  text(value: string): this {
    return this.cstring(Buffer.from(value, 'utf8'));
  }

  /** A NUL-terminated byte string, as `MessageReader.name` gives it. */
  name(value: string): this {
    return this.cstring(Buffer.from(value, 'latin1'));
  }

  /** `trailing`: bytes that will follow in other buffers and belong to this message. */
  finish(trailing: number = 0): Buffer {
    this.#buffer.writeInt32BE(this.#length - this.#lengthAt + trailing, this.#lengthAt);
    return this.#buffer.subarray(0, this.#length);
  }

  #grow(bytes: number): number {
    const at = this.#length;
    this.#length += bytes;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#length, this.#buffer.length * 2));
      this.#buffer.copy(larger, 0, 0, at);
      this.#buffer = larger;
    }
    return at;
  }
}
