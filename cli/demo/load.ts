import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { type JournalEntry, JournalWriter } from './journal.js';
import { LoadClient, type LoadCounters } from './load-client.js';
import type { LoadOptions } from './load-options.js';
import { Waits } from './waits.js';

export interface LoadProgress {
  readonly statements: number;
  /** Reads answered. */
  readonly reads: number;
  /** Writes acknowledged: statements in autocommit, and transactions. */
  readonly writes: number;
  readonly errors: number;
  readonly perSecond: number;
}

export interface LoadResult extends LoadProgress {
  /** What clients were told, with how often. */
  readonly errorTexts: Readonly<Record<string, number>>;
  /** Reads by a client of its own last acknowledged write that showed something older. */
  readonly staleReads: number;
  /** Triples: start (ms since 1970), wait (ms), tenant. */
  readonly waits: Float64Array;
}

/** Live reads and writes by several ordinary connections, each doing one thing after the other at the pace of the shape. */
export class Load {
  private readonly journal: JournalWriter;
  private readonly waits = new Waits();
  private readonly counters: LoadCounters = { statements: 0, reads: 0, writes: 0, errors: new Map(), staleReads: 0 };
  private readonly startedAt = performance.now();
  private lastCount = 0;
  private lastCountAt = this.startedAt;

  constructor(private readonly options: LoadOptions) {
    this.journal = new JournalWriter(options.journalPath);
  }

  /** Runs until `signal` is aborted; every statement that was begun is finished first. */
  async run(signal: AbortSignal): Promise<LoadResult> {
    const clients = Array.from(
      { length: this.options.connections },
      (_, index) =>
        new LoadClient(index, this.options, this.counters, {
          journal: (entry: JournalEntry) => this.journal.append(entry),
          waited: (startMs, waitMs, tenant) => this.waits.add(startMs, waitMs, tenant),
        }),
    );
    await Promise.all(clients.map((client) => this.pace(client, signal)));
    await this.journal.close();
    return {
      ...this.progress(),
      errorTexts: Object.fromEntries(this.counters.errors),
      staleReads: this.counters.staleReads,
      waits: this.waits.take(),
    };
  }

  /** Figures so far; `perSecond` since the last call. */
  progress(): LoadProgress {
    const { statements, reads, writes } = this.counters;
    const now = performance.now();
    const perSecond = (statements - this.lastCount) / Math.max(0.001, (now - this.lastCountAt) / 1000);
    this.lastCount = statements;
    this.lastCountAt = now;
    let errors = 0;
    for (const n of this.counters.errors.values()) errors += n;
    return { statements, reads, writes, errors, perSecond };
  }

  private async pace(client: LoadClient, signal: AbortSignal): Promise<void> {
    const { shape, connections } = this.options;
    let due = performance.now() + (1000 / (shape.rates[0] ?? 1)) * client.index;
    while (!signal.aborted) {
      const now = performance.now();
      if (due > now) {
        await delay(due - now, undefined, { signal }).catch((error: unknown) => {
          if (!signal.aborted) throw error;
        });
        continue;
      }
      // A client that was made to wait does not storm afterwards.
      if (now - due > 500) due = now;
      const step = Math.floor((now - this.startedAt) / shape.stepMs) % shape.rates.length;
      const statements = await client.next(shape.weights[step] as readonly number[]);
      due += (statements * connections * 1000) / (shape.rates[step] as number);
    }
    await client.close();
  }
}
