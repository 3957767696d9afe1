/**
 * What TLS costs the proxy: handshakes, full and resumed; queries; idle clients. The proxy runs in a process of its own, whose
 * processor time and RSS are read there: the clients' side, on the same machine, is not in them.
 * Needs openssl, and pgbench for the queries. Run: npx tsc && node dist/bench/tls.js [handshakes] [queries] [memory]; default: all.
 */
import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { serverUser } from '../deploy/embedded/unprivileged.js';
import { encodeStartup } from '../proxy/wire/frontend.js';
import { newCatalog } from './new-catalog.js';
import { startTrustingProxy } from './trusting-proxy.js';

const ROUNDS = 3;
const HANDSHAKES = 1_000;
/** At a time. */
const PARALLEL = 8;
const SECONDS = 2;
const CLIENTS = [1, 16, 64];
const IDLE = 2_000;
/** As in memory.ts. */
const WARM = 1_500;
const KEYS: Readonly<Record<string, readonly string[]>> = {
  'ECDSA P-256': ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'],
  'RSA 2048': ['-newkey', 'rsa:2048'],
};

interface Usage {
  readonly cpuMs: number;
  readonly rss: number;
}

async function serve(catalogUrl: string, certFile: string, keyFile: string): Promise<void> {
  const proxy = await startTrustingProxy(catalogUrl, {
    name: 'tls',
    logLevel: 'fatal',
    tls: { mode: 'allow', certFile, keyFile },
  });
  process.on('message', () => {
    globalThis.gc?.();
    const { user, system } = process.cpuUsage();
    process.send?.({ cpuMs: (user + system) / 1000, rss: process.memoryUsage.rss() } satisfies Usage);
  });
  process.send?.(proxy.port);
}

/** A proxy of its own, that nobody has used before. */
class Served {
  readonly #child: ChildProcess;
  port = 0;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  static async start(...args: string[]): Promise<Served> {
    const child = fork(fileURLToPath(import.meta.url), ['serve', ...args], { execArgv: ['--expose-gc'] });
    const proxy = new Served(child);
    [proxy.port] = (await once(child, 'message')) as [number];
    return proxy;
  }

  async usage(): Promise<Usage> {
    this.#child.send('usage');
    const [usage] = (await once(this.#child, 'message')) as [Usage];
    return usage;
  }

  async stop(): Promise<void> {
    this.#child.kill();
    await once(this.#child, 'exit');
  }
}

const out = (line: string) => process.stdout.write(`${line}\n`);
const median = (values: readonly number[]) => [...values].sort((a, b) => a - b)[values.length >> 1] as number;

function handshake(port: number, session?: Buffer): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = connectTls({
      port,
      host: '127.0.0.1',
      ALPNProtocols: ['postgresql'],
      rejectUnauthorized: false,
      ...(session === undefined ? {} : { session }),
    });
    socket.once('error', reject);
    socket.once('secureConnect', () => resolve(socket));
  });
}

/** A TCP connection that says nothing. */
async function bare(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  await once(socket, 'connect');
  return socket;
}

async function many(count: number, one: () => Promise<Socket>): Promise<void> {
  let left = count;
  await Promise.all(
    Array.from({ length: PARALLEL }, async () => {
      while (left-- > 0) {
        const socket = await one();
        socket.on('error', () => undefined);
        socket.destroy();
        await once(socket, 'close');
      }
    }),
  );
}

