import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import type { PreparedContent } from '../session/prepared.js';
import { NO_SETTINGS, type SettingMap } from '../session/settings.js';
import { decodeErrorFields, ServerError } from '../wire/error-response.js';
import { encodeBind, encodeClose, encodeExecute, encodeParse, encodeQuery, FLUSH, SYNC } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { kept } from '../wire/read-memory.js';
import { type PoolTotals, zeroTotals } from './pool-status.js';
import type { ServerConnection } from './server-connection.js';

/**
 * One reply that a server owes us, in the order in which we asked. The queue of these is what lets the proxy add
 * messages of its own (a Parse on a new connection, a BEGIN replayed) and leave others out without the client seeing it.
 */
export interface Expectation {
  /**
   * `batch`: several messages with their Sync, sent and answered as one. `syncs`: the answers to Syncs that were sent into a COPY FROM STDIN which has
   * failed, however many they are.
   */
  readonly kind:
    | 'parse'
    | 'bind'
    | 'describe'
    | 'execute'
    | 'close'
    | 'query'
    | 'batch'
    | 'function'
    | 'sync'
    | 'syncs'
    | 'local';
  /** Nothing of this reply is for the client. */
  readonly internal: boolean;
  /** An error here is not the client's either: whoever sent it sees to it. */
  readonly quiet?: true;
  /** `local`: what the client gets when its turn comes, although no server was asked; nothing if absent. */
  readonly bytes?: Buffer;
  /** An error here is ours, forced on the server so that its transaction fails as the client is told: this goes to the client instead. */
  readonly replacement?: Buffer;
  /** Called once when it has succeeded. */
  readonly done?: () => void;
  /** Called once when it failed or was skipped after an earlier error. */
  readonly undo?: () => void;
  /** Called with every statement's CommandComplete or EmptyQueryResponse. */
  readonly completed?: (frame: Buffer, empty: boolean) => void;
  /** Called with the server's ErrorResponse. */
  readonly failed?: (frame: Buffer) => void;
  /** What of a reply, or of an error, goes to the client; null: nothing. Asked after the callbacks above. */
  readonly tell?: (type: number, frame: Buffer) => Buffer | null;
  /** Whether rows that come now are not for the client. */
  readonly muted?: () => boolean;
  /** Called with every whole reply that is not an error. */
  readonly replied?: (type: number, frame: Buffer) => void;
  /** `internal`: the rows. */
  readonly rows?: (slice: Buffer) => void;
}

/**
 * Who a backend works for at the moment: a session, a fan-out, or a lane. The bytes that it is given may be borrowed (see READ_MEMORY): they are good until
 * the call returns, or until `onRead` does for those that have it. So they are for the callbacks of an expectation.
 */
export interface BackendOwner {
  /** What it has asked for, or its transaction, reads or writes rows that could be moved. Default: false. */
  readonly rowsAtStake?: boolean;
  /** Takes whole answers from the beginning of what has come, while none is begun. @returns how many bytes it took */
  onChunk?(chunk: Buffer): number;
  /** A whole message for the client (not for internal expectations). */
  onReply(backend: Backend, type: number, frame: Buffer, expectation: Expectation | null): void;
  /** DataRow or CopyData bytes for the client: whole messages or part of one. */
  onData(backend: Backend, slice: Buffer, expectation: Expectation): void;
  /** The server waits for CopyData. */
  onCopyIn(backend: Backend, frame: Buffer, expectation: Expectation): void;
  /** The owner has been told of all that was read. */
  onRead?(): void;
  /**
   * A COPY FROM STDIN has failed into which Syncs were sent, and the server has answered `answered` of them, a Query's end included. If
   * there are any, `onReady` follows, once. If not, everything up to the next Sync is to be skipped; no longer by the server.
   */
  onSyncsAnswered?(backend: Backend, answered: number): void;
  /** ReadyForQuery; `internal` when the client did not ask for it. */
  onReady(backend: Backend, status: number, internal: boolean, frame: Buffer): void;
  /** The connection is gone; `error` says why. Outstanding expectations are lost. */
  onLost(backend: Backend, error: Error): void;
  /** The server can take more after `write` returned false. */
  onWritable(backend: Backend): void;
}

