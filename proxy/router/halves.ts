import type { Node, RangeVar, UpdateStmt } from 'libpg-query';
import { type KeyspaceName, type ShardedTable, tableId } from '../../topology/topology.js';
import type { Analysis, Occurrence } from './analysis.js';
import { changedTable, qualifiedName, strings, tablesIn, targets, walk } from './ast.js';
import { SYSTEM_COLUMNS } from './fan-out.js';
import { classifyFunction } from './functions.js';
import { columnsAs, hasStar } from './gather.js';
import { lockText } from './halves-text.js';
import { type Names, namesIn } from './named-columns.js';
import { DELETE, UPDATE } from './reach.js';
import type { Halves, Refusal } from './route.js';

type Split = ShardedTable & Required<Pick<ShardedTable, 'split'>>;
type Apart = Halves['apart'];

/** What a statement has to do with tables whose columns are split. */
export interface HalvesFound {
  readonly halves: Halves;
  /** Where such tables stand of which it needs more than the base half. */
  readonly occurrences: readonly Occurrence[];
  /** Keyspaces of hot tables that something behind it may need, whichever rows. */
  readonly behind: readonly KeyspaceName[];
}

/**
 * Whether a statement needs more than the base half of a table whose columns are split, and what is to be done then while its halves are on different shards.
 * Null: a base half is enough. Pure, and by names: where it is not sure that a name is none of a hot column, it is one.
 */
export function halvesOf(a: Analysis, statement: Node): HalvesFound | null {
  const split = a.occurrences.filter((o) => o.table.split !== undefined);
  const behind = [...a.halvesBehind.values()];
  if (split.length === 0 && behind.length === 0) return null;
  const names = namesIn(statement);
  const written = writtenTables(statement);
  const locks = locksOf(statement);
  const needed = split.filter(
    (o) =>
      o.node === undefined ||
      written.has(o.node) ||
      locks.length > 0 ||
      usesHot(names, o) ||
      usesSystemColumn(names, o),
  );
  const first = (needed[0]?.table ?? behind[0]) as Split | undefined;
  if (first === undefined) return null;
  const apart: Apart =
    behind.length > 0
      ? refused(
          `something that this statement sets off (a trigger, a policy, a foreign key's action) may reach "${behind[0]?.table}", whose hot columns are on another shard`,
        )
      : apartOf({ a, statement, names, split, needed, written, locks });
  return {
    halves: {
      table: { schema: first.schema, table: first.table },
      split: first.split,
      keyspace: keyspaceOfHot(a, first),
      base: first.keyspace,
      apart,
      ...(behind.length > 0 ? { behind: true as const } : {}),
    },
    occurrences: needed,
    behind: [...new Set(behind.map((table) => keyspaceOfHot(a, table as Split)))],
  };
}

/** The keyspace of a split table's hot table. */
export function keyspaceOfHot(a: Analysis, table: ShardedTable): KeyspaceName {
  const { split } = table as Split;
  const hot = a.context.registry.sharded(split.hot);
  if (hot === null) throw new RangeError(`the hot table "${tableId(split.hot)}" is not sharded`);
  return hot.keyspace;
}

/** What is said where halves are apart. */
function halvesRefusal(message: string, hint = HINT): Refusal {
  return { sqlstate: '0A000', message, hint };
}

const HINT =
  'The hot columns of the table are on another shard than its other columns: do it in two statements, or bring the hot half back.';

function refused(message: string, hint?: string): Apart {
  return { kind: 'refused', refusal: halvesRefusal(message, hint) };
}

interface Found {
  readonly a: Analysis;
  readonly statement: Node;
  readonly names: Names;
  /** All tables whose columns are split. */
  readonly split: readonly Occurrence[];
  /** Those of which it needs more than the base half. */
  readonly needed: readonly Occurrence[];
  readonly written: ReadonlySet<RangeVar>;
  readonly locks: readonly Lock[];
}

function apartOf(found: Found): Apart {
  const { a, statement, names, needed, locks } = found;
  if (needed.some((o) => usesSystemColumn(names, o)))
    return refused('a system column of a row whose halves are on different shards tells of one of them only');
  if ('SelectStmt' in statement && found.written.size === 0) {
    if (locks.length > 0) return lockApart(found);
    return isHotOnly(a, statement) ? { kind: 'hot' } : { kind: 'gather' };
  }
  return writeApart(found);
}

/** SELECT … FOR UPDATE and its like. */
function lockApart({ a, statement, names, split, locks }: Found): Apart {
  const [o] = split;
  const top = 'SelectStmt' in statement ? statement.SelectStmt : null;
  if (locks.some(({ waits }) => !waits))
    return refused(
      'NOWAIT and SKIP LOCKED are not supported for rows whose halves are on different shards',
      'Leave it out, or bring the hot half back.',
    );
  const direct = o?.node !== undefined && tablesIn(top?.fromClause).includes(o.node);
  if (split.length !== 1 || o === undefined || !direct || locks.some(({ select }) => select !== top))
    return refused(
      'FOR UPDATE or FOR SHARE in such a query is not supported for rows whose halves are on different shards',
    );
  return bringing(a, statement, { kind: 'write', brings: usesHot(names, o), locks: true, assigned: [] });
}

