import { BACKEND, FRONTEND, HEADER_BYTES } from '../wire/message-types.js';

/** What a COPY in binary format begins with: signature, flags, length of the extension (PostgreSQL's documentation of COPY, "Binary Format"). */
const FILE_HEADER = Buffer.from('PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0', 'latin1');
/** And ends with. */
const FILE_TRAILER = Buffer.from([0xff, 0xff]);

export const COPY_HEADER = copyData(FILE_HEADER);
export const COPY_TRAILER = copyData(FILE_TRAILER);

function copyData(bytes: Buffer): Buffer {
  const message = Buffer.alloc(HEADER_BYTES + bytes.length);
  message[0] = FRONTEND.CopyData;
  message.writeInt32BE(4 + bytes.length, 1);
  bytes.copy(message, HEADER_BYTES);
  return message;
}

/**
 * Makes of the DataRow messages of one server the CopyData messages of a COPY in binary format to another one: with all columns in binary form, a row is the
 * same bytes in both, so that only the types of the messages differ.
 */
export class RowRelay {
  /** Rows so far. */
  rows = 0;
  /** Of the message under way, still to come; without its header while that is not known. */
  #left = 0;
  /** The header's length word, as far as it has come. */
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #known = 0;

  /** @param slice whole messages or parts of them, in order @returns the same bytes, of its own */
  convert(slice: Buffer): Buffer {
    const bytes = Buffer.from(slice);
    for (let at = 0; at < bytes.length; ) {
      if (this.#left > 0) {
        const taken = Math.min(this.#left, bytes.length - at);
        this.#left -= taken;
        at += taken;
        continue;
      }
      if (this.#known === 0) {
        if (bytes[at] !== BACKEND.DataRow) throw new RangeError('not a DataRow');
        bytes[at] = FRONTEND.CopyData;
      }
      const taken = Math.min(HEADER_BYTES - this.#known, bytes.length - at);
      bytes.copy(this.#header, this.#known, at, at + taken);
      this.#known += taken;
      at += taken;
      if (this.#known < HEADER_BYTES) break;
      this.#left = this.#header.readInt32BE(1) - 4;
      this.#known = 0;
      this.rows += 1;
    }
    return bytes;
  }

  /** Between two messages. */
  get whole(): boolean {
    return this.#left === 0 && this.#known === 0;
  }
}
