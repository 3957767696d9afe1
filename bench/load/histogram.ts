/** Buckets per factor e: each is 1 % wide. */
const PER_E = 100;
/** Up to about four minutes. */
const BUCKETS = Math.ceil(Math.log(2.4e8) * PER_E);

/** Latencies, counted in buckets that are 1 % wide: small enough to be sent and merged, however many there were. */
export class Histogram {
  readonly counts: number[];
  count = 0;

  /** @param counts of another one */
  constructor(counts: readonly number[] = []) {
    this.counts = Array.from({ length: BUCKETS }, (_, i) => counts[i] ?? 0);
    for (const n of this.counts) this.count += n;
  }

  /** @param us microseconds; less than one counts as one */
  add(us: number): void {
    const bucket = Math.min(BUCKETS - 1, Math.round(Math.log(Math.max(1, us)) * PER_E));
    this.counts[bucket] = (this.counts[bucket] as number) + 1;
    this.count += 1;
  }

  merge(other: Histogram): void {
    for (let i = 0; i < BUCKETS; i++) this.counts[i] = (this.counts[i] as number) + (other.counts[i] as number);
    this.count += other.count;
  }

  /** The latency in µs that a share `q` does not exceed (nearest rank), to half a per cent; NaN when there are none. */
  percentile(q: number): number {
    const rank = Math.max(1, Math.ceil(q * this.count));
    let seen = 0;
    for (let i = 0; i < BUCKETS; i++) {
      seen += this.counts[i] as number;
      if (seen >= rank) return Math.exp(i / PER_E);
    }
    return Number.NaN;
  }
}
