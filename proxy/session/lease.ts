import { ForeshardError } from '../../topology/errors.js';
import { type ShardName, soleShard, type Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import { asServerError } from '../backend/internal-statement.js';
import { type Refusal, SETTINGS_OF_FUNCTION, type StatementPlan } from '../router/route.js';
import { encodeQuery, SYNC } from '../wire/frontend.js';
import { kept } from '../wire/read-memory.js';
import { FAILED, IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import { answeredAtOnce } from './answer-limit.js';
import { BY_NAME, prepareByName, seesNames } from './by-name.js';
import type { ClientSession } from './client-session.js';
import { FAILING_BIND } from './failing-bind.js';
import type { Footprint } from './footprint.js';
import { giveBack } from './give-back.js';
import { MapWait } from './map-wait.js';
import { checkSnapshot } from './old-snapshot.js';
import { Pinning } from './pinning.js';
import type { Execution, Placement } from './placement.js';
import { firstThat, place, planOf, refusedInBlock } from './placement.js';
import { Prelude } from './prelude.js';
import { queueNotice } from './queue-notice.js';
import {
  behindFailed,
  checkMove,
  fanOutRefused,
  notInBatch,
  RefusedError,
  toldBySeveral,
  transactionEnded,
  transactionMoved,
} from './refusals.js';
import { asksSequences, draws, mayDraw, PINNED_FOR_CURRVAL, Sequences } from './sequences.js';
import { ServerSettings } from './server-settings.js';
import { hasLeft, Span, type SpanClient, type Spanning } from './span.js';
import { checkSpread } from './spread-block.js';
import { handsOverSettings, isDdl, MAY_CHANGE_SETTINGS, revives, tells, tying } from './statement-ties.js';
import type { ClientStatements } from './statements.js';
import { Transaction } from './transaction.js';
import type { Wait } from './wait.js';

const ROLLBACK = encodeQuery('ROLLBACK');
const NOTHING = { touches: [], parts: [], everything: false, writesReference: false } as const;

/** Whose lease it is. */
export interface LeaseClient
  extends SpanClient,
    Pick<ClientSession, 'services' | 'settings' | 'lookup' | 'activity' | 'listening' | 'write'> {
  readonly id: number;
  /** What the client has prepared. */
  readonly statements: ClientStatements;
  /** Told why it keeps its connection, when that begins. */
  notePinned(reason: string): void;
}

/** What is to be made ready: statements that are sent at once, or later; or a transaction that is only to be failed. */
type How = typeof TOGETHER | typeof APART | typeof TO_FAIL;
const TOGETHER = 'together';
const APART = 'apart';
const TO_FAIL = 'to fail';

/** A statement over several shards. */
type Spreading = Placement & { kind: 'fanout' | 'gather' };

/** What came of getting ready. */
export type Prepared = Exclude<Placement, { kind: 'refused' }> | { readonly kind: 'again' };

/**
 * Keeps the one server connection a client has at a time: takes it when there is something to run, moves a
 * transaction that has done nothing yet to the shard its first real statement needs, and gives it back.
 */
export class Lease {
  readonly #client: LeaseClient;
  readonly #owner: BackendOwner;
  backend: Backend | null = null;
  /** On several shards: that of the branch on `backend`. */
  transaction: Transaction | null = null;
  /** The branches of the transaction on other shards; null: there are none. */
  span: Span | null = null;
  /** Why the connection must stay. */
  readonly pinning: Pinning;
  readonly sequences: Sequences;
  /** Gives server connections this client's settings. */
  readonly serverSettings: ServerSettings;
  readonly map: MapWait;
  /** Extended-protocol messages were sent for which no Sync has followed. */
  unsynced = false;
  /** Of the unsynced messages, one did more than Parse or Describe. */
  unsyncedDirty = false;
  /** The client's transaction was ended, and it has yet to be told. */
  untold = false;
  /** Texts that are not known here were executed on the connection. */
  #settingsUnsure = false;
  #unopened: Buffer | null = null;

  constructor(client: LeaseClient, owner: BackendOwner) {
    this.#client = client;
    this.#owner = owner;
    this.map = new MapWait(client);
    this.pinning = new Pinning(client);
    this.sequences = new Sequences(client.id);
    this.serverSettings = new ServerSettings(client);
  }

  /** Why the connection must stay, or null. */
  get pinned(): string | null {
    return this.pinning.reason;
  }

  /**
   * Waits until `executions` may run, and has the right server connection ready: settings applied, transaction opened.
   * For a placement `one` the footprint is registered in the same turn in which this resolves, so that no hold slips in between.
   * `together`: they are sent in the turn in which this is ready, as one Query, or one batch with its Sync, and nothing else before
   * them. A transaction that no server has heard of is then opened with them: should that fail, `takeUnopened` says so when the server is
   * ready, and nothing of them has been done.
   *
   * `again`: the connection looks names up in another way than `executions` were analysed for (and the client has been told).
   *
   * @throws RefusedError and whatever the pool, the server or `wait` say.
   */
  prepare(executions: readonly Execution[], wait: Wait, together = false): Prepared | Promise<Prepared> {
    this.#checkEnded(executions);
    // A failed transaction runs nothing more: its server says so (25P02), or ends it.
    if (this.backend?.status === FAILED && !this.unsynced) {
      this.span?.checkFailed(executions);
      if (revives(executions)) return this.#revive(executions, wait);
      this.span?.sending(executions);
      return {
        kind: 'one',
        shards: [this.backend.shard],
        writes: false,
        ...NOTHING,
        topology: this.#client.services.live.current,
      };
    }
    const how = together ? TOGETHER : APART;
    const ready = this.#getReady(executions, wait, how, null);
    return ready instanceof Promise ? this.#keepGettingReady(ready, executions, wait, how) : ready;
  }

  /** What ends the failed transaction and goes on with rows waits for a flip, and a flip for it, like anything else. Only where one shard has all rows is it known to be at the right one. */
  #revive(executions: readonly Execution[], wait: Wait, since = performance.now()): Prepared | Promise<Prepared> {
    const { backend } = this;
    // It may have died meanwhile.
    if (backend?.status !== FAILED) return this.prepare(executions, wait);
    const { live, router } = this.#client.services;
    const topology = live.current;
    wait.throwIfAborted();
    if (soleShard(topology) === null) throw behindFailed();
    const placement = place(executions, router, topology);
    if (placement.kind === 'refused') throw refusedAs(placement.refusal);
    if (placement.kind !== 'one' || !placement.shards.includes(backend.shard)) throw behindFailed();
    if (!live.admits(placement, this.transaction, this.span))
      return this.#waitForChange(wait.signal, since).then(() => this.#revive(executions, wait, since));
    this.transaction ??= new Transaction(topology);
    this.transaction.touch(placement);
    return { ...placement, shards: [backend.shard], writes: false };
  }

  /** Opens a transaction that no server has heard of, only to fail it there: that touches nothing, so it waits for nothing. */
  async openToFail(wait: Wait): Promise<void> {
    const ready = this.#getReady([], wait, TO_FAIL, null);
    if (ready instanceof Promise) await this.#keepGettingReady(ready, [], wait, TO_FAIL);
  }

  async #keepGettingReady(
    first: Promise<unknown>,
    executions: readonly Execution[],
    wait: Wait,
    how: How,
  ): Promise<Prepared> {
    const since = performance.now();
    for (let work = first; ; ) {
      await work;
      const ready = this.#getReady(executions, wait, how, since);
      if (!(ready instanceof Promise)) return ready;
      work = ready;
    }
  }

  /**
   * Goes as far as it can without waiting, which nearly always is all the way. A promise: to be called again when it resolves, because
   * the map may have changed meanwhile.
   *
   * @param since when the wait began, on performance.now()'s clock; null: now
   */
  #getReady(executions: readonly Execution[], wait: Wait, how: How, since: number | null): Prepared | Promise<unknown> {
    const { listening, lookup, services, settings } = this.#client;
    const { live, schema, router } = services;
    wait.throwIfAborted();
    const topology = live.current;
    this.#checkStale(topology);
    const unheld = how === TO_FAIL;
    if (!unheld && this.transaction?.ending) throw transactionEnded();
    if (!unheld) this.span?.check(executions);
    if (!unheld && !this.#begun && !live.schemaReady)
      return this.#waitForChange(wait.signal, since ?? performance.now());
    // Not within a transaction: it may itself keep the schema from being read.
    if (!unheld && !this.#begun && schema.holdsUp(executions)) return this.#waitForSchema(wait.signal);
    const placement = place(executions, router, topology);
    if (placement.kind === 'refused') throw refusedAs(placement.refusal);
    if (!unheld && !live.admits(placement, this.transaction, this.span))
      return this.#waitForChange(wait.signal, since ?? performance.now());
    if (placement.kind === 'fanout' || placement.kind === 'gather') {
      if (this.#describedOnly) return this.#finishBatch(this.backend as Backend).then(() => this.releaseIfIdle());
      return this.#spread(placement, executions);
    }
    // Whoever asks opens a transaction for it.
    if (placement.kind === 'halves' && !this.inBlock) {
      if (this.#describedOnly) return this.#finishBatch(this.backend as Backend).then(() => this.releaseIfIdle());
      if (this.unsynced) throw fanOutRefused(this.pinned);
      return placement;
    }
    if (placement.kind === 'halves' && this.unsynced) {
      if (this.unsyncedDirty) throw notInBatch();
      return this.#finishBatch(this.backend as Backend);
    }
    const asksThem = firstThat(executions, asksSequences) >= 0;
    if (asksThem) this.#returnToSequences(placement.shards);
    const shard = this.#choose(placement.shards, executions);
    if (this.backend === null || this.backend.shard !== shard) {
      const moving = this.#moveTo(shard, placement, wait);
      if (moving !== null) return moving;
    }
    const backend = this.backend as Backend;
    if (!unheld && this.#begun && this.transaction !== null) {
      const asking = checkSnapshot(backend, this.transaction, placement, topology, this.unsynced);
      if (asking !== null) return asking;
    }
    if (!this.#begun && !this.serverSettings.has(backend)) {
      // What functions have changed is nowhere but there.
      if (this.pinning.has(SETTINGS_OF_FUNCTION)) backend.settings = settings.outside;
      else return this.#unlessDead(backend, this.serverSettings.apply(backend));
    }
    if (asksThem && (this.transaction?.draws !== true || this.span !== null)) {
      const asking = this.sequences.prepare(backend, executions, this.unsynced, this.#drawing(executions));
      if (asking !== null) return asking;
    }
    // Before its transaction begins: what is used in that must not be of an older schema than what the client was told.
    if (!this.#begun) backend.prepareFor(this.#client.statements.schemaVersion);
    const first = listening.prepare(backend, executions, this.#begun);
    if (first !== null) return orServerError(first);
    const mustSpell = !this.unsynced && !backend.byName && this.#seesNames(executions);
    const opens = this.transaction?.deferred === true ? this.transaction : null;
    const togetherWith = how === TOGETHER && placement.kind === 'one' && placement.hot === undefined;
    if (opens !== null && (!togetherWith || mustSpell || opens.prelude.length > 1))
      return this.#unlessDead(backend, this.#open(backend, opens));
    if (mustSpell) {
      this.pinning.add(BY_NAME);
      return orServerError(prepareByName(backend, this.#client.statements));
    }
    if (placement.kind === 'halves' && this.span?.has(placement.hotShard) !== true)
      return this.#openHot(backend, placement, wait);
    if (!lookup.agrees(backend.connection.parameters)) this.serverSettings.tellParameters(backend);
    const { current } = lookup;
    for (const execution of executions)
      if (execution.lookup !== null && execution.lookup !== current) return { kind: 'again' };
    if (opens !== null) this.#openWith(backend, opens);
    this.transaction ??= new Transaction(topology);
    this.transaction.since ??= topology;
    if (placement.kind === 'halves') {
      const { base, hot } = byHalf(placement);
      this.transaction.touch(base);
      this.span?.touch(placement.hotShard, hot);
    } else this.transaction.touch(placement);
    listening.sending(backend, executions);
    this.#sending(backend, executions);
    return placement;
  }

  /**
   * `prepare` has refused these. Which of them is the reason, when PostgreSQL would have come to it in a transaction block that others of them
   * begin; -1: there is no block, or it was open before.
   */
  refusedInBlock(executions: readonly Execution[]): number {
    if (this.transaction !== null || this.unsynced) return -1;
    return refusedInBlock(executions, this.#client.services.router, this.#client.services.live.current);
  }

  #seesNames(executions: readonly Execution[]): boolean {
    return firstThat(executions, (plan) => seesNames(plan, this.#client.statements)) >= 0;
  }

  /** A transaction block is open, for the client and perhaps a server. */
  get inBlock(): boolean {
    return this.transaction?.deferred === true || (this.backend !== null && this.backend.status !== IDLE);
  }

  /** Whether a transaction is open on the server, or a batch is. */
  get #begun(): boolean {
    return this.backend !== null && (this.backend.status !== IDLE || this.unsynced);
  }

  /** Whether the open batch has only parsed and described so far, as drivers do to learn the types of parameters, outside a transaction. */
  get #describedOnly(): boolean {
    return this.backend?.status === IDLE && this.unsynced && !this.unsyncedDirty && this.pinned === null;
  }

  /** Whether what the open transaction touches is no longer all on its shard, or may have been away. */
  isStale(topology: Topology): boolean {
    const { backend, transaction } = this;
    if (this.span?.isStale(topology) === true) return true;
    return backend !== null && transaction !== null && hasLeft({ backend, transaction }, topology);
  }

  /** Whether nothing has to be done before this plain statement of the open transaction, but what `sendingPlain` does. */
  maySendPlain(plan: StatementPlan): boolean {
    const { asksSequences, schema } = this.#client.services;
    return plan.showsPrepared !== true && schema.fresh && !(draws(plan) && asksSequences.value);
  }

  /** The plain statement goes to the connection now, and is the first to: with BEGIN before it, if the client has said that. */
  startPlain(plan: StatementPlan, footprint: Footprint): void {
    const backend = this.backend as Backend;
    this.map.see(footprint.topology);
    if (this.transaction?.deferred === true) this.#openWith(backend, this.transaction);
    this.transaction ??= new Transaction(footprint.topology);
    this.transaction.since ??= footprint.topology;
    this.transaction.touch(footprint);
    this.sendingPlain(plan);
  }

  /** The plain statement goes to the connection now, in the transaction that is open there. */
  sendingPlain(plan: StatementPlan): void {
    const { sequences } = this;
    const backend = this.backend as Backend;
    const writes = plan.kind === 'write';
    this.#client.listening.sendingPlain(backend, writes);
    if (!writes) return;
    // On its own it asks for nothing that others have drawn.
    if (draws(plan) && backend.status !== IDLE) {
      if (sequences.place !== backend && backend.sequencesOf !== null) backend.forgetSequences();
      (this.transaction as Transaction).draws = true;
    }
    sequences.mayHaveDrawn(backend);
  }

  /** Gives the connection back if nothing keeps it. To be called when the server is ready for a query. */
  releaseIfIdle(): void {
    const backend = this.backend;
    if (backend === null || this.unsynced || !backend.reusable) return;
    // One that no server has been told of goes on, elsewhere too.
    if (this.transaction?.deferred !== true) this.transaction = null;
    if (this.pinned === null) {
      this.backend = null;
      this.#return(backend);
    }
    this.#client.services.live.released();
  }

  /** What has been set on it unseen must not get to the next client. */
  #return(backend: Backend): void {
    if (this.#settingsUnsure) backend.settings = null;
    this.#settingsUnsure = false;
    giveBack(backend, this.#client.services.pool(backend.shard));
  }

  /** The connection has died before anything was sent on it: forgets it, and nothing else. */
  replaceDead(): void {
    const { backend, transaction } = this;
    this.backend = null;
    this.unsynced = false;
    this.unsyncedDirty = false;
    if (transaction?.opening) {
      transaction.opening = false;
      transaction.deferred = true;
    }
    if (transaction?.deferred !== true) this.transaction = null;
    if (backend) this.#client.services.pool(backend.shard).discard(backend);
  }

  /** Waits for `work`, also when the connection turns out to have died before it was used: then another is taken. */
  async #unlessDead(backend: Backend, work: Promise<unknown>): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (backend.lost === null || !backend.untouched) throw error;
    }
  }

  /** Forgets everything about the connection, which is closed. */
  discard(): void {
    const backend = this.backend;
    this.span?.discard();
    this.span = null;
    this.backend = null;
    this.transaction = null;
    this.unsynced = false;
    this.unsyncedDirty = false;
    this.untold = false;
    this.pinning.clear();
    this.#settingsUnsure = false;
    if (backend) this.#client.services.pool(backend.shard).discard(backend);
    this.#client.services.live.released();
  }

  /**
   * A write came too late for its shard (SH001): leaves that shard, so that the next `prepare` opens the same
   * transaction at the new owner. Only for a transaction that was clean before this statement.
   */
  async abandon(prelude: readonly Buffer[]): Promise<void> {
    const backend = this.backend;
    if (backend !== null) {
      if (backend.status !== IDLE) await this.rollBack(backend);
      // What it is pinned for stays where it is; the statement is then refused if its range has left.
      if (this.pinned === null) {
        this.backend = null;
        this.#client.listening.left(backend);
        this.#return(backend);
      }
    }
    const said = this.transaction?.said ?? null;
    this.transaction = null;
    if (prelude.length > 0) this.#defer(new Prelude(prelude, said));
    this.#client.services.live.released();
  }

  /** BEGIN answered by the proxy itself: the server hears of it with the first statement that says which shard it is. */
  begin(text: Buffer): void {
    this.#defer(new Prelude([text]));
  }

  #defer(said: Prelude): void {
    const transaction = new Transaction(this.#client.services.live.current, said);
    transaction.deferred = true;
    this.transaction = transaction;
  }

  /** @throws RefusedError when they would tell of a branch what is to be told of the whole transaction */
  #choose(shards: readonly ShardName[], executions: readonly Execution[]): ShardName {
    const here = this.backend?.shard;
    // Or it is about to be on several.
    const first = this.span?.first ?? (this.transaction?.clean === false && this.#begun ? (here ?? null) : null);
    if (first !== null && (this.span !== null || !shards.includes(first)) && executions.some(tells)) {
      if (shards.includes(first)) return first;
      if (this.#client.services.spanning !== null) throw toldBySeveral(first);
    }
    if (here !== undefined && shards.includes(here)) return here;
    return shards[0] as ShardName;
  }

  /** The statements go to this connection now. */
  #sending(backend: Backend, executions: readonly Execution[]): void {
    const { asksSequences, live, router, schema } = this.#client.services;
    const { sequences } = this;
    this.span?.sending(executions);
    // What they run may be something else than what is known of it.
    const doubtful =
      this.transaction?.madeCode === true ||
      schema.mayRunUnread(executions) ||
      (executions.length > 1 && firstThat(executions, isDdl) >= 0);
    if (doubtful) {
      this.pinning.doubt();
      this.#settingsUnsure = true;
      this.transaction?.said.tie(MAY_CHANGE_SETTINGS);
      if (!this.unsynced && this.transaction?.draws !== true && sequences.isForeign(backend))
        sequences.cleanFirst(backend);
    }
    if (firstThat(executions, this.#drawing(executions)) >= 0 && !this.unsynced) {
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
      const ties = tying(plan);
      if (ties !== null) this.transaction?.said.tie(ties);
      if (!plan.unsureOfState && !plan.executesText) continue;
      // Which of PostgreSQL's settings a function has made the server tells, but not of custom ones.
      this.#settingsUnsure = true;
      const text = execution.analyzed.text.toString('latin1');
      if (plan.command === 'DO' ? router.mayKeepSettings(text) : handsOverSettings(text, execution))
        this.pinning.add(SETTINGS_OF_FUNCTION);
    }
  }

  /** Which statements are taken to draw numbers: what tables do by themselves may have been changed a moment ago. */
  #drawing(executions: readonly Execution[]): (plan: StatementPlan) => boolean {
    const sure =
      this.#client.services.schema.fresh &&
      this.transaction?.changedSchema !== true &&
      (executions.length === 1 || firstThat(executions, isDdl) < 0);
    return sure ? draws : mayDraw;
  }

  /** currval or lastval outside a transaction: on the very connection that drew the number, if it is free. */
  #returnToSequences(shards: readonly ShardName[]): void {
    this.#client.services.asksSequences.value = true;
    const { place } = this.sequences;
    if (this.pinned !== null || this.#begun || typeof place === 'string' || place === this.backend) return;
    if (!shards.includes(place.shard) || !this.#client.services.pool(place.shard).take(place)) return;
    if (this.backend !== null) this.#giveBack();
    place.attach(this.#owner);
    this.backend = place;
  }

  /** @throws RefusedError when the transaction was ended of which these are to be a part */
  #checkEnded([first]: readonly Execution[]): void {
    if (!this.untold) return;
    const effect = first === undefined ? null : planOf(first)?.effect;
    this.untold = false;
    // What ends it need not know. Of a failed one COMMIT is ROLLBACK; in any other it would say that something was committed.
    if (effect?.kind === 'rollback' && !effect.chain) return;
    if (effect?.kind === 'commit' && this.backend?.status === FAILED) return;
    const inBlock = this.transaction?.deferred === true || this.#begun;
    if (!inBlock) this.transaction = null;
    throw transactionEnded();
  }

  /** @returns a promise: to be asked again @throws RefusedError when it cannot run in the client's transaction */
  #spread(placement: Spreading, executions: readonly Execution[]): Prepared | Promise<unknown> {
    if (this.pinned !== null && this.pinning.soft && !this.#begun) {
      this.pinning.clear();
      this.releaseIfIdle();
    }
    // One that was waited for by a map on which it needed no other: it is among those that it takes now, and may be the only one there is.
    if (this.backend !== null && !this.#begun && this.pinned === null) {
      if (this.transaction?.deferred !== true) this.transaction = null;
      this.#giveBack();
    }
    const { backend, transaction } = this;
    if (backend === null && transaction === null) return placement;
    if (this.pinned !== null || transaction === null) throw fanOutRefused(this.pinned);
    if (!transaction.deferred) {
      if (backend === null || backend.status === IDLE) throw fanOutRefused(null);
      // The end of a batch is not that of the block.
      if (this.unsynced) return this.#finishBatch(backend);
      // In the batch that was ended: its client has been told.
      if (backend.status === FAILED)
        return { kind: 'one', shards: [backend.shard], writes: false, ...NOTHING, topology: placement.topology };
    }
    checkSpread(transaction, executions);
    return placement;
  }

  /** The connections of the transaction's branches. */
  get branches(): readonly Backend[] {
    return [...(this.backend === null ? [] : [this.backend]), ...(this.span?.parked ?? [])];
  }

  /** The connection of a branch has served a statement over several shards. */
  takeBack(backend: Backend): void {
    const owner = backend === this.backend ? this.#owner : this.span;
    if (owner === null || !this.branches.includes(backend)) return;
    backend.hand(owner);
    if (backend.lost !== null) owner.onLost(backend, backend.lost);
  }

  /** After a flip, a transaction whose rows have moved away cannot go on. */
  #checkStale(topology: Topology): void {
    if (this.map.see(topology) && this.isStale(topology)) throw transactionMoved();
  }

  #waitForChange(signal: AbortSignal, since: number): Promise<void> {
    // A lease between nothing and a statement would keep a connection from others while it waits.
    if (this.backend !== null && !this.#begun && this.pinned === null) this.#giveBack();
    return this.map.change(signal, since);
  }

  #waitForSchema(signal: AbortSignal): Promise<void> {
    if (this.backend !== null && this.pinned === null) this.#giveBack();
    return this.map.schema(signal);
  }

  /** Nothing is open on it any more. */
  giveBackUnlessPinned(): void {
    if (this.pinned === null) this.#giveBack();
  }

  /** Ends the open batch without its Sync; nothing of it is committed. */
  failBatch(backend: Backend): Promise<void> {
    backend.send(FAILING_BIND, { kind: 'bind', internal: true, quiet: true });
    this.unsyncedDirty = false;
    return this.#finishBatch(backend);
  }

  #giveBack(): void {
    const backend = this.backend as Backend;
    this.backend = null;
    this.#client.listening.left(backend);
    this.#return(backend);
  }

  /** Null: the connection is there. */
  #moveTo(shard: ShardName, { touches }: Footprint, wait: Wait): Promise<void> | null {
    const from = this.backend;
    if (from !== null) {
      if (this.pinned !== null && this.pinning.soft) this.pinning.clear();
      const open = from.status !== IDLE;
      const begun = open && this.transaction !== null && !this.transaction.clean;
      const spanning = begun ? this.#spanning(from) : null;
      if (typeof spanning === 'object' && spanning !== null) return this.#branchTo(shard, from, spanning, wait);
      checkMove(from.shard, shard, {
        pinned: this.pinned,
        transaction: begun,
        tied: spanning,
        batch: this.unsynced && this.unsyncedDirty,
        keyspaces: [...new Set([...(this.transaction?.touches ?? []), ...touches].map((touch) => touch.keyspace))],
      });
      if (this.unsynced || open) return this.#leave(from, open);
      this.#giveBack();
    }
    const idle = this.#client.services.pool(shard).takeIdle();
    if (idle === null) return this.#acquire(shard, wait);
    this.use(idle);
    return null;
  }

  /** What a transaction needs to have a branch on another shard too; if it cannot, why, where that is not seen by `checkMove`. */
  #spanning(from: Backend): Spanning | string | null {
    const { spanning } = this.#client.services;
    const { transaction } = this;
    if (spanning === null || this.pinned !== null || this.unsynced || transaction === null) return null;
    if (from.status !== IN_TRANSACTION || transaction.opening) return null;
    return transaction.said.tied ?? spanning;
  }

  /** Goes on with the transaction's branch on `shard`, where nothing has been done yet, perhaps. */
  async #branchTo(shard: ShardName, from: Backend, spanning: Spanning, wait: Wait): Promise<void> {
    this.span ??= await Span.begin(this.#client, this, spanning);
    const { span } = this;
    const branch = await span.take(shard, wait);
    // The connection that it comes from may have been lost meanwhile, and the client with it.
    if (this.backend !== from || this.span !== span) {
      span.park(branch);
      span.discard();
      wait.throwIfAborted();
      throw new ForeshardError('08006', `the connection to shard "${from.shard}" was lost`);
    }
    span.park({ backend: from, transaction: this.transaction as Transaction });
    branch.backend.hand(this.#owner);
    this.backend = branch.backend;
    this.transaction = branch.transaction;
    this.serverSettings.tellParameters(branch.backend);
  }

  /** The transaction, which is open on `from`, gets a branch on the shard of the hot half too, where nothing runs yet. */
  async #openHot(from: Backend, { hotShard, touches }: Placement & { kind: 'halves' }, wait: Wait): Promise<void> {
    const spanning = this.#spanning(from);
    if (typeof spanning !== 'object' || spanning === null) {
      const keyspaces = [...new Set(touches.map((touch) => touch.keyspace))];
      checkMove(from.shard, hotShard, {
        pinned: this.pinned,
        transaction: true,
        tied: spanning,
        batch: false,
        keyspaces,
      });
      return;
    }
    this.span ??= await Span.begin(this.#client, this, spanning);
    const { span } = this;
    const branch = await span.take(hotShard, wait);
    span.park(branch);
    if (this.backend === from && this.span === span) return;
    span.discard();
    wait.throwIfAborted();
    throw new ForeshardError('08006', `the connection to shard "${from.shard}" was lost`);
  }

  /** Goes on with the branch of the transaction on `shard`, which it has. Nothing runs on the one before. @throws when it is lost */
  turnTo(shard: ShardName): Backend {
    const { backend, span, transaction } = this;
    if (backend === null || transaction === null)
      throw new ForeshardError('08006', `the connection to shard "${shard}" was lost`);
    if (backend.shard === shard || span === null) return backend;
    span.check([]);
    const branch = span.takeOpen(shard);
    span.park({ backend, transaction });
    // Its rows may have been held back for the client.
    backend.connection.resume();
    branch.backend.hand(this.#owner);
    branch.transaction.ending ||= transaction.ending;
    this.backend = branch.backend;
    this.transaction = branch.transaction;
    return branch.backend;
  }

  /** The transaction is over on the lease's connection, or has failed there for good: so it is everywhere. */
  async endSpan(): Promise<void> {
    const { span } = this;
    try {
      await span?.rollBack();
    } finally {
      // Not before: a hold waits for what is still open there.
      if (this.span === span) this.span = null;
    }
  }

  /** Commits the transaction on all its shards. @throws see Span.commit */
  async commitSpan(wait: Wait): Promise<void> {
    const { span } = this;
    const { live } = this.#client.services;
    try {
      await span?.commit(async () => {
        const since = performance.now();
        while (!live.mayServe) await this.map.change(wait.signal, since);
        if (this.transaction?.ending) throw transactionEnded();
        if (this.isStale(live.current)) throw transactionMoved();
      });
    } finally {
      this.span = null;
      if (this.backend?.lost !== null && this.backend?.lost !== undefined) this.discard();
    }
  }

  /** Ends what is open there and gives the connection back. */
  async #leave(from: Backend, open: boolean): Promise<void> {
    if (this.unsynced) await this.#finishBatch(from);
    if (open) await this.rollBack(from);
    this.#giveBack();
    if (open && this.transaction !== null) this.#defer(this.transaction.said);
  }

  async #acquire(shard: ShardName, wait: Wait): Promise<void> {
    const { activity, services } = this.#client;
    const acquired = services.pool(shard).acquire(wait, () => this.#client.write(queueNotice(shard)));
    this.use(await activity.waitFor(acquired));
  }

  /** The connection, which nobody has, is the client's. */
  use(backend: Backend): void {
    this.#client.activity.assignments += 1;
    backend.attach(this.#owner);
    this.backend = backend;
  }

  async rollBack(backend: Backend): Promise<void> {
    const { connectTimeoutMs } = this.#client.services.pool(backend.shard).options;
    await answeredAtOnce(backend, connectTimeoutMs, () => backend.runInternal(ROLLBACK));
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
   * Has the server begin with what is sent next, in one packet and with one answer. In the extended protocol: what stands behind a
   * BEGIN that fails is skipped, where a Query behind a Query would run all the same, outside of any transaction.
   */
  #openWith(backend: Backend, transaction: Transaction): void {
    this.serverSettings.tellParameters(backend);
    transaction.deferred = false;
    transaction.opening = true;
    backend.begin(transaction.prelude[0] as Buffer, {
      done: () => {
        transaction.opening = false;
      },
      failed: (frame) => {
        transaction.opening = false;
        transaction.deferred = true;
        this.#unopened = kept(frame);
      },
    });
  }

  /** What the server said if it could not open the transaction that was sent together with its first statement. Told once. */
  takeUnopened(): Buffer | null {
    const frame = this.#unopened;
    this.#unopened = null;
    return frame;
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
    this.serverSettings.tellParameters(backend);
  }
}

/** What is touched on the shard of each half. */
function byHalf(placement: Placement & { kind: 'halves' }): { readonly base: Footprint; readonly hot: Footprint } {
  const { everything, halves, topology, touches, writesReference } = placement;
  const isHot = ({ keyspace }: { readonly keyspace: string }) => keyspace === halves.keyspace;
  return {
    base: { topology, touches: touches.filter((touch) => !isHot(touch)), everything, writesReference },
    hot: { topology, touches: touches.filter(isHot), everything: false, writesReference: false },
  };
}

function refusedAs({ sqlstate, message, hint }: Refusal): RefusedError {
  return new RefusedError(sqlstate, message, hint === undefined ? {} : { hint });
}

/** Rejects with what the server says, in its own words. */
function orServerError(work: Promise<unknown>): Promise<unknown> {
  return work.catch((error: unknown) => {
    throw asServerError(error);
  });
}
