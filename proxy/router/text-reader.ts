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

/** From the sources, as the tests run: what is built is beside them. */
const FILE = import.meta.url.endsWith('.ts')
  ? '../../dist/proxy/router/text-reader-thread.js'
  : './text-reader-thread.js';

type Outcome = Reading | null | 'too large' | 'unable';

/** Reads long texts in a thread of its own, one after the other: libpg-query takes a second for some megabytes of VALUES. */
export class TextReader {
  readonly #file: URL;
  #worker: Worker | null = null;
  #ready = false;
  /** What the thread was told last. */
  #world = '';
  #lastId = 0;
  readonly #waiting = new Map<number, (outcome: Outcome) => void>();
  #idle: NodeJS.Timeout | null = null;

  /** @param file what the thread runs; for tests */
  constructor(file: URL = new URL(FILE, import.meta.url)) {
    this.#file = file;
  }

  /** Texts that are being read or wait for it. */
  get waiting(): number {
    return this.#waiting.size;
  }

  /** @returns `unable` when there is no thread to do it. Never rejects */
  read(text: Buffer, { topology, metadata, searchPath }: ReadFor): Promise<Outcome> {
    const worker = this.#start();
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    const version = JSON.stringify([registryOf(topology).signature, metadata.version]);
    const { shardedTables, referenceTables, keyspaces } = topology;
    const world =
      version === this.#world
        ? null
        : { topology: { shardedTables, referenceTables, keyspaces }, metadata: metadata.json };
    this.#world = version;
    this.#lastId += 1;
    const id = this.#lastId;
    const copy = new Uint8Array(text);
    worker.postMessage({ id, text: copy, searchPath, world } satisfies ReadRequest, [copy.buffer]);
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
    });
  }

  close(): void {
    this.#end(this.#worker);
  }

  #start(): Worker {
    if (this.#worker !== null) return this.#worker;
    const worker = new Worker(this.#file);
    worker.unref();
    worker.on('message', (reply: ReadReply) => this.#onReply(worker, reply));
    // An error, such as that there is no memory left, is followed by the exit.
    worker.on('error', () => undefined);
    worker.on('exit', () => this.#end(worker));
    this.#worker = worker;
    return worker;
  }

  #onReply(worker: Worker, reply: ReadReply): void {
    if (worker !== this.#worker) return;
    if (reply === 'ready') {
      this.#ready = true;
      return;
    }
    this.#waiting.get(reply.id)?.(reply.reading);
    this.#waiting.delete(reply.id);
    if (this.#waiting.size > 0) return;
    this.#idle = setTimeout(() => this.#end(worker), IDLE_MS).unref();
  }

  /** One whose text was the end of the thread must not be read here: it would be the end of the process. */
  #end(worker: Worker | null): void {
    if (worker === null || worker !== this.#worker) return;
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    this.#worker = null;
    this.#world = '';
    const outcome = this.#ready ? 'too large' : 'unable';
    this.#ready = false;
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const resolve of waiting) resolve(outcome);
    void worker.terminate();
  }
}
