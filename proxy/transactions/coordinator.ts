import type { Logger } from 'pino';
import type { Decisions } from '../../topology/catalog/decisions.js';
import { CatalogUnavailableError, ForeshardError } from '../../topology/errors.js';
import { endSql, gidOf, isEnded, type Outcome, type TransactionName } from '../../topology/prepared-transactions.js';
import { quoteLiteral } from '../../topology/quote.js';
import type { ShardName, Topology } from '../../topology/topology.js';
import { ServerError } from '../wire/error-response.js';
import { type CoordinatorLease, type Enrolled, Enrollment } from './enrollment.js';
import { endOverOwnConnection } from './own-connection.js';
import { lateUntil, type Resolver } from './resolver.js';

/** A branch that has written, as the coordinator ends it. */
export interface BranchEnd {
  readonly shard: ShardName;
  /**
   * Runs one utility statement on its connection, as a simple Query of its own: none can run in a transaction block with others.
   * @returns the command tag. It matters: PREPARE TRANSACTION in a transaction that has failed is answered `ROLLBACK`, without an error
   * @throws ServerError the server's refusal (fields for the client), or another error when the connection is lost
   */
  run(text: string): Promise<string>;
  /** Its server has not answered for too long: what runs there is canceled, which may come too late, and the connection closed. */
  giveUp(): void;
}

/** Where a test stops a coordinator for good: on both sides of each step. `shard`: that of the branch, null for the decision. */
export type CommitPoint =
  | 'before:prepare'
  | 'after:prepare'
  | 'before:decide'
  | 'after:decide'
  | 'before:end'
  | 'after:end';

export interface CoordinatorOptions {
  readonly decisions: Decisions;
  readonly lease: CoordinatorLease;
  readonly topology: () => Topology;
  readonly resolver: Resolver;
  readonly logger: Logger;
  /** How long a client waits for a catalog or a shard that does not answer, before it is told that the outcome is not known or not yet visible. Default: 10,000. */
  readonly patienceMs?: number;
  /** How long a shard may take to prepare its branch: what is deferred to the end of the transaction runs then. 0: as long as it likes. */
  readonly prepareMs: () => number;
  /** For tests: awaited at each point. */
  readonly at?: (point: CommitPoint, shard: ShardName | null) => Promise<void>;
}

const PATIENCE_MS = 10_000;
/** How long what is under way may take yet when the process is to end, ms. */
const CLOSING_MS = 2_000;
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1_000;

interface Branch {
  readonly end: BranchEnd;
  readonly gid: string;
}

/** What has become of PREPARE TRANSACTION on one branch. `lost`: it is prepared, or not, or will be. */
type Prepared = { readonly is: 'prepared' } | { readonly is: 'failed' | 'lost'; readonly error: unknown };

/** `null`: not known, yet. `gone`: it has ended everywhere, and nobody knows how. `error` is for the client. */
type Decided =
  | { readonly outcome: 'commit' }
  | { readonly outcome: 'rollback' | 'gone' | null; readonly error: unknown };

/**
 * Commits transactions that have written on several shards: two-phase commit, decided by a row in the catalog. What it cannot end is left to
 * the resolver of this process.
 */
export class Coordinator {
  readonly #options: CoordinatorOptions;
  readonly #enrollment: Enrollment;
  readonly #open = new Set<Promise<void>>();
  /** Each gives one wait up. */
  readonly #waits = new Set<() => void>();
  /** Nobody is waited for any longer than until then, on performance.now()'s clock. */
  #closingUntil: number | null = null;

  constructor(options: CoordinatorOptions) {
    this.#options = options;
    this.#enrollment = new Enrollment(options.decisions, options.lease, options.logger);
  }

