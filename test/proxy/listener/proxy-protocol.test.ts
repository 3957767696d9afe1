import { PassThrough } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { networkProblem, trustList } from '../../../proxy/listener/networks.js';
import { type ProxyProtocolMode, readProxyHeader } from '../../../proxy/listener/proxy-protocol.js';
import { HandshakeReader } from '../../../proxy/wire/handshake-reader.js';

/** What is read of `bytes`, which arrive in pieces of `size`, and what is left for the next reader. */
async function read(
  bytes: Buffer,
  options: { mode?: ProxyProtocolMode; trusted?: boolean; size?: number } = {},
): Promise<{ address: string | null; rest: string }> {
  const stream = new PassThrough();
  const reader = new HandshakeReader(stream, 5000, () => new Error('too slow'));
  try {
    const header = readProxyHeader(reader, { mode: options.mode ?? 'require', trusted: options.trusted ?? true });
    header.catch(() => undefined); // it is looked at below
    const size = options.size ?? bytes.length;
    for (let at = 0; at < bytes.length; at += size) {
      stream.write(bytes.subarray(at, at + size));
      await new Promise((resolve) => setImmediate(resolve));
    }
    const address = await header;
    return { address, rest: reader.buffered > 0 ? (await reader.read(reader.buffered)).toString('latin1') : '' };
  } finally {
    await reader.release();
    stream.destroy();
  }
}

const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');

function v2(command: number, family: number, payload: Buffer): Buffer {
  const length = Buffer.alloc(2);
  length.writeUInt16BE(payload.length);
  return Buffer.concat([SIGNATURE, Buffer.from([command, family]), length, payload]);
}

const tlv = (type: number, value: Buffer): Buffer => Buffer.concat([Buffer.from([type, 0, value.length]), value]);
const TCP4 = Buffer.from([192, 0, 2, 1, 198, 51, 100, 7, 0xc0, 0x00, 0x15, 0x38]);
const TCP6 = Buffer.from('20010db800000000000000000000000120010db8000000000000000000000002c0001538', 'hex');

/** As in proxy-protocol.txt: over the whole header, with zeros in the checksum's place. */
function withCrc(crc: string): Buffer {
  return v2(0x21, 0x11, Buffer.concat([TCP4, tlv(0x04, Buffer.from('abc')), tlv(0x03, Buffer.from(crc, 'hex'))]));
}

