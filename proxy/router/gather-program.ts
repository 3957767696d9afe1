import { isUtf8 } from 'node:buffer';
import type { ColumnRef, Node, RangeVar, SelectStmt } from 'libpg-query';
import { type KeyspaceName, type ShardName, shardsOf, type Topology } from '../../topology/topology.js';
import { Analysis, type Context, type Occurrence } from './analysis.js';
import { conjuncts, strings, walk } from './ast.js';
import { expressionText } from './expression-text.js';
import { areAlikeEverywhere } from './fan-out.js';
import { columnsAs, hasStar } from './gather.js';
import {
  columnsOf,
  filterOf,
  fromOf,
  type GatheredHalves,
  halvesFetches,
  halvesLooks,
  halvesOf,
  isHalved,
  ROW,
  type TableCondition,
} from './gather-halves.js';
import { Lexer, type Token } from './lexer.js';
import type { Relation } from './metadata.js';
import { analyzeStatement } from './modify.js';
import { namesIn } from './named-columns.js';
import { parse } from './parse.js';
import { type Reduction, reductionOf } from './reduction.js';
import { type Renaming, renamedText } from './renamed-text.js';
import { ownConditions } from './resolve.js';
import { tellsTransaction } from './telling.js';
import type { Edit } from './text-edits.js';

/** A table whose rows are brought together. */
export interface GatheredTable {
  /** In the workspace it has the same name. */
  readonly schema: string;
  readonly table: string;
  readonly keyspace: KeyspaceName;
  readonly keyColumns: readonly string[];
  /** What of it the query looks at, in its order; never empty. */
  readonly columns: readonly string[];
  /** For grouping by it, which leaves its other columns to be selected; null: there is none, or it does not matter. */
  readonly primaryKey: readonly string[] | null;
  /** What is true of all rows that the query can use, of `"t"`; may have parameters. Null: nothing is known. */
  readonly filter: string | null;
  /** Some of these columns are on other shards than the others. Null: the rows are whole. */
  readonly halves: GatheredHalves | null;
}

export interface GatherProgram {
  /** In place of the tables' rows, where parts of the shards' answers will do. */
  readonly reduction: Reduction | null;
  readonly tables: readonly GatheredTable[];
  /** It reads more at home than these. */
  readonly readsHome: boolean;
  /** Some filter has parameters of the query. */
  readonly filtersByParameters: boolean;
  /** The query as the workspace runs it. */
  readonly text: Buffer;
  /** A position in `text`, in characters from 1, as one in the client's own text. */
  positionAsSent(position: number): number;
}

/** Perhaps: also in a string. */
export const PARAMETER = /\$\d/;

const lexer = new Lexer();

/**
 * What is to be done to answer a query from copies of its tables' rows ({@link gatherRefusal} allows it). Pure. Null: it is not understood well enough after
 * all. @param text one statement, perhaps with semicolons, as PostgreSQL reads it with standard_conforming_strings on or off: as sent
 */
export function gatherProgram(
  text: Buffer,
  parsed: Buffer,
  conforming: boolean,
  context: Omit<Context, 'literals'>,
  where: { readonly topology: Topology; readonly shards: readonly ShardName[] },
): GatherProgram | null {
  const read = parse(parsed);
  const [statement] = read?.statements ?? [];
  if (!read || !statement || read.statements.length > 1 || read.garbledNames) return null;
  const a = new Analysis({ ...context, literals: read.literals }, analyzeStatement);
  analyzeStatement(a, statement.node, null, null);
  const edits = editsOf(a, statement.node, text, conforming);
  if (edits === null) return null;
  const original = { text, parsed, index: 0, statement: statement.node };
  const renamed = renamedText(original, edits, inWorkspace(a));
  if (renamed === null) return null;
  const tables = tablesOf(a, statement.node, conforming && isUtf8(text), where.topology);
  const select = 'SelectStmt' in statement.node ? statement.node.SelectStmt : null;
  const whole = !tables.some(isHalved);
  return {
    reduction: select === null || !conforming || !whole ? null : reductionOf(a, select, text, where),
    tables,
    readsHome: a.home || a.referenceReads.size > 0,
    filtersByParameters: tables.some(({ filter }) => filter !== null && PARAMETER.test(filter)),
    ...renamed,
  };
}

