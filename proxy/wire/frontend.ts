import { MessageBuilder } from './message-builder.js';
import { MessageReader } from './message-reader.js';
import { FRONTEND } from './message-types.js';
import { ProtocolError } from './protocol-error.js';

/** Names are byte strings (latin1), see MessageReader.name; buffers are slices of the message. */
export interface ParseMessage {
  readonly name: string;
  /** The query text without its final zero byte, in the client's encoding. */
  readonly sql: Buffer;
  /** Declared parameter types; 0 when left to the server. May be fewer than the parameters. */
  readonly oids: readonly number[];
}

export interface BindMessage {
  readonly portal: string;
  readonly statement: string;
  /** One per parameter: 0 text, 1 binary. */
  readonly formats: readonly number[];
  /** null for SQL NULL. */
  readonly values: readonly (Buffer | null)[];
  /** As sent: none (all text), one for all, or one per column. */
  readonly resultFormats: readonly number[];
}

/** What Describe and Close name. */
export interface NamedObject {
  readonly kind: 'statement' | 'portal';
  readonly name: string;
}

export interface ExecuteMessage {
  readonly portal: string;
  /** 0: all rows. */
  readonly maxRows: number;
}

/** Protocol 3.0 as a StartupMessage writes it. */
const PROTOCOL_3_0 = 3 << 16;
/** The newest protocol we speak: that of PostgreSQL 18. */
export const PROTOCOL_3_2 = (3 << 16) | 2;
export const CANCEL_REQUEST_CODE = (1234 << 16) | 5678;
export const SSL_REQUEST_CODE = (1234 << 16) | 5679;
export const GSSENC_REQUEST_CODE = (1234 << 16) | 5680;

const empty = (type: number): Buffer => new MessageBuilder(type, 0).finish();

/** Messages without a body. Shared: never write into them. */
export const SYNC = empty(FRONTEND.Sync);
export const FLUSH = empty(FRONTEND.Flush);
export const TERMINATE = empty(FRONTEND.Terminate);
export const COPY_DONE = empty(FRONTEND.CopyDone);

const bytesOf = (sql: Buffer | string): Buffer => (typeof sql === 'string' ? Buffer.from(sql, 'utf8') : sql);

export function encodeStartup(parameters: Readonly<Record<string, string>>, version: number = PROTOCOL_3_0): Buffer {
  const builder = new MessageBuilder(null, 256).int32(version);
  for (const [name, value] of Object.entries(parameters)) builder.text(name).text(value);
  return builder.byte(0).finish();
}

export function encodeSslRequest(): Buffer {
  return new MessageBuilder(null, 4).int32(SSL_REQUEST_CODE).finish();
}

export function encodeGssEncRequest(): Buffer {
  return new MessageBuilder(null, 4).int32(GSSENC_REQUEST_CODE).finish();
}

export function encodeCancelRequest(processId: number, secret: Buffer): Buffer {
  return new MessageBuilder(null, 8 + secret.length).int32(CANCEL_REQUEST_CODE).int32(processId).bytes(secret).finish();
}

export function encodePassword(password: string): Buffer {
  return new MessageBuilder(FRONTEND.Password).text(password).finish();
}

export function encodeSaslInitialResponse(mechanism: string, data: Buffer): Buffer {
  return new MessageBuilder(FRONTEND.Password).text(mechanism).int32(data.length).bytes(data).finish();
}

export function encodeSaslResponse(data: Buffer): Buffer {
  return new MessageBuilder(FRONTEND.Password).bytes(data).finish();
}

export function encodeQuery(sql: Buffer | string): Buffer {
  const bytes = bytesOf(sql);
  return new MessageBuilder(FRONTEND.Query, bytes.length + 1).cstring(bytes).finish();
}

export function encodeParse(name: string, sql: Buffer | string, oids: readonly number[] = []): Buffer {
  const bytes = bytesOf(sql);
  const builder = new MessageBuilder(FRONTEND.Parse, name.length + bytes.length + 4 + 4 * oids.length)
    .name(name)
    .cstring(bytes)
    .count16(oids.length);
  for (const oid of oids) builder.uint32(oid);
  return builder.finish();
}

export function encodeBind(bind: BindMessage): Buffer {
  const builder = new MessageBuilder(FRONTEND.Bind, 256).name(bind.portal).name(bind.statement);
  builder.count16(bind.formats.length);
  for (const format of bind.formats) builder.int16(format);
  builder.count16(bind.values.length);
  for (const value of bind.values) {
    if (value === null) builder.int32(-1);
    else builder.int32(value.length).bytes(value);
  }
  builder.count16(bind.resultFormats.length);
  for (const format of bind.resultFormats) builder.int16(format);
  return builder.finish();
}

const kindByte = (kind: NamedObject['kind']): number => (kind === 'statement' ? 0x53 : 0x50);

export function encodeDescribe(kind: NamedObject['kind'], name: string): Buffer {
  return new MessageBuilder(FRONTEND.Describe).byte(kindByte(kind)).name(name).finish();
}

