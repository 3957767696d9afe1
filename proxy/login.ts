import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { ForeshardError } from '../topology/errors.js';
import { ADMIN_DATABASE } from './admin/admin-database.js';
import type { AdminServer } from './admin/admin-server.js';
import { authenticateClient } from './auth/authenticate.js';
import type { Authentication } from './auth/authentication.js';
import type { ConnectionFacts, TlsFacts } from './auth/peer.js';
import { LoginRefusedError } from './auth/refusal.js';
import type { CancelKey, Client, Clients, Peer } from './clients.js';
import { type ClientSocket, readIntoMemory } from './listener/client-socket.js';
import type { Accepted } from './listener/listener.js';
import { trustList } from './listener/networks.js';
import { type ProxyProtocolOptions, readProxyHeader } from './listener/proxy-protocol.js';
import type { StartupGate, StartupPass } from './listener/startup-gate.js';
import { TlsHandshakeError, type TlsServer } from './listener/tls-server.js';
import type { Replication } from './replication.js';
import type { SessionServices } from './session/client-session.js';
import { Session } from './session/session.js';
import { encodeBackendKeyData, encodeReadyForQuery } from './wire/backend.js';
import { encodeErrorOfProtocol2, encodeErrorResponse, fieldsOfError } from './wire/error-response.js';
import { ConnectionLostError, HandshakeReader } from './wire/handshake-reader.js';
import type { Incoming } from './wire/incoming.js';
import { UnansweredError } from './wire/protocol-error.js';
import { readStartup, type SessionStartup, UnsupportedProtocolError } from './wire/startup.js';
import { tlsInfo } from './wire/tls-info.js';

export interface LoginOptions {
  readonly clients: Clients;
  readonly authentication: Authentication;
  readonly loginTimeoutMs: number;
  readonly logger: Logger;
  /** TLS towards clients; null: there is none. */
  readonly tls: TlsServer | null;
  readonly proxyProtocol: ProxyProtocolOptions;
  /** Whether clients' sockets can be read into READ_MEMORY; see `canReadIntoMemory`. */
  readonly intoMemory: boolean;
  /** How many may start up at a time. */
  readonly gate: StartupGate;
  /** Where those go who name the admin database: past `admit`, so that somebody can look when nobody else comes in. */
  readonly admin: AdminServer;
  /** Where replication clients go. */
  readonly replication: Replication;
  /** Whether one more client may come in. @throws ForeshardError when not */
  readonly admit: () => void;
  /** The database that clients may name. */
  readonly database: () => string;
  readonly services: (user: string) => SessionServices;
  readonly cancel: (key: CancelKey) => void;
  /** The client has gone, or has not come in after all. */
  readonly ended: (session: Session) => void;
}

/** How long a client that is refused may take to read why. */
const LAST_WORDS_MS = 1000;

/** Takes an accepted socket through start-up and authentication to a session. */
export class Login {
  #options: LoginOptions;
  readonly #isTrusted: (address: string) => boolean;

  constructor(options: LoginOptions) {
    this.#options = options;
    this.#isTrusted = trustList(options.proxyProtocol.trustedProxies);
  }

  /** For those who come from now on. */
  reload(options: Pick<LoginOptions, 'loginTimeoutMs'>): void {
    this.#options = { ...this.#options, ...options };
  }

  /** Never throws: whatever is wrong is told to the client, and logged. */
  accept(accepted: Accepted): void {
    const { gate, logger } = this.#options;
    const client = this.#options.intoMemory
      ? readIntoMemory(accepted.socket)
      : { socket: accepted.socket, incoming: null };
    const { socket } = client;
    gate.enter(
      socket,
      (pass) => void this.#begin(client, accepted.kind, pass).finally(() => pass.leave()),
      () => {
        logger.info({ from: socket.remoteAddress }, 'connection refused: too many are starting up');
        tell(socket, tooManyStartups());
      },
    );
  }