const IDLE = 0x49; // 'I'
const IN_TRANSACTION = 0x54; // 'T'

/** Behind all Syncs of a COPY that has failed: ends what the server skips, and is answered by what no other message there is. */
const COUNT_SYNCS = Buffer.concat([SYNC, encodeClose('statement', 'foreshard_copy'), FLUSH]);

const SHOW_SEARCH_PATH = encodeQuery('SHOW search_path');

/** A server connection with what the proxy knows of its state. */
export class Backend {
  readonly shard: ShardName;
  readonly connection: ServerConnection;
  /** Statements prepared here, oldest use first. */
  readonly prepared = new Map<PreparedContent, string>();
  /** Statements have their client's names here, and `prepared` is not used. */
  byName = false;
  /** Names of statements here that nobody uses any more. */
  readonly toClose: string[] = [];
  /** The columns of those of which they are known, as `shapeOf` has them. */
  readonly shapes = new Map<PreparedContent, string>();
  /** Version of the schema that they were prepared for at the earliest. */
  #preparedAt = 0;
  /** What the unnamed statement is here, or null. */
  unnamed: PreparedContent | null = null;
  /** The settings in force here; null when not known. */
  settings: SettingMap | null = NO_SETTINGS;
  /** The session for which all numbers were drawn from sequences here, if it was one; null: none were. */
  sequencesOf: number | 'several' | null = null;
  /** Transaction status of the last ReadyForQuery. */
  status = IDLE;
  /** Since when nobody uses it; ms on performance.now()'s clock, as `connectedAt`. */
  idleSince = 0;
  readonly connectedAt = performance.now();
  /** The RECONNECTs that its pool had seen when it was opened. */
  readonly generation: number;
  /** When its owner got it, and sent the first message of the query that runs or ran last. */
  attachedAt = 0;
  requestedAt = 0;
  lost: Error | null = null;
  /** Several clients' queries stand in line here: whoever owns it counts them by `countRead`. */
  pipelined = false;
  /** The last bytes of the server were part of a message: nothing else may be said to the client before its end. */
  midMessage = false;

  #owner: BackendOwner | null = null;
  readonly #expected: Expectation[] = [];
  /** After an error in the extended protocol, until its Sync. */
  #skipping = false;
  /** Syncs sent into the COPY FROM STDIN under way. PostgreSQL ignores those that it reads before it is at an end, or fails. */
  #copySyncs = 0;
  /** While they are counted: the answers to them, and the last. */
  #answers = 0;
  #lastAnswer: Buffer | null = null;
  #nextStatement = 0;
  /** Cancel requests on their way to the server. */
  #canceling = 0;
  /** The pool is told when an unowned connection closes. */
  onIdleClose: (() => void) | null = null;

  readonly #totals: PoolTotals;
  /** A query of the client's is being answered; a transaction with one is open. */
  #inQuery = false;
  #inTransaction = false;
  #transactionSince = 0;
  #flushedBefore = 0;

  constructor(
    shard: ShardName,
    connection: ServerConnection,
    generation: number = 0,
    totals: PoolTotals = zeroTotals(),
  ) {
    this.shard = shard;
    this.connection = connection;
    this.generation = generation;
    this.#totals = totals;
    connection.setHandler({
      onChunk: (chunk) => this.#owner?.onChunk?.(chunk) ?? 0,
      onMessage: (type, frame) => this.#onMessage(type, frame),
      onRun: (slice) => this.#onData(slice),
      onPartial: (_type, chunk, remaining) => {
        this.midMessage = remaining > 0;
        this.#onData(chunk);
      },
      onRead: () => this.#owner?.onRead?.(),
      rowsAtStake: () => this.#owner?.rowsAtStake === true,
      onClosed: (error) => this.#onClosed(error),
      onDrain: () => this.#owner?.onWritable(this),
    });
  }

  get owner(): BackendOwner | null {
    return this.#owner;
  }

  attach(owner: BackendOwner): void {
    this.#owner = owner;
    this.attachedAt = performance.now();
    this.#flushedBefore = this.connection.bytesFlushed;
  }

