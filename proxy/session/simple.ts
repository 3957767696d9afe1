import { soleShard } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { FanOut } from '../gather/fan-out.js';
import type { Analyzed, AnalyzedStatement, StatementPlan } from '../router/route.js';
import { decodeCommandComplete, EMPTY_QUERY_RESPONSE, encodeCommandComplete, rowsOfTag } from '../wire/backend.js';
import { type ErrorFields, encodeErrorResponse, fieldsOfError } from '../wire/error-response.js';
import { decodeQuery, encodeQuery } from '../wire/frontend.js';
import { protocolName } from './extended.js';
import { checkAgain, FAILED, IDLE, type Prepared, RefusedError } from './lease.js';
import type { Lookup } from './name-lookup.js';
import type { Execution } from './placement.js';
import type { Session } from './session.js';
import type { Transaction } from './transaction.js';

/** No statement: sent to make a server fail its transaction, so that the client's is really the state it was told. */
const FAILING_QUERY = encodeQuery('foreshard_refused');

/** The simple query protocol of one session, and what both protocols share: effects of statements, failures, retries. */
export class SimpleProtocol {
  /** An error was answered in the current Query or batch. */
  unitFailed = false;
  readonly #session: Session;
  #lastTag = '';
  #settingsTouched = false;
  #settingsUnknown = false;
  #discarded = false;

  constructor(session: Session) {
    this.#session = session;
  }

  query(frame: Buffer): Promise<void> | null {
    const analyzed = this.analyze(decodeQuery(frame));
    this.#session.extended.forget(''); // as PostgreSQL does with every Query
    if (this.#answerLocally(analyzed)) return null;
    return this.#run(frame, analyzed, performance.now(), 0);
  }

  async functionCall(frame: Buffer): Promise<void> {
    const session = this.#session;
    try {
      if (soleShard(session.services.live.current) === null)
        throw new RefusedError('0A000', 'function calls by the fast path are not supported on several shards', {
          hint: 'Call the function in a SELECT.',
        });
      await session.lease.prepare([], session.signal);
    } catch (error) {
      await this.fail(error);
      return;
    }
    session.expectReady();
    this.#keepMixed();
    (session.lease.backend as Backend).send(frame, { kind: 'function', internal: false });
  }

  analyze(sql: Buffer): Analyzed {
    const { services, lookup } = this.#session;
    return services.router.analyze(sql, lookup.current.names);
  }

  async #run(frame: Buffer, analyzed: Analyzed, since: number, times: number): Promise<void> {
    const session = this.#session;
    const { lease } = session;
    const again = () => this.#run(frame, this.analyze(decodeQuery(frame)), since, times + 1);
    let placement: Prepared;
    try {
      checkAgain(times);
      const executions = this.#executions(analyzed);
      placement = await lease.prepare(executions, session.signal);
      if (placement.kind === 'fanout') {
        const fanOut = new FanOut(session, placement, analyzed.template, { kind: 'simple', query: frame });
        if (!(await session.runFanOut(fanOut))) await again();
        return;
      }
    } catch (error) {
      await this.fail(error);
      return;
    }
    if (placement.kind === 'again') return again();
    const backend = lease.backend as Backend;
    const transaction = lease.transaction as Transaction;
    this.beginUnit(backend);
    if (placement.writes && transaction.clean && !lease.unsynced && endsOnce(analyzed.statements)) {
      const prelude = backend.status === IDLE ? [] : transaction.prelude;
      this.closeGate(prelude, since, () => this.#run(frame, this.analyze(decodeQuery(frame)), since, 0));
    }
    const { touches, writes } = placement;
    const started = performance.now();
    let index = 0;
    let rows = 0;
    session.expectReady();
    this.#keepMixed();
    backend.send(frame, {
      kind: 'query',
      internal: false,
      completed: (reply, empty) => {
        const at = index;
        const statement = analyzed.statements[at];
        index += 1;
        if (empty || statement === undefined) return;
        const tag = decodeCommandComplete(reply);
        rows += rowsOfTag(tag) ?? 0;
        session.lookup.done(analyzed, at);
        this.completed(statement.plan, analyzed.text.subarray(statement.start, statement.end), tag);
      },
      done: () => {
        session.services.load.record({
          template: analyzed.template,
          shard: backend.shard,
          touches,
          write: writes,
          rows,
          bytes: session.bytesForwarded,
          ms: performance.now() - started,
        });
      },
    });
  }

  /** The statements of a text; PostgreSQL looks names up when a statement's turn comes. */
  #executions(analyzed: Analyzed): Execution[] {
    const { lookup } = this.#session;
    let current: Lookup | null = lookup.pending ? null : lookup.current;
    return analyzed.statements.map((_, index) => {
      const execution: Execution = { analyzed, index, params: null, lookup: current };
      if (lookup.mayChange(analyzed, index)) current = null;
      return execution;
    });
  }

