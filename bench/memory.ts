/**
 * What clients cost in memory: idle ones, busy ones, one that reads a long answer slowly while others must not wait for it, and
 * large messages. The proxy runs in a process of its own, whose RSS is read from /proc. `SELECT 1` is timed through the proxy and, as its
 * peer, straight to the server, from a third process; beside it stand the longest turn of the proxy's event loop and its garbage
 * collections.
 * Run: npx tsc && node dist/bench/memory.js [idle clients, default 2000] [MB that the slow reader asks for, default 10,000] [parts]
 * Parts: busy,slow,large,text (default: all). 5,000 clients need `ulimit -n 12000`.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { cpus } from 'node:os';
import { constants, type IntervalHistogram, monitorEventLoopDelay, PerformanceObserver } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { EmbeddedCluster } from '../deploy/embedded/cluster.js';
import { encodeExecute, encodeParse, encodeQuery, encodeStartup, SYNC } from '../proxy/wire/frontend.js';
import { newCatalog } from './new-catalog.js';
import { startTrustingProxy } from './trusting-proxy.js';

/**
 * Clients that come first, so that the others show what a client costs: about so many make V8's young generation as large as it gets, which a
 * process pays for once (16 MB at first, 32 MB then).
 */
const WARM = 1500;
const BUSY = 500;
const PER_SECOND = 4;
/** MB of one message. */
const LARGE = 300;
const LARGEST = 1000;
/** MB a second of the client that reads slowly. */
const SLOW = 80;
const PARTS = ['busy', 'slow', 'large', 'text'];
const READY = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);

/** The longest turn of the event loop, and the longest garbage collection, since they were asked for last. */
class Pauses {
  readonly #loop: IntervalHistogram = monitorEventLoopDelay({ resolution: 2 });
  #gcMs = 0;
  #gcs = 0;

  constructor() {
    this.#loop.enable();
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        this.#gcMs = Math.max(this.#gcMs, entry.duration);
        const { detail } = entry as typeof entry & { readonly detail: { readonly kind: number } };
        if (detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR) this.#gcs += 1;
      }
    }).observe({ entryTypes: ['gc'] });
  }

  take(): { loopMs: number; gcMs: number; gcs: number } {
    const pauses = { loopMs: this.#loop.max / 1e6, gcMs: this.#gcMs, gcs: this.#gcs };
    this.#loop.reset();
    this.#gcMs = 0;
    this.#gcs = 0;
    return pauses;
  }
}

