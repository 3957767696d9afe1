import { ForeshardError } from '../../topology/errors.js';
import { decodeAuthentication, decodeBackendKeyData, decodeParameterStatus } from '../wire/backend.js';
import { decodeErrorFields, ServerError } from '../wire/error-response.js';
import {
  encodePassword,
  encodeQuery,
  encodeSaslInitialResponse,
  encodeSaslResponse,
  encodeStartup,
} from '../wire/frontend.js';
import type { HandshakeReader } from '../wire/handshake-reader.js';
import { type LoginSecret, md5Answer, md5Hash } from '../wire/login-secret.js';
import { MessageReader } from '../wire/message-reader.js';
import { BACKEND } from '../wire/message-types.js';
import { ProtocolError } from '../wire/protocol-error.js';
import { ScramClient } from '../wire/scram.js';

export interface ServerLogin {
  readonly user: string;
  readonly database: string;
  /** null: the server is expected to ask for nothing. */
  readonly auth: LoginSecret | null;
  /** Start-up parameters besides user and database. */
  readonly parameters: Readonly<Record<string, string>>;
  /** null: in the clear. Otherwise what binds the login to this connection, where that is defined. */
  readonly tls?: { readonly endPoint: Buffer | null } | null;
  /** Nobody else can listen in on this connection (TLS, Unix socket, loopback): a password may go over it in the clear. */
  isPrivate(): boolean;
}

export interface ServerSession {
  /** The server's reported settings (server_version, client_encoding, TimeZone …). */
  readonly parameters: Map<string, string>;
  readonly processId: number;
  readonly secret: Buffer;
  /** PostgreSQL 18 and later tell of every change of search_path. From others it was asked for, once. */
  readonly reportsSearchPath: boolean;
}

/** Large enough for every message of a start-up, small enough for whoever is not PostgreSQL. */
const MAX_HANDSHAKE_MESSAGE_BYTES = 64 * 1024;

/**
 * The client side of start-up and authentication, until the server is ready for a query. Protocol 3.0.
 * Throws ServerError for what the server refuses.
 */
export async function serverHandshake(reader: HandshakeReader, login: ServerLogin): Promise<ServerSession> {
  reader.socket.write(encodeStartup({ user: login.user, database: login.database, ...login.parameters }));
  const parameters = new Map<string, string>();
  const authentication = new Authentication(reader, login);
  let processId = 0;
  let secret: Buffer = Buffer.alloc(0);
  for (;;) {
    const message = await reader.readMessage(MAX_HANDSHAKE_MESSAGE_BYTES);
    switch (message[0]) {
      case BACKEND.Authentication:
        await authentication.answer(message);
        break;
      case BACKEND.ParameterStatus: {
        const { name, value } = decodeParameterStatus(message);
        parameters.set(name, value);
        break;
      }
      case BACKEND.BackendKeyData:
        ({ processId, secret } = decodeBackendKeyData(message));
        break;
      case BACKEND.ErrorResponse:
        throw new ServerError(decodeErrorFields(message));
      case BACKEND.ReadyForQuery:
        if (!authentication.complete) throw new ProtocolError('the server is ready before it has authenticated us');
        return { parameters, processId, secret, reportsSearchPath: await ensureSearchPath(reader, parameters) };
      // A login trigger or a connection's settings may speak up; nobody is there yet to be told.
      case BACKEND.NoticeResponse:
      // We ask for 3.0 and nothing more, so nothing is left to negotiate.
      case BACKEND.NegotiateProtocolVersion:
        break;
      default:
        throw new ProtocolError(`unexpected message type ${message[0]} during start-up`);
    }
  }
}

/** Servers before 18 do not report it, and a role or database may give it a value. @returns whether it was reported */
async function ensureSearchPath(reader: HandshakeReader, parameters: Map<string, string>): Promise<boolean> {
  if (parameters.has('search_path')) return true;
  reader.socket.write(encodeQuery('SHOW search_path'));
  for (;;) {
    const message = await reader.readMessage(MAX_HANDSHAKE_MESSAGE_BYTES);
    if (message[0] === BACKEND.DataRow) parameters.set('search_path', firstColumn(message));
    else if (message[0] === BACKEND.ErrorResponse) throw new ServerError(decodeErrorFields(message));
    else if (message[0] === BACKEND.ReadyForQuery) return false;
  }
}