  /** Resolves when the client is in, or out. Never rejects. */
  async #begin(client: ClientSocket, kind: Accepted['kind'], pass: StartupPass): Promise<void> {
    const { loginTimeoutMs, logger } = this.#options;
    const reader = new HandshakeReader(
      client.socket,
      loginTimeoutMs,
      () => new ForeshardError('57014', `canceling authentication due to timeout after ${loginTimeoutMs} ms`),
    );
    const attempt = new Attempt(client, kind, reader);
    try {
      await this.#login(attempt, pass);
    } catch (error) {
      const socket = attempt.socket;
      socket.on('error', () => socket.destroy());
      await reader.release().catch(() => undefined); // says once more that the peer has gone or was too slow
      if (error instanceof TlsHandshakeError || error instanceof UnansweredError)
        logger.info({ err: error, from: attempt.address }, 'connection closed during start-up');
      // Authentication logs its own refusals.
      else if (!(error instanceof ConnectionLostError || error instanceof LoginRefusedError))
        logger.info({ err: error, from: attempt.address }, 'login refused');
      if (error instanceof ConnectionLostError || error instanceof UnansweredError) socket.destroy();
      else tell(socket, error);
    }
  }

  async #login(attempt: Attempt, pass: StartupPass): Promise<void> {
    const { clients, authentication } = this.#options;
    const { reader } = attempt;
    await this.#readProxyHeader(attempt);
    const startup = await this.#readStartup(attempt);
    if (startup === null) return;
    const toAdmin = startup.database === ADMIN_DATABASE && startup.replication === null;
    if (!toAdmin) {
      this.#options.admit();
      await takeTurn(reader, pass);
    }
    const { facts } = attempt;
    const onDelay = () => pass.leave();
    const who = await authenticateClient(reader, startup, facts, { ...authentication.services, onDelay });
    // What is still to come is up to the servers. Nobody who waits for them, in a PAUSE say, is in anybody's way, or late.
    pass.leave();
    reader.stopClock();
    if (startup.refused !== null) throw startup.refused;
    if (toAdmin) {
      await this.#options.admin.login(reader, attempt.socket, who, facts, peerOf(attempt.socket, facts));
      return;
    }
    // Others may have come in while this one was talking.
    this.#options.admit();
    const database = this.#options.database();
    // A physical one belongs to no database, whatever it names.
    if (who.database !== database && startup.replication !== 'physical')
      throw new ForeshardError('3D000', `database "${who.database}" does not exist`, {
        hint: `This proxy serves the database "${database}".`,
      });
    if (who.secret !== null) authentication.secrets.learned(who.user, who.secret);
    if (startup.replication !== null) {
      const peer = peerOf(attempt.socket, facts);
      await this.#options.replication.serve(reader, who, startup.replication, peer);
      return;
    }
    const { socket } = attempt;
    const key = clients.newKey(who.protocol);
    const session = new Session({
      id: key.processId,
      user: who.user,
      socket,
      startupSettings: who.parameters,
      services: this.#options.services(who.user),
      onEnd: this.#options.ended,
    });
    const peer = peerOf(socket, facts);
    const client: Client = { session, key, protocol: who.protocol, database, facts, peer, connectedAt: Date.now() };
    clients.add(client);
    const gone = () => session.close();
    socket.once('close', gone);
    try {
      await session.greet();
      await reader.release();
    } catch (error) {
      this.#options.ended(session);
      session.lease.releaseIfIdle();
      throw error;
    }
    session.write(encodeBackendKeyData(key.processId, key.secret));
    session.write(encodeReadyForQuery('I'));
    reader.detach();
    session.start(attempt.incoming);
    socket.off('close', gone);
  }

  async #readProxyHeader(attempt: Attempt): Promise<void> {
    const { mode } = this.#options.proxyProtocol;
    if (mode === 'off' || attempt.kind === 'unix') return;
    const trusted = attempt.address !== null && this.#isTrusted(attempt.address);
    attempt.address = (await readProxyHeader(attempt.reader, { mode, trusted })) ?? attempt.address;
  }

  /** null: it was a cancel request, and is done with. */
  async #readStartup(attempt: Attempt): Promise<SessionStartup | null> {
    const { tls, cancel } = this.#options;
    const { reader, kind } = attempt;
    const startTls =
      tls === null || kind === 'unix'
        ? null
        : async (_socket: unknown, direct: boolean) => {
            const secured = await tls.accept(attempt.socket, direct);
            attempt.secured(secured.socket, secured.facts);
            return secured.socket;
          };
    const startup = await readStartup(reader, startTls);
    if (startup.kind === 'cancel') {
      // No answer either way, so that a guess learns nothing.
      cancel(startup);
      const { socket } = attempt;
      await reader.release();
      socket.on('error', () => socket.destroy());
      socket.setTimeout(LAST_WORDS_MS, () => socket.destroy());
      socket.end();
      return null;
    }
    if (tls?.required && kind === 'tcp' && attempt.facts.tls === null)
      throw new ForeshardError(
        '28000',
        `no pg_hba.conf entry for host "${attempt.address}", user "${startup.user}", database "${startup.database}", no encryption`,
        { hint: 'This proxy asks for TLS (proxy.tls.mode require): connect with sslmode=require or better.' },
      );
    return startup;
  }
}

