import type { Logger } from 'pino';
import { ForeshardError } from '../../topology/errors.js';
import { type ShardName, soleShard, type Topology } from '../../topology/topology.js';
import type { Backend, BackendOwner } from '../backend/backend.js';
import { InternalStatementError } from '../backend/backend.js';
import type { Pool } from '../backend/pool.js';
import type { LiveTopology } from '../live-topology.js';
import { holdTimeout } from '../live-topology.js';
import { SETTINGS_OF_FUNCTION, type StatementPlan } from '../router/route.js';
import type { Router } from '../router/router.js';
import { encodeParameterStatus } from '../wire/backend.js';
import { decodeErrorFields, ServerError } from '../wire/error-response.js';
import { encodeQuery, SYNC } from '../wire/frontend.js';
import type { Activity } from './activity.js';
import { BY_NAME, prepareByName, seesNames } from './by-name.js';
import type { Listening } from './listening.js';
import type { NameLookup } from './name-lookup.js';
import { Pinning } from './pinning.js';
import type { Execution, Placement } from './placement.js';
import { place, planOf, stillOn } from './placement.js';
import { queueNotice } from './queue-notice.js';
import { mayDraw, PINNED_FOR_CURRVAL, Sequences } from './sequences.js';
import { ahead, areAlike, difference, fromScratch, type SessionSettings, type SettingMap } from './settings.js';
import type { ClientStatements } from './statements.js';
import { Transaction } from './transaction.js';
import type { Wait } from './wait.js';

/** Transaction status bytes of ReadyForQuery. */
export const IDLE = 0x49; // 'I'
export const FAILED = 0x45; // 'E'

const NOTHING = { touches: [], parts: [], everything: false, writesReference: false } as const;

export interface LeaseContext {
  readonly live: LiveTopology;
  readonly router: Router;
  readonly settings: SessionSettings;
  readonly logger: Logger;
  readonly holdTimeoutMs: number;
  readonly pool: (shard: ShardName) => Pool;
  readonly lookup: NameLookup;
  readonly activity: Activity;
  readonly listening: Listening;
  /** What the client has prepared. */
  readonly statements: () => ClientStatements;
  /** The session's. */
  readonly id: number;
  /** Whether sessions of this user have asked for currval or lastval. */
  readonly asksSequences: { value: boolean };
  /** Told why the session is pinned. */
  readonly pinned: (reason: string) => void;
  readonly tellClient: (frame: Buffer) => void;
}

/** What came of getting ready. */
export type Prepared = Exclude<Placement, { kind: 'refused' }> | { readonly kind: 'again' };

/** Getting ready again this often in a row means that shards disagree on what names mean. */
const AGAIN = 10;

/** To be called before getting ready once more, `times` having done so already. @throws RefusedError beyond what can be a coincidence. */
export function checkAgain(times: number): void {
  if (times < AGAIN) return;
  throw new RefusedError('0A000', 'the shards do not agree on search_path or client_encoding for this user', {
    hint: 'Make the same ALTER ROLE … SET and ALTER DATABASE … SET on every shard.',
  });
}

/** The statement cannot run; the client gets this error, and its transaction fails as it would in PostgreSQL. */
export class RefusedError extends ForeshardError {}

/**
 * Keeps the one server connection a client has at a time: takes it when there is something to run, moves a
 * transaction that has done nothing yet to the shard its first real statement needs, and gives it back.
 */
export class Lease {
  readonly #context: LeaseContext;
  readonly #owner: BackendOwner;
  backend: Backend | null = null;
  transaction: Transaction | null = null;
  /** Why the connection must stay. */
  readonly pinning: Pinning;
  readonly sequences: Sequences;
  /** Extended-protocol messages were sent for which no Sync has followed. */
  unsynced = false;
  /** Of the unsynced messages, one did more than Parse or Describe. */
  unsyncedDirty = false;
  #seen: Topology;

  constructor(context: LeaseContext, owner: BackendOwner) {
    this.#context = context;
    this.#owner = owner;
    this.#seen = context.live.current;
    this.pinning = new Pinning(context.pinned, context.settings);
    this.sequences = new Sequences(context.id);
  }

  /** Why the connection must stay, or null. */
  get pinned(): string | null {
    return this.pinning.reason;
  }

  /**
   * Waits until `executions` may run, and has the right server connection ready: settings applied, transaction opened.
   * For a placement `one` the footprint is registered in the same turn in which this resolves, so that no hold slips in between.
   * `again`: the connection looks names up in another way than `executions` were analysed for (and the client has been told).
   *
   * @throws RefusedError and whatever the pool, the server or `wait` say.
   */
  prepare(executions: readonly Execution[], wait: Wait): Promise<Prepared> {
    return this.#prepare(executions, wait, false);
  }

