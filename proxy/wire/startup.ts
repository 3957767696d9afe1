import type { Duplex } from 'node:stream';
import { ForeshardError } from '../../topology/errors.js';
import { encodeNegotiateProtocolVersion } from './backend.js';
import { CANCEL_REQUEST_CODE, GSSENC_REQUEST_CODE, PROTOCOL_3_2, SSL_REQUEST_CODE } from './frontend.js';
import type { HandshakeReader } from './handshake-reader.js';
import { MessageReader } from './message-reader.js';
import { ProtocolError, UnansweredError } from './protocol-error.js';
import { checkClientEncoding, parseOptions } from './startup-options.js';

/** MAX_STARTUP_PACKET_LENGTH in PostgreSQL's pqcomm.h; the length word itself is not counted. */
const MAX_STARTUP_PACKET_BYTES = 10_000;

/** NAMEDATALEN less the final zero byte: longer names of users and databases are cut. */
const MAX_NAME_BYTES = 63;

/** Longest cancel key of protocol 3.2. */
const MAX_CANCEL_SECRET_BYTES = 256;

/** A client that wants a session. */
export interface SessionStartup {
  readonly kind: 'session';
  /** Agreed version: major in the high 16 bits, at most 3.2. */
  readonly protocol: number;
  readonly user: string;
  readonly database: string;
  /** A replication connection: `physical` belongs to no database, whatever it names; null: an ordinary session. */
  readonly replication: 'physical' | 'logical' | null;
  /**
   * Settings asked for: those of `options` (-c name=value) first, then start-up parameters, which win. Names as given, for
   * the later of two equal ones wins; names are not validated, that is the server's part.
   */
  readonly parameters: ReadonlyMap<string, string>;
  /** What is wrong with the settings. As from PostgreSQL, only those learn of it who have been let in. */
  readonly refused: ForeshardError | null;
}

/** A connection that only carries a cancel request: close it without an answer once it is passed on. */
export interface CancelStartup {
  readonly kind: 'cancel';
  readonly processId: number;
  /** 1 to 256 bytes. */
  readonly secret: Buffer;
}

export type Startup = SessionStartup | CancelStartup;

/** A client of a protocol that is not spoken here. */
export class UnsupportedProtocolError extends ForeshardError {
  /** Before 3, errors had another form. */
  readonly major: number;

  constructor(major: number, message: string, options: { readonly hint: string }) {
    super('0A000', message, options);
    this.major = major;
  }
}

/** Takes a connection to TLS. `direct`: the client began with a handshake, without asking first. */
export type StartTls = (socket: Duplex, direct: boolean) => Promise<Duplex>;

/**
 * The server side of start-up on an accepted connection, up to and without authentication. `startTls` null: there is no TLS
 * here, or not on this kind of socket. `reader` reads from the encrypted stream afterwards.
 *
 * Throws what the client is to be told (as FATAL). A ConnectionLostError or an UnansweredError means that nobody who speaks
 * this protocol is listening: close without an answer, as PostgreSQL does.
 */
export async function readStartup(reader: HandshakeReader, startTls: StartTls | null = null): Promise<Startup> {
  let sslAnswered = false;
  let gssAnswered = false;
  let secured = false;
  const first = await reader.read(1);
  if (first[0] === TLS_HANDSHAKE) {
    if (startTls === null) throw new UnansweredError('direct TLS connection where there is no TLS');
    reader.unread(first);
    await reader.secure((socket) => startTls(socket, true));
    secured = true;
  }
  for (let packet = await readPacket(reader, secured ? null : first); ; packet = await readPacket(reader, null)) {
    const code = packet.readInt32BE(0);
    if (code === CANCEL_REQUEST_CODE) return parseCancel(packet);
    // Either order, each at most once: a second one falls through to "unsupported frontend protocol 1234.…", as in PostgreSQL.
    if (code === SSL_REQUEST_CODE && !sslAnswered) {
      sslAnswered = true;
      if (startTls !== null && !secured) {
        reader.socket.write('S');
        // Bytes that came behind the request go into the handshake. Were they meant as something else, perhaps by someone in
        // the middle, they end it: they are never read as if they had come through TLS.
        await reader.secure((socket) => startTls(socket, false));
        secured = true;
        gssAnswered = true;
      } else {
        reader.socket.write('N');
        refuseEarly(reader, 'SSL request');
      }
    } else if (code === GSSENC_REQUEST_CODE && !gssAnswered) {
      gssAnswered = true;
      reader.socket.write('N');
      refuseEarly(reader, 'GSSAPI encryption request');
    } else return parseStartup(reader, packet, code);
  }
}

/** First byte of a TLS record with a handshake: no start-up packet is that long. */
const TLS_HANDSHAKE = 0x16;