  /** Nothing of what its owner has sent has been given to the kernel: whatever became of the server, it has not seen it. */
  get untouched(): boolean {
    return this.connection.bytesFlushed === this.#flushedBefore;
  }

  detach(): void {
    this.#owner = null;
    this.connection.resume();
  }

  /** Whether every reply asked for has come. */
  get quiet(): boolean {
    return this.#expected.length === 0;
  }

  get outstanding(): number {
    return this.#expected.length;
  }

  /** Whether it can serve somebody else now. */
  get reusable(): boolean {
    return (
      this.lost === null && !this.connection.isClosed && this.quiet && this.status === IDLE && this.#canceling === 0
    );
  }

  /** Sends `data` (if any) and expects `expectation`. @returns false when the server's socket is full. */
  send(data: Buffer | readonly Buffer[] | null, expectation: Expectation): boolean {
    if (this.lost !== null) {
      expectation.undo?.();
      return true;
    }
    if (!expectation.internal && !this.#inQuery && !this.pipelined) this.#begin();
    if (expectation.kind === 'query') this.unnamed = null; // a Query drops the unnamed statement
    // Behind a Sync that was sent already, nothing is skipped.
    if (this.#skipping && expectation.kind !== 'sync' && this.#expected.length === 0) {
      // The server reads it and throws it away: no reply will come.
      expectation.undo?.();
      return data === null ? true : this.connection.write(data);
    }
    this.#expected.push(expectation);
    if (this.#expected.length === 1) this.#flushLocal();
    return data === null ? true : this.connection.write(data);
  }

  #begin(): void {
    const now = performance.now();
    this.#inQuery = true;
    this.requestedAt = now;
    if (this.#inTransaction) return;
    this.#inTransaction = true;
    this.#transactionSince = now;
  }

  #count(internal: boolean): void {
    const now = performance.now();
    if (this.#inQuery && !internal) {
      this.#inQuery = false;
      this.#totals.queryCount += 1;
      this.#totals.queryTimeMs += now - this.requestedAt;
    }
    if (this.status !== IDLE || !this.#inTransaction) return;
    this.#inTransaction = false;
    this.#totals.xactCount += 1;
    this.#totals.xactTimeMs += now - this.#transactionSince;
  }

  /** A query of its own transaction, among others of their own, took so long. */
  countRead(ms: number): void {
    const totals = this.#totals;
    totals.queryCount += 1;
    totals.queryTimeMs += ms;
    totals.xactCount += 1;
    totals.xactTimeMs += ms;
  }

  /** Sends bytes that have no reply of their own: Flush, CopyData, CopyDone, CopyFail. */
  sendRaw(data: Buffer): boolean {
    return this.connection.write(data);
  }

  /** Sends a Sync that came instead of CopyData. */
  syncInCopy(sync: Buffer): boolean {
    this.#copySyncs += 1;
    return this.connection.write(sync);
  }

  /** Whether Syncs were sent that will be answered only if the COPY FROM STDIN under way fails. */
  get mayAnswerSyncs(): boolean {
    return this.#copySyncs > 0;
  }

  /** What is prepared here is to be prepared again, under other names, where it is used next. */
  forgetPrepared(): void {
    this.toClose.push(...this.prepared.values());
    this.prepared.clear();
    this.shapes.clear();
    this.unnamed = null;
  }

  /** To be called with the version of the schema, outside of a transaction, before statements are used. */
  prepareFor(version: number): void {
    if (this.#preparedAt === version) return;
    this.#preparedAt = version;
    this.forgetPrepared();
  }

  /** Whether what is prepared here was prepared for this version of the schema. */
  isPreparedFor(version: number): boolean {
    return this.#preparedAt === version;
  }

  /** A name for a statement that is not in use on this connection. */
  newStatementName(): string {
    this.#nextStatement += 1;
    return `fs_${this.#nextStatement}`;
  }

  /**
   * Begins a transaction block with `text`, without waiting, for one Query, or one batch with its Sync, that is sent right behind it.
   * When it fails, the server skips that: nothing of it is answered but its end, by a ReadyForQuery for the client.
   */
  begin(text: Buffer, { done, failed }: { readonly done: () => void; readonly failed: (frame: Buffer) => void }): void {
    const notBegun = (frame: Buffer) => {
      failed(frame);
      // A Query that is skipped has none.
      if (!this.#expected.some((e) => e.kind === 'sync')) this.send(SYNC, { kind: 'sync', internal: false });
    };
    this.unnamed = null;
    this.send(beginMessages(text), { kind: 'parse', internal: true, quiet: true, failed: notBegun });
    this.send(null, { kind: 'bind', internal: true, quiet: true, failed: notBegun });
    this.send(null, { kind: 'execute', internal: true, quiet: true, failed: notBegun, done });
    // What follows is said in it.
    this.status = IN_TRANSACTION;
  }

  /** Runs SQL of our own in the simple protocol; rejects with the ErrorResponse frame as an Error's cause. */
  runInternal(sql: Buffer, rows?: (slice: Buffer) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      let error: Buffer | null = null;
      this.send(sql, {
        kind: 'query',
        internal: true,
        ...(rows === undefined ? {} : { rows }),
        failed: (frame) => {
          error ??= kept(frame);
        },
        done: () => (error === null ? resolve() : reject(new InternalStatementError(error))),
        undo: () => reject(this.lost ?? new Error('server connection lost')),
      });
    });
  }

  /** A Parse of our own, and perhaps a Describe, with a Sync behind it; rejects as `runInternal`. */
  parseInternal(
    parse: Buffer | null,
    describe?: { readonly message: Buffer; readonly replied: (type: number, frame: Buffer) => void },
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      let error: Buffer | null = null;
      const failed = (frame: Buffer) => {
        error ??= kept(frame);
      };
      if (parse !== null) this.send(parse, { kind: 'parse', internal: true, quiet: true, failed });
      if (describe !== undefined)
        this.send(describe.message, {
          kind: 'describe',
          internal: true,
          quiet: true,
          failed,
          replied: describe.replied,
        });
      this.send(SYNC, {
        kind: 'sync',
        internal: true,
        done: () => (error === null ? resolve() : reject(new InternalStatementError(error))),
        undo: () => reject(this.lost ?? new Error('server connection lost')),
      });
    });
  }

