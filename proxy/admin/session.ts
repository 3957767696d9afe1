import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { ForeshardError } from '../../topology/errors.js';
import type { CancelKey, Peer } from '../clients.js';
import {
  BIND_COMPLETE,
  CLOSE_COMPLETE,
  EMPTY_QUERY_RESPONSE,
  encodeCommandComplete,
  encodeDataRow,
  encodeParameterDescription,
  encodeReadyForQuery,
  encodeRowDescription,
  NO_DATA,
  PARSE_COMPLETE,
  PORTAL_SUSPENDED,
  type TransactionStatus,
} from '../wire/backend.js';
import { encodeErrorResponse, encodeNoticeResponse, fieldsOfError } from '../wire/error-response.js';
import { clientFrames, FrameScanner } from '../wire/frame-scanner.js';
import {
  checkEmpty,
  decodeBind,
  decodeClose,
  decodeDescribe,
  decodeExecute,
  decodeParse,
  decodeQuery,
} from '../wire/frontend.js';
import { GatheredWriter } from '../wire/gathered-writer.js';
import { FRONTEND } from '../wire/message-types.js';
import { ProtocolError } from '../wire/protocol-error.js';
import type { AdminConsole, Administrator, Outcome } from './console.js';
import { type AdminStatement, parseStatements } from './statement.js';
import { type Column, describeColumn, encodeValue, type Row } from './view.js';

/** Nothing that an administrator has to say is longer. */
const MAX_MESSAGE_BYTES = 64 * 1024;
/** Messages not yet looked at beyond this many bytes: the socket is not read. */
const INBOX_BYTES = 256 * 1024;
/** Rows written at a time, before others have their turn. */
const ROWS_PER_TURN = 200;
/** Prepared statements, and portals, of one session at most. */
const MAX_NAMED = 1000;

interface Message {
  readonly type: number;
  readonly frame: Buffer;
}

/** A statement that was bound, and how far it has been executed. */
interface Portal {
  readonly statement: AdminStatement;
  /** One for each column, or one for all, or none (text). */
  readonly formats: readonly number[];
  outcome: Outcome | null;
  /** Rows sent so far. */
  sent: number;
}

/** One connection to the admin database, after its login: simple and extended protocol, one statement at a time. */
export class AdminSession {
  readonly key: CancelKey;
  readonly administrator: Administrator;
  readonly peer: Peer;
  readonly protocol: number;
  readonly applicationName: string;
  /** ms since 1970. */
  readonly connectedAt = Date.now();
  requestAt = Date.now();
  /** Queries, and executions of portals. */
  queries = 0;
  readonly #console: AdminConsole;
  readonly #socket: Socket;
  readonly #logger: Logger;
  readonly #onEnd: () => void;
  readonly #out: GatheredWriter;
  readonly #scanner: FrameScanner;
  readonly #statements = new Map<string, AdminStatement>();
  readonly #portals = new Map<string, Portal>();
  #inbox: Message[] = [];
  #inboxBytes = 0;
  #busy = false;
  /** After an error in the extended protocol, until the client's Sync. */
  #skipping = false;
  #status: TransactionStatus = 'I';
  #running: AbortController | null = null;
  #wakeWriter: (() => void) | null = null;
  #closed = false;