/** By shard, what makes the statement that gives the rows of a table that it owns. */
export function fetches(
  { schema, table, keyspace, keyColumns, columns, filter }: GatheredTable,
  topology: Topology,
): ReadonlyMap<ShardName, string> {
  const own = ownConditions({ keyspace, name: ROW, keyColumns }, topology);
  const found = topology.keyspaces.get(keyspace);
  return new Map(
    (found === undefined ? [] : shardsOf(found)).map((shard) => {
      const conditions = [keyColumns.length === 0 ? null : own.get(shard), filter].filter((c) => c !== null);
      const where = conditions.length === 0 ? '' : ` WHERE ${conditions.map((c) => `(${c})`).join(' AND ')}`;
      return [shard, `SELECT ${columnsOf(columns)} FROM ${fromOf({ schema, table })}${where}`];
    }),
  );
}

/** The same of what the shards make of their rows. */
export function partials({ of, partial }: Reduction, topology: Topology): ReadonlyMap<ShardName, string> {
  return new Map([...ownConditions(of, topology)].map(([shard, own]) => [shard, partial(own)]));
}

/** Whether all that is sent besides the client's own text says the same in any encoding. */
export function isAscii(
  { tables, reduction }: GatherProgram,
  topology: Topology,
  shards: readonly ShardName[],
): boolean {
  const texts = [
    ...tables.flatMap((table) => [...fetches(table, topology).values()]),
    ...tables.filter(isHalved).flatMap((table) => {
      const { base, hot } = halvesFetches(table, topology, shards);
      const looks = halvesLooks(table, topology, shards);
      return [base.texts, hot.texts, looks.base, looks.hot].flatMap((by) => [...by.values()]);
    }),
    ...(reduction === null ? [] : partials(reduction, topology).values()),
  ];
  return !texts.some((text) => /[^ -~\s]/.test(text));
}

/** Tables, and columns that are named with them, by the names that they have in the workspace. In order; null: a name is not found. */
function editsOf(a: Analysis, statement: Node, text: Buffer, conforming: boolean): Edit[] | null {
  if (!lexer.scan(text, true, conforming)) return null;
  const tokens: Token[] = [...lexer.tokens];
  const byStart = new Map(tokens.map((token, i) => [token.start, i]));
  const edits: Edit[] = [];
  let lost = false;
  const schemaOf = (location: number | undefined) => {
    const at = byStart.get(location ?? -1) ?? -1;
    const [schema, dot, name] = tokens.slice(at, at + 3);
    const isDot = dot !== undefined && text.toString('latin1', dot.start, dot.end) === '.';
    return at < 0 || !schema || !name || !isDot ? null : { start: schema.start, end: name.start };
  };
  for (const { node } of a.occurrences) {
    if (!node) return null;
    if (node.schemaname === undefined) {
      if (!byStart.has(node.location ?? -1)) return null;
      edits.push({ start: node.location as number, end: node.location as number, put: 'pg_temp.' });
      continue;
    }
    const schema = schemaOf(node.location);
    if (schema === null) return null;
    edits.push({ ...schema, put: 'pg_temp.' });
  }
  walk(statement, {
    column: (ref) => {
      if (!hasSchema(a, ref)) return;
      const schema = schemaOf(ref.location);
      if (schema === null) lost = true;
      else edits.push({ ...schema, put: 'pg_temp.' });
    },
  });
  return lost ? null : edits.sort((x, y) => x.start - y.start);
}

/** `schema.table.column`, of a gathered table. */
function hasSchema(a: Analysis, ref: ColumnRef): boolean {
  const fields = ref.fields ?? [];
  if (fields.length !== 3) return false;
  const [schema, table] = strings(fields);
  return a.occurrences.some((o) => o.relation?.schema === schema && o.relation?.table === table && !o.node?.alias);
}