  /** The first column of the first row of a query of our own, as text; null for NULL and for no row. */
  async value(sql: Buffer): Promise<string | null> {
    const rows: Buffer[] = [];
    await this.runInternal(sql, (slice) => rows.push(Buffer.from(slice)));
    const row = Buffer.concat(rows);
    if (row.length < 11) return null;
    const length = row.readInt32BE(7);
    return length < 0 ? null : row.toString('utf8', 11, 11 + length);
  }

  /** Asks for search_path on a server that does not report it, when it may have changed. Not in a failed transaction. */
  async refreshSearchPath(): Promise<void> {
    const { connection } = this;
    if (connection.reportsSearchPath) return;
    connection.learned('search_path', (await this.value(SHOW_SEARCH_PATH)) ?? '');
  }

  /** Cancels what runs here. Until the server has the request, it could hit the next client's statement: see `reusable`. */
  async cancel(): Promise<void> {
    this.#canceling += 1;
    try {
      await this.connection.cancel();
    } finally {
      this.#canceling -= 1;
    }
  }

  /** Whether a cancel request is on its way. */
  get canceling(): boolean {
    return this.#canceling > 0;
  }

  destroy(): void {
    this.connection.destroy();
  }

  #onData(slice: Buffer): void {
    const head = this.#expected[0];
    if (head?.internal) head.rows?.(slice);
    else if (head && head.muted?.() !== true) this.#owner?.onData(this, slice, head);
  }

  #onMessage(type: number, frame: Buffer): void {
    const head = this.#expected[0] ?? null;
    switch (type) {
      case BACKEND.ParameterStatus:
        // The connection has noted the value. While we work for ourselves the client learns of differences later, in one go.
        if (head === null || !head.internal) this.#owner?.onReply(this, type, frame, head);
        return;
      case BACKEND.NotificationResponse:
        // Somebody has left it listening: it must not get to the next client.
        if (this.#owner === null) this.connection.destroy();
        else this.#owner.onReply(this, type, frame, head);
        return;
      case BACKEND.NoticeResponse:
        if (head === null || !head.internal) this.#owner?.onReply(this, type, frame, head);
        return;
      case BACKEND.ErrorResponse:
        this.#onError(head, frame);
        return;
      case BACKEND.ReadyForQuery:
        this.#onReady(frame);
        return;
      case BACKEND.CopyInResponse:
        if (head) this.#onCopyIn(head, frame);
        return;
      default:
        if (head) this.#onReply(head, type, frame);
        else
          this.connection.destroy(
            new ForeshardError('08P01', `shard "${this.shard}" sent a message of type ${type} that nobody asked for`),
          );
    }
  }

  #onReply(head: Expectation, type: number, frame: Buffer): void {
    if (type === BACKEND.CommandComplete || type === BACKEND.EmptyQueryResponse) {
      this.#copySyncs = 0;
      head.completed?.(frame, type === BACKEND.EmptyQueryResponse);
    }
    head.replied?.(type, frame);
    if (head.kind === 'syncs') {
      this.#onSyncsCounted(head);
      return;
    }
    if (!head.internal) {
      const told = head.tell === undefined ? frame : head.tell(type, frame);
      if (told !== null) this.#owner?.onReply(this, type, told, head);
    }
    if (endsReply(head.kind, type)) this.#pop();
  }

  #pop(): void {
    this.#expected.shift()?.done?.();
    this.#flushLocal();
  }

  #flushLocal(): void {
    for (let head = this.#expected[0]; head?.kind === 'local'; head = this.#expected[0]) {
      this.#expected.shift();
      if (head.bytes !== undefined) this.#owner?.onReply(this, 0, head.bytes, head);
      head.done?.();
    }
  }

  #onError(head: Expectation | null, frame: Buffer): void {
    if (head === null) {
      // FATAL while idle. The close that follows says it to whoever has the connection; nobody else may get it meanwhile.
      if (this.#owner === null) {
        this.connection.destroy();
        this.onIdleClose?.();
      }
      return;
    }
    head.failed?.(frame);
    if (!head.internal || head.replacement)
      this.#owner?.onReply(
        this,
        BACKEND.ErrorResponse,
        head.replacement ?? head.tell?.(BACKEND.ErrorResponse, frame) ?? frame,
        head,
      );
    else if (head.kind !== 'query' && head.kind !== 'batch' && head.kind !== 'sync' && head.quiet !== true)
      // An internal Parse that failed: the client asked for what depends on it, so the error is the client's.
      this.#owner?.onReply(this, BACKEND.ErrorResponse, head.tell?.(BACKEND.ErrorResponse, frame) ?? frame, head);
    if (head.kind === 'syncs') return;
    if (this.#copySyncs > 0) {
      this.#countSyncs(head);
      return;
    }
    if (head.kind === 'query' || head.kind === 'batch' || head.kind === 'function') return;
    // The server skips to the next Sync; so do we.
    this.#skipping = true;
    for (let next = this.#expected[0]; next !== undefined; next = this.#expected[0]) {
      if (next.kind === 'sync' || next.kind === 'batch') return;
      this.#expected.shift();
      next.undo?.();
    }
  }

  /** Whether this is what is expected next. */
  expects(what: object): boolean {
    return this.#expected[0] === what;
  }

  /** All of what is expected next has come, up to a ReadyForQuery that says "idle", and nothing of it needs to be looked at here. */
  wholeAnswer(): void {
    this.status = IDLE;
    this.#expected.shift();
    if (this.#expected[0]?.kind === 'local') this.#flushLocal();
  }

  #onReady(frame: Buffer): void {
    this.status = frame[5] ?? IDLE;
    this.#skipping = false;
    if (this.#expected[0]?.kind === 'syncs') {
      this.#answers += 1;
      this.#lastAnswer = kept(frame);
      return;
    }
    this.#copySyncs = 0;
    // The head is a Sync or a Query, unless the server ended it early (an error was answered above).
    const head = this.#expected.shift();
    const internal = head?.internal ?? true;
    this.#count(internal);
    head?.done?.();
    this.#flushLocal();
    this.#owner?.onReady(this, this.status, internal, frame);
  }

  #onCopyIn(head: Expectation, frame: Buffer): void {
    // PostgreSQL ignores Sync while it waits for CopyData ("for the convenience of libpq", which sends a second one after
    // CopyDone), so those already sent will not be answered; unless it fails before it has read them.
    this.#copySyncs = 0;
    if (head.kind === 'execute') {
      for (let i = this.#expected.length - 1; i > 0; i--)
        if (this.#expected[i]?.kind === 'sync') {
          this.#expected.splice(i, 1);
          this.#copySyncs += 1;
        }
    }
    if (!head.internal) this.#owner?.onCopyIn(this, frame, head);
  }

  /**
   * The COPY FROM STDIN has failed. Of the Syncs sent into it the server answers those that it had not read by then, and only it knows
   * which they are: it is asked for something else behind them all. Nothing may be sent meanwhile.
   */
  #countSyncs(head: Expectation): void {
    const { done, undo } = head;
    const ofQuery = head.kind === 'query';
    for (const e of this.#expected.splice(0)) if (e !== head || !ofQuery) e.undo?.();
    this.#skipping = !ofQuery;
    this.#answers = 0;
    this.#expected.push({
      kind: 'syncs',
      internal: false,
      ...(ofQuery && { ...(done && { done }), ...(undo && { undo }) }),
    });
    this.connection.write(COUNT_SYNCS);
  }

  #onSyncsCounted({ done }: Expectation): void {
    const frame = this.#lastAnswer as Buffer;
    const answered = this.#answers - 1;
    this.#expected.shift();
    this.#copySyncs = 0;
    this.#lastAnswer = null;
    if (answered > 0) this.#count(false);
    done?.();
    this.#owner?.onSyncsAnswered?.(this, answered);
    if (answered > 0) this.#owner?.onReady(this, this.status, false, frame);
  }

  /** Whether an error has the server skip everything up to the next Sync. */
  get skipping(): boolean {
    return this.#skipping;
  }

  #onClosed(error: Error): void {
    this.lost = error;
    const lost = this.#expected.splice(0);
    for (const e of lost) e.undo?.();
    if (this.#owner) this.#owner.onLost(this, error);
    else this.onIdleClose?.();
  }
}

