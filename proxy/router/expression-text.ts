import type { A_Const, A_Expr, ColumnRef, FuncCall, Node, TypeName } from 'libpg-query';
import { quoteIdent } from '../../topology/quote.js';
import { strings } from './ast.js';
import { parse } from './parse.js';

/** A column reference in other words; null: it has none. */
export type ColumnWords = (ref: ColumnRef) => readonly string[] | null;

/**
 * An expression as text, in which columns have other names: one that PostgreSQL reads as the same expression, which is seen by reading it. Null: it has
 * something that is not known here (sub-queries, aggregates, much else).
 */
export function expressionText(expression: Node, columns: ColumnWords): string | null {
  const text = put(expression, columns);
  if (text === null) return null;
  const [statement] = parse(Buffer.from(`SELECT ${text}`))?.statements ?? [];
  const [target] = statement && 'SelectStmt' in statement.node ? (statement.node.SelectStmt.targetList ?? []) : [];
  const read = target && 'ResTarget' in target ? target.ResTarget.val : undefined;
  return JSON.stringify(bare(read, () => null)) === JSON.stringify(bare(expression, columns)) ? text : null;
}

/** A tree without places in the text, and with the columns' other names. */
export function bare(tree: unknown, columns: ColumnWords): unknown {
  if (Array.isArray(tree)) return tree.map((item) => bare(item, columns));
  if (typeof tree !== 'object' || tree === null) return tree;
  const known: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(tree)) {
    if (PLACES.has(key)) continue;
    const names = key === 'ColumnRef' ? columns(value as ColumnRef) : null;
    known[key] = names === null ? bare(value, columns) : { fields: names.map((sval) => ({ String: { sval } })) };
  }
  return known;
}

const PLACES = new Set([
  'location',
  'stmt_location',
  'stmt_len',
  'list_start',
  'list_end',
  'rexpr_list_start',
  'rexpr_list_end',
]);

/** As JSON, with properties in one order. */
export function canonical(tree: unknown): string {
  return JSON.stringify(tree, (_, value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([x], [y]) => (x < y ? -1 : 1)))
      : value,
  );
}

function put(node: Node | undefined, columns: ColumnWords): string | null {
  if (node === undefined) return null;
  if ('ColumnRef' in node) return columns(node.ColumnRef)?.map(quoteIdent).join('.') ?? null;
  if ('ParamRef' in node) return node.ParamRef.number === undefined ? null : `$${node.ParamRef.number}`;
  if ('A_Const' in node) return constant(node.A_Const);
  if ('TypeCast' in node) {
    const type = typeText(node.TypeCast.typeName);
    const value = put(node.TypeCast.arg, columns);
    return type === null || value === null ? null : `CAST(${value} AS ${type})`;
  }
  if ('A_Expr' in node) return operation(node.A_Expr, columns);
  if ('BoolExpr' in node) {
    const { boolop, args } = node.BoolExpr;
    const parts = all(args, columns);
    if (parts === null) return null;
    return boolop === 'NOT_EXPR' ? `(NOT ${parts[0]})` : `(${parts.join(boolop === 'AND_EXPR' ? ' AND ' : ' OR ')})`;
  }
  if ('NullTest' in node) {
    const value = put(node.NullTest.arg, columns);
    return value && `(${value} IS ${node.NullTest.nulltesttype === 'IS_NULL' ? '' : 'NOT '}NULL)`;
  }
  if ('BooleanTest' in node) {
    const value = put(node.BooleanTest.arg, columns);
    return value && `(${value} ${(node.BooleanTest.booltesttype ?? '').replaceAll('_', ' ')})`;
  }
  if ('CoalesceExpr' in node) return called('COALESCE', all(node.CoalesceExpr.args, columns));
  if ('MinMaxExpr' in node)
    return called(node.MinMaxExpr.op === 'IS_LEAST' ? 'LEAST' : 'GREATEST', all(node.MinMaxExpr.args, columns));
  if ('A_ArrayExpr' in node) {
    const items = all(node.A_ArrayExpr.elements, columns);
    return items && `ARRAY[${items.join(', ')}]`;
  }
  if ('CollateClause' in node) {
    const value = put(node.CollateClause.arg, columns);
    return value && `(${value} COLLATE ${strings(node.CollateClause.collname).map(quoteIdent).join('.')})`;
  }
  if ('CaseExpr' in node) {
    const { arg, args, defresult } = node.CaseExpr;
    const parts = [
      ...(arg === undefined ? [] : [put(arg, columns)]),
      ...(args ?? []).map((item) => {
        if (!('CaseWhen' in item)) return null;
        const [condition, result] = [put(item.CaseWhen.expr, columns), put(item.CaseWhen.result, columns)];
        return condition && result && `WHEN ${condition} THEN ${result}`;
      }),
      ...(defresult === undefined ? [] : [defresult].map((d) => put(d, columns)).map((d) => d && `ELSE ${d}`)),
    ];
    return parts.includes(null) ? null : `(CASE ${parts.join(' ')} END)`;
  }
  if ('FuncCall' in node) return functionCall(node.FuncCall, columns);
  return null;
}

