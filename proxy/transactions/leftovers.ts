import type { CoordinatorId, Outcome, TransactionName } from '../../topology/prepared-transactions.js';
import type { ShardName } from '../../topology/topology.js';

/** A branch that may still be prepared. */
export interface LeftBranch {
  readonly shard: ShardName;
  readonly gid: string;
  /** The connection was lost while it was being prepared: it may still come to be, and is looked for until this time, on performance.now()'s clock. Null: it is there, or was ended by somebody. */
  readonly until: number | null;
}

/** A transaction that its coordinator could not end everywhere. */
export interface Leftover extends TransactionName {
  /** Null: whether it was decided is not known. */
  readonly outcome: Outcome | null;
  readonly branches: readonly LeftBranch[];
}

/** What this process has left behind. */
export class Leftovers {
  #all: Leftover[] = [];

  add(leftover: Leftover): void {
    this.#all.push(leftover);
  }

  get all(): readonly Leftover[] {
    return this.#all;
  }

  /** `now` is what has become of `before`; null: it has ended everywhere. */
  replace(before: Leftover, now: Leftover | null): void {
    this.#all = this.#all.flatMap((one) => (one !== before ? [one] : now === null ? [] : [now]));
  }

  /** Whether anything of it may still be somewhere. */
  has(coordinator: CoordinatorId): boolean {
    return this.#all.some((one) => one.coordinator === coordinator);
  }
}
