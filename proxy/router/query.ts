import type { A_Expr, CommonTableExpr, JoinExpr, Node, RangeVar, SelectStmt, SubLink, WithClause } from 'libpg-query';
import type { Analysis } from './analysis.js';
import { anySources, conjuncts, isOperator, listSources, sourceOf, strings, targets, walk } from './ast.js';
import type { Variable } from './pins.js';
import type { KeyColumnSource } from './route.js';
import { type Ctes, type Entry, type Level, type Outputs, openVariables, resolveColumn } from './scope.js';

const NO_OUTPUTS: Outputs = { columns: null, keys: new Map(), positions: null, open: false };

/** Reads one query, with everything in it. */
export function analyzeSelect(a: Analysis, select: SelectStmt, parent: Level | null, outerCtes: Ctes | null): Outputs {
  const ctes = analyzeWith(a, select.withClause, parent, outerCtes);
  if (select.op !== undefined && select.op !== 'SETOP_NONE') {
    a.depth++;
    for (const arm of [select.larg, select.rarg]) if (arm) analyzeSelect(a, arm, parent, ctes);
    a.depth--;
    const level: Level = { entries: [], merged: new Map(), parent };
    for (const e of [select.sortClause, select.limitCount, select.limitOffset]) analyzeExpression(a, e, level, ctes);
    return NO_OUTPUTS;
  }
  if (select.valuesLists) {
    analyzeExpression(a, select.valuesLists, { entries: [], merged: new Map(), parent }, ctes);
    return NO_OUTPUTS;
  }
  const from = analyzeFrom(a, select.fromClause, parent, ctes);
  const level: Level = { ...from, parent };
  const links = analyzeExpression(a, select.whereClause, level, ctes);
  applyCondition(a, select.whereClause, level, openVariables(level.entries), links);
  for (const e of [
    select.targetList,
    select.havingClause,
    select.groupClause,
    select.sortClause,
    select.distinctClause,
    select.windowClause,
    select.limitCount,
    select.limitOffset,
  ])
    analyzeExpression(a, e, level, ctes);
  if (select.lockingClause?.length) a.writes = true;
  return outputsOf(a, select, level);
}

/** WITH: each expression is seen by those behind it, a recursive one also by itself. */
export function analyzeWith(
  a: Analysis,
  clause: WithClause | undefined,
  parent: Level | null,
  outer: Ctes | null,
): Ctes | null {
  let ctes = outer;
  if (!clause) return ctes;
  const all = (clause.ctes ?? []).flatMap((n) => ('CommonTableExpr' in n ? [n.CommonTableExpr] : []));
  if (clause.recursive) for (const cte of all) ctes = { name: cte.ctename ?? '', outputs: NO_OUTPUTS, next: ctes };
  a.depth++;
  for (const cte of all) ctes = { name: cte.ctename ?? '', outputs: analyzeCte(a, cte, parent, ctes), next: ctes };
  a.depth--;
  return ctes;
}

function analyzeCte(a: Analysis, cte: CommonTableExpr, parent: Level | null, ctes: Ctes | null): Outputs {
  const query = cte.ctequery;
  if (!query) return NO_OUTPUTS;
  if (!('SelectStmt' in query)) {
    a.modification(a, query, parent, ctes);
    return NO_OUTPUTS;
  }
  const outputs = analyzeSelect(a, query.SelectStmt, parent, ctes);
  // It may be read more than once, so nothing that reads it restricts it.
  return { ...renamed(outputs, strings(cte.aliascolnames)), open: false };
}

/** FROM: the entries of all its items. Sub-queries marked LATERAL see the items before them. */
export function analyzeFrom(
  a: Analysis,
  items: readonly Node[] | undefined,
  parent: Level | null,
  ctes: Ctes | null,
  before: readonly Entry[] = [],
): Pick<Level, 'entries' | 'merged'> {
  let entries: readonly Entry[] = [];
  const merged = new Map<string, Variable | null>();
  for (const item of items ?? []) {
    const found = fromItem(a, item, { entries: [...before, ...entries], merged, parent }, ctes);
    entries = [...entries, ...found.entries];
    for (const [name, v] of found.merged) merged.set(name, merged.has(name) ? null : v);
  }
  // A merged column shares its name with another item's column: the bare name would be ambiguous, or mean neither for sure.
  return { entries, merged };
}

