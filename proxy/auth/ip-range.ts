import { isIPv4, isIPv6 } from 'node:net';
import { networkInterfaces } from 'node:os';

/** The bytes of an IP address, 4 or 16; null for anything else. An IPv4 address inside IPv6 (`::ffff:10.0.0.1`) is its IPv4 address. */
export function parseIp(text: string): Buffer | null {
  if (isIPv4(text)) return Buffer.from(text.split('.').map(Number));
  const bare = text.split('%', 1)[0] as string; // a zone is no part of the address
  if (!isIPv6(bare)) return null;
  const embedded = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(bare);
  const tail = embedded === null ? '' : Buffer.from((embedded[2] as string).split('.').map(Number)).toString('hex');
  const hex = embedded === null ? bare : `${embedded[1]}${tail.slice(0, 4)}:${tail.slice(4)}`;
  const [head, rest] = hex.split('::') as [string, string | undefined];
  const groups = (part: string): number[] => (part === '' ? [] : part.split(':').map((g) => Number.parseInt(g, 16)));
  const left = groups(head);
  const right = rest === undefined ? [] : groups(rest);
  const all = [...left, ...new Array<number>(8 - left.length - right.length).fill(0), ...right];
  const bytes = Buffer.alloc(16);
  all.forEach((group, i) => {
    bytes.writeUInt16BE(group, 2 * i);
  });
  return isMapped(bytes) ? bytes.subarray(12) : bytes;
}

const isMapped = (bytes: Buffer): boolean =>
  bytes.subarray(0, 10).every((b) => b === 0) && bytes.readUInt16BE(10) === 0xffff;

/** An address and which of its bits count. */
export interface IpRange {
  readonly address: Buffer;
  readonly mask: Buffer;
}

/** `bits` leading ones, as long as the address; null when it has not so many. */
export function maskOf(address: Buffer, bits: number): Buffer | null {
  if (!Number.isInteger(bits) || bits < 0 || bits > 8 * address.length) return null;
  const mask = Buffer.alloc(address.length);
  for (let i = 0; i < bits; i++) mask[i >> 3] = (mask[i >> 3] as number) | (0x80 >> (i & 7));
  return mask;
}

export function inRange(ip: Buffer, { address, mask }: IpRange): boolean {
  return (
    ip.length === address.length && mask.every((bits, i) => (((ip[i] as number) ^ (address[i] as number)) & bits) === 0)
  );
}

/** The networks of this machine's interfaces, or their addresses alone: samenet and samehost. Asked each time, for they change. */
export function ownRanges(what: 'samehost' | 'samenet'): IpRange[] {
  const ranges: IpRange[] = [];
  for (const { address: text, netmask } of Object.values(networkInterfaces()).flatMap((all) => all ?? [])) {
    const address = parseIp(text);
    const mask = what === 'samenet' ? parseIp(netmask) : address === null ? null : maskOf(address, 8 * address.length);
    if (address !== null && mask !== null) ranges.push({ address, mask });
  }
  return ranges;
}
