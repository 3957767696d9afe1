import { copyByKey, deleteByKey, differing, type RowsOf, type RowVersion } from './keyed-rows.js';
import type { ShardSession } from './shard-session.js';

/** Rows of one table that are not what they are elsewhere: keys, as text. */
export interface WrongRows {
  /** They are missing. */
  readonly added: readonly string[];
  /** They have other values. */
  readonly replaced: readonly string[];
  /** Nobody else has such rows. */
  readonly removed: readonly string[];
}

/** @param right the rows with these keys as they should be @param now as they are */
export function wrongRows(right: readonly RowVersion[], now: readonly RowVersion[]): WrongRows {
  const wrong = differing(right, now);
  const [wanted, there] = [new Set(right.map((r) => r.key)), new Set(now.map((r) => r.key))];
  return {
    added: wrong.filter((key) => !there.has(key)),
    replaced: wrong.filter((key) => wanted.has(key) && there.has(key)),
    removed: wrong.filter((key) => !wanted.has(key)),
  };
}

export function countOf({ added, replaced, removed }: WrongRows): number {
  return added.length + replaced.length + removed.length;
}

/** Makes rows what they are on another shard, value by value, in the transaction that is open at `to`. @throws when `signal` fires; then `from` is of no use any more */
export async function replaceRows(
  from: ShardSession,
  to: ShardSession,
  rows: RowsOf,
  { added, replaced, removed }: WrongRows,
  signal: AbortSignal,
): Promise<void> {
  await deleteByKey(to, rows, [...replaced, ...removed]);
  const wanted = [...added, ...replaced];
  if (wanted.length > 0) await copyByKey(from, to, rows, wanted, signal);
}