  /**
   * Commits all of `branches` or none. Resolves when all are committed. When it has settled, a connection on which a statement still runs is of no use any more;
   * on the others no transaction is open.
   * @throws what the client is to be told: the server's own error when nothing was committed; ForeshardError 40001, 57P03 or 08006, when
   * nothing was committed for another reason; 08007 when that is not certain, or it is committed but not yet visible everywhere
   */
  async commit(branches: readonly BranchEnd[]): Promise<void> {
    const work = this.#commit(branches);
    this.#open.add(work);
    try {
      await work;
    } finally {
      this.#open.delete(work);
    }
  }

  /** Waits for what is under way, which waits for nobody any more, and leaves nothing behind that can be ended now. No commit may begin after it. */
  async close(): Promise<void> {
    this.#closingUntil = performance.now() + CLOSING_MS;
    const timer = setTimeout(() => {
      for (const giveUp of [...this.#waits]) giveUp();
    }, CLOSING_MS);
    await Promise.allSettled([...this.#open]);
    clearTimeout(timer);
    await this.#options.resolver.close();
    await this.#enrollment.close((id) => this.#options.resolver.hasLeft(id));
  }

  async #commit(ends: readonly BranchEnd[]): Promise<void> {
    let enrolled: Enrolled;
    try {
      enrolled = await this.#enrollment.get();
    } catch (error) {
      await Promise.all(ends.map((end) => this.#rollBackOpen(end)));
      throw error instanceof ForeshardError ? error : notDecided(error);
    }
    const name = enrolled.next();
    const branches = ends.map((end, i): Branch => ({ end, gid: gidOf(name, i) }));
    const prepared = await Promise.all(branches.map((branch) => this.#prepare(branch)));
    const refused = firstError(prepared);
    if (refused !== null) {
      await this.#rollBack(name, branches, prepared);
      throw refused;
    }
    await this.#at('before:decide', null);
    const decided = await this.#decide(enrolled, name, branches);
    await this.#at('after:decide', null);
    if (decided.outcome !== 'commit') {
      if (decided.outcome === 'rollback') await this.#rollBack(name, branches, prepared);
      if (decided.outcome === null) this.#leave(name, null, branches);
      throw decided.error;
    }
    const left = (await Promise.all(branches.map((branch) => this.#commitPrepared(branch)))).flatMap((b) => b ?? []);
    if (left.length === 0) {
      enrolled.batches.forget(name.number);
      return;
    }
    this.#leave(name, 'commit', left);
    throw notVisible(left.map(({ end }) => end.shard));
  }

  async #prepare({ end, gid }: Branch): Promise<Prepared> {
    await this.#at('before:prepare', end.shard);
    const ms = this.#options.prepareMs();
    try {
      const work = end.run(`PREPARE TRANSACTION ${quoteLiteral(gid)}`);
      const tag = await this.#until(this.#deadline(ms === 0 ? Number.POSITIVE_INFINITY : ms), work, null);
      if (tag === null) {
        end.giveUp();
        return { is: 'lost', error: notPrepared(end.shard) };
      }
      await this.#at('after:prepare', end.shard);
      if (tag === 'PREPARE TRANSACTION') return { is: 'prepared' };
      const error = new ForeshardError('40000', `the transaction on shard "${end.shard}" had failed`, {
        hint: 'Nothing has been committed.',
      });
      return { is: 'failed', error };
    } catch (error) {
      // FATAL and worse: the server ends the connection, before or after.
      if (error instanceof ServerError && error.fields.severity === 'ERROR') return { is: 'failed', error };
      return { is: 'lost', error: lostWhilePreparing(end.shard, error) };
    }
  }

  /** Nothing is decided, or that nothing is to be committed: all is taken back. What cannot be is left to the resolver. */
  async #rollBack(name: TransactionName, branches: readonly Branch[], prepared: readonly Prepared[]): Promise<void> {
    const lost = branches.filter((_, i) => prepared[i]?.is === 'lost');
    const left = await Promise.all(
      branches.map(async (branch, i) => {
        const { is } = prepared[i] as Prepared;
        if (is === 'failed') await this.#rollBackOpen(branch.end);
        if (is !== 'prepared') return [];
        return (await this.#endHere(branch, 'rollback')) ? [] : [branch];
      }),
    );
    this.#leave(name, 'rollback', left.flat(), lost);
  }

  /** The connection is gone, and the transaction with it; or no transaction was open any more; or who asked closes it, for it is still at it. */
  async #rollBackOpen(end: BranchEnd): Promise<void> {
    const rolledBack = end.run('ROLLBACK').catch(() => undefined);
    await this.#until(this.#deadline(), rolledBack, undefined);
  }

  async #decide(enrolled: Enrolled, name: TransactionName, branches: readonly Branch[]): Promise<Decided> {
    try {
      const shards = branches.map(({ end }) => end.shard);
      if (await enrolled.batches.decide({ number: name.number, shards })) return { outcome: 'commit' };
      this.#enrollment.fenced(enrolled);
      return { outcome: 'rollback', error: fenced() };
    } catch (error) {
      if (error instanceof CatalogUnavailableError) return { outcome: 'rollback', error: notDecided(error) };
      this.#options.logger.warn(
        { err: error, ...shown(name) },
        'the catalog has not said whether a commit is decided; it is asked',
      );
      return this.#settle(name, error);
    }
  }

  async #settle(name: TransactionName, cause: unknown): Promise<Decided> {
    const { decisions, logger } = this.#options;
    const deadline = this.#deadline();
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        const outcome = await this.#until(deadline, decisions.settle(name), 'late');
        if (outcome === 'commit') return { outcome };
        if (outcome === 'rollback') return { outcome, error: notDecided(cause) };
        // Fenced, ended by others, and forgotten: nobody knows how any more. As when it is too late, the client cannot be told.
        if (outcome === null) return { outcome: 'gone', error: notKnown() };
      } catch (error) {
        logger.debug({ err: error, ...shown(name) }, 'the catalog does not say whether a commit is decided');
      }
      if (performance.now() + pause >= deadline) return { outcome: null, error: notKnown() };
      await this.#until(performance.now() + pause, new Promise(() => undefined), null);
    }
  }

  /** @returns null when it is committed, else the branch */
  async #commitPrepared(branch: Branch): Promise<Branch | null> {
    const { logger, topology } = this.#options;
    const { shard } = branch.end;
    const deadline = this.#deadline();
    await this.#at('before:end', shard);
    let committed = await this.#endHere(branch, 'commit');
    for (let pause = FIRST_PAUSE_MS; !committed; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        // None there: the connection was lost when it had been committed.
        const ended = endOverOwnConnection(topology(), shard, branch.gid, 'commit').then(() => true);
        committed = await this.#until(deadline, ended, false);
      } catch (error) {
        logger.debug(
          { err: error, shard, gid: branch.gid },
          'a transaction that is decided is not committed on a shard yet',
        );
      }
      if (committed) break;
      if (performance.now() + pause >= deadline) return branch;
      await this.#until(performance.now() + pause, new Promise(() => undefined), null);
    }
    await this.#at('after:end', shard);
    return null;
  }

  /** Over the branch's own connection, once. @returns whether it has ended */
  async #endHere({ end, gid }: Branch, outcome: Outcome): Promise<boolean> {
    const ended = end.run(endSql(gid, outcome)).then(
      () => true,
      (error: unknown) => {
        if (!isEnded(error)) return false;
        // A resolver that believed us gone ends it as it was decided.
        this.#options.logger.info(
          { shard: end.shard, gid, outcome },
          'a prepared transaction was ended by somebody else',
        );
        return true;
      },
    );
    return this.#until(this.#deadline(), ended, false);
  }

  #leave(
    name: TransactionName,
    outcome: Outcome | null,
    certain: readonly Branch[],
    lost: readonly Branch[] = [],
  ): void {
    if (certain.length + lost.length === 0) return;
    this.#options.logger.warn(
      { ...shown(name), outcome, shards: [...certain, ...lost].map(({ end }) => end.shard) },
      'a transaction on several shards could not be ended everywhere; it is tried again',
    );
    const until = lateUntil(performance.now());
    this.#options.resolver.leave({
      ...name,
      outcome,
      branches: [
        ...certain.map(({ end, gid }) => ({ shard: end.shard, gid, until: null })),
        ...lost.map(({ end, gid }) => ({ shard: end.shard, gid, until })),
      ],
    });
  }

  async #at(point: CommitPoint, shard: ShardName | null): Promise<void> {
    await this.#options.at?.(point, shard);
  }

  /** On performance.now()'s clock. */
  #deadline(ms = this.#options.patienceMs ?? PATIENCE_MS): number {
    const patient = performance.now() + ms;
    return this.#closingUntil === null ? patient : Math.min(patient, this.#closingUntil);
  }

  /** What `work` gives, or `late` when that has not come by then. */
  #until<T, L>(deadline: number, work: Promise<T>, late: L): Promise<T | L> {
    return new Promise((resolve, reject) => {
      const giveUp = () => {
        done();
        resolve(late);
      };
      const timer =
        deadline === Number.POSITIVE_INFINITY
          ? undefined
          : setTimeout(giveUp, Math.max(0, deadline - performance.now()));
      const done = () => {
        clearTimeout(timer);
        this.#waits.delete(giveUp);
      };
      this.#waits.add(giveUp);
      work.finally(done).then(resolve, reject);
    });
  }
}

