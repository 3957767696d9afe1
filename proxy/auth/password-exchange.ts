import { randomBytes } from 'node:crypto';
import { ForeshardError } from '../../topology/errors.js';
import {
  AUTHENTICATION_CLEARTEXT_PASSWORD,
  encodeAuthenticationMd5,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
} from '../wire/backend.js';
import type { HandshakeReader } from '../wire/handshake-reader.js';
import { MessageReader } from '../wire/message-reader.js';
import { FRONTEND } from '../wire/message-types.js';
import { ProtocolError, UnansweredError } from '../wire/protocol-error.js';
import { type ScramKeys, ScramServer, type ScramServerOptions, type ScramVerifier } from '../wire/scram.js';
import { exchangeRefused } from './refusal.js';

/** PG_MAX_SASL_MESSAGE_LENGTH and PG_MAX_AUTH_TOKEN_LENGTH of PostgreSQL; the length word counts. */
const MAX_SASL_MESSAGE_BYTES = 1024;
const MAX_PASSWORD_MESSAGE_BYTES = 65_535;

const PLAIN = 'SCRAM-SHA-256';
const PLUS = 'SCRAM-SHA-256-PLUS';

/** Asks for the password in the clear. */
export async function askPassword(reader: HandshakeReader): Promise<string> {
  reader.socket.write(AUTHENTICATION_CLEARTEXT_PASSWORD);
  return readPassword(reader);
}

/** Asks for an md5 answer; gives it with the salt that it must be made with. */
export async function askMd5(reader: HandshakeReader): Promise<{ readonly answer: string; readonly salt: Buffer }> {
  const salt = randomBytes(4);
  reader.socket.write(encodeAuthenticationMd5(salt));
  return { answer: await readPassword(reader), salt };
}

async function readPassword(reader: HandshakeReader): Promise<string> {
  const body = await readResponse(reader, MAX_PASSWORD_MESSAGE_BYTES, 'password').catch((error: unknown) => {
    throw isTooLong(error) ? new UnansweredError('invalid message length') : error;
  });
  try {
    const password = body.text();
    body.end();
    if (password === '') throw new ForeshardError('28P01', 'empty password returned by client');
    return password;
  } catch (error) {
    if (error instanceof ProtocolError) throw exchangeRefused(new ProtocolError('invalid password packet size'));
    throw error;
  }
}

const isTooLong = (error: unknown): boolean =>
  error instanceof ProtocolError && error.message === 'invalid message length';

export interface ScramExchange {
  readonly user: string;
  /** null: a mock exchange, which fails in the end. */
  readonly verifier: ScramVerifier | null;
  readonly mockSecret: Buffer;
  readonly mockIterations: number;
  /** tls-server-end-point when the connection is encrypted: SCRAM-SHA-256-PLUS is offered then. */
  readonly serverEndPoint: Buffer | null;
}

/** The outcome of a SCRAM exchange whose last word is not spoken yet; null: the proof is wrong. */
export type ScramOutcome = { readonly keys: ScramKeys; readonly final: Buffer } | null;

/** Runs SCRAM up to the client's proof. `final` is what to send when the client is let in. */
export async function askScram(reader: HandshakeReader, exchange: ScramExchange): Promise<ScramOutcome> {
  try {
    return await runScram(reader, exchange);
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    // A frame that is too long is a wrong answer to PostgreSQL.
    if (isTooLong(error)) return null;
    throw exchangeRefused(error);
  }
}

async function runScram(reader: HandshakeReader, exchange: ScramExchange): Promise<ScramOutcome> {
  const { serverEndPoint } = exchange;
  const tls = serverEndPoint !== null;
  const { socket } = reader;
  socket.write(encodeAuthenticationSasl(tls ? [PLUS, PLAIN] : [PLAIN]));
  const initial = await readResponse(reader, MAX_SASL_MESSAGE_BYTES, 'SASL');
  const mechanism = initial.text();
  if (mechanism !== PLAIN && !(mechanism === PLUS && tls))
    throw new ProtocolError('client selected an invalid SASL authentication mechanism');
  const options: ScramServerOptions = {
    mockIterations: exchange.mockIterations,
    tls,
    serverEndPoint: mechanism === PLUS ? serverEndPoint : null,
  };
  const server = new ScramServer(exchange.user, exchange.verifier, exchange.mockSecret, options);
  const length = initial.int32();
  // −1: the client waits to be asked first.
  let clientFirst: Buffer;
  if (length === -1) {
    initial.end();
    socket.write(encodeAuthenticationSaslContinue(Buffer.alloc(0)));
    clientFirst = (await readResponse(reader, MAX_SASL_MESSAGE_BYTES, 'SASL')).rest();
  } else {
    clientFirst = initial.bytes(length);
    initial.end();
  }
  socket.write(encodeAuthenticationSaslContinue(server.first(clientFirst)));
  const outcome = server.final((await readResponse(reader, MAX_SASL_MESSAGE_BYTES, 'SASL')).rest());
  return outcome === null ? null : { keys: outcome.keys, final: encodeAuthenticationSaslFinal(outcome.message) };
}

async function readResponse(reader: HandshakeReader, maxBytes: number, what: string): Promise<MessageReader> {
  const message = await reader.readMessage(maxBytes);
  const type = message[0];
  if (type !== FRONTEND.Password)
    throw exchangeRefused(new ProtocolError(`expected ${what} response, got message type ${type}`));
  return new MessageReader(message);
}