  /**
   * A Query inside a batch may leave PostgreSQL (18) with a transaction that is open although the next Sync is answered with
   * "idle": nobody else may get that connection.
   */
  #keepMixed(): void {
    const { lease } = this.#session;
    if (lease.unsynced) lease.pinned ??= 'Query inside a batch';
  }

  /** To be called before the first message of a Query or batch is sent. */
  beginUnit(backend: Backend): void {
    this.unitFailed = false;
    this.#session.bytesForwarded = 0;
    if (backend.status === IDLE) this.#session.settings.begin();
  }

  /**
   * Holds the replies back until the end of the unit and runs it again if the shard says that the range is not its own.
   * `since`: when the client sent it; the retries end `holdTimeoutMs` later.
   */
  closeGate(prelude: readonly Buffer[], since: number, again: () => Promise<void>): void {
    const session = this.#session;
    const saved = [...prelude];
    session.gate.close(async () => {
      try {
        await session.lease.abandon(saved);
        if (performance.now() - since > session.services.holdTimeoutMs)
          throw new RefusedError('57P03', 'the range is being moved and did not become writable in time', {
            hint: 'Try again; see "foreshard migrate list".',
          });
        await session.services.live.reload();
        await briefly();
      } catch (error) {
        await this.fail(error);
        return;
      }
      await again();
    });
  }

  /** A statement has been done by the server: follow what it did to the session. */
  completed(plan: StatementPlan, text: Buffer | null, tag: string): void {
    const { settings, lease, extended, services } = this.#session;
    this.#lastTag = tag;
    if (plan.pin !== null && lease.pinned === null) lease.pinned = plan.pin;
    const { effect } = plan;
    if (plan.kind === 'ddl') services.schemaChanged();
    lease.transaction?.note(effect, text, this.#harmless(plan, lease.transaction));
    if (effect === null) return;
    switch (effect.kind) {
      case 'begin':
        settings.begin();
        return;
      case 'commit':
      case 'rollback':
        settings.end(effect.kind === 'commit' && tag.startsWith('COMMIT'));
        settings.begin();
        return;
      case 'savepoint':
        settings.savepoint(effect.name);
        return;
      case 'release':
        settings.release(effect.name);
        return;
      case 'rollback-to':
        settings.rollbackTo(effect.name);
        return;
      case 'set':
        if (effect.local) return;
        this.#settingsTouched = true;
        // The server goes back to its own value, not to the one of the client's login.
        if (effect.reset && settings.hasLogin(effect.name)) this.#settingsUnknown = true;
        if (!effect.reset && text !== null && effect.name !== null) settings.set(effect.name, text.toString('utf8'));
        else if (effect.name === null) settings.resetAll();
        else settings.reset(effect.name);
        return;
      case 'discard-all':
        settings.discard();
        extended.forgetAll();
        lease.backend?.prepared.clear();
        if (lease.backend) lease.backend.unnamed = null;
        lease.pinned = null;
        this.#discarded = true;
        return;
      case 'deallocate':
        if (effect.name !== null) return;
        extended.forgetAll();
        lease.backend?.prepared.clear();
        return;
    }
  }

  /** The server is ready for the next Query or batch. */
  transactionStatus(backend: Backend, status: number): void {
    const { settings } = this.#session;
    const failed = this.unitFailed;
    this.unitFailed = false;
    if (status !== IDLE) return;
    const committed = !failed && !this.#lastTag.startsWith('ROLLBACK');
    settings.end(committed);
    if (this.#discarded) backend.settingsSignature = '';
    else if (this.#settingsTouched)
      backend.settingsSignature = committed && !this.#settingsUnknown ? settings.signature : null;
    this.#settingsTouched = false;
    this.#settingsUnknown = false;
    this.#discarded = false;
    this.#lastTag = '';
  }

  /** The statement could not run: the client gets the error, and an open transaction fails for real. */
  async fail(error: unknown): Promise<void> {
    const session = this.#session;
    const fields = this.fieldsOf(error);
    try {
      if (!(await this.openForFailure())) {
        session.writeError(fields);
        session.answerReady();
        return;
      }
    } catch (second) {
      session.close(second);
      return;
    }
    session.expectReady();
    (session.lease.backend as Backend).send(FAILING_QUERY, {
      kind: 'query',
      internal: false,
      replacement: encodeErrorResponse(fields),
    });
  }

  fieldsOf(error: unknown): ErrorFields {
    const fields = fieldsOfError(error);
    if (fields.sqlstate === 'XX000') this.#session.services.logger.error({ err: error }, 'internal error');
    return fields;
  }

  /** @returns whether there is a transaction, open on a server now, that must be failed. */
  async openForFailure(): Promise<boolean> {
    const { lease, signal } = this.#session;
    if (lease.transaction?.deferred) await lease.prepare([], signal);
    const { backend } = lease;
    if (backend === null) return false;
    if (backend.status !== IDLE || lease.unsynced) return true;
    lease.releaseIfIdle();
    return false;
  }

  /** What needs no server: nothing, BEGIN (until it is known where), the end of a transaction that no server has heard of. */
  #answerLocally(analyzed: Analyzed): boolean {
    const session = this.#session;
    const { lease, settings } = session;
    if (analyzed.syntaxError) return false;
    if (this.#deallocatesByProtocol(analyzed)) {
      session.write(encodeCommandComplete('DEALLOCATE'));
      session.answerReady();
      return true;
    }
    if (lease.backend !== null) return false;
    if (analyzed.statements.length === 0) {
      session.write(EMPTY_QUERY_RESPONSE);
      session.answerReady();
      return true;
    }
    const statement = analyzed.statements.length === 1 ? analyzed.statements[0] : undefined;
    const effect = statement?.plan.effect;
    if (statement === undefined || !effect) return false;
    const deferred = lease.transaction?.deferred ?? false;
    let tag: string;
    if (effect.kind === 'begin' && lease.transaction === null) {
      lease.begin(analyzed.text.subarray(statement.start, statement.end));
      settings.begin();
      tag = statement.plan.command;
    } else if ((effect.kind === 'commit' || effect.kind === 'rollback') && deferred && !effect.chain) {
      lease.transaction = null;
      settings.end(effect.kind === 'commit');
      session.lookup.ready(IDLE);
      tag = effect.kind === 'commit' ? 'COMMIT' : 'ROLLBACK';
    } else return false;
    session.write(encodeCommandComplete(tag));
    session.answerReady();
    return true;
  }

  /** DEALLOCATE of a statement that servers know by another name, and may have for other clients too. */
  #deallocatesByProtocol(analyzed: Analyzed): boolean {
    const { lease, extended } = this.#session;
    const effect = analyzed.statements.length === 1 ? analyzed.statements[0]?.plan.effect : null;
    if (effect?.kind !== 'deallocate' || effect.name === null) return false;
    if (lease.unsynced || lease.backend?.status === FAILED) return false;
    return extended.forget(protocolName(effect.name));
  }

  #harmless(plan: StatementPlan, transaction: Transaction): boolean {
    if (plan.target.kind !== 'any' || plan.pin !== null) return false;
    if (plan.kind !== 'read' && plan.command !== 'SHOW') return false;
    // With one snapshot for the whole transaction, a read elsewhere would belong to another snapshot.
    const first = transaction.prelude[0];
    return first === undefined || !/repeatable|serializable/i.test(first.toString('latin1'));
  }
}

/** Whether everything in the text is undone by one ROLLBACK: no COMMIT in its middle. */
function endsOnce(statements: readonly AnalyzedStatement[]): boolean {
  return statements.every((s, i) => i === statements.length - 1 || s.plan.effect?.kind !== 'commit');
}

/** The new owner's gate opens a moment after the flip; asking again at once would only be refused again. */
function briefly(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, 5);
  });
}
