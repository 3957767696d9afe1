import { soleShard } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import { asServerError } from '../backend/internal-statement.js';
import { FanOut } from '../gather/fan-out.js';
import { Gather } from '../gather/gather.js';
import type { RenamedText } from '../router/renamed-text.js';
import type { Analyzed, AnalyzedStatement } from '../router/route.js';
import { decodeCommandComplete, EMPTY_QUERY_RESPONSE, encodeCommandComplete, rowsOfTag } from '../wire/backend.js';
import { ServerError } from '../wire/error-response.js';
import { decodeQuery, encodeParse, encodeQuery } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { FAILED, IDLE } from '../wire/transaction-status.js';
import type { ClientSession, SpreadRun } from './client-session.js';
import { HalvesWrite } from './halves-write.js';
import { hotTextOf, tellOfTable } from './hot-statement.js';
import type { Lookup } from './name-lookup.js';
import { blockOf, type Execution, type Placement } from './placement.js';
import type { Prepared } from './readiness.js';
import { checkAgain, RefusedError, unread } from './refusals.js';
import { type Rewrite, SentText } from './sent-text.js';
import { errorAsWritten, type Spoken, SqlStatements } from './sql-statements.js';
import { type ClientStatements, protocolName } from './statements.js';
import type { Transaction } from './transaction.js';
import type { Units } from './units.js';

/** One Query on its way. */
interface Unit {
  readonly frame: Buffer;
  readonly analyzed: Analyzed;
  /** When the client sent it, on performance.now()'s clock. */
  readonly since: number;
  /** How often it has been made ready before. */
  readonly times: number;
  readonly prepared: SqlStatements;
  executions: readonly Execution[];
}

/** The simple query protocol of one session: Query and FunctionCall. */
export class SimpleProtocol {
  readonly #session: ClientSession;
  readonly #units: Units;
  readonly #statements: ClientStatements;

  constructor(session: ClientSession, units: Units, statements: ClientStatements) {
    this.#session = session;
    this.#units = units;
    this.#statements = statements;
  }

  query(frame: Buffer): Promise<void> | null {
    const analyzed = this.#statements.analyze(decodeQuery(frame));
    this.#statements.forget(''); // as PostgreSQL does with every Query
    const preparing = this.#session.lanes.preparing(analyzed, null);
    if (preparing !== null)
      return preparing.then(
        () => this.#carryOut(frame, analyzed) ?? undefined,
        (error: unknown) => this.#units.fail(error),
      );
    return this.#carryOut(frame, analyzed);
  }

