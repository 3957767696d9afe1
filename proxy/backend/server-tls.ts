import { existsSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import { ForeshardError } from '../../topology/errors.js';
import { serverEndPoint } from '../wire/certificate.js';
import { encodeSslRequest } from '../wire/frontend.js';
import type { HandshakeReader } from '../wire/handshake-reader.js';
import { checkKeyFile } from '../wire/key-file.js';

const MODES = ['disable', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;

/** TLS towards a server, as libpq's parameters of the same names ask for it. */
export interface ServerTls {
  readonly mode: (typeof MODES)[number];
  /** sslrootcert: a file, or `system` for the authorities that Node knows; null: ~/.postgresql/root.crt if there is one. */
  readonly rootCert: string | null;
  /** sslcert and sslkey: our certificate, where the server asks for one. */
  readonly cert: string | null;
  readonly key: string | null;
  /** sslpassword: passphrase of the key. */
  readonly passphrase: string | null;
}

/** A server that cannot be reached as the mode demands; with `prefer` it is tried without TLS. SQLSTATE 08001. */
export class ServerTlsError extends ForeshardError {
  constructor(message: string, options: { hint?: string; cause?: unknown } = {}) {
    super('08001', message, options);
  }
}

/**
 * What a shard's URL asks for. Without `sslmode` it is `prefer`, as in libpq.
 * @throws ServerTlsError when it is none that we know
 */
export function tlsOfUrl(url: URL): ServerTls {
  const get = (name: string): string | null => url.searchParams.get(name) || null;
  const asked = get('sslmode') ?? 'prefer';
  // `allow` would be content with less, and `no-verify` is node-postgres's name for what libpq calls require.
  const mode = MODES.find((m) => m === ({ allow: 'prefer', 'no-verify': 'require' }[asked] ?? asked));
  if (mode === undefined)
    throw new ServerTlsError(`invalid sslmode value: "${asked}"`, { hint: `Known are ${MODES.join(', ')}.` });
  return {
    mode,
    rootCert: get('sslrootcert'),
    cert: get('sslcert'),
    key: get('sslkey'),
    passphrase: get('sslpassword'),
  };
}

/**
 * Asks the server for TLS, and takes the connection to it. To be called before anything else is sent.
 * @returns null when it goes on in the clear; otherwise what binds a login to this connection (RFC 5929), where that is defined
 * @throws ServerTlsError
 */
export async function secureServer(
  reader: HandshakeReader,
  tls: ServerTls,
  host: string,
): Promise<{ readonly endPoint: Buffer | null } | null> {
  if (tls.mode === 'disable') return null;
  reader.socket.write(encodeSslRequest());
  const answer = (await reader.read(1)).toString('latin1');
  if (answer === 'N') {
    if (tls.mode === 'prefer') return null;
    throw new ServerTlsError('server does not support SSL, but SSL was required', {
      hint: 'Set ssl = on in postgresql.conf, or change sslmode in the URL of the shard.',
    });
  }
  // An error would have come from who is not authenticated: its text is not to be trusted (CVE-2024-10977).
  if (answer === 'E') throw new ServerTlsError('server sent an error response during SSL exchange');
  if (answer !== 'S')
    throw new ServerTlsError(`received invalid response to SSL negotiation: ${JSON.stringify(answer)}`);
  if (reader.buffered > 0) throw new ServerTlsError('received unencrypted data after SSL response');
  const options = connectionOptions(tls, host);
  await reader.secure((socket) => handshake(socket, options));
  const certificate = (reader.socket as TLSSocket).getPeerX509Certificate();
  return { endPoint: certificate === undefined ? null : serverEndPoint(certificate) };
}

function handshake(socket: Duplex, options: ConnectionOptions): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const failed = (error: Error) =>
      reject(
        new ServerTlsError(`SSL error: ${error.message}`, {
          hint: 'Check the certificates, and sslmode and sslrootcert in the URL of the shard.',
          cause: error,
        }),
      );
    const secured = connect({ ...options, socket });
    secured.once('error', failed);
    secured.once('secureConnect', () => {
      secured.off('error', failed);
      resolve(secured);
    });
  });
}

function connectionOptions(tls: ServerTls, host: string): ConnectionOptions {
  const { mode, cert, key, passphrase } = tls;
  const root = tls.rootCert ?? defaultRoot();
  // As in libpq, a root certificate that is given is looked at.
  const verify = mode === 'verify-ca' || mode === 'verify-full' || (mode === 'require' && tls.rootCert !== null);
  if (verify && root === null)
    throw new ServerTlsError(`root certificate file "${HOME_ROOT}" does not exist`, {
      hint: 'Provide the file, use sslrootcert=system, or change sslmode in the URL of the shard.',
    });
  if (key !== null) checkKeyFile(key, 'Check sslkey in the URL of the shard.');
  try {
    return {
      host,
      ...(isIP(host) === 0 ? { servername: host } : {}),
      ...(verify && root !== null && root !== 'system' ? { ca: readFileSync(root) } : {}),
      ...(cert === null ? {} : { cert: readFileSync(cert) }),
      ...(key === null ? {} : { key: readFileSync(key) }),
      ...(passphrase === null ? {} : { passphrase }),
      minVersion: 'TLSv1.2',
      rejectUnauthorized: verify,
      ...(mode === 'verify-full' ? {} : { checkServerIdentity: () => undefined }),
    };
  } catch (error) {
    throw new ServerTlsError(`could not read a certificate: ${(error as Error).message}`, {
      hint: 'Check sslrootcert, sslcert and sslkey in the URL of the shard.',
      cause: error,
    });
  }
}

const HOME_ROOT = join(homedir(), '.postgresql', 'root.crt');

function defaultRoot(): string | null {
  return existsSync(HOME_ROOT) ? HOME_ROOT : null;
}
