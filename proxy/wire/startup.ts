import { ForeshardError } from '../../topology/errors.js';
import { encodeNegotiateProtocolVersion } from './backend.js';
import { CANCEL_REQUEST_CODE, GSSENC_REQUEST_CODE, PROTOCOL_3_2, SSL_REQUEST_CODE } from './frontend.js';
import type { HandshakeReader } from './handshake-reader.js';
import { MessageReader } from './message-reader.js';
import { ProtocolError } from './protocol-error.js';
import { checkClientEncoding, parseOptions } from './startup-options.js';

/** MAX_STARTUP_PACKET_LENGTH in PostgreSQL's pqcomm.h; the length word itself is not counted. */
const MAX_STARTUP_PACKET_BYTES = 10_000;

/** Longest cancel key of protocol 3.2. */
const MAX_CANCEL_SECRET_BYTES = 256;

/** A client that wants a session. */
export interface SessionStartup {
  readonly kind: 'session';
  /** Agreed version: major in the high 16 bits, at most 3.2. */
  readonly protocol: number;
  readonly user: string;
  readonly database: string;
  /**
   * Settings asked for: those of `options` (-c name=value) first, then start-up parameters, which win. Names as given, for
   * the later of two equal ones wins; names are not validated, that is the server's part.
   */
  readonly parameters: ReadonlyMap<string, string>;
}

/** A connection that only carries a cancel request: close it without an answer once it is passed on. */
export interface CancelStartup {
  readonly kind: 'cancel';
  readonly processId: number;
  /** 4 to 256 bytes. */
  readonly secret: Buffer;
}

export type Startup = SessionStartup | CancelStartup;

/**
 * The server side of start-up on an accepted connection, up to and without authentication.
 *
 * Throws what the client is to be told (as FATAL). A ConnectionLostError or a ProtocolError about a packet's length means
 * that nobody who speaks this protocol is listening: close without an answer, as PostgreSQL does.
 */
export async function readStartup(reader: HandshakeReader): Promise<Startup> {
  let sslAnswered = false;
  let gssAnswered = false;
  for (;;) {
    const packet = await readPacket(reader);
    const code = packet.readInt32BE(0);
    if (code === CANCEL_REQUEST_CODE) return parseCancel(packet);
    // Either order, each at most once: a second one falls through to "unsupported frontend protocol 1234.…", as in PostgreSQL.
    if (code === SSL_REQUEST_CODE && !sslAnswered) {
      sslAnswered = true;
      // TLS will come in here: answer 'S' and go on with a TLSSocket around the socket. Before that, bytes already behind
      // the request (reader.buffered > 0) must end the connection: they came in the clear, perhaps from someone in the
      // middle, and must not be read as if they had come through TLS. Behind our 'N' the clear is what was agreed on.
      reader.socket.write('N');
      continue;
    }
    if (code === GSSENC_REQUEST_CODE && !gssAnswered) {
      gssAnswered = true;
      reader.socket.write('N');
      continue;
    }
    return parseStartup(reader, packet, code);
  }
}

async function readPacket(reader: HandshakeReader): Promise<Buffer> {
  const length = (await reader.read(4)).readInt32BE(0) - 4;
  if (length < 4 || length > MAX_STARTUP_PACKET_BYTES) throw new ProtocolError('invalid length of startup packet');
  return reader.read(length);
}

function parseCancel(packet: Buffer): CancelStartup {
  if (packet.length < 8) throw new ProtocolError('invalid length of query cancel packet');
  const secret = packet.subarray(8);
  if (secret.length < 4 || secret.length > MAX_CANCEL_SECRET_BYTES)
    throw new ProtocolError('invalid length of cancel key in query cancel packet');
  return { kind: 'cancel', processId: packet.readInt32BE(4), secret };
}

function parseStartup(reader: HandshakeReader, packet: Buffer, version: number): SessionStartup {
  const major = version >>> 16;
  const minor = version & 0xffff;
  if (major !== 3)
    throw new ForeshardError('0A000', `unsupported frontend protocol ${major}.${minor}: server supports 3.0 to 3.2`, {
      hint: 'Use a client that speaks protocol 3.0 or later, as every client since PostgreSQL 7.4 does.',
    });
  const body = new MessageReader(packet, 4);
  let user = '';
  let database = '';
  const options: [string, string][] = [];
  const settings: [string, string][] = [];
  const unrecognized: string[] = [];
  for (;;) {
    if (body.remaining === 0) throw missingTerminator();
    const name = cstring(body);
    if (name === '') break;
    const value = cstring(body);
    if (name === 'user') user = value;
    else if (name === 'database') database = value;
    else if (name === 'options') options.push(...parseOptions(value));
    else if (name === 'replication') checkReplication(value);
    else if (name.startsWith('_pq_.')) unrecognized.push(name);
    else settings.push([name, value]);
  }
  if (body.remaining > 0) throw missingTerminator();
  if (minor > 2 || unrecognized.length > 0)
    reader.socket.write(encodeNegotiateProtocolVersion(Math.min(version, PROTOCOL_3_2), unrecognized));
  if (user === '')
    throw new ForeshardError('28000', 'no PostgreSQL user name specified in startup packet', {
      hint: 'Name the user in the connection string.',
    });
  const parameters = new Map([...options, ...settings]);
  for (const [name, value] of parameters) if (name.toLowerCase() === 'client_encoding') checkClientEncoding(value);
  return {
    kind: 'session',
    protocol: Math.min(version, PROTOCOL_3_2),
    user,
    database: database === '' ? user : database,
    parameters,
  };
}

function cstring(body: MessageReader): string {
  try {
    return body.text();
  } catch (error) {
    if (error instanceof ProtocolError) throw missingTerminator();
    throw error;
  }
}

const missingTerminator = (): ProtocolError =>
  new ProtocolError('invalid startup packet layout: expected terminator as last byte');

/** Values of a boolean that mean false, and their unique prefixes (parse_bool). */
const FALSE = new Set(['f', 'fa', 'fal', 'fals', 'false', 'n', 'no', 'of', 'off', '0']);

function checkReplication(value: string): void {
  if (FALSE.has(value.toLowerCase())) return;
  throw new ForeshardError('0A000', 'replication connections are not supported through the proxy', {
    hint: 'Connect the replication client to each shard directly.',
  });
}
