import { ConflictError } from '../topology/errors.js';
import type { NamedByPoints } from './crash-points.js';
import type { CleanupSpec } from './migration-row.js';

/** The two shards of a move. */
export type Side = 'source' | 'destination';

/** One of the shards of a migration that has to do with several alike. */
export interface AtSite {
  readonly shard: string;
}

/**
 * One thing a step does to the outside world, as data: the real executor does it, the dry run prints it. `name` also names its
 * crash points (`recorded:name`, `after:name`, `within:name`).
 */
export interface Action {
  readonly name: NamedByPoints | ShownOnly;
  readonly on: Side | AtSite;
  /** What it does, for people. */
  readonly text: string;
  readonly sql: readonly string[];
  /** Committed to the catalog before the SQL runs. */
  readonly cleanup?: readonly CleanupSpec[];
  /** A query giving one boolean column `present`: when true, it was done before and is left alone. */
  readonly present?: string;
  /**
   * `single`: each statement by itself (some may not run in a transaction). `transaction`: all or none.
   * `locking`: all or none, with a short lock_timeout, tried again until it works, because it locks tables in use.
   */
  readonly mode: 'single' | 'transaction' | 'locking';
}

/** What the dry run alone has in this form. */
type ShownOnly = 'fill-halves' | 'fence' | 'flush-progress' | 'carry-sequences' | 'drop' | 'remove-rows';

/** One statement of a transaction of the catalog. */
export interface CatalogStatement {
  readonly text: string;
  readonly sql: string;
  readonly values: readonly unknown[];
  /** What it means when it changes no row; null when that is fine. */
  readonly elseConflict: string | null;
  /** `epoch`: then the ranges are to be read again, and nothing else is wrong. `turn`: others are to go first. */
  readonly conflict?: 'epoch' | 'turn';
}

/** A statement of the catalog's transaction changed no row: nothing of it has happened. */
export class StatementConflict extends ConflictError {
  readonly conflict: CatalogStatement['conflict'];

  constructor({ elseConflict, conflict }: CatalogStatement) {
    super(elseConflict ?? '');
    this.conflict = conflict;
  }
}