  /** Opens a transaction that no server has heard of, only to fail it there: that touches nothing, so it waits for nothing. */
  async openToFail(wait: Wait): Promise<void> {
    await this.#prepare([], wait, true);
  }

  async #prepare(executions: readonly Execution[], wait: Wait, unheld: boolean): Promise<Prepared> {
    const { live, router } = this.#context;
    const since = performance.now();
    // A failed transaction runs nothing more: its server says so (25P02), or ends it.
    if (this.backend?.status === FAILED && !this.unsynced)
      return { kind: 'one', shards: [this.backend.shard], writes: false, ...NOTHING };
    for (;;) {
      wait.throwIfAborted();
      const topology = live.current;
      this.#checkStale(topology);
      const placement = place(executions, router, topology);
      if (placement.kind === 'refused') {
        const { sqlstate, message, hint } = placement.refusal;
        throw new RefusedError(sqlstate, message, hint === undefined ? {} : { hint });
      }
      if (!unheld && !live.admits(placement, this.transaction)) {
        await this.#waitForChange(wait.signal, since);
        continue;
      }
      if (placement.kind === 'fanout') {
        if (this.#describedOnly) {
          await this.#finishBatch(this.backend as Backend);
          this.releaseIfIdle();
          continue; // the map may have changed while we waited
        }
        this.#checkFanOut();
        return placement;
      }
      const asksThem = firstThat(executions, asks) >= 0;
      if (asksThem) this.#returnToSequences(placement.shards);
      const shard = this.#choose(placement.shards);
      if (this.backend === null || this.backend.shard !== shard) {
        await this.#moveTo(shard, wait);
        continue; // the map may have changed while we waited
      }
      if (
        this.backend.settings !== this.#context.settings.current &&
        !this.#begun &&
        !this.#hasSettings(this.backend)
      ) {
        // What functions have changed is nowhere but there.
        if (this.pinning.has(SETTINGS_OF_FUNCTION)) this.backend.settings = this.#context.settings.current;
        else if (await this.#unlessDead(this.backend, (backend) => this.applySettings(backend))) continue;
      }
      if (asksThem && (await this.#readySequences(this.backend, executions))) continue;
      const first = this.#context.listening.prepare(this.backend, executions, this.#begun);
      if (first !== null) {
        await first.catch((error: unknown) => {
          throw asServerError(error);
        });
        continue;
      }
      if (this.transaction?.deferred) {
        const { transaction } = this;
        await this.#unlessDead(this.backend, (backend) => this.#open(backend, transaction));
        continue;
      }
      if (!this.unsynced && !this.backend.byName && this.#seesNames(executions)) {
        this.pinning.add(BY_NAME);
        await prepareByName(this.backend, this.#context.statements()).catch((error: unknown) => {
          throw asServerError(error);
        });
        continue;
      }
      if (!this.#context.lookup.agrees(this.backend.connection.parameters)) this.tellParameters(this.backend);
      const { current } = this.#context.lookup;
      if (executions.some((e) => e.lookup !== null && e.lookup !== current)) return { kind: 'again' };
      this.transaction ??= new Transaction();
      this.transaction.touch(placement);
      this.#context.listening.sending(this.backend, executions);
      this.#sending(this.backend, executions);
      return placement;
    }
  }

  /** Whether the connection's settings are this client's: those of clients that logged in alike are, without being the same object. */
  #hasSettings(backend: Backend): boolean {
    const { current } = this.#context.settings;
    if (backend.settings === null || !areAlike(backend.settings, current)) return false;
    backend.settings = current;
    return true;
  }

  #seesNames(executions: readonly Execution[]): boolean {
    return firstThat(executions, (plan) => seesNames(plan, this.#context.statements())) >= 0;
  }

  /** Whether a transaction is open on the server, or a batch is. */
  get #begun(): boolean {
    return this.backend !== null && (this.backend.status !== IDLE || this.unsynced);
  }

  /** Whether the open batch has only parsed and described so far, as drivers do to learn the types of parameters, outside a transaction. */
  get #describedOnly(): boolean {
    return this.backend?.status === IDLE && this.unsynced && !this.unsyncedDirty && this.pinned === null;
  }

  /** Whether what the open transaction touches is no longer all on its shard. */
  isStale(topology: Topology): boolean {
    const { backend, transaction } = this;
    return backend !== null && transaction?.touched === true && !stillOn(backend.shard, transaction, topology);
  }

