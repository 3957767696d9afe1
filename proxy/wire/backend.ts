import { MessageBuilder } from './message-builder.js';
import { MessageReader } from './message-reader.js';
import { BACKEND } from './message-types.js';
import { ProtocolError } from './protocol-error.js';

/** 'I' idle, 'T' in a transaction block, 'E' in a failed one. */
export type TransactionStatus = 'I' | 'T' | 'E';

/** A column of a RowDescription. */
export interface FieldDescription {
  /** A byte string (latin1), see MessageReader.name. */
  readonly name: string;
  readonly tableOid: number;
  readonly columnNumber: number;
  readonly typeOid: number;
  readonly typeLength: number;
  readonly typeModifier: number;
  /** 0 text, 1 binary. */
  readonly format: number;
}

const empty = (type: number): Buffer => new MessageBuilder(type, 0).finish();

/** Messages without a body. Shared: never write into them. */
export const PARSE_COMPLETE = empty(BACKEND.ParseComplete);
export const BIND_COMPLETE = empty(BACKEND.BindComplete);
export const CLOSE_COMPLETE = empty(BACKEND.CloseComplete);
export const NO_DATA = empty(BACKEND.NoData);
export const PORTAL_SUSPENDED = empty(BACKEND.PortalSuspended);
export const EMPTY_QUERY_RESPONSE = empty(BACKEND.EmptyQueryResponse);
export const COPY_DONE_RESPONSE = empty(BACKEND.CopyDone);

const READY: Record<TransactionStatus, Buffer> = {
  I: new MessageBuilder(BACKEND.ReadyForQuery, 1).byte(0x49).finish(),
  T: new MessageBuilder(BACKEND.ReadyForQuery, 1).byte(0x54).finish(),
  E: new MessageBuilder(BACKEND.ReadyForQuery, 1).byte(0x45).finish(),
};

export function encodeReadyForQuery(status: TransactionStatus): Buffer {
  return READY[status];
}

export const AUTHENTICATION_OK = new MessageBuilder(BACKEND.Authentication, 4).int32(0).finish();

export const AUTHENTICATION_CLEARTEXT_PASSWORD = new MessageBuilder(BACKEND.Authentication, 4).int32(3).finish();

export function encodeAuthenticationMd5(salt: Buffer): Buffer {
  return new MessageBuilder(BACKEND.Authentication, 8).int32(5).bytes(salt).finish();
}

export function encodeAuthenticationSasl(mechanisms: readonly string[]): Buffer {
  const builder = new MessageBuilder(BACKEND.Authentication).int32(10);
  for (const mechanism of mechanisms) builder.text(mechanism);
  return builder.byte(0).finish();
}

export function encodeAuthenticationSaslContinue(data: Buffer): Buffer {
  return new MessageBuilder(BACKEND.Authentication, 4 + data.length).int32(11).bytes(data).finish();
}

export function encodeAuthenticationSaslFinal(data: Buffer): Buffer {
  return new MessageBuilder(BACKEND.Authentication, 4 + data.length).int32(12).bytes(data).finish();
}

export function encodeParameterStatus(name: string, value: string): Buffer {
  return new MessageBuilder(BACKEND.ParameterStatus).text(name).text(value).finish();
}

/** `secret`: 4 bytes in protocol 3.0, up to 256 from 3.2 on. */
export function encodeBackendKeyData(processId: number, secret: Buffer): Buffer {
  return new MessageBuilder(BACKEND.BackendKeyData).int32(processId).bytes(secret).finish();
}

/** `version` as in a StartupMessage: major in the high 16 bits. */
export function encodeNegotiateProtocolVersion(version: number, unrecognizedOptions: readonly string[]): Buffer {
  const builder = new MessageBuilder(BACKEND.NegotiateProtocolVersion).int32(version).int32(unrecognizedOptions.length);
  for (const option of unrecognizedOptions) builder.name(option);
  return builder.finish();
}

export function encodeCommandComplete(tag: string): Buffer {
  return new MessageBuilder(BACKEND.CommandComplete).text(tag).finish();
}

export function encodeParameterDescription(oids: readonly number[]): Buffer {
  const builder = new MessageBuilder(BACKEND.ParameterDescription, 2 + 4 * oids.length).count16(oids.length);
  for (const oid of oids) builder.uint32(oid);
  return builder.finish();
}