function all(nodes: readonly Node[] | undefined, columns: ColumnWords): string[] | null {
  const texts: string[] = [];
  for (const node of nodes ?? []) {
    const text = put(node, columns);
    if (text === null) return null;
    texts.push(text);
  }
  return texts;
}

const called = (name: string, args: readonly string[] | null) => args && `${name}(${args.join(', ')})`;

function functionCall(call: FuncCall, columns: ColumnWords): string | null {
  const { agg_filter, agg_order, agg_distinct, agg_star, agg_within_group, over, func_variadic, funcname } = call;
  if (agg_filter || agg_order || agg_distinct || agg_star || agg_within_group || over || func_variadic) return null;
  return called(strings(funcname).map(quoteIdent).join('.'), all(call.args, columns));
}

function constant({ ival, fval, sval, boolval, bsval, isnull }: A_Const): string | null {
  if (isnull) return 'NULL';
  if (boolval) return boolval.boolval === true ? 'true' : 'false';
  // A sign belongs to the constant.
  if (ival) return (ival.ival ?? 0) < 0 ? `(${ival.ival})` : `${ival.ival ?? 0}`;
  if (fval) return fval.fval?.startsWith('-') ? `(${fval.fval})` : (fval.fval ?? null);
  if (bsval) return bsval.bsval ? `${bsval.bsval[0]}'${bsval.bsval.slice(1)}'` : null;
  if (!sval) return null;
  const text = (sval.sval ?? '').replaceAll("'", "''");
  // Read alike whether standard_conforming_strings is on or off.
  return text.includes('\\') ? `E'${text.replaceAll('\\', '\\\\')}'` : `'${text}'`;
}

function typeText(type: TypeName | undefined): string | null {
  if (!type?.names?.length || type.setof || type.pct_type) return null;
  const modifiers = all(type.typmods, () => null);
  if (modifiers === null) return null;
  const bounds = (type.arrayBounds ?? []).map((b) => {
    const bound = 'Integer' in b ? (b.Integer.ival ?? 0) : null;
    return bound === null ? null : bound < 0 ? '[]' : `[${bound}]`;
  });
  if (bounds.includes(null)) return null;
  const name = strings(type.names).map(quoteIdent).join('.');
  return `${name}${modifiers.length > 0 ? `(${modifiers.join(', ')})` : ''}${bounds.join('')}`;
}

function operation(e: A_Expr, columns: ColumnWords): string | null {
  const names = strings(e.name);
  const operator =
    names.length > 1 ? `OPERATOR(${names.slice(0, -1).map(quoteIdent).join('.')}.${names.at(-1)})` : names[0];
  const left = e.lexpr === undefined ? '' : put(e.lexpr, columns);
  if (left === null || operator === undefined) return null;
  const list = () => (e.rexpr && 'List' in e.rexpr ? all(e.rexpr.List.items, columns) : null);
  if (e.kind === 'AEXPR_IN') {
    const items = list();
    return items && `(${left} ${operator === '<>' ? 'NOT IN' : 'IN'} (${items.join(', ')}))`;
  }
  if (e.kind?.startsWith('AEXPR_BETWEEN') || e.kind?.startsWith('AEXPR_NOT_BETWEEN')) {
    const items = list();
    return items && `(${left} ${operator} ${items.join(' AND ')})`;
  }
  const right = put(e.rexpr, columns);
  if (right === null) return null;
  switch (e.kind) {
    case 'AEXPR_OP':
      return `(${left} ${operator} ${right})`;
    case 'AEXPR_OP_ANY':
      return `(${left} ${operator} ANY (${right}))`;
    case 'AEXPR_OP_ALL':
      return `(${left} ${operator} ALL (${right}))`;
    case 'AEXPR_DISTINCT':
      return `(${left} IS DISTINCT FROM ${right})`;
    case 'AEXPR_NOT_DISTINCT':
      return `(${left} IS NOT DISTINCT FROM ${right})`;
    case 'AEXPR_NULLIF':
      return `NULLIF(${left}, ${right})`;
    case 'AEXPR_LIKE':
      return `(${left} ${operator === '!~~' ? 'NOT LIKE' : 'LIKE'} ${right})`;
    case 'AEXPR_ILIKE':
      return `(${left} ${operator === '!~~*' ? 'NOT ILIKE' : 'ILIKE'} ${right})`;
    default:
      return null;
  }
}
