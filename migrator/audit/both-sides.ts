import { setTimeout as delay } from 'node:timers/promises';
import { differing, type RowsOf, type RowVersion, rowsByKey, rowsOfPages } from '../keyed-rows.js';
import type { ShardSession } from '../shard-session.js';
import type { Portions } from './portions.js';

/** What is being written to on two shards may differ for a moment: what does is looked at again after this. */
const PAUSE_MS = 500;
const LOOKS = 3;
/** How often it is looked whether what was under way has ended. */
const ENDS = 4;
/** Heap pages whose rows are looked up on the other shard together: half a megabyte. */
const PAGES = 64;
/** Rows that differ, from which on no more are looked for. */
export const ENOUGH = 1000;
/** Keys that are named. */
const KEYS_NAMED = 20;

/** Rows on one shard that are to be as those on another. */
export interface Side extends RowsOf {
  readonly session: ShardSession;
}

/** Keys of rows here that are not there, or not the same. */
export async function differingFrom(here: Side, there: Side, portions: Portions): Promise<string[]> {
  const found: string[] = [];
  await portions.of(here.session, here.sql, { most: PAGES, resumes: false }, async (heap, first, end) => {
    if (found.length >= ENOUGH) return 0;
    const read = await rowsOfPages(here.session, { ...here, sql: heap }, first, end, null);
    const keys = read.map((row) => row.key);
    if (keys.length > 0) found.push(...differing(read, await rowsByKey(there.session, there, keys)));
    return 0;
  });
  return found;
}

/**
 * Keys of rows that still differ when neither side's row has been written in the meantime.
 * @param underWay names of what may have changed one side, and not yet the other; what does not end leaves the rows undecided: they are not among the result
 */
export async function thatStay(
  keys: readonly string[],
  a: Side,
  b: Side,
  underWay: () => Promise<readonly string[]> = async () => [],
): Promise<string[]> {
  const read = (sought: readonly string[]): Promise<[RowVersion[], RowVersion[]]> =>
    Promise.all([rowsByKey(a.session, a, sought), rowsByKey(b.session, b, sought)]);
  let suspects = [...keys];
  for (let look = 1; look < LOOKS && suspects.length > 0; look++) {
    const before = await read(suspects);
    suspects = differing(...before);
    if (suspects.length === 0) break;
    if (!(await haveEnded(await underWay(), underWay))) return [];
    const now = await read(suspects);
    const written = new Set([...differing(before[0], now[0], 'version'), ...differing(before[1], now[1], 'version')]);
    suspects = suspects.filter((key) => !written.has(key));
  }
  return suspects;
}

async function haveEnded(these: readonly string[], underWay: () => Promise<readonly string[]>): Promise<boolean> {
  for (let i = 0; i < ENDS; i++) {
    await delay(PAUSE_MS);
    if (these.length === 0) return true;
    const now = new Set(await underWay());
    if (!these.some((name) => now.has(name))) return true;
  }
  return false;
}

/** `3 rows: [1], [2], [3]` @param areAll whether there are no others */
export function rowsText(keys: readonly string[], areAll = keys.length < ENOUGH): string {
  const named = keys.slice(0, KEYS_NAMED).join(', ');
  return `${areAll ? '' : 'at least '}${keys.length} rows: ${named}${keys.length > KEYS_NAMED ? ', …' : ''}`;
}