function writeApart({ a, statement, names, needed, written }: Found): Apart {
  const target = changedTable(statement);
  const [o, ...others] = needed;
  if (o?.node === undefined || target !== o.node || others.length > 0 || written.size > 1)
    return refused(
      'a statement that changes rows by hot columns of other rows is not supported while those are on another shard',
    );
  const { split } = o.table as Split;
  if (hasKind(statement, 'CurrentOfExpr'))
    return refused('WHERE CURRENT OF is not supported for rows whose halves are on different shards');
  if ('MergeStmt' in statement)
    return refused(
      'MERGE is not supported for rows whose halves are on different shards',
      'Use INSERT … ON CONFLICT, UPDATE or DELETE.',
    );
  const insert = 'InsertStmt' in statement ? statement.InsertStmt : null;
  const update = 'UpdateStmt' in statement ? statement.UpdateStmt : null;
  const conflict = insert?.onConflictClause?.action === 'ONCONFLICT_UPDATE' ? insert.onConflictClause : null;
  const set = targets(update?.targetList ?? conflict?.targetList);
  if (set.some(({ name }) => split.primaryKey.includes(name ?? '')))
    return refused(
      `changing the primary key of a row of "${o.table.table}" is not supported while its halves are on different shards`,
      'Delete the row and insert it anew.',
    );
  // A trigger of the table's own sees the row that was there, may give it other values, and belongs to the base half.
  const triggered = [...(o.relation?.firesAt?.values() ?? [])].some((events) => (events & (DELETE | UPDATE)) !== 0);
  const assigned = split.columns.filter((column) => triggered || set.some(({ name }) => name === column));
  // Of a column that gets a value in parts, the others are read.
  const inParts = set.some(({ name, indirection }) => indirection !== undefined && assigned.includes(name ?? ''));
  // Where it is carried out, a check may be over those that get values and others.
  const inPart = inParts || (assigned.length > 0 && assigned.length < split.columns.length);
  if ((insert === null || conflict !== null) && !isAlone(a) && usesHot(namesIn(finding(statement)), o))
    return refused(
      'a statement that chooses the rows that it changes by hot columns, and uses other tables too, is not supported while those columns are on another shard',
      'Find the rows by a SELECT … FOR UPDATE before, and change them by their primary key.',
    );
  if (insert !== null) {
    // The rows of VALUES are none that are there.
    const reads =
      conflict !== null &&
      usesHot(namesIn({ ...conflict, relation: insert.relation, returningClause: insert.returningClause }), o);
    return bringing(a, statement, {
      kind: 'write',
      brings: reads || inPart || (conflict !== null && triggered),
      locks: false,
      assigned,
    });
  }
  if (update !== null && !triggered && isHotOnly(a, statement)) return { kind: 'hot' };
  const brings = usesHot(names, o) || inPart || triggered;
  return bringing(a, statement, { kind: 'write', brings, locks: false, assigned });
}

/** If which rows it reads can be said before it. */
function bringing(a: Analysis, statement: Node, write: Extract<Apart, { kind: 'write' }>): Apart {
  if ((write.brings || write.locks) && lockText(a, statement) === null)
    return refused(
      'which rows this statement reads the hot columns of cannot be said before it runs, while those are on another shard',
    );
  return write;
}

/** Whether some name may be that of a hot column of the table that stands there. */
function usesHot(names: Names, { node, relation, table }: Occurrence): boolean {
  const { split } = table as Split;
  if (!node || !relation?.columns?.length || names.all || names.starred.has(node)) return true;
  const rows = rowNames(names, node);
  const shown = columnsAs(node, relation);
  const hot = new Set(shown.filter((_, i) => split.columns.includes(relation.columns?.[i] ?? '')));
  if (rows.some((row) => names.whole.has(row))) return true;
  for (const [of, columns] of names.columns)
    for (const column of columns) {
      // The whole row, as a value.
      if (rows.includes(column)) return true;
      if (of === '') {
        if (hot.has(column)) return true;
        // `row.f` may be f(row).
      } else if (rows.includes(of) && (hot.has(column) || !shown.includes(column))) return true;
    }
  return false;
}

function usesSystemColumn(names: Names, { node }: Occurrence): boolean {
  for (const of of ['', ...(node ? rowNames(names, node) : [])])
    for (const column of names.columns.get(of) ?? []) if (SYSTEM_COLUMNS.has(column)) return true;
  return false;
}

/** What a row of the table that stands there is called. */
function rowNames({ returned }: Names, node: RangeVar): readonly string[] {
  return [node.alias?.aliasname ?? node.relname ?? '', ...(returned.get(node) ?? [])];
}

