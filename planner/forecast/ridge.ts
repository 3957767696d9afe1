import { solveCholesky } from './cholesky.js';
import type { Fitted, Forecaster } from './forecaster.js';
import { fromLog, logScale, toLog } from './forecaster.js';

/** Penalty per observation on standardised lags. Flat between 1e-5 and 3e-4 on M4 hourly (bench/forecast.ts). */
const RIDGE = 1e-4;

/** Observations lose weight with age, by e in six of the longest seasons: habits change. On M4 hourly worth 1 % of OWA. */
const MEMORY_SEASONS = 6;

/**
 * Lags worth looking at: the last steps, and the same time, with its neighbours, one and two days and one week ago. The
 * neighbours matter (OWA 0.427 instead of 0.446 on half of M4 hourly with one neighbour a side), further days do not.
 */
export function lagsFor(n: number, periods: readonly number[]): number[] {
  const around = (centre: number, reach: number) => Array.from({ length: 2 * reach + 1 }, (_, i) => centre - reach + i);
  const [day, ...longer] = periods;
  const lags = new Set([1, 2, 3, 4, 5]);
  if (day !== undefined) for (const lag of [...around(day, 3), ...around(2 * day, 1)]) lags.add(lag);
  for (const period of longer) for (const lag of around(period, 3)) lags.add(lag);
  // Enough rows must remain to learn from: ten for each coefficient, and four tenths of the history.
  const kept = [...lags].filter((lag) => lag >= 1 && lag <= 0.6 * n).sort((a, b) => a - b);
  while (kept.length > 0 && n - (kept[kept.length - 1] as number) < 10 * (kept.length + 1)) kept.pop();
  return kept;
}

/**
 * Seasonal autoregression on the log scale: each value is a linear function of the last steps and of the same time one and
 * two days and one week ago, fitted by ridge regression (normal equations, Cholesky) and forecast recursively.
 */
export const ridge: Forecaster = {
  name: 'ridge seasonal autoregression',
  fit(values, periods) {
    const n = values.length;
    const lags = lagsFor(n, periods);
    const maxLag = lags[lags.length - 1];
    if (maxLag === undefined || lags.length < 3) return null;
    const scale = logScale(values);
    const z = values.map((v) => toLog(scale, v));
    let mean = 0;
    for (const v of z) mean += v / n;
    let variance = 0;
    for (const v of z) variance += (v - mean) ** 2 / n;
    if (!(variance > 1e-12)) return null;
    const sd = Math.sqrt(variance);
    const x = z.map((v) => (v - mean) / sd);

    const k = lags.length;
    const m = k + 1;
    const gram = new Float64Array(m * m);
    const beta = new Float64Array(m);
    const row = new Float64Array(m);
    row[k] = 1;
    const memory = MEMORY_SEASONS * (periods[periods.length - 1] ?? n);
    let total = 0;
    for (let t = maxLag; t < n; t++) {
      const weight = Math.exp((t - n) / memory);
      total += weight;
      for (let j = 0; j < k; j++) row[j] = x[t - (lags[j] as number)] as number;
      const y = x[t] as number;
      for (let i = 0; i < m; i++) {
        const r = weight * (row[i] as number);
        beta[i] = (beta[i] as number) + r * y;
        for (let j = 0; j <= i; j++) gram[i * m + j] = (gram[i * m + j] as number) + r * (row[j] as number);
      }
    }
    for (let i = 0; i < m; i++) gram[i * m + i] = (gram[i * m + i] as number) + RIDGE * total;
    if (!solveCholesky(gram, beta)) return null;

    // A recursion may run away on a series it never saw; load does not leave what was seen by more than this.
    let low = Infinity;
    let high = -Infinity;
    for (const v of x) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
    const ceiling = high + 0.5 * (high - low);
    const at = (history: Float64Array): Fitted => ({
      forecast(h) {
        const path = new Float64Array(maxLag + h);
        for (let i = 0; i < maxLag; i++)
          path[i] = (toLog(scale, history[history.length - maxLag + i] as number) - mean) / sd;
        for (let t = maxLag; t < path.length; t++) {
          let sum = beta[k] as number;
          for (let j = 0; j < k; j++) sum += (beta[j] as number) * (path[t - (lags[j] as number)] as number);
          path[t] = Math.min(ceiling, sum);
        }
        return path.subarray(maxLag).map((v) => fromLog(scale, v * sd + mean));
      },
      extend: at,
    });
    return at(values);
  },
};
