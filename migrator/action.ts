import type { CleanupSpec } from './migration-row.js';

/**
 * One thing a step does to the outside world, as data: the real executor does it, the dry run prints it. `name` also names its
 * crash points (`recorded:name`, `after:name`).
 */
export interface Action {
  readonly name: string;
  readonly on: 'source' | 'destination';
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

/** One statement of the flip's catalog transaction. */
export interface CatalogStatement {
  readonly text: string;
  readonly sql: string;
  readonly values: readonly unknown[];
  /** What it means when it changes no row; null when that is fine. */
  readonly elseConflict: string | null;
}
