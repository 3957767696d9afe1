/** Offsets on the log scale that turn a point forecast into quantiles; one per step of the horizon. */
export interface Offsets {
  readonly p05: Float64Array;
  readonly p50: Float64Array;
  readonly p95: Float64Array;
}

/** Each step's errors are pooled with those of neighbouring steps within this share of its distance, */
const POOL_SHARE = 1 / 8;
/** but of no more steps than this, evenly spaced: more add time, not knowledge. */
const POOL_STEPS = 9;
/** Steps of the horizon at which `judge` looks. */
const JUDGED_STEPS = 24;

/**
 * Quantiles of past errors per step of the horizon (split conformal prediction: Vovk et al., 2005; no assumption on the
 * errors' distribution, only that the future errs as the past did). The level is raised from q to (n+1)q/n for `n` origins,
 * which is what makes the promise hold with few of them; steps of one origin err together, so they do not count as more.
 */
export function conformalOffsets(paths: readonly Float64Array[]): Offsets {
  const horizon = paths[0]?.length ?? 0;
  const offsets = { p05: new Float64Array(horizon), p50: new Float64Array(horizon), p95: new Float64Array(horizon) };
  for (let h = 0; h < horizon; h++) {
    const [low, mid, high] = quantilesAt(paths, h, -1);
    offsets.p05[h] = low;
    offsets.p50[h] = mid;
    offsets.p95[h] = high;
  }
  return offsets;
}

/** The three quantiles at step `h`, made from all origins but `left`. */
function quantilesAt(paths: readonly Float64Array[], h: number, left: number): [number, number, number] {
  const horizon = (paths[0] as Float64Array).length;
  const reach = Math.ceil((h + 1) * POOL_SHARE);
  const from = Math.max(0, h - reach);
  const to = Math.min(horizon, h + reach + 1);
  const stride = Math.max(1, Math.ceil((to - from) / POOL_STEPS));
  const origins = paths.length - (left >= 0 ? 1 : 0);
  const pool = new Float64Array(origins * Math.ceil((to - from) / stride));
  let size = 0;
  for (let i = 0; i < paths.length; i++) {
    if (i === left) continue;
    for (let s = from; s < to; s += stride) pool[size++] = paths[i]?.[s] as number;
  }
  pool.sort();
  const level = Math.min(1, ((origins + 1) * 0.95) / origins);
  return [
    pool[Math.max(0, Math.floor((1 - level) * size))] as number,
    pool[size >> 1] as number,
    pool[Math.min(size - 1, Math.ceil(level * size) - 1)] as number,
  ];
}

/** How a band would have done in the backtest, each origin judged by the errors of the *other* origins only. */
export interface BandRecord {
  /** Share of steps inside the 90 % band. */
  readonly coverage90: number;
  /** Mean interval score (Gneiting and Raftery, 2007): width, plus 20 times the distance of whatever fell outside. Smaller is better. */
  readonly intervalScore: number;
}

/**
 * @param paths errors on the band's scale, one path per origin
 * @param valueAt the value, in units of the load, at error `e` from what origin `i` forecast for step `h`
 */
export function judge(
  paths: readonly Float64Array[],
  valueAt: (i: number, h: number, e: number) => number,
): BandRecord {
  let [inside, all, total] = [0, 0, 0];
  const horizon = paths[0]?.length ?? 0;
  const stride = Math.max(1, Math.floor(horizon / JUDGED_STEPS));
  paths.forEach((path, i) => {
    for (let h = 0; h < horizon; h += stride) {
      const [low, , high] = quantilesAt(paths, h, i).map((e) => valueAt(i, h, e)) as [number, number, number];
      const y = valueAt(i, h, path[h] as number);
      all += 1;
      if (path[h] !== undefined && y >= low && y <= high) inside += 1;
      total += high - low + 20 * (Math.max(0, low - y) + Math.max(0, y - high));
    }
  });
  return { coverage90: all === 0 ? 0 : inside / all, intervalScore: all === 0 ? Infinity : total / all };
}
