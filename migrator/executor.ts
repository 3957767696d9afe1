import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import type { Logger } from 'pino';
import { ANNOUNCE, ANNOUNCE_LATER } from '../topology/catalog/announce.js';
import type { CatalogClient } from '../topology/catalog/change.js';
import { timedQuery } from '../topology/catalog/timed-query.js';
import { ForeshardError } from '../topology/errors.js';
import type { MigrationProgress, MigrationState } from '../topology/migration.js';
import type { MigrationControls } from '../topology/migration-controls.js';
import { quoteIdent } from '../topology/quote.js';
import type { Action, CatalogStatement } from './action.js';
import { catalogMessage, conflictOf, withLiterals } from './catalog-message.js';
import { CRASH_POINTS, type CrashPoint, crashPoint } from './crash-points.js';
import { endHold } from './hold-end.js';
import type { MigrationLease } from './lease.js';
import {
  type CleanupRecord,
  type CleanupSpec,
  type Facts,
  fromRaw,
  type MigrationRow,
  PAST_FLIP,
  PAUSABLE,
  type RawRow,
  type Requested,
} from './migration-row.js';
import type { MigrationStore, StateChange } from './migration-store.js';
import type { ObjectNames } from './names.js';
import { assertPaceSql, STOPPED } from './pace.js';
import type { ShardSession } from './shard-session.js';

/** Somebody asked for an abort and it is still possible. */
export class AbortRequested extends Error {}

/** The migration cannot go on: it is undone, and this is why. */
export class MigrationFailure extends ForeshardError {
  constructor(message: string, hint?: string) {
    super('55000', message, hint === undefined ? {} : { hint });
  }
}

/** What steps do goes through here: `RealExecutor` does it, the dry run's prints it. */
export interface Executor {
  /** Nothing is done and nothing was made: a step must not look for what it has just made. */
  readonly dry: boolean;
  /** How people want it carried out, now. */
  readonly controls: MigrationControls;
  /** The time by the catalog's clock. */
  readonly now: Date;
  /** What is asked of a way back or a replica. */
  requested(): Promise<Requested | null>;
  perform(action: Action): Promise<void>;
  record(cleanup: CleanupSpec): Promise<void>;
  /** Clean-up records not yet ticked off, in the order they were made. */
  openCleanup(kind?: CleanupRecord['kind']): Promise<CleanupRecord[]>;
  markCleanupDone(record: CleanupRecord): Promise<void>;
  /** Polls until `done` gives true. @returns false when `deadlineMs` passed first */
  wait(text: string, done: () => Promise<boolean>, options?: WaitOptions): Promise<boolean>;
  transition(row: MigrationRow, to: MigrationState, change?: StateChange): Promise<MigrationRow>;
  /** @param detail of an event that tells of it; left out: none does */
  noteFacts(row: MigrationRow, facts: Facts, detail?: Facts): Promise<MigrationRow>;
  /** Work in one transaction of the catalog, done only while the migration is as `row` says, and ours. */
  inLease<T>(row: MigrationRow, work: (client: CatalogClient) => Promise<T>, over?: CatalogClient): Promise<T>;
  /** Nobody asks for the flip any more. */
  withdrawFlip(): Promise<void>;
  /** The migration as the catalog has it now. */
  reload(): Promise<MigrationRow>;
  /** Statements and the change of state in one transaction of the catalog. @throws StatementConflict */
  commit(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
  ): Promise<MigrationRow>;
  /**
   * The flip: the same, and it ends the hold, which must still stand. No proxy is told: see `announceFlip`.
   * @param over a connection that is at hand; default: one of the pool
   */
  flip(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
    over?: CatalogClient,
  ): Promise<MigrationRow>;
  /** Tells the proxies of the flip. Should that fail, they find out by themselves, within a second. */
  announceFlip(over: CatalogClient): Promise<void>;
  /** Has the catalog plan what such a flip does, over the connection that is to do it; nothing is carried out. */
  foresee(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    over: CatalogClient,
  ): Promise<void>;
  /** Says how far it is; written at most once a second. */
  progress(progress: Partial<MigrationProgress>): Promise<void>;
  /** Goes no further while the migration is paused, if it can be. @returns for how long it was, ms */
  rest(): Promise<number>;
  /** @throws when the lease is lost or an abort was asked for */
  check(): void;
  /** A place where a test may kill us. Also where an abort or a lost lease stops us. */
  at(point: CrashPoint): void;
}