function fromItem(a: Analysis, item: Node, seen: Level, ctes: Ctes | null): Pick<Level, 'entries' | 'merged'> {
  if ('RangeVar' in item) return { entries: [tableEntry(a, item.RangeVar, ctes)], merged: new Map() };
  if ('JoinExpr' in item) return joinEntries(a, item.JoinExpr, seen, ctes);
  if ('RangeSubselect' in item) {
    const { subquery, lateral, alias } = item.RangeSubselect;
    a.depth++;
    const outputs =
      subquery && 'SelectStmt' in subquery
        ? analyzeSelect(a, subquery.SelectStmt, lateral ? seen : seen.parent, ctes)
        : NO_OUTPUTS;
    a.depth--;
    a.blockFanOut('sub-queries in a query over several shards are not supported');
    return {
      entries: [outputsEntry(renamed(outputs, strings(alias?.colnames)), alias?.aliasname ?? '')],
      merged: new Map(),
    };
  }
  if ('RangeTableSample' in item) {
    a.atHomeOnly ??= { sqlstate: '0A000', message: 'TABLESAMPLE over several shards is not supported' };
    analyzeExpression(a, [item.RangeTableSample.args, item.RangeTableSample.repeatable], seen, ctes);
    const relation = item.RangeTableSample.relation;
    return relation ? fromItem(a, relation, seen, ctes) : { entries: [], merged: new Map() };
  }
  // Functions, XMLTABLE, JSON_TABLE: columns that no one here knows.
  a.blockFanOut('functions in FROM in a query over several shards are not supported');
  analyzeExpression(a, item, seen, ctes);
  let name = '';
  walk(item, {
    any: (kind, value) => {
      if (kind === 'FuncCall' && name === '') name = strings((value as { funcname?: Node[] }).funcname).at(-1) ?? '';
    },
  });
  const alias =
    'RangeFunction' in item
      ? item.RangeFunction.alias
      : 'RangeTableFunc' in item
        ? item.RangeTableFunc.alias
        : 'JsonTable' in item
          ? item.JsonTable.alias
          : undefined;
  return {
    entries: [{ name: alias?.aliasname ?? name, schema: null, columns: null, keys: new Map(), open: false }],
    merged: new Map(),
  };
}

function tableEntry(a: Analysis, table: RangeVar, ctes: Ctes | null): Entry {
  if (!table.schemaname)
    for (let cte = ctes; cte; cte = cte.next)
      if (cte.name === table.relname) {
        a.sawCte(table);
        a.blockFanOut('common table expressions in a query over several shards are not supported');
        return outputsEntry(renamed(cte.outputs, strings(table.alias?.colnames)), table.alias?.aliasname ?? cte.name);
      }
  return a.table(table, 'read').entry;
}

function outputsEntry(outputs: Outputs, name: string): Entry {
  return { name, schema: null, columns: outputs.columns, keys: outputs.keys, open: outputs.open };
}

function joinEntries(a: Analysis, join: JoinExpr, seen: Level, ctes: Ctes | null): Pick<Level, 'entries' | 'merged'> {
  const from = a.occurrences.length;
  const left = join.larg ? fromItem(a, join.larg, seen, ctes) : { entries: [], merged: new Map() };
  const middle = a.occurrences.length;
  const right = join.rarg
    ? fromItem(a, join.rarg, { ...seen, entries: [...seen.entries, ...left.entries] }, ctes)
    : { entries: [], merged: new Map() };
  const type = join.jointype ?? 'JOIN_INNER';
  const entries = [...left.entries, ...right.entries];
  const merged = new Map<string, Variable | null>(left.merged);
  for (const [name, v] of right.merged) merged.set(name, merged.has(name) ? null : v);
  if (type === 'JOIN_LEFT' || type === 'JOIN_FULL') for (const o of a.occurrences.slice(middle)) o.nullable = true;
  if (type === 'JOIN_RIGHT' || type === 'JOIN_FULL')
    for (const o of a.occurrences.slice(from, middle)) o.nullable = true;
  // Which columns a condition of this join restricts: see Pins.
  const restricted = new Set<Variable>();
  if (type === 'JOIN_INNER' || type === 'JOIN_LEFT') for (const v of openVariables(right.entries)) restricted.add(v);
  if (type === 'JOIN_INNER' || type === 'JOIN_RIGHT') for (const v of openVariables(left.entries)) restricted.add(v);

  if (join.isNatural) {
    // Which columns are shared is not known for sure: bare names of key columns are not resolved where both sides may have them.
    for (const e of entries) for (const name of e.keys.keys()) merged.set(name, null);
    a.blockFanOut('NATURAL joins in a query over several shards are not supported');
  }
  const level: Level = { entries, merged, parent: seen.parent };
  for (const name of strings(join.usingClause)) {
    const l = sideColumn(name, left);
    const r = sideColumn(name, right);
    if (l !== null && r !== null) equate(a, l, r, restricted);
    merged.set(name, type === 'JOIN_FULL' ? null : type === 'JOIN_RIGHT' ? r : l);
  }
  const links = analyzeExpression(a, join.quals, { ...level, entries: [...seen.entries, ...entries] }, ctes);
  applyCondition(a, join.quals, level, restricted, links);
  if (join.alias) {
    // (a JOIN b) AS j hides a and b; what j's columns are is not followed.
    return {
      entries: [{ name: join.alias.aliasname ?? '', schema: null, columns: null, keys: new Map(), open: false }],
      merged: new Map(),
    };
  }
  return { entries, merged };
}

