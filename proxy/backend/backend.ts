import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import type { PreparedContent } from '../session/prepared.js';
import { NO_SETTINGS, type SettingMap } from '../session/settings.js';
import { BIND_COMPLETE, decodeCommandComplete, encodeCommandComplete, PARSE_COMPLETE } from '../wire/backend.js';
import { encodeBind, encodeExecute, encodeParse, encodeQuery, SYNC } from '../wire/frontend.js';
import { BACKEND } from '../wire/message-types.js';
import { kept } from '../wire/read-memory.js';
import { IDLE, IN_TRANSACTION } from '../wire/transaction-status.js';
import { COUNT_SYNCS, CopySyncs } from './copy-syncs.js';
import { type BackendOwner, type Expectation, endsReply } from './expectation.js';
import { InternalStatementError } from './internal-statement.js';
import type { PoolTotals } from './pool-status.js';
import { QueryClock } from './query-clock.js';
import type { ServerConnection } from './server-connection.js';

const SHOW_SEARCH_PATH = encodeQuery('SHOW search_path');

/** What of the answer to a statement of our own its sender wants to see. */
type Told = Pick<Expectation, 'rows' | 'replied'>;

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
  /** When its owner got it. */
  attachedAt = 0;
  /** What clients have done on it. */
  readonly clock: QueryClock;
  lost: Error | null = null;
  /** Several clients' queries stand in line here: whoever owns it counts them by `clock.read`. */
  pipelined = false;
  /** The last bytes of the server were part of a message: nothing else may be said to the client before its end. */
  midMessage = false;

  #owner: BackendOwner | null = null;
  readonly #expected: Expectation[] = [];
  /** After an error in the extended protocol, until its Sync. */
  #skipping = false;
  readonly #copySyncs = new CopySyncs();
  #nextStatement = 0;
  /** Cancel requests on their way to the server. */
  #canceling = 0;
  /** The pool is told when an unowned connection closes. */
  onIdleClose: (() => void) | null = null;
  #flushedBefore = 0;

  constructor(shard: ShardName, connection: ServerConnection, generation: number = 0, totals?: PoolTotals) {
    this.shard = shard;
    this.connection = connection;
    this.generation = generation;
    this.clock = new QueryClock(totals);
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

  /** The same client goes on with it by another owner. */
  hand(owner: BackendOwner): void {
    this.#owner = owner;
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
    if (!expectation.internal && !this.pipelined) this.clock.begin();
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

  /** Sends bytes that have no reply of their own: Flush, CopyData, CopyDone, CopyFail. */
  sendRaw(data: Buffer): boolean {
    return this.connection.write(data);
  }

  /** Sends a Sync that came instead of CopyData. */
  syncInCopy(sync: Buffer): boolean {
    this.#copySyncs.sent();
    return this.connection.write(sync);
  }

  /** Whether Syncs were sent that will be answered only if the COPY FROM STDIN under way fails. */
  get mayAnswerSyncs(): boolean {
    return this.#copySyncs.any;
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
    this.#sayAhead(beginMessages(text), BEGUN, { quiet: true, done, failed });
    // What follows is said in it.
    this.status = IN_TRANSACTION;
  }

  /**
   * Has the server forget the numbers that were drawn here, without waiting, ahead of one Query, or one batch with its Sync, that is sent right behind it
   * inside of a transaction block. When that fails (a cancel request has hit it), so does what follows, with its error.
   */
  forgetSequences(): void {
    const failed = () => {
      this.sequencesOf = 'several';
    };
    this.sequencesOf = null;
    this.#sayAhead(DISCARD_SEQUENCES, DISCARDED, { failed, undo: failed });
  }

  /**
   * Says something of ours ahead of what a client says, in the same packet, by Parse, Bind and Execute. @param answer what the server says when all is
   * well @param end when it fails, what follows is skipped
   */
  #sayAhead(messages: Buffer, answer: Buffer, end: Pick<Expectation, 'quiet' | 'done' | 'undo' | 'failed'>): void {
    const { done, ...unless } = end;
    const failed = (frame: Buffer) => {
      end.failed?.(frame);
      // A Query that is skipped has none.
      if (!this.#expected.some((e) => e.kind === 'sync' || e.kind === 'batch'))
        this.send(SYNC, { kind: 'sync', internal: false });
    };
    this.unnamed = null;
    this.send(messages, { kind: 'parse', internal: true, ...unless, failed, ahead: answer });
    this.send(null, { kind: 'bind', internal: true, ...unless, failed });
    this.send(null, { kind: 'execute', internal: true, ...unless, failed, ...(done === undefined ? {} : { done }) });
  }

  /**
   * Takes the answers to what was said ahead from the beginning of what has come, if they are what they nearly always are. @returns how many bytes it
   * took; what is left is to be read as any other
   */
  takeAhead(chunk: Buffer): number {
    let at = 0;
    for (let ahead = this.#expected[0]?.ahead; ahead !== undefined; ahead = this.#expected[0]?.ahead) {
      const end = at + ahead.length;
      if (chunk.length < end || chunk.compare(ahead, 0, ahead.length, at, end) !== 0) break;
      const [, , execute] = this.#expected.splice(0, 3);
      execute?.done?.();
      this.#flushLocal();
      at = end;
    }
    return at;
  }

  /** Runs SQL of our own in the simple protocol. @returns the last command tag; rejects with the ErrorResponse frame as an Error's cause */
  runInternal(sql: Buffer, told: Told = {}): Promise<string> {
    return this.#run('query', sql, told);
  }

  /** The same of messages of the extended protocol, with their Sync. */
  runBatchInternal(messages: readonly Buffer[], told: Told = {}): Promise<string> {
    return this.#run('batch', messages, told);
  }

  /** A COPY … FROM STDIN of our own. `opened`: the server waits for data, which is sent by `sendRaw`, with CopyDone or CopyFail behind it. */
  copyInternal(sql: Buffer): { readonly opened: Promise<void>; readonly done: Promise<string> } {
    let open = () => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    const done = this.#run('query', sql, { replied: (type) => type === BACKEND.CopyInResponse && open() });
    return { opened: Promise.race([opened, done.then(() => undefined)]), done };
  }

  #run(kind: 'query' | 'batch', data: Buffer | readonly Buffer[], told: Told): Promise<string> {
    return new Promise((resolve, reject) => {
      let error: Buffer | null = null;
      let tag = '';
      this.unnamed = null;
      this.send(data, {
        kind,
        internal: true,
        ...told,
        completed: (frame, empty) => {
          if (!empty) tag = decodeCommandComplete(frame);
        },
        failed: (frame) => {
          error ??= kept(frame);
        },
        done: () => (error === null ? resolve(tag) : reject(new InternalStatementError(error))),
        undo: () => reject(this.lost ?? new Error('server connection lost')),
      });
    });
  }

  /** A Parse of our own, and perhaps a Describe, with a Sync behind it; rejects as `runInternal`. */
  parseInternal(
    parse: Buffer | null,
    describe?: { readonly message: Buffer; readonly replied: (type: number, frame: Buffer) => void },
  ): Promise<void> {
    return this.askInternal([
      ...(parse === null ? [] : [{ kind: 'parse', message: parse } as const]),
      ...(describe === undefined ? [] : [{ kind: 'describe', ...describe } as const]),
    ]);
  }

  /** Messages of the extended protocol that run nothing, with a Sync behind them; rejects as `runInternal`. */
  askInternal(
    messages: readonly ({ readonly kind: 'parse' | 'bind' | 'describe'; readonly message: Buffer } & Pick<
      Expectation,
      'replied'
    >)[],
  ): Promise<void> {
    return new Promise((resolve, reject) => {
      let error: Buffer | null = null;
      const failed = (frame: Buffer) => {
        error ??= kept(frame);
      };
      this.unnamed = null;
      for (const { message, ...asked } of messages)
        this.send(message, { ...asked, internal: true, quiet: true, failed });
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
    await this.runInternal(sql, { rows: (slice) => rows.push(Buffer.from(slice)) });
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

  /** `reason`: what whoever waits for an answer is told. */
  destroy(reason?: ForeshardError): void {
    this.connection.destroy(reason);
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
      this.#copySyncs.forget();
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
    if (this.#copySyncs.any) {
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

  /** The same of the answer to the only thing that a client has asked. @returns how long it took, ms */
  wholeAnswerAlone(status: number): number {
    this.midMessage = false;
    this.status = status;
    this.#expected.pop();
    return this.clock.answered(status === IDLE);
  }

  #onReady(frame: Buffer): void {
    this.status = frame[5] ?? IDLE;
    this.#skipping = false;
    if (this.#expected[0]?.kind === 'syncs') {
      this.#copySyncs.answered(frame);
      return;
    }
    this.#copySyncs.forget();
    // The head is a Sync or a Query, unless the server ended it early (an error was answered above).
    const head = this.#expected.shift();
    const internal = head?.internal ?? true;
    this.clock.ready(!internal, this.status === IDLE);
    head?.done?.();
    this.#flushLocal();
    this.#owner?.onReady(this, this.status, internal, frame);
  }

  #onCopyIn(head: Expectation, frame: Buffer): void {
    // PostgreSQL ignores Sync while it waits for CopyData ("for the convenience of libpq", which sends a second one after
    // CopyDone), so those already sent will not be answered; unless it fails before it has read them.
    this.#copySyncs.forget();
    if (head.kind === 'execute') {
      for (let i = this.#expected.length - 1; i > 0; i--)
        if (this.#expected[i]?.kind === 'sync') {
          this.#expected.splice(i, 1);
          this.#copySyncs.sent();
        }
    }
    if (head.internal) head.replied?.(BACKEND.CopyInResponse, frame);
    else this.#owner?.onCopyIn(this, frame, head);
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
    this.#copySyncs.failed();
    this.#expected.push({
      kind: 'syncs',
      internal: false,
      ...(ofQuery && { ...(done && { done }), ...(undo && { undo }) }),
    });
    this.connection.write(COUNT_SYNCS);
  }

  #onSyncsCounted({ done }: Expectation): void {
    const { answered, last } = this.#copySyncs.take();
    this.#expected.shift();
    if (answered > 0) this.clock.ready(true, this.status === IDLE);
    done?.();
    this.#owner?.onSyncsAnswered?.(this, answered);
    if (answered > 0) this.#owner?.onReady(this, this.status, false, last);
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

/** What a server answers to a statement said ahead when there is nothing to be said. */
const aheadAnswer = (tag: string) => Buffer.concat([PARSE_COMPLETE, BIND_COMPLETE, encodeCommandComplete(tag)]);

const BEGUN = aheadAnswer('BEGIN');
const DISCARDED = aheadAnswer('DISCARD SEQUENCES');

/** Most transactions begin alike. */
let lastBegin: { readonly text: Buffer; readonly messages: Buffer } = {
  text: Buffer.alloc(0),
  messages: Buffer.alloc(0),
};

function beginMessages(text: Buffer): Buffer {
  if (!lastBegin.text.equals(text)) lastBegin = { text: Buffer.from(text), messages: aheadMessages(text) };
  return lastBegin.messages;
}

function aheadMessages(text: Buffer): Buffer {
  const bind = encodeBind({ portal: '', statement: '', formats: [], values: [], resultFormats: [] });
  return Buffer.concat([encodeParse('', text), bind, encodeExecute('')]);
}

const DISCARD_SEQUENCES = aheadMessages(Buffer.from('DISCARD SEQUENCES'));
