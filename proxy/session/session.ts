import type { Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';
import type { Backend, BackendOwner, Expectation } from '../backend/backend.js';
import { LISTENS_ITSELF } from '../router/route.js';
import { LONG_TEXT_BYTES } from '../router/router.js';
import { decodeParameterStatus, encodeReadyForQuery } from '../wire/backend.js';
import {
  decodeErrorFields,
  type ErrorFields,
  encodeErrorResponse,
  fieldsOfError,
  ServerError,
} from '../wire/error-response.js';
import { decodeParse, decodeQuery } from '../wire/frontend.js';
import { GatheredWriter } from '../wire/gathered-writer.js';
import { BACKEND, FRONTEND } from '../wire/message-types.js';
import { Activity } from './activity.js';
import type { ClientSession, SessionServices, SpreadRun } from './client-session.js';
import { CopyIn } from './copy-in.js';
import { ExtendedProtocol } from './extended.js';
import { leaveServer } from './farewell.js';
import { Inbox, type Incoming } from './inbox.js';
import { IDLE, Lease } from './lease.js';
import { Listening, type ListeningClient } from './listening.js';
import { NameLookup } from './name-lookup.js';
import type { Footprint } from './placement.js';
import { ReplyGate } from './reply-gate.js';
import { SessionSettings } from './settings.js';
import { SimpleProtocol } from './simple.js';
import { isStalePlan } from './stale-plan.js';
import { ClientStatements } from './statements.js';
import { type TimedSession, Watch } from './time-outs.js';
import { Units } from './units.js';
import { Wait } from './wait.js';

/** PostgreSQL's words for its statement_timeout. */
const OVERDUE = 'canceling statement due to statement timeout';
/** Sent and not read by the client: notifications wait. */
const CLOGGED_BYTES = 256 * 1024;
/** Replies that a client which has said goodbye no longer reads; beyond, its statement is canceled. */
const UNREAD_BYTES = 1024 * 1024;

const NO_BYTES = Buffer.alloc(0);

/**
 * One client after its login. Reads its messages in order, hands each Query or batch to its protocol, and forwards what
 * comes back. At most one Query or one Sync is answered at a time; what the client pipelines behind waits in the inbox.
 */
export class Session implements BackendOwner, ClientSession, TimedSession {
  readonly id: number;
  readonly user: string;
  readonly services: SessionServices;
  readonly settings: SessionSettings;
  readonly lease: Lease;
  readonly activity = new Activity();
  /** What the client listens to. */
  readonly listening: Listening;
  /** What the client is told only once it is certain. */
  readonly gate = new ReplyGate();
  /** Parameter values the client has been told, and what names in its SQL mean. */
  readonly lookup: NameLookup;
  /** Replies in bytes since the statement began, for the load count. */
  bytesForwarded = 0;

  readonly #statements: ClientStatements;
  readonly #units: Units;
  readonly #extended: ExtendedProtocol;
  readonly #simple: SimpleProtocol;
  readonly #socket: Socket;
  readonly #out: GatheredWriter;
  readonly #inbox: Inbox;
  /** Something asynchronous is under way for the messages before. */
  #busy = false;
  /** A ReadyForQuery is owed to the client. */
  #awaitingReady = false;
  readonly #copyIn = new CopyIn();
  /** The client said goodbye and went, but what it sent before has yet to be done. */
  #left = false;
  #unread = 0;
  /** The server has reported parameters that the client has yet to be told. */
  #parametersReported = false;
  /** The server has said FATAL: nothing may follow it. */
  #fatal = false;
  #closed = false;
  #wait: Wait | null = null;
  #fanOut: SpreadRun | null = null;
  /** The client does not read as fast as it is answered: like PostgreSQL, we read nothing more from it. */
  #outFull = false;
  /** What runs has been canceled because it took too long; and the request is still on its way. */
  #overdue = false;
  #canceling = false;
  /** Runs the Query or batch once more that was sent last, while nothing of it has left the process. */
  #unseen: (() => Promise<void>) | null = null;
  /** Runs again what was sent when a plan in it turns out to be out of date; and whether it did. */
  #ifStale: (() => Promise<void>) | null = null;
  #stale = false;
  /** Bytes the client was sent since `#ifStale` was set. */
  #told = 0;
  answers = 0;
  transactions = 0;
  readonly watch = new Watch();
  #onEnd: () => void;
  /** Called when the client has read. */
  #onDrained: () => void = () => undefined;

  constructor(options: {
    readonly id: number;
    readonly user: string;
    readonly socket: Socket;
    readonly startupSettings: ReadonlyMap<string, string>;
    readonly services: SessionServices;
    readonly onEnd: () => void;
  }) {
    this.id = options.id;
    this.user = options.user;
    this.services = options.services;
    this.#onEnd = options.onEnd;
    this.#socket = options.socket;
    this.#out = new GatheredWriter(options.socket, () => this.#clientDrained());
    this.settings = new SessionSettings(options.startupSettings);
    this.lookup = new NameLookup(options.user);
    this.listening = new Listening(this.#listeningClient());
    this.lease = new Lease(
      {
        live: this.services.live,
        router: this.services.router,
        settings: this.settings,
        logger: this.services.logger,
        holdTimeoutMs: this.services.holdTimeoutMs,
        pool: this.services.pool,
        lookup: this.lookup,
        activity: this.activity,
        listening: this.listening,
        statements: () => this.#statements,
        id: this.id,
        asksSequences: this.services.asksSequences,
        pinned: (reason) => {
          this.services.pins.count(reason);
          this.services.logger.debug({ session: this.id, reason }, 'the session keeps its server connection');
        },
        tellClient: (frame) => this.write(frame),
      },
      this,
    );
    this.#statements = new ClientStatements(this.services, this.lookup);
    this.#units = new Units(this, this.#statements);
    this.#simple = new SimpleProtocol(this, this.#units, this.#statements);
    this.#extended = new ExtendedProtocol(this, this.#units, this.#statements);
    this.#inbox = new Inbox(options.socket, this.services.largeMessages, {
      mayRead: () => !this.#closed && !this.#copyIn.full,
      arrived: () => this.pump(),
      failed: (error) => this.close(error),
    });
  }

  /** The client is logged in, and its socket is ours. To be called in the turn in which the login lets go of it. */
  start(): void {
    const socket = this.#socket;
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('end', () => this.#clientLeft());
    socket.on('error', (error) => this.services.logger.debug({ err: error, session: this.id }, 'client socket'));
    socket.on('close', () => this.#clientLeft());
    socket.resume();
  }

  /**
   * What follows the login: a connection to the home shard proves that the user may come in and that its settings are valid,
   * and its parameters are the client's.
   */
  async greet(): Promise<void> {
    const { lease } = this;
    await lease.prepare([], this.wait);
    if (lease.backend) lease.serverSettings.tellParameters(lease.backend);
    lease.releaseIfIdle();
    this.#wait = null;
  }

  /** Whether the transaction or statement in progress touches what `covers` says. */
  uses(covers: (footprint: Footprint) => boolean): boolean {
    if (this.#fanOut !== null && covers(this.#fanOut.footprint)) return true;
    const { transaction } = this.lease;
    return transaction !== null && covers(transaction);
  }

  /** Whether nothing is open or under way: no transaction, and nothing asked that is not answered. */
  get idle(): boolean {
    return (
      this.lease.transaction === null &&
      this.#fanOut === null &&
      !this.#busy &&
      !this.#awaitingReady &&
      this.#inbox.next === undefined
    );
  }

  /** The server connections that work for this client. */
  get backends(): readonly Backend[] {
    if (this.#fanOut !== null) return this.#fanOut.backends;
    return this.lease.backend === null ? [] : [this.lease.backend];
  }

  /** Statements that the client has prepared by protocol. */
  get preparedStatements(): number {
    return this.#statements.size;
  }

  /** A Query or batch is being answered. */
  get working(): boolean {
    return this.#busy || this.#awaitingReady;
  }

  get phase(): 'active' | 'idle' | 'idle in transaction' {
    const { backend, transaction } = this.lease;
    if (this.working || this.#inbox.isWaiting || (backend !== null && !backend.quiet)) return 'active';
    const open = backend === null ? transaction?.deferred === true : backend.status !== IDLE || this.lease.unsynced;
    return open ? 'idle in transaction' : 'idle';
  }

  /** Aborted when the client goes away or cancels while its statement waits for something in the proxy. */
  get wait(): Wait {
    this.#wait ??= new Wait();
    return this.#wait;
  }

  /** A CancelRequest with the right key has come. @returns the backend to send it on to, if one works for this client. */
  cancel(reason = 'canceling statement due to user request'): readonly Backend[] {
    if (this.#wait !== null) {
      this.#wait.abort(new ForeshardError('57014', reason));
      this.#wait = null;
    }
    if (this.#fanOut !== null) return this.#fanOut.backends;
    const backend = this.lease.backend;
    return backend !== null && !backend.quiet ? [backend] : [];
  }

  /** Why the session keeps its server connection between transactions; null: it does not. */
  get pinned(): string | null {
    return this.lease.pinned;
  }

  /** A cancel request has reached the server. */
  canceled(): void {
    if (this.#canceling) {
      this.#canceling = false;
      this.pump();
    }
    if (this.#busy || this.#awaitingReady || this.#closed) return;
    this.lease.releaseIfIdle();
    this.#notify();
  }

  /** The query time-out has passed. Nothing more is asked of the server until it has the request, which is meant for this alone. */
  cancelOverdue(): void {
    // A server that waits for its client to read hears no cancel request.
    if (this.#outFull) {
      this.close();
      return;
    }
    this.#overdue = true;
    const backends = this.cancel(OVERDUE);
    if (backends.length === 0) return;
    this.#canceling = true;
    const requests = backends.map((backend) =>
      backend.cancel().catch((error: unknown) => {
        this.services.logger.warn({ err: error, session: this.id }, 'could not cancel an overdue statement');
      }),
    );
    void Promise.all(requests).then(() => this.canceled());
  }

  /** The server's ErrorResponse as the client is to see it. */
  worded(frame: Buffer): Buffer {
    if (!this.#overdue) return frame;
    const fields = decodeErrorFields(frame);
    return fields.sqlstate === '57014' ? encodeErrorResponse({ ...fields, message: OVERDUE }) : frame;
  }

  /** Sends bytes to the client. */
  write(frame: Buffer): void {
    if (this.#closed) return;
    this.activity.sent += frame.length;
    this.#told += frame.length;
    if (this.#left) {
      this.#unread += frame.length;
      if (this.#unread > UNREAD_BYTES) this.close();
      return;
    }
    if (!this.#out.write(frame)) {
      this.#outFull = true;
      this.lease.backend?.connection.pause();
      this.#fanOut?.pause();
    }
  }

  /** See ClientSession. */
  ifStale(again: (() => Promise<void>) | null): void {
    this.#ifStale = again;
    this.#told = 0;
  }

  /** Answers the client's Query or Sync without a server. */
  answerReady(): void {
    const transaction = this.lease.transaction;
    const status = this.lease.backend?.status ?? (transaction?.deferred ? 0x54 : IDLE);
    if (status === IDLE) this.listening.deliver();
    this.#answered(status);
    this.write(encodeReadyForQuery(String.fromCharCode(status) as 'I' | 'T' | 'E'));
  }

  #answered(status: number): void {
    this.activity.answeredAt = Date.now();
    this.answers += 1;
    this.#unseen = null;
    this.#inbox.large.done();
    if (status === IDLE) this.transactions += 1;
    this.#overdue = false;
  }

  async settled(): Promise<void> {
    await this.listening.settle(null);
    await this.#deliverAll();
  }

  /** Between transactions, and with nothing owed: when PostgreSQL, too, would send notifications. */
  get #idle(): boolean {
    const { lease } = this;
    return !this.#busy && !this.#awaitingReady && lease.transaction === null && !lease.unsynced && !this.#extended.open;
  }

  /** Tells the client what it listens to, if it is idle. */
  #notify(): void {
    if (this.#closed || !this.#idle) return;
    this.listening.deliver();
    this.listening.idle();
  }

  #listeningClient(): ListeningClient {
    const session = this;
    return {
      id: this.id,
      notifications: this.services.notifications,
      get encoding() {
        return session.lookup.known.get('client_encoding') ?? 'UTF8';
      },
      get idle() {
        return session.#idle;
      },
      get clogged() {
        return session.#out.buffered > CLOGGED_BYTES;
      },
      write: (frame) => this.write(frame),
      close: (error) => this.close(error),
    };
  }

  writeError(fields: ErrorFields): void {
    this.write(encodeErrorResponse(fields));
  }

  ifUnseen(again: (() => Promise<void>) | null): void {
    this.#unseen = again;
  }

  /** The server owes a ReadyForQuery that is for the client. */
  expectReady(): void {
    this.#awaitingReady = true;
  }

  /**
   * Runs a statement for several shards until its last reply has gone to the client.
   * @returns false when the map changed before it began: place it again.
   */
  async runFanOut(fanOut: SpreadRun): Promise<boolean> {
    this.#fanOut = fanOut;
    try {
      return await fanOut.run(this.wait.signal);
    } finally {
      this.#fanOut = null;
      this.#answered(IDLE);
      this.services.live.released();
    }
  }

  /** Ends the session: FATAL to the client if `error` is given, server connection cleaned up. */
  close(error?: unknown): void {
    if (this.#closed) return;
    // In the middle of a message nothing else can be said.
    if (error !== undefined && !this.#midMessage) this.writeError(fieldsOfError(error, 'FATAL'));
    this.#closed = true;
    this.#onDrained();
    this.#out.end();
    // A client that does not read its last words is not waited for.
    this.#socket.setTimeout(1000, () => this.#socket.destroy());
    this.#wait?.abort(new ForeshardError('08006', 'the client has gone away'));
    this.#fanOut?.abandon();
    // What the client did not read, nobody holds back any more.
    this.lease.backend?.connection.resume();
    this.#extended.close();
    this.listening.close();
    this.#inbox.close();
    void this.#leave();
    this.#onEnd();
  }

  get #midMessage(): boolean {
    return !this.gate.active && this.backends.some((backend) => backend.midMessage);
  }

  async #leave(): Promise<void> {
    const { lease } = this;
    if (this.#busy) return; // whoever is busy comes here when done
    await leaveServer(lease, this.services);
  }

  /** The client's socket has ended. What came before a goodbye is still carried out, as PostgreSQL does. */
  #clientLeft(): void {
    if (this.#closed || !this.#inbox.has(FRONTEND.Terminate)) {
      this.close();
      return;
    }
    this.#left = true;
    this.#clientDrained();
  }

  #read(chunk: Buffer): void {
    if (this.#closed) return;
    this.activity.received += chunk.length;
    this.#inbox.read(chunk);
  }

  /** Looks at the next messages, as far as they may be looked at now. */
  pump(): void {
    while (!this.#busy && !this.#closed) {
      const { next } = this.#inbox;
      if (next === undefined) {
        // What has come of an unfinished batch waits for its Sync or Flush.
        break;
      }
      if (!this.#mayProcess(next.type)) break;
      const open = endsBatch(next.type) ? this.#extended.sendOpenBatch() : null;
      if (open !== null) {
        this.#follow(open);
        break;
      }
      this.#inbox.shift();
      let work: Promise<void> | null;
      try {
        work = this.#process(next);
      } catch (error) {
        this.close(error);
        return;
      }
      if (work !== null) {
        this.#follow(work);
      }
    }
    this.#inbox.resumeBelowHalf();
  }

  #follow(work: Promise<void>): void {
    this.#busy = true;
    work.then(
      () => this.#resume(),
      (error: unknown) => {
        this.#busy = false;
        if (this.#closed) void this.#leave();
        else this.close(error);
      },
    );
  }

  #resume(): void {
    this.#busy = false;
    this.#wait = null;
    // The client went away while a connection was being fetched for it.
    if (this.#closed) void this.#leave();
    else {
      this.pump();
      this.#notify();
    }
  }

  #mayProcess(type: number): boolean {
    if (this.#copyIn.active) return true;
    if (this.#awaitingReady || this.#canceling) return false;
    // Somebody does not read: the client its answers, or the server what was sent without a Sync.
    if (this.#outFull && type !== FRONTEND.Terminate) return false;
    if (this.lease.unsynced && this.lease.backend?.connection.isFull === true) return false;
    // Whether they are skipped, or belong to a COPY, is known when what was asked before is answered.
    return !waitsForReplies(type) || !this.lease.unsynced || (this.lease.backend?.quiet ?? true);
  }

  /** Something of an unfinished batch is answered: messages that wait for that may be looked at when the reply is done with. */
  #pumpLater(): void {
    if (this.#inbox.next !== undefined && !this.#awaitingReady) queueMicrotask(() => this.pump());
  }

  #process(message: Incoming): Promise<void> | null {
    const { type, frame, refused } = message;
    this.activity.message(type);
    this.#inbox.large.process(frame.length);
    if (refused !== undefined) return this.#refuseLarge(type, refused);
    return this.#readAhead(message) ?? this.#carryOut(message);
  }

  /** Has a long text read in another thread, and then carries the message out. Null: there is no need. */
  #readAhead(message: Incoming): Promise<void> | null {
    const { type, frame } = message;
    if (frame.length <= LONG_TEXT_BYTES || this.#copyIn.active || this.#extended.skipping) return null;
    const text = textOf(type, frame);
    const reading = text === null ? null : this.#statements.readAhead(text);
    if (reading === null) return null;
    return unlessAborted(reading, this.wait.signal).then(
      async () => {
        if (!this.#closed) await this.#carryOut(message);
      },
      async (error: unknown) => {
        if (!this.#closed) await this.#refuse(type, error as Error);
      },
    );
  }

  #carryOut(message: Incoming): Promise<void> | null {
    const { type, frame } = message;
    if (this.#copyIn.active && type !== FRONTEND.Terminate) {
      this.#copyIn.forward(this.lease.backend, type, frame, message.remaining);
      if (this.#copyIn.full) this.#socket.pause();
      return null;
    }
    switch (type) {
      case FRONTEND.Query:
        return this.#extended.skipping ? null : this.#simple.query(frame);
      case FRONTEND.FunctionCall:
        return this.#extended.skipping ? null : this.#simple.functionCall(frame);
      case FRONTEND.CopyData:
      case FRONTEND.CopyDone:
      case FRONTEND.CopyFail:
        return null; // ignored outside of COPY, as PostgreSQL does: an error may have ended it early
      case FRONTEND.Terminate:
        this.close();
        return null;
      default:
        return this.#extended.receive(type, frame);
    }
  }

  /** A message too large to be held has been read and dropped: the client learns it in its turn. */
  #refuseLarge(type: number, size: number): Promise<void> | null {
    if (this.#extended.skipping) return null;
    return this.#refuse(type, this.#inbox.large.refusal(size));
  }

  /** The client gets an error in place of what its message asks for. */
  #refuse(type: number, error: Error): Promise<void> | null {
    if (type === FRONTEND.Query || type === FRONTEND.FunctionCall) return this.#units.fail(error);
    return this.#extended.receive(type, NO_BYTES, error);
  }

  #clientDrained(): void {
    this.#outFull = false;
    this.lease.backend?.connection.resume();
    this.#fanOut?.resume();
    this.#onDrained();
    this.pump();
    this.#notify();
  }

  onReply(backend: Backend, type: number, frame: Buffer, expectation: Expectation | null): void {
    if (type === BACKEND.ParameterStatus) {
      // PostgreSQL tells what has changed once, before it is ready; so that nothing is told which our own statements take back.
      this.lookup.reported(decodeParameterStatus(frame).name);
      this.#parametersReported = true;
      if (!this.#awaitingReady && !this.lease.unsynced) this.#tellParameters(backend);
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
    this.bytesForwarded += frame.length;
    this.#passOn(frame);
    this.#pumpLater();
  }

  /** A server connection of a pool never listens, but for a moment; one that a function made listen is the session's own. */
  #onServerNotification(backend: Backend, frame: Buffer): void {
    if (this.lease.pinning.has(LISTENS_ITSELF)) this.#passOn(this.listening.fromServer(backend, frame));
  }

  #onErrorReply(backend: Backend, frame: Buffer, expectation: Expectation | null): void {
    // Said before it can have seen anything: the end of a connection that was idle. The loss follows.
    if (backend.untouched) return;
    for (let n = this.#copyIn.takeSyncs(); n > 0; n--) this.#inbox.syncAgain();
    this.#copyIn.end(this.lease.backend);
    this.#pumpLater();
    this.#units.unitFailed = true;
    if (expectation?.replacement === undefined) {
      const fields = decodeErrorFields(frame);
      if (fields.severity === 'FATAL' || fields.severity === 'PANIC') {
        this.#fatal = true;
        this.write(frame);
        return;
      }
      if (this.#ifStale !== null && this.#units.autocommit && isStalePlan(fields)) {
        // Whatever changed the schema, this client is not to know how it is prepared here.
        this.lease.backend?.forgetPrepared();
        if (this.gate.refuse()) return;
        this.#stale = this.#told === 0;
        if (this.#stale) return;
      }
      if (fields.sqlstate === 'SH001') {
        // The guard at a shard says that it does not own the row (any more).
        if (this.gate.refuse()) return;
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
    if (!this.gate.take(bytes)) this.write(bytes);
    else if (this.gate.full) for (const held of this.gate.open()) this.write(held);
  }

  onData(_backend: Backend, slice: Buffer): void {
    this.bytesForwarded += slice.length;
    this.#passOn(slice);
  }

  onCopyIn(_backend: Backend, frame: Buffer, expectation: Expectation): void {
    this.#copyIn.begin();
    for (const held of this.gate.open()) this.write(held);
    this.write(frame);
    if (expectation.kind === 'execute') {
      // The Syncs sent with it are ignored by the server; the client sends another after CopyDone.
      this.#awaitingReady = false;
      this.lease.unsynced = true;
      this.lease.unsyncedDirty = true;
    }
    this.pump();
  }

  onReady(backend: Backend, status: number, internal: boolean): void {
    if (internal || backend !== this.lease.backend) return;
    this.#copyIn.end(this.lease.backend);
    this.lease.unsynced = false;
    this.lease.unsyncedDirty = false;
    const pathUnsure = !backend.connection.reportsSearchPath && this.lookup.unsure(status);
    this.lookup.ready(status);
    this.#extended.ready(status);
    this.#units.transactionStatus(backend, status);
    if (this.gate.refused) {
      this.#retry();
      return;
    }
    if (this.#stale && this.#ifStale !== null) {
      this.#stale = false;
      this.#awaitingReady = false;
      this.#follow(this.#ifStale());
      return;
    }
    const work = this.#units.settle(backend, status, pathUnsure);
    if (pathUnsure) this.#parametersReported = true;
    const heard = work === null ? this.#hear(backend, status) : work.then(() => this.#hear(backend, status));
    if (heard === null) this.#tellReady(backend, status);
    else this.#follow(heard.then(() => this.#tellReady(backend, status)));
  }

  /** What the client must hear before it is told that its transaction is over. Null: it has heard it. */
  #hear(backend: Backend, status: number): Promise<void> | null {
    for (const held of this.gate.open()) this.write(held);
    if (status !== IDLE) return null;
    const work = this.listening.settle(backend);
    const asked = this.lease.pinning.settle(backend);
    if (work === null && asked === null && this.listening.deliver()) return null;
    return Promise.all([work, asked]).then(() => this.#deliverAll());
  }

  /** All that PostgreSQL would send before it is ready, as fast as the client reads. */
  async #deliverAll(): Promise<void> {
    while (!this.#closed && !this.listening.deliver())
      await new Promise<void>((resolve) => {
        this.#onDrained = resolve;
      });
  }

  #tellReady(backend: Backend, status: number): void {
    if (this.#parametersReported) this.#tellParameters(backend);
    this.write(encodeReadyForQuery(String.fromCharCode(status) as 'I' | 'T' | 'E'));
    this.#answered(status);
    this.lease.releaseIfIdle();
    this.#awaitingReady = false;
    this.pump();
    this.#notify();
  }

  #tellParameters(backend: Backend): void {
    this.#parametersReported = false;
    try {
      this.lease.serverSettings.tellParameters(backend);
    } catch (error) {
      // What the client says from here on could not be read safely.
      this.close(error);
    }
  }

  /** A write met a shard that no longer owns its range: run it again where it belongs. The client has seen nothing of it. */
  #retry(): void {
    this.#awaitingReady = false;
    this.#follow(this.gate.takeRetry()());
  }

  onWritable(): void {
    this.#copyIn.drained();
    // What a batch has sent so far is not kept here; what is sent alone may have to be sent again.
    if (!this.gate.active && !this.#awaitingReady) this.#inbox.large.done();
    this.#inbox.resume();
    this.pump();
  }

  /** The connection was dead before anything was sent on it: the client need not know. @returns whether it goes on on another */
  #startOver(error: Error): boolean {
    const { lease } = this;
    const again = this.#unseen;
    const preparing = this.#busy && !this.#awaitingReady && !lease.unsynced;
    if (!preparing && (this.#busy || again === null)) return false;
    this.services.logger.info({ err: error, session: this.id }, 'the server connection was dead before it was used');
    this.#unseen = null;
    lease.replaceDead();
    if (preparing || again === null) return true; // whoever prepares takes another
    this.gate.open();
    this.#awaitingReady = false;
    this.#follow(again());
    return true;
  }

  onLost(backend: Backend, error: Error): void {
    if (backend !== this.lease.backend) return;
    if (backend.untouched && this.#startOver(error)) return;
    const during = this.#awaitingReady || this.lease.unsynced;
    const unknown = during && this.#units.outcomeUnknown;
    this.services.logger.warn({ err: error, shard: backend.shard, session: this.id, during }, 'server connection lost');
    this.lease.discard();
    if (this.#fatal || backend.midMessage) {
      this.close();
      return;
    }
    // The server may have said why, of itself (an idle transaction's time-out, a shutdown).
    if (error.cause instanceof ServerError) {
      this.close(error.cause);
      return;
    }
    // What PostgreSQL itself does when a backend dies: the session ends. A write in flight may or may not have happened.
    this.close(
      new ForeshardError(
        unknown ? '08007' : '08006',
        unknown
          ? `the connection to shard "${backend.shard}" was lost; whether the transaction was committed is unknown`
          : `the connection to shard "${backend.shard}" was lost`,
        { detail: error.message },
      ),
    );
  }
}

/** Whether messages of a batch must have reached the server before this one is looked at. */
function endsBatch(type: number): boolean {
  return type === FRONTEND.Query || type === FRONTEND.FunctionCall || type === FRONTEND.CopyData;
}

/** The SQL in a message; null: there is none, or it is not to be found. */
function textOf(type: number, frame: Buffer): Buffer | null {
  try {
    if (type === FRONTEND.Query) return decodeQuery(frame);
    return type === FRONTEND.Parse ? decodeParse(frame).sql : null;
  } catch {
    return null; // whoever carries it out says so
  }
}

/** Rejects with the signal's reason as soon as it is aborted. */
function unlessAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    work.then(resolve, reject);
  });
}

function waitsForReplies(type: number): boolean {
  return endsBatch(type) || type === FRONTEND.CopyDone || type === FRONTEND.CopyFail;
}
