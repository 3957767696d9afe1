import { isUtf8 } from 'node:buffer';
import type { ColumnRef, FuncCall, Node, SelectStmt } from 'libpg-query';
import { quoteIdent } from '../../topology/quote.js';
import { type ShardName, type Topology, tableId } from '../../topology/topology.js';
import type { Analysis } from './analysis.js';
import { qualifiedName, strings, walk } from './ast.js';
import { ClauseWords } from './clause-words.js';
import { bare, canonical, expressionText } from './expression-text.js';
import { areAlikeEverywhere, renames, rootOf } from './fan-out.js';
import { classifyFunction } from './functions.js';
import { columnsAs, hasStar } from './gather.js';
import { areTogether } from './layout.js';
import { Lexer, type Token } from './lexer.js';
import { parse } from './parse.js';
import type { OwnedBy } from './route.js';
import { tellsTransaction } from './telling.js';

/** The name of what the shards have made of their rows, in the workspace. */
export const PARTS = 'foreshard_parts';

/**
 * A query of one level whose FROM and WHERE each shard can answer for its own rows: instead of rows, shards send what is left when they have grouped, sorted and cut
 * them, and the workspace puts that together.
 */
export interface Reduction {
  /** Whose rows are whose. */
  readonly of: OwnedBy;
  /** What each shard runs. @param own true of the rows that it owns */
  partial(own: string): string;
  /**
   * What the workspace runs.
   * @param types of the partial's columns, as OIDs
   * @returns null: parts of such types do not add up to exactly what PostgreSQL makes of all rows
   */
  finish(types: readonly number[]): string | null;
}

/** Type OIDs that PostgreSQL's own sums have, of which sums are exact. */
const INT8 = 20;
const NUMERIC = 1700;

/** They give of their own results what they give of all rows. */
const SELF_COMBINING = new Set(['min', 'max', 'bool_and', 'bool_or', 'every', 'bit_and', 'bit_or', 'bit_xor']);

/** They are put together from sums. */
const ADDED_UP = new Set(['count', 'sum', 'avg']);

/** A value of the query that stands for rows, and what each shard computes for it. */
interface Part {
  /** The partial's columns, by name. */
  readonly columns: readonly { readonly name: string; readonly text: string }[];
  /** By their types; null: not exactly. */
  combine(types: ReadonlyMap<string, number>): string | null;
}

/** The largest bigint. */
const MOST_ROWS = '9223372036854775807';

/** A column of this name might be taken for a part. */
const NAME_OF_OURS = /^[kp]\d+n?$/;

/** Stands for the condition on a shard's own rows, where only the form matters. */
const OWN = 'own_rows';

const lexer = new Lexer();

/** @param text of the one statement, as PostgreSQL reads it with standard_conforming_strings on. Null: the shards can do nothing ahead. */
export function reductionOf(
  a: Analysis,
  select: SelectStmt,
  text: Buffer,
  { topology, shards }: { readonly topology: Topology; readonly shards: readonly ShardName[] },
): Reduction | null {
  const root = coreOf(a, select, topology, shards);
  const core = root && coreText(select, text);
  if (!root?.visible || core === null) return null;
  const of = { keyspace: root.table.keyspace, ...root.visible };
  return new Reducer(a, select, core).reduction(of);
}

/** The table that every other one follows, if all the shards' rows together are those of FROM and WHERE. */
function coreOf(a: Analysis, select: SelectStmt, topology: Topology, shards: readonly ShardName[]) {
  if ((select.op !== undefined && select.op !== 'SETOP_NONE') || select.withClause || select.windowClause) return null;
  if (select.lockingClause?.length || select.groupDistinct || select.limitOption === 'LIMIT_OPTION_WITH_TIES')
    return null;
  // DISTINCT ON, or a plain one, which is a list of nothing.
  if (select.distinctClause?.some((node) => Object.keys(node).length > 0)) return null;
  if (a.home || a.occurrences.some((o) => !o.top) || renames(select)) return null;
  if (!areTogether(topology, a.keyspaces())) return null;
  for (const table of a.referenceReads.values()) {
    const copies = topology.referenceTables.get(tableId(table))?.shards ?? [];
    if (shards.some((shard) => !copies.includes(shard))) return null;
  }
  let plain = (select.fromClause ?? []).every(isPlainFrom);
  walk([select], {
    any: (kind) => {
      if (kind === 'SubLink' || kind === 'GroupingSet') plain = false;
    },
    func: (call) => {
      if (call.over) plain = false;
    },
    column: ({ fields }) => {
      const [name, ...others] = strings(fields);
      if (others.length === 0 && name !== undefined && NAME_OF_OURS.test(name)) plain = false;
    },
  });
  return plain && areAlikeEverywhere(a, [select.fromClause, select.whereClause]) ? rootOf(a) : null;
}

