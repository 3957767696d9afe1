import type { Logger } from 'pino';
import { ForeshardError } from '../../topology/errors.js';
import type { Shard } from '../../topology/topology.js';
import { LockReader } from './lock-reader.js';
import { deadlocks, describeCycle, lasting, type ShardReading, waitsOn } from './wait-graph.js';

/** PostgreSQL's default of deadlock_timeout. */
const DEADLOCK_TIMEOUT_MS = 1_000;
/** How long a shard may take to answer, and before that to connect. */
const ANSWER_TIMEOUT_MS = 3_000;
/** So often in the time after which a wait is looked at it is seen whether there is one. */
const LOOKS = 4;

/** A transaction that is on several shards, be it of a client or of one statement. */
export interface SpanningTransaction {
  /** Each of its sessions is marked with it: `markSql`. */
  readonly key: bigint;
  /** Since when a server owes it an answer, on performance.now()'s clock; null: none does. */
  readonly waitingSince: number | null;
  /** Its statement is canceled, its client told `reason`. Said again as long as the wait goes on all the same. */
  fail(reason: ForeshardError): void;
}

export interface DeadlockDetectorOptions {
  /** All that transactions may have branches on. */
  readonly shards: () => Iterable<Pick<Shard, 'name' | 'url'>>;
  readonly logger: Logger;
  /** After how long a wait is looked at, and how long after that again. Default: 1,000. */
  readonly deadlockTimeoutMs?: number;
  /** How long a shard may take to answer before it is left out. Default: 3,000. */
  readonly answerTimeoutMs?: number;
}

/**
 * Ends deadlocks of spanning transactions that no server can see. While one of ours has waited for long it asks all shards who waits for whom. If there is a
 * cycle, and it falls to one of ours to be ended, it asks again: the answers are not of one moment, and a cycle may never have been one. What was so both times was
 * so at the moment between, see `lasting`. Each proxy ends its own transactions only, and of one cycle all choose the same.
 */
export class DeadlockDetector {
  readonly #options: DeadlockDetectorOptions;
  readonly #timeoutMs: number;
  readonly #transactions = new Set<SpanningTransaction>();
  #readers = new Map<string, LockReader>();
  #timer: NodeJS.Timeout | null = null;
  /** Not before this are the shards asked again. */
  #nextAt = 0;
  #round: Promise<void> | null = null;
  #closed = false;

  constructor(options: DeadlockDetectorOptions) {
    this.#options = options;
    this.#timeoutMs = options.deadlockTimeoutMs ?? DEADLOCK_TIMEOUT_MS;
  }

  /** It is on several shards, or is about to be. */
  add(transaction: SpanningTransaction): void {
    if (this.#closed) return;
    this.#transactions.add(transaction);
    this.#timer ??= setInterval(() => this.#look(), this.#timeoutMs / LOOKS).unref();
  }

  remove(transaction: SpanningTransaction): void {
    this.#transactions.delete(transaction);
    if (this.#transactions.size === 0) this.#stop();
  }

  /** Resolves when nothing is under way and all connections are closed. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#transactions.clear();
    this.#stop();
    await Promise.all([...this.#readers.values()].map((reader) => reader.close()));
    await this.#round;
  }

  #stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  #look(): void {
    const now = performance.now();
    if (this.#round !== null || now < this.#nextAt || !this.#hasWaited(now - this.#timeoutMs)) return;
    this.#round = this.#search().finally(() => {
      this.#nextAt = performance.now() + this.#timeoutMs;
      this.#round = null;
    });
  }

  #hasWaited(since: number): boolean {
    for (const { waitingSince } of this.#transactions) if (waitingSince !== null && waitingSince <= since) return true;
    return false;
  }

  async #search(): Promise<void> {
    const first = waitsOn(await this.#read(() => true));
    if (!deadlocks(first).some(({ victim }) => this.#own(victim) !== undefined)) return;
    const between = performance.now();
    const concerned = new Set(first.map(({ shard }) => shard));
    const second = waitsOn(await this.#read((shard) => concerned.has(shard)));
    for (const { victim, cycle } of deadlocks(lasting(first, second))) {
      const transaction = this.#own(victim);
      const since = transaction?.waitingSince ?? null;
      // What it waits for now may be something else: it has been answered meanwhile.
      if (transaction === undefined || since === null || since > between) continue;
      const detail = describeCycle(cycle);
      this.#options.logger.info({ detail }, 'deadlock over several shards: one of its transactions is ended');
      transaction.fail(
        new ForeshardError('40P01', 'deadlock detected', { detail, hint: 'Run the transaction again.' }),
      );
    }
  }

  #own(key: bigint): SpanningTransaction | undefined {
    for (const transaction of this.#transactions) if (transaction.key === key) return transaction;
    return undefined;
  }

  /** What those shards say that answer. */
  async #read(asks: (shard: string) => boolean): Promise<ShardReading[]> {
    const readings = await Promise.all(
      [...this.#readersOfNow()].filter(([shard]) => asks(shard)).map(([, reader]) => reader.read()),
    );
    return readings.filter((reading) => reading !== null);
  }

  #readersOfNow(): ReadonlyMap<string, LockReader> {
    if (this.#closed) return this.#readers;
    const before = this.#readers;
    this.#readers = new Map();
    const { shards, logger, answerTimeoutMs = ANSWER_TIMEOUT_MS } = this.#options;
    for (const shard of shards()) {
      const known = before.get(shard.name);
      const reader = known?.shard.url === shard.url ? known : new LockReader(shard, answerTimeoutMs, logger);
      this.#readers.set(shard.name, reader);
      if (reader === known) before.delete(shard.name);
    }
    for (const reader of before.values()) void reader.close();
    return this.#readers;
  }
}