  constructor(options: {
    readonly key: CancelKey;
    readonly peer: Peer;
    /** Agreed version: major in the high 16 bits. */
    readonly protocol: number;
    readonly applicationName: string;
    readonly administrator: Administrator;
    readonly console: AdminConsole;
    readonly socket: Socket;
    readonly logger: Logger;
    readonly onEnd: () => void;
  }) {
    this.key = options.key;
    this.peer = options.peer;
    this.protocol = options.protocol;
    this.applicationName = options.applicationName;
    this.administrator = options.administrator;
    this.#console = options.console;
    this.#socket = options.socket;
    this.#logger = options.logger;
    this.#onEnd = options.onEnd;
    this.#out = new GatheredWriter(options.socket, () => this.#drained());
    this.#scanner = new FrameScanner(
      {
        onMessage: (type, frame) => this.#receive(type, frame),
        onPartial: () => undefined, // CopyData, which nobody asked for
      },
      clientFrames({ maxMessageBytes: MAX_MESSAGE_BYTES }),
    );
  }

  /** The login is over, and the socket is ours. To be called in the turn in which the login lets go of it. */
  start(): void {
    const socket = this.#socket;
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('end', () => this.close());
    socket.on('close', () => this.close());
    socket.on('error', (error) => this.#logger.debug({ err: error }, 'socket of an administrator'));
    socket.resume();
  }

  /** A statement is being carried out. */
  get working(): boolean {
    return this.#running !== null;
  }

  get preparedStatements(): number {
    return this.#statements.size;
  }

  /** From and to the client. */
  get bytes(): { readonly received: number; readonly sent: number } {
    return { received: this.#socket.bytesRead, sent: this.#socket.bytesWritten ?? 0 };
  }

  /** Sends bytes to the client. */
  write(frame: Buffer): void {
    if (!this.#closed) this.#out.write(frame);
  }

  /** A cancel request with the right key has come. */
  cancel(): void {
    this.#running?.abort(new ForeshardError('57014', 'canceling statement due to user request'));
  }

  /** Ends the session; FATAL to the client if `error` is given. */
  close(error?: unknown): void {
    if (this.#closed) return;
    if (error !== undefined) this.write(encodeErrorResponse(fieldsOfError(error, 'FATAL')));
    this.#closed = true;
    this.#out.end();
    this.#socket.setTimeout(1000, () => this.#socket.destroy());
    this.#running?.abort(new ForeshardError('08006', 'the client has gone away'));
    this.#drained();
    this.#onEnd();
  }

  #read(chunk: Buffer): void {
    if (this.#closed) return;
    try {
      this.#scanner.push(chunk);
    } catch (error) {
      this.close(error);
      return;
    }
    if (this.#inboxBytes > INBOX_BYTES) this.#socket.pause();
    void this.#pump();
  }

  #receive(type: number, frame: Buffer): void {
    this.#inbox.push({ type, frame });
    this.#inboxBytes += frame.length;
  }

  async #pump(): Promise<void> {
    if (this.#busy) return;
    this.#busy = true;
    for (let next = this.#inbox.shift(); next !== undefined && !this.#closed; next = this.#inbox.shift()) {
      this.#inboxBytes -= next.frame.length;
      if (this.#inboxBytes <= INBOX_BYTES / 2 && this.#socket.isPaused()) this.#socket.resume();
      try {
        await this.#process(next);
      } catch (error) {
        if (error instanceof ProtocolError) this.close(error);
        else this.#fail(error, next.type);
      }
    }
    this.#busy = false;
  }

  #fail(error: unknown, type: number): void {
    const fields = fieldsOfError(error);
    if (fields.sqlstate === 'XX000') this.#logger.error({ err: error }, 'internal error in the admin database');
    this.write(encodeErrorResponse(fields));
    if (this.#status === 'T') this.#status = 'E';
    if (type === FRONTEND.Query || type === FRONTEND.FunctionCall) this.write(encodeReadyForQuery(this.#status));
    else this.#skipping = true;
  }

  async #process({ type, frame }: Message): Promise<void> {
    if (type === FRONTEND.Terminate) {
      this.close();
      return;
    }
    if (this.#skipping && type !== FRONTEND.Sync) return;
    switch (type) {
      case FRONTEND.Query:
        this.#statements.delete('');
        await this.#query(decodeQuery(frame).toString('utf8'));
        return;
      case FRONTEND.Parse:
        this.#parse(frame);
        return;
      case FRONTEND.Bind:
        this.#bind(frame);
        return;
      case FRONTEND.Describe:
        this.#describe(frame);
        return;
      case FRONTEND.Execute:
        await this.#execute(frame);
        return;
      case FRONTEND.Close: {
        const { kind, name } = decodeClose(frame);
        (kind === 'statement' ? this.#statements : this.#portals).delete(name);
        this.write(CLOSE_COMPLETE);
        return;
      }
      case FRONTEND.Flush:
        checkEmpty(frame);
        return; // everything is sent at the end of the turn
      case FRONTEND.Sync:
        checkEmpty(frame);
        this.#skipping = false;
        if (this.#status === 'I') this.#portals.clear();
        this.write(encodeReadyForQuery(this.#status));
        return;
      case FRONTEND.FunctionCall:
        throw new ForeshardError('0A000', 'the admin database has no functions', {
          hint: 'SHOW HELP lists what it has.',
        });
      default:
        return; // CopyDone, CopyFail: ignored outside of COPY, as PostgreSQL does
    }
  }

  async #query(sql: string): Promise<void> {
    for (const statement of parseStatements(sql)) {
      const outcome = await this.#run(statement);
      this.#tellNotices(outcome);
      if (outcome.columns !== null) this.write(encodeRowDescription(outcome.columns.map((c) => describeColumn(c, 0))));
      await this.#sendRows(outcome, [], 0, outcome.rows.length);
      if (this.#closed) return;
      this.write(completion(outcome));
    }
    this.write(encodeReadyForQuery(this.#status));
  }

  #parse(frame: Buffer): void {
    const { name, sql } = decodeParse(frame);
    if (name !== '' && this.#statements.has(name))
      throw new ForeshardError('42P05', `prepared statement "${name}" already exists`);
    const [statement, second] = parseStatements(sql.toString('utf8'));
    if (second !== undefined)
      throw new ForeshardError('42601', 'cannot insert multiple commands into a prepared statement');
    if (this.#statements.size >= MAX_NAMED && !this.#statements.has(name))
      throw new ForeshardError('54000', `more than ${MAX_NAMED} prepared statements in the admin database`);
    this.#statements.set(name, statement ?? { kind: 'empty' });
    this.write(PARSE_COMPLETE);
  }

  #statement(name: string): AdminStatement {
    const statement = this.#statements.get(name);
    if (statement === undefined)
      throw new ForeshardError(
        '26000',
        name === '' ? 'unnamed prepared statement does not exist' : `prepared statement "${name}" does not exist`,
      );
    return statement;
  }

  #portal(name: string): Portal {
    const portal = this.#portals.get(name);
    if (portal === undefined) throw new ForeshardError('34000', `portal "${name}" does not exist`);
    return portal;
  }

  #bind(frame: Buffer): void {
    const { portal, statement: name, values, resultFormats } = decodeBind(frame);
    const statement = this.#statement(name);
    if (values.length > 0)
      throw new ForeshardError(
        '08P01',
        `bind message supplies ${values.length} parameters, but prepared statement "${name}" requires 0`,
        { hint: 'The admin database takes no parameters: write the value into the statement.' },
      );
    const columns = this.#console.columnsOf(statement)?.length ?? 0;
    if (resultFormats.length > 1 && resultFormats.length !== columns)
      throw new ForeshardError(
        '08P01',
        `bind message has ${resultFormats.length} result formats but query has ${columns} columns`,
      );
    const unsupported = resultFormats.find((f) => f !== 0 && f !== 1);
    if (unsupported !== undefined) throw new ForeshardError('22023', `unsupported format code: ${unsupported}`);
    if (portal !== '' && this.#portals.has(portal))
      throw new ForeshardError('42P03', `cursor "${portal}" already exists`);
    if (this.#portals.size >= MAX_NAMED && !this.#portals.has(portal))
      throw new ForeshardError('54000', `more than ${MAX_NAMED} portals in the admin database`);
    this.#portals.set(portal, { statement, formats: resultFormats, outcome: null, sent: 0 });
    this.write(BIND_COMPLETE);
  }

  #describe(frame: Buffer): void {
    const { kind, name } = decodeDescribe(frame);
    const statement = kind === 'statement' ? this.#statement(name) : this.#portal(name).statement;
    const formats = kind === 'statement' ? [] : this.#portal(name).formats;
    if (kind === 'statement') this.write(encodeParameterDescription([]));
    const columns = this.#console.columnsOf(statement);
    this.write(
      columns === null
        ? NO_DATA
        : encodeRowDescription(columns.map((column, i) => describeColumn(column, formatOf(formats, i)))),
    );
  }

  async #execute(frame: Buffer): Promise<void> {
    const { portal: name, maxRows } = decodeExecute(frame);
    const portal = this.#portal(name);
    if (portal.outcome === null) {
      portal.outcome = await this.#run(portal.statement);
      this.#tellNotices(portal.outcome);
    } else if (portal.outcome.columns === null) throw new ForeshardError('55000', `portal "${name}" cannot be run`);
    const { outcome } = portal;
    const from = portal.sent;
    const to = maxRows > 0 ? Math.min(outcome.rows.length, from + maxRows) : outcome.rows.length;
    await this.#sendRows(outcome, portal.formats, from, to);
    portal.sent = to;
    this.write(maxRows > 0 && to - from === maxRows ? PORTAL_SUSPENDED : completion(outcome));
  }

  async #run(statement: AdminStatement): Promise<Outcome> {
    if (this.#status === 'E' && statement.kind !== 'transaction')
      throw new ForeshardError(
        '25P02',
        'current transaction is aborted, commands ignored until end of transaction block',
      );
    this.requestAt = Date.now();
    this.queries += 1;
    const running = new AbortController();
    this.#running = running;
    try {
      const outcome = await this.#console.run(statement, this.administrator, running.signal);
      if (statement.kind !== 'transaction') return outcome;
      const failed = this.#status === 'E';
      this.#status = statement.tag === 'BEGIN' ? (failed ? 'E' : 'T') : 'I';
      return failed && statement.tag === 'COMMIT' ? { ...outcome, tag: 'ROLLBACK' } : outcome;
    } finally {
      this.#running = null;
    }
  }

  #tellNotices(outcome: Outcome): void {
    for (const { message, severity = 'NOTICE' } of outcome.notices)
      this.write(encodeNoticeResponse({ severity, sqlstate: severity === 'NOTICE' ? '00000' : '01000', message }));
  }

  /** Rows `from` to `to` (exclusive), as fast as the client reads them. */
  async #sendRows({ columns, rows }: Outcome, formats: readonly number[], from: number, to: number): Promise<void> {
    if (columns === null) return;
    for (let at = from; at < to && !this.#closed; at += ROWS_PER_TURN) {
      const batch = rows.slice(at, Math.min(to, at + ROWS_PER_TURN)).map((row) => encodeRow(row, columns, formats));
      const full = !this.#out.write(batch);
      if (full) await new Promise<void>((resolve) => (this.#wakeWriter = resolve));
      else if (at + ROWS_PER_TURN < to) await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  #drained(): void {
    this.#wakeWriter?.();
    this.#wakeWriter = null;
  }
}

const formatOf = (formats: readonly number[], column: number): number =>
  (formats.length > 1 ? formats[column] : formats[0]) ?? 0;

function encodeRow(row: Row, columns: readonly Column[], formats: readonly number[]): Buffer {
  return encodeDataRow(columns.map(({ type }, i) => encodeValue(row[i] ?? null, type, formatOf(formats, i))));
}

function completion(outcome: Outcome): Buffer {
  return outcome.tag === '' ? EMPTY_QUERY_RESPONSE : encodeCommandComplete(outcome.tag);
}