function sideColumn(name: string, side: Pick<Level, 'entries' | 'merged'>): Variable | null {
  return resolveColumn({ fields: [{ String: { sval: name } }] }, { ...side, parent: null });
}

function equate(a: Analysis, x: Variable, y: Variable, restricted: ReadonlySet<Variable>): void {
  if (restricted.has(y)) a.pins.flow(x, y);
  if (restricted.has(x)) a.pins.flow(y, x);
}

/**
 * Reads the conjuncts of WHERE or ON. `restricted`: the columns whose rows the condition restricts (columns of outer
 * levels never are). Everything that is not an equality of columns, literals and parameters says nothing.
 */
export function applyCondition(
  a: Analysis,
  condition: Node | undefined,
  level: Level,
  restricted: ReadonlySet<Variable>,
  links: ReadonlyMap<SubLink, Outputs>,
): void {
  for (const c of conjuncts(condition)) {
    if ('SubLink' in c) applySemiJoin(a, c.SubLink, level, restricted, links);
    if (!('A_Expr' in c)) continue;
    const e = c.A_Expr;
    if (!isOperator(e, '=')) continue;
    if (e.kind === 'AEXPR_OP' && e.lexpr && e.rexpr) applyEquality(a, e.lexpr, e.rexpr, level, restricted);
    else if (e.kind === 'AEXPR_IN' || e.kind === 'AEXPR_OP_ANY') applyIn(a, e, level, restricted);
  }
}

function applyEquality(a: Analysis, left: Node, right: Node, level: Level, restricted: ReadonlySet<Variable>): void {
  if ('RowExpr' in left && 'RowExpr' in right) {
    const l = left.RowExpr.args ?? [];
    const r = right.RowExpr.args ?? [];
    if (l.length !== r.length) return;
    for (let i = 0; i < l.length; i++) applyEquality(a, l[i] as Node, r[i] as Node, level, restricted);
    return;
  }
  const l = 'ColumnRef' in left ? resolveColumn(left.ColumnRef, level) : null;
  const r = 'ColumnRef' in right ? resolveColumn(right.ColumnRef, level) : null;
  if (l !== null && r !== null) equate(a, l, r, restricted);
  else if (l !== null && restricted.has(l)) restrictTo(a, l, right);
  else if (r !== null && restricted.has(r)) restrictTo(a, r, left);
}

function restrictTo(a: Analysis, v: Variable, value: Node): void {
  const source = sourceOf(value, a.context.literals);
  if (source !== null) a.restrict(v, [source]);
}

function applyIn(a: Analysis, e: A_Expr, level: Level, restricted: ReadonlySet<Variable>): void {
  const { literals } = a.context;
  if (!e.rexpr || !e.lexpr) return;
  const items =
    'List' in e.rexpr ? e.rexpr.List.items : 'A_ArrayExpr' in e.rexpr ? e.rexpr.A_ArrayExpr.elements : undefined;
  if ('ColumnRef' in e.lexpr) {
    const v = resolveColumn(e.lexpr.ColumnRef, level);
    if (v === null || !restricted.has(v)) return;
    const sources = 'List' in e.rexpr ? listSources(items ?? [], literals) : anySources(e.rexpr, literals);
    if (sources !== null) a.restrict(v, sources);
  } else if ('RowExpr' in e.lexpr && items) {
    // (a, b) IN ((1, 2), (3, 4)): a in {1, 3} and b in {2, 4} is weaker, and true.
    const rows = items.map((i) => ('RowExpr' in i ? (i.RowExpr.args ?? []) : []));
    (e.lexpr.RowExpr.args ?? []).forEach((column, i) => {
      const v = 'ColumnRef' in column ? resolveColumn(column.ColumnRef, level) : null;
      if (v === null || !restricted.has(v) || rows.some((r) => r[i] === undefined)) return;
      const sources = listSources(
        rows.map((r) => r[i] as Node),
        literals,
      );
      if (sources !== null) a.restrict(v, sources);
    });
  }
}