  #carryOut(frame: Buffer, analyzed: Analyzed): Promise<void> | null {
    if (this.#session.lanes.query(frame, analyzed)) return null;
    if (this.#units.commitsSpan(analyzed)) return this.#units.commitSpan((reply) => this.#session.write(reply));
    if (this.#answerLocally(analyzed)) return null;
    return this.#run(frame, analyzed, performance.now(), 0);
  }

  /** @returns where the rest of the message is to be sent, if it has one; null: nowhere, the client has been told why. */
  async functionCall(frame: Buffer): Promise<Backend | null> {
    const session = this.#session;
    try {
      if (soleShard(session.services.live.current) === null)
        throw new RefusedError('0A000', 'function calls by the fast path are not supported on several shards', {
          hint: 'Call the function in a SELECT.',
        });
      await session.lease.prepare([], session.wait);
    } catch (error) {
      await this.#units.fail(error);
      return null;
    }
    const backend = session.lease.backend as Backend;
    this.#units.beginUnit(backend);
    this.#units.sent(null);
    session.ifUnseen(null);
    session.expectReady();
    session.listening.unknownRuns(backend);
    this.#keepMixed();
    backend.send(frame, { kind: 'function', internal: false });
    return backend;
  }

  /** Null: it is sent, without having waited for anything. */
  #run(frame: Buffer, analyzed: Analyzed, since: number, times: number): Promise<void> | null {
    const prepared = new SqlStatements(analyzed, this.#statements);
    const unit: Unit = { frame, analyzed, since, times, prepared, executions: [] };
    let placement: Prepared | Promise<Prepared>;
    try {
      checkAgain(times);
      unit.executions = this.#executions(analyzed, prepared);
      placement = this.#session.lease.prepare(unit.executions, this.#session.wait, isPlain(analyzed));
    } catch (error) {
      prepared.release();
      if (error instanceof RefusedError) this.#beginBefore(unit.executions);
      return this.#units.fail(error);
    }
    if (placement instanceof Promise || placement.kind !== 'one' || placement.hot !== undefined)
      return this.#runLater(unit, placement);
    if (!prepared.none || analyzed.syntaxError) return this.#runLater(unit, placement);
    this.#send(unit, placement, null, null);
    return null;
  }

  async #runLater(unit: Unit, preparing: Prepared | Promise<Prepared>): Promise<void> {
    const session = this.#session;
    const { lease } = session;
    const { analyzed, prepared } = unit;
    let placement: Prepared;
    let spoken: Spoken | null = null;
    let hot: RenamedText | null = null;
    try {
      placement = await preparing;
      if (placement.kind === 'fanout') {
        const fanOut = new FanOut(session, placement, analyzed, { kind: 'simple' });
        await this.#spread(unit, fanOut);
        return;
      }
      if (placement.kind === 'gather') {
        const gather = new Gather(session, placement, analyzed, { kind: 'simple' });
        await this.#spread(unit, gather);
        return;
      }
      if (placement.kind === 'halves') {
        const statement = { kind: 'simple', frame: unit.frame } as const;
        const { executions, since } = unit;
        const write = new HalvesWrite(session, this.#units, placement, executions, analyzed, statement, since);
        if (!(await session.runHalves(write))) await this.#again(write.moved ? { ...unit, times: -1 } : unit);
        return;
      }
      if (placement.kind === 'one') {
        if (analyzed.syntaxError) await this.#checkUnread(analyzed.text);
        hot = this.#hotText(analyzed, placement);
      }
      if (placement.kind === 'one' && !prepared.none) {
        const { backend } = lease as { backend: Backend };
        spoken = prepared.spoken(backend);
        await this.#prepareMissing(spoken);
      }
    } catch (error) {
      prepared.release();
      if (error instanceof RefusedError) this.#beginBefore(unit.executions);
      await this.#units.fail(error);
      return;
    }
    if (placement.kind === 'again') {
      prepared.release();
      await this.#again(unit);
    } else this.#send(unit, placement, spoken, hot);
  }

  /** What the parser does not take is only looked at by the server, unless all rows are there. @throws ServerError what it says; RefusedError when it would run it */
  async #checkUnread(text: Buffer): Promise<void> {
    const { lease, services } = this.#session;
    if (soleShard(services.live.current) !== null) return;
    // A Sync would end the batch that the client has open.
    if (lease.unsynced) throw unread();
    try {
      await (lease.backend as Backend).parseInternal(encodeParse('', text, []));
    } catch (error) {
      const told = asServerError(error);
      // Several statements cannot be parsed so, which is found when all of them have been read.
      throw told instanceof ServerError && told.sqlstate === '42601' && told.fields.position === undefined
        ? unread()
        : told;
    }
    throw unread();
  }

  /** What is sent in place of a text about hot columns alone; null: it is sent as it came. @throws RefusedError */
  #hotText(analyzed: Analyzed, { hot }: Placement & { kind: 'one' }): RenamedText | null {
    const halves = hot?.get(0);
    return halves === undefined ? null : hotTextOf(this.#session.services.router, analyzed, halves);
  }

  async #spread(unit: Unit, run: SpreadRun): Promise<void> {
    if (!(await this.#session.runFanOut(run))) await this.#again(unit);
    else if (run.failure !== null) await this.#units.fail(new ServerError(run.failure));
  }

  async #again({ frame, since, times }: Unit): Promise<void> {
    await this.#run(frame, this.#statements.analyze(decodeQuery(frame)), since, times + 1);
  }

  /** Sends it to the server connection that has been made ready for it. */
  #send(unit: Unit, placement: Placement & { kind: 'one' }, spoken: Spoken | null, hot: RenamedText | null): void {
    const session = this.#session;
    const { lease } = session;
    const { frame, analyzed, since, times, prepared, executions } = unit;
    const again = () => this.#again(unit);
    const backend = lease.backend as Backend;
    const transaction = lease.transaction as Transaction;
    this.#units.beginUnit(backend);
    for (const { plan } of analyzed.statements) this.#units.sent(plan);
    session.ifUnseen(lease.unsynced ? null : again);
    session.ifStale(!lease.unsynced && !prepared.none && times === 0 ? again : null);
    if (placement.writes && transaction.clean && !lease.unsynced && endsOnce(analyzed.statements)) {
      const prelude = backend.status === IDLE ? [] : transaction.prelude;
      this.#units.closeGate(prelude, since, () => this.#again({ ...unit, times: -1 }));
    }
    const { touches, writes } = placement;
    const started = performance.now();
    const rewrites = this.#rewrites(analyzed, spoken);
    const sent = rewrites.length === 0 ? null : new SentText(analyzed.text, analyzed.statements, rewrites);
    let index = 0;
    let rows = 0;
    session.expectReady();
    this.#keepMixed();
    const halves = placement.hot?.get(0);
    backend.send(hot !== null ? encodeQuery(hot.text) : sent === null ? frame : encodeQuery(sent.sql), {
      kind: 'query',
      internal: false,
      completed: (reply, empty) => {
        const at = sent === null ? index : sent.origins[index];
        index += 1;
        if (typeof at === 'object') at.done?.();
        if (empty || typeof at !== 'number' || at >= analyzed.statements.length) return;
        const tag = decodeCommandComplete(reply);
        rows += rowsOfTag(tag) ?? 0;
        session.lookup.done(analyzed, at);
        const { effect } = (analyzed.statements[at] as AnalyzedStatement).plan;
        const executed = effect?.kind === 'execute' && effect.form === 'execute' ? executions[at] : undefined;
        this.#units.completed(executed ?? { analyzed, index: at, params: null, lookup: null }, tag);
        if (spoken !== null) prepared.done(at, backend, spoken);
      },
      undo: () => prepared.release(),
      ...(sent === null ? {} : tellOf(sent, spoken, () => index)),
      ...(hot !== null && halves !== undefined && { tell: tellOfTable(halves, hot) }),
      done: () => {
        prepared.release();
        const ms = performance.now() - started;
        session.lanes.ranOnLease(analyzed, backend, ms, session.bytesForwarded);
        session.services.load.record({
          template: analyzed.template,
          shard: backend.shard,
          touches,
          write: writes,
          rows,
          bytes: session.bytesForwarded,
          ms,
        });
      },
    });
  }

