import { LatencySketch } from './latency-sketch.js';
import type { LoadRecord } from './load-counter.js';

/** Templates counted apart; beyond, those called least are counted together. About 2 kB each. */
const MAX_TEMPLATES = 1000;
const OTHER = '(other)';

/** One template since the process started. */
export interface TemplateCounts {
  readonly template: string;
  calls: number;
  writes: number;
  rows: number;
  bytes: number;
  ms: number;
  /** The shard that it ran on last; null: several. */
  route: string | null;
  /** Calls that ran on several shards. */
  spread: number;
  /** Calls that shared a server connection with others' statements. */
  lanes: number;
  readonly latency: LatencySketch;
}

/** Calls, rows and latency by template. No I/O; one look-up and a few additions for a statement. */
export class TemplateStats {
  readonly #templates = new Map<string, TemplateCounts>();
  #other: TemplateCounts | null = null;

  record({ template, write, rows, bytes, ms, shard, lane }: LoadRecord): void {
    let counts = this.#templates.get(template);
    if (counts === undefined) {
      if (this.#templates.size >= MAX_TEMPLATES) this.#fold();
      counts = empty(template);
      this.#templates.set(template, counts);
    }
    counts.calls += 1;
    if (write) counts.writes += 1;
    counts.rows += rows;
    counts.bytes += bytes;
    counts.ms += ms;
    counts.route = shard;
    if (shard === null) counts.spread += 1;
    if (lane) counts.lanes += 1;
    counts.latency.add(ms);
  }

  *[Symbol.iterator](): Iterator<TemplateCounts> {
    yield* this.#templates.values();
    if (this.#other !== null) yield this.#other;
  }

  /** Counts the less called half of all templates together, so that one-off statements do not push out those that matter. */
  #fold(): void {
    this.#other ??= empty(OTHER);
    const byCalls = [...this.#templates.values()].sort((a, b) => a.calls - b.calls);
    for (const counts of byCalls.slice(0, MAX_TEMPLATES / 2)) {
      addCounts(this.#other, counts);
      this.#templates.delete(counts.template);
    }
  }
}

function empty(template: string): TemplateCounts {
  return {
    template,
    calls: 0,
    writes: 0,
    rows: 0,
    bytes: 0,
    ms: 0,
    route: null,
    spread: 0,
    lanes: 0,
    latency: new LatencySketch(),
  };
}

function addCounts(into: TemplateCounts, from: TemplateCounts): void {
  into.calls += from.calls;
  into.writes += from.writes;
  into.rows += from.rows;
  into.bytes += from.bytes;
  into.ms += from.ms;
  into.route = from.route;
  into.spread += from.spread;
  into.lanes += from.lanes;
  into.latency.merge(from.latency);
}
