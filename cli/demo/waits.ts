/** How long each statement of the load took, with when it started. Grows in chunks; numbers only, so that it is cheap to keep. */
export class Waits {
  private data = new Float64Array(3 * 4096);
  private length = 0;

  /** `startMs`: ms since 1970; `waitMs`: from sending the statement to its last answer. */
  add(startMs: number, waitMs: number, tenant: number): void {
    if (this.length === this.data.length) {
      const larger = new Float64Array(this.data.length * 2);
      larger.set(this.data);
      this.data = larger;
    }
    this.data[this.length++] = startMs;
    this.data[this.length++] = waitMs;
    this.data[this.length++] = tenant;
  }

  /** Triples of start, wait and tenant. */
  take(): Float64Array {
    return this.data.slice(0, this.length);
  }
}

export interface WaitSummary {
  readonly statements: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly longestMs: number;
  /** When the longest one started, ms since 1970. */
  readonly longestAt: number;
}

/** Summary of the statements that were under way at some moment of `[fromMs, toMs)`, of the tenants that `concerned` names. Null when there were none. */
export function summarize(
  triples: Float64Array,
  fromMs: number,
  toMs: number,
  concerned: (tenant: number) => boolean = () => true,
): WaitSummary | null {
  const waits: number[] = [];
  let longestMs = -1;
  let longestAt = 0;
  for (let i = 0; i < triples.length; i += 3) {
    const start = triples[i] as number;
    const wait = triples[i + 1] as number;
    if (start >= toMs || start + wait < fromMs || !concerned(triples[i + 2] as number)) continue;
    waits.push(wait);
    if (wait > longestMs) {
      longestMs = wait;
      longestAt = start;
    }
  }
  if (waits.length === 0) return null;
  waits.sort((a, b) => a - b);
  const quantile = (q: number): number => waits[Math.min(waits.length - 1, Math.ceil(q * waits.length) - 1)] as number;
  return { statements: waits.length, p50Ms: quantile(0.5), p99Ms: quantile(0.99), longestMs, longestAt };
}
