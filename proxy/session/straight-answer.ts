import type { Backend } from '../backend/backend.js';
import type { Expectation } from '../backend/expectation.js';
import { WholeAnswer } from '../backend/whole-answer.js';
import type { Analyzed, StatementPlan, Touch } from '../router/route.js';
import { decodeCommandComplete, rowsOfTag } from '../wire/backend.js';
import { BACKEND, HEADER_BYTES } from '../wire/message-types.js';
import { IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import type { ClientOutput } from './client-output.js';
import type { Inbox } from './inbox.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import { type ClientStatement, shapeFor } from './prepared.js';
import type { ServerReplies } from './server-replies.js';
import type { ClientStatements } from './statements.js';
import type { Units } from './units.js';

const READY_BYTES = HEADER_BYTES + 1;
const NO_TOUCHES: readonly Touch[] = [];

/** What is looked at; nothing of it is kept. */
const answer = new WholeAnswer();

export interface StraightAnswerParts {
  readonly owner: LoopOwner;
  readonly loop: MessageLoop;
  readonly replies: Pick<ServerReplies, 'answered' | 'onReady'>;
  readonly output: ClientOutput;
  readonly inbox: Inbox;
  readonly statements: ClientStatements;
  readonly units: Units;
}

/** What a server's answer to a client's plain statement is expected by: there is one for all of the client's statements, one at a time. */
export class StraightAnswer implements Expectation {
  kind: 'query' | 'batch' = 'query';
  readonly internal = false;
  /** What is bound; null: it is a Query. */
  statement: ClientStatement | null = null;
  /** It is prepared by the same batch, and the server has yet to say that it is. */
  parses = false;
  analyzed: Analyzed | null = null;
  plan: StatementPlan | null = null;
  touches = NO_TOUCHES;
  readonly #session: LoopOwner;
  readonly #loop: MessageLoop;
  readonly #replies: StraightAnswerParts['replies'];
  readonly #output: ClientOutput;
  readonly #inbox: Inbox;
  readonly #statements: ClientStatements;
  readonly #units: Units;
  /** It is the first on the connection: what it has done has to be noted, and may have to be done again. */
  #first = false;
  /** Transaction status behind it, if nothing goes wrong. */
  #ends = IN_TRANSACTION;
  #rows = 0;
  #completed = false;

  constructor(parts: StraightAnswerParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#replies = parts.replies;
    this.#output = parts.output;
    this.#inbox = parts.inbox;
    this.#statements = parts.statements;
    this.#units = parts.units;
  }

  /** To be called before the statement is sent. @param ends transaction status behind it */
  expect(first: boolean, ends: number): void {
    this.#first = first;
    this.#ends = ends;
    this.#rows = 0;
    this.#completed = false;
  }

  /** Takes the answer if that is all that has come, and all of it has. @returns how many bytes it took */
  onChunk(backend: Backend, chunk: Buffer): number {
    let from = 0;
    if (!backend.expects(this)) {
      from = backend.takeAhead(chunk);
      if (from === 0 || !backend.expects(this)) return from;
    }
    if (backend.outstanding !== 1 || !answer.read(chunk, from) || answer.end !== chunk.length) return from;
    const { status } = answer;
    const { gate } = this.#session;
    if (this.plan === null || answer.commands !== 1 || status !== this.#ends || gate.refused) return from;
    // It was not refused: what came before it, a notice, need not be held back any more.
    if (gate.active) for (const held of gate.open()) this.#output.write(held);
    const ms = backend.wholeAnswerAlone(status);
    if (answer.described >= 0 && this.statement !== null) {
      const at = from + answer.described;
      const end = at + 1 + chunk.readInt32BE(at + 1);
      this.#noteShape(this.statement, chunk[at] as number, chunk.subarray(at, end));
    }
    const { commandAt, end } = answer;
    this.#session.bytesForwarded += chunk.length - from - READY_BYTES;
    if (status === IDLE) {
      this.#output.write(chunk.subarray(from, end - READY_BYTES));
      this.completed(chunk.subarray(commandAt, end - READY_BYTES), false);
      this.#record(backend, ms);
      this.#replies.onReady(backend, IDLE, false);
      return chunk.length;
    }
    if (this.#first) this.completed(chunk.subarray(commandAt, end - READY_BYTES), false);
    else this.#rows = answer.affected(chunk);
    this.#record(backend, ms);
    this.#output.write(from === 0 ? chunk : chunk.subarray(from));
    this.#replies.answered(IN_TRANSACTION);
    this.#loop.awaitingReady = false;
    if (!this.#inbox.isEmpty || this.#session.lease.transaction?.ending) this.#loop.pump();
    if (this.#first) this.#session.judgeStraight();
    return chunk.length;
  }

  /** See Expectation: what follows is for answers that come in pieces, or with something else in them. */
  replied(type: number, frame: Buffer): void {
    if (type === BACKEND.ParseComplete) this.parses = false;
    else if ((type === BACKEND.RowDescription || type === BACKEND.NoData) && this.statement !== null)
      this.#noteShape(this.statement, type, frame);
  }

  completed(frame: Buffer, empty: boolean): void {
    if (empty || this.analyzed === null) return;
    this.#completed = true;
    const tag = decodeCommandComplete(frame);
    this.#rows += rowsOfTag(tag) ?? 0;
    this.#units.completed({ analyzed: this.analyzed, index: 0, params: null, lookup: null }, tag);
  }

  failed(): void {
    if (!this.parses) return;
    // The server has given up the unnamed statement before.
    this.parses = false;
    const { backend } = this.#session.lease;
    if (backend !== null) backend.unnamed = null;
    this.#statements.forget('');
  }

  done(): void {
    const { backend } = this.#session.lease;
    // What was said ahead of it has failed, and the Parse was skipped.
    if (this.parses) this.failed();
    if (backend !== null && (this.#completed || this.kind === 'query'))
      this.#record(backend, performance.now() - backend.clock.since);
    // Something was out of the ordinary: it is looked at anew whether the next one may go this way.
    this.#session.straight?.mistrust();
  }

  #record(backend: Backend, ms: number): void {
    const { bytesForwarded, lanes, services } = this.#session;
    const analyzed = this.analyzed as Analyzed;
    if (this.plan?.laneSafe === true) lanes.ranOnLease(analyzed, backend, ms, bytesForwarded);
    services.load.record({
      template: analyzed.template,
      shard: backend.shard,
      touches: this.touches,
      write: this.plan?.kind === 'write',
      rows: this.#rows,
      bytes: bytesForwarded,
      ms,
    });
    this.forget();
  }

  /** An idle client keeps nothing of what it sent. */
  forget(): void {
    this.analyzed = null;
    this.plan = null;
    this.touches = NO_TOUCHES;
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
