/**
 * What clients cost in memory: idle ones, busy ones, and one that reads a long answer slowly while others must not wait for it.
 * The proxy runs in a process of its own, whose RSS is read from /proc.
 * Run: npx tsc && node dist/bench/memory.js [idle clients, default 2000] [MB that the slow reader asks for, default 10,000]
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

/** Clients that come first, so that the others show what a client costs. */
const WARM = 200;
const BUSY = 500;
const PER_SECOND = 4;
/** MB of one message. */
const LARGE = 300;
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

interface Memory {
  readonly rss: number;
  readonly heap: number;
  /** Buffers and what else is outside of the heap. */
  readonly external: number;
}

async function look(child: ChildProcess): Promise<Memory> {
  const answer = new Promise<{ heapUsed: number; external: number }>((resolve) => {
    child.once('message', (m) => resolve(m as { heapUsed: number; external: number }));
  });
  child.send('look');
  const { heapUsed, external } = await answer;
  return { rss: await rss(child), heap: heapUsed, external };
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

/** Asks each of these clients' statements `PER_SECOND` times a second, until told to stop. @returns how to stop it, and how many were answered */
function keepBusy(sockets: readonly Socket[]): { stop: () => void; answered: () => number } {
  let answered = 0;
  let stopped = false;
  for (const [i, socket] of sockets.entries()) {
    const ask = () => {
      if (!stopped) socket.write(encodeQuery('SELECT repeat($$x$$, 1000)'));
    };
    socket.on('data', (chunk: Buffer) => {
      if (!chunk.includes(READY)) return;
      answered += 1;
      setTimeout(ask, 1000 / PER_SECOND);
    });
    setTimeout(ask, (i * 1000) / PER_SECOND / sockets.length);
  }
  return {
    stop: () => {
      stopped = true;
    },
    answered: () => answered,
  };
}

/** The largest RSS while `work` goes on. */
async function peakOf(child: ChildProcess, work: Promise<unknown>): Promise<number> {
  let done = false;
  const end = work.finally(() => {
    done = true;
  });
  let peak = 0;
  while (!done) {
    peak = Math.max(peak, await rss(child));
    await pause(100);
  }
  await end;
  return peak;
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** Sends a query and reads its answer, up to the ReadyForQuery. */
async function run(socket: Socket, sql: string): Promise<void> {
  let last = Buffer.alloc(0);
  const done = new Promise<void>((resolve, reject) => {
    socket.once('close', () => reject(new Error('closed')));
    socket.on('data', (chunk: Buffer) => {
      last = Buffer.concat([last, chunk]).subarray(-READY.length);
      if (last.equals(READY)) resolve();
    });
  });
  socket.write(encodeQuery(sql));
  await done;
  socket.removeAllListeners('data');
}

/** One CopyData message of so many megabytes. */
async function copyIn(socket: Socket, megabytes: number): Promise<void> {
  await run(socket, 'CREATE TABLE IF NOT EXISTS large (v text)');
  const answer = new Promise<void>((resolve) => socket.once('data', () => resolve()));
  socket.write(encodeQuery('COPY large FROM STDIN'));
  await answer;
  const piece = Buffer.alloc(1e6, 'x');
  const head = Buffer.alloc(5);
  head[0] = 0x64;
  head.writeInt32BE(4 + megabytes * piece.length + 1, 1);
  socket.write(head);
  for (let i = 0; i < megabytes; i++)
    if (!socket.write(piece)) await new Promise<void>((resolve) => socket.once('drain', () => resolve()));
  socket.write(Buffer.from('\n'));
  const done = new Promise<void>((resolve) => {
    socket.on('data', (chunk: Buffer) => chunk.includes(READY) && resolve());
  });
  socket.write(Buffer.from([0x63, 0, 0, 0, 4]));
  await done;
  socket.removeAllListeners('data');
}

async function measure(port: number, child: ChildProcess, idle: number, megabytes: number): Promise<void> {
  // The first clients pay for what all use.
  const sockets = await logins(port, WARM);
  await run(sockets[0] as Socket, 'SELECT 1');
  const empty = await look(child);
  console.log(
    `${WARM} clients:           RSS ${mb(empty.rss)}, heap ${mb(empty.heap)}, external ${mb(empty.external)}`,
  );
  sockets.push(...(await logins(port, idle)));
  const full = await look(child);
  const each = (bytes: number) => `${(bytes / idle / 1024).toFixed(1)} KiB`;
  console.log(
    `${idle} more, idle:       RSS ${mb(full.rss)}, heap ${mb(full.heap)}, external ${mb(full.external)}: each ${each(full.rss - empty.rss)} of RSS, ${each(full.heap - empty.heap)} of heap, ${each(full.external - empty.external)} external`,
  );
  const busy = keepBusy(sockets.slice(0, BUSY));
  await pause(10_000);
  console.log(`${BUSY} of them busy:       RSS ${mb(await rss(child))} after ${busy.answered()} statements in 10 s`);
  console.log(`SELECT 1 meanwhile:    ${await latency(port)}`);
  const slow = await login(port);
  let read = 0;
  slow.on('data', (chunk: Buffer) => {
    read += chunk.length;
    slow.pause();
    setTimeout(() => slow.resume(), 2);
  });
  slow.write(encodeQuery(`SELECT repeat('x', 1000) FROM generate_series(1, ${megabytes * 1000})`));
  const during = latency(port);
  const slowPeak = await peakOf(child, Promise.all([during, pause(30_000)]));
  console.log(`with a slow reader:    ${await during}; peak RSS ${mb(slowPeak)} after ${mb(read)} of ${megabytes} MB`);
  slow.destroy();
  const large = await login(port);
  console.log(
    `a DataRow of ${LARGE} MB:    peak RSS ${mb(await peakOf(child, run(large, `SELECT repeat('x', ${LARGE}000000)`)))}`,
  );
  console.log(`a CopyData of ${LARGE} MB:   peak RSS ${mb(await peakOf(child, copyIn(large, LARGE)))}`);
  const text = `INSERT INTO large VALUES ${Array.from({ length: 300_000 }, (_, i) => `('${i}')`).join(',')}`;
  const reading = run(large, text);
  const others = latency(port);
  const textPeak = await peakOf(child, Promise.all([reading, others]));
  console.log(`a text of ${mb(text.length)} of VALUES: ${await others}; peak RSS ${mb(textPeak)}`);
  busy.stop();
  await pause(15_000);
  const after = await look(child);
  console.log(`15 s later:            RSS ${mb(after.rss)}, heap ${mb(after.heap)}, external ${mb(after.external)}`);
  for (const socket of [...sockets, large]) socket.destroy();
}

async function logins(port: number, count: number): Promise<Socket[]> {
  const sockets: Socket[] = [];
  for (let i = 0; i < count; i += 50)
    sockets.push(...(await Promise.all(Array.from({ length: Math.min(50, count - i) }, () => login(port)))));
  return sockets;
}

async function main(): Promise<void> {
  const [idle = 2000, megabytes = 10_000] = process.argv.slice(2).map(Number);
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
