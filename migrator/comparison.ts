import type { MigrationRow } from './migration-row.js';

export interface ComparedTable {
  readonly table: string;
  readonly rows: number;
  readonly ms: number;
  /** Number of rows that differ. */
  readonly differing: number;
  /** Some of their keys, as text. */
  readonly keys: readonly string[];
}

/** What a comparison that somebody asked for has found. */
export interface RequestedComparison {
  /** `MigrationControls.comparison` that it answers. */
  readonly request: string;
  /** When it ended, ISO 8601. */
  readonly at: string;
  readonly tables: readonly ComparedTable[];
}

export function lastComparison(row: Pick<MigrationRow, 'facts'>): RequestedComparison | null {
  return (row.facts.comparison as RequestedComparison | undefined) ?? null;
}

/** Tables in which the last comparison found rows that differ. */
export function differingTables(row: Pick<MigrationRow, 'facts'>): readonly ComparedTable[] {
  return lastComparison(row)?.tables.filter((t) => t.differing > 0) ?? [];
}
