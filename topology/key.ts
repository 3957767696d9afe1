/**
 * Keys and their order. A key value is decoded once into a canonical scalar whose JavaScript order is exactly the
 * order PostgreSQL gives it, so that routing is a comparison and nothing else:
 *
 * | type                                   | scalar                                                              |
 * |----------------------------------------|---------------------------------------------------------------------|
 * | int2, int4, int8                       | bigint                                                              |
 * | date                                   | bigint, days since 2000-01-01 (±infinity: the int32 extremes)       |
 * | timestamp, timestamptz                 | bigint, µs since 2000-01-01 (±infinity: the int64 extremes)         |
 * | uuid                                   | string, 32 lower-case hexadecimal digits (memcmp order)             |
 * | text, varchar                          | string, its UTF-8 bytes as latin1 characters (order of COLLATE "C") |
 */
export const KEY_TYPES = [
  'int2',
  'int4',
  'int8',
  'uuid',
  'text',
  'varchar',
  'date',
  'timestamp',
  'timestamptz',
] as const;
export type KeyType = (typeof KEY_TYPES)[number];

export type KeyScalar = bigint | string;
/** A key: one scalar per key column of its keyspace. */
export type KeyTuple = readonly KeyScalar[];
/** A place in a keyspace's order: the key itself (method `range`), or `[hash]` with a signed 64-bit hash (method `hash`). */
export type Position = readonly KeyScalar[];

export type Method = 'range' | 'hash';

/** Orders two positions of one keyspace: negative, zero or positive. A shorter tuple that is a prefix comes first. */
export function comparePositions(a: Position, b: Position): number {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) {
    const x = a[i] as KeyScalar;
    const y = b[i] as KeyScalar;
    if (x < y) return -1;
    if (x > y) return 1;
  }
  return a.length - b.length;
}

/** Whether two bounds are the same; `null` is the same infinity in both. */
export function sameBound(a: Position | null, b: Position | null): boolean {
  if (a === null || b === null) return a === b;
  return comparePositions(a, b) === 0;
}

/** A half-open interval of positions; `null` is minus infinity for `lo`, plus infinity for `hi`. */
export interface Interval {
  readonly lo: Position | null;
  readonly hi: Position | null;
}

/** Whether `p` lies in `[lo, hi)`. */
export function contains(interval: Interval, p: Position): boolean {
  if (interval.lo !== null && comparePositions(p, interval.lo) < 0) return false;
  return interval.hi === null || comparePositions(p, interval.hi) < 0;
}

/** Whether two half-open intervals share a position. */
export function overlaps(a: Interval, b: Interval): boolean {
  if (a.hi !== null && b.lo !== null && comparePositions(a.hi, b.lo) <= 0) return false;
  return !(b.hi !== null && a.lo !== null && comparePositions(b.hi, a.lo) <= 0);
}

/** What two half-open intervals have in common; null: nothing. */
export function intersection(a: Interval, b: Interval): Interval | null {
  if (!overlaps(a, b)) return null;
  return {
    lo: a.lo === null || (b.lo !== null && comparePositions(a.lo, b.lo) < 0) ? b.lo : a.lo,
    hi: a.hi === null || (b.hi !== null && comparePositions(b.hi, a.hi) < 0) ? b.hi : a.hi,
  };
}