/** One connection on its way in, and what is known of it so far. */
class Attempt {
  readonly kind: 'tcp' | 'unix';
  readonly reader: HandshakeReader;
  /** The client's, once a PROXY header has named it. */
  address: string | null;
  /** What the session will speak through. */
  #socket: Socket;
  #tls: TlsFacts | null = null;
  #incoming: Incoming | null;

  constructor({ socket, incoming }: ClientSocket, kind: Accepted['kind'], reader: HandshakeReader) {
    this.kind = kind;
    this.reader = reader;
    this.#socket = socket;
    this.#incoming = incoming;
    this.address = kind === 'unix' ? null : (socket.remoteAddress?.replace(/^::ffff:(?=\d+\.)/, '') ?? null);
  }

  get socket(): Socket {
    return this.#socket;
  }

  /** See ClientSocket. */
  get incoming(): Incoming | null {
    return this.#incoming;
  }

  get facts(): ConnectionFacts {
    return { kind: this.kind, address: this.address, tls: this.#tls };
  }

  secured(socket: Socket, facts: TlsFacts): void {
    this.#socket = socket;
    // What TLS decrypts is allocated for each record.
    this.#incoming = null;
    this.#tls = facts;
  }
}

/** Waits until one that was let in ahead of its turn has it. @throws ForeshardError 53300 when it does not come */
async function takeTurn(reader: HandshakeReader, pass: StartupPass): Promise<void> {
  if (pass.turn === null) return;
  reader.stopClock();
  if (!(await pass.turn)) throw tooManyStartups();
  reader.startClock();
}

function tooManyStartups(): ForeshardError {
  return tooManyClients(
    'Too many connections are starting up at the same time: proxy.limits.maxStartups, startupsPerSecond.',
  );
}

/** In PostgreSQL's words. */
export function tooManyClients(hint: string): ForeshardError {
  return new ForeshardError('53300', 'sorry, too many clients already', { hint });
}

/** The last thing that a client hears. */
function tell(socket: Socket, error: unknown): void {
  socket.on('error', () => socket.destroy());
  socket.setTimeout(LAST_WORDS_MS, () => socket.destroy());
  const fields = fieldsOfError(error, 'FATAL');
  const isOld = error instanceof UnsupportedProtocolError && error.major < 3;
  socket.end(isOld ? encodeErrorOfProtocol2(fields) : encodeErrorResponse(fields));
}

function peerOf(socket: Socket, facts: ConnectionFacts): Peer {
  const { remotePort = 0, localAddress = '', localPort = 0 } = socket;
  return { address: facts.address ?? 'unix', port: remotePort, localAddress, localPort, tls: tlsInfo(socket) };
}
