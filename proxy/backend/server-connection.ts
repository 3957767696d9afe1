import type { Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';
import { decodeParameterStatus } from '../wire/backend.js';
import { decodeErrorFields, ServerError } from '../wire/error-response.js';
import { type FrameHandler, FrameScanner, serverFrames } from '../wire/frame-scanner.js';
import { TERMINATE } from '../wire/frontend.js';
import { GatheredWriter } from '../wire/gathered-writer.js';
import type { LoginSecret } from '../wire/login-secret.js';
import { BACKEND } from '../wire/message-types.js';
import { ProtocolError } from '../wire/protocol-error.js';
import { kept } from '../wire/read-memory.js';
import { tlsInfo } from '../wire/tls-info.js';
import { sendCancelRequest } from './cancel-request.js';
import { describeAddress, type ServerAddress, type ServerPath, withServerPath } from './server-address.js';
import { type ServerSession, serverHandshake } from './server-handshake.js';

export interface ServerConnectionOptions extends ServerAddress {
  readonly user: string;
  readonly database: string;
  /** null where the server trusts us. */
  readonly auth: LoginSecret | null;
  /** Start-up parameters: settings of the session. Default: none. */
  readonly parameters?: Readonly<Record<string, string>>;
  /** For the connection and the login together. Default 10,000; 0: no limit. */
  readonly connectTimeoutMs?: number;
  /**
   * Asked with every chunk that comes from the server while rows are at stake. Null: it may be read. Otherwise it is read when the promise resolves, and
   * the connection is cut with the reason when it rejects. Default: it may always be read.
   */
  readonly mayRead?: () => Promise<void> | null;
}

/**
 * Who uses a connection at the moment. Called synchronously while a chunk is being read. What it is given may be borrowed (see READ_MEMORY): it is good until
 * the call returns, or until `onRead` does for those that have it.
 */
export interface ServerHandler extends FrameHandler {
  /** All that was read has been told of. */
  onRead?(): void;
  /** Asked with what has come, where a message begins: so many bytes of it are dealt with. Whole messages, of types that tell of the connection neither settings nor errors. */
  onChunk?(chunk: Buffer): number;
  /** Whether what comes now may be rows that could have been moved meanwhile: `mayRead` is asked. Default: no. */
  rowsAtStake?(): boolean;
  /** After `write` has returned false: the server has taken enough of it to go on. */
  onDrain?(): void;
  /** Once, and nothing comes after it. A FATAL of the server has come through onMessage before. */
  onClosed(error: ForeshardError): void;
}

const FRAMES = serverFrames();

/** How long a server has to close a connection that we have said goodbye on. */
const TERMINATE_MS = 5_000;

/**
 * A logged-in connection to one shard. It knows nothing of what is being said on it, except the server's reported settings
 * and its last words.
 *
 * `pause` takes effect after the chunk at hand (at most 64 KiB): messages may still come from it.
 */
export class ServerConnection {
  readonly options: ServerConnectionOptions;
  /** Since when it is logged in, on performance.now()'s clock. */
  readonly openedAt = performance.now();
  readonly processId: number;
  /** For cancel requests. */
  readonly secret: Buffer;
  /** Whether the server tells of every change of search_path; see `learned`. */
  readonly reportsSearchPath: boolean;
  /** Resolves when the connection is gone, whoever ended it. Never rejects. */
  readonly closed: Promise<ForeshardError>;
  readonly #socket: Socket;
  readonly #parameters: Map<string, string>;
  readonly #writer: GatheredWriter;
  readonly #resolveClosed: (error: ForeshardError) => void;
  #handler: ServerHandler | null = null;
  #isClosed = false;
  readonly #scanner: FrameScanner;
  /** What came while it may not be read; null: it may. */
  #unread: Buffer[] | null = null;
  /** The owner wants no more for now. */
  #paused = false;
  /** Why it will close or has closed, as far as known. */
  #reason: Error | null = null;

  /** Connects and logs in. Throws ForeshardError: 08001 when nobody can be reached, or the server has an internal error, otherwise the server's own SQLSTATE. */
  static async connect(options: ServerConnectionOptions): Promise<ServerConnection> {
    const timeoutMs = options.connectTimeoutMs ?? 10_000;
    try {
      return await withServerPath(
        options,
        timeoutMs,
        async (path) => {
          const session = await serverHandshake(path.reader, {
            user: options.user,
            database: options.database,
            auth: options.auth,
            parameters: options.parameters ?? {},
            tls: path.tls,
            isPrivate: () => path.isPrivate,
          });
          await path.reader.release();
          return new ServerConnection(options, path, session);
        },
        // A rule of the server for connections without TLS (hostnossl), as libpq takes it.
        (error) => error instanceof ServerError && error.sqlstate === '28000',
      );
    } catch (error) {
      throw handshakeError(options, error);
    }
  }

  private constructor(options: ServerConnectionOptions, path: ServerPath, session: ServerSession) {
    const socket = path.reader.socket as Socket;
    this.options = options;
    this.processId = session.processId;
    this.secret = session.secret;
    this.reportsSearchPath = session.reportsSearchPath;
    this.#parameters = session.parameters;
    this.#socket = socket;
    this.#writer = new GatheredWriter(socket, () => this.#handler?.onDrain?.());
    let resolveClosed: (error: ForeshardError) => void = () => undefined;
    this.closed = new Promise((resolve) => {
      resolveClosed = resolve;
    });
    this.#resolveClosed = resolveClosed;

    this.#scanner = new FrameScanner(
      {
        onMessage: (type, message) => this.#onMessage(type, message),
        onPartial: (type, chunk, remaining) => this.#current(type)?.onPartial(type, chunk, remaining),
        onRun: (slice, messages, type) => this.#onRun(slice, messages, type),
      },
      FRAMES,
    );
    const { mayRead } = options;
    const take = (chunk: Buffer) => {
      const wait = mayRead === undefined || this.#handler?.rowsAtStake?.() !== true ? null : mayRead();
      if (wait === null && this.#unread === null) this.#scan(chunk);
      else this.#keep(chunk, wait);
    };
    path.incoming?.takeBy(take);
    // With `incoming`, what the handshake has left in the stream: it is told of before anything is read.
    socket.on('data', take);
    socket.on('error', (error) => {
      this.#reason ??= error;
    });
    socket.on('close', () => this.#onClose());
    socket.resume();
  }

  /** Settings as last reported by the server, and search_path, asked for where it is not. */
  get parameters(): ReadonlyMap<string, string> {
    return this.#parameters;
  }

  /** A setting that the server does not report has been asked for. */
  learned(name: string, value: string): void {
    this.#parameters.set(name, value);
  }

  /** True from the moment of `destroy`, `terminate` or the loss of the connection. */
  get isClosed(): boolean {
    return this.#isClosed || this.#socket.destroyed || this.#writer.isEnded;
  }

  /** Bytes accepted by `write` and not yet given to the kernel. */
  get buffered(): number {
    return this.#writer.buffered;
  }

  /** `write` has answered false, and `onDrain` has yet to come. */
  get isFull(): boolean {
    return this.#writer.isFull;
  }

  /** Bytes given to the kernel, or waiting in the socket for it to take them. */
  get bytesFlushed(): number {
    return this.#writer.flushed;
  }

  /** Bytes sent and received since the connection was made. */
  get bytesWritten(): number {
    return this.#socket.bytesWritten ?? 0;
  }

  get bytesRead(): number {
    return this.#socket.bytesRead;
  }

  /**
   * Who gets what comes from now on; null while the connection is idle, when anything but a notice, a notification, a
   * changed setting or a last error means that it is out of step, and ends it.
   */
  setHandler(handler: ServerHandler | null): void {
    this.#handler = handler;
  }

  /**
   * Sends whole messages. All that is written during one turn of the event loop leaves in one system call. False: read no
   * more from the client for now, `onDrain` will follow.
   */
  write(data: Buffer | readonly Buffer[]): boolean {
    return this.#writer.write(data);
  }

  /** Sends what was written in this turn now, for whoever waits for the answer to it alone. */
  flush(): void {
    this.#writer.flush();
  }

  /** Our end of the connection; nothing over a Unix socket. */
  get localAddress(): { readonly address: string; readonly port: number } {
    const { localAddress = '', localPort = 0 } = this.#socket;
    return { address: localAddress, port: localPort };
  }

  /** Protocol and cipher; empty in the clear. */
  get tls(): string {
    return tlsInfo(this.#socket);
  }

  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#paused = false;
    if (this.#unread === null) this.#socket.resume();
  }

  /** Cancels what this session does at the moment; see sendCancelRequest. */
  cancel(timeoutMs?: number): Promise<void> {
    return sendCancelRequest(this.options, { processId: this.processId, secret: this.secret }, timeoutMs);
  }

  /** Says goodbye, so that the server logs no lost connection. */
  terminate(): void {
    this.#writer.end(TERMINATE);
    // Read on (and drop) so that the server's end is seen. One that does not answer is not waited for.
    this.#socket.resume();
    this.#socket.setTimeout(TERMINATE_MS, () => this.#socket.destroy());
  }

  /** Cuts the connection; the server rolls back. `reason` goes to `onClosed`. */
  destroy(reason?: ForeshardError): void {
    this.#reason ??= reason ?? null;
    this.#socket.destroy();
  }

  #scan(chunk: Buffer): void {
    try {
      const from = this.#scanner.atBoundary && !this.isClosed ? (this.#handler?.onChunk?.(chunk) ?? 0) : 0;
      if (from < chunk.length) this.#scanner.push(from === 0 ? chunk : chunk.subarray(from));
    } catch (error) {
      // The server's words cannot be told apart any more. Anything else is a bug of the handler, not of the server.
      if (!(error instanceof ProtocolError)) throw error;
      this.destroy(error);
    }
    this.#handler?.onRead?.();
  }

  #keep(chunk: Buffer, wait: Promise<void> | null): void {
    if (this.#unread !== null) {
      this.#unread.push(kept(chunk));
      return;
    }
    const unread = [kept(chunk)];
    this.#unread = unread;
    this.#socket.pause();
    (wait ?? Promise.resolve()).then(
      () => {
        this.#unread = null;
        for (const kept of unread) this.#scan(kept);
        if (!this.#paused) this.#socket.resume();
      },
      (error: unknown) => this.destroy(error as ForeshardError),
    );
  }

  #onMessage(type: number, message: Buffer): void {
    if (type === BACKEND.ParameterStatus) {
      const { name, value } = decodeParameterStatus(message);
      this.#parameters.set(name, value);
    } else if (type === BACKEND.ErrorResponse) {
      const fields = decodeErrorFields(message);
      if (fields.severity === 'FATAL' || fields.severity === 'PANIC') this.#reason ??= new ServerError(fields);
    }
    this.#current(type)?.onMessage(type, message);
  }

  #onRun(slice: Buffer, messages: number, type: number): void {
    const handler = this.#current(type);
    if (handler === null) return;
    if (handler.onRun !== undefined) handler.onRun(slice, messages, type);
    else
      for (let at = 0; at < slice.length; ) {
        const end = at + 1 + slice.readInt32BE(at + 1);
        handler.onPartial(type, slice.subarray(at, end), 0);
        at = end;
      }
  }

  /** The handler to be told of a message of this type; null when nobody is to be told. */
  #current(type: number): ServerHandler | null {
    // The rest of a chunk after `destroy`, or what still comes after `terminate`.
    if (this.isClosed) return null;
    if (this.#handler === null && !ALLOWED_WHEN_IDLE.has(type))
      this.destroy(new ProtocolError(`unexpected message type ${type} on an idle connection to ${this.#where}`));
    return this.#handler;
  }

  get #where(): string {
    return `shard "${this.options.shard}" at ${describeAddress(this.options)}`;
  }

  #onClose(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const error = this.#closeError();
    this.#resolveClosed(error);
    const handler = this.#handler;
    this.#handler = null;
    handler?.onClosed(error);
  }

  #closeError(): ForeshardError {
    const reason = this.#reason;
    if (reason instanceof ForeshardError && !(reason instanceof ServerError)) return reason;
    const detail = reason?.message ?? 'The server closed the connection.';
    return new ForeshardError('08006', `the connection to ${this.#where} was lost`, {
      detail,
      cause: reason ?? undefined,
    });
  }
}