/** Most transactions begin alike. */
let lastBegin = { text: Buffer.alloc(0), messages: Buffer.alloc(0) };

function beginMessages(text: Buffer): Buffer {
  if (!lastBegin.text.equals(text)) {
    const bind = encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] });
    lastBegin = { text: Buffer.from(text), messages: Buffer.concat([encodeParse('', text), bind, encodeExecute('')]) };
  }
  return lastBegin.messages;
}

/** An internal statement failed on the server. */
export class InternalStatementError extends Error {
  /** The server's ErrorResponse. */
  readonly frame: Buffer;
  constructor(frame: Buffer) {
    super('internal statement failed');
    this.name = 'InternalStatementError';
    this.frame = frame;
  }
}

/** The server's own error, if `error` is that of an internal statement; else `error` itself. */
export function asServerError(error: unknown): unknown {
  return error instanceof InternalStatementError ? new ServerError(decodeErrorFields(error.frame)) : error;
}

function endsReply(kind: Expectation['kind'], type: number): boolean {
  switch (kind) {
    case 'parse':
      return type === BACKEND.ParseComplete;
    case 'bind':
      return type === BACKEND.BindComplete;
    case 'close':
      return type === BACKEND.CloseComplete;
    case 'describe':
      // ParameterDescription comes first for a statement; what ends it is the row description or its absence.
      return type === BACKEND.RowDescription || type === BACKEND.NoData;
    case 'execute':
      return (
        type === BACKEND.CommandComplete || type === BACKEND.EmptyQueryResponse || type === BACKEND.PortalSuspended
      );
    default:
      return false; // query, function, sync: ReadyForQuery ends them
  }
}
