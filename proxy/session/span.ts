import { ForeshardError } from '../../topology/errors.js';
import type { ShardName, Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner } from '../backend/expectation.js';
import { asServerError, InternalStatementError } from '../backend/internal-statement.js';
import type { SessionEffect } from '../router/route.js';
import type { BranchEnd, Coordinator } from '../transactions/coordinator.js';
import type { DeadlockDetector, SpanningTransaction } from '../transactions/deadlock-detector.js';
import { markSql, newKey } from '../transactions/transaction-key.js';
import { ServerError } from '../wire/error-response.js';
import { encodeQuery } from '../wire/frontend.js';
import { FAILED, IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import { answeredAtOnce, limitAnswer } from './answer-limit.js';
import type { ClientSession } from './client-session.js';
import { failAt } from './failing-query.js';
import { type Footprint, stillOn } from './footprint.js';
import { giveBack } from './give-back.js';
import type { Lease } from './lease.js';
import { type Execution, planOf } from './placement.js';
import { lost, RefusedError, transactionMoved } from './refusals.js';
import { applySettings } from './server-settings.js';
import type { SpreadWait } from './spread-wait.js';
import { Transaction } from './transaction.js';
import type { Wait } from './wait.js';

/** What transactions on several shards need of the process. */
export interface Spanning {
  readonly coordinator: Pick<Coordinator, 'commit'>;
  readonly deadlocks: Pick<DeadlockDetector, 'add' | 'remove'>;
  /** How long a shard may take for what is deferred to the end of a transaction, ms; 0: as long as it likes. */
  readonly prepareMs: () => number;
}

/** A transaction's part on one shard. */
export interface Branch {
  readonly backend: Backend;
  readonly transaction: Transaction;
}

/** A branch has gone back to a savepoint, by this. */
interface Back {
  readonly backend: Backend;
  readonly query: Buffer;
}

/** A branch on which nothing runs at the moment. */
interface Parked extends Branch {
  /** A savepoint or setting could not be made there too: it has failed. */
  error: unknown;
}

/** Whose transaction it is. */
export interface SpanClient extends Pick<ClientSession, 'services' | 'settings' | 'activity' | 'listening'> {
  /** Cancels the statement that a server has; the client is told `reason`. */
  failUnderWay(reason: ForeshardError): void;
  /** Cancel requests have reached their servers. */
  canceled(): void;
}

/** So many connections in a row may turn out to be dead before they are used. */
const DEAD_CONNECTIONS = 5;

const COMMIT = 'COMMIT';
/** Only what has a transaction id has changed or locked rows. */
const HAS_WRITTEN = encodeQuery('SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL');

/**
 * A transaction on several shards. The lease has the branch on which the client's statement runs; this has the others, with nothing under
 * way, keeps savepoints and settings the same on all of them, and ends them together.
 */
export class Span implements BackendOwner, SpanningTransaction {
  readonly rowsAtStake = true;
  /** See SpanningTransaction. */
  readonly key: bigint;
  readonly #client: SpanClient;
  readonly #lease: Lease;
  readonly #spanning: Spanning;
  /** The branch that was there first: what tells the transaction as a whole is asked there. */
  readonly first: ShardName;
  readonly #parked = new Map<ShardName, Parked>();
  /** Statements of the client that run on the other branches too. Null: none do. */
  #echoes: Promise<void> | null = null;
  /** Has gone back to a savepoint, and with that has given up what it is known by. */
  #remark: Back | null = null;
  /** On performance.now()'s clock; null: it is not being committed. */
  #committingSince: number | null = null;
  /** The statement over several shards that runs in it; null: none does. */
  spread: SpreadWait | null = null;
  /** Its commit has been canceled for this reason. */
  #stopped: ForeshardError | null = null;
  /** The lease's branch has been asked for what it answers at once: ends the wait. */
  #answeredHere: (() => void) | null = null;

  private constructor(client: SpanClient, lease: Lease, spanning: Spanning, first: ShardName) {
    this.#client = client;
    this.#lease = lease;
    this.#spanning = spanning;
    this.first = first;
    this.key = lease.transaction?.key ?? newKey();
    spanning.deadlocks.add(this);
  }

  /**
   * The transaction that is open on the lease's connection is to have a branch on another shard.
   * @throws RefusedError when it cannot be READ COMMITTED there, or its server cannot prepare transactions
   */
  static async begin(client: SpanClient, lease: Lease, spanning: Spanning): Promise<Span> {
    const { backend, transaction } = lease as { backend: Backend; transaction: Transaction };
    const span = new Span(client, lease, spanning, backend.shard);
    try {
      checkIsolation(await span.#mark(backend));
      transaction.seesAll = true;
    } catch (error) {
      spanning.deadlocks.remove(span);
      throw asServerError(error);
    }
    return span;
  }

  /** See SpanningTransaction. */
  get waitingSince(): number | null {
    const { backend } = this.#lease;
    if (this.spread !== null) return this.spread.waitingSince;
    // What was deferred to the end of the transaction waits there.
    if (this.#committingSince !== null) return this.#committingSince;
    return backend === null || backend.quiet ? null : backend.clock.since;
  }

  /** See SpanningTransaction. */
  fail(reason: ForeshardError): void {
    if (this.#committingSince === null) this.#client.failUnderWay(reason);
    else this.#stopCommit(reason);
  }

  /** What has been prepared already is rolled back when the others have not been. */
  #stopCommit(reason: ForeshardError): void {
    this.#stopped = reason;
    const cancels = this.underWay.map((backend) => this.#cancel(backend));
    void Promise.all(cancels).then(() => this.#client.canceled());
  }

  /** The connections of the branches on which nothing of the client runs. */
  get parked(): readonly Backend[] {
    return [...this.#backends()];
  }

  *#backends(): Iterable<Backend> {
    for (const { backend } of this.#parked.values()) yield backend;
  }

  /** Whether a branch on which nothing runs touches what `covers` says. */
  uses(covers: (footprint: Footprint) => boolean): boolean {
    for (const { transaction } of this.#parked.values()) if (covers(transaction)) return true;
    return false;
  }

  /** Whether what such a branch touches is no longer all on its shard. */
  isStale(topology: Topology): boolean {
    for (const branch of this.#parked.values()) if (hasLeft(branch, topology)) return true;
    return false;
  }

  /** See Transaction.overtaken. */
  overtake(): void {
    for (const { transaction } of this.#parked.values()) transaction.overtaken = true;
  }

  /** @throws when the transaction has lost a branch, or these statements cannot be part of it in this way */
  check(executions: readonly Execution[]): void {
    const [only] = executions;
    if (executions.length === 1 && only !== undefined) {
      const effect = planOf(only)?.effect;
      // Whatever has become of the others.
      if (effect?.kind === 'rollback' && !effect.chain) return;
    }
    for (const { backend, error } of this.#parked.values()) {
      if (backend.lost !== null) throw lost(backend.shard, backend.lost);
      if (backend.status !== IN_TRANSACTION)
        throw error ?? new ForeshardError('25P02', `the transaction has failed on shard "${backend.shard}"`);
    }
    for (const execution of executions) {
      const plan = planOf(execution);
      if (plan?.command === 'SET CONSTRAINTS')
        throw new RefusedError('0A000', 'SET CONSTRAINTS is not supported in a transaction on several shards', {
          hint: 'Declare the constraint DEFERRABLE INITIALLY DEFERRED.',
        });
      if (plan?.effect?.kind === 'commit' || plan?.effect?.kind === 'rollback') throw notAlone();
    }
  }

  /** The same while it has failed. @throws RefusedError */
  checkFailed(executions: readonly Execution[]): void {
    for (const execution of executions) {
      const effect = planOf(execution)?.effect;
      if ((effect?.kind === 'commit' || effect?.kind === 'rollback') && (effect.chain || executions.length > 1))
        throw notAlone();
    }
  }

  /**
   * These go to the lease's branch now. What rolls the transaction back, or is refused because it has failed, keeps no server waiting, and a server that hangs
   * is not to keep the locks that the transaction has on the others.
   */
  sending(executions: readonly Execution[]): void {
    this.#answeredHere?.();
    this.#answeredHere = null;
    const { backend } = this.#lease;
    if (backend === null) return;
    if (backend.status !== FAILED && !executions.some((one) => planOf(one)?.effect?.kind === 'rollback')) return;
    this.#answeredHere = limitAnswer(backend, this.#answerMs(backend));
  }

  /** It is being committed. */
  get committing(): boolean {
    return this.#committingSince !== null;
  }

  /** The connections on which something runs for its commit. */
  get underWay(): readonly Backend[] {
    const { backend } = this.#lease;
    const all = [...(backend === null ? [] : [backend]), ...this.#backends()];
    return all.filter(({ lost, quiet }) => lost === null && !quiet);
  }

  /** The branch on `shard`, opened if there is none yet; nothing runs on it. */
  async take(shard: ShardName, wait: Wait): Promise<Branch> {
    const parked = this.#parked.get(shard);
    if (parked === undefined) return this.#open(shard, wait);
    this.#parked.delete(shard);
    return parked;
  }

  /** Whether it has a branch there on which nothing runs. */
  has(shard: ShardName): boolean {
    return this.#parked.has(shard);
  }

  /** The branch on `shard`, which is there; nothing runs on it. */
  takeOpen(shard: ShardName): Branch {
    const branch = this.#parked.get(shard);
    if (branch === undefined) throw new ForeshardError('08006', `the connection to shard "${shard}" was lost`);
    this.#parked.delete(shard);
    return branch;
  }

  /** What a statement of the client's is about to use on the branch on `shard`. */
  touch(shard: ShardName, footprint: Footprint): void {
    this.#parked.get(shard)?.transaction.touch(footprint);
  }

  /** Nothing runs on this branch from now on. */
  park(branch: Branch): void {
    branch.backend.hand(this);
    this.#parked.set(branch.backend.shard, { ...branch, error: null });
  }

  async #open(shard: ShardName, wait: Wait): Promise<Branch> {
    const { services } = this.#client;
    const { said } = this.#lease.transaction as Transaction;
    let backend = await this.#acquire(shard);
    for (let times = 0; ; times++) {
      try {
        wait.throwIfAborted();
        await this.#begin(backend, said.texts);
        wait.throwIfAborted();
        break;
      } catch (error) {
        // It was dead before it was used.
        const again = backend.lost !== null && backend.untouched && times < DEAD_CONNECTIONS;
        await this.#leave(backend);
        if (!again) throw asServerError(error);
        backend = await this.#acquire(shard);
      }
    }
    const transaction = new Transaction(services.live.current, said);
    transaction.clean = false;
    transaction.seesAll = true;
    transaction.since = services.live.current;
    return { backend, transaction };
  }

  async #acquire(shard: ShardName): Promise<Backend> {
    const { activity, services } = this.#client;
    // Who waits for its connections may wait for one that this transaction has.
    const backend = await activity.waitFor(services.pool(shard).acquireBeyond());
    activity.assignments += 1;
    backend.attach(this);
    return backend;
  }

  /** Opens the transaction there, with the client's settings, savepoints and what else it has said. */
  async #begin(backend: Backend, [begin, ...rest]: readonly Buffer[]): Promise<void> {
    const { serverSettings, sequences } = this.#lease;
    // The client is told nothing before what it has set in the transaction is in force here too.
    if (!serverSettings.has(backend)) await applySettings(backend, this.#client.settings.outside);
    if (sequences.isForeign(backend)) await sequences.clean(backend);
    backend.prepareFor(this.#client.services.contents.version);
    for (const text of [begin as Buffer, ...rest]) await backend.runInternal(encodeQuery(text));
    checkIsolation(await this.#mark(backend));
    if (rest.length > 0) await backend.refreshSearchPath();
  }

  /** Has every server know which backends belong together. @returns the isolation level */
  async #mark(backend: Backend): Promise<string> {
    await backend.runInternal(encodeQuery(markSql(this.key)));
    const found = await backend.value(
      encodeQuery(
        "SELECT pg_catalog.current_setting('max_prepared_transactions') || ' ' || pg_catalog.current_setting('transaction_isolation')",
      ),
    );
    const [slots = '0', ...isolation] = (found ?? '').split(' ');
    if (Number(slots) === 0)
      throw new RefusedError(
        '0A000',
        `a transaction on several shards needs prepared transactions, and shard "${backend.shard}" has max_prepared_transactions = 0`,
        {
          hint: 'Set it to max_connections there and restart the server, or keep each transaction to the keys of one shard.',
        },
      );
    return isolation.join(' ');
  }

  /** The client has set a savepoint, gone back to one, or changed a setting: so do the other branches. To be waited for by `settle`. */
  echo(effect: SessionEffect, text: Buffer | null): void {
    switch (effect.kind) {
      case 'savepoint':
      case 'release':
      case 'rollback-to':
      case 'set':
        break;
      default:
        return;
    }
    if (text === null) return; // then the transaction is tied to where it is
    const query = encodeQuery(text);
    const work = [...this.#parked.values()].map(async (branch) => {
      const { backend } = branch;
      try {
        await this.#answered(backend, async () => {
          await backend.runInternal(query);
          if (effect.kind === 'rollback-to') await this.#markAgain({ backend, query });
        });
      } catch (error) {
        branch.error = asServerError(error);
      }
    });
    const { backend } = this.#lease;
    if (effect.kind === 'rollback-to' && backend !== null) this.#remark = { backend, query };
    this.#echoes = Promise.all([this.#echoes, ...work]).then(() => undefined);
  }

  /**
   * What the client's statement has to do on other branches before it is told that the proxy is ready. Null: nothing.
   * @param status of the branch on which it ran, in the transaction
   */
  settle(status: number): Promise<void> | null {
    this.#answeredHere?.();
    const echoes = this.#echoes;
    const remark = this.#remark;
    this.#echoes = null;
    this.#remark = null;
    if (status !== IN_TRANSACTION) return this.#failOthers(echoes);
    if (remark === null) return echoes;
    return Promise.all([echoes, this.#markAgain(remark)]).then(() => undefined);
  }

  /** Going back has given up locks, and among them what the branch is known by. */
  async #markAgain({ backend, query }: Back): Promise<void> {
    const mark = encodeQuery(markSql(this.key));
    try {
      await backend.runInternal(mark);
    } catch (error) {
      if (!(error instanceof InternalStatementError)) throw error;
      // A cancel request came late, and has hit this. It fails the transaction, which can go back once more.
      await backend.runInternal(query);
      await backend.runInternal(mark);
    }
  }

  /** A statement has failed: with that the transaction has, or its last savepoint, and gives up its locks everywhere. */
  async #failOthers(echoes: Promise<void> | null): Promise<void> {
    await echoes;
    const open = [...this.#parked.values()].filter(({ backend }) => backend.status === IN_TRANSACTION);
    await Promise.all(open.map(({ backend }) => this.#answered(backend, () => failAt(backend)).catch(() => undefined)));
  }

  /** Rolls all back that are not the lease's, and gives them back. */
  async rollBack(): Promise<void> {
    this.#close();
    await this.#echoes;
    await Promise.all([...this.#parked.values()].map(({ backend }) => this.#leave(backend)));
    this.#parked.clear();
  }

  /** Closes their connections. */
  discard(): void {
    this.#close();
    for (const { backend } of this.#parked.values()) this.#client.services.pool(backend.shard).discard(backend);
    this.#parked.clear();
  }

  /**
   * Commits all branches or none, and gives those back that are not the lease's. The lease's is in no transaction any more, or it is closed.
   * @param allowed rejects when it may not be committed any more
   * @throws what the client is to be told; nothing was committed then, unless it is an 08007
   */
  async commit(allowed: () => Promise<void>): Promise<void> {
    const current = this.#lease.backend as Backend;
    const all = [current, ...this.#backends()];
    this.#committingSince = performance.now();
    try {
      this.check([]);
      await this.#commitAll(all, allowed);
    } catch (error) {
      const sqlstate = error instanceof ServerError ? error.sqlstate : null;
      if (this.#stopped !== null && sqlstate === '57014') throw this.#stopped;
      // The guard at a shard.
      throw sqlstate === 'SH001' ? transactionMoved() : error;
    } finally {
      this.#committingSince = null;
      // Whatever they are in, nothing was committed there: or it was, and they are in nothing.
      if (current.lost === null && (!current.quiet || current.status !== IDLE)) await this.#rollBackOn(current);
      await this.rollBack();
    }
  }

  async #commitAll(all: readonly Backend[], allowed: () => Promise<void>): Promise<void> {
    const asked = await Promise.all(
      all.map((backend) => this.#answered(backend, () => backend.value(HAS_WRITTEN))),
    ).catch((error: unknown) => {
      throw told(all, error);
    });
    await allowed();
    const writers = all.filter((_, i) => asked[i] === 't');
    const readers = all.filter((_, i) => asked[i] !== 't');
    const [only] = writers;
    if (writers.length > 1) {
      const branches = writers.map(
        (backend): BranchEnd => ({
          shard: backend.shard,
          run: (text) => run(backend, text),
          giveUp: () => {
            // It may go on all the same, and is the resolver's then.
            void this.#cancel(backend);
            backend.destroy();
          },
        }),
      );
      await this.#spanning.coordinator.commit(branches);
    } else if (only !== undefined) await this.#commitOnly(only);
    // Behind them: what these hold, such as an advisory lock, is given up when the others' rows are to be seen. Nothing of theirs can be lost.
    await Promise.allSettled(readers.map((backend) => this.#answered(backend, () => run(backend, COMMIT))));
  }

  async #rollBackOn(backend: Backend): Promise<void> {
    if (!backend.quiet) backend.destroy();
    else await this.#lease.rollBack(backend).catch(() => backend.destroy());
  }

  #answered<T>(backend: Backend, work: () => Promise<T>): Promise<T> {
    return answeredAtOnce(backend, this.#answerMs(backend), work);
  }

  #answerMs({ shard }: Backend): number {
    return this.#client.services.pool(shard).options.connectTimeoutMs;
  }

  /**
   * The only branch that has written: plainly. A server that takes too long for what is deferred to its end is asked to cancel that, and given up when it does not
   * answer that either: then nobody knows what has become of it.
   */
  async #commitOnly(backend: Backend): Promise<void> {
    const ms = this.#spanning.prepareMs();
    let canceling: Promise<void> | null = null;
    let answered: (() => void) | null = null;
    const late = () => {
      answered = limitAnswer(backend, this.#answerMs(backend));
      canceling = this.#cancel(backend);
    };
    const timer = ms === 0 ? undefined : setTimeout(late, ms);
    try {
      const tag = await run(backend, COMMIT);
      if (tag !== COMMIT)
        throw new ForeshardError('40000', `the transaction was rolled back on shard "${backend.shard}"`);
    } catch (error) {
      if (backend.lost !== null) throw lost(backend.shard, backend.lost, true);
      const ended = canceling !== null && error instanceof ServerError && error.sqlstate === '57014';
      throw ended ? notCommitted(backend.shard) : error;
    } finally {
      clearTimeout(timer);
      (answered as (() => void) | null)?.();
      // It is meant for nobody else.
      await canceling;
    }
  }

  async #cancel(backend: Backend): Promise<void> {
    await backend.cancel().catch((error: unknown) => {
      this.#client.services.logger.debug({ err: error, shard: backend.shard }, 'could not cancel');
    });
  }

  /** Rolls back what is open there and gives the connection back. */
  async #leave(backend: Backend): Promise<void> {
    const { listening, services } = this.#client;
    const pool = services.pool(backend.shard);
    if (backend.lost === null && (!backend.quiet || backend.status !== IDLE)) await this.#rollBackOn(backend);
    if (backend.lost !== null || !backend.reusable) {
      pool.discard(backend);
      return;
    }
    listening.left(backend);
    // What was set in the transaction is in force there or not, depending on how that ended.
    if (this.#lease.transaction?.said.sets !== false) backend.settings = null;
    giveBack(backend, pool);
  }

  #close(): void {
    this.#answeredHere?.();
    this.#spanning.deadlocks.remove(this);
  }

  onReply(): void {
    // parameters, which are looked at when the branch is used again; notices
  }

  onData(): void {
    // whoever runs a statement of ours waits for its own promise
  }

  onCopyIn(): void {
    throw new Error('nothing of ours copies in');
  }

  onReady(): void {
    // as above
  }

  onLost(backend: Backend, error: Error): void {
    const branch = this.#parked.get(backend.shard);
    if (branch?.backend === backend) branch.error ??= error;
  }

  onWritable(): void {
    // our statements are short
  }
}

/** Whether what the branch touches is no longer all on its shard, or may have been away. */
export function hasLeft({ backend, transaction }: Branch, topology: Topology): boolean {
  return transaction.touched && (transaction.overtaken || !stillOn(backend.shard, transaction, topology));
}

/** @throws RefusedError with one snapshot for the whole transaction, a read elsewhere would belong to another */
export function checkIsolation(isolation: string): void {
  if (isolation.startsWith('read ')) return;
  throw new RefusedError('0A000', `a transaction on several shards cannot be ${isolation.toUpperCase()}`, {
    hint: 'Keep it to the keys of one shard, or have it READ COMMITTED.',
  });
}

function notAlone(): RefusedError {
  return new RefusedError(
    '0A000',
    'the end of a transaction on several shards must be sent alone, and without AND CHAIN',
    { hint: 'Send COMMIT or ROLLBACK as a message of its own.' },
  );
}

function notCommitted(shard: ShardName): ForeshardError {
  return new ForeshardError('08006', `shard "${shard}" has not committed its part of the transaction in time`, {
    detail: 'Nothing has been committed.',
    hint: 'Try the transaction again. If what is deferred to its end takes that long, raise proxy.limits.prepareTimeoutMs.',
  });
}

/** Runs one utility statement. @returns its command tag @throws ServerError or the loss of the connection */
function run(backend: Backend, text: string): Promise<string> {
  return backend.runInternal(encodeQuery(text)).catch((error: unknown) => {
    throw asServerError(error);
  });
}

/** The loss of one of `backends` in the words for a client whose transaction is rolled back by it. */
function told(backends: readonly Backend[], error: unknown): unknown {
  const gone = backends.find((backend) => backend.lost !== null && backend.lost === error);
  return gone === undefined ? asServerError(error) : lost(gone.shard, gone.lost as Error);
}