export interface WaitOptions {
  readonly everyMs?: number;
  readonly deadlineMs?: number;
}

/** Nothing but the next step may stand behind these: clients wait. */
const HASTY: readonly MigrationState[] = ['fencing', 'flipped', 'flipped_back'];

/** Part of a flip. All proxies ask the catalog when they are told, and the processors are wanted for the flip's own answer. */
const ANNOUNCED_LATER: CatalogStatement = {
  text: 'proxies are told when the gate opens',
  sql: ANNOUNCE_LATER,
  values: [],
  elseConflict: null,
};

/** How often a paused migration looks whether it still is, ms. */
const PAUSED_MS = 100;

/** What `RealExecutor` acts on. */
export interface ShardsAtWork {
  readonly source: ShardSession;
  readonly destination: ShardSession;

  readonly names: ObjectNames;
}

const POINTS = new Set<string>(CRASH_POINTS);

/** Does it. */
export class RealExecutor implements Executor {
  readonly dry = false;
  readonly #store: MigrationStore;
  readonly #lease: MigrationLease;
  readonly #shards: ShardsAtWork | null;
  readonly #sites: ReadonlyMap<string, ShardSession>;
  readonly #log: Logger;
  readonly #signal: AbortSignal;
  #state: MigrationState;
  #abortRequested = false;
  #progress: MigrationProgress;
  #written = 0;

  constructor(options: {
    store: MigrationStore;
    lease: MigrationLease;
    /** Null: it is no move. */
    shards: ShardsAtWork | null;
    /** Of one that has to do with several shards alike, by name. Default: it has to do with none so. */
    sites?: ReadonlyMap<string, ShardSession>;
    row: MigrationRow;
    log: Logger;
    signal: AbortSignal;
  }) {
    this.#store = options.store;
    this.#lease = options.lease;
    this.#shards = options.shards;
    this.#sites = options.sites ?? new Map();
    this.#log = options.log;
    this.#signal = options.signal;
    this.#state = options.row.state;
    this.#progress = { ...NO_PROGRESS, ...options.row.progress, phase: options.row.state, compared: null, note: null };
  }

  get controls(): MigrationControls {
    return this.#lease.controls;
  }

  get now(): Date {
    return this.#lease.now;
  }

