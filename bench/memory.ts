/**
 * What clients cost in memory: idle ones, busy ones, and one that reads a long answer slowly while others must not wait for it.
 * The proxy runs in a process of its own, whose RSS is read from /proc.
 * Run: npx tsc && node dist/bench/memory.js [idle clients, default 2000] [MB that the slow reader asks for, default 2000]
 * 5,000 clients need `ulimit -n 12000`.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import pino from 'pino';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { ProxyServer } from '../proxy/proxy-server.js';
import { encodeQuery, encodeStartup } from '../proxy/wire/frontend.js';
import { Catalog } from '../topology/catalog/catalog.js';
import { Registry } from '../topology/catalog/registry.js';
import { initCatalog } from '../topology/catalog/schema.js';

const BUSY = 500;
const READY = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);

async function serve(catalogUrl: string): Promise<void> {
  const catalog = await Catalog.connect(catalogUrl);
  const proxy = await ProxyServer.start({
    catalog,
    name: 'memory',
    listen: { host: '127.0.0.1', port: 0 },
    auth: { method: 'trust', users: new Map() },
    serverPasswords: new Map([['postgres', new URL(catalogUrl).password]]),
    pool: { size: 20, idleTimeoutMs: 60_000, connectTimeoutMs: 5000, queueTimeoutMs: 60_000 },
    limits: { maxClients: 100_000, loginTimeoutMs: 60_000, holdTimeoutMs: 10_000 },
    lease: { ttlMs: 60_000 },
    telemetry: { flushIntervalMs: 60_000 },
    logger: pino({ level: 'warn' }, pino.destination(2)),
  });
  process.on('message', () => {
    globalThis.gc?.();
    const { heapUsed, external, arrayBuffers } = process.memoryUsage();
    process.send?.({ heapUsed, external, arrayBuffers });
  });
  process.send?.(proxy.port);
}

/** A client that is logged in. */
function login(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('error', reject);
    socket.write(encodeStartup({ user: 'postgres', database: 'shop' }));
    const onData = (chunk: Buffer) => {
      if (!chunk.includes(READY)) return;
      socket.off('data', onData);
      resolve(socket);
    };
    socket.on('data', onData);
  });
}

async function rss(child: ChildProcess): Promise<number> {
  const status = await readFile(`/proc/${child.pid}/status`, 'utf8');
  return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) * 1024;
}

const mb = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;

async function look(child: ChildProcess): Promise<{ rss: number; heap: number }> {
  const answer = new Promise<{ heapUsed: number; external: number }>((resolve) => {
    child.once('message', (m) => resolve(m as { heapUsed: number; external: number }));
  });
  child.send('look');
  const { heapUsed, external } = await answer;
  return { rss: await rss(child), heap: heapUsed + external };
}

/** Median and worst time of `SELECT 1`, in ms. */
async function latency(port: number): Promise<string> {
  const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'shop' });
  await client.connect();
  const times: number[] = [];
  for (let i = 0; i < 500; i++) {
    const start = performance.now();
    await client.query('SELECT 1');
    times.push(performance.now() - start);
  }
  await client.end();
  times.sort((a, b) => a - b);
  return `median ${times[250]?.toFixed(2)} ms, worst ${times[499]?.toFixed(2)} ms`;
}

async function measure(port: number, child: ChildProcess, idle: number, megabytes: number): Promise<void> {
  const sockets: Socket[] = [await login(port)];
  const empty = await look(child);
  console.log(`no clients:            RSS ${mb(empty.rss)}, heap ${mb(empty.heap)}`);
  for (let i = 0; i < idle; i += 50)
    sockets.push(...(await Promise.all(Array.from({ length: 50 }, () => login(port)))));
  const full = await look(child);
  const each = (bytes: number) => `${(bytes / idle / 1024).toFixed(1)} KiB`;
  console.log(
    `${idle} idle clients:     RSS ${mb(full.rss)}, heap ${mb(full.heap)}: each ${each(full.rss - empty.rss)} of RSS, ${each(full.heap - empty.heap)} of heap`,
  );
  let answered = 0;
  let stop = false;
  for (const socket of sockets.slice(0, BUSY)) {
    socket.on('data', (chunk: Buffer) => {
      if (!chunk.includes(READY)) return;
      answered += 1;
      if (!stop) socket.write(encodeQuery('SELECT repeat($$x$$, 1000)'));
    });
    socket.write(encodeQuery('SELECT repeat($$x$$, 1000)'));
  }
  while (answered < 100_000) await new Promise((resolve) => setTimeout(resolve, 100));
  console.log(
    `${Math.min(BUSY, sockets.length)} of them busy:       RSS ${mb(await rss(child))} after ${answered} statements`,
  );
  stop = true;
  console.log(`SELECT 1 alone:        ${await latency(port)}`);
  const slow = await login(port);
  let peak = 0;
  let read = 0;
  slow.on('data', (chunk: Buffer) => {
    read += chunk.length;
    slow.pause();
    setTimeout(() => slow.resume(), 2);
  });
  slow.write(encodeQuery(`SELECT repeat('x', 1000) FROM generate_series(1, ${megabytes * 1000})`));
  const during = await latency(port);
  for (let i = 0; i < 20; i++) {
    peak = Math.max(peak, await rss(child));
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  console.log(`with a slow reader:    ${during}; peak RSS ${mb(peak)} after ${mb(read)} of ${megabytes} MB`);
  for (const socket of [...sockets, slow]) socket.destroy();
}

async function main(): Promise<void> {
  const [idle = 2000, megabytes = 2000] = process.argv.slice(2).map(Number);
  console.log(`${cpus()[0]?.model}, ${cpus().length} CPUs, Node ${process.version}`);
  const cluster = await EmbeddedCluster.start();
  let child: ChildProcess | null = null;
  try {
    const admin = new pg.Client({ connectionString: cluster.url('postgres') });
    await admin.connect();
    await admin.query('CREATE DATABASE shop');
    await admin.query('CREATE DATABASE foreshard');
    await admin.end();
    const pool = new pg.Pool({ connectionString: cluster.url('foreshard') });
    await initCatalog(pool, 'shop');
    await pool.end();
    const catalog = await Catalog.connect(cluster.url('foreshard'));
    await new Registry(catalog, 'bench').addShard({ name: 's1', url: cluster.url('shop') });
    await catalog.close();
    child = fork(fileURLToPath(import.meta.url), ['serve', cluster.url('foreshard')], { execArgv: ['--expose-gc'] });
    const started = child;
    const port = await new Promise<number>((resolve) => started.once('message', (m) => resolve(m as number)));
    await measure(port, child, idle, megabytes);
  } finally {
    child?.kill();
    await cluster.stop();
  }
}

if (process.argv[2] === 'serve') await serve(process.argv[3] as string);
else await main();
