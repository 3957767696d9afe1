import { isUtf8 } from 'node:buffer';
import type { Node, RangeVar, SelectStmt } from 'libpg-query';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import type { TableName } from '../../topology/topology.js';
import { Analysis, type Context, type Occurrence } from './analysis.js';
import { changedTable, targets } from './ast.js';
import { expressionText } from './expression-text.js';
import { areAlikeEverywhere } from './fan-out.js';
import { columnsOf, filterOf, fromOf, rowColumn } from './gather-halves.js';
import { filtersOf } from './gather-program.js';
import { Lexer, type Token } from './lexer.js';
import { analyzeStatement } from './modify.js';
import { parse } from './parse.js';
import { editedText, isAsParsed, type RenamedText, type Renaming, renamedText } from './renamed-text.js';
import type { Halves } from './route.js';
import type { Edit } from './text-edits.js';

const lexer = new Lexer();

/** Where a statement's text has the name of its table, and what stands there for the hot table. It is the same for all texts of a template. */
export interface HotName {
  /** Its first and its last token, counted among those that the template has. */
  readonly first: number;
  readonly last: number;
  readonly put: string;
}

/**
 * The text with the hot table's name in place of the table's, in one of its statements. Pure. Null: its name is written in a way that is not known here.
 * @param parsed the text as PostgreSQL reads it with standard_conforming_strings on or off: as sent
 * @returns with `name` for {@link withHotName}; null where it has not been seen that the text means the same with it
 */
export function hotText(
  text: Buffer,
  parsed: Buffer,
  index: number,
  conforming: boolean,
  { table, split }: Halves,
  context: Omit<Context, 'literals'>,
): { readonly made: RenamedText; readonly name: HotName | null } | null {
  const read = analyzed(parsed, index, context);
  const node = read?.a.occurrences.find((o) => isOf(o, table))?.node;
  if (!read || !node || node.location === undefined || !lexer.scan(text, true, conforming)) return null;
  const first = templateTokens().findIndex((token) => token.start === node.location);
  const as = node.alias ? '' : ` AS ${quoteIdent(node.relname ?? '')}`;
  const name = { first, last: first + (node.schemaname === undefined ? 0 : 2), put: `${quoteTable(split.hot)}${as}` };
  const edits = editsOf(name);
  if (first < 0 || edits === null) return null;
  const original = { text, parsed, index, statement: read.statement };
  const made = renamedText(original, edits, inPlaceOf(node, split.hot));
  return made && { made, name: isAsParsed(original) ? name : null };
}

/** The same of another text of the template, which is not parsed for it. */
export function withHotName(text: Buffer, conforming: boolean, name: HotName): RenamedText | null {
  const edits = lexer.scan(text, true, conforming) ? editsOf(name) : null;
  return edits && editedText(text, edits);
}

/** In the text of the lexer's last scan. */
function editsOf({ first, last, put }: HotName): Edit[] | null {
  const tokens = templateTokens();
  const [start, end] = [tokens[first], tokens[last]];
  return start && end ? [{ start: start.start, end: end.end, put }] : null;
}

/** Tokens of the lexer's last scan, without those of lists' items that the template does not have. */
function templateTokens(): readonly Token[] {
  const { tokens, runs } = lexer;
  if (runs.length === 0) return tokens;
  return tokens.filter(({ start }) => !runs.some((run) => start >= run.start && start < run.end));
}

/**
 * A query for the primary keys of all rows, on the base half's shard, of which a statement may read hot columns, or which it locks; it locks them, and may
 * have parameters of the statement. Pure. Null: these rows cannot be told before it runs.
 * @param parsed as for {@link hotText}
 */
export function lockBaseText(
  text: Buffer,
  parsed: Buffer,
  index: number,
  conforming: boolean,
  context: Omit<Context, 'literals'>,
): string | null {
  // The parser has not seen what is in strings with backslashes.
  if (!conforming || !isUtf8(text)) return null;
  const read = analyzed(parsed, index, context);
  return read && lockText(read.a, read.statement);
}

