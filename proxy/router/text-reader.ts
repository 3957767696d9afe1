import { Worker } from 'node:worker_threads';
import type { Topology } from '../../topology/topology.js';
import type { Metadata } from './metadata.js';
import type { Reading } from './reading.js';
import { registryOf } from './registry.js';

/** What a plan depends on besides the text. */
export interface ReadFor {
  readonly topology: Pick<Topology, 'shardedTables' | 'referenceTables' | 'keyspaces'>;
  readonly metadata: Metadata;
  /** `$user` already replaced. */
  readonly searchPath: readonly string[];
}

/** What the other thread knows, until it is told anew. */
export interface World {
  readonly topology: ReadFor['topology'];
  /** Its JSON. */
  readonly metadata: string;
}

export interface ReadRequest {
  readonly id: number;
  readonly text: Uint8Array;
  readonly searchPath: readonly string[];
  /** Null: as before. */
  readonly world: World | null;
}

/** The thread is there (once), or a text has been read; null: it does not parse, `too large`: for the parser. */
export type ReadReply = 'ready' | { readonly id: number; readonly reading: Reading | null | 'too large' };

/** The thread ends when it was not needed for so long, and its memory with it: the parser keeps what its largest text took. */
const IDLE_MS = 10_000;
/** So does one that has read a longer text, as soon as nobody waits: it is cheap to start, beside reading such a text. */
const KEPT_BYTES = 1024 * 1024;

/** From the sources, as the tests run: what is built is beside them. */
const FILE = import.meta.url.endsWith('.ts')
  ? '../../dist/proxy/router/text-reader-thread.js'
  : './text-reader-thread.js';

type Outcome = Reading | null | 'too large' | 'unable';

interface Waiting {
  readonly text: Buffer;
  readonly about: ReadFor;
  readonly resolve: (outcome: Outcome) => void;
}

/**
 * What the thread's heap may grow to, MB. A thread beyond is ended; the text that it was reading is one too large for the parser. The parser's own memory (WebAssembly) is not
 * in it: that is bounded by the length of the texts.
 */
const HEAP_MB = 512;

/** Reads long texts in a thread of its own, one after the other: libpg-query takes a second for some megabytes of VALUES. */
export class TextReader {
  readonly #file: URL;
  #worker: Worker | null = null;
  #ready = false;
  /** What the thread was told last. */
  #world = '';
  #lastId = 0;
  /** The first is being read. */
  #waiting: Waiting[] = [];
  #idle: NodeJS.Timeout | null = null;

  /** @param file what the thread runs; for tests */
  constructor(file: URL = new URL(FILE, import.meta.url)) {
    this.#file = file;
  }

  /** Texts that are being read or wait for it. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** @returns `unable` when there is no thread to do it. Never rejects */
  read(text: Buffer, about: ReadFor): Promise<Outcome> {
    return new Promise((resolve) => {
      this.#waiting.push({ text, about, resolve });
      if (this.#waiting.length === 1) this.#send();
    });
  }

  close(): void {
    const outcome = this.#ready ? 'too large' : 'unable';
    this.#end();
    for (const { resolve } of this.#waiting.splice(0)) resolve(outcome);
  }

  /** Gives the thread the first text that waits. */
  #send(): void {
    const [next] = this.#waiting;
    if (next === undefined) return;
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    const worker = this.#start();
    const { topology, metadata, searchPath } = next.about;
    const version = JSON.stringify([registryOf(topology).signature, metadata.version]);
    const { shardedTables, referenceTables, keyspaces } = topology;
    const world =
      version === this.#world
        ? null
        : { topology: { shardedTables, referenceTables, keyspaces }, metadata: metadata.json };
    this.#world = version;
    this.#lastId += 1;
    const copy = new Uint8Array(next.text);
    worker.postMessage({ id: this.#lastId, text: copy, searchPath, world } satisfies ReadRequest, [copy.buffer]);
  }

  #start(): Worker {
    if (this.#worker !== null) return this.#worker;
    const worker = new Worker(this.#file, { resourceLimits: { maxOldGenerationSizeMb: HEAP_MB } });
    worker.unref();
    worker.on('message', (reply: ReadReply) => this.#onReply(worker, reply));
    // An error, such as that there is no memory left, is followed by the exit.
    worker.on('error', () => undefined);
    worker.on('exit', () => this.#onExit(worker));
    this.#worker = worker;
    return worker;
  }

  #onReply(worker: Worker, reply: ReadReply): void {
    if (worker !== this.#worker) return;
    if (reply === 'ready') {
      this.#ready = true;
      return;
    }
    const done = this.#waiting.shift();
    done?.resolve(reply.reading);
    if (this.#waiting.length > 0) this.#send();
    else if (done !== undefined && done.text.length > KEPT_BYTES) this.#end();
    else this.#idle = setTimeout(() => this.#end(), IDLE_MS).unref();
  }

  /** One whose text was the end of the thread must not be read here: it would be the end of the process. The others get another thread. */
  #onExit(worker: Worker): void {
    if (worker !== this.#worker) return;
    const ready = this.#ready;
    this.#end();
    if (ready) this.#waiting.shift()?.resolve('too large');
    else for (const { resolve } of this.#waiting.splice(0)) resolve('unable');
    this.#send();
  }

  /** The thread goes, and its memory. */
  #end(): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    void this.#worker?.terminate();
    this.#worker = null;
    this.#world = '';
    this.#ready = false;
  }
}
