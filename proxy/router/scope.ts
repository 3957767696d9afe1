import type { ColumnRef } from 'libpg-query';
import { strings } from './ast.js';
import type { Variable } from './pins.js';
import type { KeyColumnSource } from './route.js';

/** One thing in FROM, under the name by which columns refer to it. */
export interface Entry {
  readonly name: string;
  /** Of a table without alias: schema.table.column may name it too. */
  readonly schema: string | null;
  /** All its columns; null when not known. */
  readonly columns: readonly string[] | null;
  /** Its columns that are keys of sharded tables. */
  readonly keys: ReadonlyMap<string, Variable>;
  /** A condition on these columns here restricts the rows of the table itself (not so behind LIMIT, GROUP BY …). */
  readonly open: boolean;
}

/** The names of one query level, or of one side of a join while it is being read. */
export interface Level {
  readonly entries: readonly Entry[];
  /** Columns merged by USING or NATURAL: what the bare name means; null when it is no key column for sure. */
  readonly merged: ReadonlyMap<string, Variable | null>;
  readonly parent: Level | null;
}

/** What a query gives to the level around it. */
export interface Outputs {
  /** Names in order, when known. */
  readonly columns: readonly string[] | null;
  readonly keys: ReadonlyMap<string, Variable>;
  /** By position, as far as known: where INSERT … SELECT takes its key from. */
  readonly positions: readonly (Variable | KeyColumnSource | null)[] | null;
  /** Conditions on its outputs may be moved inside. */
  readonly open: boolean;
}

/** Common table expressions in scope, the innermost first. */
export interface Ctes {
  readonly name: string;
  readonly outputs: Outputs;
  readonly next: Ctes | null;
}

/** The key column that a reference surely means, as PostgreSQL resolves names: the innermost level that has it. */
export function resolveColumn(ref: ColumnRef, level: Level): Variable | null {
  const fields = ref.fields ?? [];
  if (fields.some((f) => !('String' in f))) return null;
  const parts = strings(fields);
  const column = parts[parts.length - 1] as string;
  if (parts.length === 1) return resolveBare(column, level);
  if (parts.length > 3) return null;
  const table = parts[parts.length - 2] as string;
  const schema = parts.length === 3 ? (parts[0] as string) : null;
  for (let at: Level | null = level; at; at = at.parent) {
    const named = at.entries.filter((e) => e.name === table && (schema === null || e.schema === schema));
    if (named.length > 1) return null;
    const entry = named[0];
    if (entry) return entry.keys.get(column) ?? null;
  }
  return null;
}

function resolveBare(column: string, level: Level): Variable | null {
  for (let at: Level | null = level; at; at = at.parent) {
    const merged = at.merged.get(column);
    if (merged !== undefined) return merged;
    const having = at.entries.filter((e) => e.keys.has(column));
    const unsure = at.entries.some((e) => !e.keys.has(column) && e.columns === null);
    const elsewhere = at.entries.some((e) => !e.keys.has(column) && e.columns?.includes(column));
    if (having.length === 1 && !elsewhere) {
      // Alone at its level it is this one: PostgreSQL would look further out only if it had no such column.
      if (!unsure || at.entries.length === 1) return (having[0] as Entry).keys.get(column) ?? null;
      return null;
    }
    if (having.length > 1 || unsure || elsewhere) return null;
  }
  return null;
}

/** The key columns that a condition at these entries restricts. */
export function openVariables(entries: readonly Entry[]): Set<Variable> {
  return new Set(entries.filter((e) => e.open).flatMap((e) => [...e.keys.values()]));
}
