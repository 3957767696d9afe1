import type { CatalogClient } from '../topology/catalog/change.js';
import type { MigrationProgress, MigrationState } from '../topology/migration.js';
import type { MigrationControls } from '../topology/migration-controls.js';
import type { Action, CatalogStatement } from './action.js';
import type { CrashPoint, NamedByPoints } from './crash-points.js';
import type { Executor, WaitOptions } from './executor.js';
import type { CleanupRecord, CleanupSpec, Facts, MigrationRow, Requested } from './migration-row.js';
import type { StateChange } from './migration-store.js';
import { isReference, type Move } from './move.js';
import { backNames } from './names.js';

/**
 * The same interval on its way back: the shards have changed places, and what replicates has a name of its own. Reference tables stay:
 * each of their copies is written by the proxies.
 */
export function turned(m: Move): Move {
  return {
    ...m,
    exec: new TurnedExecutor(m.exec),
    spec: { ...m.spec, from: m.spec.to, to: m.spec.from },
    names: backNames(m.names),
    tables: m.tables.filter((t) => !isReference(t)),
    source: m.destination,
    destination: m.source,
    snapshot: null,
  };
}

/** Another's executor, for which the shards have changed places, and with names of their own for actions and crash points. */
class TurnedExecutor implements Executor {
  readonly dry: boolean;
  readonly #exec: Executor;

  constructor(exec: Executor) {
    this.#exec = exec;
    this.dry = exec.dry;
  }

  get controls(): MigrationControls {
    return this.#exec.controls;
  }

  get now(): Date {
    return this.#exec.now;
  }

  requested(): Promise<Requested | null> {
    return this.#exec.requested();
  }

  perform(action: Action): Promise<void> {
    return this.#exec.perform({
      ...action,
      name: `back-${action.name}` as NamedByPoints,
      on: typeof action.on !== 'string' ? action.on : action.on === 'source' ? 'destination' : 'source',
    });
  }

  record(cleanup: CleanupSpec): Promise<void> {
    return this.#exec.record(cleanup);
  }

  openCleanup(kind?: CleanupRecord['kind']): Promise<CleanupRecord[]> {
    return this.#exec.openCleanup(kind);
  }

  markCleanupDone(record: CleanupRecord): Promise<void> {
    return this.#exec.markCleanupDone(record);
  }

  wait(text: string, done: () => Promise<boolean>, options?: WaitOptions): Promise<boolean> {
    return this.#exec.wait(text, done, options);
  }

  transition(row: MigrationRow, to: MigrationState, change?: StateChange): Promise<MigrationRow> {
    return this.#exec.transition(row, to, change);
  }

  noteFacts(row: MigrationRow, facts: Facts, detail?: Facts): Promise<MigrationRow> {
    return this.#exec.noteFacts(row, facts, detail);
  }

  inLease<T>(row: MigrationRow, work: (client: CatalogClient) => Promise<T>, over?: CatalogClient): Promise<T> {
    return this.#exec.inLease(row, work, over);
  }

  withdrawFlip(): Promise<void> {
    return this.#exec.withdrawFlip();
  }

  reload(): Promise<MigrationRow> {
    return this.#exec.reload();
  }

  commit(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
  ): Promise<MigrationRow> {
    return this.#exec.commit(row, statements, to, change);
  }

  flip(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
    over?: CatalogClient,
  ): Promise<MigrationRow> {
    return this.#exec.flip(row, statements, to, change, over);
  }

  announceFlip(over: CatalogClient): Promise<void> {
    return this.#exec.announceFlip(over);
  }

  foresee(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    over: CatalogClient,
  ): Promise<void> {
    return this.#exec.foresee(row, statements, to, over);
  }

  progress(progress: Partial<MigrationProgress>): Promise<void> {
    return this.#exec.progress(progress);
  }

  rest(): Promise<number> {
    return this.#exec.rest();
  }

  check(): void {
    this.#exec.check();
  }

  at(point: CrashPoint): void {
    this.#exec.at(`back-${point}` as CrashPoint);
  }
}
