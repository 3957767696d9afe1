import { differingTables, IS_DIFFERENT } from './comparison.js';
import type { MigrationRow } from './migration-row.js';

/** Rows of one table that differ between the two sides of a way back. */
export interface DoubtedTable {
  readonly table: string;
  /** Number of rows that differ, as far as is known. */
  readonly differing: number;
  /** Some of their keys, as text. */
  readonly keys: readonly string[];
}

/** What samples have found since both sides were last seen to be the same; `facts.sampled`. */
export interface SampledDifference {
  /** When the last of it was found, ISO 8601. */
  readonly at: string;
  /** Whether all tables have been compared since: the comparison names what is left of it. Which came first is not told by clocks, which are set. */
  readonly compared: boolean;
  readonly tables: readonly DoubtedTable[];
}

export function sampledDifference(row: Pick<MigrationRow, 'facts'>): SampledDifference | null {
  return (row.facts.sampled as SampledDifference | null | undefined) ?? null;
}

/** Tables for whose sake a way back is not to be trusted. */
export function doubtedTables(row: Pick<MigrationRow, 'facts'>): readonly DoubtedTable[] {
  const compared = differingTables(row);
  const sampled = sampledDifference(row)?.tables ?? [];
  return [...compared, ...sampled.filter((s) => !compared.some((c) => c.table === s.table))];
}

/** The same as a condition in SQL on a migration's row. */
export const IS_DOUBTED = `(facts->>'sampled' IS NOT NULL OR ${IS_DIFFERENT})`;

/** `3 rows of "public.orders" differ` */
export function doubtText(tables: readonly DoubtedTable[]): string {
  return tables.map(({ table, differing }) => `${differing} rows of "${table}" differ`).join(', ');
}
