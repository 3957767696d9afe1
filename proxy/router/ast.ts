import type { A_Expr, ColumnRef, FuncCall, Node, RangeVar, ResTarget, SubLink, TypeName } from 'libpg-query';
import type { KeyColumnSource, LiteralToken } from './route.js';

/** The literals of the text that was parsed, to find from a node's location which one it is. */
export class Literals {
  readonly #byStart = new Map<number, number>();
  readonly #text: Buffer;

  constructor(text: Buffer, literals: readonly LiteralToken[]) {
    this.#text = text;
    literals.forEach((literal, ordinal) => {
      this.#byStart.set(literal.start, ordinal);
    });
  }

  /** The literal at `location`, or behind a minus sign there (the grammar folds the sign into the constant). */
  at(location: number): { readonly ordinal: number; readonly negated: boolean } | null {
    const ordinal = this.#byStart.get(location);
    if (ordinal !== undefined) return { ordinal, negated: false };
    if (this.#text[location] !== 0x2d) return null;
    let i = location + 1;
    while (i < this.#text.length && /\s/.test(String.fromCharCode(this.#text[i] as number))) i++;
    const behind = this.#byStart.get(i);
    return behind === undefined ? null : { ordinal: behind, negated: true };
  }
}

/** The text of a list of String nodes, such as a qualified name. */
export function strings(nodes: readonly Node[] | undefined): string[] {
  return (nodes ?? []).map((n) => ('String' in n ? (n.String.sval ?? '') : ''));
}

/** A function's, operator's or type's name: schema (or null) and name. */
export function qualifiedName(nodes: readonly Node[] | undefined): { schema: string | null; name: string } {
  const parts = strings(nodes);
  return { schema: parts.length > 1 ? (parts[parts.length - 2] as string) : null, name: parts[parts.length - 1] ?? '' };
}

/** Whether the expression is PostgreSQL's own operator of this name. */
export function isOperator(e: A_Expr, name: string): boolean {
  const op = qualifiedName(e.name);
  return op.name === name && (op.schema === null || op.schema === 'pg_catalog');
}

/** The conjuncts of a condition. */
export function conjuncts(condition: Node | undefined): Node[] {
  if (condition === undefined) return [];
  if ('BoolExpr' in condition && condition.BoolExpr.boolop === 'AND_EXPR')
    return (condition.BoolExpr.args ?? []).flatMap(conjuncts);
  return [condition];
}

/** pg_type name of a plain type (no modifier, not an array), or null. */
export function plainType(type: TypeName | undefined): string | null {
  return type?.arrayBounds?.length ? null : elementType(type);
}

/** The same of the elements of an array type, or of the type itself. */
function elementType(type: TypeName | undefined): string | null {
  if (!type || type.typmods?.length || type.setof || type.pct_type) return null;
  const { schema, name } = qualifiedName(type.names);
  return schema === null || schema === 'pg_catalog' ? name : null;
}

/** A literal or parameter, with at most one cast, as the source of a key column; null for anything else, NULL included. */
export function sourceOf(
  node: Node | undefined,
  literals: Literals,
  castType: string | null = null,
): KeyColumnSource | null {
  if (node === undefined) return null;
  if ('ParamRef' in node) return { kind: 'param', number: node.ParamRef.number ?? 0, castType };
  if ('A_Const' in node) {
    const c = node.A_Const;
    if (c.isnull || c.boolval || c.bsval) return null;
    const found = literals.at(c.location ?? 0);
    return found && { kind: 'literal', ordinal: found.ordinal, negated: found.negated, castType };
  }
  if ('TypeCast' in node && castType === null) {
    const type = plainType(node.TypeCast.typeName);
    return type === null ? null : sourceOf(node.TypeCast.arg, literals, type);
  }
  return null;
}

/**
 * What = ANY compares with: the elements of an array that is written out, or the one literal or parameter, perhaps with a cast, whose
 * elements are read at execution. Null for anything else.
 */
export function anySources(node: Node | undefined, literals: Literals): readonly KeyColumnSource[] | null {
  if (node === undefined) return null;
  if ('A_ArrayExpr' in node) return listSources(node.A_ArrayExpr.elements ?? [], literals);
  let value: Node | undefined = node;
  let castType: string | null = null;
  if ('TypeCast' in node) {
    const { typeName, arg } = node.TypeCast;
    castType = typeName?.arrayBounds?.length ? elementType(typeName) : null;
    if (castType === null || arg === undefined) return null;
    if ('A_ArrayExpr' in arg) return listSources(arg.A_ArrayExpr.elements ?? [], literals, castType);
    value = arg;
  }
  const source = 'TypeCast' in value ? null : sourceOf(value, literals);
  return source && [{ ...source, castType, array: true }];
}

/** The values of IN (…) or = ANY (ARRAY[…]), or null if one is not a literal or parameter. */
export function listSources(
  nodes: readonly Node[],
  literals: Literals,
  castType: string | null = null,
): KeyColumnSource[] | null {
  const sources: KeyColumnSource[] = [];
  for (const node of nodes) {
    if ('A_Const' in node && node.A_Const.isnull) continue; // equals nothing
    const source = sourceOf(node, literals, castType);
    if (source === null) return null;
    sources.push(source);
  }
  return sources.length > 0 ? sources : null;
}

export interface Visitor {
  /** Each returns whether to go on inside; missing means yes. */
  readonly subLink?: (link: SubLink) => boolean;
  readonly func?: (call: FuncCall) => void;
  readonly rangeVar?: (table: RangeVar) => void;
  readonly column?: (ref: ColumnRef) => void;
  readonly expr?: (e: A_Expr) => void;
  readonly param?: (number: number) => void;
  readonly any?: (kind: string, value: object) => void;
}

/**
 * Visits every node below `root`, whatever its kind: a parse tree is plain data in which an object with one capitalised
 * property is a node. (InsertStmt.relation and the like stand without their kind; `plain` names those properties.)
 */
export function walk(root: unknown, visitor: Visitor): void {
  if (Array.isArray(root)) {
    for (const item of root) walk(item, visitor);
    return;
  }
  if (typeof root !== 'object' || root === null) return;
  for (const [key, value] of Object.entries(root) as [string, unknown][]) {
    if (typeof value !== 'object' || value === null) continue;
    if (key === 'RangeVar' || ((key === 'relation' || key === 'rel') && 'relname' in value))
      visitor.rangeVar?.(value as RangeVar);
    else if (key === 'FuncCall') visitor.func?.(value as FuncCall);
    else if (key === 'ColumnRef') visitor.column?.(value as ColumnRef);
    else if (key === 'A_Expr') visitor.expr?.(value as A_Expr);
    else if (key === 'ParamRef') visitor.param?.((value as { number?: number }).number ?? 0);
    if (/^[A-Z]/.test(key)) visitor.any?.(key, value);
    if (key === 'SubLink' && visitor.subLink && !visitor.subLink(value as SubLink)) continue;
    walk(value, visitor);
  }
}

/** The table that a statement changes; undefined where it is none that changes one. */
export function changedTable(statement: Node): RangeVar | undefined {
  if ('InsertStmt' in statement) return statement.InsertStmt.relation;
  if ('UpdateStmt' in statement) return statement.UpdateStmt.relation;
  if ('DeleteStmt' in statement) return statement.DeleteStmt.relation;
  return 'MergeStmt' in statement ? statement.MergeStmt.relation : undefined;
}

/** Tables that stand in FROM themselves, not in a sub-query there. */
export function tablesIn(items: readonly (Node | undefined)[] | undefined): RangeVar[] {
  return (items ?? []).flatMap((item) => {
    if (item === undefined) return [];
    if ('RangeVar' in item) return [item.RangeVar];
    if ('RangeTableSample' in item) return tablesIn([item.RangeTableSample.relation]);
    return 'JoinExpr' in item ? tablesIn([item.JoinExpr.larg, item.JoinExpr.rarg]) : [];
  });
}

/** The ResTarget in each node of a target list. */
export function targets(nodes: readonly Node[] | undefined): ResTarget[] {
  return (nodes ?? []).flatMap((n) => ('ResTarget' in n ? [n.ResTarget] : []));
}
