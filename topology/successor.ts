import { isDate, isTimestamp } from './datetime.js';
import type { Interval, KeyScalar, KeyType, Position } from './key.js';
import { type KeyScheme, positionTypes } from './key-codec.js';

/**
 * Everything that begins with `position`: a key, or the first columns of one. With method `hash`, every key with that hash.
 * Its end is exact: nothing lies between the last of it and `hi`.
 */
export function intervalOf(scheme: KeyScheme, position: Position): Interval {
  return { lo: position, hi: successor(positionTypes(scheme), position) };
}

/** The first position behind everything that begins with this one; null: there is none. */
function successor(types: readonly KeyType[], position: Position): Position | null {
  const scalar = position.at(-1);
  if (scalar === undefined) return null;
  const next = successorOf(types[position.length - 1] as KeyType, scalar);
  const rest = position.slice(0, -1);
  // Behind the last value of a column comes the next of the column before.
  return next === null ? successor(types, rest) : [...rest, next];
}

const MAX_INT = { int2: 32767n, int4: 2147483647n, int8: 2n ** 63n - 1n } as const;
const MAX_UUID = (1n << 128n) - 1n;

/** The next value of a type in its order; null: there is none. */
function successorOf(type: KeyType, scalar: KeyScalar): KeyScalar | null {
  switch (type) {
    case 'int2':
    case 'int4':
    case 'int8':
      return scalar === MAX_INT[type] ? null : (scalar as bigint) + 1n;
    case 'uuid': {
      const value = BigInt(`0x${scalar as string}`);
      return value === MAX_UUID ? null : (value + 1n).toString(16).padStart(32, '0');
    }
    case 'text':
    case 'varchar':
      // There is no byte 0 in PostgreSQL's texts: in the order of COLLATE "C" nothing lies in between.
      return `${scalar as string}\u0001`;
    case 'date':
      return nextIn(scalar as bigint, isDate, -2451545n, 2147483647n);
    case 'timestamp':
    case 'timestamptz':
      return nextIn(scalar as bigint, isTimestamp, -211813488000000000n, 2n ** 63n - 1n);
  }
}

/** Types of which the finite values are one run, between −infinity and infinity. */
function nextIn(value: bigint, isValue: (v: bigint) => boolean, first: bigint, infinity: bigint): bigint | null {
  if (value === infinity) return null;
  if (isValue(value + 1n)) return value + 1n;
  return value < first ? first : infinity;
}
