/** The middle of several measurements, and how far they lie apart. */
export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
  /** How many measurements. */
  readonly count: number;
}

/** Median (of an even number: the mean of the two in the middle), lowest and highest; null when there are none. */
export function spreadOf(values: readonly number[]): Spread | null {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] as number;
  const median = sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] as number) + upper) / 2;
  return { median, low: sorted[0] as number, high: sorted.at(-1) as number, count: sorted.length };
}

/**
 * The ratio of two things that were measured in the same rounds, round by round: what disturbs a whole round disturbs both, and
 * drops out. Rounds that only one of them has are left out; null when none is left.
 */
export function ratioSpread(
  numerators: ReadonlyMap<number, number>,
  denominators: ReadonlyMap<number, number>,
): Spread | null {
  const ratios: number[] = [];
  for (const [round, numerator] of numerators) {
    const denominator = denominators.get(round);
    if (denominator !== undefined && denominator > 0) ratios.push(numerator / denominator);
  }
  return spreadOf(ratios);
}

/** The value that a share `q` (0 to 1) of the sorted values does not exceed (nearest rank). */
export function percentile(sorted: ArrayLike<number>, q: number): number {
  if (sorted.length === 0) return Number.NaN;
  const rank = Math.max(1, Math.ceil(q * sorted.length));
  return sorted[rank - 1] as number;
}

/** Half of the distance from lowest to highest, relative to the median. */
export function halfSpread({ median, low, high }: Omit<Spread, 'count'>): number {
  return (high - low) / 2 / median;
}