/** What stands in FROM by itself: functions, sub-queries and much else say something of other rows. */
const PLAIN_PARTS = new Set(
  `SelectStmt UpdateStmt ResTarget ColumnRef A_Const ParamRef A_Expr BoolExpr NullTest BooleanTest FuncCall TypeCast CaseExpr CaseWhen CoalesceExpr
  MinMaxExpr A_ArrayExpr A_Indirection A_Indices RowExpr List String Integer Float Boolean BitString RangeVar SortBy WindowDef GroupingSet GroupingFunc
  CollateClause SQLValueFunction NamedArgExpr TypeName MultiAssignRef`.split(/\s+/),
);
/** Functions of these kinds are the same wherever they run, and leave nothing there. */
const ANYWHERE = new Set(['immutable', 'stable', 'aggregate']);

/** Whether it uses one table only, once. */
function isAlone({ occurrences, home, referenceReads, referenceWrites }: Analysis): boolean {
  return occurrences.length === 1 && !home && referenceReads.size + referenceWrites.size === 0;
}

/**
 * The parts by which a statement finds the rows that it changes. A row that has come since those were locked whose hot columns it reads is found out when
 * it is changed; one that is left because of them is not, which is right for what was true before it came, but not beside what other tables have since.
 */
function finding(statement: Node): object {
  if ('InsertStmt' in statement) return { where: statement.InsertStmt.onConflictClause?.whereClause };
  const { fromClause, whereClause, withClause } = { ...Object.values(statement)[0] } as UpdateStmt;
  const usingClause = 'DeleteStmt' in statement ? statement.DeleteStmt.usingClause : undefined;
  return { fromClause, usingClause, whereClause, withClause };
}

/** Whether the hot table alone can answer it: a query, or an UPDATE, of one table, of which it names only columns that the hot table has. */
function isHotOnly(a: Analysis, statement: Node): boolean {
  const [o] = a.occurrences;
  if (!isAlone(a)) return false;
  if (a.sequence || a.asksSequences || a.pin !== null || a.setConfigCalls.length > 0) return false;
  const node = o?.node;
  const relation = o?.relation;
  if (!node || !relation?.columns?.length || node.inh !== true || node.catalogname || node.alias?.colnames)
    return false;
  const select = 'SelectStmt' in statement ? statement.SelectStmt : null;
  const update = 'UpdateStmt' in statement ? statement.UpdateStmt : null;
  const only = update === null ? select?.fromClause?.length === 1 : !update.fromClause?.length;
  if (!only || (select !== null && !tablesIn(select.fromClause).includes(node))) return false;
  const { split } = o.table as Split;
  const own = new Set([...split.columns, ...split.primaryKey]);
  if (update !== null && targets(update.targetList).some(({ name }) => !split.columns.includes(name ?? '')))
    return false;
  const as = node.alias?.aliasname ?? node.relname ?? '';
  // What it calls its results may be what it sorts and groups by.
  const results = new Set(targets(select?.targetList).flatMap(({ name }) => (name === undefined ? [] : [name])));
  for (const column of [as, ...relation.columns]) results.delete(column);
  const { metadata, searchPath } = a.context;
  let is = true;
  walk(statement, {
    any: (kind) => {
      if (!PLAIN_PARTS.has(kind)) is = false;
    },
    func: (call) => {
      const { schema, name } = qualifiedName(call.funcname);
      if (!ANYWHERE.has(classifyFunction(schema, name, searchPath, metadata).kind)) is = false;
    },
    column: (ref) => {
      const path = strings(ref.fields);
      const column = path.at(-1) ?? '';
      if (hasStar(ref) || path.length > 2 || (path.length === 2 && path[0] !== as)) is = false;
      else if (column === as || !(own.has(column) || (path.length === 1 && results.has(column)))) is = false;
    },
  });
  return is;
}

/** All tables that it changes, also in WITH. */
function writtenTables(statement: Node): ReadonlySet<RangeVar> {
  const written = new Set<RangeVar>();
  walk(statement, {
    any: (kind, value) => {
      const target = changedTable({ [kind]: value } as unknown as Node);
      if (target !== undefined) written.add(target);
    },
  });
  return written;
}

interface Lock {
  /** Of which query it is. */
  readonly select: object;
  readonly waits: boolean;
}

function locksOf(statement: unknown): Lock[] {
  const locks: Lock[] = [];
  const visit = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    if ('lockingClause' in value)
      for (const clause of value.lockingClause as Node[])
        locks.push({
          select: value,
          waits: 'LockingClause' in clause && clause.LockingClause.waitPolicy === 'LockWaitBlock',
        });
    for (const inner of Object.values(value)) visit(inner);
  };
  visit(statement);
  return locks;
}

function hasKind(statement: Node, wanted: string): boolean {
  let found = false;
  walk(statement, {
    any: (kind) => {
      if (kind === wanted) found = true;
    },
  });
  return found;
}
