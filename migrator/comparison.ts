import type { Chunk } from './chunks.js';
import type { MigrationRow } from './migration-row.js';

/** Keys of rows that differ which one comparison keeps, of all its tables: so many can be repaired. */
const KEYS_KEPT = 1000;
/** Keys that people are shown of one table; all that are kept are in the JSON. */
export const KEYS_SHOWN = 20;

export interface ComparedTable {
  readonly table: string;
  readonly rows: number;
  readonly ms: number;
  /** Number of rows that differ. */
  readonly differing: number;
  /** Their keys, as text: all of them, unless there are more than can be kept. */
  readonly keys: readonly string[];
  /** Where those are that are named: the chunks in which they were found. */
  readonly chunks: readonly Chunk[];
}

/** What a comparison of all tables has found. */
export interface ComparisonResult {
  /** `MigrationControls.comparison` that it answers; null: it is that of the state `verifying`, which names only tables that differ. */
  readonly request: string | null;
  /** When it ended, ISO 8601. */
  readonly at: string;
  readonly tables: readonly ComparedTable[];
}

export function lastComparison(row: Pick<MigrationRow, 'facts'>): ComparisonResult | null {
  return (row.facts.comparison as ComparisonResult | undefined) ?? null;
}

/** The same tables with no more keys than are kept. */
export function withinBounds(tables: readonly ComparedTable[]): ComparedTable[] {
  let left = KEYS_KEPT;
  return tables.map((t) => {
    const keys = t.keys.slice(0, left);
    left -= keys.length;
    return { ...t, keys, chunks: keys.length < t.keys.length ? [] : t.chunks };
  });
}

/** Whether all rows that differ are named. */
export function areAllNamed(tables: readonly Pick<ComparedTable, 'differing' | 'keys'>[]): boolean {
  return tables.every((t) => t.differing === t.keys.length);
}

/** Tables in which the last comparison found rows that differ. */
export function differingTables(row: Pick<MigrationRow, 'facts'>): readonly ComparedTable[] {
  return lastComparison(row)?.tables.filter((t) => t.differing > 0) ?? [];
}

/** The same as a condition in SQL on a migration's row: there are some. */
export const IS_DIFFERENT = `EXISTS (
  SELECT FROM jsonb_array_elements(facts->'comparison'->'tables') AS t WHERE (t->>'differing')::int > 0)`;
