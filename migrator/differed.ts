import type { MigrationRow } from './migration-row.js';
import type { WrongRows } from './replace-rows.js';

/** Keys that are kept of all tables. */
export const KEYS_KEPT = 1000;

/** Rows of one table that were not the same on both shards as of a flip. */
export interface DifferedTable {
  readonly table: string;
  /** Number of rows, as far as is known. */
  readonly differing: number;
  /** Keys of those that only the old owner had. */
  readonly missing: readonly string[];
  /** Those that only the new owner had. */
  readonly extra: readonly string[];
  /** Those that both had, with other values. */
  readonly changed: readonly string[];
}

/** What kept a migration behind its flip, or its flip back, from removing the rows of the old owner; `facts.differed`. */
export interface DifferedAsOfFlip {
  readonly owner: string;
  /** The shard that owned them before, where they are kept. */
  readonly former: string;
  readonly tables: readonly DifferedTable[];
}

export function differedAsOfFlip(row: Pick<MigrationRow, 'facts'>): DifferedAsOfFlip | null {
  return (row.facts.differed as DifferedAsOfFlip | undefined) ?? null;
}

export function differedTable(
  table: string,
  differing: number,
  { added, removed, replaced }: WrongRows,
): DifferedTable {
  return { table, differing, missing: added, extra: removed, changed: replaced };
}

/** What a person does about them: who is right nobody else can know. */
export function remedyOf({ owner, former }: Pick<DifferedAsOfFlip, 'owner' | 'former'>, id: bigint): string {
  return `Nothing is repaired by itself: clients may have written these rows on shard "${owner}" since, which owns them. "foreshard migrate show ${id}" has their keys; the rows of shard "${former}" are kept, as they were at the flip. Look at both, and where that of shard "${former}" is the right one write it through the proxy; then "foreshard migrate accept ${id}" has those on shard "${former}" removed`;
}
