import { constants, createHash, hkdfSync, randomBytes, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import {
  createSecureContext,
  createServer,
  type TlsOptions as NodeTlsOptions,
  type Server,
  type TLSSocket,
} from 'node:tls';
import type { Logger } from 'pino';
import { ForeshardError } from '../../topology/errors.js';
import type { TlsFacts } from '../auth/peer.js';
import { commonName, distinguishedName, serverEndPoint } from '../wire/certificate.js';
import { ConnectionLostError } from '../wire/handshake-reader.js';
import { checkKeyFile } from '../wire/key-file.js';

/** TLS towards clients. Files are read at start and again by `TlsServer.reload`. */
export interface TlsOptions {
  /** `allow`: clients may use it; `require`: over TCP they must. */
  readonly mode: 'allow' | 'require';
  /** The proxy's certificate, and those between it and the root, as PEM. */
  readonly certFile: string;
  /** Its private key. As in PostgreSQL it must be readable by its owner only, or, when root owns it, by the group. */
  readonly keyFile: string;
  readonly keyPassphrase?: string | undefined;
  /** Clients are asked for a certificate, and one that does not lead to these is refused. Not set: they are not asked. */
  readonly caFile?: string | undefined;
  /** Default: TLSv1.2. */
  readonly minVersion?: 'TLSv1.2' | 'TLSv1.3' | undefined;
  /** OpenSSL's list of ciphers up to TLS 1.2. Default: Node's. */
  readonly ciphers?: string | undefined;
}

/** What PostgreSQL's clients name in the ALPN extension (PG_ALPN_PROTOCOL in pqcomm.h). */
const ALPN_PROTOCOL = 'postgresql';

/** As Node wants them: https://nodejs.org/api/tls.html#serversetticketkeyskeys */
const TICKET_KEY_BYTES = 48;

/** The handshake failed, or the client's certificate is no good. Nothing more can be said to it. */
export class TlsHandshakeError extends ConnectionLostError {}

/** A TLS connection, and what it tells of its two ends. */
export interface SecuredConnection {
  readonly socket: TLSSocket;
  readonly facts: TlsFacts;
}

interface Pending {
  readonly resolve: (socket: TLSSocket) => void;
  readonly reject: (error: Error) => void;
}

/** What one reading of the files gave. Connections keep the one they began with. */
interface Loaded {
  readonly server: Server;
  readonly endPoint: Buffer | null;
  readonly asksForCertificate: boolean;
  /** Handshakes under way, by both ends of their connection: Node does not tell which socket a TLSSocket was made of. */
  readonly pending: Map<string, Pending>;
}

/** Takes accepted connections to TLS. Sessions are resumed by tickets, until other files are loaded. */
export class TlsServer {
  readonly #options: TlsOptions;
  readonly #logger: Logger;
  readonly #ticketSecret: Buffer;
  #loaded: Loaded;

  /**
   * @param ticketSecret shared by the processes that resume each other's sessions
   * @throws ForeshardError F0000 when a file is missing, unfit or readable by others
   */
  constructor(options: TlsOptions, logger: Logger, ticketSecret: Buffer = randomBytes(32)) {
    this.#options = options;
    this.#logger = logger;
    this.#ticketSecret = ticketSecret;
    this.#loaded = load(options, ticketSecret);
  }

  /** Over TCP nobody comes in without TLS. */
  get required(): boolean {
    return this.#options.mode === 'require';
  }

  /**
   * Reads the files again. @returns what puts them in force, for connections from then on
   * @throws ForeshardError F0000 when a file is missing, unfit or readable by others
   */
  prepareReload(): () => void {
    const loaded = load(this.#options, this.#ticketSecret);
    return () => {
      this.#loaded = loaded;
      this.#logger.info({ certificate: this.#options.certFile }, 'TLS certificate loaded');
    };
  }

  /**
   * The server's side of a handshake on a socket that nobody reads any more; what it has buffered belongs to the handshake.
   * @param direct the client began with it, without asking first: then it must name our protocol (ALPN)
   * @throws TlsHandshakeError
   */
  async accept(socket: Socket, direct: boolean): Promise<SecuredConnection> {
    const { server, pending, endPoint, asksForCertificate } = this.#loaded;
    const key = endsOf(socket);
    const closed = () =>
      pending.get(key)?.reject(new TlsHandshakeError('the connection was closed during the TLS handshake'));
    try {
      const secured = await new Promise<TLSSocket>((resolve, reject) => {
        pending.set(key, { resolve, reject });
        socket.once('close', closed);
        // Documented for this: https://nodejs.org/api/net.html#event-connection
        server.emit('connection', socket);
      });
      if (direct && secured.alpnProtocol !== ALPN_PROTOCOL)
        throw new TlsHandshakeError(
          'received direct SSL connection request without ALPN protocol negotiation extension',
        );
      return { socket: secured, facts: { serverEndPoint: endPoint, ...clientNames(secured, asksForCertificate) } };
    } finally {
      pending.delete(key);
      socket.off('close', closed);
    }
  }
}

function load(options: TlsOptions, ticketSecret: Buffer): Loaded {
  const { certFile, caFile, ciphers } = options;
  checkKeyFile(options.keyFile, 'Check proxy.tls.keyFile.');
  const certificate = read(certFile, 'server certificate');
  const key = read(options.keyFile, 'private key');
  const roots = caFile === undefined ? null : read(caFile, 'root certificate');
  const settings: NodeTlsOptions = {
    cert: certificate,
    key,
    ...(options.keyPassphrase === undefined ? {} : { passphrase: options.keyPassphrase }),
    ...(roots === null ? {} : { ca: roots }),
    minVersion: options.minVersion ?? 'TLSv1.2',
    ...(ciphers === undefined ? {} : { ciphers }),
    honorCipherOrder: true,
    // A client that renegotiates costs us far more than itself; PostgreSQL does not allow it either.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION | constants.SSL_OP_NO_COMPRESSION,
    // Tickets of another service with the same certificate are no good here.
    sessionIdContext: 'foreshard',
    ticketKeys: ticketKeys(ticketSecret, [certificate, key, roots ?? Buffer.alloc(0)]),
    ALPNProtocols: [ALPN_PROTOCOL],
    requestCert: caFile !== undefined,
    // A client without one is let through to authentication; one that cannot be verified is refused below.
    rejectUnauthorized: false,
  };
  let endPoint: Buffer | null;
  let server: Server;
  try {
    endPoint = serverEndPoint(new X509Certificate(certificate));
    createSecureContext(settings);
    server = createServer(settings);
  } catch (error) {
    throw new ForeshardError('F0000', `could not use TLS certificate "${certFile}" with its key: ${text(error)}`, {
      hint: 'Check proxy.tls: certificate and key must be PEM files and belong together; an encrypted key needs its passphrase.',
      cause: error,
    });
  }
  const pending = new Map<string, Pending>();
  server.on('secureConnection', (socket: TLSSocket) => {
    const waiting = pending.get(endsOf(socket));
    if (waiting === undefined) socket.destroy();
    else waiting.resolve(socket);
  });
  server.on('tlsClientError', (error: Error, socket: TLSSocket) => {
    pending
      .get(endsOf(socket))
      ?.reject(new TlsHandshakeError(`could not accept SSL connection: ${text(error)}`, error));
    socket.destroy();
  });
  return { server, endPoint, asksForCertificate: caFile !== undefined, pending };
}

/** What a client has shown to one set of files is not to be taken over by another, whose roots may be fewer. */
function ticketKeys(secret: Buffer, files: readonly Buffer[]): Buffer {
  const sizes = Buffer.from(files.map((file) => `${file.length} `).join(''));
  const salt = createHash('sha256')
    .update(Buffer.concat([sizes, ...files]))
    .digest();
  return Buffer.from(hkdfSync('sha256', secret, salt, 'foreshard session tickets', TICKET_KEY_BYTES));
}

const text = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function endsOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress} ${socket.localPort}`;
}

function clientNames(socket: TLSSocket, asked: boolean): Omit<TlsFacts, 'serverEndPoint'> {
  const certificate = asked ? socket.getPeerX509Certificate() : undefined;
  if (certificate === undefined) return { clientCommonName: null, clientDistinguishedName: null };
  if (!socket.authorized)
    throw new TlsHandshakeError(`client certificate verification failed: ${String(socket.authorizationError)}`);
  const name = commonName(certificate);
  if (name?.includes('\0')) throw new TlsHandshakeError("SSL certificate's common name contains embedded null");
  return { clientCommonName: name, clientDistinguishedName: distinguishedName(certificate) };
}

function read(path: string, what: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new ForeshardError('F0000', `could not load ${what} file "${path}": ${text(error)}`, {
      hint: 'Check proxy.tls.',
      cause: error,
    });
  }
}
