import type { Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Analyzed, BoundParams, StatementPlan } from '../router/route.js';
import { BIND_COMPLETE, NO_DATA, PARSE_COMPLETE } from '../wire/backend.js';
import { rewriteBindStatement } from '../wire/frontend.js';
import { FRONTEND, HEADER_BYTES } from '../wire/message-types.js';
import { IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import type { ClientOutput } from './client-output.js';
import type { CopyIn } from './copy-in.js';
import type { ExtendedProtocol } from './extended.js';
import type { Footprint } from './footprint.js';
import type { Inbox } from './inbox.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import type { MessageStream } from './message-stream.js';
import type { Lookup } from './name-lookup.js';
import type { ClientStatement } from './prepared.js';
import type { ServerReplies } from './server-replies.js';
import { ServerStatements } from './server-statements.js';
import { hasShape } from './stale-plan.js';
import type { ClientStatements } from './statements.js';
import { StraightAnswer } from './straight-answer.js';
import { StraightBatch } from './straight-batch.js';
import { LATER, StraightFirst } from './straight-first.js';
import type { Transaction } from './transaction.js';
import type { Units } from './units.js';

/** Longer ones go the other way: a server that is busy holds them back. */
const LONGEST_BYTES = 16 * 1024;

/** What is looked at; nothing of it is kept. */
const batch = new StraightBatch();

export interface StraightLeaseParts {
  readonly owner: LoopOwner;
  readonly loop: MessageLoop;
  readonly replies: Pick<ServerReplies, 'answered' | 'answerReady' | 'onReady'>;
  readonly output: ClientOutput;
  readonly inbox: Inbox;
  readonly copyIn: CopyIn;
  readonly stream: MessageStream;
  readonly statements: ClientStatements;
  readonly units: Units;
  readonly extended: ExtendedProtocol;
}

/**
 * The statements of a transaction, or a single one without, as most of them are: one query that only reads or changes rows, in one piece, to a connection
 * that owes nothing. Its bytes go on as they came, in the same turn, and its answer as it comes. Whatever else there is to a statement, a connection or
 * an answer takes the way of all others; what is here does the same as that.
 */
export class StraightLease {
  /** What takes a connection. */
  readonly first: StraightFirst;
  readonly #session: LoopOwner;
  readonly #loop: MessageLoop;
  readonly #replies: StraightLeaseParts['replies'];
  readonly #output: ClientOutput;
  readonly #inbox: Inbox;
  readonly #copyIn: CopyIn;
  readonly #stream: MessageStream;
  readonly #statements: ClientStatements;
  readonly #units: Units;
  readonly #extended: ExtendedProtocol;
  readonly #names: ServerStatements;
  readonly #answer: StraightAnswer;
  /** As `judge` has found the transaction; null: nothing is known of it, or there is no server connection. */
  #backend: Backend | null = null;
  /** It has found that there is no server connection, and this transaction, of which no server has heard; null: none. */
  #idle = false;
  #unopened: Transaction | null = null;
  #topology: Topology | null = null;
  #lookup: Lookup | null = null;

  constructor(parts: StraightLeaseParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#replies = parts.replies;
    this.#output = parts.output;
    this.#inbox = parts.inbox;
    this.#copyIn = parts.copyIn;
    this.#stream = parts.stream;
    this.#statements = parts.statements;
    this.#units = parts.units;
    this.#extended = parts.extended;
    this.#names = new ServerStatements(parts.owner, parts.statements);
    this.#answer = new StraightAnswer(parts);
    this.first = new StraightFirst(parts, this.#answer, (bytes, on) => this.#takeOn(bytes, on));
  }

  /** The client has been told that the proxy is ready: can what it sends next go the straight way? */
  judge(): void {
    const { lease, listening, lookup, gate, services } = this.#session;
    const { backend, transaction } = lease;
    const { current } = services.live;
    const quiet =
      !lease.unsynced &&
      !lease.untold &&
      !this.#loop.busy &&
      !this.#loop.awaitingReady &&
      !this.#loop.canceling &&
      !this.#extended.open &&
      !this.#copyIn.active &&
      !this.#stream.active &&
      !gate.active &&
      !listening.active &&
      !lookup.pending &&
      lookup.current.sure;
    this.#idle =
      quiet &&
      backend === null &&
      (transaction === null || (transaction.deferred && transaction.prelude.length === 1 && !transaction.overtaken));
    this.#unopened = this.#idle ? transaction : null;
    const fits =
      quiet &&
      backend !== null &&
      transaction !== null &&
      backend.status === IN_TRANSACTION &&
      backend.quiet &&
      !backend.byName &&
      !backend.mayAnswerSyncs &&
      lease.pinned === null &&
      lease.span === null &&
      lease.map.hasSeen(current) &&
      transaction.since === current &&
      !transaction.clean &&
      !transaction.deferred &&
      !transaction.opening &&
      !transaction.overtaken &&
      !transaction.ending &&
      !transaction.changedSchema &&
      !transaction.madeCode &&
      lookup.agrees(backend.connection.parameters);
    this.#backend = fits ? backend : null;
    this.#topology = current;
    this.#lookup = lookup.current;
  }

  /** Something was out of the ordinary. */
  mistrust(): void {
    this.#backend = null;
  }

  /** All that has come since the client was last told that the proxy is ready. @returns whether it has been sent; nobody changes the bytes then */
  take(bytes: Buffer): boolean {
    const backend = this.#backend;
    if (backend === null && !this.#idle) return false;
    this.#idle = false;
    if (this.#mayTake(backend) && bytes.length <= LONGEST_BYTES && bytes.length > HEADER_BYTES) {
      if (bytes[0] === FRONTEND.Query ? this.#query(backend, bytes) : this.#batch(backend, bytes)) return true;
      this.first.forget();
    }
    this.#backend = null;
    return false;
  }

  /** What has waited for this connection. @returns whether it has been sent */
  #takeOn(bytes: Buffer, on: Backend): boolean {
    const { lease, lookup, services } = this.#session;
    if (lease.transaction !== this.#unopened || lookup.current !== this.#lookup || !services.schema.allRead)
      return false;
    return bytes[0] === FRONTEND.Query ? this.#query(null, bytes, on) : this.#batch(null, bytes, on);
  }

  /** Whether everything is as `judge` has found it. */
  #mayTake(backend: Backend | null): boolean {
    const { lease, lookup, services } = this.#session;
    return (
      lease.backend === backend &&
      !lease.untold &&
      (backend === null ? lease.transaction === this.#unopened : backend.lost === null && backend.quiet) &&
      !this.#loop.awaitingReady &&
      !this.#loop.busy &&
      !this.#loop.canceling &&
      !this.#output.full &&
      this.#inbox.isEmpty &&
      services.live.current === this.#topology &&
      lookup.current === this.#lookup &&
      services.schema.allRead
    );
  }

  #query(backend: Backend | null, bytes: Buffer, taken: Backend | null = null): boolean {
    const end = bytes.length - 1;
    // Exactly one message, which is a text and its end.
    if (bytes.readInt32BE(1) !== end || bytes.indexOf(0, HEADER_BYTES) !== end) return false;
    const analyzed = this.#statements.analyze(bytes.subarray(HEADER_BYTES, end));
    const opens = backend === null && this.#opens(analyzed);
    const to = opens
      ? null
      : backend === null
        ? this.first.connect(analyzed, null, taken)
        : this.#placed(backend, analyzed);
    if (to === null && !opens) return false;
    if (taken === null) {
      this.#session.activity.message(FRONTEND.Query);
      if (this.#statements.size > 0) this.#statements.forget('');
    }
    if (to === null) this.#open(analyzed);
    else if (to === LATER) this.first.wait(bytes);
    else {
      this.#answer.kind = 'query';
      this.#answer.statement = null;
      this.#answer.parses = false;
      this.#begin(to, backend === null ? bytes : null);
      to.send(bytes, this.#answer);
    }
    return true;
  }

  #batch(backend: Backend | null, bytes: Buffer, taken: Backend | null = null): boolean {
    if ((bytes[0] !== FRONTEND.Parse && bytes[0] !== FRONTEND.Bind) || !batch.read(bytes)) return false;
    const { name, parses } = batch;
    let statement = batch.find(bytes, this.#statements);
    const made = statement === null && parses;
    if (made) statement = batch.prepare(bytes, this.#statements);
    if (statement === null) return false;
    const opens = backend === null && this.#mayOpen(bytes, statement);
    const to = opens ? null : this.#mayBind(backend, bytes, statement, taken);
    if ((to === null && !opens) || to === LATER) {
      // Another way, or a later time, prepares it once more.
      if (made) this.#statements.undo('', statement, false);
      if (to === null) return false;
    } else if (made) this.#statements.parsed(statement); // The server gives up the one before as soon as it looks at the Parse, and nothing keeps it from that.
    if (taken === null) {
      const { activity } = this.#session;
      if (parses) activity.message(FRONTEND.Parse);
      activity.message(FRONTEND.Bind);
      activity.message(FRONTEND.Execute);
    }
    if (to === LATER) {
      this.first.wait(bytes);
      return true;
    }
    this.#extended.forgetPortal('');
    if (to === null) {
      if (parses) this.#output.write(PARSE_COMPLETE);
      this.#output.write(BIND_COMPLETE);
      if (batch.described) this.#output.write(NO_DATA);
      this.#open(statement.analyzed);
      return true;
    }
    this.#answer.kind = 'batch';
    this.#answer.statement = statement;
    this.#answer.parses = parses;
    this.#begin(to, backend === null ? bytes : null);
    this.#send(to, bytes, statement, name);
    return true;
  }

  #mayOpen(bytes: Buffer, statement: ClientStatement): boolean {
    return (
      this.#opens(statement.analyzed) &&
      this.#isAsRead(statement) &&
      !batch.closes &&
      batch.params(bytes, statement)?.values.length === 0
    );
  }

  /** Whether what is known of the statement is what it means now. */
  #isAsRead({ analyzed, content, lookup }: ClientStatement): boolean {
    return lookup === this.#lookup && content.definition === null && this.#session.services.router.isCurrent(analyzed);
  }

  /** Where it may be bound; null: another way has to see to it. */
  #mayBind(
    backend: Backend | null,
    bytes: Buffer,
    statement: ClientStatement,
    taken: Backend | null,
  ): Backend | typeof LATER | null {
    if (!this.#isAsRead(statement)) return null;
    if (backend !== null && !this.#hasShape(backend, statement)) return null;
    const params = batch.params(bytes, statement);
    if (params === null) return null;
    if (backend !== null) return this.#place(backend, statement.analyzed, params) ? backend : null;
    const found = this.first.connect(statement.analyzed, params, taken);
    return found === null || found === LATER || this.#hasShape(found, statement) ? found : null;
  }

  #hasShape(backend: Backend, statement: ClientStatement): boolean {
    const { version } = this.#session.services.contents;
    return batch.parses || batch.described || hasShape(backend, statement, batch.name === '', version);
  }

  #send(backend: Backend, bytes: Buffer, statement: ClientStatement, before: string): void {
    const { bindAt } = batch;
    if (backend.toClose.length > 0) this.#names.closeUnused(backend);
    if (this.#answer.parses) {
      backend.unnamed = statement.content;
      this.#session.activity.serverParses += 1;
      backend.send(bytes, this.#answer);
      return;
    }
    const name = this.#names.nameOf(backend, statement, before === '');
    if (name === before) {
      backend.send(bytes, this.#answer);
      return;
    }
    const end = bindAt + 1 + bytes.readInt32BE(bindAt + 1);
    const bind = rewriteBindStatement(bytes.subarray(bindAt, end), name);
    bind.push(bytes.subarray(end));
    backend.send(bind, this.#answer);
  }

  #placed(backend: Backend, analyzed: Analyzed): Backend | null {
    return this.#place(backend, analyzed, null) ? backend : null;
  }

  /** Whether it may go to the connection now; then it is the transaction's, and no hold slips in between. */
  #place(backend: Backend, analyzed: Analyzed, params: BoundParams | null): boolean {
    const { lease, services } = this.#session;
    const { live, router } = services;
    const plan = analyzed.statements[0]?.plan;
    if (plan === undefined || analyzed.statements.length !== 1 || analyzed.syntaxError) return false;
    const { transaction } = lease;
    if (plan.plain !== true) return this.#placeEnd(analyzed, plan);
    if (transaction === null || !lease.maySendPlain(plan)) return false;
    const route = router.route(analyzed, 0, params, live.current);
    if (route.kind === 'shard') {
      if (route.shard !== backend.shard || route.hot !== undefined) return false;
    } else if (route.kind !== 'any' || !route.shards.includes(backend.shard)) return false;
    const footprint: Footprint = {
      topology: live.current,
      touches: route.touches,
      everything: false,
      writesReference: route.writesReference,
    };
    if (!live.admits(footprint, transaction)) return false;
    transaction.touch(footprint);
    lease.sendingPlain(plan);
    this.#answer.analyzed = analyzed;
    this.#answer.plan = plan;
    this.#answer.touches = route.touches;
    return true;
  }

  /** The same of a COMMIT or ROLLBACK. */
  #placeEnd(analyzed: Analyzed, plan: StatementPlan): boolean {
    const { lease, lookup, services } = this.#session;
    const { effect } = plan;
    if ((effect?.kind !== 'commit' && effect?.kind !== 'rollback') || effect.chain || plan.pin !== null) return false;
    if (!services.live.mayServe || lookup.mayChange(analyzed, 0)) return false;
    lease.sendingPlain(plan);
    this.#answer.forget();
    this.#answer.analyzed = analyzed;
    this.#answer.plan = plan;
    return true;
  }

  /** @param first the bytes of a first statement; null: it is none */
  #begin(backend: Backend, first: Buffer | null): void {
    const { plan } = this.#answer;
    const session = this.#session;
    if (first === null) {
      this.#answer.expect(false, plan?.plain === true ? IN_TRANSACTION : IDLE);
      this.#units.beginUnit(backend);
      this.#units.sent(plan);
      session.ifUnseen(null);
      session.ifStale(null);
    } else this.first.begin(backend, first);
    this.#loop.awaitingReady = true;
  }

  /** See BackendOwner. */
  onChunk(chunk: Buffer): number {
    const { backend } = this.#session.lease;
    return backend === null ? 0 : this.#answer.onChunk(backend, chunk);
  }

  /** BEGIN needs no server, as long as it is not known which. */
  #open(analyzed: Analyzed): void {
    this.#output.write(this.#units.answerAlone(analyzed) as Buffer);
    this.#replies.answerReady();
    this.judge();
  }

  /** Whether it is a BEGIN and nothing else, of a client without a transaction. */
  #opens({ statements, syntaxError }: Analyzed): boolean {
    return (
      this.#session.lease.transaction === null &&
      !syntaxError &&
      statements.length === 1 &&
      statements[0]?.plan.effect?.kind === 'begin'
    );
  }
}
