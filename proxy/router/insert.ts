import type { InsertStmt, Node } from 'libpg-query';
import type { Analysis, Occurrence } from './analysis.js';
import { sourceOf, targets } from './ast.js';
import type { Variable } from './pins.js';
import { analyzeExpression, analyzeSelect, analyzeWith, applyCondition } from './query.js';
import type { KeyColumnSource } from './route.js';
import { type Ctes, type Level, openVariables, resolveColumn } from './scope.js';

/** INSERT: the key of each row comes from VALUES, or from the outputs of the query. */
export function analyzeInsert(a: Analysis, insert: InsertStmt, parent: Level | null, outer: Ctes | null): void {
  if (!insert.relation) return;
  const ctes = analyzeWith(a, insert.withClause, parent, outer);
  const cols = targets(insert.cols);
  const named = cols.length > 0 ? cols.map((c) => (c.indirection ? null : (c.name ?? null))) : null;
  const query = insert.selectStmt && 'SelectStmt' in insert.selectStmt ? insert.selectStmt.SelectStmt : null;
  const [first] = query?.valuesLists ?? [];
  const target = a.table(
    insert.relation,
    insert.onConflictClause?.action === 'ONCONFLICT_UPDATE' ? 'upsert' : 'insert',
    named ?? (first !== undefined && 'List' in first ? (first.List.items ?? []).length : 0),
  );
  const names = named ?? target.columns;
  const empty: Level = { entries: [], merged: new Map(), parent };

  if (query?.valuesLists && !query.withClause && !query.sortClause && !query.limitCount && !query.limitOffset) {
    const rows = query.valuesLists.map((r) => ('List' in r ? (r.List.items ?? []) : []));
    analyzeExpression(a, query.valuesLists, empty, ctes);
    if (target.occurrence) target.occurrence.rows = keysOfRows(a, target.occurrence, names, rows);
  } else if (query) {
    a.depth++;
    const outputs = analyzeSelect(a, query, parent, ctes);
    a.depth--;
    const { occurrence } = target;
    occurrence?.table.keyColumns.forEach((column, i) => {
      const v = occurrence.variables[i] as Variable;
      const value = names === null ? null : (outputs.positions?.[names.indexOf(column)] ?? null);
      if (typeof value === 'number') a.pins.flow(value, v);
      else if (value !== null) a.restrict(v, [value]);
      else
        a.refuse(
          `INSERT … SELECT does not say which "${column}" the rows of "${occurrence.table.table}" have`,
          `Select ${column} as a literal, a parameter or the sharding key of a table that is restricted to one key.`,
        );
    });
  } else if (target.occurrence && target.occurrence.table.keyColumns.length > 0) {
    missing(a, target.occurrence, target.occurrence.table.keyColumns[0] as string);
  }

  const level: Level = {
    entries: [target.entry, { ...target.entry, name: 'excluded', schema: null, open: false }],
    merged: new Map(),
    parent,
  };
  const conflict = insert.onConflictClause;
  if (conflict) {
    const links = analyzeExpression(a, conflict.whereClause, level, ctes);
    applyCondition(a, conflict.whereClause, level, openVariables([]), links);
    analyzeExpression(a, [conflict.targetList, conflict.infer], level, ctes);
    for (const set of targets(conflict.targetList)) {
      const i = target.occurrence?.table.keyColumns.indexOf(set.name ?? '') ?? -1;
      if (i < 0 || !target.occurrence) continue;
      // "SET key = EXCLUDED.key" keeps the key: the conflicting row has it too only if the unique index covers it, which the
      // servers ensure for no one. A row of another key cannot be on another shard here, but may be moved by this: not known.
      const v = set.val && 'ColumnRef' in set.val ? resolveColumn(set.val.ColumnRef, level) : null;
      const covered = conflict.infer?.indexElems?.some((e) => 'IndexElem' in e && e.IndexElem.name === set.name);
      if (v !== target.occurrence.variables[i] || !covered)
        a.refuse(
          `changing the sharding key ("${set.name ?? ''}" of "${target.occurrence.table.table}") is not supported on several shards yet`,
          'Leave the key out of DO UPDATE SET.',
        );
    }
  }
  analyzeExpression(a, insert.returningClause, { ...level, entries: [target.entry] }, ctes);
}

function keysOfRows(
  a: Analysis,
  occurrence: Occurrence,
  names: readonly (string | null)[] | null,
  rows: readonly (readonly Node[])[],
): KeyColumnSource[][] | null {
  const { table } = occurrence;
  if (table.keyColumns.length === 0) return [[]];
  if (names === null) {
    a.refuse(`the column order of "${table.table}" is not known yet`, 'Name the columns in the INSERT.');
    return null;
  }
  const places = table.keyColumns.map((column) => names.indexOf(column));
  const keys: KeyColumnSource[][] = [];
  for (const row of rows) {
    const key: KeyColumnSource[] = [];
    for (let i = 0; i < places.length; i++) {
      const value = row[places[i] as number];
      const source = sourceOf(value, a.context.literals);
      if (source === null) {
        if (value === undefined || 'SetToDefault' in value || ('A_Const' in value && value.A_Const.isnull))
          missing(a, occurrence, table.keyColumns[i] as string);
        else
          a.refuse(
            `the "${table.keyColumns[i]}" of a row inserted into "${table.table}" is an expression, so its shard is not known`,
            'Give the sharding key as a literal or a parameter.',
          );
        return null;
      }
      a.usesParam(source, a.context.registry.keyTypes(table)[i] ?? null);
      key.push(source);
    }
    keys.push(key);
  }
  return keys;
}

function missing(a: Analysis, occurrence: Occurrence, column: string): void {
  a.refuse(
    `INSERT into "${occurrence.table.table}" does not give its sharding key "${column}"`,
    `Give ${column} in every row: it decides on which shard the row lives.`,
  );
}
