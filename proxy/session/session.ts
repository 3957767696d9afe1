import type { Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';
import type { Topology } from '../../topology/topology.js';
import type { Backend } from '../backend/backend.js';
import { type ErrorFields, encodeErrorResponse, fieldsOfError } from '../wire/error-response.js';
import type { Incoming } from '../wire/incoming.js';
import { FRONTEND } from '../wire/message-types.js';
import { kept } from '../wire/read-memory.js';
import { IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import { Activity } from './activity.js';
import { ClientOutput, type OutputOwner } from './client-output.js';
import type { SessionServices, SpreadRun } from './client-session.js';
import { CopyIn } from './copy-in.js';
import { ExtendedProtocol } from './extended.js';
import { leaveServer } from './farewell.js';
import { type Footprint, mayHaveMoved } from './footprint.js';
import { Inbox, type InboxOwner } from './inbox.js';
import { LaneReads } from './lane-reads.js';
import { Lease, type LeaseClient } from './lease.js';
import { Listening } from './listening.js';
import { type LoopOwner, MessageLoop } from './message-loop.js';
import { MessageStream } from './message-stream.js';
import { NameLookup } from './name-lookup.js';
import { transactionEnded } from './refusals.js';
import { ReplyGate } from './reply-gate.js';
import { OVERDUE, ServerReplies } from './server-replies.js';
import { SessionSettings } from './settings.js';
import { SimpleProtocol } from './simple.js';
import { ClientStatements } from './statements.js';
import { StraightLease } from './straight-lease.js';
import { type Bounds, boundsOf, type TimedSession, Watch } from './time-outs.js';
import { TransactionEnd } from './transaction-end.js';
import { Units } from './units.js';
import { Wait } from './wait.js';

/**
 * One client after its login: what it has, and how it begins and ends. `MessageLoop` takes what it sends, `ServerReplies` what it
 * is answered.
 */
export class Session implements InboxOwner, LeaseClient, LoopOwner, OutputOwner, TimedSession {
  readonly id: number;
  readonly user: string;
  readonly services: SessionServices;
  readonly settings: SessionSettings;
  /** What the client has prepared. */
  readonly statements: ClientStatements;
  readonly lease: Lease;
  readonly lanes: LaneReads;
  readonly activity = new Activity();
  /** What the client listens to. */
  readonly listening: Listening;
  /** What the client is told only once it is certain. */
  readonly gate = new ReplyGate();
  /** Parameter values the client has been told, and what names in its SQL mean. */
  readonly lookup: NameLookup;
  /** Replies in bytes since the statement began, for the load count. */
  bytesForwarded = 0;
  /** See LoopOwner. */
  straight: StraightLease | null = null;
  readonly watch = new Watch();

  readonly #extended: ExtendedProtocol;
  readonly #socket: Socket;
  readonly #output: ClientOutput;
  readonly #inbox: Inbox;
  readonly #loop: MessageLoop;
  readonly #replies: ServerReplies;
  readonly #copyIn = new CopyIn();
  readonly #stream = new MessageStream();
  #closed = false;
  #wait: Wait | null = null;
  #fanOut: SpreadRun | null = null;
  /** Null: no transaction has been ended yet. */
  #ending: TransactionEnd | null = null;
  readonly #onEnd: (session: Session) => void;
  readonly #units: Units;

  constructor(options: {
    readonly id: number;
    readonly user: string;
    readonly socket: Socket;
    readonly startupSettings: ReadonlyMap<string, string>;
    readonly services: SessionServices;
    readonly onEnd: (session: Session) => void;
  }) {
    this.id = options.id;
    this.user = options.user;
    this.services = options.services;
    this.#onEnd = options.onEnd;
    this.#socket = options.socket;
    this.#output = new ClientOutput(options.socket, this.activity, this);
    this.settings = new SessionSettings(options.startupSettings);
    this.lookup = new NameLookup(options.user);
    this.listening = new Listening(this);
    this.statements = new ClientStatements(this.services, this.lookup);
    const units = new Units(this, this.statements);
    this.#units = units;
    this.#extended = new ExtendedProtocol(this, units, this.statements);
    this.#inbox = new Inbox(options.socket, this.services.largeMessages, this);
    this.#loop = new MessageLoop({
      owner: this,
      inbox: this.#inbox,
      output: this.#output,
      copyIn: this.#copyIn,
      stream: this.#stream,
      statements: this.statements,
      units,
      simple: new SimpleProtocol(this, units, this.statements),
      extended: this.#extended,
    });
    this.#replies = new ServerReplies({
      owner: this,
      loop: this.#loop,
      output: this.#output,
      inbox: this.#inbox,
      copyIn: this.#copyIn,
      stream: this.#stream,
      units,
      extended: this.#extended,
    });
    this.lanes = new LaneReads({
      owner: this,
      loop: this.#loop,
      replies: this.#replies,
      output: this.#output,
      inbox: this.#inbox,
      statements: this.statements,
      extended: this.#extended,
    });
    this.lease = new Lease(this, this.#replies);
  }

  /**
   * The client is logged in, and its socket is ours. To be called in the turn in which the login lets go of it.
   * @param incoming how to take what is read from the socket; null: from its stream alone
   */
  start(incoming: Incoming | null): void {
    const socket = this.#socket;
    this.boundsChanged();
    // What a client sends is short, and may have to wait, or be sent again. It is copied here, and nobody else has to ask whose memory it is in.
    incoming?.takeBy((chunk) => this.#read(kept(chunk)));
    // With `incoming`, what the login has left in the stream: it is told of before anything is read.
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
    this.lookup.share();
    this.#wait = null;
  }

  /** Whether the transaction or statement in progress touches what `covers` says. */
  uses(covers: (footprint: Footprint) => boolean): boolean {
    if (this.#fanOut !== null && covers(this.#fanOut.footprint)) return true;
    if (this.lanes.uses(covers)) return true;
    const { span, transaction } = this.lease;
    return (transaction !== null && covers(transaction)) || span?.uses(covers) === true;
  }

  /**
   * A flip does not wait any longer for the transaction or statement in progress, if it touches what `covers` says: it is rolled back,
   * and the client told 40001. What may be committed already is let end.
   */
  endTransaction(covers: (footprint: Footprint) => boolean): void {
    const { span, transaction } = this.lease;
    if (this.#closed) return;
    if (transaction !== null && (covers(transaction) || span?.uses(covers) === true)) {
      this.#ending ??= this.#newEnding();
      this.#ending.begin(transaction);
      // What is being committed is let end.
      if (this.#fanOut === null || span?.committing === true) return;
    }
    // Nothing but reads run in lanes, and on several shards. A server that waits for its client to read hears no cancel request.
    const spreads = this.#fanOut !== null && (transaction?.ending === true || covers(this.#fanOut.footprint));
    const reads = spreads || this.lanes.uses(covers);
    if (!reads || this.#replies.ending || this.#output.full) return;
    this.#replies.ending = true;
    void this.cancelUnderWay(transactionEnded());
  }

  /** See LoopOwner. */
  goOnEnding(): Promise<void> | null {
    const { transaction } = this.lease;
    return transaction === null || this.#ending === null ? null : this.#ending.goOn(transaction);
  }

  #newEnding(): TransactionEnd {
    return new TransactionEnd({
      owner: this,
      loop: this.#loop,
      replies: this.#replies,
      output: this.#output,
      copyIn: this.#copyIn,
      stream: this.#stream,
      units: this.#units,
      extended: this.#extended,
    });
  }

  /** Whether what the transaction or statement in progress touches is no longer all on its shard. */
  isStale(topology: Topology): boolean {
    return this.lease.isStale(topology) || this.lanes.isStale(topology);
  }

  /**
   * The map is another one since, without the lease: a flip waits for all that is under way on its interval, but not for that of a
   * proxy whose lease has ended. What this is answered, if it has not been yet, may be without rows that were elsewhere meanwhile.
   */
  overtaken(before: Topology, now: Topology): void {
    if (!this.uses((footprint) => mayHaveMoved(footprint, before, now))) return;
    const { backend, transaction, map } = this.lease;
    // What waits for the lease has not been sent: it is told with the next look at the map, and the session lives on.
    if (backend?.quiet === false || (this.working && !map.waits)) this.close(this.#replies.withheld());
    else if (transaction !== null) transaction.overtaken = true;
    this.lease.span?.overtake();
  }

  /** Whether nothing is open or under way: no transaction, and nothing asked that is not answered. */
  get idle(): boolean {
    return (
      this.lease.transaction === null &&
      this.#fanOut === null &&
      !this.#loop.busy &&
      !this.#loop.awaitingReady &&
      this.#inbox.next === undefined
    );
  }

  /** The server connections that work for this client. */
  get backends(): readonly Backend[] {
    if (this.#fanOut !== null) return this.#fanOut.backends;
    const backend = this.lanes.lane?.backend ?? this.lease.backend;
    return backend === null ? [] : [backend];
  }

  /** Statements that the client has prepared by protocol. */
  get preparedStatements(): number {
    return this.statements.size;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** See TimedSession. */
  get answers(): number {
    return this.#replies.answers;
  }

  get transactions(): number {
    return this.#replies.transactions;
  }

  /** A Query or batch is being answered. */
  get working(): boolean {
    return this.#loop.busy || this.#loop.awaitingReady;
  }

  get phase(): 'active' | 'idle' | 'idle in transaction' {
    const { backend, transaction } = this.lease;
    if (this.working || this.#inbox.isWaiting || (backend !== null && !backend.quiet)) return 'active';
    const open = backend === null ? transaction?.deferred === true : backend.status !== IDLE || this.lease.unsynced;
    return open ? 'idle in transaction' : 'idle';
  }

  get bounds(): Bounds {
    return boundsOf(this.settings);
  }

  boundsChanged(): void {
    for (const ms of Object.values(this.bounds)) if (ms > 0) this.services.noteTimeout(ms);
  }

  /** Aborted when the client goes away or cancels while its statement waits for something in the proxy. */
  get wait(): Wait {
    this.#wait ??= new Wait();
    return this.#wait;
  }

  endWait(): void {
    this.#wait = null;
  }

  /** A CancelRequest with the right key has come. @returns the backend to send it on to, if one works for this client. */
  cancel(reason = new ForeshardError('57014', 'canceling statement due to user request')): readonly Backend[] {
    if (this.straight?.first.cancel(reason) === true) return [];
    this.abortWait(reason);
    if (this.lease.span?.committing === true) return this.lease.span.underWay;
    if (this.#fanOut !== null) return this.#fanOut.backends;
    if (this.lanes.lane !== null) {
      const shared = this.lanes.cancel(reason.message);
      return shared === null ? [] : [shared];
    }
    const backend = this.lease.backend;
    return backend !== null && !backend.quiet ? [backend] : [];
  }

  /** What waits in the proxy fails for this reason. */
  abortWait(reason: ForeshardError): void {
    this.#wait?.abort(reason);
    this.#wait = null;
  }

  /** Why the session keeps its server connection between transactions; null: it does not. */
  get pinned(): string | null {
    return this.lease.pinned;
  }

  /** A cancel request has reached the server. */
  canceled(): void {
    if (this.#loop.canceling) {
      this.#loop.canceling = false;
      this.#loop.pump();
    }
    if (this.working || this.#closed) return;
    this.lease.releaseIfIdle();
    this.notify();
  }

  /** The query time-out has passed. */
  cancelOverdue(): void {
    // One that reads a message hears no cancel request either: it is asked again when it has it.
    if (this.#stream.active) {
      this.watch.overdue = false;
      return;
    }
    // A server that waits for its client to read hears no cancel request.
    if (this.#output.full) {
      this.close();
      return;
    }
    this.#replies.overdue = true;
    void this.cancelUnderWay(new ForeshardError('57014', OVERDUE));
  }

  /** Cancels what is under way, of ourselves. Nothing more is asked of the servers until they have the request, which is meant for this alone. */
  async cancelUnderWay(reason: ForeshardError): Promise<void> {
    const backends = this.cancel(reason);
    if (backends.length === 0) return;
    this.#loop.canceling = true;
    const requests = backends.map((backend) =>
      backend.cancel().catch((error: unknown) => {
        this.services.logger.warn({ err: error, session: this.id }, 'could not cancel a statement');
      }),
    );
    await Promise.all(requests);
    this.canceled();
  }

  /** See ClientSession. */
  failUnderWay(reason: ForeshardError): void {
    this.#replies.stopped = reason;
    void this.cancelUnderWay(reason);
  }

  /** See ClientSession. */
  transactionEnded(backend: Backend, committed: boolean): Promise<void> {
    return this.#replies.transactionEnded(backend, committed);
  }

  worded(frame: Buffer): Buffer {
    return this.#replies.worded(frame);
  }

  /** Sends bytes to the client. */
  write(frame: Buffer): void {
    this.#output.write(frame);
  }

  ifStale(again: (() => Promise<void>) | null): void {
    this.#replies.ifStale(again);
  }

  ifUnseen(again: (() => Promise<void>) | null): void {
    this.#replies.ifUnseen(again);
  }

  answerReady(): void {
    this.#replies.answerReady();
  }

  settled(): Promise<void> {
    return this.#replies.settled();
  }

  /** See ListeningClient. */
  get mayHear(): boolean {
    const { lease } = this;
    return (
      !this.#loop.busy &&
      !this.#loop.awaitingReady &&
      lease.transaction === null &&
      !lease.unsynced &&
      !this.#extended.open
    );
  }

  /** Tells the client what it listens to, if it is idle. */
  notify(): void {
    if (this.#closed || !this.mayHear) return;
    this.listening.deliver();
    this.listening.idle();
  }

  get isClogged(): boolean {
    return this.#output.isClogged;
  }

  writeError(fields: ErrorFields): void {
    this.write(encodeErrorResponse(fields));
  }

  expectReady(): void {
    this.#loop.awaitingReady = true;
  }

  /**
   * Runs a statement for several shards until its last reply has gone to the client.
   * @returns false when the map changed, or a connection was lost, before it began: place it again.
   */
  async runFanOut(fanOut: SpreadRun): Promise<boolean> {
    this.#fanOut = fanOut;
    try {
      return await fanOut.run(this.wait.signal);
    } finally {
      this.#fanOut = null;
      // What fails its transaction block is answered by that.
      if (fanOut.failure === null) this.#replies.answered(this.lease.transaction === null ? IDLE : IN_TRANSACTION);
      this.services.live.released();
    }
  }

  /** See ClientSession. */
  async runHalves(run: SpreadRun): Promise<boolean> {
    this.#fanOut = run;
    try {
      return await run.run(this.wait.signal);
    } finally {
      this.#fanOut = null;
      this.services.live.released();
    }
  }

  /** Ends the session: FATAL to the client if `error` is given, server connection cleaned up. */
  close(error?: unknown): void {
    if (this.#closed) return;
    // In the middle of a message nothing else can be said.
    if (error !== undefined && !this.#midMessage) this.writeError(fieldsOfError(error, 'FATAL'));
    this.#closed = true;
    this.#output.end();
    this.#wait?.abort(new ForeshardError('08006', 'the client has gone away'));
    this.#fanOut?.abandon();
    // What the client did not read, nobody holds back any more.
    this.lease.backend?.connection.resume();
    this.lanes.close();
    this.straight?.first.close();
    this.#extended.close();
    this.listening.close();
    this.#inbox.close();
    this.leave();
    this.#onEnd(this);
  }

  get #midMessage(): boolean {
    if (this.lanes.lane !== null) return this.lanes.midMessage;
    return !this.gate.active && this.backends.some((backend) => backend.midMessage);
  }

  leave(): void {
    if (this.#loop.busy) return; // whoever is busy comes here when done
    void leaveServer(this.lease, this.services);
  }

  /** The client's socket has ended. What came before a goodbye is still carried out, as PostgreSQL does. */
  #clientLeft(): void {
    if (this.#closed || !this.#inbox.has(FRONTEND.Terminate)) {
      this.close();
      return;
    }
    this.#output.leave();
  }

  /** See LoopOwner. */
  judgeStraight(): void {
    this.straight ??= new StraightLease({
      owner: this,
      loop: this.#loop,
      replies: this.#replies,
      output: this.#output,
      inbox: this.#inbox,
      copyIn: this.#copyIn,
      stream: this.#stream,
      statements: this.statements,
      units: this.#units,
      extended: this.#extended,
    });
    this.straight.judge();
  }

  #read(chunk: Buffer): void {
    if (this.#closed) return;
    this.activity.received += chunk.length;
    if (this.lanes.take(chunk) || this.straight?.take(chunk)) return;
    this.#inbox.read(chunk);
  }

  /** See InboxOwner. */
  mayRead(): boolean {
    return !this.#closed && !this.#copyIn.full && !this.#stream.full;
  }

  /** See InboxOwner. */
  arrived(): void {
    this.#loop.pump();
  }

  /** See InboxOwner. */
  failed(error: unknown): void {
    this.close(error);
  }

  /** See LeaseClient. */
  notePinned(reason: string): void {
    this.services.pins.count(reason);
    this.services.logger.debug({ session: this.id, reason }, 'the session keeps its server connection');
  }

  /** The lease's connection, unless a statement over several shards has it, which says itself when it may read on. */
  get #own(): Backend | null {
    const { backend } = this.lease;
    return backend === null || this.#fanOut?.backends.includes(backend) === true ? null : backend;
  }

  /** See OutputOwner. */
  clogged(): void {
    this.#own?.connection.pause();
    this.lanes.clogged();
    this.#fanOut?.pause();
  }

  /** See OutputOwner. */
  drained(): void {
    this.#own?.connection.resume();
    this.lanes.drained();
    this.#fanOut?.resume();
    this.#loop.pump();
    this.notify();
  }
}