describe('PROXY protocol', () => {
  test.each([
    ['version 1, IPv4', Buffer.from('PROXY TCP4 192.0.2.1 198.51.100.7 49152 5432\r\n'), '192.0.2.1'],
    ['version 1, IPv6', Buffer.from('PROXY TCP6 2001:db8::1 2001:db8::2 49152 5432\r\n'), '2001:db8::1'],
    ['version 1, unknown', Buffer.from('PROXY UNKNOWN\r\n'), null],
    ['version 1, unknown with more', Buffer.from('PROXY UNKNOWN ff:: aa:: 1 2\r\n'), null],
    ['version 2, IPv4', v2(0x21, 0x11, TCP4), '192.0.2.1'],
    ['version 2, IPv6', v2(0x21, 0x21, TCP6), '2001:db8::1'],
    ['version 2, local', v2(0x20, 0x00, Buffer.alloc(0)), null],
    ['version 2, local with an address', v2(0x20, 0x11, TCP4), null],
    ['version 2, unspecified', v2(0x21, 0x00, Buffer.alloc(0)), null],
    ['version 2, a family that there is not', v2(0x21, 0x77, Buffer.from('xyz')), null],
    ['version 2, datagrams', v2(0x21, 0x12, TCP4), null],
    ['version 2, a Unix socket', v2(0x21, 0x31, Buffer.alloc(216)), null],
    [
      'version 2, more than the address',
      v2(0x21, 0x11, Buffer.concat([TCP4, tlv(0x05, Buffer.alloc(100))])),
      '192.0.2.1',
    ],
    ['version 2, with its checksum', withCrc(crc32c(withCrc('00000000'))), '192.0.2.1'],
  ])('%s, whole and in pieces, with what follows left alone', async (_name, header, address) => {
    for (const size of [1, 7, 1000])
      expect(await read(Buffer.concat([header, Buffer.from('rest')]), { size })).toEqual({ address, rest: 'rest' });
  });

  test.each([
    ['no header', Buffer.from([0, 0, 0, 8, 4, 210, 22, 47])],
    ['another word', Buffer.from('PROBE TCP4 192.0.2.1 198.51.100.7 1 2\r\n')],
    ['a bare line feed', Buffer.from('PROXY TCP4 192.0.2.1 198.51.100.7 1 2\n')],
    ['no address', Buffer.from('PROXY TCP4 localhost 198.51.100.7 1 2\r\n')],
    ['the other family', Buffer.from('PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n')],
    ['a port too high', Buffer.from('PROXY TCP4 192.0.2.1 198.51.100.7 1 65536\r\n')],
    ['a line too long', Buffer.from(`PROXY UNKNOWN ${'x'.repeat(200)}\r\n`)],
    ['version 3', v2(0x31, 0x11, TCP4)],
    ['a command that there is not', v2(0x22, 0x11, TCP4)],
    ['a signature with a fault', Buffer.from(v2(0x21, 0x11, TCP4).map((byte, i) => (i === 11 ? 0x0b : byte)))],
    ['an address cut off', v2(0x21, 0x11, TCP4.subarray(0, 11))],
    ['an entry cut off', v2(0x21, 0x11, Buffer.concat([TCP4, Buffer.from([4, 0, 9, 1])]))],
    ['half an entry', v2(0x21, 0x11, Buffer.concat([TCP4, Buffer.from([4])]))],
    ['a wrong checksum', withCrc('deadbeef')],
    ['more than anybody needs', v2(0x21, 0x11, Buffer.alloc(5000))],
  ])('%s is refused', async (_name, header) => {
    await expect(read(header)).rejects.toMatchObject({ name: 'UnansweredError' });
  });

  test('without being asked for, a header is not looked at', async () => {
    const header = Buffer.from('PROXY UNKNOWN\r\n');
    expect(await read(header, { mode: 'off' })).toEqual({ address: null, rest: header.toString() });
  });

  test('optional: none is fine, and whoever is not trusted may not have one', async () => {
    const start = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);
    for (const trusted of [true, false])
      expect(await read(start, { mode: 'optional', trusted })).toEqual({
        address: null,
        rest: start.toString('latin1'),
      });
    const header = Buffer.from('PROXY TCP4 192.0.2.1 198.51.100.7 1 2\r\n');
    expect(await read(header, { mode: 'optional' })).toMatchObject({ address: '192.0.2.1' });
    await expect(read(header, { mode: 'optional', trusted: false })).rejects.toMatchObject({ name: 'UnansweredError' });
    await expect(read(header, { mode: 'require', trusted: false })).rejects.toMatchObject({ name: 'UnansweredError' });
  });
});

describe('networks', () => {
  test('addresses and networks of both families', () => {
    const isTrusted = trustList(['10.0.0.0/8', '192.0.2.7', 'fd00::/8', '::1']);
    for (const address of ['10.255.0.1', '192.0.2.7', 'fd12::9', '::1']) expect(isTrusted(address)).toBe(true);
    for (const address of ['11.0.0.1', '192.0.2.8', 'fe80::1', '::2']) expect(isTrusted(address)).toBe(false);
  });

  test.each(['localhost', '10.0.0.0/33', '10.0.0/8', 'fd00::/129', '10.0.0.0/8/8', '10.0.0.0/', ''])(
    '%j is none',
    (entry) => {
      expect(networkProblem(entry)).not.toBeNull();
    },
  );
});

/** CRC-32C of a header whose checksum is zero, in hex: a table-driven one, unlike the proxy's. */
function crc32c(data: Buffer): string {
  const table = Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1;
    return c >>> 0;
  });
  let crc = 0xffffffff;
  for (const byte of data) crc = (table[(crc ^ byte) & 255] as number) ^ (crc >>> 8);
  return ((crc ^ 0xffffffff) >>> 0).toString(16).padStart(8, '0');
}
