import { ForeshardError } from '../../topology/errors.js';
import type { Backend } from '../backend/backend.js';
import type { BackendOwner, Expectation } from '../backend/expectation.js';
import { LISTENS_ITSELF } from '../router/route.js';
import { decodeParameterStatus, encodeReadyForQuery } from '../wire/backend.js';
import { decodeErrorFields, encodeErrorResponse, fieldsOfError, ServerError } from '../wire/error-response.js';
import { BACKEND } from '../wire/message-types.js';
import { FAILED, IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import type { ClientOutput } from './client-output.js';
import type { CopyIn } from './copy-in.js';
import type { ExtendedProtocol } from './extended.js';
import type { Inbox } from './inbox.js';
import type { LoopOwner, MessageLoop } from './message-loop.js';
import type { MessageStream } from './message-stream.js';
import { lost, mayNotSay, transactionEnded } from './refusals.js';
import type { Source } from './replica-reads.js';
import { isStalePlan } from './stale-plan.js';
import type { Units } from './units.js';

/** PostgreSQL's words for its statement_timeout. */
export const OVERDUE = 'canceling statement due to statement timeout';

/** What of a session the replies to its client have to do with. */
export interface RepliesParts {
  readonly owner: LoopOwner;
  readonly loop: MessageLoop;
  readonly output: ClientOutput;
  readonly inbox: Inbox;
  readonly copyIn: CopyIn;
  readonly stream: MessageStream;
  readonly units: Units;
  readonly extended: ExtendedProtocol;
}

/** What the server connection of a session answers, on its way to the client; and what is still owed. */
export class ServerReplies implements BackendOwner {
  /** What runs has been canceled because it took too long. */
  overdue = false;
  /** What runs is stopped because its transaction is being ended. */
  ending = false;
  /** What runs is stopped for this reason; null: it is not. */
  stopped: ForeshardError | null = null;
  /** Queries and Syncs answered, and those after which no transaction was open. */
  answers = 0;
  transactions = 0;

  readonly #session: LoopOwner;
  readonly #loop: MessageLoop;
  readonly #output: ClientOutput;
  readonly #inbox: Inbox;
  readonly #copyIn: CopyIn;
  readonly #stream: MessageStream;
  readonly #units: Units;
  readonly #extended: ExtendedProtocol;
  /** The server has reported parameters that the client has yet to be told. */
  #parametersReported = false;
  /** The server has said FATAL: nothing may follow it. */
  #fatal = false;
  /** Runs the Query or batch once more that was sent last, while nothing of it has left the process. */
  #unseen: (() => Promise<void>) | null = null;
  /** Runs again what was sent when a plan in it turns out to be out of date; and whether it did. */
  #ifStale: (() => Promise<void>) | null = null;
  #stale = false;

  constructor(parts: RepliesParts) {
    this.#session = parts.owner;
    this.#loop = parts.loop;
    this.#output = parts.output;
    this.#inbox = parts.inbox;
    this.#copyIn = parts.copyIn;
    this.#stream = parts.stream;
    this.#units = parts.units;
    this.#extended = parts.extended;
  }

  get rowsAtStake(): boolean {
    return this.#session.lease.transaction?.touched === true;
  }

  /** See ClientSession. */
  ifUnseen(again: (() => Promise<void>) | null): void {
    this.#unseen = again;
  }

  /** See ClientSession. */
  ifStale(again: (() => Promise<void>) | null): void {
    this.#ifStale = again;
    this.#output.told = 0;
  }

  /** Answers the client's Query or Sync without a server. */
  answerReady(): void {
    const { backend, transaction } = this.#session.lease;
    const status = transaction?.deferred ? IN_TRANSACTION : (backend?.status ?? IDLE);
    if (status === IDLE) this.#session.listening.deliver();
    this.answered(status);
    this.#output.write(encodeReadyForQuery(String.fromCharCode(status) as 'I' | 'T' | 'E'));
  }

  /** The client's Query or Sync has been answered. `from`: what that has touched; null: that is not known */
  answered(status: number, from: Source = this.#session.lease.transaction): void {
    this.#session.lanes.heard(from);
    this.#session.activity.answeredAt = Date.now();
    this.answers += 1;
    this.#unseen = null;
    this.#ifStale = null; // it holds on to what the client has sent
    this.#inbox.large.done();
    if (status === IDLE) this.transactions += 1;
    this.overdue = false;
    this.ending = false;
    this.stopped = null;
  }

  /** See ClientSession. */
  async settled(): Promise<void> {
    await this.#session.listening.settle(null);
    await this.#deliverAll();
  }

  /** The server's ErrorResponse as the client is to see it. */
  worded(frame: Buffer): Buffer {
    if (this.ending) return encodeErrorResponse(fieldsOfError(transactionEnded()));
    if (!this.overdue && this.stopped === null) return frame;
    const fields = decodeErrorFields(frame);
    if (this.stopped !== null)
      return fields.sqlstate === '57014' ? encodeErrorResponse(fieldsOfError(this.stopped)) : frame;
    return fields.sqlstate === '57014' ? encodeErrorResponse({ ...fields, message: OVERDUE }) : frame;
  }

  onChunk(chunk: Buffer): number {
    const { straight } = this.#session;
    return straight === null || this.#parametersReported ? 0 : straight.onChunk(chunk);
  }

  onReply(backend: Backend, type: number, frame: Buffer, expectation: Expectation | null): void {
    const session = this.#session;
    if (type === BACKEND.ParameterStatus) {
      // PostgreSQL tells what has changed once, before it is ready; so that nothing is told which our own statements take back.
      session.lookup.reported(decodeParameterStatus(frame).name);
      this.#parametersReported = true;
      if (!this.#loop.awaitingReady && !session.lease.unsynced) this.#tellParameters(backend);
      return;
    }
    if (type === BACKEND.ErrorResponse) {
      this.#onErrorReply(backend, frame, expectation);
      return;
    }
    if (type === BACKEND.NotificationResponse) {
      this.#onServerNotification(backend, frame);
      return;
    }
    session.bytesForwarded += frame.length;
    this.#passOn(frame);
    this.#pumpLater();
  }

  onData(_backend: Backend, slice: Buffer): void {
    this.#session.bytesForwarded += slice.length;
    this.#passOn(slice);
  }

  onCopyIn(_backend: Backend, frame: Buffer, expectation: Expectation): void {
    const { lease } = this.#session;
    this.#copyIn.begin(expectation.kind === 'execute');
    this.#openGate();
    this.#output.write(frame);
    if (expectation.kind === 'execute') {
      // The Syncs sent with it are ignored by the server; the client sends another after CopyDone.
      this.#loop.awaitingReady = false;
      lease.unsynced = true;
      lease.unsyncedDirty = true;
    }
    this.#loop.pump();
  }

  onSyncsAnswered(_backend: Backend, answered: number): void {
    // `onReady` tells of the first, and the others follow.
    for (let n = 1; n < answered; n++) this.#inbox.syncAgain();
    if (answered > 0) return;
    this.#extended.skip();
    this.#loop.pump();
  }

  onReady(backend: Backend, status: number, internal: boolean): void {
    const { lease, lookup, gate } = this.#session;
    if (internal || backend !== lease.backend) return;
    this.#copyIn.end(lease.backend);
    lease.unsynced = false;
    lease.unsyncedDirty = false;
    const unopened = lease.takeUnopened();
    if (unopened !== null) {
      this.#notOpened(unopened);
      return;
    }
    const pathUnsure = !backend.connection.reportsSearchPath && lookup.unsure(status);
    this.#unitEnded(backend, status);
    if (gate.refused) {
      this.#retry();
      return;
    }
    if (this.#stale && this.#ifStale !== null) {
      this.#stale = false;
      this.#loop.awaitingReady = false;
      this.#loop.follow(this.#ifStale());
      return;
    }
    const work = this.#units.settle(backend, status, pathUnsure);
    if (pathUnsure) this.#parametersReported = true;
    const heard = work === null ? this.#hear(backend, status) : work.then(() => this.#hear(backend, status));
    if (heard === null) this.#tellReady(backend, status);
    else this.#loop.follow(heard.then(() => this.#tellReady(backend, status)));
  }

  #unitEnded(backend: Backend, status: number): void {
    this.#session.lookup.ready(status);
    this.#extended.ready(status);
    this.#units.transactionStatus(backend, status);
  }

  /** The transaction, or open batch, was ended at the server for us: what it has done to the session stays so, or is undone. */
  async transactionEnded(backend: Backend, committed: boolean): Promise<void> {
    const { listening, lease, lookup } = this.#session;
    const pathUnsure = !backend.connection.reportsSearchPath && lookup.unsure(IDLE);
    if (committed) this.#units.committed();
    else this.#units.unitFailed = true;
    this.#unitEnded(backend, IDLE);
    if (backend.lost !== null) return;
    await this.#units.settle(backend, IDLE, pathUnsure);
    await Promise.all([listening.settle(backend), lease.pinning.settle(backend)]);
  }

  onWritable(): void {
    this.#copyIn.drained();
    this.#stream.drained();
    // What a batch has sent so far is not kept here; what is sent alone may have to be sent again.
    if (!this.#session.gate.active && !this.#loop.awaitingReady) this.#inbox.large.done();
    this.#inbox.resume();
    this.#loop.pump();
  }

  onLost(backend: Backend, error: Error): void {
    const session = this.#session;
    const { lease } = session;
    // Whoever commits it hears of the loss, and knows what it means.
    if (backend !== lease.backend || lease.span?.committing === true) return;
    if (backend.untouched && this.#startOver(error)) return;
    const during = this.#loop.awaitingReady || lease.unsynced;
    // Of several shards' failed transaction COMMIT is ROLLBACK, and is sent alone.
    const failed = lease.span !== null && backend.status === FAILED;
    const unknown = during && !failed && this.#units.outcomeUnknown;
    session.services.logger.warn(
      { err: error, shard: backend.shard, session: session.id, during },
      'server connection lost',
    );
    const pinned = lease.pinned !== null;
    lease.discard();
    if (this.#fatal || backend.midMessage) {
      session.close();
      return;
    }
    if (this.#loop.awaitingReady && this.#units.readsAlone && !pinned && cutForLease(error)) {
      this.#unanswered(backend, error);
      return;
    }
    // What PostgreSQL itself does when a backend dies: the session ends. A write in flight may or may not have happened.
    session.close(lost(backend.shard, error, unknown));
  }

  /** What to say when the answer to what is under way is not to be told. */
  withheld(): ForeshardError {
    const { lanes, lease } = this.#session;
    // With 40001 a client would do once more what may be done already.
    const answering = this.#loop.awaitingReady || lease.span?.committing === true;
    const unknown = answering && lanes.lane === null && this.#units.outcomeUnknown;
    return unknown && lease.backend !== null ? lost(lease.backend.shard, mayNotSay(), true) : mayNotSay();
  }

  /** We cut the connection ourselves, because what has been read may not be told: that fails, and the session lives on. */
  #unanswered(backend: Backend, error: Error): void {
    this.#openGate();
    this.#loop.awaitingReady = false;
    this.#units.unitFailed = true;
    this.#unitEnded(backend, IDLE);
    this.#loop.follow(this.#units.fail(error));
  }

  /** The connection was dead before anything was sent on it: the client need not know. @returns whether it goes on on another */
  #startOver(error: Error): boolean {
    const { id, lease, gate, services } = this.#session;
    const again = this.#unseen;
    const { busy } = this.#loop;
    const preparing = busy && !this.#loop.awaitingReady && !lease.unsynced;
    if (!preparing && (busy || again === null)) return false;
    services.logger.info({ err: error, session: id }, 'the server connection was dead before it was used');
    this.#unseen = null;
    lease.replaceDead();
    if (preparing || again === null) return true; // whoever prepares takes another
    gate.open();
    this.#loop.awaitingReady = false;
    this.#loop.follow(again());
    return true;
  }

  /** Something of an unfinished batch is answered: messages that wait for that may be looked at when the reply is done with. */
  #pumpLater(): void {
    if (this.#inbox.next !== undefined && !this.#loop.awaitingReady) queueMicrotask(() => this.#loop.pump());
  }

  /** A server connection of a pool never listens, but for a moment; one that a function made listen is the session's own. */
  #onServerNotification(backend: Backend, frame: Buffer): void {
    const { lease, listening } = this.#session;
    if (lease.pinning.has(LISTENS_ITSELF)) this.#passOn(listening.fromServer(backend, frame));
  }

  #onErrorReply(backend: Backend, frame: Buffer, expectation: Expectation | null): void {
    // Said before it can have seen anything: the end of a connection that was idle. The loss follows.
    if (backend.untouched) return;
    const session = this.#session;
    const { lease, gate } = session;
    this.#copyIn.end(lease.backend);
    this.#pumpLater();
    this.#units.unitFailed = true;
    if (expectation?.replacement === undefined) {
      const fields = decodeErrorFields(frame);
      if (fields.severity === 'FATAL' || fields.severity === 'PANIC') {
        this.#fatal = true;
        this.#output.write(frame);
        return;
      }
      const intrusion = this.#copyIn.intrusion(fields);
      if (intrusion !== null) {
        this.#output.write(intrusion);
        session.close(new ForeshardError('08P01', 'terminating connection because protocol synchronization was lost'));
        return;
      }
      if (lease.backend?.byName === false && isStalePlan(fields)) {
        // Whatever changed the schema, this client is not to know how it is prepared here: what it prepares from now on is new.
        lease.backend.forgetPrepared();
        if (this.#ifStale !== null && this.#units.autocommit) {
          if (gate.refuse()) return;
          this.#stale = this.#output.told === 0;
          if (this.#stale) return;
        }
      }
      if (fields.sqlstate === 'SH001') {
        // The guard at a shard says that it does not own the row (any more).
        if (gate.refuse()) return;
        this.#passOn(
          encodeErrorResponse({
            severity: 'ERROR',
            sqlstate: '40001',
            message: 'the range of this row has moved to another shard',
            hint: 'Retry the transaction.',
          }),
        );
        return;
      }
    }
    this.#passOn(this.worded(frame));
  }

  #passOn(bytes: Buffer): void {
    const { gate } = this.#session;
    if (!gate.take(bytes)) this.#output.write(bytes);
    else if (gate.full) this.#openGate();
  }

  #openGate(): void {
    for (const held of this.#session.gate.open()) this.#output.write(held);
  }

  /** What the client must hear before it is told that its transaction is over. Null: it has heard it. */
  #hear(backend: Backend, status: number): Promise<void> | null {
    this.#openGate();
    if (status !== IDLE) return null;
    const { listening, lease } = this.#session;
    const work = listening.settle(backend);
    const asked = lease.pinning.settle(backend);
    if (work === null && asked === null && listening.deliver()) return null;
    return Promise.all([work, asked]).then(() => this.#deliverAll());
  }

  /** All that PostgreSQL would send before it is ready, as fast as the client reads. */
  async #deliverAll(): Promise<void> {
    while (!this.#session.closed && !this.#session.listening.deliver()) await this.#output.untilDrained();
  }

  #tellReady(backend: Backend, status: number): void {
    if (this.#parametersReported) this.#tellParameters(backend);
    this.#output.write(encodeReadyForQuery(String.fromCharCode(status) as 'I' | 'T' | 'E'));
    this.answered(status);
    this.#session.lease.releaseIfIdle();
    this.#loop.awaitingReady = false;
    this.#loop.pump();
    this.#session.notify();
    this.#session.judgeStraight();
  }

  #tellParameters(backend: Backend): void {
    this.#parametersReported = false;
    try {
      this.#session.lease.serverSettings.tellParameters(backend);
    } catch (error) {
      // What the client says from here on could not be read safely.
      this.#session.close(error);
    }
  }

  /** The transaction could not be opened, and what was sent with it was skipped: it fails, as it would have failed by itself. */
  #notOpened(frame: Buffer): void {
    const { gate } = this.#session;
    gate.open();
    this.#loop.awaitingReady = false;
    this.#loop.follow(this.#units.fail(new ServerError(decodeErrorFields(this.worded(frame)))));
  }

  /** A write met a shard that no longer owns its range: run it again where it belongs. The client has seen nothing of it. */
  #retry(): void {
    this.#loop.awaitingReady = false;
    this.#loop.follow(this.#session.gate.takeRetry()());
  }
}

/** Whether we have ended a connection because the lease did not come back in time (`LiveTopology.untilServing`). */
function cutForLease(error: Error): boolean {
  return error instanceof ForeshardError && error.sqlstate === '57P03';
}
