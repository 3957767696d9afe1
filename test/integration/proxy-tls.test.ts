import { once } from 'node:events';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  encodeCancelRequest,
  encodeGssEncRequest,
  encodeQuery,
  encodeSslRequest,
  encodeStartup,
  PROTOCOL_3_2,
} from '../../proxy/wire/frontend.js';
import { CertificateAuthority, hasOpenssl } from '../support/certificates.js';
import { RawPeer } from '../support/raw-peer.js';
import { Sharded } from '../support/sharded.js';

const LOGIN = { user: 'app', database: 'shop', password: 'secret' };

describe.skipIf(!hasOpenssl)('TLS towards clients', () => {
  let sharded: Sharded;
  let authority: CertificateAuthority;
  let files: { cert: string; key: string };
  let ca: Buffer;

  beforeAll(async () => {
    authority = new CertificateAuthority();
    files = authority.issue('server', '/CN=localhost', { names: 'DNS:localhost,IP:127.0.0.1' });
    ca = readFileSync(authority.root.cert);
    sharded = await Sharded.start({
      splitAt: null,
      tls: { mode: 'allow', certFile: files.cert, keyFile: files.key, caFile: authority.root.cert },
    });
  });
  afterAll(() => sharded.stop());

  /** The client's side of a handshake on a socket. */
  const secure = (options: ConnectionOptions): Promise<TLSSocket> =>
    new Promise((resolve, reject) => {
      const socket = connectTls({ ca, servername: 'localhost', ...options });
      socket.once('error', reject);
      socket.once('secureConnect', () => {
        socket.off('error', reject);
        resolve(socket);
      });
    });

  /** Asks for TLS, as every client before PostgreSQL 17 does. */
  async function negotiated(options: ConnectionOptions = {}): Promise<RawPeer> {
    const plain = await RawPeer.connect(sharded.proxy.port);
    plain.send(encodeSslRequest());
    expect((await plain.bytes(1)).toString()).toBe('S');
    return new RawPeer(await secure({ socket: plain.detach(), ...options }));
  }

  const direct = (options: ConnectionOptions = {}): Promise<TLSSocket> =>
    secure({ port: sharded.proxy.port, host: '127.0.0.1', ALPNProtocols: ['postgresql'], ...options });

  test('asked for: a session, with a long cancel key', async () => {
    const peer = await negotiated();
    const messages = await peer.login({ ...LOGIN, version: PROTOCOL_3_2 });
    expect(messages.find((m) => m.type === 'K')?.body.length).toBe(4 + 32);
    peer.send(encodeQuery('SELECT 1'));
    await peer.until('Z');
    peer.end();
    await peer.expectClose();
  });

  test('directly, with our protocol named', async () => {
    const socket = await direct();
    expect(socket.alpnProtocol).toBe('postgresql');
    const peer = new RawPeer(socket);
    await peer.login(LOGIN);
    peer.end();
  });

  test.each([[undefined], [['h2']]])('directly, with ALPN %j: refused', async (ALPNProtocols) => {
    const outcome = await direct({ ALPNProtocols }).then(
      async (socket) => new RawPeer(socket).expectClose().then(() => 'closed'),
      (error: Error) => error.message,
    );
    expect(outcome).toMatch(/^closed$|no application protocol|disconnected|ECONNRESET/);
  });

  test('asked for, with another protocol named: refused', async () => {
    await expect(negotiated({ ALPNProtocols: ['h2'] })).rejects.toThrow(/no application protocol/);
  });

  test('a request for TLS within TLS: no when it was direct, an error when it was asked for', async () => {
    const inner = new RawPeer(await direct());
    inner.send(encodeSslRequest());
    expect((await inner.bytes(1)).toString()).toBe('N');
    await inner.login(LOGIN);
    inner.end();

    for (const [request, code] of [
      [encodeSslRequest(), '1234.5679'],
      [encodeGssEncRequest(), '1234.5680'],
    ] as const) {
      const peer = await negotiated();
      peer.send(request);
      expect(await peer.expectError()).toMatchObject({
        sqlstate: '0A000',
        message: `unsupported frontend protocol ${code}: server supports 3.0 to 3.2`,
      });
    }
  });

  test('GSS first, then TLS', async () => {
    const plain = await RawPeer.connect(sharded.proxy.port);
    plain.send(encodeGssEncRequest());
    expect((await plain.bytes(1)).toString()).toBe('N');
    plain.send(encodeSslRequest());
    expect((await plain.bytes(1)).toString()).toBe('S');
    const peer = new RawPeer(await secure({ socket: plain.detach() }));
    await peer.login(LOGIN);
    peer.end();
  });

  test('what was sent in the clear behind the request is never taken for encrypted', async () => {
    const peer = await RawPeer.connect(sharded.proxy.port);
    peer.send(encodeSslRequest(), encodeStartup({ user: 'app', database: 'shop' }));
    expect((await peer.bytes(1)).toString()).toBe('S');
    // At most an alert (21), and the end.
    const alert = await peer.rest();
    expect([0, 21]).toContain(alert[0] ?? 0);
  });

  test('one byte at a time', async () => {
    const relay = await byteAtATime(sharded.proxy.port);
    try {
      const plain = await RawPeer.connect(relay.port);
      plain.send(encodeSslRequest());
      expect((await plain.bytes(1)).toString()).toBe('S');
      const peer = new RawPeer(await secure({ socket: plain.detach() }));
      await peer.login(LOGIN);
      peer.send(encodeQuery('SELECT 1'));
      await peer.until('Z');
      peer.end();
      await peer.expectClose();
    } finally {
      relay.close();
    }
  });

  test('node-postgres, with the certificate verified', async () => {
    const client = await sharded.connect({ ssl: { ca, servername: 'localhost' } });
    expect((await client.query('SELECT count(*)::int AS n FROM countries')).rows).toEqual([{ n: 2 }]);
    await client.end();
  });

  test('results and COPY that fill every buffer', async () => {
    const client = await sharded.connect({ ssl: { ca, servername: 'localhost' } });
    const rows = 40_000;
    await client.query('CREATE TEMPORARY TABLE big (n int, filler text)');
    const line = (i: number) => `${i}\t${'x'.repeat(1000)}\n`;
    await pipeline(
      Readable.from(
        (function* () {
          for (let i = 0; i < rows; i++) yield line(i);
        })(),
      ),
      client.query(copyFrom('COPY big FROM STDIN')),
    );
    let bytes = 0;
    await pipeline(
      client.query(copyTo('COPY big TO STDOUT')),
      new Writable({
        highWaterMark: 1024,
        write(chunk: Buffer, _encoding, done) {
          bytes += chunk.length;
          setImmediate(done);
        },
      }),
    );
    expect(bytes).toBe(Array.from({ length: rows }, (_, i) => line(i).length).reduce((a, b) => a + b));
    const result = await client.query<{ filler: string }>('SELECT filler FROM big');
    expect(result.rows.length).toBe(rows);
    const filler = 'x'.repeat(1000);
    expect(result.rows.every((row) => row.filler === filler)).toBe(true);
    await client.end();
  });

  test('a client that goes away in the middle of a result harms nobody', async () => {
    const peer = await negotiated();
    await peer.login(LOGIN);
    peer.send(encodeQuery(`SELECT repeat('x', 1000) FROM generate_series(1, 100000)`));
    await peer.expect('T');
    peer.destroy();
    const client = await sharded.connect({ ssl: { ca, servername: 'localhost' } });
    await expect
      .poll(
        async () =>
          (await sharded.onShard(0, `SELECT FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'`)).length,
      )
      .toBe(0);
    await client.end();
  });

  test('sessions are resumed', async () => {
    const first = await direct();
    // Before TLS 1.3 it would be there by now; since then it comes with what is read.
    const ticket = new Promise<Buffer>((resolve) => first.once('session', resolve));
    await new RawPeer(first).login(LOGIN);
    const second = await direct({ session: await ticket });
    expect(second.isSessionReused()).toBe(true);
    await new RawPeer(second).login(LOGIN);
    first.destroy();
    second.destroy();
  });

  test('TLS 1.1 is not spoken', async () => {
    await expect(
      negotiated({ minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' }),
    ).rejects.toThrow(/alert protocol version|unsupported protocol/);
  });

  test('a client certificate is verified, and its names are known', async () => {
    const good = authority.issue('client', String.raw`/C=AT/O=Müller, "Söhne"+OU=a\+b/CN=app`);
    const peer = await negotiated({ cert: readFileSync(good.cert), key: readFileSync(good.key) });
    await peer.login(LOGIN);
    const facts = [...sharded.proxy.clients].map((client) => client.facts);
    expect(facts).toContainEqual(
      expect.objectContaining({
        kind: 'tcp',
        address: '127.0.0.1',
        tls: expect.objectContaining({
          clientCommonName: 'app',
          clientDistinguishedName: authority.subject(good.cert),
        }),
      }),
    );
    peer.end();

    const stranger = new CertificateAuthority('somebody else').issue('client', '/CN=app');
    // TLS 1.3 lets a client believe that it is in before the server has looked at its certificate.
    const outcome = await negotiated({ cert: readFileSync(stranger.cert), key: readFileSync(stranger.key) })
      .then(
        (refused) => refused.login(LOGIN).then(() => 'let in'),
        (error: Error) => error.message,
      )
      .catch((error: Error) => error.message);
    expect(outcome).not.toBe('let in');
  });

  test('a cancel request over TLS', async () => {
    const client = await sharded.connect({ ssl: { ca, servername: 'localhost' } });
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    const secret = Buffer.alloc(4);
    secret.writeInt32BE(secretKey);
    const sleeping = expect(client.query('SELECT pg_sleep(60)')).rejects.toMatchObject({ code: '57014' });
    await expect
      .poll(
        async () =>
          (await sharded.onShard(0, `SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'`)).length,
      )
      .toBeGreaterThan(0);
    const peer = await negotiated();
    peer.send(encodeCancelRequest(processID, secret));
    await peer.expectClose();
    await sleeping;
    await client.end();
  });

  test('certificates are replaced while clients work', async () => {
    const before = await sharded.connect({ ssl: { ca, servername: 'localhost' } });
    const next = authority.issue('next', '/CN=localhost', { names: 'DNS:localhost', digest: 'sha384' });
    const serial = async () => {
      const socket = await direct();
      const { serialNumber } = socket.getPeerCertificate();
      socket.destroy();
      return serialNumber;
    };
    const first = await serial();
    writeFileSync(files.cert, 'no certificate');
    await expect(sharded.proxy.reload()).rejects.toMatchObject({ sqlstate: 'F0000' });
    expect(await serial()).toBe(first);
    copyFileSync(next.cert, files.cert);
    copyFileSync(next.key, files.key);
    await sharded.proxy.reload();
    expect(await serial()).not.toBe(first);
    expect((await before.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await before.end();
  });
});

/** A way to `port` on which what the client sends arrives in pieces of one byte. */
async function byteAtATime(port: number): Promise<{ readonly port: number; close(): void }> {
  const server = createServer((client) => {
    const upstream = connect({ port, host: '127.0.0.1', noDelay: true });
    upstream.pipe(client);
    client.on('data', (chunk: Buffer) => {
      for (const byte of chunk) upstream.write(Buffer.from([byte]));
    });
    client.on('end', () => upstream.end());
    for (const socket of [client, upstream]) socket.on('error', () => undefined);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { port: (server.address() as AddressInfo).port, close: () => server.close() };
}