/** column IN (SELECT key FROM …) keeps only rows whose column is among the sub-query's. */
function applySemiJoin(
  a: Analysis,
  link: SubLink,
  level: Level,
  restricted: ReadonlySet<Variable>,
  links: ReadonlyMap<SubLink, Outputs>,
): void {
  if (link.subLinkType !== 'ANY_SUBLINK' || link.operName?.length || !link.testexpr || !('ColumnRef' in link.testexpr))
    return;
  const v = resolveColumn(link.testexpr.ColumnRef, level);
  const inner = links.get(link)?.positions?.[0];
  if (v !== null && typeof inner === 'number' && restricted.has(v)) a.pins.flow(inner, v);
}

/** Looks through an expression for calls and sub-queries; gives the outputs of those. */
export function analyzeExpression(
  a: Analysis,
  expression: unknown,
  level: Level,
  ctes: Ctes | null,
): Map<SubLink, Outputs> {
  const links = new Map<SubLink, Outputs>();
  walk(expression, {
    func: (call) => a.call(call),
    subLink: (link) => {
      a.blockFanOut('sub-queries in a query over several shards are not supported');
      for (const [inner, outputs] of analyzeExpression(a, link.testexpr, level, ctes)) links.set(inner, outputs);
      a.depth++;
      if (link.subselect && 'SelectStmt' in link.subselect)
        links.set(link, analyzeSelect(a, link.subselect.SelectStmt, level, ctes));
      a.depth--;
      return false;
    },
  });
  return links;
}

function outputsOf(a: Analysis, select: SelectStmt, level: Level): Outputs {
  const columns: string[] = [];
  const keys = new Map<string, Variable>();
  const positions: (Variable | KeyColumnSource | null)[] = [];
  let ordered = true; // every column so far is known by name and place
  const add = (name: string, value: Variable | KeyColumnSource | null) => {
    // A name given twice cannot be referred to.
    if (columns.includes(name)) keys.delete(name);
    else if (typeof value === 'number') keys.set(name, value);
    columns.push(name);
    positions.push(value);
  };
  for (const target of targets(select.targetList)) {
    const value = target.val;
    if (value && 'ColumnRef' in value && value.ColumnRef.fields?.some((f) => 'A_Star' in f)) {
      const of = strings(value.ColumnRef.fields.slice(0, -1)).at(-1);
      const entries = of === undefined ? level.entries : level.entries.filter((e) => e.name === of);
      // With merged columns the star's order is another one.
      if (level.merged.size > 0) ordered = false;
      for (const e of entries) {
        if (e.columns === null) ordered = false;
        for (const name of e.columns ?? e.keys.keys()) add(name, e.keys.get(name) ?? null);
      }
    } else {
      const v = value && 'ColumnRef' in value ? resolveColumn(value.ColumnRef, level) : null;
      const name =
        target.name ??
        (value && 'ColumnRef' in value ? strings(value.ColumnRef.fields).at(-1) : undefined) ??
        '?column?';
      add(name, v ?? (ordered ? sourceOf(value, a.context.literals) : null));
    }
  }
  return {
    columns: ordered ? columns : null,
    keys,
    positions: ordered ? positions : null,
    open: isTransparent(select),
  };
}

/** Whether a condition on the outputs means the same inside: no LIMIT, grouping, DISTINCT, windows or functions that see all rows. */
function isTransparent(select: SelectStmt): boolean {
  if (
    select.distinctClause ||
    select.groupClause ||
    select.havingClause ||
    select.windowClause ||
    select.limitCount ||
    select.limitOffset ||
    select.lockingClause ||
    select.withClause
  )
    return false;
  let calls = false;
  walk(select.targetList, {
    func: () => {
      calls = true;
    },
  });
  return !calls;
}

function renamed(outputs: Outputs, names: readonly string[]): Outputs {
  if (names.length === 0) return outputs;
  if (outputs.columns === null) return NO_OUTPUTS;
  const columns = outputs.columns.map((c, i) => names[i] ?? c);
  const keys = new Map<string, Variable>();
  outputs.positions?.forEach((p, i) => {
    if (typeof p === 'number') keys.set(columns[i] as string, p);
  });
  return { ...outputs, columns, keys };
}
