import type { ColumnRef, CommonTableExpr, Node, RangeSubselect, RangeVar, ResTarget } from 'libpg-query';
import { type Analysis, type Occurrence, PIN_HINT } from './analysis.js';
import { qualifiedName, strings, walk } from './ast.js';
import { notSupported, SYSTEM_COLUMNS } from './fan-out.js';
import type { Relation } from './metadata.js';
import type { Refusal } from './route.js';

/** They tell of the statement's text, of its transaction, of temporary tables, or of how a value is stored. */
const TELLING = new Set([
  'current_query',
  'current_schemas',
  'pg_column_compression',
  'pg_column_size',
  'pg_current_xact_id_if_assigned',
  'txid_current_if_assigned',
]);
/** Settings that the workspace has of its own. */
const OWN_SETTINGS = /^(transaction_|idle_in_transaction_|lock_timeout$)/i;

/**
 * Whether a query can be answered by the home shard once it has the rows of all its sharded tables, in temporary tables of their names: null; or why not. All it
 * needs is that nothing in it sees that these are other tables.
 */
export function gatherRefusal(a: Analysis, statement: Node): Refusal | null {
  if (a.noGather !== null) return { hint: PIN_HINT, ...a.noGather };
  if (a.writes || a.pin !== null) return no('FOR UPDATE or FOR SHARE');
  if (a.homeBehind !== null) return no('a table whose policies use tables of the home shard');
  const shared = sharedName(a.occurrences);
  if (shared !== null) return no(`tables of the same name ("${shared}") of several schemas`);
  for (const { node, relation } of a.occurrences) {
    if (!node || !relation?.columns?.length) return no('a table whose columns are not known');
    if (node.inh !== true) return no('ONLY');
    if (node.catalogname) return no('the name of a database before that of a table');
  }
  const found = blocker(a, statement);
  return found === null ? null : no(found);
}

const no = (what: string): Refusal => notSupported(what, PIN_HINT);

/** Two tables that would be one name in the workspace. */
function sharedName(occurrences: readonly Occurrence[]): string | null {
  const schemas = new Map<string, string>();
  for (const { relation } of occurrences) {
    if (!relation) continue;
    const before = schemas.get(relation.table);
    if (before !== undefined && before !== relation.schema) return relation.table;
    schemas.set(relation.table, relation.schema);
  }
  return null;
}

function blocker(a: Analysis, statement: Node): string | null {
  let found: string | null = null;
  const rows = new Map<string, ReadonlySet<string>>();
  for (const { node, relation } of a.occurrences) {
    const name = node?.alias?.aliasname ?? relation?.table ?? '';
    rows.set(name, new Set([...(rows.get(name) ?? []), ...columnsAs(node, relation)]));
  }
  const stars = new Set<ColumnRef>();
  const own = new Set(a.occurrences.map(({ node }) => node));
  const queries: { readonly name: string | undefined; readonly columns: readonly string[] }[] = [];
  const columns: ColumnRef[] = [];
  walk(statement, {
    any: (kind, value) => {
      if (kind === 'RangeSubselect') {
        const { alias, subquery } = value as RangeSubselect;
        queries.push({ name: alias?.aliasname, columns: [...strings(alias?.colnames), ...outputNames(subquery)] });
      } else if (kind === 'CommonTableExpr') {
        const { ctename, aliascolnames, ctequery } = value as CommonTableExpr;
        queries.push({ name: ctename, columns: [...strings(aliascolnames), ...outputNames(ctequery)] });
      }
      if (kind === 'ResTarget') {
        const { val } = value as ResTarget;
        if (val && 'ColumnRef' in val && hasStar(val.ColumnRef)) stars.add(val.ColumnRef);
      }
      const { typeName } = value as { typeName?: { names?: Node[] } };
      const { name } = qualifiedName(typeName?.names);
      if (/^reg(proc|procedure|oper|operator|class|type|role|namespace|config|dictionary|collation)$/.test(name))
        found ??= `the type ${name}`;
      else if (a.occurrences.some((o) => o.relation?.table === name)) found ??= `the row type "${name}"`;
    },
    func: (call) => {
      const { name } = qualifiedName(call.funcname);
      if (TELLING.has(name) || (name === 'current_setting' && !isKept(call.args?.[0]))) found ??= `function ${name}()`;
    },
    column: (ref) => {
      columns.push(ref);
    },
    rangeVar: (node) => {
      if (!own.has(node) && isHidden(a, node)) found ??= `another table of the name "${node.relname}"`;
    },
  });
  // A sub-query may have the name of a table: its columns, too, unless `name.column` may call a function with the table's row.
  const { metadata } = a.context;
  const isFunction = (name: string) => metadata.builtin(name) !== null || metadata.functionsNamed(name).length > 0;
  for (const query of queries) {
    const known = rows.get(query.name ?? '');
    if (known) rows.set(query.name ?? '', new Set([...known, ...query.columns.filter((c) => !isFunction(c))]));
  }
  for (const ref of columns) found ??= columnBlocker(ref, rows, stars);
  return found;
}

/** Whether a temporary table would be found in place of the one that is meant, which is not one of those whose rows come together. */
function isHidden(a: Analysis, { schemaname, relname }: RangeVar): boolean {
  const { metadata, searchPath } = a.context;
  if (schemaname !== undefined || !a.occurrences.some((o) => o.relation?.table === relname)) return false;
  const meant = metadata.resolveRelation(null, relname ?? '', searchPath);
  return meant !== null && !a.occurrences.some((o) => o.relation === meant);
}

/** Whether it names a setting that is the client's in the workspace, too. */
function isKept(name: Node | undefined): boolean {
  const text = name !== undefined && 'A_Const' in name ? name.A_Const.sval?.sval : undefined;
  return text !== undefined && !OWN_SETTINGS.test(text);
}

/** The names that a query itself gives to its columns. */
function outputNames(query: Node | undefined): string[] {
  const targets = (query && 'SelectStmt' in query ? query.SelectStmt.targetList : null) ?? [];
  return targets.flatMap((target) => {
    if (!('ResTarget' in target)) return [];
    const { name, val } = target.ResTarget;
    if (name !== undefined) return [name];
    return val && 'ColumnRef' in val && !hasStar(val.ColumnRef) ? strings(val.ColumnRef.fields).slice(-1) : [];
  });
}

/** References to whole rows, whose type would be another one, and to what only the tables themselves have. */
function columnBlocker(
  ref: ColumnRef,
  rows: ReadonlyMap<string, ReadonlySet<string>>,
  stars: ReadonlySet<ColumnRef>,
): string | null {
  const fields = ref.fields ?? [];
  if (hasStar(ref)) return stars.has(ref) ? null : 'a whole row as a value';
  const names = strings(fields);
  const column = names.at(-1) ?? '';
  if (SYSTEM_COLUMNS.has(column)) return `the system column ${column}`;
  if (names.length === 1) return rows.has(column) ? `the whole row "${column}" as a value` : null;
  const table = names.at(-2) ?? '';
  const columns = rows.get(table);
  if (columns !== undefined && !columns.has(column)) return `"${column}" of a whole row`;
  // Deeper names may be fields of composite columns.
  return names.length > 3 ? 'a name of four parts' : null;
}

export function hasStar(ref: ColumnRef): boolean {
  return (ref.fields ?? []).some((field) => 'A_Star' in field);
}

/** The columns of a table in FROM by the names that the statement has for them. */
export function columnsAs(node: RangeVar | undefined, relation: Relation | undefined): readonly string[] {
  const renamed = strings(node?.alias?.colnames);
  return (relation?.columns ?? []).map((column, i) => renamed[i] ?? column);
}