export function encodeRowDescription(fields: readonly FieldDescription[]): Buffer {
  const builder = new MessageBuilder(BACKEND.RowDescription, 2 + 32 * fields.length).count16(fields.length);
  for (const field of fields)
    builder
      .name(field.name)
      .uint32(field.tableOid)
      .int16(field.columnNumber)
      .uint32(field.typeOid)
      .int16(field.typeLength)
      .int32(field.typeModifier)
      .int16(field.format);
  return builder.finish();
}

/** `values`: bytes in the column's format; null for SQL NULL. */
export function encodeDataRow(values: readonly (Buffer | string | null)[]): Buffer {
  const builder = new MessageBuilder(BACKEND.DataRow, 2 + 16 * values.length).count16(values.length);
  for (const value of values) {
    if (value === null) builder.int32(-1);
    else {
      const bytes = typeof value === 'string' ? Buffer.from(value, 'utf8') : value;
      builder.int32(bytes.length).bytes(bytes);
    }
  }
  return builder.finish();
}

/** Authentication request: `kind` 0 ok, 3 cleartext, 5 md5, 10 SASL, 11 continue, 12 final. */
export function decodeAuthentication(message: Buffer): { kind: number; data: Buffer } {
  const reader = new MessageReader(message);
  const kind = reader.int32();
  return { kind, data: reader.rest() };
}

export function decodeParameterStatus(message: Buffer): { name: string; value: string } {
  const reader = new MessageReader(message);
  const name = reader.text();
  const value = reader.text();
  reader.end();
  return { name, value };
}

export function decodeBackendKeyData(message: Buffer): { processId: number; secret: Buffer } {
  const reader = new MessageReader(message);
  const processId = reader.int32();
  const secret = reader.rest();
  if (secret.length < 4 || secret.length > 256)
    throw new ProtocolError(`invalid cancellation key of ${secret.length} bytes in message`);
  return { processId, secret };
}

export function decodeReadyForQuery(message: Buffer): TransactionStatus {
  const reader = new MessageReader(message);
  const status = String.fromCharCode(reader.byte());
  reader.end();
  if (status !== 'I' && status !== 'T' && status !== 'E')
    throw new ProtocolError(`invalid transaction status "${status}" in message`);
  return status;
}

export function decodeCommandComplete(message: Buffer): string {
  const reader = new MessageReader(message);
  const tag = reader.text();
  reader.end();
  return tag;
}

const COUNTED_TAG = /^(?:INSERT \d+|SELECT|UPDATE|DELETE|MERGE|COPY|FETCH|MOVE) (\d+)$/;

/** The number of rows in a command tag; null for commands that count none. */
export function rowsOfTag(tag: string): number | null {
  const match = COUNTED_TAG.exec(tag);
  return match === null ? null : Number(match[1]);
}

export function decodeNotification(message: Buffer): { processId: number; channel: string; payload: string } {
  const reader = new MessageReader(message);
  const processId = reader.int32();
  const channel = reader.text();
  const payload = reader.text();
  reader.end();
  return { processId, channel, payload };
}

export function decodeParameterDescription(message: Buffer): number[] {
  const reader = new MessageReader(message);
  const oids = Array.from({ length: reader.uint16() }, () => reader.uint32());
  reader.end();
  return oids;
}

export function decodeRowDescription(message: Buffer): FieldDescription[] {
  const reader = new MessageReader(message);
  const fields = Array.from({ length: reader.uint16() }, () => ({
    name: reader.name(),
    tableOid: reader.uint32(),
    columnNumber: reader.int16(),
    typeOid: reader.uint32(),
    typeLength: reader.int16(),
    typeModifier: reader.int32(),
    format: reader.int16(),
  }));
  reader.end();
  return fields;
}

/** Values are slices of the message; null for SQL NULL. */
export function decodeDataRow(message: Buffer): (Buffer | null)[] {
  const reader = new MessageReader(message);
  const values: (Buffer | null)[] = [];
  for (let left = reader.uint16(); left > 0; left--) {
    const length = reader.int32();
    values.push(length === -1 ? null : reader.bytes(length));
  }
  reader.end();
  return values;
}