/** Tables and joins of them, whose columns are told one by one. */
function isPlainFrom(item: Node): boolean {
  if ('RangeVar' in item) return true;
  if (!('JoinExpr' in item)) return false;
  const { isNatural, larg, rarg } = item.JoinExpr;
  return isNatural !== true && larg !== undefined && rarg !== undefined && isPlainFrom(larg) && isPlainFrom(rarg);
}

/** FROM and WHERE as they were sent. */
interface CoreText {
  readonly from: string;
  readonly where: string | null;
}

const CLAUSES = new ClauseWords([
  'from',
  'where',
  ...['group', 'having', 'window', 'order', 'limit', 'offset', 'fetch', 'for'],
]);

function coreText(select: SelectStmt, text: Buffer): CoreText | null {
  if (!isUtf8(text) || !lexer.scan(text, true)) return null;
  const { tokens } = lexer;
  const { found, end } = CLAUSES.in(text, tokens, 0);
  const startOf = ({ at }: (typeof found)[number]) => (tokens[at] as Token).start;
  const first = firstLocation(select.fromClause);
  const from = found.findLast((clause) => clause.word === 'from' && startOf(clause) < first);
  if (from === undefined) return null;
  const behind = found.filter((clause) => startOf(clause) > first);
  const where = behind.find(({ word }) => word === 'where');
  const next = behind.find(({ word }) => word !== 'where' && word !== 'from');
  // Up to the last token: a comment behind it would hide what is put there.
  const upTo = (begin: number, last: number) => text.toString('utf8', begin, tokens[last - 1]?.end ?? 0);
  const last = next?.at ?? end;
  return {
    from: upTo(startOf(from), where?.at ?? last),
    where: where === undefined ? null : upTo((tokens[where.at] as Token).end, last),
  };
}

function firstLocation(items: readonly Node[] | undefined): number {
  let first = Number.POSITIVE_INFINITY;
  walk(items, { rangeVar: ({ location }) => (first = Math.min(first, location ?? first)) });
  return first;
}

/** What is done ahead, and what is left to do. */
class Reducer {
  readonly #a: Analysis;
  readonly #select: SelectStmt;
  readonly #core: CoreText;
  /** By what they are. */
  readonly #parts = new Map<string, { readonly name: string; readonly part: Part }>();
  readonly #groups: { readonly id: string; readonly name: string; readonly text: string }[] = [];
  #columns = 0;
  #failed = false;

  constructor(a: Analysis, select: SelectStmt, core: CoreText) {
    this.#a = a;
    this.#select = select;
    this.#core = core;
  }

