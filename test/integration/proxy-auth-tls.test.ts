import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { AuthOptions } from '../../proxy/auth/authentication.js';
import { CertificateAuthority, hasOpenssl } from '../support/certificates.js';
import { Sharded, startProxy } from '../support/sharded.js';
import { findTools, run } from '../support/tools.js';

const tools = findTools();

const hasIpv6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === '::1'));
if (!hasIpv6) process.stderr.write('skipped: this machine has no address ::1\n');

/** How clients prove who they are, and that nobody is in the middle, over TLS as it is. */
describe.skipIf(!hasOpenssl)('authentication over TLS', () => {
  let s: Sharded;
  let authority: CertificateAuthority;
  let server: { cert: string; key: string };

  beforeAll(async () => {
    authority = new CertificateAuthority();
    server = authority.issue('server', '/CN=localhost', { names: 'DNS:localhost,IP:127.0.0.1' });
    s = await Sharded.start({ splitAt: null, tls: tlsOf(server) });
  });
  afterAll(() => s.stop());

  const tlsOf = (files: { cert: string; key: string }) =>
    ({ mode: 'allow', certFile: files.cert, keyFile: files.key, caFile: authority.root.cert }) as const;

  async function withProxy(
    auth: Partial<AuthOptions>,
    use: (port: number) => Promise<void>,
    files: { cert: string; key: string } = server,
  ): Promise<void> {
    const proxy = await startProxy(s.catalog, {
      splitAt: null,
      tls: tlsOf(files),
      auth: { method: 'scram-sha-256', users: new Map(), ...auth },
      serverPasswords: new Map([['app', 'secret']]),
    });
    try {
      await use(proxy.port);
    } finally {
      await proxy.close();
    }
  }

  /** node-postgres: `ok` or the error, and the SASL mechanism that it took. */
  async function login(port: number, password: string, config: pg.ClientConfig = {}) {
    const client = new pg.Client({
      host: 'localhost',
      port,
      user: 'app',
      database: 'shop',
      password,
      ssl: { ca: readFileSync(authority.root.cert) },
      ...config,
    });
    client.on('error', () => undefined);
    const { connection } = client as unknown as {
      connection: { on(event: string, listener: () => void): void };
    };
    let mechanism: string | undefined;
    connection.on('authenticationSASLContinue', () => {
      mechanism = (client as unknown as { saslSession?: { mechanism: string } }).saslSession?.mechanism;
    });
    try {
      await client.connect();
      await client.query('SELECT 1');
      return { outcome: 'ok', mechanism };
    } catch (error) {
      return { outcome: `${(error as { code?: string }).code}: ${(error as Error).message}`, mechanism };
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  const refused = '28P01: password authentication failed for user "app"';

  it('node-postgres binds the channel', async () => {
    const bound = { enableChannelBinding: true } as pg.ClientConfig;
    expect(await login(s.proxy.port, 'secret', bound)).toEqual({ outcome: 'ok', mechanism: 'SCRAM-SHA-256-PLUS' });
    expect(await login(s.proxy.port, 'wrong', bound)).toMatchObject({ outcome: refused });
    expect(await login(s.proxy.port, 'secret')).toEqual({ outcome: 'ok', mechanism: 'SCRAM-SHA-256' });
  });

  it('a password in the clear goes over TLS only', async () => {
    await withProxy({ method: 'password' }, async (port) => {
      expect(await login(port, 'secret')).toMatchObject({ outcome: 'ok', mechanism: undefined });
      expect(await login(port, 'wrong')).toMatchObject({ outcome: refused });
      expect(await login(port, 'secret', { ssl: false })).toMatchObject({
        outcome: '28000: password authentication needs an encrypted connection',
      });
    });
  });

  it('a certificate logs in whom it names, or whom a map says', async () => {
    const of = (name: string) => {
      const { cert, key } = authority.issue(name, `/CN=${name}`);
      const ca = readFileSync(authority.root.cert);
      return { ssl: { ca, cert: readFileSync(cert), key: readFileSync(key) } };
    };
    const hba = ['hostssl all all all cert map=people'];
    await withProxy({ hba, ident: ['people app app', 'people Ann app'] }, async (port) => {
      expect(await login(port, '', of('app'))).toMatchObject({ outcome: 'ok' });
      expect(await login(port, '', of('Ann'))).toMatchObject({ outcome: 'ok' });
      expect(await login(port, '', of('Bob'))).toMatchObject({
        outcome: '28000: certificate authentication failed for user "app"',
      });
      expect(await login(port, '')).toMatchObject({
        outcome: '28000: connection requires a valid client certificate',
      });
      expect(await login(port, '', { ssl: false })).toMatchObject({
        outcome: '28000: no pg_hba.conf entry for host "127.0.0.1", user "app", database "shop", no encryption',
      });
    });
  });

  it('rules tell TLS from the clear', async () => {
    await withProxy({ hba: ['hostnossl all all all reject', 'hostssl all all all scram-sha-256'] }, async (port) => {
      expect(await login(port, 'secret')).toMatchObject({ outcome: 'ok' });
      expect(await login(port, 'secret', { ssl: false })).toMatchObject({
        outcome:
          '28000: pg_hba.conf rejects connection for host "127.0.0.1", user "app", database "shop", no encryption',
      });
    });
  });

  describe.skipIf(tools === null)('psql', () => {
    const psql = (port: number, password: string, settings: string) =>
      run(
        join(tools?.binDir ?? '', 'psql'),
        [
          '-XAtw',
          `host=localhost port=${port} user=app dbname=shop sslmode=verify-full sslrootcert=${authority.root.cert} ${settings}`,
          '-c',
          'SELECT current_user',
        ],
        { env: { PGPASSWORD: password } },
      );

    // The hash of the certificate's own signature is the one that both sides must take (RFC 5929).
    it.each(['sha256', 'sha384', 'sha512'])('binds the channel of a certificate signed with %s', async (digest) => {
      const files = authority.issue(`server-${digest}`, '/CN=localhost', { names: 'DNS:localhost', digest });
      await withProxy(
        {},
        async (port) => {
          const settings = 'channel_binding=require';
          expect(await psql(port, 'secret', settings)).toEqual({ code: 0, stdout: 'app\n', stderr: '' });
          expect((await psql(port, 'wrong', settings)).stderr).toContain(
            'password authentication failed for user "app"',
          );
        },
        files,
      );
    });

    const RSA = ['-newkey', 'rsa:2048'];
    const PSS = ['-sigopt', 'rsa_padding_mode:pss', '-sigopt', 'rsa_pss_saltlen:digest'];
    it.each<[string, readonly string[], string | null, readonly string[]]>([
      ['RSA', RSA, 'sha256', []],
      ['RSA-PSS', RSA, 'sha256', PSS],
      ['RSA-PSS', RSA, 'sha384', PSS],
      ['RSA-PSS', RSA, 'sha512', PSS],
    ])('binds the channel of a certificate signed with %s (%#)', async (_name, newKey, digest, signing) => {
      const other = new CertificateAuthority('another root', newKey);
      const files = other.issue('server', '/CN=localhost', { names: 'DNS:localhost', digest, signing });
      await withProxy(
        {},
        async (port) => {
          const outcome = await psql(port, 'secret', 'sslmode=require sslrootcert=none channel_binding=require');
          expect(outcome).toEqual({ code: 0, stdout: 'app\n', stderr: '' });
        },
        files,
      );
    });

    it('is not offered to bind to a certificate signed with Ed25519, which has no hash for it', async () => {
      const other = new CertificateAuthority('another root', ['-newkey', 'ed25519']);
      const files = other.issue('server', '/CN=localhost', { names: 'DNS:localhost', digest: null });
      await withProxy(
        {},
        async (port) => {
          const settings = 'sslmode=require sslrootcert=none channel_binding=';
          expect(await psql(port, 'secret', `${settings}prefer`)).toEqual({ code: 0, stdout: 'app\n', stderr: '' });
          expect((await psql(port, 'secret', `${settings}require`)).stderr).toContain(
            'channel binding is required, but server did not offer an authentication method that supports channel binding',
          );
        },
        files,
      );
    });

    it('looks at the certificate as its sslmode says', async () => {
      const stranger = new CertificateAuthority('somebody else').root.cert;
      const port = s.proxy.port;
      const ok = { code: 0, stdout: 'app\n', stderr: '' };
      for (const mode of ['require', 'verify-ca', 'verify-full'])
        expect(await psql(port, 'secret', `sslmode=${mode}`)).toEqual(ok);
      for (const mode of ['verify-ca', 'verify-full'])
        expect((await psql(port, 'secret', `sslmode=${mode} sslrootcert=${stranger}`)).stderr).toContain(
          'certificate verify failed',
        );
      const elsewhere = authority.issue('elsewhere', '/CN=elsewhere', { names: 'DNS:elsewhere' });
      await withProxy(
        {},
        async (other) => {
          expect(await psql(other, 'secret', 'sslmode=verify-ca')).toEqual(ok);
          expect((await psql(other, 'secret', 'sslmode=verify-full')).stderr).toContain(
            'does not match host name "localhost"',
          );
        },
        elsewhere,
      );
    });

    it.skipIf(!hasIpv6)('shows a certificate, and is judged by encryption and address, IPv6 included', async () => {
      const { cert, key } = authority.issue('psql', '/CN=app');
      const proxy = await startProxy(s.catalog, {
        splitAt: null,
        tls: { ...tlsOf(server), keyFile: authority.encrypt(server.key, 'open sesame'), keyPassphrase: 'open sesame' },
        listen: { host: ['127.0.0.1', '::1'] },
        auth: {
          method: 'reject',
          users: new Map(),
          hba: [
            'hostssl all all ::1/128 cert',
            'hostssl all all 127.0.0.1/32 scram-sha-256',
            'hostnossl all all ::1/128 scram-sha-256',
          ],
        },
        serverPasswords: new Map([['app', 'secret']]),
      });
      try {
        const ok = { code: 0, stdout: 'app\n', stderr: '' };
        const on = (address: string, settings: string) => psql(proxy.port, 'secret', `hostaddr=${address} ${settings}`);
        expect(await on('::1', `sslcert=${cert} sslkey=${key}`)).toEqual(ok);
        expect((await on('::1', '')).stderr).toContain('connection requires a valid client certificate');
        expect(await on('127.0.0.1', '')).toEqual(ok);
        expect(await on('::1', 'sslmode=disable')).toEqual(ok);
        expect((await on('127.0.0.1', 'sslmode=disable')).stderr).toContain(
          'no pg_hba.conf entry for host "127.0.0.1", user "app", database "shop", no encryption',
        );
      } finally {
        await proxy.close();
      }
    });

    it('does not come in without TLS where it is required', async () => {
      const proxy = await startProxy(s.catalog, { splitAt: null, tls: { ...tlsOf(server), mode: 'require' } });
      try {
        const { code, stderr } = await psql(proxy.port, 'secret', 'sslmode=disable');
        expect(code).toBe(2);
        expect(stderr).toMatch(/no pg_hba.conf entry .* no encryption\nHINT: .*sslmode=require/);
        // As with hostssl alone in pg_hba.conf, libpq tries again with what it was not asked for.
        for (const mode of ['allow', 'prefer', 'require'])
          expect((await psql(proxy.port, 'secret', `sslmode=${mode}`)).stdout).toBe('app\n');
      } finally {
        await proxy.close();
      }
    });

    it('without binding, or without SCRAM, as it likes', async () => {
      expect((await psql(s.proxy.port, 'secret', 'channel_binding=disable')).stdout).toBe('app\n');
      await withProxy({ method: 'password' }, async (port) => {
        expect((await psql(port, 'secret', 'channel_binding=prefer')).stdout).toBe('app\n');
        expect((await psql(port, 'secret', 'channel_binding=require')).stderr).toContain('channel binding');
      });
    });
  });
});