export function encodeClose(kind: NamedObject['kind'], name: string): Buffer {
  return new MessageBuilder(FRONTEND.Close).byte(kindByte(kind)).name(name).finish();
}

export function encodeExecute(portal: string, maxRows: number = 0): Buffer {
  return new MessageBuilder(FRONTEND.Execute).name(portal).int32(maxRows).finish();
}

export function encodeCopyFail(reason: string): Buffer {
  return new MessageBuilder(FRONTEND.CopyFail).text(reason).finish();
}

/** The query text of a Query message, without its final zero byte. */
export function decodeQuery(message: Buffer): Buffer {
  const reader = new MessageReader(message);
  const sql = reader.cstring();
  reader.end();
  return sql;
}

export function decodeParse(message: Buffer): ParseMessage {
  const reader = new MessageReader(message);
  const name = reader.name();
  const sql = reader.cstring();
  const oids: number[] = [];
  for (let left = reader.uint16(); left > 0; left--) oids.push(reader.uint32());
  reader.end();
  return { name, sql, oids };
}

/** A Bind up to its first value. */
function readBindStart(reader: MessageReader): { portal: string; statement: string; formats: number[] } {
  const portal = reader.name();
  const statement = reader.name();
  const given: number[] = [];
  for (let left = reader.uint16(); left > 0; left--) given.push(reader.int16());
  const count = reader.uint16();
  // exec_bind_message in PostgreSQL's postgres.c: none (text), one for all, or one for each.
  if (given.length > 1 && given.length !== count)
    throw new ProtocolError(`bind message has ${given.length} parameter formats but ${count} parameters`);
  const formats: number[] = [];
  for (let i = 0; i < count; i++) formats.push((given.length > 1 ? given[i] : given[0]) ?? 0);
  return { portal, statement, formats };
}

/**
 * The beginning of a Bind, as much as has come of it: what of its values is not there in whole is missing from `values`, and
 * `resultFormats` is empty. Null: it breaks off before its first value, or is not valid.
 */
export function decodeBindHead(head: Buffer): BindMessage | null {
  const reader = new MessageReader(head);
  let start: ReturnType<typeof readBindStart>;
  try {
    start = readBindStart(reader);
  } catch (error) {
    if (error instanceof ProtocolError) return null;
    throw error;
  }
  const values = new Array<Buffer | null>(start.formats.length);
  for (let i = 0; i < values.length && reader.remaining >= 4; i++) {
    const length = reader.int32();
    if (length < -1 || length > reader.remaining) break;
    values[i] = length === -1 ? null : reader.bytes(length);
  }
  return { ...start, values, resultFormats: [] };
}

export function decodeBind(message: Buffer): BindMessage {
  const reader = new MessageReader(message);
  const { portal, statement, formats } = readBindStart(reader);
  const values: (Buffer | null)[] = [];
  for (let i = 0; i < formats.length; i++) {
    const length = reader.int32();
    values.push(length === -1 ? null : reader.bytes(length));
  }
  const resultFormats: number[] = [];
  for (let left = reader.uint16(); left > 0; left--) resultFormats.push(reader.int16());
  reader.end();
  return { portal, statement, formats, values, resultFormats };
}

function decodeNamed(message: Buffer, command: 'DESCRIBE' | 'CLOSE'): NamedObject {
  const reader = new MessageReader(message);
  const subtype = reader.byte();
  const name = reader.name();
  reader.end();
  if (subtype === 0x53) return { kind: 'statement', name };
  if (subtype === 0x50) return { kind: 'portal', name };
  throw new ProtocolError(`invalid ${command} message subtype ${subtype}`);
}

export function decodeDescribe(message: Buffer): NamedObject {
  return decodeNamed(message, 'DESCRIBE');
}

export function decodeClose(message: Buffer): NamedObject {
  return decodeNamed(message, 'CLOSE');
}

export function decodeExecute(message: Buffer): ExecuteMessage {
  const reader = new MessageReader(message);
  const portal = reader.name();
  const maxRows = reader.int32();
  reader.end();
  return { portal, maxRows };
}

/** For Sync, Flush, Terminate, CopyDone: nothing may follow the header. */
export function checkEmpty(message: Buffer): void {
  new MessageReader(message).end();
}

/**
 * The same Bind for another statement name; the parameters are not copied. Write the buffers one after the other. `following`: bytes
 * of it that come behind `message`.
 */
export function rewriteBindStatement(message: Buffer, statement: string, following: number = 0): Buffer[] {
  const reader = new MessageReader(message);
  const portal = reader.name();
  reader.cstring();
  const rest = reader.rest();
  const head = new MessageBuilder(FRONTEND.Bind, portal.length + statement.length + 2).name(portal).name(statement);
  return [head.finish(rest.length + following), rest];
}

/** The same Parse for another statement name; the text is not copied. */
export function rewriteParseName(message: Buffer, name: string): Buffer[] {
  const reader = new MessageReader(message);
  reader.cstring();
  const rest = reader.rest();
  return [new MessageBuilder(FRONTEND.Parse, name.length + 1).name(name).finish(rest.length), rest];
}
