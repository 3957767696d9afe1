/**
 * PostgreSQL's extended hash functions, bit for bit, so that a publication's row filter and the router agree on where a row
 * belongs. Source: hash_bytes_extended in src/common/hashfn.c (Bob Jenkins' lookup3), little-endian form.
 */
import type { KeyScalar, KeyTuple, KeyType, Position } from './key.js';
import type { KeyScheme } from './key-codec.js';

/** Values up to this size are hashed without allocating. */
const SCRATCH_BYTES = 1024;
const scratch = Buffer.alloc(SCRATCH_BYTES);
/** Takes 64-bit integers apart and puts them together without BigInt arithmetic. */
const word = new DataView(new ArrayBuffer(8));

/** Where a key lies in its keyspace's order: the key itself, or its hash. */
export function positionOf(scheme: KeyScheme, key: KeyTuple): Position {
  return scheme.method === 'range' ? key : [hashKey(scheme.keyTypes, key)];
}

/**
 * The hash of a whole key, a signed 64-bit integer: each column is hashed with the hash of the columns before it as its
 * seed, the first with 0. `intervalPredicate` writes the same as SQL.
 */
export function hashKey(types: readonly KeyType[], key: KeyTuple): bigint {
  let hash = 0n;
  for (let i = 0; i < types.length; i++) hash = hashScalar(types[i] as KeyType, key[i] as KeyScalar, hash);
  return hash;
}

/**
 * The hash of one value: `hashint2extended`, `hashint4extended`, `hashint8extended` (which agree on equal values),
 * `uuid_hash_extended`, `hashtextextended`, `timestamp_hash_extended`; a date as the int4 it is stored as.
 * @param seed signed 64-bit integer
 */
export function hashScalar(type: KeyType, scalar: KeyScalar, seed: bigint): bigint {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
    case 'date':
    case 'timestamp':
    case 'timestamptz':
      return hashInt8(scalar as bigint, seed);
    case 'uuid':
      scratch.write(scalar as string, 'hex');
      return hashBytes(scratch, 16, seed);
    case 'text':
    case 'varchar': {
      const text = scalar as string; // one character per UTF-8 byte
      if (text.length > SCRATCH_BYTES) return hashBytes(Buffer.from(text, 'latin1'), text.length, seed);
      scratch.write(text, 'latin1');
      return hashBytes(scratch, text.length, seed);
    }
  }
}

/** hashint8extended: the halves are folded so that values that fit an int4 hash as the int4 does. */
function hashInt8(value: bigint, seed: bigint): bigint {
  word.setBigInt64(0, value, true);
  const low = word.getInt32(0, true);
  const high = word.getInt32(4, true);
  scratch.writeInt32LE(low ^ (high >= 0 ? high : ~high), 0);
  return hashBytes(scratch, 4, seed);
}

function rotate(x: number, bits: number): number {
  return (x << bits) | (x >>> (32 - bits));
}

/** hash_bytes_extended. All arithmetic is modulo 2^32 on signed 32-bit integers. */
function hashBytes(bytes: Buffer, length: number, seed: bigint): bigint {
  let a = (0x9e3779b9 + length + 3923095) | 0;
  let b = a;
  let c = a;

  // A seed other than 0 is mixed in like one more block, before the first.
  let pos = seed === 0n ? 0 : -12;
  for (; pos < 0 || length - pos >= 12; pos += 12) {
    if (pos < 0) {
      word.setBigInt64(0, seed, true);
      a = (a + word.getInt32(4, true)) | 0;
      b = (b + word.getInt32(0, true)) | 0;
    } else {
      a = (a + bytes.readInt32LE(pos)) | 0;
      b = (b + bytes.readInt32LE(pos + 4)) | 0;
      c = (c + bytes.readInt32LE(pos + 8)) | 0;
    }
    a = ((a - c) | 0) ^ rotate(c, 4);
    c = (c + b) | 0;
    b = ((b - a) | 0) ^ rotate(a, 6);
    a = (a + c) | 0;
    c = ((c - b) | 0) ^ rotate(b, 8);
    b = (b + a) | 0;
    a = ((a - c) | 0) ^ rotate(c, 16);
    c = (c + b) | 0;
    b = ((b - a) | 0) ^ rotate(a, 19);
    a = (a + c) | 0;
    c = ((c - b) | 0) ^ rotate(b, 4);
    b = (b + a) | 0;
  }

  // The last, incomplete block. The lowest byte of c is reserved for the length.
  for (let i = 0; i < length - pos; i++) {
    const byte = bytes[pos + i] as number;
    if (i < 4) a = (a + (byte << (8 * i))) | 0;
    else if (i < 8) b = (b + (byte << (8 * (i - 4)))) | 0;
    else c = (c + (byte << (8 * (i - 7)))) | 0;
  }

  c = ((c ^ b) - rotate(b, 14)) | 0;
  a = ((a ^ c) - rotate(c, 11)) | 0;
  b = ((b ^ a) - rotate(a, 25)) | 0;
  c = ((c ^ b) - rotate(b, 16)) | 0;
  a = ((a ^ c) - rotate(c, 4)) | 0;
  b = ((b ^ a) - rotate(a, 14)) | 0;
  c = ((c ^ b) - rotate(b, 24)) | 0;

  word.setInt32(0, c, true);
  word.setInt32(4, b, true);
  return word.getBigInt64(0, true);
}