async function handshakes(name: string, proxy: Served): Promise<void> {
  const first = await handshake(proxy.port);
  first.write(encodeStartup({ user: 'postgres', database: 'shop' }));
  const [session] = (await once(first, 'session')) as [Buffer];
  first.destroy();
  const resumed = await handshake(proxy.port, session);
  if (!resumed.isSessionReused()) throw new Error('the session was not resumed');
  resumed.destroy();
  const kinds: Record<string, () => Promise<Socket>> = {
    'TCP alone': () => bare(proxy.port),
    full: () => handshake(proxy.port),
    resumed: () => handshake(proxy.port, session),
  };
  const found = new Map(Object.keys(kinds).map((kind) => [kind, { cost: [] as number[], rate: [] as number[] }]));
  for (let round = 0; round <= ROUNDS; round++)
    for (const [kind, one] of Object.entries(kinds)) {
      const before = await proxy.usage();
      const began = performance.now();
      await many(HANDSHAKES, one);
      const ms = performance.now() - began;
      const { cpuMs } = await proxy.usage();
      if (round === 0) continue; // warming up
      found.get(kind)?.cost.push((cpuMs - before.cpuMs) / HANDSHAKES);
      found.get(kind)?.rate.push((HANDSHAKES / ms) * 1000);
    }
  for (const [kind, { cost, rate }] of found)
    out(
      `${name.padEnd(12)} ${kind.padEnd(10)} ${median(cost).toFixed(3)} ms of the proxy each (${(1000 / median(cost)).toFixed(0)}/s of a core); ${median(rate).toFixed(0)}/s here, clients included`,
    );
}

/** How the clients come to the proxy, and the proxy to the server. */
const WAYS = [
  { name: 'clear', client: 'disable', server: 'disable' },
  { name: 'TLS of clients', client: 'require', server: 'disable' },
  { name: 'TLS of the server', client: 'disable', server: 'require' },
  { name: 'TLS of both', client: 'require', server: 'require' },
] as const;

/** @param proxies by the sslmode of their shard */
async function queries(proxies: Readonly<Record<'disable' | 'require', Served>>): Promise<void> {
  for (const clients of CLIENTS) {
    const found = WAYS.map((way) => ({ ...way, tps: [] as number[], us: [] as number[] }));
    for (let round = 0; round <= ROUNDS; round++)
      for (const { client, server, tps, us } of found) {
        const proxy = proxies[server];
        const before = await proxy.usage();
        const asked = ['-n', '-S', '-c', String(clients), '-T', String(SECONDS)];
        const text = execFileSync('pgbench', [...asked, '-h', '127.0.0.1', '-p', String(proxy.port), 'shop'], {
          env: { ...process.env, PGSSLMODE: client, PGUSER: 'postgres' },
          encoding: 'utf8',
          stdio: ['ignore', 'pipe', 'ignore'],
        });
        const { cpuMs } = await proxy.usage();
        if (round === 0) continue; // warming up
        tps.push(Number(/tps = ([\d.]+)/.exec(text)?.[1]));
        us.push(((cpuMs - before.cpuMs) * 1000) / Number(/actually processed: (\d+)/.exec(text)?.[1]));
      }
    const [clear] = found as [(typeof found)[number]];
    for (const { name, tps, us } of found)
      out(
        `${String(clients).padStart(3)} clients, ${name.padEnd(17)} ${median(tps).toFixed(0)}/s, ${ratios(tps, clear.tps)}; ` +
          `${median(us).toFixed(1)} µs of the proxy each, ${ratios(us, clear.us)}`,
      );
  }
}

/** Each round's own ratio: their median, lowest and highest. */
function ratios(values: readonly number[], base: readonly number[]): string {
  const all = values.map((value, i) => value / (base[i] as number));
  return `× ${median(all).toFixed(2)} (${Math.min(...all).toFixed(2)}–${Math.max(...all).toFixed(2)})`;
}

async function login(socket: Socket): Promise<Socket> {
  socket.write(encodeStartup({ user: 'postgres', database: 'shop' }));
  await new Promise<void>((resolve) => {
    const onData = (chunk: Buffer) => {
      if (!chunk.includes(Buffer.from([0x5a, 0, 0, 0, 5, 0x49]))) return;
      socket.off('data', onData);
      resolve();
    };
    socket.on('data', onData);
  });
  return socket;
}