  reduction(of: OwnedBy): Reduction | null {
    const targets = this.#targets();
    if (targets === null) return null;
    const aggregated = this.#isAggregated(targets);
    if (aggregated && !this.#group(targets)) return null;
    const list = targets.map((target) => this.#outer(target, aggregated));
    const sort = this.#sort(targets, aggregated);
    const having = this.#select.havingClause ? this.#outer(this.#select.havingClause, aggregated) : '';
    const limit = this.#select.limitCount ? plainText(this.#select.limitCount) : '';
    const offset = this.#select.limitOffset ? plainText(this.#select.limitOffset) : '';
    if (this.#failed || sort === null || limit === null || offset === null || list.length === 0) return null;
    const distinct = this.#select.distinctClause ? 'DISTINCT ' : '';
    const columns = [...this.#groups, ...[...this.#parts.values()].flatMap(({ part }) => part.columns)].map(
      ({ text, name }) => `${text} AS ${quoteIdent(name)}`,
    );
    // A row for each row of the query, whatever it shows of it.
    if (columns.length === 0) return null;
    const ahead = aggregated ? this.#grouping() : this.#cut(targets, { limit, offset, distinct });
    const made = {
      of,
      partial: (own: string) =>
        `SELECT ${ahead.distinct}${columns.join(', ')} ${this.#core.from} WHERE (${own})${this.#core.where === null ? '' : ` AND (${this.#core.where})`}${ahead.behind}`,
      finish: (types: readonly number[]) => {
        const inner = this.#inner(types, aggregated);
        if (inner === null) return null;
        return `SELECT ${distinct}${list.join(', ')} FROM ${inner} AS r${having && ` WHERE ${having}`}${sort}${limit && ` LIMIT ${limit}`}${offset && ` OFFSET ${offset}`}`;
      },
    };
    const partial = made.partial(OWN);
    return !tellsTransaction(partial) && this.#readsAsMeant(partial) ? made : null;
  }

  /** What the query shows, with the columns that a star stands for. Null: these are not known. */
  #targets(): Node[] | null {
    const found: Node[] = [];
    for (const node of this.#select.targetList ?? []) {
      if (!('ResTarget' in node) || node.ResTarget.val === undefined) return null;
      const { val } = node.ResTarget;
      if (!('ColumnRef' in val) || !hasStar(val.ColumnRef)) {
        found.push(val);
        continue;
      }
      const starred = this.#starred(val.ColumnRef);
      if (starred === null) return null;
      found.push(...starred);
    }
    return found;
  }

  /** The columns of tables in FROM, if all of them are written one by one, without USING. */
  #starred(ref: ColumnRef): Node[] | null {
    const of = strings(ref.fields).at(-2);
    const { metadata, searchPath } = this.#a.context;
    const found: Node[] = [];
    let known = true;
    walk(this.#select.fromClause, {
      any: (kind, value) => {
        const { usingClause, isNatural } = value as { usingClause?: unknown[]; isNatural?: boolean };
        if (kind === 'JoinExpr' && (usingClause?.length || isNatural)) known = false;
      },
      rangeVar: (node) => {
        const name = node.alias?.aliasname ?? node.relname ?? '';
        if (of !== undefined && of !== name) return;
        const relation = metadata.resolveRelation(node.schemaname ?? null, node.relname ?? '', searchPath);
        if (!relation?.columns?.length || node.alias?.colnames?.length) known = false;
        for (const column of relation?.columns ?? [])
          found.push({ ColumnRef: { fields: [{ String: { sval: name } }, { String: { sval: column } }] } });
      },
    });
    return known && found.length > 0 && (ref.fields?.length ?? 0) <= 2 ? found : null;
  }

  #isAggregated(targets: readonly Node[]): boolean {
    if (this.#select.groupClause || this.#select.havingClause) return true;
    let aggregated = false;
    walk([targets, this.#select.sortClause], {
      func: (call) => {
        if (this.#isAggregate(call)) aggregated = true;
      },
    });
    return aggregated;
  }

  #isAggregate(call: FuncCall): boolean {
    const { schema, name } = qualifiedName(call.funcname);
    return (schema === null || schema === 'pg_catalog') && (SELF_COMBINING.has(name) || ADDED_UP.has(name));
  }

  /** Takes note of what is grouped by. @returns false: not what shards can group by ahead */
  #group(targets: readonly Node[]): boolean {
    for (const node of this.#select.groupClause ?? []) {
      const expression = this.#named(node, targets, 'input');
      // A constant would be the place of what is shown.
      if (expression === null || 'A_Const' in expression || !this.#isAhead(expression)) return false;
      const text = plainText(expression);
      if (text === null) return false;
      const id = idOf(expression);
      if (!this.#groups.some((g) => g.id === id)) this.#groups.push({ id, text, name: this.#newName('k') });
    }
    return true;
  }

  /** An item of GROUP BY or ORDER BY: an expression, or the place or the name of what is shown. Null: it cannot be told. */
  #named(node: Node, targets: readonly Node[], first: 'input' | 'output'): Node | null {
    if ('A_Const' in node) return targets[(node.A_Const.ival?.ival ?? 0) - 1] ?? null;
    if (!('ColumnRef' in node) || node.ColumnRef.fields?.length !== 1) return node;
    const name = strings(node.ColumnRef.fields)[0] as string;
    const starred = (this.#select.targetList ?? []).some(
      (t) =>
        'ResTarget' in t && t.ResTarget.val && 'ColumnRef' in t.ResTarget.val && hasStar(t.ResTarget.val.ColumnRef),
    );
    const names = (this.#select.targetList ?? []).map((t) =>
      'ResTarget' in t ? (t.ResTarget.name ?? outputName(t.ResTarget.val)) : null,
    );
    if (names.includes(null)) return null;
    const outputs = names.flatMap((shown, i) => (shown === name ? [i] : []));
    // Which name comes first depends on what columns there are: told only where both are the same.
    if (outputs.length === 0) return node;
    if (starred || outputs.length > 1) return null;
    const shown = targets[outputs[0] as number] as Node;
    const same = 'ColumnRef' in shown && strings(shown.ColumnRef.fields).at(-1) === name;
    return same || first === 'output' || !this.#mayBeColumn(name) ? shown : null;
  }

  /** Whether some table in FROM may have a column of this name. */
  #mayBeColumn(name: string): boolean {
    const { metadata, searchPath } = this.#a.context;
    let may = false;
    walk(this.#select.fromClause, {
      rangeVar: (node) => {
        const relation = metadata.resolveRelation(node.schemaname ?? null, node.relname ?? '', searchPath);
        if (!relation?.columns?.length || columnsAs(node, relation).includes(name)) may = true;
      },
    });
    return may;
  }