/** Tables, and columns that are named with them, in the workspace. */
function inWorkspace(a: Analysis): Renaming {
  const own = new Set(a.occurrences.map(({ node }) => node));
  return {
    table: (node, original) => {
      if (own.has(original)) node.schemaname = 'pg_temp';
    },
    column: (ref) => {
      if (hasSchema(a, ref)) ref.fields = [{ String: { sval: 'pg_temp' } }, ...(ref.fields?.slice(1) ?? [])];
    },
  };
}

function tablesOf(a: Analysis, statement: Node, sure: boolean, topology: Topology): GatheredTable[] {
  const used = usedColumns(statement);
  const grouped = isGrouped(statement);
  // The parser has not seen what is in strings with backslashes.
  const filters = sure ? filtersOf(a, statement) : new Map<RangeVar, readonly TableCondition[]>();
  const byTable = new Map<Relation, Occurrence[]>();
  for (const o of a.occurrences) {
    const relation = o.relation as Relation;
    byTable.set(relation, [...(byTable.get(relation) ?? []), o]);
  }
  return [...byTable].map(([relation, occurrences]) => {
    const { keyspace, keyColumns } = (occurrences[0] as Occurrence).table;
    const all = relation.columns ?? [];
    const primaryKey = grouped ? (relation.primaryKey ?? null) : null;
    const shown = occurrences.map(({ node }) => node?.alias?.aliasname ?? relation.table);
    const renamed = occurrences.some((o) => strings(o.node?.alias?.colnames).length > 0);
    const columns = all.filter(
      (c) => renamed || shown.some((of) => used(of, c)) || primaryKey?.includes(c) || keyColumns.includes(c),
    );
    const conditions = occurrences.map((o) => filters.get(o.node as RangeVar) ?? []);
    const table = {
      schema: relation.schema,
      table: relation.table,
      keyspace,
      keyColumns,
      columns: columns.length > 0 ? columns : all.slice(0, 1),
      primaryKey,
      filter: filterOf(conditions),
    };
    return { ...table, halves: halvesOf(table, conditions, topology) };
  });
}

/** Whether a column may be referred to, of a table in FROM of this name. */
function usedColumns(statement: Node): (of: string, column: string) => boolean {
  const { columns, whole, star, all } = namesIn(statement);
  const isNamed = (of: string, column: string) => columns.get(of)?.has(column) === true;
  return (of, column) => all || star || whole.has(of) || isNamed('', column) || isNamed(of, column);
}

function isGrouped(statement: Node): boolean {
  return JSON.stringify(statement).includes('"groupClause":');
}

/** What stands in FROM at one level. */
interface Source {
  readonly node: RangeVar | null;
  readonly name: string;
  /** Null: not known. */
  readonly columns: readonly string[] | null;
  readonly occurrence: Occurrence | null;
  /** Rows of it may be made up by an outer join. */
  readonly nullable: boolean;
}

