import { connect, type Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';

/** Where a server listens. */
export interface ServerAddress {
  /** Name for messages. */
  readonly shard: string;
  /** Host name or IP address, or, when it starts with `/`, the directory of the server's Unix socket. */
  readonly host: string;
  readonly port: number;
}

/** Idle time after which the kernel begins to probe the peer. */
const KEEP_ALIVE_MS = 30_000;

export function isUnixSocket(address: ServerAddress): boolean {
  return address.host.startsWith('/');
}

/** Starts connecting; what is written before that is done waits. */
export function openSocket(address: ServerAddress): Socket {
  if (isUnixSocket(address)) return connect({ path: `${address.host}/.s.PGSQL.${address.port}` });
  const socket = connect({ host: address.host, port: address.port });
  socket.setNoDelay(true);
  socket.setKeepAlive(true, KEEP_ALIVE_MS);
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
export function connectError(address: ServerAddress, cause: unknown): ForeshardError {
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

export function connectTimeoutError(address: ServerAddress, timeoutMs: number): ForeshardError {
  return new ForeshardError(
    '08001',
    `could not connect to shard "${address.shard}" at ${describeAddress(address)}: timeout expired after ${timeoutMs} ms`,
    {
      hint: 'Check that the host is up, that no firewall drops the connection, and that PostgreSQL is what answers there.',
    },
  );
}