/** The first value of a DataRow that has one. */
function firstColumn(row: Buffer): string {
  const body = new MessageReader(row);
  body.int16();
  return body.bytes(body.int32()).toString('utf8');
}

/** Answers the server's authentication requests. */
class Authentication {
  complete = false;
  readonly #reader: HandshakeReader;
  readonly #login: ServerLogin;
  #scram: ScramClient | null = null;
  #verified = false;

  constructor(reader: HandshakeReader, login: ServerLogin) {
    this.#reader = reader;
    this.#login = login;
  }

  async answer(message: Buffer): Promise<void> {
    const { kind, data } = decodeAuthentication(message);
    const { socket } = this.#reader;
    switch (kind) {
      case 0: // Ok
        // A server that breaks off the exchange with Ok has not proven that it knows the password.
        if (this.#scram !== null && !this.#verified) throw new ProtocolError('SCRAM exchange ended too early');
        this.complete = true;
        break;
      case 3: // CleartextPassword
        if (!this.#login.isPrivate())
          throw new ForeshardError('28000', 'the server asks for the password in clear text over a network', {
            hint: 'Use scram-sha-256 for this user in pg_hba.conf.',
          });
        socket.write(encodePassword(this.#password('a clear-text password')));
        break;
      case 5: // MD5Password
        socket.write(encodePassword(this.#md5(data)));
        break;
      case 10: // SASL
        socket.write(this.#startScram(data));
        break;
      case 11: // SASLContinue
        socket.write(encodeSaslResponse(await this.#exchange().final(data)));
        break;
      case 12: // SASLFinal
        this.#exchange().verify(data);
        this.#verified = true;
        break;
      default:
        throw new ForeshardError('28000', `the server asks for authentication method ${kind}, which is not supported`, {
          hint: 'Use scram-sha-256 for this user in pg_hba.conf.',
        });
    }
  }

  #startScram(data: Buffer): Buffer {
    const offered: string[] = [];
    const body = new MessageReader(data, 0);
    for (let name = body.text(); name !== ''; name = body.text()) offered.push(name);
    if (!offered.includes('SCRAM-SHA-256'))
      throw new ForeshardError('28000', `the server offers none but unknown SASL mechanisms: ${offered.join(', ')}`);
    const { auth } = this.#login;
    if (auth === null) throw this.#noPassword('a password');
    if ('md5' in auth) throw this.#notEnough('a SCRAM proof', 'an md5 hash');
    const endPoint = this.#login.tls?.endPoint ?? null;
    const isOffered = offered.includes('SCRAM-SHA-256-PLUS');
    this.#scram = new ScramClient(auth, undefined, endPoint !== null && !isOffered ? 'not offered' : endPoint);
    const mechanism = endPoint !== null && isOffered ? 'SCRAM-SHA-256-PLUS' : 'SCRAM-SHA-256';
    return encodeSaslInitialResponse(mechanism, this.#scram.first());
  }

  #exchange(): ScramClient {
    if (this.#scram === null) throw new ProtocolError('SASL message out of order');
    return this.#scram;
  }

  #password(asked: string): string {
    const { auth } = this.#login;
    if (auth === null) throw this.#noPassword(asked);
    if ('password' in auth) return auth.password;
    throw this.#notEnough(asked, 'md5' in auth ? 'an md5 hash' : 'SCRAM keys');
  }

  #md5(salt: Buffer): string {
    if (salt.length !== 4) throw new ProtocolError('invalid message format');
    const { auth, user } = this.#login;
    if (auth !== null && 'md5' in auth) return md5Answer(auth.md5, salt);
    return md5Answer(md5Hash(this.#password('an md5 password'), user), salt);
  }

  #notEnough(asked: string, have: string): ForeshardError {
    return new ForeshardError(
      '28000',
      `the server asks for ${asked}, and only ${have} ${have.endsWith('s') ? 'are' : 'is'} at hand`,
      {
        hint: `Let clients and servers use scram-sha-256 for user "${this.#login.user}", or give its password under proxy.serverPasswords.`,
      },
    );
  }

  #noPassword(asked: string): ForeshardError {
    return new ForeshardError(
      '28000',
      `the server asks for ${asked}, and none is configured for user "${this.#login.user}"`,
      {
        hint: 'Give the password under proxy.serverPasswords, or let clients log in with theirs (scram-sha-256).',
      },
    );
  }
}