/** By table in FROM: what the conditions of its level say of it alone. */
export function filtersOf(a: Analysis, statement: Node): ReadonlyMap<RangeVar, readonly TableCondition[]> {
  const filters = new Map<RangeVar, TableCondition[]>();
  const occurrences = new Map(a.occurrences.map((o) => [o.node as RangeVar, o]));
  const levelOf = (select: SelectStmt) => {
    const sources = (select.fromClause ?? []).flatMap((item) => sourcesOf(item));
    push(select.whereClause, sources, sources);
  };
  /** @param all those that a name may mean @param restricted those whose rows the condition leaves out */
  const push = (condition: Node | undefined, all: readonly Source[], restricted: readonly Source[]) => {
    const left = new Set<Source>();
    for (const conjunct of conjuncts(condition)) {
      const source = onlySource(conjunct, all);
      if (source?.occurrence == null || source.nullable || !restricted.includes(source)) continue;
      const text = areAlikeEverywhere(a, [conjunct])
        ? expressionText(conjunct, (ref) => [ROW, columnOf(ref, source)])
        : null;
      // What may fail is looked at behind what stands before it, or not at all.
      const fails = mayFail(conjunct);
      if (text === null || tellsTransaction(text) || (left.has(source) && fails)) left.add(source);
      else {
        const columns: string[] = [];
        walk([conjunct], { column: (ref) => columns.push(columnOf(ref, source)) });
        const known = filters.get(source.node as RangeVar) ?? [];
        filters.set(source.node as RangeVar, [...known, { text, columns, mayFail: fails }]);
      }
    }
  };
  const sourcesOf = (item: Node): Source[] => {
    if ('RangeVar' in item) {
      const node = item.RangeVar;
      const occurrence = occurrences.get(node) ?? null;
      const { metadata, searchPath } = a.context;
      const relation =
        occurrence?.relation ?? metadata.resolveRelation(node.schemaname ?? null, node.relname ?? '', searchPath);
      const name = node.alias?.aliasname ?? node.relname ?? '';
      // A name without a schema may be a common table expression's.
      const columns = relation && (occurrence || node.schemaname) ? columnsAs(node, relation) : null;
      return [{ node, name, columns, occurrence, nullable: false }];
    }
    if ('JoinExpr' in item) {
      const { larg, rarg, quals, jointype = 'JOIN_INNER', alias } = item.JoinExpr;
      const left = larg ? sourcesOf(larg) : [];
      const right = rarg ? sourcesOf(rarg) : [];
      const restricted = [
        ...(jointype === 'JOIN_INNER' || jointype === 'JOIN_RIGHT' ? left : []),
        ...(jointype === 'JOIN_INNER' || jointype === 'JOIN_LEFT' ? right : []),
      ];
      push(quals, [...left, ...right], restricted);
      const madeUp = (sources: Source[], is: boolean) =>
        is ? sources.map((s) => ({ ...s, nullable: true })) : sources;
      const both = [
        ...madeUp(left, jointype === 'JOIN_RIGHT' || jointype === 'JOIN_FULL'),
        ...madeUp(right, jointype === 'JOIN_LEFT' || jointype === 'JOIN_FULL'),
      ];
      if (alias === undefined) return both;
    }
    return [{ node: null, name: '', columns: null, occurrence: null, nullable: false }];
  };
  if ('SelectStmt' in statement) levelOf(statement.SelectStmt);
  walk(statement, {
    any: (kind, value) => {
      if (kind === 'SelectStmt' && !('SelectStmt' in statement && statement.SelectStmt === value))
        levelOf(value as SelectStmt);
    },
  });
  return filters;
}

/** The only thing in FROM whose columns the condition has, if it has no others. */
function onlySource(condition: Node, all: readonly Source[]): Source | null {
  let only: Source | null = null;
  let several = false;
  walk(condition, {
    column: (ref) => {
      const source = sourceOfColumn(ref, all);
      if (source === null || (only !== null && only !== source)) several = true;
      only = source;
    },
  });
  return several ? null : only;
}

function sourceOfColumn(ref: ColumnRef, all: readonly Source[]): Source | null {
  const names = strings(ref.fields);
  const column = names.at(-1) ?? '';
  if (hasStar(ref)) return null;
  const having =
    names.length === 1
      ? all.filter((s) => s.columns === null || s.columns.includes(column))
      : all.filter((s) => s.name === names.at(-2));
  const [source] = having;
  return having.length === 1 && source?.columns?.includes(column) ? source : null;
}

/** The table's own name of a column. */
function columnOf(ref: ColumnRef, { columns, occurrence }: Source): string {
  const at = columns?.indexOf(strings(ref.fields).at(-1) ?? '') ?? -1;
  return occurrence?.relation?.columns?.[at] ?? '';
}

const COMPARISONS = new Set(['=', '<>', '!=', '<', '<=', '>', '>=', '~~', '!~~', '~~*', '!~~*']);

/** Whether the condition does more than compare. */
function mayFail(condition: Node): boolean {
  let fails = false;
  walk(condition, {
    func: () => {
      fails = true;
    },
    any: (kind) => {
      if (kind === 'TypeCast') fails = true;
    },
    expr: (e) => {
      const name = strings(e.name).at(-1) ?? '';
      if (e.kind === 'AEXPR_OP' && !COMPARISONS.has(name)) fails = true;
    },
  });
  return fails;
}
