/** Quantiles are within this share of the true value. */
export const LATENCY_ACCURACY = 0.025;

const GAMMA = (1 + LATENCY_ACCURACY) / (1 - LATENCY_ACCURACY);
const SCALE = 1 / Math.log(GAMMA);
/** Shorter times count as this, in µs: nothing through a socket is faster. */
const LEAST_US = 1;
/** Up to 17 minutes; longer times are counted with it. */
const BUCKETS = 1 + Math.ceil(Math.log(1e9) * SCALE);

/**
 * How long things took, as a DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
 * relative-error guarantees", VLDB 2019): counts in buckets whose bounds grow by a constant factor. 1.7 kB, whatever is counted.
 */
export class LatencySketch {
  readonly #counts = new Uint32Array(BUCKETS);
  #total = 0;

  get count(): number {
    return this.#total;
  }

  /** @param ms how long it took */
  add(ms: number): void {
    const us = ms * 1000;
    const bucket = us <= LEAST_US ? 0 : Math.min(BUCKETS - 1, Math.ceil(Math.log(us) * SCALE));
    this.#counts[bucket] = (this.#counts[bucket] as number) + 1;
    this.#total += 1;
  }

  merge(other: LatencySketch): void {
    for (let i = 0; i < BUCKETS; i++) this.#counts[i] = (this.#counts[i] as number) + (other.#counts[i] as number);
    this.#total += other.#total;
  }

  /** The time in µs that a share `q` (0 to 1) took no longer than; 0 when nothing was counted. */
  quantileUs(q: number): number {
    if (this.#total === 0) return 0;
    const rank = q * (this.#total - 1);
    let seen = 0;
    for (let i = 0; i < BUCKETS; i++) {
      seen += this.#counts[i] as number;
      if (seen > rank) return i === 0 ? LEAST_US : (2 * GAMMA ** i) / (GAMMA + 1);
    }
    return GAMMA ** (BUCKETS - 1);
  }

  /** Its buckets as text, for another process. */
  encode(): string {
    const parts: string[] = [];
    this.#counts.forEach((count, bucket) => {
      if (count > 0) parts.push(`${bucket}:${count}`);
    });
    return parts.join(',');
  }

  static decode(text: string): LatencySketch {
    const sketch = new LatencySketch();
    if (text === '') return sketch;
    for (const part of text.split(',')) {
      const [bucket, count] = part.split(':').map(Number);
      sketch.#counts[bucket as number] = count as number;
      sketch.#total += count as number;
    }
    return sketch;
  }
}
