/**
 * Keys in and out: from literals, parameters and the wire's binary format to the canonical scalars of `key.ts`, and back
 * to the text PostgreSQL reads. A decoder answers null when it cannot be sure what PostgreSQL would make of the input:
 * then the statement is not pinned, which is slow or refused, but never wrong.
 */
import { isUtf8 } from 'node:buffer';
import { decodeDate, decodeTimestamp, encodeDate, encodeTimestamp, isDate, isTimestamp } from './datetime.js';
import { ForeshardError } from './errors.js';
import type { KeyScalar, KeyTuple, KeyType, Method, Position } from './key.js';

/** What is needed to read the positions of a keyspace; every `Keyspace` is one. */
export interface KeyScheme {
  readonly method: Method;
  readonly keyTypes: readonly KeyType[];
}

/** Type OIDs (pg_type.dat); they are the same on every server. */
export const KEY_TYPE_OID: Readonly<Record<KeyType, number>> = {
  int2: 21,
  int4: 23,
  int8: 20,
  uuid: 2950,
  text: 25,
  varchar: 1043,
  date: 1082,
  timestamp: 1114,
  timestamptz: 1184,
};

const TYPE_BY_OID: ReadonlyMap<number, KeyType> = new Map(
  (Object.entries(KEY_TYPE_OID) as [KeyType, number][]).map(([type, oid]) => [oid, type]),
);

/** The key type named by `pg_type.typname`, or null when such columns cannot be keys. */
export function keyTypeFromPg(typname: string): KeyType | null {
  return Object.hasOwn(KEY_TYPE_OID, typname) ? (typname as KeyType) : null;
}

/** The key type with this OID, or null. */
export function keyTypeFromOid(oid: number): KeyType | null {
  return TYPE_BY_OID.get(oid) ?? null;
}

type Family = 'int' | 'text' | Exclude<KeyType, 'int2' | 'int4' | 'int8' | 'text' | 'varchar'>;
function familyOf(type: KeyType): Family {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
      return 'int';
    case 'text':
    case 'varchar':
      return 'text';
    default:
      return type;
  }
}

/**
 * Whether a value of type `from` equals a key of type `type` exactly when their scalars are equal: integers of any width
 * among one another, text and varchar; every other type only with itself (a date compared with a timestamptz depends on
 * the session's time zone).
 */
export function sameFamily(type: KeyType, from: KeyType): boolean {
  return familyOf(type) === familyOf(from);
}

/** Whether a parameter declared with this OID may be decoded as a key of `type`; 0 (left to the server) may. */
export function acceptsOid(type: KeyType, oid: number): boolean {
  if (oid === 0) return true;
  const from = TYPE_BY_OID.get(oid);
  return from !== undefined && sameFamily(type, from);
}

const LONE_SURROGATE = /\p{Surrogate}/u;
const INT_MIN = { int2: -32768n, int4: -2147483648n, int8: -(2n ** 63n) } as const;
const INT_MAX = { int2: 32767n, int4: 2147483647n, int8: 2n ** 63n - 1n } as const;

/**
 * A value in text form, as a literal or text parameter that the server would read with the type's own input function.
 * @param text a string, or UTF-8 bytes of which `[start, end)` is the value
 * @returns the scalar, or null when it is not surely a value of the type
 */
export function decodeText(type: KeyType, text: string | Buffer, start = 0, end = text.length): KeyScalar | null {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
    case 'uuid': {
      if (typeof text === 'string') return decodeText(type, Buffer.from(text.slice(start, end), 'utf8'));
      return type === 'uuid' ? decodeUuid(text, start, end) : decodeInt(type, text, start, end);
    }
    case 'text':
    case 'varchar': {
      if (typeof text !== 'string') return decodeTextBytes(type, text, start, end);
      const value = start === 0 && end === text.length ? text : text.slice(start, end);
      // A lone surrogate has no UTF-8 form: what a driver would have sent is unknown.
      if (LONE_SURROGATE.test(value)) return null;
      const bytes = Buffer.from(value, 'utf8');
      return decodeTextBytes(type, bytes, 0, bytes.length);
    }
    default: {
      const value = typeof text === 'string' ? text.slice(start, end) : text.toString('latin1', start, end);
      return type === 'date' ? decodeDate(value) : decodeTimestamp(type, value);
    }
  }
}

/**
 * A value in the wire's binary format.
 * @param oid the parameter's type OID, when declared: an int8 may be given for an int4 key
 */
export function decodeBinary(type: KeyType, value: Buffer, oid = 0): KeyScalar | null {
  const from = oid === 0 ? type : TYPE_BY_OID.get(oid);
  if (from === undefined || !sameFamily(type, from)) return null;
  switch (from) {
    case 'int2':
      return value.length === 2 ? BigInt(value.readInt16BE(0)) : null;
    case 'int4':
      return value.length === 4 ? inRange(type as 'int4', BigInt(value.readInt32BE(0))) : null;
    case 'int8':
      return value.length === 8 ? inRange(type as 'int8', value.readBigInt64BE(0)) : null;
    case 'uuid':
      return value.length === 16 ? value.toString('hex') : null;
    case 'text':
    case 'varchar':
      return decodeTextBytes(type, value, 0, value.length);
    case 'date': {
      const days = value.length === 4 ? BigInt(value.readInt32BE(0)) : null;
      return days !== null && isDate(days) ? days : null;
    }
    case 'timestamp':
    case 'timestamptz': {
      const micros = value.length === 8 ? value.readBigInt64BE(0) : null;
      return micros !== null && isTimestamp(micros) ? micros : null;
    }
  }
}

