import { once } from 'node:events';
import { chownSync, copyFileSync, readFileSync, statSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls, createSecureContext, TLSSocket } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { sendCancelRequest } from '../../../proxy/backend/cancel-request.js';
import { ServerConnection } from '../../../proxy/backend/server-connection.js';
import { tlsOfUrl } from '../../../proxy/backend/server-tls.js';
import { encodeQuery, encodeSslRequest } from '../../../proxy/wire/frontend.js';
import { CertificateAuthority, hasOpenssl } from '../../support/certificates.js';
import { withClient } from '../../support/client.js';
import { startTestCluster } from '../../support/cluster.js';
import { waitFor } from '../../support/wait-for.js';

describe.skipIf(!hasOpenssl)('TLS towards servers', () => {
  let authority: CertificateAuthority;
  let secured: EmbeddedCluster;
  let plain: EmbeddedCluster;

  beforeAll(async () => {
    authority = new CertificateAuthority();
    const { cert, key } = authority.issue('postgres', '/CN=localhost', { names: 'DNS:localhost' });
    [secured, plain] = await Promise.all([startTestCluster(), startTestCluster()]);
    const files = { ssl_cert_file: cert, ssl_key_file: key, ssl_ca_file: authority.root.cert };
    const { uid, gid } = statSync(secured.dataDir);
    for (const [setting, file] of Object.entries(files)) {
      const inside = join(secured.dataDir, `${setting}.pem`);
      copyFileSync(file, inside);
      chownSync(inside, uid, gid);
      await withClient(secured.url('postgres'), (c) => c.query(`ALTER SYSTEM SET ${setting} = '${setting}.pem'`));
    }
    await withClient(secured.url('postgres'), async (c) => {
      await c.query('ALTER SYSTEM SET ssl = on');
      await c.query('SELECT pg_reload_conf()');
    });
    await waitFor(
      () =>
        withClient(
          secured.url('postgres'),
          async (c) => (await c.query<{ ssl: string }>('SHOW ssl')).rows[0]?.ssl === 'on',
        ),
      { what: 'the server to have TLS' },
    );
  });

  const options = (cluster: EmbeddedCluster, query: string, host = 'localhost', port = cluster.port) => ({
    shard: 's1',
    host,
    port,
    user: 'postgres',
    database: 'postgres',
    auth: { password: cluster.password },
    tls: tlsOfUrl(new URL(`postgresql://${host}:${port}/postgres?${query}`)),
  });
  /** Whether the server says that a connection is encrypted. */
  async function encrypted(cluster: EmbeddedCluster, query: string, host?: string, port?: number): Promise<boolean> {
    const connection = await ServerConnection.connect(options(cluster, query, host, port));
    try {
      const [row] = await withClient(
        cluster.url('postgres'),
        async (c) => (await c.query('SELECT ssl FROM pg_stat_ssl WHERE pid = $1', [connection.processId])).rows,
      );
      return row.ssl;
    } finally {
      connection.terminate();
      await connection.closed;
    }
  }
  const root = () => `sslrootcert=${encodeURIComponent(authority.root.cert)}`;

  test.each([
    ['', true],
    ['sslmode=disable', false],
    ['sslmode=prefer', true],
    ['sslmode=require', true],
    ['sslmode=no-verify', true],
  ])('%j on a server that has it', async (query, expected) => {
    expect(await encrypted(secured, query)).toBe(expected);
  });

  test.each(['verify-ca', 'verify-full', 'require'])('%s with the right root', async (mode) => {
    expect(await encrypted(secured, `sslmode=${mode}&${root()}`)).toBe(true);
  });

  test('the wrong name is seen by verify-full, and only by that', async () => {
    await expect(encrypted(secured, `sslmode=verify-full&${root()}`, '127.0.0.1')).rejects.toMatchObject({
      sqlstate: '08001',
      message: expect.stringMatching(
        /could not connect to shard "s1" at 127\.0\.0\.1:\d+: SSL error: .*does not match/,
      ),
    });
    expect(await encrypted(secured, `sslmode=verify-ca&${root()}`, '127.0.0.1')).toBe(true);
  });

  test.each(['verify-ca', 'verify-full', 'require'])('%s with another root is refused', async (mode) => {
    const other = new CertificateAuthority('other').root.cert;
    await expect(encrypted(secured, `sslmode=${mode}&sslrootcert=${encodeURIComponent(other)}`)).rejects.toMatchObject({
      sqlstate: '08001',
      message: expect.stringContaining('SSL error'),
    });
  });

  test('a server without it: prefer is content, require is not', async () => {
    expect(await encrypted(plain, 'sslmode=prefer')).toBe(false);
    await expect(encrypted(plain, 'sslmode=require')).rejects.toMatchObject({
      sqlstate: '08001',
      message: expect.stringContaining('server does not support SSL, but SSL was required'),
    });
  });

  test('an sslmode that there is not', () => {
    expect(() => tlsOfUrl(new URL('postgresql://h/d?sslmode=full'))).toThrow('invalid sslmode value: "full"');
  });

  test('a client certificate', async () => {
    const { cert, key } = authority.issue('us', '/CN=postgres');
    const query = `sslmode=require&sslcert=${encodeURIComponent(cert)}&sslkey=${encodeURIComponent(key)}`;
    const connection = await ServerConnection.connect(options(secured, query));
    const rows = await withClient(
      secured.url('postgres'),
      async (c) => (await c.query('SELECT client_dn FROM pg_stat_ssl WHERE pid = $1', [connection.processId])).rows,
    );
    expect(rows).toEqual([{ client_dn: '/CN=postgres' }]);
    connection.terminate();
    await connection.closed;
  });

  test('a cancel request goes the same way', async () => {
    const connection = await ServerConnection.connect(options(secured, 'sslmode=require'));
    const canceled = new Promise<string>((resolve) => {
      connection.setHandler({
        onMessage: (type, message) => {
          if (type === 0x45) resolve(message.toString('latin1'));
        },
        onPartial: () => undefined,
        onClosed: () => resolve('closed'),
      });
    });
    connection.write(encodeQuery('SELECT pg_sleep(60)'));
    await expect
      .poll(() =>
        withClient(
          secured.url('postgres'),
          async (c) =>
            (
              await c.query(`SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'`, [
                connection.processId,
              ])
            ).rowCount,
        ),
      )
      .toBe(1);
    await sendCancelRequest(connection.options, { processId: connection.processId, secret: connection.secret });
    expect(await canceled).toContain('57014');
    connection.destroy();
    await connection.closed;
  });

  describe('somebody in the middle, with a certificate of their own', () => {
    let middle: Server;
    /** Takes the offer of channel binding out of what the server says. */
    let strips = false;
    beforeAll(async () => {
      const { cert, key } = authority.issue('middle', '/CN=localhost', { names: 'DNS:localhost' });
      const secureContext = createSecureContext({ cert: readFileSync(cert), key: readFileSync(key) });
      middle = createServer((client) => {
        client.once('data', () => {
          client.write('S');
          const inner = new TLSSocket(client, { isServer: true, secureContext });
          const upstream = connect({ host: '127.0.0.1', port: secured.port });
          upstream.write(encodeSslRequest());
          upstream.once('data', () => {
            const outer = connectTls({ socket: upstream, rejectUnauthorized: false });
            inner.pipe(outer);
            outer.on('data', (chunk: Buffer) => inner.write(strips ? withoutPlus(chunk) : chunk));
            outer.on('error', () => inner.destroy());
          });
          inner.on('error', () => upstream.destroy());
          client.on('error', () => upstream.destroy());
        });
      });
      middle.listen(0, '127.0.0.1');
      await once(middle, 'listening');
    });
    afterAll(() => {
      middle.close();
    });

    test('is found out by channel binding, though nothing is verified', async () => {
      const { port } = middle.address() as AddressInfo;
      await expect(encrypted(secured, 'sslmode=require', '127.0.0.1', port)).rejects.toMatchObject({
        message: expect.stringContaining('SCRAM channel binding check failed'),
      });
    });

    test('is found out when it says that the server offers none', async () => {
      const { port } = middle.address() as AddressInfo;
      strips = true;
      await expect(encrypted(secured, 'sslmode=require', '127.0.0.1', port)).rejects.toMatchObject({
        message: expect.stringContaining('SCRAM channel binding negotiation error'),
      });
    });
  });
});

/** AuthenticationSASL, which comes alone, with SCRAM-SHA-256 as the only mechanism. */
function withoutPlus(chunk: Buffer): Buffer {
  const plus = Buffer.from('SCRAM-SHA-256-PLUS\0');
  const at = chunk.indexOf(plus);
  if (at < 0) return chunk;
  const rest = Buffer.concat([chunk.subarray(0, at), chunk.subarray(at + plus.length)]);
  rest.writeInt32BE(rest.length - 1, 1);
  return rest;
}