  /** The text is refused as a whole. If it had begun a transaction by the statement that is the reason, that fails. */
  #beginBefore(executions: readonly Execution[]): void {
    const { lease, settings } = this.#session;
    const at = lease.refusedInBlock(executions);
    const begun = at < 0 ? -1 : blockOf(executions.slice(0, at));
    const { analyzed, index } = executions[begun] ?? {};
    const statement = analyzed?.statements[index ?? 0];
    if (analyzed === undefined || statement === undefined) return;
    lease.begin(analyzed.text.subarray(statement.start, statement.end));
    settings.begin();
    if (begun === 0) this.#session.write(encodeCommandComplete(statement.plan.command));
  }

  /** What of the text has to be said to a server in another way. */
  #rewrites(analyzed: Analyzed, spoken: Spoken | null): Rewrite[] {
    const { settings } = this.#session;
    const rewrites: Rewrite[] = [];
    for (const [index, { plan }] of analyzed.statements.entries()) {
      const { effect } = plan;
      if (effect === null) continue;
      const found = spoken?.rewrites.find((r) => r.index === index);
      if (found !== undefined) rewrites.push(found);
      else if (effect.kind === 'set' && effect.reset) {
        const after = settings.afterReset(effect.name, effect.local).map((sql) => ({ sql }));
        if (after.length > 0) rewrites.push({ index, after });
      }
    }
    return rewrites;
  }

  /** Prepares, ahead of the text, what it uses of the statements that were prepared by Parse. @throws ServerError when that fails */
  async #prepareMissing({ missing }: Spoken): Promise<void> {
    const { lease } = this.#session;
    const backend = lease.backend as Backend;
    if (missing.length === 0 || (backend.status === FAILED && !lease.unsynced)) return;
    if (lease.unsynced)
      throw new RefusedError('0A000', 'EXECUTE in a batch of the extended protocol is not supported', {
        hint: 'Send a Sync before it.',
      });
    try {
      for (const { content, name } of missing) {
        await backend.parseInternal(encodeParse(name, content.sql, content.oids));
        backend.prepared.set(content, name);
      }
    } catch (error) {
      throw asServerError(error);
    }
  }

  /** The statements of a text; PostgreSQL looks names up when a statement's turn comes. */
  #executions(analyzed: Analyzed, prepared: SqlStatements): Execution[] {
    const { lookup } = this.#session;
    let current: Lookup | null = lookup.pending ? null : lookup.current;
    return analyzed.statements.map((_, index) => {
      const inner = prepared.none ? null : prepared.execution(index, current !== null);
      const execution: Execution = inner ?? { analyzed, index, params: null, lookup: current };
      if (lookup.mayChange(analyzed, index)) current = null;
      else if (inner !== null && lookup.mayChange(inner.analyzed, inner.index)) current = null;
      return execution;
    });
  }

  /**
   * A Query inside a batch may leave PostgreSQL (18) with a transaction that is open although the next Sync is answered with
   * "idle": nobody else may get that connection.
   */
  #keepMixed(): void {
    const { lease } = this.#session;
    if (lease.unsynced) lease.pinning.add('Query inside a batch');
  }

  /** What needs no server: nothing, BEGIN (until it is known where), the end of a transaction that no server has heard of. */
  #answerLocally(analyzed: Analyzed): boolean {
    const session = this.#session;
    const { lease } = session;
    if (analyzed.syntaxError) return false;
    if (this.#deallocatesByProtocol(analyzed)) {
      session.write(encodeCommandComplete('DEALLOCATE'));
      session.answerReady();
      return true;
    }
    if (lease.backend !== null && !lease.untold) return false;
    // For one who listens the server's answer says that what was notified before has been heard.
    if (analyzed.statements.length === 0 && !session.listening.active) {
      session.write(EMPTY_QUERY_RESPONSE);
      session.answerReady();
      return true;
    }
    const reply = this.#units.answerAlone(analyzed);
    if (reply === null) return false;
    session.write(reply);
    session.answerReady();
    return true;
  }

  /** DEALLOCATE of a statement that servers know by another name, and may have for other clients too. */
  #deallocatesByProtocol(analyzed: Analyzed): boolean {
    const { lease } = this.#session;
    const effect = analyzed.statements.length === 1 ? analyzed.statements[0]?.plan.effect : null;
    if (effect?.kind !== 'deallocate' || effect.name === null) return false;
    if (lease.unsynced || lease.backend?.status === FAILED || lease.backend?.byName) return false;
    return this.#statements.forget(protocolName(effect.name));
  }
}

/** What of a server's replies to a rewritten text the client is told. `done`: statements completed so far, the current reply's included. */
function tellOf(sent: SentText, spoken: Spoken | null, done: () => number): Pick<Expectation, 'tell' | 'muted'> {
  return {
    tell: (type, frame) => {
      if (type === BACKEND.ErrorResponse) return errorAsWritten(frame, sent, spoken);
      const at = type === BACKEND.CommandComplete ? done() - 1 : done();
      return typeof sent.origins[at] === 'object' ? null : frame;
    },
    muted: () => typeof sent.origins[done()] === 'object',
  };
}

/** Whether a text goes to a server as it is, and does nothing to the session. */
function isPlain({ statements, syntaxError }: Analyzed): boolean {
  if (syntaxError) return false;
  for (const { plan } of statements) if (plan.effect !== null) return false;
  return true;
}

/** Whether everything in the text is undone by one ROLLBACK: no COMMIT in its middle. */
function endsOnce(statements: readonly AnalyzedStatement[]): boolean {
  return statements.every((s, i) => i === statements.length - 1 || s.plan.effect?.kind !== 'commit');
}
