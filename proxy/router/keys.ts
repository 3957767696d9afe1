import { positionOf } from '../../topology/hash.js';
import type { KeyScalar, KeyTuple, KeyType, Position } from '../../topology/key.js';
import { acceptsOid, decodeBinary, decodeText, KEY_TYPE_OID } from '../../topology/key-codec.js';
import type { Keyspace } from '../../topology/topology.js';
import { elementsOfBinary, elementsOfText } from './array-value.js';
import type { BoundParams, KeyColumnSource, KeySource, LiteralToken } from './route.js';

/** What became of one key of a statement. */
export type ReadKey =
  | { readonly kind: 'key'; readonly key: KeyTuple; readonly position: Position }
  /** SQL NULL: equals nothing. */
  | { readonly kind: 'null' }
  /** Not surely what PostgreSQL would make of it. */
  | { readonly kind: 'unsure' };

/** typelem of the array types of key types, by OID (pg_type.dat). */
const ELEMENT_OF_ARRAY: ReadonlyMap<number, number> = new Map([
  [1005, KEY_TYPE_OID.int2],
  [1007, KEY_TYPE_OID.int4],
  [1016, KEY_TYPE_OID.int8],
  [2951, KEY_TYPE_OID.uuid],
  [1009, KEY_TYPE_OID.text],
  [1015, KEY_TYPE_OID.varchar],
  [1182, KEY_TYPE_OID.date],
  [1115, KEY_TYPE_OID.timestamp],
  [1185, KEY_TYPE_OID.timestamptz],
]);

const NULL: ReadKey = { kind: 'null' };
const UNSURE: ReadKey = { kind: 'unsure' };

/** Values of one execution. */
export interface Values {
  readonly text: Buffer;
  literal(ordinal: number): LiteralToken | undefined;
  readonly params: BoundParams | null;
  /** The client's encoding is not UTF-8: texts outside ASCII are other bytes on the server. */
  readonly foreignEncoding?: boolean;
}

/** Reads one key, of which no column is an array. Every doubt makes it unsure. */
export function readKey(keyspace: Keyspace, source: KeySource, values: Values): ReadKey {
  const key: KeyScalar[] = [];
  for (let i = 0; i < source.length; i++) {
    const scalar = readColumn(keyspace.keyTypes[i] as KeyType, source[i] as KeyColumnSource, values);
    if (values.foreignEncoding && scalar !== null && scalar !== 'null' && !isAscii(scalar.value)) return UNSURE;
    if (scalar === 'null') return NULL;
    if (scalar === null) return UNSURE;
    key.push(scalar.value);
  }
  return { kind: 'key', key, position: positionOf(keyspace, key) };
}

/** A product of arrays longer than this is not followed. */
const MAX_KEYS = 10_000;

/** Reads the keys that a source stands for: one, or with arrays any number of them; NULL elements equal nothing and are none. */
export function readKeys(keyspace: Keyspace, source: KeySource, values: Values): readonly ReadKey[] {
  if (!source.some((column) => column.array)) return [readKey(keyspace, source, values)];
  let keys: KeyTuple[] = [[]];
  for (let i = 0; i < source.length; i++) {
    const type = keyspace.keyTypes[i] as KeyType;
    const column = source[i] as KeyColumnSource;
    const scalars = column.array ? readArray(type, column, values) : [readColumn(type, column, values)];
    if (scalars === null || keys.length * scalars.length > MAX_KEYS) return [UNSURE];
    const found: KeyScalar[] = [];
    for (const scalar of scalars) {
      if (scalar === null) return [UNSURE];
      if (scalar === 'null') continue;
      if (values.foreignEncoding && !isAscii(scalar.value)) return [UNSURE];
      found.push(scalar.value);
    }
    keys = keys.flatMap((key) => found.map((value) => [...key, value]));
  }
  return keys.map((key) => ({ kind: 'key', key, position: positionOf(keyspace, key) }));
}

/** The elements of an array; null when it is not surely one of values of the type. */
function readArray(type: KeyType, source: KeyColumnSource, values: Values): readonly Column[] | null {
  // With array_nulls off, an unquoted NULL is a text like any other.
  const isText = type === 'text' || type === 'varchar';
  const text = (bytes: Buffer | null) =>
    bytes === null
      ? null
      : (elementsOfText(bytes)?.map((e): Column => {
          if (e === null) return isText ? null : 'null';
          return found(decodeText(type, e));
        }) ?? null);
  if (source.kind === 'literal') {
    const token = values.literal(source.ordinal);
    return token && isString(token) && !source.negated ? text(stringBytes(token, values.text)) : null;
  }
  const value = values.params?.values[source.number - 1];
  if (!values.params || value === undefined) return null;
  if (value === null) return [];
  const declared = values.params.oids[source.number - 1] ?? 0;
  const element = declared === 0 ? 0 : ELEMENT_OF_ARRAY.get(declared);
  if (element === undefined || !acceptsOid(type, element)) return null;
  // Where its type may come from another place, its text may mean something else; the binary form names it.
  if (values.params.formats[source.number - 1] !== 1) return declared === 0 && source.shared ? null : text(value);
  const array = elementsOfBinary(value);
  if (array === null || array.oid === 0 || !acceptsOid(type, array.oid)) return null;
  return array.elements?.map((e): Column => (e === null ? 'null' : found(decodeBinary(type, e, array.oid)))) ?? null;
}

type Column = { readonly value: KeyScalar } | 'null' | null;

function found(value: KeyScalar | null): Column {
  return value === null ? null : { value };
}

