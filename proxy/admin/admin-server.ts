import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { ForeshardError } from '../../topology/errors.js';
import type { AuthenticatedClient } from '../auth/authenticate.js';
import type { ConnectionFacts } from '../auth/peer.js';
import { type CancelKey, type Clients, type Peer, sameSecret } from '../clients.js';
import { encodeBackendKeyData, encodeParameterStatus, encodeReadyForQuery } from '../wire/backend.js';
import type { HandshakeReader } from '../wire/handshake-reader.js';
import type { AdminConsole } from './console.js';
import { AdminSession } from './session.js';
import { VERSION } from './views.js';

/** Connections at one time: clients' places are not theirs to take, and the other way round. */
const MAX_SESSIONS = 100;

/** Who may log in to the admin database. Everybody else is refused, whatever their password. */
export interface AdminUsers {
  /** May do everything. */
  readonly users?: readonly string[] | undefined;
  /** May only SHOW. */
  readonly statsUsers?: readonly string[] | undefined;
}

export interface AdminServerOptions {
  readonly clients: Clients;
  readonly users: () => AdminUsers;
  readonly logger: Logger;
}

/** What a client is told after its login, as PgBouncer's console tells it. */
const PARAMETERS: readonly (readonly [string, string])[] = [
  ['server_version', `${VERSION}/foreshard`],
  ['server_encoding', 'UTF8'],
  ['client_encoding', 'UTF8'],
  ['DateStyle', 'ISO'],
  ['TimeZone', 'GMT'],
  ['integer_datetimes', 'on'],
  ['standard_conforming_strings', 'on'],
  ['is_superuser', 'on'],
];

/** The connections to the admin database of one process. */
export class AdminServer {
  readonly sessions = new Set<AdminSession>();
  readonly #options: AdminServerOptions;
  #console: AdminConsole | null = null;

  constructor(options: AdminServerOptions) {
    this.#options = options;
  }

  /** To be called before the first login. */
  serve(console: AdminConsole): void {
    this.#console = console;
  }

  /**
   * Takes a client that has proven who it is from the login to a session.
   * @throws ForeshardError when it may not come in
   */
  async login(
    reader: HandshakeReader,
    socket: Socket,
    who: AuthenticatedClient,
    facts: ConnectionFacts,
    peer: Peer,
  ): Promise<void> {
    const { clients, logger } = this.#options;
    const console = this.#console;
    const commands = this.#mayCommand(who, facts);
    if (console === null || this.sessions.size >= MAX_SESSIONS)
      throw new ForeshardError('53300', `more than ${MAX_SESSIONS} connections to the admin database`);
    const key = clients.newKey(who.protocol);
    const administrator = { user: who.user, address: facts.address ?? 'unix', commands };
    const session = new AdminSession({
      key,
      protocol: who.protocol,
      peer,
      applicationName: who.parameters.get('application_name') ?? '',
      administrator,
      console,
      socket,
      logger,
      onEnd: () => {
        this.sessions.delete(session);
        clients.forgo(key.processId);
      },
    });
    clients.reserve(key.processId);
    this.sessions.add(session);
    try {
      await reader.release();
    } catch (error) {
      session.close();
      throw error;
    }
    for (const [name, value] of PARAMETERS) session.write(encodeParameterStatus(name, value));
    session.write(encodeParameterStatus('session_authorization', who.user));
    session.write(encodeParameterStatus('application_name', session.applicationName));
    session.write(encodeBackendKeyData(key.processId, key.secret));
    session.write(encodeReadyForQuery('I'));
    session.start();
    logger.info({ user: who.user, from: administrator.address, commands }, 'login to the admin database');
  }

  /** Whether the cancel request was for one of these sessions. */
  cancel(key: CancelKey): boolean {
    for (const session of this.sessions) {
      if (session.key.processId !== key.processId) continue;
      if (sameSecret(session.key, key)) session.cancel();
      return true;
    }
    return false;
  }

  close(): void {
    for (const session of [...this.sessions])
      session.close(new ForeshardError('57P01', 'terminating connection because the proxy is shutting down'));
  }

  /** @returns false for users who may only look. @throws ForeshardError for all others */
  #mayCommand({ user, proven }: AuthenticatedClient, facts: ConnectionFacts): boolean {
    const { users = [], statsUsers = [] } = this.#options.users();
    const commands = users.includes(user);
    if (!commands && !statsUsers.includes(user))
      throw new ForeshardError('28000', `user "${user}" is not allowed to use the admin database`, {
        hint: 'Name the user under proxy.admin.users, or under proxy.admin.statsUsers for SHOW alone.',
      });
    if (!proven && !isLocal(facts))
      throw new ForeshardError('28000', 'the admin database trusts nobody from another machine', {
        hint: 'Have administrators prove who they are: another method than "trust" for them.',
      });
    return commands;
  }
}

function isLocal({ kind, address }: ConnectionFacts): boolean {
  return kind === 'unix' || (address !== null && (address === '::1' || address.startsWith('127.')));
}
