import { setTimeout as delay } from 'node:timers/promises';
import type { ThrottleLimits } from '../topology/migration-controls.js';
import type { Move } from './move.js';
import { assertPaceSql, UNLIMITED } from './pace.js';

/** How often the servers are looked at, ms. */
const LOOK_MS = 250;
/** Small writes whose median is the latency of a shard. */
const PROBES = 8;
/** While a limit is passed, the rate is halved with each look down to this part of it, and comes back more slowly. */
const MIN_FACTOR = 1 / 64;
const RECOVERY = 1.1;
/** Longest pause at once between two portions, ms: a new limit is heeded soon. */
const MAX_PAUSE_MS = 200;
/** So many bytes are compared for each that may be copied: a row is read and hashed on both sides in less than half of the processor time (docs/benchmarks.md). */
const COMPARED_FOR_COPIED = 2;
/** What the rate is taken from when no limit is set and there is reason to slow down, bytes a second. */
const UNLIMITED_RATE = 64_000_000;

/** What of a move is throttled. */
export type Throttled = Pick<Move, 'exec' | 'options' | 'source' | 'destination'> & {
  readonly spec: { readonly from: string; readonly to: string };
  readonly names: Pick<Move['names'], 'pace'>;
};

/**
 * Keeps what a migration does to the servers within its limits: a rate, the latency of small writes at either shard, and the lag of their physical
 * standbys. The copy is PostgreSQL's own, and paced where its rows arrive; what the migrator does itself in portions pauses between them.
 */
export class Throttle {
  readonly #m: Throttled;
  #lookedAt = Number.NEGATIVE_INFINITY;
  readonly #latencies = { source: [] as number[], destination: [] as number[] };
  #factor = 1;
  #note: string | null = null;
  readonly #hasRate: boolean;
  /** Bytes of portions that have been done, and are not paid for by the time that has passed since. */
  #owed = 0;
  #paidAt = performance.now();

  /** @param hasRate whether it keeps to a rate besides; else it only slows down when there is reason to */
  constructor(m: Throttled, { hasRate = true }: { readonly hasRate?: boolean } = {}) {
    this.#m = m;
    this.#hasRate = hasRate;
  }

  get limits(): ThrottleLimits {
    return { ...this.#m.options.throttle, ...this.#m.exec.controls.throttle };
  }

  /** Why it goes more slowly than its rate allows; null: it does not. */
  get note(): string | null {
    return this.#note;
  }

  /** Bytes a second that may be moved now; null: as many as can be. */
  get rate(): number | null {
    const maxRate = this.#hasRate ? this.limits.maxRate : null;
    if (maxRate === null && this.#factor === 1) return null;
    return Math.max(2, Math.round((maxRate ?? UNLIMITED_RATE) * this.#factor));
  }

  /** Of one of so many workers that copy, as `assertPaceSql` has it. */
  copyPace(workers: number): number {
    const rate = this.rate;
    return rate === null ? UNLIMITED : Math.max(2, Math.round(rate / Math.max(1, workers)));
  }

  /** To be called often while tables are copied. @param workers that copy at the moment */
  async paceCopy(workers: number): Promise<void> {
    await this.#look(this.copyPace(workers));
  }

  /** No limit for the copy any more. */
  async release(): Promise<void> {
    await this.#m.destination.query(assertPaceSql(this.#m.names, UNLIMITED));
  }

  /** The same of bytes that are compared. */
  get readRate(): number | null {
    return this.rate === null ? null : this.rate * COMPARED_FOR_COPIED;
  }

  /** Before a portion of so many bytes: waits until what went before it is paid for, at the rate of now. */
  async pause(bytes: number): Promise<void> {
    for (;;) {
      await this.#look(UNLIMITED);
      const left = this.#pay();
      if (left <= 0) break;
      await delay(Math.min(left, MAX_PAUSE_MS));
      this.#m.exec.check();
      await this.#m.exec.rest();
    }
    this.#owed += bytes;
  }

  /** After a portion of so many bytes that were only read: waits until it is paid for. */
  async pauseAfterRead(bytes: number): Promise<void> {
    this.owe(bytes);
    await this.pause(0);
  }

  /** So many bytes that were only read are to be paid for. */
  owe(bytes: number): void {
    this.#owed += bytes / COMPARED_FOR_COPIED;
  }

  /** Whether nothing is owed. */
  async isPaid(): Promise<boolean> {
    await this.#look(UNLIMITED);
    return this.#pay() <= 0;
  }

  /** @returns ms until nothing is owed any more */
  #pay(): number {
    const now = performance.now();
    const { rate } = this;
    this.#owed = rate === null ? 0 : Math.max(0, this.#owed - (rate * (now - this.#paidAt)) / 1000);
    this.#paidAt = now;
    return rate === null ? 0 : (this.#owed * 1000) / rate;
  }

  /** Measures, and sets the pace of the copy, which is the small write that is measured. */
  async #look(pace: number): Promise<void> {
    if (performance.now() - this.#lookedAt < LOOK_MS) return;
    this.#lookedAt = performance.now();
    const { maxLatencyMs, maxLagMs } = this.limits;
    const [source, destination] = await Promise.all([
      this.#probe('source', UNLIMITED),
      this.#probe('destination', pace),
    ]);
    const lagMs =
      maxLagMs === null ? 0 : Math.max(await this.#standbyLagMs('source'), await this.#standbyLagMs('destination'));
    const slow = maxLatencyMs !== null && Math.max(source, destination) > maxLatencyMs;
    const behind = maxLagMs !== null && lagMs > maxLagMs;
    this.#factor = slow || behind ? Math.max(MIN_FACTOR, this.#factor / 2) : Math.min(1, this.#factor * RECOVERY);
    const { spec } = this.#m;
    if (slow)
      this.#note = `slowed down: small writes take ${Math.max(source, destination).toFixed(1)} ms at shard "${source > destination ? spec.from : spec.to}"`;
    else if (behind) this.#note = `slowed down: a standby is ${(lagMs / 1000).toFixed(1)} s behind`;
    else if (this.#factor === 1) this.#note = null;
  }

  /** @returns median of the last small writes, ms */
  async #probe(side: 'source' | 'destination', pace: number): Promise<number> {
    const began = performance.now();
    await this.#m[side].query(assertPaceSql(this.#m.names, pace));
    const last = this.#latencies[side];
    last.push(performance.now() - began);
    if (last.length > PROBES) last.shift();
    return [...last].sort((a, b) => a - b)[Math.floor(last.length / 2)] as number;
  }

  /** Of the physical standby that is furthest behind; PostgreSQL tells nothing of one that is idle. */
  async #standbyLagMs(side: 'source' | 'destination'): Promise<number> {
    const [row] = await this.#m[side].query<{ ms: number }>(
      `SELECT coalesce(max(extract(epoch FROM r.replay_lag)) * 1000, 0)::float8 AS ms FROM pg_stat_replication r
        WHERE NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')`,
    );
    return row?.ms ?? 0;
  }
}
