import { BACKEND, HEADER_BYTES } from '../wire/message-types.js';

/** What an answer consists of when nothing about it is out of the ordinary. Index: type byte. */
const PLAIN = new Uint8Array(256);
for (const type of [
  BACKEND.ParseComplete,
  BACKEND.BindComplete,
  BACKEND.RowDescription,
  BACKEND.NoData,
  BACKEND.DataRow,
  BACKEND.CommandComplete,
  BACKEND.CloseComplete,
])
  PLAIN[type] = 1;

/** Whether a message of this type is nothing out of the ordinary in an answer. */
export function isPlain(type: number): boolean {
  return PLAIN[type] === 1;
}

/** The answer to one Query or batch, ReadyForQuery included, found by its headers in what has come from a server. */
export class WholeAnswer {
  /** Where in the chunk it ends. */
  end = 0;
  /** Transaction status of its ReadyForQuery. */
  status = 0;
  /** DataRows in it. */
  rows = 0;
  /** Where the RowDescription or NoData begins, counted from the answer's beginning; -1: there is none. */
  described = -1;
  /** CommandCompletes in it, and where in the chunk the last begins. */
  commands = 0;
  commandAt = -1;

  /** @returns whether a whole answer begins at `start`, with nothing in it that has to be looked at; if not, nothing else is to be asked */
  read(chunk: Buffer, start: number): boolean {
    const limit = chunk.length;
    this.rows = 0;
    this.described = -1;
    this.commands = 0;
    for (let at = start; at + HEADER_BYTES <= limit; ) {
      const type = chunk[at] as number;
      const end = at + 1 + chunk.readInt32BE(at + 1);
      if (end > limit || end <= at + 4) return false;
      if (type === BACKEND.ReadyForQuery) {
        this.status = chunk[at + HEADER_BYTES] as number;
        this.end = end;
        return true;
      }
      if (PLAIN[type] !== 1) return false;
      if (type === BACKEND.DataRow) this.rows += 1;
      else if (type === BACKEND.CommandComplete) {
        this.commands += 1;
        this.commandAt = at;
      } else if (type === BACKEND.RowDescription || type === BACKEND.NoData) this.described = at - start;
      at = end;
    }
    return false;
  }

  /** Rows that the last CommandComplete tells of: the number at its end, if there is one. */
  affected(chunk: Buffer): number {
    const end = this.commandAt + chunk.readInt32BE(this.commandAt + 1);
    let rows = 0;
    let at = end - 1;
    for (let weight = 1; isDigit(chunk[at]); weight *= 10) {
      rows += weight * ((chunk[at] as number) - ZERO);
      at -= 1;
    }
    return rows;
  }
}

const ZERO = 0x30;

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= ZERO && byte <= ZERO + 9;
}