/** The server's own words are what the client is told, if one has said why. */
function firstError(prepared: readonly Prepared[]): unknown {
  const errors = prepared.flatMap((one) => (one.is === 'prepared' ? [] : [one.error]));
  return errors.find((error) => error instanceof ServerError) ?? errors[0] ?? null;
}

function shown({ coordinator, number }: TransactionName): { coordinator: string; number: string } {
  return { coordinator, number: String(number) };
}

function lostWhilePreparing(shard: ShardName, cause: unknown): ForeshardError {
  return new ForeshardError(
    '08006',
    `the connection to shard "${shard}" was lost while the transaction was being prepared`,
    {
      detail: 'Nothing has been committed.',
      hint: 'Try the transaction again.',
      cause,
    },
  );
}

function notPrepared(shard: ShardName): ForeshardError {
  return new ForeshardError('08006', `shard "${shard}" has not prepared its part of the transaction in time`, {
    detail: 'Nothing has been committed.',
    hint: 'Try the transaction again. If what is deferred to its end takes that long, raise proxy.limits.prepareTimeoutMs.',
  });
}

function fenced(): ForeshardError {
  return new ForeshardError('40001', "could not commit on several shards: this proxy's lease had ended", {
    detail: 'Nothing has been committed.',
    hint: 'Try the transaction again.',
  });
}

function notDecided(cause: unknown): ForeshardError {
  return new ForeshardError('57P03', 'could not commit on several shards: the catalog does not answer', {
    detail: 'Nothing has been committed.',
    hint: 'Try the transaction again when the proxy reaches the catalog.',
    cause,
  });
}

function notKnown(): ForeshardError {
  return new ForeshardError(
    '08007',
    'it is not known whether the transaction was committed: the catalog does not answer',
    {
      detail: 'It ends on all of its shards in one way as soon as the proxy reaches the catalog.',
      hint: 'Look whether its changes are there before you try it again.',
    },
  );
}

function notVisible(shards: readonly ShardName[]): ForeshardError {
  const names = shards.map((shard) => `"${shard}"`).join(', ');
  return new ForeshardError(
    '08007',
    `the transaction is decided to be committed, but not yet visible on shard ${names}`,
    {
      detail: 'It is prepared there, and is committed as soon as the shard can be reached.',
      hint: 'Do not try it again.',
    },
  );
}
