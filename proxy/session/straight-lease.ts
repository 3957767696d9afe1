import { ForeshardError } from '../../topology/errors.js';
import type { Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import { WholeAnswer } from '../backend/whole-answer.js';
import type { Analyzed, BoundParams, StatementPlan, Touch } from '../router/route.js';
import { BIND_COMPLETE, decodeCommandComplete, NO_DATA, PARSE_COMPLETE, rowsOfTag } from '../wire/backend.js';
import { decodeParse, rewriteBindStatement } from '../wire/frontend.js';
import { BACKEND, FRONTEND, HEADER_BYTES } from '../wire/message-types.js';
import type { ClientOutput } from './client-output.js';
import type { CopyIn } from './copy-in.js';
import type { ExtendedProtocol } from './extended.js';
import type { Footprint } from './footprint.js';
import type { Inbox } from './inbox.js';
import { IDLE } from './lease.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import type { MessageStream } from './message-stream.js';
import type { Lookup } from './name-lookup.js';
import { type ClientStatement, shapeFor } from './prepared.js';
import type { ServerReplies } from './server-replies.js';
import { ServerStatements } from './server-statements.js';
import { hasShape } from './stale-plan.js';
import type { ClientStatements } from './statements.js';
import { StraightBatch } from './straight-batch.js';
import type { Units } from './units.js';

const IN_TRANSACTION = 0x54; // 'T'
/** Longer ones go the other way: a server that is busy holds them back. */
const LONGEST_BYTES = 16 * 1024;
const READY_BYTES = HEADER_BYTES + 1;
const NO_TOUCHES: readonly Touch[] = [];

/** What is looked at; nothing of it is kept. */
const batch = new StraightBatch();
const answer = new WholeAnswer();

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
 * The statements of a transaction that is under way on a server connection, one at a time, as most of them are: one query that only reads or
 * changes rows, in one piece, to a connection that owes nothing. Its bytes go on as they came, in the same turn, and its answer as it
 * comes. Whatever else there is to a statement, a connection or an answer takes the way of all others; what is here does the same as that.
 *
 * This is itself what the server's answer is expected by: there is one for all of the client's statements.
 */
export class StraightLease implements Expectation {
  kind: 'query' | 'batch' = 'query';
  readonly internal = false;
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
  /** As `judge` has found the transaction; null: nothing is known of it. */
  #backend: Backend | null = null;
  /** It has found that there is none, and no server connection. */
  #idle = false;
  #topology: Topology | null = null;
  #lookup: Lookup | null = null;
  /** Of the statement under way. */
  #analyzed: Analyzed | null = null;
  #plan: StatementPlan | null = null;
  #touches = NO_TOUCHES;
  #rows = 0;
  #completed = false;
  /** What is bound; null: it is a Query. */
  #statement: ClientStatement | null = null;
  /** It is prepared by the same batch, and the server has yet to say that it is. */
  #parses = false;

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
  }

  /** The client has been told that the proxy is ready: can what it sends next go the straight way? */
  judge(): void {
    const { lease, listening, lookup, gate, services } = this.#session;
    const { backend, transaction } = lease;
    const { current } = services.live;
    const quiet =
      !lease.unsynced &&
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
    this.#idle = quiet && backend === null && transaction === null;
    const fits =
      quiet &&
      backend !== null &&
      transaction !== null &&
      backend.status === IN_TRANSACTION &&
      backend.quiet &&
      !backend.byName &&
      !backend.mayAnswerSyncs &&
      lease.pinned === null &&
      lease.map.hasSeen(current) &&
      transaction.since === current &&
      !transaction.clean &&
      !transaction.deferred &&
      !transaction.opening &&
      !transaction.overtaken &&
      !transaction.changedSchema &&
      !transaction.madeCode &&
      lookup.agrees(backend.connection.parameters);
    this.#backend = fits ? backend : null;
    this.#topology = current;
    this.#lookup = lookup.current;
  }

  /** All that has come since the client was last told that the proxy is ready. @returns whether it has been sent; nobody changes the bytes then */
  take(bytes: Buffer): boolean {
    const backend = this.#backend;
    if (backend === null && !this.#idle) return false;
    this.#idle = false;
    if (this.#mayTake(backend) && bytes.length <= LONGEST_BYTES && bytes.length > HEADER_BYTES) {
      if (bytes[0] === FRONTEND.Query) {
        if (this.#query(backend, bytes)) return true;
      } else if (this.#batch(backend, bytes)) return true;
    }
    this.#backend = null;
    return false;
  }

  /** Whether everything is as `judge` has found it. */
  #mayTake(backend: Backend | null): boolean {
    const { lease, lookup, services } = this.#session;
    return (
      lease.backend === backend &&
      (backend === null ? lease.transaction === null : backend.lost === null && backend.quiet) &&
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

  #query(backend: Backend | null, bytes: Buffer): boolean {
    const end = bytes.length - 1;
    // Exactly one message, which is a text and its end.
    if (bytes.readInt32BE(1) !== end || bytes.indexOf(0, HEADER_BYTES) !== end) return false;
    const analyzed = this.#statements.analyze(bytes.subarray(HEADER_BYTES, end));
    if (backend === null ? !begins(analyzed) : !this.#place(backend, analyzed, null)) return false;
    const { activity } = this.#session;
    activity.message(FRONTEND.Query);
    if (this.#statements.size > 0) this.#statements.forget('');
    if (backend === null) {
      this.#open(analyzed);
      return true;
    }
    this.kind = 'query';
    this.#statement = null;
    this.#parses = false;
    this.#begin(backend);
    backend.send(bytes, this);
    return true;
  }

  #batch(backend: Backend | null, bytes: Buffer): boolean {
    if ((bytes[0] !== FRONTEND.Parse && bytes[0] !== FRONTEND.Bind) || !batch.read(bytes)) return false;
    const { name, parses } = batch;
    let statement = batch.find(bytes, this.#statements);
    const made = statement === null && parses;
    if (made) statement = this.#prepare(bytes);
    if (statement === null) return false;
    if (!this.#mayBind(backend, bytes, statement)) {
      // Another way prepares it once more.
      if (made) this.#statements.undo('', statement, false);
      return false;
    }
    // The server gives up the one before as soon as it looks at the Parse, and nothing keeps it from that.
    if (made) this.#statements.parsed(statement);
    const { activity } = this.#session;
    if (parses) activity.message(FRONTEND.Parse);
    activity.message(FRONTEND.Bind);
    activity.message(FRONTEND.Execute);
    this.#extended.forgetPortal('');
    if (backend === null) {
      if (parses) this.#output.write(PARSE_COMPLETE);
      this.#output.write(BIND_COMPLETE);
      if (batch.described) this.#output.write(NO_DATA);
      this.#open(statement.analyzed);
      return true;
    }
    this.kind = 'batch';
    this.#statement = statement;
    this.#parses = parses;
    this.#begin(backend);
    this.#send(backend, bytes, statement, name);
    return true;
  }

  /** The client's unnamed statement, from the Parse at the beginning; null: another way finds out what is wrong with it. */
  #prepare(bytes: Buffer): ClientStatement | null {
    try {
      const { sql, oids } = decodeParse(bytes.subarray(0, batch.bindAt));
      return this.#statements.add('', sql, oids);
    } catch (error) {
      if (error instanceof ForeshardError) return null;
      throw error;
    }
  }

  #mayBind(backend: Backend | null, bytes: Buffer, statement: ClientStatement): boolean {
    const { contents, router } = this.#session.services;
    const { analyzed, content, lookup } = statement;
    if (lookup !== this.#lookup || content.definition !== null || !router.isCurrent(analyzed)) return false;
    if (backend === null)
      return begins(analyzed) && !batch.closes && batch.params(bytes, statement)?.values.length === 0;
    if (!batch.parses && !batch.described && !hasShape(backend, statement, batch.name === '', contents.version))
      return false;
    const params = batch.params(bytes, statement);
    return params !== null && this.#place(backend, analyzed, params);
  }

  #send(backend: Backend, bytes: Buffer, statement: ClientStatement, before: string): void {
    const { bindAt } = batch;
    if (backend.toClose.length > 0) this.#names.closeUnused(backend);
    if (this.#parses) {
      backend.unnamed = statement.content;
      this.#session.activity.serverParses += 1;
      backend.send(bytes, this);
      return;
    }
    const name = this.#names.nameOf(backend, statement, before === '');
    if (name === before) {
      backend.send(bytes, this);
      return;
    }
    const end = bindAt + 1 + bytes.readInt32BE(bindAt + 1);
    const bind = rewriteBindStatement(bytes.subarray(bindAt, end), name);
    bind.push(bytes.subarray(end));
    backend.send(bind, this);
  }

  /** BEGIN needs no server, as long as it is not known which. */
  #open(analyzed: Analyzed): void {
    this.#output.write(this.#units.answerAlone(analyzed) as Buffer);
    this.#replies.answerReady();
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
      if (route.shard !== backend.shard) return false;
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
    this.#analyzed = analyzed;
    this.#plan = plan;
    this.#touches = route.touches;
    return true;
  }

  /** The same of a COMMIT or ROLLBACK. */
  #placeEnd(analyzed: Analyzed, plan: StatementPlan): boolean {
    const { lease, lookup, services } = this.#session;
    const { effect } = plan;
    if ((effect?.kind !== 'commit' && effect?.kind !== 'rollback') || effect.chain || plan.pin !== null) return false;
    if (!services.live.mayServe || lookup.mayChange(analyzed, 0)) return false;
    lease.sendingPlain(plan);
    this.#analyzed = analyzed;
    this.#plan = plan;
    this.#touches = NO_TOUCHES;
    return true;
  }

  #begin(backend: Backend): void {
    this.#rows = 0;
    this.#completed = false;
    this.#units.beginUnit(backend);
    this.#units.sent(this.#plan);
    this.#session.ifUnseen(null);
    this.#session.ifStale(null);
    this.#loop.awaitingReady = true;
  }

  /** Takes the answer if that is all that has come, and all of it has. @returns how many bytes it took */
  onChunk(chunk: Buffer): number {
    const backend = this.#backend;
    if (backend === null || !backend.expects(this) || backend.outstanding !== 1) return 0;
    if (!answer.read(chunk, 0) || answer.end !== chunk.length) return 0;
    const plan = this.#plan;
    const { status } = answer;
    if (plan === null || answer.commands !== 1) return 0;
    if (status !== (plan.plain === true ? IN_TRANSACTION : IDLE)) return 0;
    const ms = backend.wholeAnswerAlone(status);
    const { described } = answer;
    if (described >= 0 && this.#statement !== null) {
      const end = described + 1 + chunk.readInt32BE(described + 1);
      this.#noteShape(this.#statement, chunk[described] as number, chunk.subarray(described, end));
    }
    this.#session.bytesForwarded += chunk.length - READY_BYTES;
    if (status === IDLE) {
      const { commandAt, end } = answer;
      this.#output.write(chunk.subarray(0, end - READY_BYTES));
      this.completed(chunk.subarray(commandAt, end - READY_BYTES), false);
      this.#record(ms);
      this.#replies.onReady(backend, IDLE, false);
      return chunk.length;
    }
    this.#rows = answer.affected(chunk);
    this.#record(ms);
    this.#output.write(chunk);
    this.#replies.answered(IN_TRANSACTION);
    this.#loop.awaitingReady = false;
    if (!this.#inbox.isEmpty || this.#session.lease.transaction?.ending) this.#loop.pump();
    return chunk.length;
  }

  /** See Expectation: what follows is for answers that come in pieces, or with something else in them. */
  replied(type: number, frame: Buffer): void {
    if (type === BACKEND.ParseComplete) this.#parses = false;
    else if ((type === BACKEND.RowDescription || type === BACKEND.NoData) && this.#statement !== null)
      this.#noteShape(this.#statement, type, frame);
  }

  completed(frame: Buffer, empty: boolean): void {
    if (empty || this.#analyzed === null) return;
    this.#completed = true;
    const tag = decodeCommandComplete(frame);
    this.#rows += rowsOfTag(tag) ?? 0;
    this.#units.completed({ analyzed: this.#analyzed, index: 0, params: null, lookup: null }, tag);
  }

  failed(): void {
    if (!this.#parses) return;
    // The server has given up the unnamed statement before.
    this.#parses = false;
    const { backend } = this.#session.lease;
    if (backend !== null) backend.unnamed = null;
    this.#statements.forget('');
  }

  done(): void {
    const backend = this.#session.lease.backend;
    if (backend !== null && (this.#completed || this.kind === 'query'))
      this.#record(performance.now() - backend.clock.since);
    // Something was out of the ordinary: it is looked at anew whether the next one may go this way.
    this.#backend = null;
  }

  #record(ms: number): void {
    const { bytesForwarded, lanes, lease, services } = this.#session;
    const backend = lease.backend as Backend;
    const analyzed = this.#analyzed as Analyzed;
    if (this.#plan?.laneSafe === true) lanes.ranOnLease(analyzed, backend, ms, bytesForwarded);
    services.load.record({
      template: analyzed.template,
      shard: backend.shard,
      touches: this.#touches,
      write: this.#plan?.kind === 'write',
      rows: this.#rows,
      bytes: bytesForwarded,
      ms,
    });
    // An idle client keeps nothing of what it sent.
    this.#analyzed = null;
    this.#plan = null;
    this.#touches = NO_TOUCHES;
  }

  /** As for other batches: what the client has been told of the columns. */
  #noteShape(statement: ClientStatement, type: number, frame: Buffer): void {
    const { content, told } = statement;
    const backend = this.#session.lease.backend as Backend;
    const { version } = this.#session.services.contents;
    const shape = shapeFor(content, type, frame);
    if (told === null || told.shape !== shape || told.version !== version) statement.told = { shape, version };
    if (backend.prepared.has(content) && backend.shapes.get(content) !== shape) backend.shapes.set(content, shape);
  }
}

/** Whether it is a BEGIN and nothing else. */
function begins({ statements, syntaxError }: Analyzed): boolean {
  return !syntaxError && statements.length === 1 && statements[0]?.plan.effect?.kind === 'begin';
}