/** The same of a statement that has been read. */
export function lockText(a: Analysis, statement: Node): string | null {
  const o = a.occurrences.find(({ node, table }) => table.split !== undefined && node === lockedTable(a, statement));
  const split = o?.table.split;
  if (o?.node === undefined || split === undefined || !o.relation?.columns?.length) return null;
  const { node } = o;
  const condition =
    'InsertStmt' in statement ? conflictingRows(a, statement, o) : conditionOf(a, statement, node, split.columns);
  if (condition === null) return null;
  return `SELECT ${columnsOf(split.primaryKey)} FROM ${fromOf(o.table)}${condition === '' ? '' : ` WHERE ${condition}`} FOR UPDATE`;
}

/** The table whose rows a statement changes or locks. */
function lockedTable(a: Analysis, statement: Node): RangeVar | undefined {
  return changedTable(statement) ?? a.occurrences.find(({ table, top }) => top && table.split !== undefined)?.node;
}

/** What is true of all rows of the table that it can use, by columns of the base half; empty: nothing is known. */
function conditionOf(a: Analysis, statement: Node, node: RangeVar, hot: readonly string[]): string {
  let query: SelectStmt = {};
  if ('SelectStmt' in statement) query = statement.SelectStmt;
  else if ('UpdateStmt' in statement) {
    const { fromClause = [], whereClause } = statement.UpdateStmt;
    query = { fromClause: [{ RangeVar: node }, ...fromClause], ...(whereClause && { whereClause }) };
  } else if ('DeleteStmt' in statement) {
    const { usingClause = [], whereClause } = statement.DeleteStmt;
    query = { fromClause: [{ RangeVar: node }, ...usingClause], ...(whereClause && { whereClause }) };
  }
  // What the base half's shard has of hot columns does not count.
  const conditions = filtersOf(a, { SelectStmt: query }).get(node) ?? [];
  return filterOf([conditions], (column) => !hot.includes(column)) ?? '';
}

/** The rows that those of an INSERT … VALUES … ON CONFLICT (columns) may meet. */
function conflictingRows(a: Analysis, { InsertStmt: insert }: { InsertStmt: object }, o: Occurrence): string | null {
  const { cols, selectStmt, onConflictClause } = insert as Extract<Node, { InsertStmt: unknown }>['InsertStmt'];
  const { infer } = onConflictClause ?? {};
  const query = selectStmt && 'SelectStmt' in selectStmt ? selectStmt.SelectStmt : undefined;
  if (!infer?.indexElems?.length || infer.whereClause || infer.conname || !query?.valuesLists) return null;
  const unique = infer.indexElems.map((e) =>
    'IndexElem' in e && !e.IndexElem.expr && !e.IndexElem.collation && !e.IndexElem.opclass
      ? e.IndexElem.name
      : undefined,
  );
  const names = cols?.length
    ? targets(cols).map((c) => (c.indirection ? undefined : c.name))
    : (o.relation?.columns ?? []);
  const rows = query.valuesLists.map((row) => {
    const items = 'List' in row ? (row.List.items ?? []) : [];
    const parts = unique.map((column) => {
      const value = column === undefined ? undefined : items[names.indexOf(column)];
      if (column === undefined || value === undefined || !areAlikeEverywhere(a, [value])) return null;
      const text = expressionText(value, () => null);
      return text === null ? null : `${rowColumn(column)} = ${text}`;
    });
    return parts.includes(null) ? null : `(${parts.join(' AND ')})`;
  });
  return rows.includes(null) || rows.length === 0 ? null : `(${rows.join(' OR ')})`;
}

function analyzed(
  parsed: Buffer,
  index: number,
  context: Omit<Context, 'literals'>,
): { readonly a: Analysis; readonly statement: Node } | null {
  const read = parse(parsed);
  const statement = read?.statements[index]?.node;
  if (!read || !statement || read.garbledNames) return null;
  const a = new Analysis({ ...context, literals: read.literals }, analyzeStatement);
  const inner = 'ExplainStmt' in statement ? statement.ExplainStmt.query : statement;
  if (inner === undefined) return null;
  analyzeStatement(a, inner, null, null);
  return { a, statement };
}

function isOf({ table }: Occurrence, { schema, table: name }: Halves['table']): boolean {
  return table.schema === schema && table.table === name;
}

/** Another table in place of that one, which is called as before. */
function inPlaceOf(table: RangeVar, hot: TableName): Renaming {
  return {
    table: (node, original) => {
      if (original !== table) return;
      node.alias ??= { aliasname: table.relname ?? '' };
      node.schemaname = hot.schema;
      node.relname = hot.table;
    },
  };
}
