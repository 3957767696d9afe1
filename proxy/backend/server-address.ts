import { connect, type Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';
import { ConnectionLostError, HandshakeReader } from '../wire/handshake-reader.js';
import { Incoming } from '../wire/incoming.js';
import { type ServerTls, ServerTlsError, secureServer } from './server-tls.js';

/** Where a server listens. */
export interface ServerAddress {
  /** Name for messages. */
  readonly shard: string;
  /** Host name or IP address, or, when it starts with `/`, the directory of the server's Unix socket. */
  readonly host: string;
  readonly port: number;
  /** Default: in the clear. Over a Unix socket there is none. */
  readonly tls?: ServerTls;
}

/** Idle time after which the kernel begins to probe the peer. */
const KEEP_ALIVE_MS = 30_000;

function isUnixSocket(address: ServerAddress): boolean {
  return address.host.startsWith('/');
}

/** A connection to a server, before its start-up. */
export interface ServerPath {
  /** Its socket is the encrypted one where there is TLS. */
  readonly reader: HandshakeReader;
  /** null: in the clear. Otherwise what binds a login to this connection, where that is defined. */
  readonly tls: { readonly endPoint: Buffer | null } | null;
  /** Resolves when the server has been reached; rejects when it cannot be. */
  readonly connected: Promise<void>;
  /** Nobody else can listen in on it. */
  readonly isPrivate: boolean;
  /** How to take what is read from the reader's socket, once the reader has let go of it. Null: from its stream alone. */
  readonly incoming: Incoming | null;
}

/**
 * Connects, takes the connection to TLS as the address asks for it, and gives it to `use`. With sslmode `prefer` a second
 * connection in the clear is made where TLS does not come about, or where `inTheClear` says that `use` failed because of it.
 * `timeoutMs` spans all of it, for each of the connections. Whatever fails, the socket is closed.
 */
export async function withServerPath<T>(
  address: ServerAddress,
  timeoutMs: number,
  use: (path: ServerPath) => Promise<T>,
  inTheClear: (error: unknown) => boolean = () => false,
): Promise<T> {
  const preferred = address.tls;
  if (preferred === undefined || isUnixSocket(address)) return connectOnce(address, null, timeoutMs, use);
  try {
    return await connectOnce(address, preferred, timeoutMs, use);
  } catch (error) {
    if (preferred.mode !== 'prefer' || !(error instanceof ServerTlsError || inTheClear(error))) throw error;
    return connectOnce(address, null, timeoutMs, use);
  }
}

async function connectOnce<T>(
  address: ServerAddress,
  asked: ServerTls | null,
  timeoutMs: number,
  use: (path: ServerPath) => Promise<T>,
): Promise<T> {
  const incoming = new Incoming();
  const socket = openSocket(address, incoming);
  let connected = false;
  const reached = new Promise<void>((resolve, reject) => {
    socket.once('connect', () => {
      connected = true;
      resolve();
    });
    socket.once('close', () => reject(new ConnectionLostError('the server could not be reached', failure)));
  });
  let failure: unknown;
  socket.once('error', (error) => {
    failure = error;
  });
  // Not everybody waits for it.
  reached.catch(() => undefined);
  const reader = new HandshakeReader(socket, timeoutMs, () => connectTimeoutError(address, timeoutMs));
  try {
    const tls = asked === null ? null : await secureServer(reader, asked, address.host);
    return await use({
      reader,
      tls,
      connected: reached,
      get isPrivate() {
        return tls !== null || isUnixSocket(address) || isLoopback(socket.remoteAddress ?? '');
      },
      // What TLS decrypts is allocated for each record.
      incoming: tls === null ? incoming : null,
    });
  } catch (error) {
    socket.destroy();
    // Until it is released it would keep its clock running.
    await reader.release().catch(() => undefined);
    if (error instanceof ServerTlsError)
      throw new ServerTlsError(
        `could not connect to shard "${address.shard}" at ${describeAddress(address)}: ${error.message}`,
        { cause: error, ...(error.hint === undefined ? {} : { hint: error.hint }) },
      );
    if (error instanceof ConnectionLostError)
      throw connectError(
        address,
        connected ? (error.cause ?? new Error('the server closed the connection unexpectedly')) : error.cause,
      );
    throw error;
  }
}

function isLoopback(address: string): boolean {
  return address === '::1' || /^(?:::ffff:)?127\./.test(address);
}

/** Starts connecting; what is written before that is done waits. */
function openSocket(address: ServerAddress, incoming: Incoming): Socket {
  const { onread } = incoming;
  if (isUnixSocket(address)) {
    incoming.socket = connect({ path: `${address.host}/.s.PGSQL.${address.port}`, onread });
    return incoming.socket;
  }
  const socket = connect({ host: address.host, port: address.port, onread });
  socket.setNoDelay(true);
  socket.setKeepAlive(true, KEEP_ALIVE_MS);
  incoming.socket = socket;
  return socket;
}

/** `host:port`, or the directory and port of a Unix socket. */
export function describeAddress(address: ServerAddress): string {
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

const REASONS: Readonly<Record<string, { readonly reason: string; readonly hint: string }>> = {
  ECONNREFUSED: {
    reason: 'connection refused',
    hint: 'Check that PostgreSQL runs on that host, and listens on that address and port.',
  },
  ENOENT: {
    reason: 'no such Unix socket',
    hint: 'Check that PostgreSQL runs, and that unix_socket_directories names this directory.',
  },
  EACCES: { reason: 'permission denied', hint: 'Check the permissions of the Unix socket and its directory.' },
  ENOTFOUND: { reason: 'host name not found', hint: 'Check the spelling of the host name, and DNS.' },
  EAI_AGAIN: { reason: 'host name could not be resolved', hint: 'Check that DNS works on this machine.' },
  ETIMEDOUT: { reason: 'timeout expired', hint: 'Check that the host is up and no firewall drops the connection.' },
  EHOSTUNREACH: { reason: 'no route to host', hint: 'Check that the host is up, and the network between.' },
  ENETUNREACH: { reason: 'network unreachable', hint: 'Check the network of this machine.' },
};

/** A connection that could not be made, from Node's error: SQLSTATE 08001. */
function connectError(address: ServerAddress, cause: unknown): ForeshardError {
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
  const known = REASONS[code];
  const reason = known?.reason ?? (cause instanceof Error ? cause.message : String(cause));
  return new ForeshardError(
    '08001',
    `could not connect to shard "${address.shard}" at ${describeAddress(address)}: ${reason}`,
    {
      hint: known?.hint ?? 'Check that PostgreSQL runs there.',
      cause,
    },
  );
}

function connectTimeoutError(address: ServerAddress, timeoutMs: number): ForeshardError {
  return new ForeshardError(
    '08001',
    `could not connect to shard "${address.shard}" at ${describeAddress(address)}: timeout expired after ${timeoutMs} ms`,
    {
      hint: 'Check that the host is up, that no firewall drops the connection, and that PostgreSQL is what answers there.',
    },
  );
}