/** Whoever sends on without waiting for our answer is refused even if that is no, as by PostgreSQL. */
function refuseEarly(reader: HandshakeReader, behind: string): void {
  if (reader.buffered === 0) return;
  throw new ProtocolError(`received unencrypted data after ${behind}`, {
    detail: 'This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.',
  });
}

async function readPacket(reader: HandshakeReader, first: Buffer | null): Promise<Buffer> {
  const word = first === null ? await reader.read(4) : Buffer.concat([first, await reader.read(3)]);
  const length = word.readInt32BE(0) - 4;
  if (length < 4 || length > MAX_STARTUP_PACKET_BYTES) throw new UnansweredError('invalid length of startup packet');
  return reader.read(length);
}

function parseCancel(packet: Buffer): CancelStartup {
  if (packet.length < 8) throw new UnansweredError('invalid length of cancel request packet');
  const secret = packet.subarray(8);
  if (secret.length === 0 || secret.length > MAX_CANCEL_SECRET_BYTES)
    throw new UnansweredError('invalid length of cancel key in cancel request packet');
  return { kind: 'cancel', processId: packet.readInt32BE(4), secret };
}

function parseStartup(reader: HandshakeReader, packet: Buffer, version: number): SessionStartup {
  const major = version >>> 16;
  const minor = version & 0xffff;
  if (major !== 3)
    throw new UnsupportedProtocolError(
      major,
      `unsupported frontend protocol ${major}.${minor}: server supports 3.0 to 3.2`,
      {
        hint: 'Use a client that speaks protocol 3.0 or later, as every client since PostgreSQL 7.4 does.',
      },
    );
  const body = new MessageReader(packet, 4);
  let user = '';
  let database = '';
  let commandLine = '';
  const settings: [string, string][] = [];
  const unrecognized: string[] = [];
  let replication: SessionStartup['replication'] = null;
  for (;;) {
    if (body.remaining === 0) throw missingTerminator();
    const rawName = cstring(body, 'name');
    if (rawName === '') break;
    const name = Buffer.from(rawName, 'latin1').toString();
    const value = cstring(body, 'text');
    if (name === 'user') user = value;
    else if (name === 'database') database = value;
    else if (name === 'options') commandLine = value;
    else if (name === 'replication') replication = parseReplication(value);
    else if (name.startsWith('_pq_.')) unrecognized.push(rawName);
    else settings.push([name, value]);
  }
  if (body.remaining > 0) throw missingTerminator();
  if (minor > 2 || unrecognized.length > 0)
    reader.socket.write(encodeNegotiateProtocolVersion(Math.min(version, PROTOCOL_3_2), unrecognized));
  if (user === '')
    throw new ForeshardError('28000', 'no PostgreSQL user name specified in startup packet', {
      hint: 'Name the user in the connection string.',
    });
  let parameters: ReadonlyMap<string, string> = new Map();
  let refused: ForeshardError | null = null;
  try {
    parameters = new Map([...parseOptions(commandLine), ...settings]);
    for (const [name, value] of parameters) if (name.toLowerCase() === 'client_encoding') checkClientEncoding(value);
  } catch (error) {
    if (!(error instanceof ForeshardError)) throw error;
    refused = error;
  }
  return {
    kind: 'session',
    protocol: Math.min(version, PROTOCOL_3_2),
    user: cutName(user),
    database: cutName(database === '' ? user : database),
    replication,
    parameters,
    refused,
  };
}

function cstring(body: MessageReader, as: 'name' | 'text'): string {
  try {
    return body[as]();
  } catch (error) {
    if (error instanceof ProtocolError) throw missingTerminator();
    throw error;
  }
}

const missingTerminator = (): ProtocolError =>
  new ProtocolError('invalid startup packet layout: expected terminator as last byte');

/** At a byte, as PostgreSQL does here: half a character at the end is nobody's name. */
function cutName(name: string): string {
  const bytes = Buffer.from(name);
  return bytes.length <= MAX_NAME_BYTES ? name : bytes.subarray(0, MAX_NAME_BYTES).toString();
}

/** What parse_bool in PostgreSQL's bool.c takes for true and for false. */
const TRUE = /^(?:t|tr|tru|true|y|ye|yes|on|1)$/i;
const FALSE = /^(?:f|fa|fal|fals|false|n|no|of|off|0)$/i;

function parseReplication(value: string): SessionStartup['replication'] {
  if (value === 'database') return 'logical';
  if (TRUE.test(value)) return 'physical';
  if (FALSE.test(value)) return null;
  throw new ForeshardError('22023', `invalid value for parameter "replication": "${value}"`, {
    hint: 'Valid values are: "false", 0, "true", 1, "database".',
  });
}
