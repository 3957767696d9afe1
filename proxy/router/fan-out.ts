import type { Node, SelectStmt } from 'libpg-query';
import { KEY_TYPES, type KeyType } from '../../topology/key.js';
import { sameFamily } from '../../topology/key-codec.js';
import { type Analysis, type Occurrence, PIN_HINT } from './analysis.js';
import { qualifiedName, sourceOf, strings, walk } from './ast.js';
import { classifyFunction } from './functions.js';
import type { Variable } from './pins.js';
import type { KeyColumnSource, Refusal, Spread } from './route.js';

/** Node kinds whose value depends on nothing but the row and the parameters (functions and operators are judged by name). */
const PLAIN = new Set([
  'ResTarget',
  'ColumnRef',
  'A_Star',
  'A_Const',
  'ParamRef',
  'TypeCast',
  'A_Expr',
  'BoolExpr',
  'NullTest',
  'BooleanTest',
  'CaseExpr',
  'CaseWhen',
  'CoalesceExpr',
  'MinMaxExpr',
  'A_ArrayExpr',
  'A_Indirection',
  'A_Indices',
  'RowExpr',
  'FuncCall',
  'CollateClause',
  'List',
  'String',
  'Integer',
  'RangeVar',
  'JoinExpr',
]);

export const SYSTEM_COLUMNS = new Set(['ctid', 'xmin', 'xmax', 'cmin', 'cmax', 'tableoid']);

/**
 * Whether the union of what each shard answers is exactly the answer: one query level without anything that looks at
 * several rows, whose sharded tables are joined by their keys, and which gives each row of one of them at most on one shard. Tables of
 * several keyspaces are as those of one, as long as these have the same layout.
 */
export function spreadOfSelect(a: Analysis, select: SelectStmt): Spread {
  const refusal = blocker(a, select);
  if (refusal !== null) return { kind: 'refused', refusal };
  const root = rootOf(a);
  if (root === null)
    return {
      kind: 'refused',
      refusal: notSupported(`a join that is not by the sharding key (${keyNames(a)})`, hintFor(a)),
    };
  if (root.visible === null || renames(select))
    return {
      kind: 'refused',
      refusal: notSupported('a table whose columns are renamed, or a join that has a name,', hintFor(a)),
    };
  const of = { keyspace: root.table.keyspace, ...root.visible };
  const limit = cutBy(a, select, select.limitCount);
  const offset = cutBy(a, select, select.limitOffset);
  const together = a.keyspaces().length > 1 ? { together: true as const } : {};
  return limit === null && offset === null
    ? { kind: 'fanout', of, ...together }
    : {
        kind: 'fanout',
        of,
        uncut: { limit, offset, refusal: notSupported('LIMIT or OFFSET', hintFor(a)) },
        ...together,
      };
}

/** Where the number of rows to leave out, or to stop at, comes from; null: there is none (LIMIT ALL is NULL). */
function cutBy(a: Analysis, select: SelectStmt, count: Node | undefined): KeyColumnSource | null {
  const source = sourceOf(count, a.context.literals);
  if (source?.kind !== 'param') return source;
  // As keys: in binary form only where its type can come from nowhere else.
  let uses = 0;
  walk(select, { param: (n) => (uses += n === source.number ? 1 : 0) });
  return uses > 1 ? { ...source, shared: true } : source;
}

/** Whether LIMIT or OFFSET may be seen, at execution, to leave every row in. */
function mayBeUncut(a: Analysis, clause: 'limit' | 'offset', count: Node | undefined): boolean {
  if (count === undefined || ('A_Const' in count && count.A_Const.isnull)) return true;
  const source = sourceOf(count, a.context.literals);
  // The number of a LIMIT cuts, whichever it is.
  if (source === null || (clause === 'limit' && source.kind === 'literal')) return false;
  return source.castType === null || castFits('int8', source.castType);
}

/** What is said of a query that several shards would have to answer. */
export function notSupported(what: string, hint: string): Refusal {
  return { sqlstate: '0A000', message: `${what} in a query over several shards is not supported`, hint };
}