  #newName(prefix: string): string {
    this.#columns += 1;
    return `${prefix}${this.#columns}`;
  }

  #isAhead(expression: Node): boolean {
    return areAlikeEverywhere(this.#a, [expression]);
  }

  /** An expression in terms of the parts. */
  #outer(expression: Node, aggregated: boolean): string {
    const text = plainText(this.#replaced(expression, aggregated));
    if (text === null) this.#failed = true;
    return text ?? '';
  }

  #replaced(node: Node, aggregated: boolean): Node {
    const replace = (tree: unknown): unknown => {
      if (Array.isArray(tree)) return tree.map(replace);
      if (typeof tree !== 'object' || tree === null) return tree;
      const found = this.#partOf(tree as Node, aggregated);
      // With the table's name: by itself, it might be taken for one of what is shown.
      if (found !== null) return { ColumnRef: { fields: [{ String: { sval: 'r' } }, { String: { sval: found } }] } };
      return Object.fromEntries(Object.entries(tree).map(([key, value]) => [key, replace(value)]));
    };
    return replace(node) as Node;
  }

  /** The name of the part that stands for a node; null: it stands for itself. */
  #partOf(node: Node, aggregated: boolean): string | null {
    const group = aggregated ? this.#groups.find((g) => g.id === idOf(node)) : undefined;
    if (group !== undefined) return group.name;
    if ('FuncCall' in node && aggregated) {
      if (this.#isAggregate(node.FuncCall)) return this.#aggregate(node.FuncCall);
      const { schema, name } = qualifiedName(node.FuncCall.funcname);
      const { metadata, searchPath } = this.#a.context;
      // It is about rows, which are not there any more.
      if (classifyFunction(schema, name, searchPath, metadata).kind === 'aggregate') this.#failed = true;
    }
    if (!('ColumnRef' in node)) return null;
    // Of a group of rows, a column is only what it is grouped by; what follows from a primary key is not looked at.
    if (aggregated || hasStar(node.ColumnRef)) this.#failed = true;
    const text = plainText(node);
    if (text === null) this.#failed = true;
    return this.#part(idOf(node), (name) => ({
      columns: [{ name, text: text ?? '' }],
      combine: () => quoteIdent(name),
    }));
  }

  #part(id: string, make: (name: string) => Part): string {
    const known = this.#parts.get(id);
    if (known !== undefined) return known.name;
    const name = this.#newName('p');
    this.#parts.set(id, { name, part: make(name) });
    return name;
  }

  #aggregate(call: FuncCall): string {
    const { name: fn } = qualifiedName(call.funcname);
    const { agg_filter, agg_order, agg_distinct, agg_within_group, func_variadic, args = [] } = call;
    const argument = call.agg_star ? '*' : args.length === 1 ? plainText(args[0] as Node) : null;
    const filter = agg_filter ? plainText(agg_filter) : '';
    const odd = agg_order || agg_distinct || agg_within_group || func_variadic;
    if (odd || argument === null || filter === null || !areAlikeEverywhere(this.#a, [args, agg_filter])) {
      this.#failed = true;
      return '';
    }
    const of = (aggregate: string) => `pg_catalog.${aggregate}(${argument})${filter && ` FILTER (WHERE ${filter})`}`;
    return this.#part(idOf({ FuncCall: call }), (name) => {
      const p = quoteIdent(name);
      if (fn === 'count')
        return {
          columns: [{ name, text: of('count') }],
          combine: () => `CAST(coalesce(pg_catalog.sum(${p}), 0) AS int8)`,
        };
      if (fn === 'sum')
        return {
          columns: [{ name, text: of('sum') }],
          combine: (types) => sumOf(p, types.get(name)),
        };
      if (fn === 'avg') {
        const counted = `${name}n`;
        return {
          columns: [
            { name, text: of('sum') },
            { name: counted, text: of('count') },
          ],
          combine: (types) =>
            sumOf(p, types.get(name)) && `(pg_catalog.sum(${p}) / nullif(pg_catalog.sum(${quoteIdent(counted)}), 0))`,
        };
      }
      return { columns: [{ name, text: of(fn) }], combine: () => `pg_catalog.${fn}(${p})` };
    });
  }

  /** ORDER BY, in terms of the parts. */
  #sort(targets: readonly Node[], aggregated: boolean): string | null {
    const items = (this.#select.sortClause ?? []).map((item) =>
      this.#sortItem(item, targets, (e) => this.#outer(e, aggregated)),
    );
    return items.includes(null) ? null : items.length === 0 ? '' : ` ORDER BY ${items.join(', ')}`;
  }

  #sortItem(item: Node, targets: readonly Node[], put: (expression: Node) => string | null): string | null {
    if (!('SortBy' in item) || item.SortBy.node === undefined || item.SortBy.useOp?.length) return null;
    const { node, sortby_dir: dir, sortby_nulls: nulls } = item.SortBy;
    const expression = this.#named(node, targets, 'output');
    const text = expression === null || 'A_Const' in expression ? null : put(expression);
    if (!text) return null;
    return `${text}${dir === 'SORTBY_DESC' ? ' DESC' : ''}${nulls === 'SORTBY_NULLS_FIRST' ? ' NULLS FIRST' : nulls === 'SORTBY_NULLS_LAST' ? ' NULLS LAST' : ''}`;
  }

  /** Groups on the shards. */
  #grouping(): { readonly distinct: string; readonly behind: string } {
    const by = this.#groups.map((g) => g.text).join(', ');
    return { distinct: '', behind: by && ` GROUP BY ${by}` };
  }

  /** What a shard leaves out of its rows: copies of those that it has shown, and what stands behind as many as the query shows. */
  #cut(
    targets: readonly Node[],
    { limit, offset, distinct }: { readonly limit: string; readonly offset: string; readonly distinct: string },
  ): { readonly distinct: string; readonly behind: string } {
    const { limitCount, limitOffset } = this.#select;
    const columnsOnly = targets.every((t) => 'ColumnRef' in t);
    const sort = (this.#select.sortClause ?? []).map((item) =>
      this.#sortItem(item, targets, (e) =>
        this.#isAhead(e) && (columnsOnly || !distinct || 'ColumnRef' in e) ? plainText(e) : null,
      ),
    );
    // What is shown must be a row for each row.
    const cuts =
      limit !== '' &&
      !sort.includes(null) &&
      (!distinct || columnsOnly) &&
      [...targets, limitCount, limitOffset].every((e) => e === undefined || this.#isAhead(e));
    const by = sort.length > 0 ? ` ORDER BY ${sort.join(', ')}` : '';
    // NULL, and what is too large, is no limit. Each is rounded by itself.
    const skipped = offset && ` + greatest(coalesce(CAST(CAST(${offset} AS int8) AS numeric), 0), 0)`;
    const behind = `${by} LIMIT CAST(least(CAST(CAST(${limit} AS int8) AS numeric)${skipped}, ${MOST_ROWS}) AS int8)`;
    return { distinct: columnsOnly ? distinct : '', behind: cuts ? behind : '' };
  }

  /** The parts of all shards, put together. */
  #inner(types: readonly number[], aggregated: boolean): string | null {
    const from = `pg_temp.${quoteIdent(PARTS)}`;
    if (!aggregated) return from;
    const names = [...this.#groups, ...[...this.#parts.values()].flatMap(({ part }) => part.columns)].map(
      (c) => c.name,
    );
    const typeOf = new Map(names.map((name, i) => [name, types[i] as number]));
    const keys = this.#groups.map((g) => quoteIdent(g.name));
    const combined = [...this.#parts.values()].map(({ name, part }) => {
      const text = part.combine(typeOf);
      return text && `${text} AS ${quoteIdent(name)}`;
    });
    if (combined.includes(null)) return null;
    return `(SELECT ${[...keys, ...combined].join(', ')} FROM ${from}${keys.length > 0 ? ` GROUP BY ${keys.join(', ')}` : ''})`;
  }

  /** Whether PostgreSQL reads FROM and WHERE of the partial as those of the query. */
  #readsAsMeant(partial: string): boolean {
    const read = parse(Buffer.from(partial))?.statements;
    const node = read?.length === 1 ? read[0]?.node : undefined;
    if (!node || !('SelectStmt' in node)) return false;
    const { fromClause, whereClause } = node.SelectStmt;
    const parts =
      this.#core.where !== null && whereClause && 'BoolExpr' in whereClause ? whereClause.BoolExpr.args : [whereClause];
    const [own, rest, ...others] = parts ?? [];
    return (
      others.length === 0 &&
      own !== undefined &&
      'ColumnRef' in own &&
      strings(own.ColumnRef.fields).join() === OWN &&
      idOf(rest) === idOf(this.#select.whereClause) &&
      idOf(fromClause) === idOf(this.#select.fromClause)
    );
  }
}

