import { isIPv4, isIPv6 } from 'node:net';
import type { HandshakeReader } from '../wire/handshake-reader.js';
import { UnansweredError } from '../wire/protocol-error.js';

/*
 * The PROXY protocol of HAProxy ("proxy-protocol.txt", versions 1 and 2): a load balancer says in front of everything else,
 * TLS included, whose connection it passes on. No PostgreSQL start-up begins with its first byte, nor does TLS.
 */

/** `optional`: a trusted proxy may send a header; `require`: nobody comes in without one. */
export type ProxyProtocolMode = 'off' | 'optional' | 'require';

export interface ProxyProtocolOptions {
  readonly mode: ProxyProtocolMode;
  /** Addresses and CIDR networks whose word is taken. From any other a header is refused. */
  readonly trustedProxies: readonly string[];
}

/** Longest line of version 1, with its line end. */
const MAX_V1_BYTES = 107;
const SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
const V2_FIXED_BYTES = 16;
/** Addresses take at most 216 bytes; the rest is for additional information, of which no proxy sends more than this. */
const MAX_V2_PAYLOAD_BYTES = 4096;
const TLV_CRC32C = 0x03;

/** Bytes of the address block, by family and transport; the others say nothing that we could use. */
const TCP4 = 0x11;
const TCP6 = 0x21;
const ADDRESS_BYTES: Readonly<Record<number, number>> = { [TCP4]: 12, 18: 12, [TCP6]: 36, 34: 36, 49: 216, 50: 216 };

/**
 * Reads the header that a proxy puts first, if there is one.
 * @returns the client's address, or null when the header names none or there is no header: the peer's own counts then.
 * @throws UnansweredError when a header is malformed, missing, or comes from somebody who is not trusted
 */
export async function readProxyHeader(
  reader: HandshakeReader,
  from: { readonly trusted: boolean; readonly mode: ProxyProtocolMode },
): Promise<string | null> {
  if (from.mode === 'off') return null;
  if (from.mode === 'require' && !from.trusted)
    throw new UnansweredError('connection from a proxy that is not trusted');
  const first = await reader.read(1);
  const isHeader = first[0] === 0x50 || first[0] === SIGNATURE[0];
  if (!isHeader) {
    if (from.mode === 'require') throw new UnansweredError('PROXY header expected');
    reader.unread(first);
    return null;
  }
  if (!from.trusted) throw new UnansweredError('PROXY header from a proxy that is not trusted');
  return first[0] === 0x50 ? readV1(reader, first) : readV2(reader, first);
}

async function readV1(reader: HandshakeReader, first: Buffer): Promise<string | null> {
  const bytes = [first];
  // A byte at a time: what follows the line is not ours to take. It has a hundred at most, and they have mostly arrived.
  while (bytes.at(-1)?.[0] !== 0x0a) {
    if (bytes.length === MAX_V1_BYTES) throw new UnansweredError('PROXY header too long');
    bytes.push(await reader.read(1));
  }
  const line = Buffer.concat(bytes).toString('latin1');
  if (/^PROXY UNKNOWN(?: [^\r\n]*)?\r\n$/.test(line)) return null;
  const match = /^PROXY TCP([46]) (\S+) (\S+) (\d{1,5}) (\d{1,5})\r\n$/.exec(line);
  if (match === null) throw new UnansweredError('malformed PROXY header');
  const [, family, source = '', destination = '', ...ports] = match;
  const isAddress = family === '4' ? isIPv4 : isIPv6;
  if (!isAddress(source) || !isAddress(destination) || ports.some((port) => Number(port) > 65_535))
    throw new UnansweredError('malformed PROXY header');
  return source;
}

async function readV2(reader: HandshakeReader, first: Buffer): Promise<string | null> {
  const fixed = Buffer.concat([first, await reader.read(V2_FIXED_BYTES - 1)]);
  if (!fixed.subarray(0, SIGNATURE.length).equals(SIGNATURE)) throw new UnansweredError('malformed PROXY header');
  const command = fixed.readUInt8(12);
  const family = fixed.readUInt8(13);
  const length = fixed.readUInt16BE(14);
  if (length > MAX_V2_PAYLOAD_BYTES) throw new UnansweredError('PROXY header too long');
  const payload = await reader.read(length);
  // LOCAL: the proxy speaks for itself, to see whether we are there. What else it says is to be skipped.
  if (command === 0x20) return null;
  if (command !== 0x21) throw new UnansweredError('malformed PROXY header');
  const addressBytes = ADDRESS_BYTES[family] ?? (family === 0 ? 0 : null);
  // A family that we do not know: its length neither.
  if (addressBytes === null) return null;
  if (length < addressBytes) throw new UnansweredError('malformed PROXY header');
  checkAdditional(fixed, payload, addressBytes);
  if (family === TCP4) return [...payload.subarray(0, 4)].join('.');
  if (family === TCP6) return formatIPv6(payload.subarray(0, 16));
  return null;
}

/** Skips the type-length-value entries, and checks a CRC-32C when there is one. */
function checkAdditional(fixed: Buffer, payload: Buffer, start: number): void {
  for (let at = start; at < payload.length; ) {
    const end = at + 3 <= payload.length ? at + 3 + payload.readUInt16BE(at + 1) : Number.POSITIVE_INFINITY;
    if (end > payload.length) throw new UnansweredError('malformed PROXY header');
    if (payload[at] === TLV_CRC32C) {
      if (end - at !== 7) throw new UnansweredError('malformed PROXY header');
      const given = payload.readUInt32BE(at + 3);
      const zeroed = Buffer.concat([fixed, payload]);
      zeroed.fill(0, fixed.length + at + 3, fixed.length + at + 7);
      if (crc32c(zeroed) !== given) throw new UnansweredError('wrong checksum in PROXY header');
    }
    at = end;
  }
}

/** As inet_ntop writes it, through the one formatter that Node has. */
function formatIPv6(bytes: Buffer): string {
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(2 * i).toString(16)).join(':');
  const shortest = new URL(`http://[${groups}]/`).hostname.slice(1, -1);
  const mapped = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(shortest);
  return mapped === null ? shortest : [...bytes.subarray(12)].join('.');
}

/** CRC-32C (Castagnoli), reflected, as in iSCSI: RFC 3720, appendix B.4. */
function crc32c(data: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
