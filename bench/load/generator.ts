import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { Histogram } from './histogram.js';
import type { LoadOutcome, LoadRequest } from './load.js';

export type ChildOrder =
  | { readonly kind: 'connect'; readonly request: LoadRequest }
  | { readonly kind: 'idle'; readonly request: LoadRequest }
  | { readonly kind: 'go'; readonly seconds: number }
  | { readonly kind: 'end' };

export type ChildReport =
  | { readonly kind: 'connected' }
  | {
      readonly kind: 'done';
      readonly transactions: number;
      readonly seconds: number;
      readonly counts: readonly number[];
    }
  | { readonly kind: 'failed'; readonly message: string };

const CHILD = fileURLToPath(new URL('../load-child.js', import.meta.url));

/** One process of the generator. It ends when we do, as its channel closes. */
class Child {
  readonly #process: ChildProcess;
  readonly #reports: ChildReport[] = [];
  #wake: () => void = () => undefined;
  #ended = false;

  constructor() {
    this.#process = fork(CHILD, [], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    this.#process.on('message', (report: ChildReport) => {
      this.#reports.push(report);
      this.#wake();
    });
    this.#process.on('exit', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  send(order: ChildOrder): void {
    this.#process.send(order);
  }

  /** The next report of this kind. @throws Error when the child has failed instead, or has ended */
  async report<K extends ChildReport['kind']>(kind: K): Promise<Extract<ChildReport, { kind: K }>> {
    for (;;) {
      const report = this.#reports.shift();
      if (report?.kind === kind) return report as Extract<ChildReport, { kind: K }>;
      if (report?.kind === 'failed') throw new Error(`the load failed: ${report.message}`);
      if (this.#ended) throw new Error('a process of the load generator has ended');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Closes its connections, and waits until it is gone. */
  async end(): Promise<void> {
    if (this.#ended) return;
    const gone = new Promise<void>((resolve) => this.#process.once('exit', () => resolve()));
    if (this.#process.connected) this.send({ kind: 'end' });
    await gone;
  }
}

async function withChildren<T>(count: number, work: (children: readonly Child[]) => Promise<T>): Promise<T> {
  const children = Array.from({ length: count }, () => new Child());
  try {
    return await work(children);
  } finally {
    await Promise.all(children.map((child) => child.end()));
  }
}

/** Makes a load with processes of our own. @throws Error with the first error that a client got */
export function runGenerator(request: LoadRequest): Promise<LoadOutcome> {
  const count = Math.min(request.clients, request.threads);
  return withChildren(count, async (children) => {
    for (const [i, child] of children.entries()) {
      const clients = Math.floor(request.clients / count) + (i < request.clients % count ? 1 : 0);
      child.send({ kind: 'connect', request: { ...request, clients } });
    }
    await Promise.all(children.map((child) => child.report('connected')));
    for (const child of children) child.send({ kind: 'go', seconds: request.seconds });
    const reports = await Promise.all(children.map((child) => child.report('done')));
    const histogram = new Histogram();
    for (const { counts } of reports) histogram.merge(new Histogram(counts));
    const at = (q: number) => histogram.percentile(q) / 1000;
    return {
      transactions: reports.reduce((sum, { transactions }) => sum + transactions, 0),
      seconds: Math.max(...reports.map(({ seconds }) => seconds)),
      tps: reports.reduce((sum, { transactions, seconds }) => sum + transactions / seconds, 0),
      latencyMs: { p50: at(0.5), p99: at(0.99), p999: at(0.999), count: histogram.count },
    };
  });
}

/** Keeps so many clients connected that have asked one thing and are idle, while `work` goes on. */
export function withIdleClients<T>(request: LoadRequest, work: () => Promise<T>): Promise<T> {
  return withChildren(1, async (children) => {
    const [child] = children as [Child];
    child.send({ kind: 'idle', request });
    await child.report('connected');
    return work();
  });
}
