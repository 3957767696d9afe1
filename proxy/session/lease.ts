import { ForeshardError } from '../../topology/errors.js';
import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import { asServerError } from '../backend/internal-statement.js';
import type { StatementPlan } from '../router/route.js';
import { encodeQuery, SYNC } from '../wire/frontend.js';
import { kept } from '../wire/read-memory.js';
import { IDLE } from '../wire/transaction-status.js';
import { answeredAtOnce } from './answer-limit.js';
import type { ClientSession } from './client-session.js';
import { FAILING_BIND } from './failing-bind.js';
import type { Footprint } from './footprint.js';
import { giveBack } from './give-back.js';
import { MapWait } from './map-wait.js';
import { Pinning } from './pinning.js';
import type { Execution } from './placement.js';
import { Prelude } from './prelude.js';
import { type Prepared, Readiness } from './readiness.js';
import { transactionEnded, transactionMoved } from './refusals.js';
import { Sending } from './sending.js';
import { draws, Sequences } from './sequences.js';
import { ServerSettings } from './server-settings.js';
import { hasLeft, type Span, type SpanClient } from './span.js';
import type { ClientStatements } from './statements.js';
import { Transaction } from './transaction.js';
import type { Wait } from './wait.js';

const ROLLBACK = encodeQuery('ROLLBACK');

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

/**
 * Keeps the one server connection a client has at a time: takes it when there is something to run, moves a
 * transaction that has done nothing yet to the shard its first real statement needs, and gives it back.
 */
export class Lease {
  readonly #client: LeaseClient;
  readonly #readiness: Readiness;
  /** Of connections that work for the client. */
  readonly owner: BackendOwner;
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
  settingsUnsure = false;
  #unopened: Buffer | null = null;

  constructor(client: LeaseClient, owner: BackendOwner) {
    this.#client = client;
    this.owner = owner;
    this.map = new MapWait(client);
    this.pinning = new Pinning(client);
    this.sequences = new Sequences(client.id);
    this.serverSettings = new ServerSettings(client);
    this.#readiness = new Readiness(client, this, new Sending(client, this));
  }

  /** Why the connection must stay, or null. */
  get pinned(): string | null {
    return this.pinning.reason;
  }

  /** See Readiness. */
  prepare(executions: readonly Execution[], wait: Wait, together = false): Prepared | Promise<Prepared> {
    return this.#readiness.prepare(executions, wait, together);
  }

  /** See Readiness. */
  openToFail(wait: Wait): Promise<void> {
    return this.#readiness.openToFail(wait);
  }

  /** See Readiness. */
  refusedInBlock(executions: readonly Execution[]): number {
    return this.#readiness.refusedInBlock(executions);
  }

  /** A transaction block is open, for the client and perhaps a server. */
  get inBlock(): boolean {
    return this.transaction?.deferred === true || (this.backend !== null && this.backend.status !== IDLE);
  }

  /** Whether a transaction is open on the server, or a batch is. */
  get begun(): boolean {
    return this.backend !== null && (this.backend.status !== IDLE || this.unsynced);
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
    if (this.transaction?.deferred === true) this.openWith(backend, this.transaction);
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
    if (this.settingsUnsure) backend.settings = null;
    this.settingsUnsure = false;
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
    this.settingsUnsure = false;
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
    if (prelude.length > 0) this.defer(new Prelude(prelude, said));
    this.#client.services.live.released();
  }

  /** BEGIN answered by the proxy itself: the server hears of it with the first statement that says which shard it is. */
  begin(text: Buffer): void {
    this.defer(new Prelude([text]));
  }

  defer(said: Prelude): void {
    const transaction = new Transaction(this.#client.services.live.current, said);
    transaction.deferred = true;
    this.transaction = transaction;
  }

  /** The connections of the transaction's branches. */
  get branches(): readonly Backend[] {
    return [...(this.backend === null ? [] : [this.backend]), ...(this.span?.parked ?? [])];
  }

  /** The connection of a branch has served a statement over several shards. */
  takeBack(backend: Backend): void {
    const owner = backend === this.backend ? this.owner : this.span;
    if (owner === null || !this.branches.includes(backend)) return;
    backend.hand(owner);
    if (backend.lost !== null) owner.onLost(backend, backend.lost);
  }

  /** Nothing is open on it any more. */
  giveBackUnlessPinned(): void {
    if (this.pinned === null) this.giveBack();
  }

  /** Ends the open batch without its Sync; nothing of it is committed. */
  failBatch(backend: Backend): Promise<void> {
    backend.send(FAILING_BIND, { kind: 'bind', internal: true, quiet: true });
    this.unsyncedDirty = false;
    return this.finishBatch(backend);
  }

  giveBack(): void {
    const backend = this.backend as Backend;
    this.backend = null;
    this.#client.listening.left(backend);
    this.#return(backend);
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
    branch.backend.hand(this.owner);
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

  /** The connection, which nobody has, is the client's. */
  use(backend: Backend): void {
    this.#client.activity.assignments += 1;
    backend.attach(this.owner);
    this.backend = backend;
  }

  async rollBack(backend: Backend): Promise<void> {
    const { connectTimeoutMs } = this.#client.services.pool(backend.shard).options;
    await answeredAtOnce(backend, connectTimeoutMs, () => backend.runInternal(ROLLBACK));
    // What SET LOCAL had made of search_path is over, and such a server does not say so.
    if (!backend.connection.reportsSearchPath) backend.settings = null;
  }

  /** Ends a batch of Parse and Describe whose replies the client already has. */
  finishBatch(backend: Backend): Promise<void> {
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
  openWith(backend: Backend, transaction: Transaction): void {
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

  async open(backend: Backend, transaction: Transaction): Promise<void> {
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