  /** Gives the connection back if nothing keeps it. To be called when the server is ready for a query. */
  releaseIfIdle(): void {
    const backend = this.backend;
    if (backend === null || this.unsynced || !backend.reusable) return;
    this.transaction = null;
    if (this.pinned === null) {
      this.backend = null;
      this.#context.pool(backend.shard).release(backend);
    }
    this.#context.live.released();
  }

  /** The connection has died before anything was sent on it: forgets it, and nothing else. */
  replaceDead(): void {
    const { backend, transaction } = this;
    this.backend = null;
    this.unsynced = false;
    this.unsyncedDirty = false;
    if (transaction?.deferred !== true) this.transaction = null;
    if (backend) this.#context.pool(backend.shard).discard(backend);
  }

  /** Does `work`; when the connection turns out to have died before it was used, answers true, for another to be taken. */
  async #unlessDead<T>(backend: Backend, work: (backend: Backend) => Promise<T>): Promise<T | true> {
    try {
      return await work(backend);
    } catch (error) {
      if (backend.lost !== null && backend.untouched) return true;
      throw error;
    }
  }

  /** Forgets everything about the connection, which is closed. */
  discard(): void {
    const backend = this.backend;
    this.backend = null;
    this.transaction = null;
    this.unsynced = false;
    this.unsyncedDirty = false;
    this.pinning.clear();
    if (backend) this.#context.pool(backend.shard).discard(backend);
    this.#context.live.released();
  }

  /**
   * A write came too late for its shard (SH001): leaves that shard, so that the next `prepare` opens the same
   * transaction at the new owner. Only for a transaction that was clean before this statement.
   */
  async abandon(prelude: readonly Buffer[]): Promise<void> {
    const backend = this.backend;
    if (backend !== null) {
      if (backend.status !== IDLE) await this.#rollBack(backend);
      // What it is pinned for stays where it is; the statement is then refused if its range has left.
      if (this.pinned === null) {
        this.backend = null;
        this.#context.listening.left(backend);
        this.#context.pool(backend.shard).release(backend);
      }
    }
    this.transaction = null;
    if (prelude.length > 0) this.#defer(prelude);
    this.#context.live.released();
  }

  /** BEGIN answered by the proxy itself: the server hears of it with the first statement that says which shard it is. */
  begin(text: Buffer): void {
    this.#defer([text]);
  }

  #defer(prelude: readonly Buffer[]): void {
    const transaction = new Transaction();
    transaction.prelude = [...prelude];
    transaction.deferred = true;
    this.transaction = transaction;
  }

  #choose(shards: readonly ShardName[]): ShardName {
    const here = this.backend?.shard;
    if (here !== undefined && shards.includes(here)) return here;
    return shards[0] as ShardName;
  }

  /** The statements go to this connection now. */
  #sending(backend: Backend, executions: readonly Execution[]): void {
    const { asksSequences, live, router } = this.#context;
    const { sequences } = this;
    if (firstThat(executions, mayDraw) >= 0 && !this.unsynced) {
      // A user's session that asks outside of a transaction keeps its connection. In one, what it draws is told from what was drawn before.
      const pins = asksSequences.value && soleShard(live.current) !== null;
      const inBlock = backend.status !== IDLE || executions.length > 1;
      if ((pins || inBlock) && sequences.place !== backend && backend.sequencesOf !== null)
        sequences.cleanFirst(backend);
      if (pins) {
        sequences.restart();
        this.pinning.add(PINNED_FOR_CURRVAL);
      }
      if (this.transaction !== null && inBlock) this.transaction.draws = true;
    }
    sequences.sending(backend, executions);
    for (const execution of executions) {
      const plan = planOf(execution);
      if (plan === null) continue;
      this.pinning.sending(plan);
      if (plan.command === 'DO' && router.mayKeepSettings(execution.analyzed.text.toString('latin1')))
        this.pinning.add(SETTINGS_OF_FUNCTION);
    }
  }

  /** currval or lastval outside a transaction: on the very connection that drew the number, if it is free. */
  #returnToSequences(shards: readonly ShardName[]): void {
    this.#context.asksSequences.value = true;
    const { place } = this.sequences;
    if (this.pinned !== null || this.#begun || typeof place === 'string' || place === this.backend) return;
    if (!shards.includes(place.shard) || !this.#context.pool(place.shard).take(place)) return;
    if (this.backend !== null) this.#giveBack();
    place.attach(this.#owner);
    this.backend = place;
  }

  /** @returns whether something was done and the map may have changed. @throws RefusedError when the answer could be another's */
  async #readySequences(backend: Backend, executions: readonly Execution[]): Promise<boolean> {
    const { sequences } = this;
    if (sequences.place === backend || this.transaction?.draws) return false;
    // Drawn in this very Query or batch, behind a clean start.
    const draws = firstThat(executions, mayDraw);
    if (draws >= 0 && draws < firstThat(executions, asks) && !this.unsynced) return false;
    // Defaults mostly draw what they then ask for; if not, the server says that there is none.
    const fresh = sequences.place === 'anywhere' || firstThat(executions, asksItself) < 0;
    if (fresh && !this.unsynced) {
      if (backend.sequencesOf === null) return false;
      await sequences.clean(backend);
      return true;
    }
    throw new RefusedError(
      '0A000',
      'currval() and lastval() depend on the server connection that drew the number, and this session has used others since, or others have used it',
      {
        hint: 'Use RETURNING, or run both statements in one transaction. While one shard has everything, sessions of this user keep their connection from now on, so that the next ones are answered.',
      },
    );
  }

  #checkFanOut(): void {
    if (this.pinned !== null && this.pinning.soft && !this.#begun) {
      this.pinning.clear();
      this.releaseIfIdle();
    }
    if (this.backend === null && this.transaction === null) return;
    const what =
      this.pinned === null ? 'inside a transaction block or an open batch' : `in this session (${this.pinned})`;
    if (this.backend !== null && !this.#begun && this.pinned === null) return;
    throw new RefusedError('0A000', `a statement for several shards cannot run ${what} yet`, {
      hint: 'Give the statement a key, or run it on its own.',
    });
  }

  /** After a flip, a transaction whose rows have moved away cannot go on. */
  #checkStale(topology: Topology): void {
    if (topology === this.#seen) return;
    this.#seen = topology;
    if (this.isStale(topology))
      throw new RefusedError('40001', 'the range of this transaction has moved to another shard', {
        hint: 'Retry the transaction.',
      });
  }

  async #waitForChange(signal: AbortSignal, since: number): Promise<void> {
    const { live, holdTimeoutMs } = this.#context;
    const waited = performance.now() - since;
    const timeout = new AbortController();
    const timer = setTimeout(
      () => timeout.abort(holdTimeout(live.mayServe, holdTimeoutMs)),
      Math.max(0, holdTimeoutMs - waited),
    );
    // A lease between nothing and a statement would keep a connection from others while it waits.
    if (this.backend !== null && !this.#begun && this.pinned === null) this.#giveBack();
    this.#context.activity.waitBegins();
    try {
      await live.changed(AbortSignal.any([signal, timeout.signal]));
    } finally {
      this.#context.activity.waitEnds();
      clearTimeout(timer);
    }
  }

  #giveBack(): void {
    const backend = this.backend as Backend;
    this.backend = null;
    this.#context.listening.left(backend);
    this.#context.pool(backend.shard).release(backend);
  }

  async #moveTo(shard: ShardName, wait: Wait): Promise<void> {
    const from = this.backend;
    if (from !== null) {
      if (this.pinned !== null && this.pinning.soft) this.pinning.clear();
      if (this.pinned !== null)
        throw new RefusedError(
          '0A000',
          `the session keeps its connection to shard "${from.shard}" (${this.pinned}), and this statement belongs to shard "${shard}"`,
          {
            hint: 'Use another session for it.',
          },
        );
      const open = from.status !== IDLE;
      if (open && this.transaction !== null && !this.transaction.clean)
        throw new RefusedError(
          '0A000',
          `the transaction runs on shard "${from.shard}", and this statement belongs to shard "${shard}"`,
          {
            hint: 'Keep each transaction to the keys of one shard.',
          },
        );
      if (this.unsynced) {
        if (this.unsyncedDirty)
          throw new RefusedError(
            '0A000',
            `the batch runs on shard "${from.shard}", and this statement belongs to shard "${shard}"`,
            {
              hint: 'Send a Sync between statements for keys of different shards.',
            },
          );
        await this.#finishBatch(from);
      }
      if (open) await this.#rollBack(from);
      this.#giveBack();
      if (open && this.transaction !== null) this.#defer(this.transaction.prelude);
    }
    const { activity, tellClient } = this.#context;
    activity.waitBegins();
    let backend: Backend;
    try {
      backend = await this.#context.pool(shard).acquire(wait, () => tellClient(queueNotice(shard)));
    } finally {
      activity.waitEnds();
    }
    activity.assignments += 1;
    backend.attach(this.#owner);
    this.backend = backend;
  }

  async #rollBack(backend: Backend): Promise<void> {
    await backend.runInternal(encodeQuery('ROLLBACK'));
    // What SET LOCAL had made of search_path is over, and such a server does not say so.
    if (!backend.connection.reportsSearchPath) backend.settings = null;
  }

  /** Ends a batch of Parse and Describe whose replies the client already has. */
  #finishBatch(backend: Backend): Promise<void> {
    this.unsynced = false;
    return new Promise((resolve, reject) => {
      backend.send(SYNC, {
        kind: 'sync',
        internal: true,
        done: resolve,
        undo: () => reject(backend.lost ?? new Error('server connection lost')),
      });
    });
  }

  /**
   * Gives a connection taken for a statement on several shards this client's settings.
   * @returns whether names mean there what they meant to the proxy; if not, the client is told what they mean.
   */
  async adopt(backend: Backend): Promise<boolean> {
    const { lookup, settings } = this.#context;
    const before = lookup.current;
    if (backend.settings !== settings.current) await this.applySettings(backend);
    if (!lookup.agrees(backend.connection.parameters)) this.tellParameters(backend);
    return lookup.current === before;
  }

  /**
   * Gives the connection this client's settings and tells the client what they are.
   * @returns whether the server had to be asked.
   * @throws ServerError as the server says it, when one of them cannot be
   */
  async applySettings(backend: Backend): Promise<boolean> {
    const { current } = this.#context.settings;
    const before = backend.settings;
    const sql = before === null ? fromScratch(current) : difference(before, current);
    backend.settings = current;
    if (sql.length === 0) return false;
    try {
      try {
        await this.#say(backend, before, sql);
      } catch (error) {
        if (before === null || !(error instanceof InternalStatementError)) throw error;
        await this.#say(backend, null, fromScratch(current));
      }
      await backend.refreshSearchPath();
    } catch (error) {
      backend.settings = null;
      throw asServerError(error);
    }
    this.tellParameters(backend);
    return true;
  }

  /** Says statements that change settings, whatever time-out was in force before. */
  async #say(backend: Backend, before: SettingMap | null, sql: readonly string[]): Promise<void> {
    const first = ahead(before);
    for (let times = 0; ; times++) {
      try {
        // Not waited for: both go in one packet.
        const reset = first === null ? null : backend.runInternal(settingsQuery([first]));
        const rest = backend.runInternal(settingsQuery(sql));
        const [a, b] = await Promise.allSettled([reset, rest]);
        if (a.status === 'rejected') throw a.reason;
        if (b.status === 'rejected') throw b.reason;
        return;
      } catch (error) {
        // A time-out of a millisecond may cut even the statement that takes it back.
        if (first === null || times >= TIMED_OUT || !isTimedOut(error)) throw error;
      }
    }
  }

  /** Tells the client the parameters that differ from what it was told last. */
  tellParameters(backend: Backend): void {
    const { lookup, tellClient } = this.#context;
    const { parameters, reportsSearchPath } = backend.connection;
    for (const [name, value] of parameters) {
      if (lookup.known.get(name) === value) continue;
      lookup.learn(name, value);
      if (name !== 'search_path' || reportsSearchPath) tellClient(encodeParameterStatus(name, value));
    }
  }

  async #open(backend: Backend, transaction: Transaction): Promise<void> {
    try {
      for (const text of transaction.prelude) await backend.runInternal(encodeQuery(text));
      if (transaction.prelude.length > 1) await backend.refreshSearchPath();
    } catch (error) {
      throw asServerError(error);
    }
    transaction.deferred = false;
    // SET LOCAL is among what was done again; and each shard has its own defaults.
    this.tellParameters(backend);
  }
}

/** Statements of ours that another client's statement_timeout may cut in a row. */
const TIMED_OUT = 50;

function isTimedOut(error: unknown): boolean {
  return error instanceof InternalStatementError && decodeErrorFields(error.frame).sqlstate === '57014';
}

/** Statements kept as byte strings. */
function settingsQuery(sql: readonly string[]): Buffer {
  return encodeQuery(Buffer.from(sql.join('; '), 'latin1'));
}

/** Where the first statement of this kind stands; -1: there is none. */
function firstThat(executions: readonly Execution[], is: (plan: StatementPlan) => boolean): number {
  return executions.findIndex((e) => {
    const plan = planOf(e);
    return plan !== null && is(plan);
  });
}

const asks = (plan: StatementPlan): boolean => plan.asksSequences !== undefined;
const asksItself = (plan: StatementPlan): boolean => plan.asksSequences === 'itself';

/** The server's own error, if it was one. */
export function asServerError(error: unknown): unknown {
  return error instanceof InternalStatementError ? new ServerError(decodeErrorFields(error.frame)) : error;
}
