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
/** What the rate is taken from when no limit is set and there is reason to slow down, bytes a second. */
const UNLIMITED_RATE = 64_000_000;

/**
 * Keeps what a migration does to the servers within its limits: a rate, the latency of small writes at either shard, and the lag of their physical
 * standbys. The copy is PostgreSQL's own, and paced where its rows arrive; what the migrator does itself in portions pauses between them.
 */
export class Throttle {
  readonly #m: Move;
  #lookedAt = Number.NEGATIVE_INFINITY;
  readonly #latencies = { source: [] as number[], destination: [] as number[] };
  #factor = 1;
  #note: string | null = null;
  /** When the next portion may begin. */
  #due = Number.NEGATIVE_INFINITY;

  constructor(m: Move) {
    this.#m = m;
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
    const { maxRate } = this.limits;
    if (maxRate === null && this.#factor === 1) return null;
    return Math.max(2, Math.round((maxRate ?? UNLIMITED_RATE) * this.#factor));
  }

  /** To be called often while tables are copied. @param workers that copy at the moment */
  async paceCopy(workers: number): Promise<void> {
    const rate = this.rate;
    await this.#look(rate === null ? UNLIMITED : Math.max(2, Math.round(rate / Math.max(1, workers))));
  }

  /** No limit for the copy any more. */
  async release(): Promise<void> {
    await this.#m.destination.query(assertPaceSql(this.#m.names, UNLIMITED));
  }

  /** Before a portion of so many bytes: waits until what went before it is paid for. */
  async pause(bytes: number): Promise<void> {
    for (;;) {
      await this.#look(UNLIMITED);
      const left = this.#due - performance.now();
      if (left <= 0 || this.rate === null) break;
      await delay(Math.min(left, MAX_PAUSE_MS));
      this.#m.exec.check();
      await this.#m.exec.rest();
    }
    const { rate } = this;
    this.#due =
      rate === null ? Number.NEGATIVE_INFINITY : Math.max(this.#due, performance.now()) + (bytes * 1000) / rate;
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