/** The scalar in PostgreSQL's own text form: what its output function prints under DateStyle ISO and TimeZone UTC. */
export function encodeText(type: KeyType, scalar: KeyScalar): string {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
      return scalar.toString();
    case 'uuid': {
      const h = scalar as string;
      return `${h.slice(0, 8)}-${h.slice(8, 12)}-${h.slice(12, 16)}-${h.slice(16, 20)}-${h.slice(20)}`;
    }
    case 'text':
    case 'varchar':
      return Buffer.from(scalar as string, 'latin1').toString('utf8');
    case 'date':
      return encodeDate(scalar as bigint);
    case 'timestamp':
    case 'timestamptz':
      return encodeTimestamp(type, scalar as bigint);
  }
}

/** A position as the catalog stores it: an array of texts, one per key column, or the one hash; null stays null. */
export function positionToJson(scheme: KeyScheme, position: Position): string[];
export function positionToJson(scheme: KeyScheme, position: Position | null): string[] | null;
export function positionToJson(scheme: KeyScheme, position: Position | null): string[] | null {
  if (position === null) return null;
  const types = positionTypes(scheme);
  return position.map((scalar, i) => encodeText(types[i] as KeyType, scalar));
}

/**
 * Reads a position from the catalog's form.
 * @throws ForeshardError (22P02) when it is not one of this keyspace
 */
export function positionFromJson(scheme: KeyScheme, json: unknown): Position | null {
  if (json === null) return null;
  const types = positionTypes(scheme);
  if (!Array.isArray(json) || json.length === 0 || json.length > types.length) throw badPosition(scheme, json);
  return json.map((text: unknown, i) => {
    const scalar = typeof text === 'string' ? decodeText(types[i] as KeyType, text) : null;
    if (scalar === null) throw badPosition(scheme, json);
    return scalar;
  });
}

/** A key in the catalog's form. */
export function keyToJson(scheme: KeyScheme, key: KeyTuple): string[] {
  return key.map((scalar, i) => encodeText(scheme.keyTypes[i] as KeyType, scalar));
}

/** Types of a position's parts: those of the key, or int8 for a hash. */
export function positionTypes(scheme: KeyScheme): readonly KeyType[] {
  return scheme.method === 'hash' ? ['int8'] : scheme.keyTypes;
}

function badPosition(scheme: KeyScheme, json: unknown): ForeshardError {
  const types = positionTypes(scheme).join(', ');
  return new ForeshardError('22P02', `${JSON.stringify(json)} is not a position in a keyspace of (${types})`, {
    hint: 'Give an array of texts, one per key column, each in the form PostgreSQL prints.',
  });
}

function inRange(type: 'int2' | 'int4' | 'int8', value: bigint): bigint | null {
  return value >= INT_MIN[type] && value <= INT_MAX[type] ? value : null;
}

/** isspace() in the C locale. */
function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}

/** As int8in: white space around, one sign, decimal digits. 0x1F and 1_000 (16 and later) are left undecided. */
function decodeInt(type: 'int2' | 'int4' | 'int8', text: Buffer, start: number, end: number): bigint | null {
  let i = start;
  let stop = end;
  while (i < stop && isSpace(text[i] as number)) i++;
  while (stop > i && isSpace(text[stop - 1] as number)) stop--;
  let negative = false;
  if (i < stop && (text[i] === 0x2d || text[i] === 0x2b)) negative = text[i++] === 0x2d;
  if (i === stop) return null;
  let value = 0;
  const digits = i;
  for (; i < stop; i++) {
    const digit = (text[i] as number) - 0x30;
    if (digit < 0 || digit > 9) return null;
    value = value * 10 + digit;
  }
  // Beyond 15 digits a double is no longer exact.
  const exact = stop - digits <= 15 ? BigInt(value) : BigInt(text.toString('latin1', digits, stop));
  return inRange(type, negative ? -exact : exact);
}

function decodeTextBytes(type: KeyType, text: Buffer, start: number, end: number): string | null {
  let ascii = true;
  for (let i = start; i < end; i++) {
    const byte = text[i] as number;
    if (byte === 0) return null;
    if (byte > 0x7f) ascii = false;
  }
  if (!ascii && !isUtf8(text.subarray(start, end))) return null;
  // Storing into varchar(n) silently cuts blanks beyond n, comparing with it does not: with blanks at the end the
  // stored key is not known from the text alone.
  if (type === 'varchar' && end > start && text[end - 1] === 0x20) return null;
  return text.toString('latin1', start, end);
}

/** Hexadecimal digits to their lower-case form; 0 for every other byte. */
const HEX_DIGIT = new Uint8Array(256);
for (const digit of '0123456789abcdefABCDEF') HEX_DIGIT[digit.charCodeAt(0)] = digit.toLowerCase().charCodeAt(0);
const uuidDigits = Buffer.alloc(32);

/** As uuid_in: 32 hexadecimal digits, a hyphen after any group of four but the last, all of it optionally in braces. */
function decodeUuid(text: Buffer, start: number, end: number): string | null {
  let pos = start;
  let stop = end;
  if (text[pos] === 0x7b) {
    if (text[stop - 1] !== 0x7d) return null;
    pos++;
    stop--;
  }
  for (let n = 0; n < 32; n++) {
    if (n > 0 && n % 4 === 0 && text[pos] === 0x2d) pos++;
    const digit = pos < stop ? (HEX_DIGIT[text[pos++] as number] as number) : 0;
    if (digit === 0) return null;
    uuidDigits[n] = digit;
  }
  return pos === stop ? uuidDigits.toString('latin1') : null;
}
