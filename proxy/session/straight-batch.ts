import { ForeshardError } from '../../topology/errors.js';
import type { BoundParams } from '../router/route.js';
import { decodeBind, decodeParse } from '../wire/frontend.js';
import { FRONTEND, HEADER_BYTES } from '../wire/message-types.js';
import { ProtocolError } from '../wire/protocol-error.js';
import type { ClientStatement } from './prepared.js';
import type { ClientStatements } from './statements.js';

/** A name is empty, in a Describe or Close of a portal; with the number of rows, in an Execute. */
const PORTAL_BYTES = HEADER_BYTES + 2;
const EXECUTE_BYTES = HEADER_BYTES + 5;
const PORTAL = 0x50; // 'P'

/**
 * Messages from a Parse or Bind to the Sync that lie in one piece of memory, and are one execution of a statement that the client has:
 * what most drivers send most of the time. Nothing else may be in there.
 */
export class StraightBatch {
  /** It prepares the unnamed statement. */
  parses = false;
  /** Whether the client is told the columns. */
  described = false;
  /** Whether the portal is closed behind it. */
  closes = false;
  /** Where the Bind begins, and the statement's name in it. */
  bindAt = 0;
  name = '';
  #bindEnd = 0;

  /** @returns whether it is such a batch; if not, nothing else is to be asked of it */
  read(bytes: Buffer): boolean {
    const limit = bytes.length;
    let at = 0;
    this.parses = bytes[0] === FRONTEND.Parse;
    if (this.parses) {
      at = endOf(bytes, 0);
      if (at < 0 || bytes[HEADER_BYTES] !== 0) return false;
    }
    const end = endOf(bytes, at);
    if (end < 0 || bytes[at] !== FRONTEND.Bind || bytes[at + HEADER_BYTES] !== 0) return false;
    const nameAt = at + HEADER_BYTES + 1;
    const nameEnd = bytes.indexOf(0, nameAt);
    if (nameEnd < 0 || nameEnd >= end) return false;
    this.name = nameEnd === nameAt ? '' : bytes.toString('latin1', nameAt, nameEnd);
    this.bindAt = at;
    this.#bindEnd = end;
    if (this.parses && this.name !== '') return false;
    return this.#tail(bytes, end, limit);
  }

  /** The statement that is bound, if the client has it, and has it as it is prepared here. */
  find(bytes: Buffer, statements: ClientStatements): ClientStatement | null {
    const statement = statements.peek(this.name);
    return statement !== null && this.parses && !isParseOf(bytes, this.bindAt, statement) ? null : statement;
  }

  /** The text that the Parse at the beginning prepares. */
  text(bytes: Buffer): Buffer {
    const from = HEADER_BYTES + 1;
    return bytes.subarray(from, bytes.indexOf(0, from));
  }

  /** The client's unnamed statement, from the Parse at the beginning; null: another way finds out what is wrong with it. `parsed` or `undo` follows. */
  prepare(bytes: Buffer, statements: ClientStatements): ClientStatement | null {
    try {
      const { sql, oids } = decodeParse(bytes.subarray(0, this.bindAt));
      return statements.add('', sql, oids);
    } catch (error) {
      if (error instanceof ForeshardError) return null;
      throw error;
    }
  }

  #tail(bytes: Buffer, from: number, limit: number): boolean {
    let at = from;
    this.described = bytes[at] === FRONTEND.Describe;
    if (this.described) {
      if (!isUnnamedPortal(bytes, at)) return false;
      at += PORTAL_BYTES;
    }
    if (at + EXECUTE_BYTES > limit || bytes[at] !== FRONTEND.Execute || bytes.readInt32BE(at + 1) !== EXECUTE_BYTES - 1)
      return false;
    if (bytes[at + HEADER_BYTES] !== 0 || bytes.readInt32BE(at + HEADER_BYTES + 1) !== 0) return false;
    at += EXECUTE_BYTES;
    this.closes = bytes[at] === FRONTEND.Close;
    if (this.closes) {
      if (!isUnnamedPortal(bytes, at)) return false;
      at += PORTAL_BYTES;
    }
    return at + HEADER_BYTES === limit && bytes[at] === FRONTEND.Sync && bytes.readInt32BE(at + 1) === HEADER_BYTES - 1;
  }

  /** The values that are bound; null: the message is not valid. */
  params(bytes: Buffer, { content }: ClientStatement): BoundParams | null {
    try {
      const { formats, values } = decodeBind(bytes.subarray(this.bindAt, this.#bindEnd));
      return { oids: content.oids, formats, values };
    } catch (error) {
      if (error instanceof ProtocolError) return null;
      throw error;
    }
  }
}

/** Where the message ends that begins at `at`; -1: not here. */
function endOf(bytes: Buffer, at: number): number {
  if (at + HEADER_BYTES > bytes.length) return -1;
  const length = bytes.readInt32BE(at + 1);
  const end = at + 1 + length;
  return length < 4 || end > bytes.length ? -1 : end;
}

function isUnnamedPortal(bytes: Buffer, at: number): boolean {
  return (
    at + PORTAL_BYTES <= bytes.length &&
    bytes.readInt32BE(at + 1) === PORTAL_BYTES - 1 &&
    bytes[at + HEADER_BYTES] === PORTAL &&
    bytes[at + HEADER_BYTES + 1] === 0
  );
}

/** Whether the Parse at the beginning prepares the unnamed statement as it is. */
function isParseOf(bytes: Buffer, end: number, { content }: ClientStatement): boolean {
  const { sql, oids } = content;
  const textAt = HEADER_BYTES + 1;
  const oidsAt = textAt + sql.length + 1;
  if (bytes[HEADER_BYTES] !== 0 || end !== oidsAt + 2 + 4 * oids.length || bytes[oidsAt - 1] !== 0) return false;
  if (bytes.readUInt16BE(oidsAt) !== oids.length) return false;
  for (let i = 0; i < oids.length; i++) if (bytes.readUInt32BE(oidsAt + 2 + 4 * i) !== oids[i]) return false;
  return bytes.compare(sql, 0, sql.length, textAt, oidsAt - 1) === 0;
}