async function memory(proxy: Served): Promise<void> {
  const sockets: Socket[] = [];
  for (const [kind, one] of [
    ['clear', () => bare(proxy.port)],
    ['TLS', () => handshake(proxy.port)],
  ] as const) {
    for (let i = 0; i < WARM; i++) sockets.push(await login(await one()));
    const before = await proxy.usage();
    for (let i = 0; i < IDLE; i++) sockets.push(await login(await one()));
    const after = await proxy.usage();
    out(`an idle client, ${kind}: ${((after.rss - before.rss) / IDLE / 1024).toFixed(1)} KiB of RSS`);
  }
  for (const socket of sockets) socket.destroy();
}

/** Has the server speak TLS with those who ask for it. */
async function secure(client: pg.Client, { cert, key }: Certificate): Promise<void> {
  const { rows } = await client.query<{ folder: string }>(`SELECT current_setting('data_directory') AS folder`);
  const owner = serverUser();
  for (const [from, name] of [
    [cert, 'server.crt'],
    [key, 'server.key'],
  ] as const) {
    const to = join((rows[0] as { folder: string }).folder, name);
    copyFileSync(from, to);
    chmodSync(to, 0o600);
    if (owner !== undefined) chownSync(to, owner.uid, owner.gid);
  }
  await client.query('ALTER SYSTEM SET ssl = on');
  await client.query('SELECT pg_reload_conf()');
}

interface Certificate {
  readonly cert: string;
  readonly key: string;
}

function makeCertificate(dir: string, kind: string): Certificate {
  const [cert, key] = [join(dir, `${kind}.crt`), join(dir, `${kind}.key`)];
  const how = ['-x509', '-nodes', ...(KEYS[kind] as readonly string[]), '-subj', '/CN=localhost', '-days', '2'];
  execFileSync('openssl', ['req', ...how, '-keyout', key, '-out', cert], { stdio: 'ignore' });
  chmodSync(key, 0o600);
  return { cert, key };
}

const [, , role, ...rest] = process.argv;
if (role === 'serve') await serve(...(rest as [string, string, string]));
else {
  const wanted = process.argv.slice(2);
  const wants = (part: string) => wanted.length === 0 || wanted.includes(part);
  const dir = mkdtempSync(join(tmpdir(), 'foreshard-bench-'));
  const cluster = await EmbeddedCluster.start({ settings: { fsync: 'off' } });
  try {
    const { versions } = process;
    out(
      `${cpus()[0]?.model.trim()}, ${cpus().length} processors, Node ${versions.node}, OpenSSL ${versions.openssl}; medians of ${ROUNDS} rounds`,
    );
    const certificates = Object.fromEntries(Object.keys(KEYS).map((kind) => [kind, makeCertificate(dir, kind)]));
    const usual = certificates['ECDSA P-256'] as Certificate;
    const admin = new pg.Client({ connectionString: cluster.url('postgres') });
    await admin.connect();
    for (const database of ['shop', 'disable', 'require']) await admin.query(`CREATE DATABASE ${database}`);
    await secure(admin, usual);
    await admin.end();
    // Without uselibpqcompat node-postgres asks for a certificate that it can check.
    for (const sslmode of ['disable', 'require'])
      await (
        await newCatalog(cluster.url(sslmode), 'shop', [
          `${cluster.url('shop')}?uselibpqcompat=true&sslmode=${sslmode}`,
        ])
      ).close();
    const start = ({ cert, key }: Certificate, sslmode: 'disable' | 'require' = 'disable') =>
      Served.start(cluster.url(sslmode), cert, key);
    if (wants('handshakes'))
      for (const [kind, certificate] of Object.entries(certificates)) {
        const proxy = await start(certificate);
        await handshakes(kind, proxy);
        await proxy.stop();
      }
    if (wants('queries')) {
      execFileSync('pgbench', ['-i', '-q', '-s', '1', cluster.url('shop')], { stdio: 'ignore' });
      const proxies = { disable: await start(usual), require: await start(usual, 'require') };
      await queries(proxies);
      for (const proxy of Object.values(proxies)) await proxy.stop();
    }
    if (wants('memory')) {
      const proxy = await start(usual);
      await memory(proxy);
      await proxy.stop();
    }
  } finally {
    await cluster.stop();
    rmSync(dir, { recursive: true, force: true });
  }
}
