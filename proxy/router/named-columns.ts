import type { ColumnRef, JoinExpr, Node, RangeVar, ReturningClause } from 'libpg-query';
import { strings, tablesIn, walk } from './ast.js';
import { hasStar } from './gather.js';

/** The columns that a statement, or a part of one, refers to, by their names alone. */
export interface Names {
  /** By what stands before them: nothing, or the name of something in FROM. */
  readonly columns: ReadonlyMap<string, ReadonlySet<string>>;
  /** Names before a star. */
  readonly whole: ReadonlySet<string>;
  /** There is a star with nothing before it. */
  readonly star: boolean;
  /** Tables that such a star among results is about. */
  readonly starred: ReadonlySet<RangeVar>;
  /** It may refer to any column of any table: by NATURAL, by the name of a join. */
  readonly all: boolean;
  /** What RETURNING calls the rows of a table before and after. */
  readonly returned: ReadonlyMap<RangeVar, readonly string[]>;
}

/** Whoever has a list of results, and what in FROM a star there is about. */
interface Level {
  readonly targetList?: readonly Node[];
  readonly returningClause?: ReturningClause;
  readonly relation?: RangeVar;
  readonly sourceRelation?: Node;
  readonly fromClause?: readonly Node[];
  readonly usingClause?: readonly Node[];
}

export function namesIn(part: unknown): Names {
  const columns = new Map<string, Set<string>>();
  const whole = new Set<string>();
  const starred = new Set<RangeVar>();
  const stars = new Set<ColumnRef>();
  let all = false;
  let star = false;
  const returned = new Map<RangeVar, readonly string[]>();
  const use = (of: string, column: string) => columns.set(of, (columns.get(of) ?? new Set()).add(column));
  const levels = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    const { targetList, returningClause, relation, sourceRelation, fromClause, usingClause } = value as Level;
    if (returningClause && relation) returned.set(relation, ['old', 'new', ...renamedIn(returningClause)]);
    const own = starsOf([targetList, returningClause?.exprs]);
    if (own.length > 0) {
      for (const star of own) stars.add(star);
      if (relation !== undefined) starred.add(relation);
      // USING of a join is a list of names.
      const items = [fromClause, usingClause, sourceRelation ? [sourceRelation] : []].flatMap((list) => list ?? []);
      for (const table of tablesIn(items)) starred.add(table);
    }
    for (const inner of Object.values(value)) levels(inner);
  };
  levels(part);
  walk(part, {
    any: (kind, value) => {
      if (kind !== 'JoinExpr') return;
      const { alias, isNatural, usingClause } = value as JoinExpr;
      // A join that has a name can be named as a whole, and have other names for its columns, by their places.
      if (isNatural || alias) all = true;
      for (const name of strings(usingClause)) use('', name);
    },
    column: (ref) => {
      const path = strings(ref.fields);
      const of = path.at(-2);
      if (!hasStar(ref)) use(of ?? '', path.at(-1) ?? '');
      else if (of !== undefined) whole.add(of);
      else {
        star = true;
        if (!stars.has(ref)) all = true;
      }
    },
  });
  return { columns, whole, star, starred, all, returned };
}

/** RETURNING WITH (OLD AS name, NEW AS name). */
function renamedIn({ options = [] }: ReturningClause): string[] {
  return options.flatMap((option) => ('ReturningOption' in option ? [option.ReturningOption.value ?? ''] : []));
}

/** Stars with nothing before them among results. */
function starsOf(lists: readonly unknown[]): ColumnRef[] {
  return lists.flat(2).flatMap((node) => {
    if (typeof node !== 'object' || node === null || !('ResTarget' in node)) return [];
    const { val } = (node as Extract<Node, { ResTarget: unknown }>).ResTarget;
    return val && 'ColumnRef' in val && val.ColumnRef.fields?.length === 1 && hasStar(val.ColumnRef)
      ? [val.ColumnRef]
      : [];
  });
}