/** What a server may say at any time. */
const ALLOWED_WHEN_IDLE: ReadonlySet<number> = new Set([
  BACKEND.ErrorResponse,
  BACKEND.NoticeResponse,
  BACKEND.NotificationResponse,
  BACKEND.ParameterStatus,
]);

/** Tells which shard it was about. */
function handshakeError(address: ServerAddress, error: unknown): unknown {
  if (!(error instanceof ForeshardError) || error.sqlstate === '08001') return error;
  // A server whose disk is full says so, before PostgreSQL 16, as an internal error, which is none of ours, nor of the statement that wanted to go there.
  const isOfServer = error instanceof ServerError && error.sqlstate === 'XX000';
  return new ForeshardError(
    isOfServer ? '08001' : error.sqlstate,
    `could not log in to shard "${address.shard}" at ${describeAddress(address)}: ${error.message}`,
    {
      cause: error,
      ...(error.detail === undefined ? {} : { detail: error.detail }),
      ...(error.hint === undefined ? loginHint(error.sqlstate) : { hint: error.hint }),
    },
  );
}

function loginHint(sqlstate: string): { hint?: string } {
  if (sqlstate === '28P01' || sqlstate === '28000')
    return {
      hint: 'The role needs the same password on every shard ("foreshard shard add" copies roles with theirs); or give the password under proxy.serverPasswords.',
    };
  if (sqlstate === '3D000') return { hint: 'Check the database in the URL of the shard.' };
  if (sqlstate === '53300')
    return { hint: 'Raise max_connections on the server, or lower the pool size of the proxy.' };
  if (sqlstate === '08P01') return { hint: 'Check that it is PostgreSQL that listens there.' };
  return {};
}
