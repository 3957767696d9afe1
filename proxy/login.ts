import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { ForeshardError } from '../topology/errors.js';
import { authenticateClient } from './auth/authenticate.js';
import type { Authentication } from './auth/authentication.js';
import { plainFacts } from './auth/peer.js';
import { LoginRefusedError } from './auth/refusal.js';
import type { CancelKey, Client, Clients } from './clients.js';
import type { SessionServices } from './session/client-session.js';
import { Session } from './session/session.js';
import { encodeBackendKeyData, encodeReadyForQuery } from './wire/backend.js';
import { encodeErrorResponse, fieldsOfError } from './wire/error-response.js';
import { ConnectionLostError, HandshakeReader } from './wire/handshake-reader.js';
import { ProtocolError } from './wire/protocol-error.js';
import { readStartup } from './wire/startup.js';

export interface LoginOptions {
  readonly clients: Clients;
  readonly authentication: Authentication;
  readonly loginTimeoutMs: number;
  readonly logger: Logger;
  /** Whether one more client may come in. @throws ForeshardError when not */
  readonly admit: () => void;
  /** The database that clients may name. */
  readonly database: () => string;
  readonly services: (user: string) => SessionServices;
  readonly cancel: (key: CancelKey) => void;
}

/** Takes an accepted socket through start-up and authentication to a session. */
export class Login {
  #options: LoginOptions;

  constructor(options: LoginOptions) {
    this.#options = options;
  }

  /** For those who come from now on. */
  reload(options: Pick<LoginOptions, 'loginTimeoutMs'>): void {
    this.#options = { ...this.#options, ...options };
  }

  /** Never rejects: whatever is wrong is told to the client, and logged. */
  accept(socket: Socket): void {
    const { loginTimeoutMs, logger } = this.#options;
    const reader = new HandshakeReader(
      socket,
      loginTimeoutMs,
      () => new ForeshardError('57014', `canceling authentication due to timeout after ${loginTimeoutMs} ms`),
    );
    this.#login(socket, reader).catch(async (error: unknown) => {
      socket.on('error', () => socket.destroy());
      await reader.release().catch(() => undefined); // says once more that the peer has gone or was too slow
      if (error instanceof ConnectionLostError || error instanceof ProtocolError) socket.destroy();
      else {
        // Authentication logs its own refusals.
        if (!(error instanceof LoginRefusedError))
          logger.info({ err: error, from: socket.remoteAddress }, 'login refused');
        socket.setTimeout(1000, () => socket.destroy());
        socket.end(encodeErrorResponse(fieldsOfError(error, 'FATAL')));
      }
    });
  }

  async #login(socket: Socket, reader: HandshakeReader): Promise<void> {
    const { clients, authentication } = this.#options;
    const startup = await readStartup(reader);
    if (startup.kind === 'cancel') {
      // No answer either way, so that a guess learns nothing.
      this.#options.cancel(startup);
      await reader.release();
      socket.on('error', () => socket.destroy());
      socket.end();
      return;
    }
    this.#options.admit();
    const who = await authenticateClient(reader, startup, plainFacts(socket), authentication.services);
    const database = this.#options.database();
    if (who.database !== database)
      throw new ForeshardError('3D000', `database "${who.database}" does not exist`, {
        hint: `This proxy serves the database "${database}".`,
      });
    if (who.secret !== null) authentication.secrets.learned(who.user, who.secret);
    const key = clients.newKey(who.protocol);
    const session = new Session({
      id: key.processId,
      user: who.user,
      socket,
      startupSettings: who.parameters,
      services: this.#options.services(who.user),
      onEnd: () => clients.delete(key.processId),
    });
    const client: Client = { session, key, protocol: who.protocol, database, connectedAt: Date.now() };
    clients.add(client);
    const gone = () => session.close();
    socket.once('close', gone);
    try {
      await session.greet();
      await reader.release();
    } catch (error) {
      clients.delete(key.processId);
      session.lease.releaseIfIdle();
      throw error;
    }
    session.write(encodeBackendKeyData(key.processId, key.secret));
    session.write(encodeReadyForQuery('I'));
    session.start();
    socket.off('close', gone);
  }
}