function blocker(a: Analysis, s: SelectStmt): Refusal | null {
  const no = (what: string) => notSupported(what, hintFor(a));
  if (s.op !== undefined && s.op !== 'SETOP_NONE') return no('UNION, INTERSECT and EXCEPT');
  if (s.withClause) return no('WITH');
  if (s.intoClause) return no('SELECT INTO');
  if (s.lockingClause?.length) return no('FOR UPDATE or FOR SHARE');
  if (s.groupClause) return no('GROUP BY');
  if (s.havingClause) return no('HAVING');
  if (s.distinctClause) return no('DISTINCT');
  if (s.windowClause) return no('WINDOW');
  if (s.sortClause) return no('ORDER BY');
  if (!mayBeUncut(a, 'limit', s.limitCount) || !mayBeUncut(a, 'offset', s.limitOffset)) return no('LIMIT or OFFSET');
  if (a.noFanOut) return { hint: hintFor(a), ...a.noFanOut };
  if (a.writes || a.pin !== null) return no('a SELECT with side effects');
  if (a.home) return no('joining tables that only the home shard has');
  if (!s.targetList?.length) return no('a SELECT without columns');
  if (a.occurrences.some((o) => !o.top)) return no('a sub-query');
  return expressionBlocker(a, [s.targetList, s.fromClause, s.whereClause]);
}

/** Whether these expressions mean the same on every shard. */
export function areAlikeEverywhere(a: Analysis, parts: readonly unknown[]): boolean {
  let pure = true;
  walk(parts, {
    func: (call) => {
      const { schema, name } = qualifiedName(call.funcname);
      const { metadata, searchPath } = a.context;
      if (classifyFunction(schema, name, searchPath, metadata).kind !== 'immutable') pure = false;
    },
  });
  return pure && expressionBlocker(a, parts) === null;
}

function expressionBlocker(a: Analysis, parts: readonly unknown[]): Refusal | null {
  let found: string | null = null;
  walk(parts, {
    any: (kind) => {
      if (!PLAIN.has(kind))
        found ??= kind === 'SQLValueFunction' ? 'the current date, time or user' : `this kind of expression (${kind})`;
    },
    column: (ref) => {
      const name = strings(ref.fields).at(-1) ?? '';
      if (SYSTEM_COLUMNS.has(name)) found ??= `the system column ${name}`;
    },
    expr: (e) => {
      const op = qualifiedName(e.name);
      if (a.context.metadata.volatileOperators.has(op.name) || (op.schema !== null && op.schema !== 'pg_catalog'))
        found ??= `the operator ${op.name}`;
    },
  });
  // 'x'::regclass gives an OID, which differs from shard to shard.
  walk(parts, {
    any: (kind, value) => {
      if (kind !== 'TypeCast') return;
      const { name } = qualifiedName(
        (value as { typeName?: { names?: Parameters<typeof qualifiedName>[0] } }).typeName?.names,
      );
      if (name.startsWith('reg')) found ??= `a cast to ${name}`;
    },
  });
  return found === null ? null : notSupported(found, hintFor(a));
}

/** The table that every other one follows, by key equalities, and that no outer join leaves out; null: there is none. */
export function rootOf(a: Analysis): Occurrence | null {
  return a.occurrences.find((root) => !root.nullable && a.occurrences.every((o) => follows(a, root, o))) ?? null;
}

/** `(a JOIN b …) AS j`: the names inside are not seen outside. */
export function renames(select: SelectStmt): boolean {
  let found = false;
  walk(select.fromClause, {
    any: (kind, value) => {
      if (kind === 'JoinExpr' && (value as { alias?: unknown }).alias !== undefined) found = true;
    },
  });
  return found;
}

function follows(a: Analysis, root: Occurrence, o: Occurrence): boolean {
  if (root === o) return true;
  return root.variables.every((v, i) => a.pins.reach(v).has(o.variables[i] as Variable));
}

/** Whether a value cast to this type can be compared with a key column of `type` by value. */
export function castFits(type: KeyType, cast: string): boolean {
  const known: readonly string[] = KEY_TYPES;
  return known.includes(cast) && sameFamily(type, cast as KeyType);
}

export function keyNames(a: Analysis): string {
  return [...new Set(a.occurrences.flatMap((o) => o.table.keyColumns))].join(', ');
}

export function hintFor(a: Analysis): string {
  const columns = a.occurrences[0]?.table.keyColumns;
  return columns
    ? `Add ${columns.map((c) => `${c} = …`).join(' AND ')} to the WHERE clause, so that one shard can answer.`
    : PIN_HINT;
}