async function serve(catalogUrl: string): Promise<void> {
  const proxy = await startTrustingProxy(catalogUrl, {
    name: 'memory',
    logLevel: 'warn',
  });
  const pauses = new Pauses();
  // Whoever started it may be killed.
  process.on('disconnect', () => process.exit());
  process.on('message', (what) => {
    if (what === 'pauses') {
      process.send?.(pauses.take());
      return;
    }
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

/** Asks `SELECT 1` of each of `urls` 200 times a second until it is told to stop, and says how long that took. In a process of its own, which waits for nothing else. */
async function probe(urls: readonly string[]): Promise<void> {
  let stopped = false;
  const stop = new Promise<void>((resolve) => process.once('message', () => resolve())).then(() => {
    stopped = true;
  });
  const ask = async (url: string): Promise<string> => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    const times: number[] = [];
    while (!stopped) {
      const start = performance.now();
      await client.query('SELECT 1');
      times.push(performance.now() - start);
      await pause(5);
    }
    await client.end();
    times.sort((a, b) => a - b);
    const at = (part: number) => `${times[Math.ceil(times.length * part) - 1]?.toFixed(2)} ms`;
    return `median ${at(0.5)}, 99 % ${at(0.99)}, worst ${at(1)}`;
  };
  const answers = Promise.all(urls.map(ask));
  process.send?.('ready');
  await stop;
  process.send?.(await answers);
  process.disconnect();
}

/** What `probe` says of the time in which `work` goes on. */
async function latency(urls: readonly string[], work: () => Promise<unknown>): Promise<readonly string[]> {
  const child = fork(fileURLToPath(import.meta.url), ['probe', ...urls]);
  await once(child, 'message');
  await work();
  const answers = once(child, 'message');
  child.send('stop');
  return ((await answers) as [readonly string[]])[0];
}

/** Prints `name`, the proxy's largest RSS and how long others wait while `work` goes on. */
async function watch({ port, child, direct }: Bench, name: string, work: () => Promise<unknown>): Promise<void> {
  await pausesOf(child);
  let peak = 0;
  const [through, straight] = await latency([`postgres://postgres@127.0.0.1:${port}/shop`, direct], async () => {
    peak = await peakOf(child, work());
  });
  const { loopMs, gcMs, gcs } = await pausesOf(child);
  console.log(`${name}: peak RSS ${mb(peak)}`);
  console.log(`  SELECT 1 through the proxy: ${through}`);
  console.log(`  straight to the server:     ${straight}`);
  console.log(
    `  in the proxy: longest turn ${loopMs.toFixed(0)} ms, ${gcs} full collections, longest step ${gcMs.toFixed(0)} ms`,
  );
}

async function pausesOf(child: ChildProcess): Promise<ReturnType<Pauses['take']>> {
  const answer = once(child, 'message');
  child.send('pauses');
  return ((await answer) as [ReturnType<Pauses['take']>])[0];
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

/** One Bind with a bytea of so many megabytes, in binary. */
async function bind(socket: Socket, megabytes: number): Promise<void> {
  socket.write(encodeParse('', 'SELECT octet_length($1::bytea)'));
  const head = Buffer.alloc(19);
  head[0] = 0x42;
  head.writeInt32BE(4 + 14 + megabytes * 1e6, 1);
  head.writeInt16BE(1, 7); // one format for all: binary
  head.writeInt16BE(1, 9);
  head.writeInt16BE(1, 11);
  head.writeInt32BE(megabytes * 1e6, 13);
  await sendLarge(socket, head.subarray(0, 17), megabytes, Buffer.concat([Buffer.alloc(2), encodeExecute(''), SYNC]));
}

/** octet_length(bytea) of so many megabytes by the fast path. */
async function functionCall(socket: Socket, megabytes: number): Promise<void> {
  const head = Buffer.alloc(19);
  head[0] = 0x46;
  head.writeInt32BE(4 + 14 + megabytes * 1e6 + 2, 1);
  head.writeInt32BE(720, 5);
  head.writeInt16BE(1, 9);
  head.writeInt16BE(1, 11);
  head.writeInt16BE(1, 13);
  head.writeInt32BE(megabytes * 1e6, 15);
  await sendLarge(socket, head, megabytes, Buffer.from([0, 1]));
}

/** Resolves when the answer has come. */
async function sendLarge(socket: Socket, head: Buffer, megabytes: number, tail: Buffer): Promise<void> {
  const done = new Promise<void>((resolve, reject) => {
    socket.once('close', () => reject(new Error('closed')));
    socket.on('data', (chunk: Buffer) => {
      if (chunk.includes('SERROR')) reject(new Error(chunk.toString('latin1')));
      if (chunk.includes(READY)) resolve();
    });
  });
  const piece = Buffer.alloc(1e6, 'x');
  socket.write(head);
  for (let i = 0; i < megabytes; i++)
    if (!socket.write(piece)) await new Promise<void>((resolve) => socket.once('drain', () => resolve()));
  socket.write(tail);
  await done;
  socket.removeAllListeners('data');
}

/** Reads the answer at `SLOW` megabytes a second. @returns MB read */
async function readSlowly(port: number, megabytes: number): Promise<number> {
  const socket = await login(port);
  const begun = performance.now();
  let read = 0;
  let last = Buffer.alloc(0);
  await new Promise<void>((resolve, reject) => {
    socket.once('close', () => reject(new Error('closed')));
    socket.on('data', (chunk: Buffer) => {
      read += chunk.length;
      last = Buffer.concat([last, chunk.subarray(-READY.length)]).subarray(-READY.length);
      if (last.equals(READY)) {
        resolve();
        return;
      }
      const ahead = read / SLOW / 1000 - (performance.now() - begun);
      if (ahead <= 0) return;
      socket.pause();
      setTimeout(() => socket.resume(), ahead);
    });
    socket.write(encodeQuery(`SELECT repeat('x', 1000) FROM generate_series(1, ${megabytes * 1000})`));
  });
  socket.destroy();
  return read;
}

interface Bench {
  readonly port: number;
  readonly child: ChildProcess;
  /** URL of the server, past the proxy. */
  readonly direct: string;
}

async function measure(bench: Bench, idle: number, megabytes: number, parts: readonly string[]): Promise<void> {
  const { port, child } = bench;
  // The first clients pay for what all use.
  const sockets = await logins(port, WARM);
  await run(sockets[0] as Socket, 'SELECT 1');
  const empty = await look(child);
  sockets.push(...(await logins(port, idle)));
  const full = await look(child);
  const each = (more: Memory, less: Memory) => {
    const kib = (bytes: number) => `${(bytes / idle / 1024).toFixed(1)} KiB`;
    return `each ${kib(more.rss - less.rss)} of RSS, ${kib(more.heap - less.heap)} of heap, ${kib(more.external - less.external)} external`;
  };
  const sum = ({ rss, heap, external }: Memory) => `RSS ${mb(rss)}, heap ${mb(heap)}, external ${mb(external)}`;
  console.log(`${WARM} clients:           ${sum(empty)}`);
  console.log(`${idle} more, idle:       ${sum(full)}: ${each(full, empty)}`);
  // What waits may take any time: it never goes in a lane.
  const asking = sockets.slice(WARM);
  for (let i = 0; i < asking.length; i += 50)
    await Promise.all(asking.slice(i, i + 50).map((socket) => run(socket, 'SELECT pg_sleep(0)')));
  const asked = await look(child);
  console.log(`they have asked once:  ${sum(asked)}: ${each(asked, full)} more`);
  const busy = keepBusy(sockets.slice(0, BUSY));
  if (parts.includes('busy')) await watch(bench, `${BUSY} of them busy, for 20 s`, () => pause(20_000));
  console.log(`  ${busy.answered()} statements so far`);
  if (parts.includes('slow')) {
    await watch(bench, `and one that reads ${megabytes} MB slowly`, async () => {
      const begun = performance.now();
      const read = await readSlowly(port, megabytes);
      console.log(`  ${mb(read)} in ${((performance.now() - begun) / 1000).toFixed(0)} s`);
    });
  }
  const large = await login(port);
  if (parts.includes('large')) {
    await watch(bench, `a DataRow of ${LARGE} MB`, () => run(large, `SELECT repeat('x', ${LARGE}000000)`));
    await watch(bench, `a CopyData of ${LARGE} MB`, () => copyIn(large, LARGE));
    await watch(bench, `a Bind of ${LARGE} MB`, () => bind(large, LARGE));
    await watch(bench, `a Bind of ${LARGEST} MB`, () => bind(large, LARGEST));
    await watch(bench, `a FunctionCall of ${LARGE} MB`, () => functionCall(large, LARGE));
  }
  if (parts.includes('text')) {
    await run(large, 'CREATE TABLE IF NOT EXISTS large (v text)');
    const text = `INSERT INTO large VALUES ${Array.from({ length: 300_000 }, (_, i) => `('${i}')`).join(',')}`;
    await watch(bench, `a text of ${mb(text.length)} of VALUES`, () => run(large, text));
  }
  busy.stop();
  await pause(15_000);
  const after = await look(child);
  console.log(`15 s later:            ${sum(after)}`);
  for (const socket of [...sockets, large]) socket.destroy();
}

async function logins(port: number, count: number): Promise<Socket[]> {
  const sockets: Socket[] = [];
  for (let i = 0; i < count; i += 50)
    sockets.push(...(await Promise.all(Array.from({ length: Math.min(50, count - i) }, () => login(port)))));
  return sockets;
}

async function main(): Promise<void> {
  const [idle = 2000, megabytes = 10_000] = process.argv.slice(2, 4).map(Number);
  const parts = process.argv[4]?.split(',') ?? PARTS;
  console.log(`${cpus()[0]?.model}, ${cpus().length} CPUs, Node ${process.version}`);
  const cluster = await EmbeddedCluster.start();
  let child: ChildProcess | null = null;
  try {
    const admin = new pg.Client({ connectionString: cluster.url('postgres') });
    await admin.connect();
    await admin.query('CREATE DATABASE shop');
    await admin.query('CREATE DATABASE foreshard');
    await admin.end();
    await (await newCatalog(cluster.url('foreshard'), 'shop', [cluster.url('shop')])).close();
    child = fork(fileURLToPath(import.meta.url), ['serve', cluster.url('foreshard')], { execArgv: ['--expose-gc'] });
    const started = child;
    const port = await new Promise<number>((resolve) => started.once('message', (m) => resolve(m as number)));
    await measure({ port, child, direct: cluster.url('shop') }, idle, megabytes, parts);
  } finally {
    child?.kill();
    await cluster.stop();
  }
}

if (process.argv[2] === 'serve') await serve(process.argv[3] as string);
else if (process.argv[2] === 'probe') await probe(process.argv.slice(3));
else await main();
