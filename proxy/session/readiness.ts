import { type ShardName, soleShard, type Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { asServerError } from '../backend/internal-statement.js';
import { type Refusal, SETTINGS_OF_FUNCTION } from '../router/route.js';
import { FAILED, IDLE } from '../wire/transaction-status.js';
import { BY_NAME, prepareByName, seesNames } from './by-name.js';
import type { Footprint } from './footprint.js';
import type { Lease, LeaseClient } from './lease.js';
import { checkSnapshot } from './old-snapshot.js';
import type { Execution, Placement } from './placement.js';
import { firstThat, place, planOf, refusedInBlock } from './placement.js';
import {
  behindFailed,
  fanOutRefused,
  notInBatch,
  RefusedError,
  toldBySeveral,
  transactionEnded,
  transactionMoved,
} from './refusals.js';
import type { Sending } from './sending.js';
import { asksSequences } from './sequences.js';
import { ShardChange } from './shard-change.js';
import { checkSpread } from './spread-block.js';
import { revives, tells } from './statement-ties.js';
import { Transaction } from './transaction.js';
import type { Wait } from './wait.js';

const NOTHING = { touches: [], parts: [], everything: false, writesReference: false } as const;

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
 * Has the right server connection ready for statements: chooses the shard, waits for what holds them up, and does there what comes before them.
 */
export class Readiness {
  readonly #client: LeaseClient;
  readonly #lease: Lease;
  readonly #change: ShardChange;
  readonly #sending: Sending;

  constructor(client: LeaseClient, lease: Lease, sending: Sending) {
    this.#client = client;
    this.#lease = lease;
    this.#change = new ShardChange(client, lease);
    this.#sending = sending;
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
    if (this.#lease.backend?.status === FAILED && !this.#lease.unsynced) {
      this.#lease.span?.checkFailed(executions);
      if (revives(executions)) return this.#revive(executions, wait);
      this.#lease.span?.sending(executions);
      return {
        kind: 'one',
        shards: [this.#lease.backend.shard],
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
    const { backend } = this.#lease;
    // It may have died meanwhile.
    if (backend?.status !== FAILED) return this.prepare(executions, wait);
    const { live, router } = this.#client.services;
    const topology = live.current;
    wait.throwIfAborted();
    if (soleShard(topology) === null) throw behindFailed();
    const placement = place(executions, router, topology);
    if (placement.kind === 'refused') throw refusedAs(placement.refusal);
    if (placement.kind !== 'one' || !placement.shards.includes(backend.shard)) throw behindFailed();
    if (!live.admits(placement, this.#lease.transaction, this.#lease.span))
      return this.#waitForChange(wait.signal, since).then(() => this.#revive(executions, wait, since));
    this.#lease.transaction ??= new Transaction(topology);
    this.#lease.transaction.touch(placement);
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
    if (!unheld && this.#lease.transaction?.ending) throw transactionEnded();
    if (!unheld) this.#lease.span?.check(executions);
    if (!unheld && !this.#lease.begun && !live.schemaReady)
      return this.#waitForChange(wait.signal, since ?? performance.now());
    // Not within a transaction: it may itself keep the schema from being read.
    if (!unheld && !this.#lease.begun && schema.holdsUp(executions)) return this.#waitForSchema(wait.signal);
    const placement = place(executions, router, topology);
    if (placement.kind === 'refused') throw refusedAs(placement.refusal);
    if (!unheld && !live.admits(placement, this.#lease.transaction, this.#lease.span))
      return this.#waitForChange(wait.signal, since ?? performance.now());
    if (placement.kind === 'fanout' || placement.kind === 'gather') {
      if (this.#describedOnly)
        return this.#lease.finishBatch(this.#lease.backend as Backend).then(() => this.#lease.releaseIfIdle());
      return this.#spread(placement, executions);
    }
    // Whoever asks opens a transaction for it.
    if (placement.kind === 'halves' && !this.#lease.inBlock) {
      if (this.#describedOnly)
        return this.#lease.finishBatch(this.#lease.backend as Backend).then(() => this.#lease.releaseIfIdle());
      if (this.#lease.unsynced) throw fanOutRefused(this.#lease.pinned);
      return placement;
    }
    if (placement.kind === 'halves' && this.#lease.unsynced) {
      if (this.#lease.unsyncedDirty) throw notInBatch();
      return this.#lease.finishBatch(this.#lease.backend as Backend);
    }
    const asksThem = firstThat(executions, asksSequences) >= 0;
    if (asksThem) this.#returnToSequences(placement.shards);
    const shard = this.#choose(placement.shards, executions);
    if (this.#lease.backend === null || this.#lease.backend.shard !== shard) {
      const moving = this.#change.moveTo(shard, placement, wait);
      if (moving !== null) return moving;
    }
    const backend = this.#lease.backend as Backend;
    if (!unheld && this.#lease.begun && this.#lease.transaction !== null) {
      const asking = checkSnapshot(backend, this.#lease.transaction, placement, topology, this.#lease.unsynced);
      if (asking !== null) return asking;
    }
    if (!this.#lease.begun && !this.#lease.serverSettings.has(backend)) {
      // What functions have changed is nowhere but there.
      if (this.#lease.pinning.has(SETTINGS_OF_FUNCTION)) backend.settings = settings.outside;
      else return this.#unlessDead(backend, this.#lease.serverSettings.apply(backend));
    }
    if (asksThem && (this.#lease.transaction?.draws !== true || this.#lease.span !== null)) {
      const asking = this.#lease.sequences.prepare(
        backend,
        executions,
        this.#lease.unsynced,
        this.#sending.drawing(executions),
      );
      if (asking !== null) return asking;
    }
    // Before its transaction begins: what is used in that must not be of an older schema than what the client was told.
    if (!this.#lease.begun) backend.prepareFor(this.#client.statements.schemaVersion);
    const first = listening.prepare(backend, executions, this.#lease.begun);
    if (first !== null) return orServerError(first);
    const mustSpell = !this.#lease.unsynced && !backend.byName && this.#seesNames(executions);
    const opens = this.#lease.transaction?.deferred === true ? this.#lease.transaction : null;
    const togetherWith = how === TOGETHER && placement.kind === 'one' && placement.hot === undefined;
    if (opens !== null && (!togetherWith || mustSpell || opens.prelude.length > 1))
      return this.#unlessDead(backend, this.#lease.open(backend, opens));
    if (mustSpell) {
      this.#lease.pinning.add(BY_NAME);
      return orServerError(prepareByName(backend, this.#client.statements));
    }
    if (placement.kind === 'halves' && this.#lease.span?.has(placement.hotShard) !== true)
      return this.#change.openHot(backend, placement, wait);
    if (!lookup.agrees(backend.connection.parameters)) this.#lease.serverSettings.tellParameters(backend);
    const { current } = lookup;
    for (const execution of executions)
      if (execution.lookup !== null && execution.lookup !== current) return { kind: 'again' };
    if (opens !== null) this.#lease.openWith(backend, opens);
    this.#lease.transaction ??= new Transaction(topology);
    this.#lease.transaction.since ??= topology;
    if (placement.kind === 'halves') {
      const { base, hot } = byHalf(placement);
      this.#lease.transaction.touch(base);
      this.#lease.span?.touch(placement.hotShard, hot);
    } else this.#lease.transaction.touch(placement);
    listening.sending(backend, executions);
    this.#sending.sending(backend, executions);
    return placement;
  }

  /**
   * `prepare` has refused these. Which of them is the reason, when PostgreSQL would have come to it in a transaction block that others of them
   * begin; -1: there is no block, or it was open before.
   */
  refusedInBlock(executions: readonly Execution[]): number {
    if (this.#lease.transaction !== null || this.#lease.unsynced) return -1;
    return refusedInBlock(executions, this.#client.services.router, this.#client.services.live.current);
  }

  #seesNames(executions: readonly Execution[]): boolean {
    return firstThat(executions, (plan) => seesNames(plan, this.#client.statements)) >= 0;
  }

  /** Whether the open batch has only parsed and described so far, as drivers do to learn the types of parameters, outside a transaction. */
  get #describedOnly(): boolean {
    return (
      this.#lease.backend?.status === IDLE &&
      this.#lease.unsynced &&
      !this.#lease.unsyncedDirty &&
      this.#lease.pinned === null
    );
  }

  /** Waits for `work`, also when the connection turns out to have died before it was used: then another is taken. */
  async #unlessDead(backend: Backend, work: Promise<unknown>): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (backend.lost === null || !backend.untouched) throw error;
    }
  }

  /** @throws RefusedError when they would tell of a branch what is to be told of the whole transaction */
  #choose(shards: readonly ShardName[], executions: readonly Execution[]): ShardName {
    const here = this.#lease.backend?.shard;
    // Or it is about to be on several.
    const first =
      this.#lease.span?.first ??
      (this.#lease.transaction?.clean === false && this.#lease.begun ? (here ?? null) : null);
    if (first !== null && (this.#lease.span !== null || !shards.includes(first)) && executions.some(tells)) {
      if (shards.includes(first)) return first;
      if (this.#client.services.spanning !== null) throw toldBySeveral(first);
    }
    if (here !== undefined && shards.includes(here)) return here;
    return shards[0] as ShardName;
  }

  /** currval or lastval outside a transaction: on the very connection that drew the number, if it is free. */
  #returnToSequences(shards: readonly ShardName[]): void {
    this.#client.services.asksSequences.value = true;
    const { place } = this.#lease.sequences;
    if (this.#lease.pinned !== null || this.#lease.begun || typeof place === 'string' || place === this.#lease.backend)
      return;
    if (!shards.includes(place.shard) || !this.#client.services.pool(place.shard).take(place)) return;
    if (this.#lease.backend !== null) this.#lease.giveBack();
    place.attach(this.#lease.owner);
    this.#lease.backend = place;
  }

  /** @throws RefusedError when the transaction was ended of which these are to be a part */
  #checkEnded([first]: readonly Execution[]): void {
    if (!this.#lease.untold) return;
    const effect = first === undefined ? null : planOf(first)?.effect;
    this.#lease.untold = false;
    // What ends it need not know. Of a failed one COMMIT is ROLLBACK; in any other it would say that something was committed.
    if (effect?.kind === 'rollback' && !effect.chain) return;
    if (effect?.kind === 'commit' && this.#lease.backend?.status === FAILED) return;
    const inBlock = this.#lease.transaction?.deferred === true || this.#lease.begun;
    if (!inBlock) this.#lease.transaction = null;
    throw transactionEnded();
  }

  /** @returns a promise: to be asked again @throws RefusedError when it cannot run in the client's transaction */
  #spread(placement: Spreading, executions: readonly Execution[]): Prepared | Promise<unknown> {
    if (this.#lease.pinned !== null && this.#lease.pinning.soft && !this.#lease.begun) {
      this.#lease.pinning.clear();
      this.#lease.releaseIfIdle();
    }
    // One that was waited for by a map on which it needed no other: it is among those that it takes now, and may be the only one there is.
    if (this.#lease.backend !== null && !this.#lease.begun && this.#lease.pinned === null) {
      if (this.#lease.transaction?.deferred !== true) this.#lease.transaction = null;
      this.#lease.giveBack();
    }
    const { backend, transaction } = this.#lease;
    if (backend === null && transaction === null) return placement;
    if (this.#lease.pinned !== null || transaction === null) throw fanOutRefused(this.#lease.pinned);
    if (!transaction.deferred) {
      if (backend === null || backend.status === IDLE) throw fanOutRefused(null);
      // The end of a batch is not that of the block.
      if (this.#lease.unsynced) return this.#lease.finishBatch(backend);
      // In the batch that was ended: its client has been told.
      if (backend.status === FAILED)
        return { kind: 'one', shards: [backend.shard], writes: false, ...NOTHING, topology: placement.topology };
    }
    checkSpread(transaction, executions);
    return placement;
  }

  /** After a flip, a transaction whose rows have moved away cannot go on. */
  #checkStale(topology: Topology): void {
    if (this.#lease.map.see(topology) && this.#lease.isStale(topology)) throw transactionMoved();
  }

  #waitForChange(signal: AbortSignal, since: number): Promise<void> {
    // A lease between nothing and a statement would keep a connection from others while it waits.
    if (this.#lease.backend !== null && !this.#lease.begun && this.#lease.pinned === null) this.#lease.giveBack();
    return this.#lease.map.change(signal, since);
  }

  #waitForSchema(signal: AbortSignal): Promise<void> {
    if (this.#lease.backend !== null && this.#lease.pinned === null) this.#lease.giveBack();
    return this.#lease.map.schema(signal);
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
