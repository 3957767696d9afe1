import type { KeyColumnSource } from './route.js';

/** A key column of one occurrence of a table in a statement. */
export type Variable = number;

/**
 * Which rows of each table occurrence can matter to a statement's result, as a graph.
 *
 * A fact "v is restricted to C" means: rows in which the column is not in C may be taken away without changing the result,
 * and where the column comes out of its query level, it is in C or null. An edge a → b means: if a is restricted to C, so
 * is b. A conjunct a = b of WHERE or of an inner join gives edges both ways. One in the ON of a left join gives only edges
 * that lead to the nullable side: unmatched rows of the other side stay in the result whatever the condition says.
 */
export class Pins {
  #count = 0;
  readonly #given = new Map<Variable, readonly KeyColumnSource[]>();
  readonly #edges = new Map<Variable, Set<Variable>>();

  variable(): Variable {
    return this.#count++;
  }

  /** Restricts `v` to these constants. The first restriction stays: any of several is a true one. */
  restrict(v: Variable, sources: readonly KeyColumnSource[]): void {
    if (!this.#given.has(v)) this.#given.set(v, sources);
  }

  flow(from: Variable, to: Variable): void {
    const set = this.#edges.get(from);
    if (set) set.add(to);
    else this.#edges.set(from, new Set([to]));
  }

  /** Every variable that is restricted, with its constants; what is given wins over what flows in. */
  solve(): Map<Variable, readonly KeyColumnSource[]> {
    const known = new Map(this.#given);
    for (const [start, sources] of this.#given)
      for (const v of this.reach(start)) if (!known.has(v)) known.set(v, sources);
    return known;
  }

  /** Everything that has surely the value of `start` wherever it matters, `start` included. */
  reach(start: Variable): Set<Variable> {
    const seen = new Set([start]);
    for (const v of seen) for (const next of this.#edges.get(v) ?? []) seen.add(next);
    return seen;
  }
}
