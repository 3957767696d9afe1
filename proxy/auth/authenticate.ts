import { ForeshardError } from '../../topology/errors.js';
import {
  AUTHENTICATION_OK,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
} from '../wire/backend.js';
import type { HandshakeReader } from '../wire/handshake-reader.js';
import { MessageReader } from '../wire/message-reader.js';
import { FRONTEND } from '../wire/message-types.js';
import { ProtocolError } from '../wire/protocol-error.js';
import { parseVerifier, type ScramKeys, ScramServer } from '../wire/scram.js';
import type { SessionStartup } from '../wire/startup.js';
import type { ConnectionFacts } from './peer.js';

export type AuthMethod = 'scram-sha-256' | 'trust';

/** Where the verifiers of clients' passwords come from. */
export interface CredentialSource {
  /** As in pg_authid.rolpassword; null when there is no such user or it has no password. */
  verifierFor(user: string): Promise<{ readonly verifier: string } | null>;
}

export interface AuthenticationOptions {
  readonly method: AuthMethod;
  readonly credentials: CredentialSource;
  /** Secret of this installation, the same in all of its processes: salts shown for unknown users are made from it. */
  readonly mockSecret: Buffer;
}

export interface AuthenticatedClient {
  readonly user: string;
  readonly database: string;
  readonly parameters: ReadonlyMap<string, string>;
  /** Agreed version, see SessionStartup. */
  readonly protocol: number;
  /** What a server that holds the same verifier accepts in the place of the password; null with `trust`. */
  readonly keys: ScramKeys | null;
}

const MECHANISM = 'SCRAM-SHA-256';
/** PG_MAX_SASL_MESSAGE_LENGTH in PostgreSQL's sasl.h; the length word counts. */
const MAX_SASL_MESSAGE_BYTES = 1024;

/**
 * Authenticates a client and ends with AuthenticationOk. What follows (ParameterStatus, BackendKeyData, ReadyForQuery) is
 * the caller's. Throws what the client is to be told, as FATAL.
 */
export async function authenticateClient(
  reader: HandshakeReader,
  startup: SessionStartup,
  _facts: ConnectionFacts,
  options: AuthenticationOptions,
): Promise<AuthenticatedClient> {
  const { user, database, parameters, protocol } = startup;
  if (options.method === 'trust') {
    reader.socket.write(AUTHENTICATION_OK);
    return { user, database, parameters, protocol, keys: null };
  }
  const credential = await options.credentials.verifierFor(user);
  // Any other kind of verifier is as good as none: the exchange runs to its end and fails, and does not tell which.
  const verifier = credential === null ? null : parseVerifier(credential.verifier);
  const server = new ScramServer(user, verifier, options.mockSecret);

  reader.socket.write(encodeAuthenticationSasl([MECHANISM]));
  const initial = await readPasswordMessage(reader);
  const mechanism = initial.text();
  if (mechanism !== MECHANISM) throw new ProtocolError('client selected an invalid SASL authentication mechanism');
  const length = initial.int32();
  // −1: the client waits to be asked first.
  let clientFirst: Buffer;
  if (length === -1) {
    initial.end();
    reader.socket.write(encodeAuthenticationSaslContinue(Buffer.alloc(0)));
    clientFirst = (await readPasswordMessage(reader)).rest();
  } else {
    clientFirst = initial.bytes(length);
    initial.end();
  }
  reader.socket.write(encodeAuthenticationSaslContinue(server.first(clientFirst)));
  const outcome = server.final((await readPasswordMessage(reader)).rest());
  if (outcome === null) throw new ForeshardError('28P01', `password authentication failed for user "${user}"`);
  reader.socket.write(Buffer.concat([encodeAuthenticationSaslFinal(outcome.message), AUTHENTICATION_OK]));
  return { user, database, parameters, protocol, keys: outcome.keys };
}

async function readPasswordMessage(reader: HandshakeReader): Promise<MessageReader> {
  const message = await reader.readMessage(MAX_SASL_MESSAGE_BYTES);
  const type = message[0];
  if (type !== FRONTEND.Password) throw new ProtocolError(`expected SASL response, got message type ${type}`);
  return new MessageReader(message);
}