function readColumn(type: KeyType, source: KeyColumnSource, values: Values): Column {
  if (source.kind === 'literal') {
    const token = values.literal(source.ordinal);
    return token ? found(readLiteral(type, token, source.negated, source.castType, values.text)) : null;
  }
  const { params } = values;
  if (params === null) return null;
  const value = params.values[source.number - 1];
  if (value === undefined) return null;
  if (value === null) return 'null';
  const declared = params.oids[source.number - 1] ?? 0;
  if (!acceptsOid(type, declared)) return null;
  if (params.formats[source.number - 1] === 1) {
    if (declared === 0 && source.shared) return null;
    const oid = declared !== 0 ? declared : source.castType !== null ? KEY_TYPE_OID[source.castType as KeyType] : 0;
    return found(decodeBinary(type, value, oid));
  }
  return found(decodeText(type, value));
}

/** Whether the value of LIMIT or OFFSET surely leaves every row in: NULL, or as an OFFSET zero. */
export function leavesAll(source: KeyColumnSource, clause: 'limit' | 'offset', values: Values): boolean {
  const count = readColumn('int8', source, values);
  return count === 'null' || (clause === 'offset' && count !== null && count.value === 0n);
}

function isString(token: LiteralToken): boolean {
  return token.kind === 'string' || token.kind === 'estring' || token.kind === 'dollar';
}

function readLiteral(
  type: KeyType,
  token: LiteralToken,
  negated: boolean,
  castType: string | null,
  text: Buffer,
): KeyScalar | null {
  if (token.kind === 'string' && !negated && isUnquoted(text, token))
    return decodeText(type, text, token.start + 1, token.end - 1);
  if (isString(token)) {
    const bytes = negated ? null : stringBytes(token, text);
    return bytes && decodeText(type, bytes);
  }
  if (token.kind !== 'integer' && token.kind !== 'float') return null;
  if (!negated && castType === null && isInteger(type)) {
    const plain = decodeText(type, text, token.start, token.end);
    if (plain !== null) return plain;
  }
  const digits = text.toString('latin1', token.start, token.end).replaceAll('_', '');
  // A number with a point is numeric: compared with an integer it may be equal (5.0), stored into one it is rounded. Not followed.
  if (!/^(\d+|0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+)$/.test(digits)) return null;
  const value = `${negated ? '-' : ''}${BigInt(/^\d/.test(digits) && !/^0[xXoObB]/.test(digits) ? digits.replace(/^0+(?=\d)/, '') : digits)}`;
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
      return castType !== null && !fits(castType, value) ? null : decodeText(type, value);
    case 'text':
    case 'varchar':
      // 5::text and an integer stored into a text column are its decimal digits.
      return decodeText(type, value);
    default:
      return null;
  }
}

function isInteger(type: KeyType): boolean {
  return type === 'int8' || type === 'int4' || type === 'int2';
}

/** Whether the bytes between the quotes of '…' are the value. */
function isUnquoted(text: Buffer, { start, end }: LiteralToken): boolean {
  for (let i = start + 1; i < end - 1; i++) if (text[i] === 0x27) return false;
  return true;
}

/** An integer cast to a narrower type than its own raises an error: PostgreSQL should say so. */
function fits(castType: string, value: string): boolean {
  return decodeText(castType as KeyType, value) !== null;
}

/** The text of a literal or of a parameter as PostgreSQL's text type has it; null for SQL NULL, undefined for what is not decoded here. */
export function readText(source: KeyColumnSource, values: Values): Buffer | null | undefined {
  if (source.kind === 'param') {
    const value = values.params?.values[source.number - 1];
    const type = values.params?.oids[source.number - 1] ?? 0;
    return type === 0 || type === KEY_TYPE_OID.text || type === KEY_TYPE_OID.varchar ? value : undefined;
  }
  const token = values.literal(source.ordinal);
  if (token === undefined || !isString(token) || source.negated) return undefined;
  return stringBytes(token, values.text) ?? undefined;
}

/**
 * A constant as the text form of a parameter that it is given to; undefined where that is not surely the value. Integers are written
 * in any notation; a number with a point is rounded on its way to an integer, and a cast may change what it is.
 */
export function constantText(source: KeyColumnSource, values: Values): Buffer | undefined {
  if (source.kind === 'param') return undefined;
  const token = values.literal(source.ordinal);
  if (token === undefined) return undefined;
  if (isString(token)) {
    if (source.negated || (source.castType !== null && source.castType !== 'text')) return undefined;
    return stringBytes(token, values.text) ?? undefined;
  }
  const value = readLiteral('int8', token, source.negated, source.castType, values.text);
  return value === null ? undefined : Buffer.from(String(value));
}

/** The value of a string literal, or null for what is not decoded here. */
function stringBytes(token: LiteralToken, text: Buffer): Buffer | null {
  const { kind, start, end } = token;
  if (kind === 'dollar') {
    const tag = text.indexOf(0x24, start + 1) + 1 - start;
    return text.subarray(start + tag, end - tag);
  }
  const body = text.subarray(start + (kind === 'estring' ? 2 : 1), end - 1);
  if (kind === 'estring' && body.includes(0x5c)) return null;
  const quote = body.indexOf(0x27);
  if (quote < 0) return body;
  // Doubled quotes; any other quote is a continued string, which is rare enough to be left alone.
  const value = body.toString('latin1');
  const once = value.replaceAll("''", '');
  return once.includes("'") ? null : Buffer.from(value.replaceAll("''", "'"), 'latin1');
}

function isAscii(scalar: KeyScalar): boolean {
  return typeof scalar === 'bigint' || Buffer.from(scalar, 'latin1').every((byte) => byte < 0x80);
}