  async requested(): Promise<Requested | null> {
    if (this.#lease.requested === null) return null;
    // The lease may have been renewed when that was asked for before, and has been done since.
    return (await this.#store.load()).requested;
  }

  async perform(action: Action): Promise<void> {
    this.check();
    const session = typeof action.on === 'string' ? this.#shards?.[action.on] : this.#sites.get(action.on.shard);
    if (session === undefined) throw new Error(`no shard for "${action.name}"`);
    if (action.present !== undefined) {
      const found = await session.query<{ present: boolean }>(action.present);
      if (found[0]?.present === true) return;
    }
    for (const cleanup of action.cleanup ?? []) await this.#store.recordCleanup(cleanup);
    this.#crash(`recorded:${action.name}`);
    this.check();
    this.#log.debug({ migration: this.#store.id.toString(), action: action.name, on: action.on }, action.text);
    if (action.mode === 'single') {
      // A slot waits for every open transaction, an index takes as long as its table is large.
      for (const [i, sql] of action.sql.entries()) {
        await session.interruptible(sql, undefined, () => this.check());
        if (i < action.sql.length - 1) this.#crash(`within:${action.name}`);
      }
    } else if (action.mode === 'transaction') await session.transaction(action.sql);
    else await session.lockingTransaction(action.sql, () => this.check());
    this.#crash(`after:${action.name}`);
  }

  async record(cleanup: CleanupSpec): Promise<void> {
    this.check();
    await this.#store.recordCleanup(cleanup);
  }

  async openCleanup(kind?: CleanupRecord['kind']): Promise<CleanupRecord[]> {
    const all = await this.#store.cleanup();
    return all.filter((c) => !c.done && (kind === undefined || c.kind === kind));
  }

  async markCleanupDone(record: CleanupRecord): Promise<void> {
    this.check();
    await this.#store.markCleanupDone(record.id);
  }

  async wait(_text: string, done: () => Promise<boolean>, options: WaitOptions = {}): Promise<boolean> {
    let deadline = options.deadlineMs === undefined ? Infinity : performance.now() + options.deadlineMs;
    for (;;) {
      this.check();
      deadline += await this.rest();
      if (await done()) return true;
      if (performance.now() >= deadline) return false;
      await delay(options.everyMs ?? 200, undefined, { signal: this.#signal }).catch(() => this.check());
    }
  }

  async transition(row: MigrationRow, to: MigrationState, change: StateChange = {}): Promise<MigrationRow> {
    const next = await this.#store.transition(row, to, change);
    return this.#entered(next);
  }

  noteFacts(row: MigrationRow, facts: Facts, detail?: Facts): Promise<MigrationRow> {
    return this.#store.noteFacts(row, facts, detail);
  }

  inLease<T>(row: MigrationRow, work: (client: CatalogClient) => Promise<T>, over?: CatalogClient): Promise<T> {
    this.check();
    return this.#store.inLease(row, work, over);
  }

  async withdrawFlip(): Promise<void> {
    await this.#store.withdrawFlip();
    this.#lease.controls = { ...this.#lease.controls, flipRequested: false };
  }

  async reload(): Promise<MigrationRow> {
    const row = await this.#store.load();
    this.#state = row.state;
    return row;
  }

  commit(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
  ): Promise<MigrationRow> {
    return this.#commit(row, statements, to, change);
  }

  flip(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
    over?: CatalogClient,
  ): Promise<MigrationRow> {
    return this.#commit(row, [ANNOUNCED_LATER, ...statements], to, change, [endHold(row.id)], over);
  }

  async announceFlip(over: CatalogClient): Promise<void> {
    await over.query(timedQuery(ANNOUNCE)).catch((error: unknown) => {
      this.#log.warn({ err: error, migration: this.#store.id.toString() }, 'could not announce the flip');
    });
  }

  async foresee(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    over: CatalogClient,
  ): Promise<void> {
    const all = [ANNOUNCED_LATER, ...statements, this.#store.transitionStatement(row, to, {}), endHold(row.id)];
    await over.query(all.map(({ sql, values }) => `EXPLAIN ${withLiterals(sql, values)}`).join(';\n'));
  }

  async #commit(
    row: MigrationRow,
    statements: readonly CatalogStatement[],
    to: MigrationState,
    change: StateChange,
    last: readonly CatalogStatement[] = [],
    over?: CatalogClient,
  ): Promise<MigrationRow> {
    this.check();
    const all = [...statements, this.#store.transitionStatement(row, to, change), ...last];
    const message = catalogMessage(all, this.#store.rowQuery);
    let results: pg.QueryResult<RawRow>[];
    try {
      results = (await (over ?? this.#store.pool).query<RawRow>(message)) as unknown as pg.QueryResult<RawRow>[];
    } catch (error) {
      await over?.query('ROLLBACK').catch(() => undefined); // the first error says more
      throw conflictOf(error, all);
    }
    return this.#entered(fromRaw(results.flatMap((r) => r.rows)[0] as RawRow));
  }

  async progress(progress: Partial<MigrationProgress>): Promise<void> {
    this.#progress = { ...this.#progress, ...progress, phase: this.#state };
    if (performance.now() - this.#written < 1000) return;
    await this.#write();
  }

  async rest(): Promise<number> {
    if (!this.#lease.paused || !PAUSABLE.includes(this.#state)) return 0;
    const since = performance.now();
    // A copy that ends with its worker begins again; it is stopped where it is instead.
    const isCopying = this.#state === 'copying' && (await this.#copies());
    if (isCopying) await this.#shards?.destination.query(assertPaceSql(this.#shards.names, STOPPED));
    else await this.#replicate(false);
    crashPoint('after:stop-following');
    this.#progress = { ...this.#progress, phase: this.#state, note: 'paused' };
    await this.#write();
    while (this.#lease.paused) {
      this.check();
      await delay(PAUSED_MS, undefined, { signal: this.#signal }).catch(() => this.check());
    }
    // A copy goes on when its throttle sets its pace again: at once, and at no other.
    await this.#replicate(true);
    crashPoint('after:follow-again');
    this.#progress = { ...this.#progress, note: null };
    await this.#write();
    return performance.now() - since;
  }

  async #copies(): Promise<boolean> {
    if (this.#shards === null) return false;
    const rows = await this.#shards.destination.query(
      `SELECT FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
        WHERE s.subname = $1 AND r.srsubstate IN ('i', 'd')`,
      [this.#shards.names.replication],
    );
    return rows.length > 0;
  }

  /** Has the destination follow the source, or not; the slot keeps what is to be followed. */
  async #replicate(on: boolean): Promise<void> {
    if (this.#shards === null) return;
    const { destination, names } = this.#shards;
    const found = await destination.query<{ enabled: boolean }>(
      `SELECT subenabled AS enabled FROM pg_subscription WHERE subname = $1
          AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())`,
      [names.replication],
    );
    if (found[0] === undefined || found[0].enabled === on) return;
    await destination.query(`ALTER SUBSCRIPTION ${quoteIdent(names.replication)} ${on ? 'ENABLE' : 'DISABLE'}`);
  }

  at(point: CrashPoint): void {
    this.check();
    crashPoint(point);
  }

  /** @throws LeaseLostError, AbortRequested, or the signal's reason */
  check(): void {
    this.#lease.check();
    this.#signal.throwIfAborted();
    if (
      (this.#abortRequested || this.#lease.abortRequested) &&
      this.#state !== 'aborting' &&
      !PAST_FLIP.includes(this.#state)
    )
      throw new AbortRequested('an abort was requested');
  }

  async #entered(row: MigrationRow): Promise<MigrationRow> {
    this.#state = row.state;
    // Seen here before the next renewal of the lease shows it.
    this.#abortRequested = row.abortRequested;
    this.#lease.paused = row.paused;
    this.#lease.controls = row.controls;
    this.#lease.requested = row.requested;
    this.#log.info(
      { migration: row.id.toString(), state: row.state, error: row.error ?? undefined },
      'migration changed state',
    );
    this.#progress = { ...this.#progress, phase: row.state, compared: null };
    if (!HASTY.includes(row.state)) await this.#write();
    return row;
  }

  async #write(): Promise<void> {
    this.#written = performance.now();
    await this.#store.writeProgress(this.#progress);
  }

  #crash(point: string): void {
    if (POINTS.has(point)) crashPoint(point as CrashPoint);
  }
}

const NO_PROGRESS: MigrationProgress = {
  phase: 'approved',
  rowsCopied: 0,
  rowsTotal: 0,
  bytesCopied: 0,
  bytesTotal: 0,
  bytesPerSecond: 0,
  lagBytes: 0,
  etaSeconds: null,
  pauseMs: null,
  compared: null,
  sampled: null,
  note: null,
};
