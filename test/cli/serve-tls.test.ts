import { copyFileSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import type pg from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { encodeCancelRequest, encodeQuery, encodeSslRequest } from '../../proxy/wire/frontend.js';
import { CertificateAuthority, hasOpenssl } from '../support/certificates.js';
import { RawPeer } from '../support/raw-peer.js';
import { waitFor } from '../support/wait-for.js';
import { alive } from './process-tree.js';
import { type ServeProcesses, Serving } from './serving.js';
import { temporaryDirectory } from './temporary-directory.js';

const LOGIN = { user: 'app', database: 'shop', password: 'app-secret' };
const V1 = Buffer.from('PROXY TCP4 192.0.2.1 198.51.100.7 49152 5432\r\n');
const V2 = Buffer.from('0d0a0d0a000d0a515549540a2111000cc0000202c6336407c0001538', 'hex');

/** One that has logged in, and the process that has it. */
interface Peer {
  readonly peer: RawPeer;
  readonly socket: TLSSocket;
  readonly id: number;
  readonly secret: Buffer;
  readonly slot: number;
}

/** The parent hands sockets over of which it has read nothing: what comes on them is the children's to negotiate. */
describe.skipIf(!hasOpenssl)('several processes', () => {
  const dir = temporaryDirectory('foreshard-serve-tls-');
  let serving: Serving;
  let authority: CertificateAuthority;
  let files: { cert: string; key: string };
  let client: ConnectionOptions;
  let processes: ServeProcesses;

  beforeAll(async () => {
    serving = await Serving.start(dir);
    authority = new CertificateAuthority();
    files = authority.issue('server', '/CN=localhost', { names: 'DNS:localhost' });
    const { cert, key } = authority.issue('app', '/CN=app');
    client = { cert: readFileSync(cert), key: readFileSync(key) };
    serving.configure({
      workers: 2,
      listen: { port: 0, proxyProtocol: 'optional', trustedProxies: ['127.0.0.1'], socketDirectory: dir },
      tls: { mode: 'allow', certFile: files.cert, keyFile: files.key, caFile: authority.root.cert },
      admin: { users: ['app'] },
      auth: {
        hba: [
          'local all all scram-sha-256',
          'hostssl shop app 192.0.2.2/32 cert',
          'hostssl all all all scram-sha-256',
          'hostnossl foreshard_admin app 127.0.0.1/32 scram-sha-256',
          'hostnossl shop app 192.0.2.1/32 scram-sha-256',
        ],
      },
      serverPasswords: { app: { password: 'app-secret' } },
    });
    processes = await serving.serve();
  });
  afterAll(() => serving?.stop());

  function secure(options: ConnectionOptions): Promise<TLSSocket> {
    return new Promise((resolve, reject) => {
      const ca = readFileSync(authority.root.cert);
      const socket = connectTls({ ca, servername: 'localhost', ALPNProtocols: ['postgresql'], ...options });
      socket.once('error', reject);
      socket.once('secureConnect', () => {
        socket.off('error', reject);
        resolve(socket);
      });
    });
  }

  async function plain(header?: Buffer): Promise<RawPeer> {
    const peer = await RawPeer.connect(processes.port);
    if (header !== undefined) peer.send(header);
    return peer;
  }

  async function encrypted(
    way: 'direct' | 'negotiated',
    options: ConnectionOptions = {},
    header?: Buffer,
  ): Promise<TLSSocket> {
    const peer = await plain(header);
    if (way === 'negotiated') {
      peer.send(encodeSslRequest());
      expect((await peer.bytes(1)).toString()).toBe('S');
    }
    return secure({ socket: peer.detach(), ...options });
  }

  async function logIn(socket: TLSSocket, login: Parameters<RawPeer['login']>[0] = LOGIN): Promise<Peer> {
    const peer = new RawPeer(socket);
    const body = (await peer.login(login)).find((message) => message.type === 'K')?.body as Buffer;
    const id = body.readInt32BE(0);
    return { peer, socket, id, secret: body.subarray(4), slot: id >>> 24 };
  }

  /** One in each process: whoever has left a moment ago may still count, and a process that is held up is passed over. */
  async function inBoth(make: () => Promise<Peer>): Promise<readonly Peer[]> {
    const bySlot = new Map<number, Peer>();
    const others: Peer[] = [];
    while (bySlot.size < 2 && others.length < 100) {
      const made = await make();
      if (bySlot.has(made.slot)) others.push(made);
      else bySlot.set(made.slot, made);
    }
    for (const { peer } of others) peer.end();
    expect(bySlot.size).toBe(2);
    return [...bySlot.values()];
  }

  const admin = () =>
    processes.connect(processes.url.replace('/shop', '/foreshard_admin')).then((c) => c.client as pg.Client);

  async function clientsShown(operator: pg.Client) {
    const { rows } = await operator.query<Record<string, unknown>>('SHOW CLIENTS');
    return rows.filter((row) => row.database === 'shop');
  }

  async function allGone(operator: pg.Client): Promise<void> {
    await waitFor(async () => (await clientsShown(operator)).length === 0, { what: 'clients to be gone' });
  }

  it.each<[string, 'direct' | 'negotiated', Buffer | undefined, string]>([
    ['asked for', 'negotiated', undefined, '127.0.0.1'],
    ['directly', 'direct', undefined, '127.0.0.1'],
    ['asked for, behind a PROXY header of version 1', 'negotiated', V1, '192.0.2.1'],
    ['directly, behind a PROXY header of version 1', 'direct', V1, '192.0.2.1'],
    ['asked for, behind a PROXY header of version 2, with a certificate', 'negotiated', V2, '192.0.2.2'],
    ['directly, behind a PROXY header of version 2, with a certificate', 'direct', V2, '192.0.2.2'],
  ])('take clients to TLS %s', async (_name, way, header, address) => {
    const operator = await admin();
    const withCertificate = header === V2;
    const both = await inBoth(async () =>
      logIn(
        await encrypted(way, withCertificate ? client : {}, header),
        // Who has a certificate is asked for nothing more.
        withCertificate ? { user: 'app', database: 'shop' } : LOGIN,
      ),
    );
    const shown = await clientsShown(operator);
    for (const row of shown) expect(row).toMatchObject({ addr: address, tls: expect.stringMatching(/^TLSv1\.3/) });
    expect(new Set(shown.map((row) => row.process)).size).toBe(2);
    for (const { peer } of both) {
      peer.send(encodeQuery('SELECT id FROM orders WHERE tenant_id = 1'));
      await peer.until('Z');
      peer.end();
    }
    await allGone(operator);
    await operator.end();
  });

  it('judge by address and encryption, and refuse without a certificate where it is asked for', async () => {
    const clear = await plain(V1);
    await clear.login(LOGIN);
    clear.end();
    for (const header of [undefined, V2]) {
      const refused = await plain(header);
      await expect(refused.login(LOGIN)).rejects.toThrow(/no pg_hba.conf entry for host .* no encryption/);
    }
    const nobody = new RawPeer(await encrypted('direct', {}, V2));
    await expect(nobody.login(LOGIN)).rejects.toThrow('connection requires a valid client certificate');
  });

  it('serve a Unix socket, over which there is neither TLS nor a PROXY header', async () => {
    const path = join(dir, `.s.PGSQL.${processes.port}`);
    const open = () =>
      new Promise<RawPeer>((resolve, reject) => {
        const socket = connect(path, () => resolve(new RawPeer(socket)));
        socket.once('error', reject);
      });
    const slots: number[] = [];
    const peers: RawPeer[] = [];
    for (let i = 0; i < 2; i++) {
      const peer = await open();
      peer.send(encodeSslRequest());
      expect((await peer.bytes(1)).toString()).toBe('N');
      const key = (await peer.login(LOGIN)).find((message) => message.type === 'K');
      slots.push((key?.body.readInt32BE(0) ?? 0) >>> 24);
      peers.push(peer);
    }
    expect(new Set(slots).size).toBe(2);
    for (const peer of peers) peer.end();
  });

  it('resume each other’s sessions, with the certificate that the client showed then', async () => {
    const operator = await admin();
    await allGone(operator);
    const first = await encrypted('direct', client, V2);
    const ticket = new Promise<Buffer>((resolve) => first.once('session', resolve));
    const one = await logIn(first, { user: 'app', database: 'shop' });
    const session = await ticket;
    const other = await logIn(await encrypted('negotiated', { ...client, session }, V2), {
      user: 'app',
      database: 'shop',
    });
    expect(other.slot).not.toBe(one.slot);
    expect(other.socket.isSessionReused()).toBe(true);
    one.peer.end();
    other.peer.end();
    await operator.end();
  });

  it('carry a cancel request over TLS to the process that has the client', async () => {
    const both = await inBoth(async () => logIn(await encrypted('negotiated')));
    for (const { peer, id, secret } of both) {
      peer.send(encodeQuery('SELECT pg_sleep(600)'));
      await waitFor(
        async () =>
          (
            await serving.direct(
              'postgres',
              `SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'`,
            )
          ).length === 1,
        { what: 'the statement to run' },
      );
      const canceler = new RawPeer(await encrypted('direct'));
      canceler.send(encodeCancelRequest(id, secret));
      await canceler.expectClose();
      await peer.expect('T');
      expect(await peer.expectError()).toMatchObject({ sqlstate: '57014' });
      await peer.until('Z');
    }
    for (const { peer } of both) peer.end();
  });

  it('have new certificates after SIGHUP, all of them; sessions from before are not resumed', async () => {
    const first = await encrypted('direct');
    const ticket = new Promise<Buffer>((resolve) => first.once('session', resolve));
    const before = await logIn(first);
    const session = await ticket;
    const serial = first.getPeerCertificate().serialNumber;
    const next = authority.issue('next', '/CN=localhost', { names: 'DNS:localhost' });
    copyFileSync(next.cert, files.cert);
    copyFileSync(next.key, files.key);
    processes.signal('SIGHUP');
    await processes.logged('the configuration was read again');
    const both = await inBoth(async () => logIn(await encrypted('direct', { session })));
    for (const { socket, peer } of both) {
      expect(socket.isSessionReused()).toBe(false);
      expect(socket.getPeerCertificate().serialNumber).not.toBe(serial);
      peer.end();
    }
    before.peer.send(encodeQuery('SELECT 1'));
    await before.peer.until('Z');
    before.peer.end();
  });

  it('cut a client of another process, and pause all of them', async () => {
    const operator = await admin();
    await allGone(operator);
    const clients = await inBoth(async () => logIn(await encrypted('negotiated')));
    for (const { id, peer } of clients) {
      await operator.query(`KILL_CLIENT ${id}`);
      expect(await peer.expectError()).toMatchObject({ sqlstate: '57P01' });
    }
    await expect(operator.query('KILL_CLIENT 1')).rejects.toMatchObject({ code: '42704' });
    await operator.query('PAUSE');
    const waiting = [0, 1].map(async () => logIn(await encrypted('negotiated')));
    await waitFor(async () => (await clientsShown(operator)).filter((row) => row.state === 'waiting').length === 2, {
      what: 'two that wait',
    });
    await operator.query('RESUME');
    for (const { peer } of await Promise.all(waiting)) peer.end();
    await operator.end();
  });

  it('hold what was held before when one of them is replaced, and when all are', async () => {
    const operator = await admin();
    await operator.query('PAUSE');
    await operator.query('DISABLE shop');
    const databases = async (who: pg.Client) =>
      (await who.query<{ paused: number; disabled: number }>('SHOW DATABASES')).rows.map((row) => [
        row.paused,
        row.disabled,
      ]);
    expect(await databases(operator)).toEqual([[1, 1]]);

    const children = processes.children;
    processes.signal('SIGUSR2');
    await processes.logged('restarted');
    await operator.end();
    await waitFor(() => alive(children).length === 0, { what: 'the processes from before to end' });
    const fresh = await admin();
    expect(await databases(fresh)).toEqual([[1, 1]]);
    await fresh.end();
    // Every process by itself: whichever gets the client refuses it.
    for (let i = 0; i < 4; i++)
      await expect(encrypted('negotiated').then((socket) => logIn(socket))).rejects.toThrow(/not currently accepting/);

    const proxies = processes.children;
    for (const pid of proxies) process.kill(pid, 'SIGKILL');
    await waitFor(() => alive(proxies).length === 0, { what: 'the end of all' });
    const last = await admin();
    expect(await databases(last)).toEqual([[1, 1]]);
    await last.query('ENABLE shop');
    const waiting = logIn(await encrypted('negotiated'));
    await waitFor(async () => (await clientsShown(last)).some((row) => row.state === 'waiting'), {
      what: 'one that waits',
    });
    await last.query('RESUME');
    (await waiting).peer.end();
    await last.end();
  });

  it('end at the word of an administrator: SHUTDOWN', async () => {
    const children = processes.children;
    const operator = await admin();
    await operator.query('SHUTDOWN');
    expect(await processes.ended()).toBe(0);
    expect(alive(children)).toEqual([]);
    await operator.end().catch(() => undefined);
  });
});
