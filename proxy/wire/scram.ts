import { createHash, createHmac, pbkdf2, randomBytes, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { ForeshardError } from '../../topology/errors.js';
import { ProtocolError } from './protocol-error.js';
import { saslPrep } from './saslprep.js';

/*
 * SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: the user name in the exchange is ignored (the start-up
 * packet's counts); the channel binding is tls-server-end-point (RFC 5929).
 */

/** What logs in to any server with the same verifier in the place of the password. Secret. */
export interface ScramKeys {
  readonly clientKey: Buffer;
  readonly serverKey: Buffer;
}

/** pg_authid.rolpassword: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`. */
export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

const KEY_BYTES = 32;
/** SCRAM_RAW_NONCE_LEN in PostgreSQL's scram-common.h. */
const NONCE_BYTES = 18;
/** SCRAM_DEFAULT_SALT_LEN and SCRAM_SHA_256_DEFAULT_ITERATIONS there. */
const SALT_BYTES = 16;
export const DEFAULT_SCRAM_ITERATIONS = 4096;
/** A server that asks for more than this is after our processor, not our password: about ten seconds of one core. */
const MAX_ITERATIONS = 20_000_000;

const derive = promisify(pbkdf2);
const sha256 = (data: Buffer): Buffer => createHash('sha256').update(data).digest();
const hmac = (key: Buffer, data: string | Buffer): Buffer => createHmac('sha256', key).update(data).digest();

function xor(a: Buffer, b: Buffer): Buffer {
  const out = Buffer.alloc(a.length);
  for (let i = 0; i < a.length; i++) out[i] = (a[i] as number) ^ (b[i] as number);
  return out;
}

/** Base64 as PostgreSQL's pg_b64_decode takes it: standard alphabet, complete padding; null for anything else. */
function fromBase64(text: string): Buffer | null {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return null;
  return Buffer.from(text, 'base64');
}

/** ClientKey and ServerKey of a password. The work is done off the event loop. */
export async function deriveScramKeys(password: string, salt: Buffer, iterations: number): Promise<ScramKeys> {
  const salted = await derive(saslPrep(password), salt, iterations, KEY_BYTES, 'sha256');
  return { clientKey: hmac(salted, 'Client Key'), serverKey: hmac(salted, 'Server Key') };
}

/** null when it is not a SCRAM-SHA-256 verifier (an md5 hash, or nonsense). */
export function parseVerifier(text: string): ScramVerifier | null {
  const match = /^SCRAM-SHA-256\$(\d{1,10}):([^$:]+)\$([^$:]+):([^$:]+)$/.exec(text);
  if (match === null) return null;
  const iterations = Number(match[1]);
  const [salt, storedKey, serverKey] = match.slice(2).map(fromBase64);
  if (iterations < 1 || !salt || storedKey?.length !== KEY_BYTES || serverKey?.length !== KEY_BYTES) return null;
  return { iterations, salt, storedKey, serverKey };
}

/** The verifier of a password, as PostgreSQL would store it. */
export async function makeVerifier(
  password: string,
  salt: Buffer = randomBytes(SALT_BYTES),
  iterations: number = DEFAULT_SCRAM_ITERATIONS,
): Promise<string> {
  const { clientKey, serverKey } = await deriveScramKeys(password, salt, iterations);
  const b64 = (bytes: Buffer): string => bytes.toString('base64');
  return `SCRAM-SHA-256$${iterations}:${b64(salt)}$${b64(sha256(clientKey))}:${b64(serverKey)}`;
}

/**
 * The verifier shown for a user that does not exist or has none: the same salt each time it is asked for, so that the
 * answer does not tell, and keys that no password has.
 */
function mockVerifier(user: string, secret: Buffer, iterations: number): ScramVerifier {
  return {
    iterations,
    salt: mockSalt(user, secret),
    storedKey: hmac(secret, `stored:${user}`),
    serverKey: hmac(secret, `server:${user}`),
  };
}

/** The salt that a user is shown of whom we have no verifier: the same each time, and nobody can compute it. */
export function mockSalt(user: string, secret: Buffer): Buffer {
  return hmac(secret, `salt:${user}`).subarray(0, SALT_BYTES);
}

/** True when `password` is the one that the verifier was made of. */
export async function matchesVerifier(password: string, verifier: ScramVerifier): Promise<boolean> {
  const { clientKey } = await deriveScramKeys(password, verifier.salt, verifier.iterations);
  return timingSafeEqual(sha256(clientKey), verifier.storedKey);
}

const END_POINT_HEADER = 'p=tls-server-end-point,,';

export interface ScramServerOptions {
  /** Of the salt that unknown users are shown. Default: PostgreSQL's 4096. */
  readonly mockIterations?: number;
  /** The connection is encrypted: SCRAM-SHA-256-PLUS was offered. */
  readonly tls?: boolean;
  /** tls-server-end-point of our certificate, when the client has chosen SCRAM-SHA-256-PLUS. */
  readonly serverEndPoint?: Buffer | null;
  /** Default: random. */
  readonly serverNonce?: string;
}

/** The server's half of one exchange: `first`, then `final`. */
export class ScramServer {
  readonly #verifier: ScramVerifier;
  /** There is no such user: everything happens as if there were, and fails in the end. */
  readonly #doomed: boolean;
  readonly #tls: boolean;
  /** null: the client has chosen the mechanism without channel binding. */
  readonly #serverEndPoint: Buffer | null;
  readonly #serverNonce: string;
  #state: 'first' | 'final' | 'done' = 'first';
  #gs2Header = '';
  #clientFirstBare = '';
  #serverFirst = '';
  #nonce = '';

  constructor(user: string, verifier: ScramVerifier | null, mockSecret: Buffer, options: ScramServerOptions = {}) {
    this.#verifier = verifier ?? mockVerifier(user, mockSecret, options.mockIterations ?? DEFAULT_SCRAM_ITERATIONS);
    this.#doomed = verifier === null;
    this.#tls = options.tls ?? false;
    this.#serverEndPoint = options.serverEndPoint ?? null;
    this.#serverNonce = options.serverNonce ?? randomBytes(NONCE_BYTES).toString('base64');
  }

  /** Takes client-first-message, gives server-first-message. Throws ProtocolError for a malformed one. */
  first(message: Buffer): Buffer {
    if (this.#state !== 'first') throw new Error('SCRAM exchange out of order');
    const text = checkedText(message);
    const { gs2Header, nonce } = parseClientFirst(text, this.#serverEndPoint !== null, this.#tls);
    this.#gs2Header = gs2Header;
    this.#clientFirstBare = text.slice(gs2Header.length);
    this.#nonce = nonce + this.#serverNonce;
    const { salt, iterations } = this.#verifier;
    this.#serverFirst = `r=${this.#nonce},s=${salt.toString('base64')},i=${iterations}`;
    this.#state = 'final';
    return Buffer.from(this.#serverFirst, 'latin1');
  }

  /**
   * Takes client-final-message. Null: the password is wrong or there is no such user. Otherwise server-final-message, and
   * the ClientKey that the proof reveals to whoever has the verifier. Throws ProtocolError for a malformed one.
   */
  final(message: Buffer): { readonly message: Buffer; readonly keys: ScramKeys } | null {
    if (this.#state !== 'final') throw new Error('SCRAM exchange out of order');
    this.#state = 'done';
    const text = checkedText(message);
    const { channelBinding, nonce, proof, withoutProof } = parseClientFinal(text);
    const header = Buffer.from(this.#gs2Header, 'latin1');
    if (this.#serverEndPoint !== null) {
      if (channelBinding !== Buffer.concat([header, this.#serverEndPoint]).toString('base64'))
        throw new ForeshardError('28000', 'SCRAM channel binding check failed');
    } else if (channelBinding !== header.toString('base64'))
      throw new ProtocolError('unexpected SCRAM channel-binding attribute in client-final-message');
    if (nonce !== this.#nonce) throw new ProtocolError('invalid SCRAM response', { detail: 'Nonce does not match.' });
    const { storedKey, serverKey } = this.#verifier;
    const authMessage = Buffer.from(`${this.#clientFirstBare},${this.#serverFirst},${withoutProof}`, 'latin1');
    const clientKey = xor(proof, hmac(storedKey, authMessage));
    const matches = timingSafeEqual(sha256(clientKey), storedKey);
    const signature = hmac(serverKey, authMessage);
    if (!matches || this.#doomed) return null;
    return { message: Buffer.from(`v=${signature.toString('base64')}`, 'latin1'), keys: { clientKey, serverKey } };
  }
}

const malformed = (detail: string): ProtocolError => new ProtocolError('malformed SCRAM message', { detail });

/** Byte for byte (latin1): what is signed is the bytes. */
function checkedText(message: Buffer): string {
  if (message.length === 0) throw malformed('The message is empty.');
  if (message.includes(0)) throw malformed('Message length does not match input length.');
  return message.toString('latin1');
}

/** What PostgreSQL's is_scram_printable allows. */
const PRINTABLE = /^[\x21-\x2b\x2d-\x7e]+$/;

function parseClientFirst(text: string, bound: boolean, tls: boolean): { gs2Header: string; nonce: string } {
  const end = checkBindingFlag(text, bound, tls);
  if (text.charAt(end) === 'a')
    throw new ForeshardError('0A000', 'client uses authorization identity, but it is not supported');
  if (text.charAt(end) !== ',')
    throw malformed(`Unexpected attribute "${printable(text.charAt(end))}" in client-first-message.`);
  const start = end + 1;
  if (text.charAt(start) === 'm') throw new ForeshardError('0A000', 'client requires an unsupported SCRAM extension');
  const [user, nonce, ...extensions] = text.slice(start).split(',');
  expectAttribute(user, 'n');
  const value = expectAttribute(nonce, 'r');
  if (!PRINTABLE.test(value)) throw new ProtocolError('non-printable characters in SCRAM nonce');
  for (const extension of extensions) expectAttribute(extension, null);
  return { gs2Header: text.slice(0, start), nonce: value };
}

/** Checks the gs2-cbind-flag against the mechanism that the client chose; gives the offset behind its comma. */
function checkBindingFlag(text: string, bound: boolean, tls: boolean): number {
  const flag = text.charAt(0);
  if (flag === 'p') {
    if (!bound)
      throw malformed(
        'The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.',
      );
    const type = expectAttribute(text.split(',', 1)[0], 'p');
    if (type !== 'tls-server-end-point') {
      const shown = type.slice(0, 30).replace(/[^\x21-\x7e]/g, '?');
      throw new ProtocolError(`unsupported SCRAM channel-binding type "${shown}"`);
    }
    return END_POINT_HEADER.length - 1;
  }
  if (flag !== 'n' && flag !== 'y') throw malformed(`Unexpected channel-binding flag "${printable(flag)}".`);
  if (bound)
    throw malformed(
      'The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.',
    );
  // Somebody in the middle may have taken our -PLUS out of the list.
  if (flag === 'y' && tls)
    throw new ForeshardError('28000', 'SCRAM channel binding negotiation error', {
      detail:
        'The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.',
    });
  if (text.charAt(1) !== ',') throw malformed(`Comma expected, but found character "${printable(text.charAt(1))}".`);
  return 2;
}

function parseClientFinal(text: string): {
  channelBinding: string;
  nonce: string;
  proof: Buffer;
  withoutProof: string;
} {
  const parts = text.split(',');
  const channelBinding = expectAttribute(parts[0], 'c');
  const nonce = expectAttribute(parts[1], 'r');
  let at = 2;
  // Extensions in between are optional to understand; the proof comes last.
  while (at < parts.length && !parts[at]?.startsWith('p=')) expectAttribute(parts[at++], null);
  const encoded = expectAttribute(parts[at], 'p');
  if (at !== parts.length - 1) throw malformed('Garbage found at the end of client-final-message.');
  const proof = fromBase64(encoded);
  if (proof?.length !== KEY_BYTES) throw malformed('Malformed proof in client-final-message.');
  return { channelBinding, nonce, proof, withoutProof: parts.slice(0, at).join(',') };
}

/** The value of `x=value`; `name` null: of any letter. */
function expectAttribute(part: string | undefined, name: string | null): string {
  const letter = part?.charAt(0) ?? '';
  if (part === undefined || (name === null ? !/[A-Za-z]/.test(letter) : letter !== name))
    throw malformed(
      name === null
        ? `Attribute expected, but found invalid character "${printable(letter)}".`
        : `Expected attribute "${name}" but found "${printable(letter)}".`,
    );
  if (part.charAt(1) !== '=') throw malformed(`Expected character "=" for attribute "${letter}".`);
  return part.slice(2);
}

/** As PostgreSQL's sanitize_char. */
function printable(c: string): string {
  return c >= '\x21' && c <= '\x7e' ? `'${c}'` : `0x${(c === '' ? 0 : c.charCodeAt(0)).toString(16).padStart(2, '0')}`;
}

/** What a client proves itself with: a password, or the keys recovered from a client's own exchange with us. */
export type ScramSecret = { readonly password: string } | { readonly keys: ScramKeys };

/**
 * tls-server-end-point of the server's certificate, for SCRAM-SHA-256-PLUS; `not offered`: we could bind, but the server does not
 * offer it, which it is told, so that it finds out who has taken its offer away; null: there is nothing to bind to.
 */
export type ScramBinding = Buffer | 'not offered' | null;

/** The client's half of one exchange: `first`, `final`, then `verify`. */
export class ScramClient {
  readonly #secret: ScramSecret;
  readonly #clientNonce: string;
  readonly #binding: ScramBinding;
  #authMessage: Buffer | null = null;
  #serverKey: Buffer | null = null;

  constructor(
    secret: ScramSecret,
    clientNonce: string = randomBytes(NONCE_BYTES).toString('base64'),
    binding: ScramBinding = null,
  ) {
    this.#secret = secret;
    this.#clientNonce = clientNonce;
    this.#binding = binding;
  }

  get #gs2Header(): string {
    if (this.#binding === null) return 'n,,';
    return this.#binding === 'not offered' ? 'y,,' : END_POINT_HEADER;
  }

  get #firstBare(): string {
    return `n=,r=${this.#clientNonce}`;
  }

  /** client-first-message. */
  first(): Buffer {
    return Buffer.from(this.#gs2Header + this.#firstBare, 'latin1');
  }

  /** Takes server-first-message, gives client-final-message. */
  async final(serverFirst: Buffer): Promise<Buffer> {
    const text = serverFirst.toString('latin1');
    const match = /^r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/]+={0,2}),i=(\d{1,10})(?:,.*)?$/.exec(text);
    const salt = match === null ? null : fromBase64(match[2] as string);
    if (match === null || salt === null) throw new ProtocolError('malformed SCRAM message (server-first-message)');
    const nonce = match[1] as string;
    const iterations = Number(match[3]);
    if (!nonce.startsWith(this.#clientNonce) || nonce.length === this.#clientNonce.length)
      throw new ProtocolError('invalid SCRAM response (nonce mismatch)');
    if (iterations < 1 || iterations > MAX_ITERATIONS)
      throw new ProtocolError(`the server asks for ${iterations} SCRAM iterations, the limit is ${MAX_ITERATIONS}`);
    const keys =
      'keys' in this.#secret ? this.#secret.keys : await deriveScramKeys(this.#secret.password, salt, iterations);
    const endPoint = this.#binding instanceof Buffer ? this.#binding : Buffer.alloc(0);
    const binding = Buffer.concat([Buffer.from(this.#gs2Header), endPoint]);
    const withoutProof = `c=${binding.toString('base64')},r=${nonce}`;
    const authMessage = Buffer.from(`${this.#firstBare},${text},${withoutProof}`, 'latin1');
    const proof = xor(keys.clientKey, hmac(sha256(keys.clientKey), authMessage));
    this.#authMessage = authMessage;
    this.#serverKey = keys.serverKey;
    return Buffer.from(`${withoutProof},p=${proof.toString('base64')}`, 'latin1');
  }

  /** Takes server-final-message: the server must prove that it knows the verifier. Throws if it does not. */
  verify(serverFinal: Buffer): void {
    if (this.#authMessage === null || this.#serverKey === null) throw new Error('SCRAM exchange out of order');
    const text = serverFinal.toString('latin1');
    const signature = /^v=([^,]+)(?:,.*)?$/.exec(text)?.[1];
    if (signature === undefined) throw new ProtocolError('malformed SCRAM message (server-final-message)');
    const expected = hmac(this.#serverKey, this.#authMessage);
    const given = fromBase64(signature);
    if (given?.length !== expected.length || !timingSafeEqual(given, expected))
      throw new ForeshardError('28000', 'the server did not prove that it knows the password', {
        hint: 'Something between Foreshard and the server may be pretending to be the server.',
      });
  }
}