function sumOf(p: string, type: number | undefined): string | null {
  if (type === INT8) return `CAST(pg_catalog.sum(${p}) AS int8)`;
  return type === NUMERIC ? `pg_catalog.sum(${p})` : null;
}

/** The expression as it is. */
function plainText(expression: Node): string | null {
  return expressionText(expression, (ref) => strings(ref.fields));
}

function idOf(tree: unknown): string {
  return canonical(bare(tree ?? null, () => null));
}

/** The name that PostgreSQL gives to what is shown (FigureColname in parse_target.c); one that is no column's where it gives none. Null: not known. */
function outputName(value: Node | undefined): string | null {
  return figured(value)?.name ?? null;
}

const NAMELESS = { name: '?column?', strength: 0 };

/** A name of strength 1 gives way to one within. */
function figured(node: Node | undefined): { readonly name: string; readonly strength: number } | null {
  if (node === undefined) return null;
  const of = (name: string | undefined) => (name === undefined ? null : { name, strength: 2 });
  if ('ColumnRef' in node) return hasStar(node.ColumnRef) ? NAMELESS : of(strings(node.ColumnRef.fields).at(-1));
  if ('FuncCall' in node) return of(strings(node.FuncCall.funcname).at(-1));
  if ('CollateClause' in node) return figured(node.CollateClause.arg);
  if ('CoalesceExpr' in node) return of('coalesce');
  if ('MinMaxExpr' in node) return of(node.MinMaxExpr.op === 'IS_LEAST' ? 'least' : 'greatest');
  if ('A_ArrayExpr' in node) return of('array');
  if ('A_Expr' in node) return node.A_Expr.kind === 'AEXPR_NULLIF' ? of('nullif') : NAMELESS;
  if ('TypeCast' in node) {
    const inner = figured(node.TypeCast.arg);
    const type = strings(node.TypeCast.typeName?.names).at(-1);
    return inner === null || inner.strength > 1 ? inner : type === undefined ? null : { name: type, strength: 1 };
  }
  if ('CaseExpr' in node) {
    const inner = node.CaseExpr.defresult === undefined ? NAMELESS : figured(node.CaseExpr.defresult);
    return inner === null || inner.strength > 1 ? inner : { name: 'case', strength: 1 };
  }
  return ['A_Const', 'ParamRef', 'BoolExpr', 'NullTest', 'BooleanTest'].some((kind) => kind in node) ? NAMELESS : null;
}
