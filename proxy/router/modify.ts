import type { DeleteStmt, MergeStmt, MergeWhenClause, Node, ResTarget, UpdateStmt } from 'libpg-query';
import type { Analysis, Occurrence } from './analysis.js';
import { sourceOf, targets } from './ast.js';
import { analyzeInsert } from './insert.js';
import type { Variable } from './pins.js';
import { analyzeExpression, analyzeFrom, analyzeSelect, analyzeWith, applyCondition } from './query.js';
import { type Ctes, type Entry, type Level, openVariables, resolveColumn } from './scope.js';

/** Reads a statement that may stand where a query may: INSERT, UPDATE, DELETE, MERGE or SELECT. */
export function analyzeStatement(a: Analysis, node: Node, parent: Level | null, ctes: Ctes | null): void {
  if ('SelectStmt' in node) analyzeSelect(a, node.SelectStmt, parent, ctes);
  else if ('InsertStmt' in node) analyzeInsert(a, node.InsertStmt, parent, ctes);
  else if ('UpdateStmt' in node) analyzeUpdate(a, node.UpdateStmt, parent, ctes);
  else if ('DeleteStmt' in node) analyzeDelete(a, node.DeleteStmt, parent, ctes);
  else if ('MergeStmt' in node) analyzeMerge(a, node.MergeStmt, parent, ctes);
  else a.refuse('this statement is not understood well enough to be exact on several shards');
}

function analyzeUpdate(a: Analysis, update: UpdateStmt, parent: Level | null, outer: Ctes | null): void {
  if (!update.relation) return;
  const ctes = analyzeWith(a, update.withClause, parent, outer);
  const target = a.table(update.relation, 'update');
  const from = analyzeFrom(a, update.fromClause, parent, ctes, [target.entry]);
  const level: Level = { entries: [target.entry, ...from.entries], merged: from.merged, parent };
  const links = analyzeExpression(a, update.whereClause, level, ctes);
  applyCondition(a, update.whereClause, level, openVariables(level.entries), links);
  for (const e of [update.targetList, update.returningClause]) analyzeExpression(a, e, level, ctes);
  analyzeAssignments(a, target.occurrence, targets(update.targetList), target.entry, level);
}

function analyzeDelete(a: Analysis, del: DeleteStmt, parent: Level | null, outer: Ctes | null): void {
  if (!del.relation) return;
  const ctes = analyzeWith(a, del.withClause, parent, outer);
  const target = a.table(del.relation, 'delete');
  const from = analyzeFrom(a, del.usingClause, parent, ctes, [target.entry]);
  const level: Level = { entries: [target.entry, ...from.entries], merged: from.merged, parent };
  const links = analyzeExpression(a, del.whereClause, level, ctes);
  applyCondition(a, del.whereClause, level, openVariables(level.entries), links);
  analyzeExpression(a, del.returningClause, level, ctes);
}

/**
 * SET of a key column. A row that keeps its key stays where it is; one whose key changes may belong elsewhere. So the new
 * value must be the column itself, or a constant: then it counts as one more key, and all keys must turn out equal.
 */
function analyzeAssignments(
  a: Analysis,
  occurrence: Occurrence | null,
  assignments: readonly ResTarget[],
  entry: Entry,
  level: Level,
): void {
  if (!occurrence) return;
  occurrence.table.keyColumns.forEach((column, i) => {
    for (const target of assignments) {
      if (target.name !== column) continue;
      const v = occurrence.variables[i] as Variable;
      const value = target.val;
      if (value && 'ColumnRef' in value && resolveColumn(value.ColumnRef, { ...level, entries: [entry] }) === v)
        continue;
      const source = target.indirection ? null : sourceOf(value, a.context.literals);
      if (source === null) {
        a.refuse(
          `changing the sharding key ("${column}" of "${occurrence.table.table}") is not supported on several shards yet`,
          'Delete the row and insert it anew.',
        );
        continue;
      }
      a.sameKey = true;
      a.assigned.push({ occurrence, column: i, source });
    }
  });
}

function analyzeMerge(a: Analysis, merge: MergeStmt, parent: Level | null, outer: Ctes | null): void {
  if (!merge.relation) return;
  const ctes = analyzeWith(a, merge.withClause, parent, outer);
  const target = a.table(merge.relation, 'change');
  const from = analyzeFrom(a, merge.sourceRelation ? [merge.sourceRelation] : [], parent, ctes);
  const level: Level = { entries: [target.entry, ...from.entries], merged: from.merged, parent };
  const clauses = (merge.mergeWhenClauses ?? []).flatMap((n) => ('MergeWhenClause' in n ? [n.MergeWhenClause] : []));
  const has = (kind: MergeWhenClause['matchKind']) => clauses.some((c) => c.matchKind === kind);
  // The join that MERGE is: inner, unless rows that match nothing also count on one side or on both.
  const restricted = new Set<Variable>();
  if (!has('MERGE_WHEN_NOT_MATCHED_BY_SOURCE')) for (const v of openVariables([target.entry])) restricted.add(v);
  if (!has('MERGE_WHEN_NOT_MATCHED_BY_TARGET')) for (const v of openVariables(from.entries)) restricted.add(v);
  const links = analyzeExpression(a, merge.joinCondition, level, ctes);
  applyCondition(a, merge.joinCondition, level, restricted, links);
  analyzeExpression(a, [merge.mergeWhenClauses, merge.returningClause], level, ctes);
  for (const clause of clauses) {
    const assignments = targets(clause.targetList);
    if (clause.commandType === 'CMD_UPDATE') analyzeAssignments(a, target.occurrence, assignments, target.entry, level);
    else if (clause.commandType === 'CMD_INSERT' && target.occurrence) {
      const names = assignments.length > 0 ? assignments.map((t) => t.name ?? '') : (target.columns ?? []);
      const { table } = target.occurrence;
      const variables = table.keyColumns.map((_, i) => a.variable(table, i));
      a.occurrences.push({ table, variables, visible: null, rows: null, nullable: false, top: false });
      table.keyColumns.forEach((column, i) => {
        const value = clause.values?.[names.indexOf(column)];
        const source = sourceOf(value, a.context.literals);
        const v =
          value && 'ColumnRef' in value ? resolveColumn(value.ColumnRef, { ...level, entries: from.entries }) : null;
        if (source !== null) a.restrict(variables[i] as Variable, [source]);
        else if (v !== null) a.pins.flow(v, variables[i] as Variable);
        else
          a.refuse(
            `MERGE does not say which "${column}" the rows it inserts into "${table.table}" have`,
            'Give it as a literal, a parameter or the sharding key of the source.',
          );
      });
    }
  }
}
