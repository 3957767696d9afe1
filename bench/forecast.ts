import { existsSync, readFileSync } from 'node:fs';
import { arch, cpus, platform } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { Fitted, Forecaster } from '../planner/forecast/forecaster.js';
import { medianOf } from '../planner/forecast/median.js';
import { mstl } from '../planner/forecast/mstl.js';
import { ridge } from '../planner/forecast/ridge.js';
import { seasonalNaive, weeklyNaive } from '../planner/forecast/seasonal-naive.js';

/**
 * Accuracy and speed of the forecasters on M4 hourly (Makridakis et al., 2020), with M4's own measures:
 * sMAPE = mean of 200·|y − ŷ| / (|y| + |ŷ|) over the 48 test hours; MASE = mean |y − ŷ| / mean |y_t − y_{t−24}| of the training part;
 * OWA = ½ (sMAPE / sMAPE of Naive2 + MASE / MASE of Naive2), each first averaged over the series. Naive2 is the last value
 * of the series after classical multiplicative seasonal adjustment at 24, when the autocorrelation at lag 24 passes M4's 90 %
 * test, with the season put back.
 */
const HORIZON = 48;
const PERIODS = [24, 168];

function read(path: string): Map<string, Float64Array> {
  const rows = new Map<string, Float64Array>();
  for (const line of gunzipSync(readFileSync(path)).toString('utf8').split('\n')) {
    const [id, ...cells] = line.trim().split(',');
    if (id === undefined || id === '') continue;
    rows.set(
      id,
      Float64Array.from(
        cells.filter((c) => c !== ''),
        Number,
      ),
    );
  }
  return rows;
}

function mean(values: Float64Array): number {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

/** M4's seasonality test: |r_m| > 1.645 · sqrt((1 + 2 Σ_{i<m} r_i²) / n). */
function isSeasonal(y: Float64Array, m: number): boolean {
  const mu = mean(y);
  let c0 = 0;
  for (const v of y) c0 += (v - mu) ** 2;
  if (c0 === 0) return false;
  const r = (lag: number): number => {
    let sum = 0;
    for (let t = lag; t < y.length; t++) sum += ((y[t] as number) - mu) * ((y[t - lag] as number) - mu);
    return sum / c0;
  };
  let squares = 0;
  for (let lag = 1; lag < m; lag++) squares += r(lag) ** 2;
  return Math.abs(r(m)) > 1.645 * Math.sqrt((1 + 2 * squares) / y.length);
}

/** Multiplicative seasonal indices by the ratio to a centred moving average. */
function seasonalIndices(y: Float64Array, m: number): Float64Array {
  const sums = new Float64Array(m);
  const counts = new Float64Array(m);
  const half = m / 2;
  for (let t = half; t + half < y.length; t++) {
    let average = ((y[t - half] as number) + (y[t + half] as number)) / 2;
    for (let k = 1 - half; k < half; k++) average += y[t + k] as number;
    average /= m;
    sums[t % m] = (sums[t % m] as number) + (y[t] as number) / average;
    counts[t % m] = (counts[t % m] as number) + 1;
  }
  const raw = sums.map((s, i) => s / (counts[i] as number));
  const level = mean(raw);
  return raw.map((v) => v / level);
}

function naive2(y: Float64Array): Float64Array {
  const n = y.length;
  const index = isSeasonal(y, 24) ? seasonalIndices(y, 24) : new Float64Array(24).fill(1);
  const last = (y[n - 1] as number) / (index[(n - 1) % 24] as number);
  return Float64Array.from({ length: HORIZON }, (_, i) => last * (index[(n + i) % 24] as number));
}

function smape(actual: Float64Array, forecast: Float64Array): number {
  return mean(
    actual.map((y, i) => {
      const f = forecast[i] as number;
      const size = Math.abs(y) + Math.abs(f);
      return size === 0 ? 0 : (200 * Math.abs(y - f)) / size;
    }),
  );
}

function mase(train: Float64Array, actual: Float64Array, forecast: Float64Array): number {
  let scale = 0;
  for (let t = 24; t < train.length; t++) scale += Math.abs((train[t] as number) - (train[t - 24] as number));
  scale /= train.length - 24;
  return mean(actual.map((y, i) => Math.abs(y - (forecast[i] as number)))) / scale;
}

/** The median of those members that can be fitted; null when fewer than two can. */
function medianForecaster(members: readonly Forecaster[]): Forecaster {
  return {
    name: 'median',
    fit(values, periods) {
      const fitted = members.map((m) => m.fit(values, periods)).filter((f): f is Fitted => f !== null);
      return fitted.length < 2 ? null : { forecast: (h) => medianOf(fitted.map((f) => f.forecast(h))) };
    },
  };
}

function main(): void {
  const folder = process.argv[2] ?? process.env.FORESHARD_M4_DIR ?? '../shared/data/m4';
  const [trainPath, testPath] = [join(folder, 'hourly-train.csv.gz'), join(folder, 'hourly-test.csv.gz')];
  if (!existsSync(trainPath) || !existsSync(testPath)) {
    console.log(`skipped: no M4 hourly files in ${folder} (give the folder as argument or in FORESHARD_M4_DIR)`);
    return;
  }
  const train = read(trainPath);
  const test = read(testPath);
  const members = [ridge, mstl, seasonalNaive];
  const contenders: Forecaster[] = [seasonalNaive, weeklyNaive, mstl, ridge, medianForecaster(members)];
  console.log(`M4 hourly, ${train.size} series, horizon ${HORIZON}; Node ${process.version}, ${platform()} ${arch()}`);
  console.log(`${cpus()[0]?.model ?? 'unknown processor'}; one run, one thread\n`);

  const reference = { smape: 0, mase: 0 };
  for (const [id, y] of train) {
    const actual = test.get(id) as Float64Array;
    const forecast = naive2(y);
    reference.smape += smape(actual, forecast) / train.size;
    reference.mase += mase(y, actual, forecast) / train.size;
  }
  console.log('forecaster                        sMAPE     MASE      OWA  ms/series');
  const line = (name: string, s: number, m: number, ms: string) =>
    console.log(
      `${name.padEnd(30)}  ${s.toFixed(3).padStart(7)}  ${m.toFixed(3).padStart(7)}  ${(0.5 * (s / reference.smape + m / reference.mase)).toFixed(3).padStart(7)}  ${ms.padStart(9)}`,
    );
  line('Naive2', reference.smape, reference.mase, '');
  for (const contender of contenders) {
    let [s, m, fallbacks] = [0, 0, 0];
    const started = performance.now();
    for (const [id, y] of train) {
      const actual = test.get(id) as Float64Array;
      let forecast = contender.fit(y, PERIODS)?.forecast(HORIZON);
      if (forecast === undefined) {
        fallbacks += 1;
        forecast = naive2(y);
      }
      s += smape(actual, forecast) / train.size;
      m += mase(y, actual, forecast) / train.size;
    }
    line(contender.name, s, m, ((performance.now() - started) / train.size).toFixed(2));
    if (fallbacks > 0) console.log(`  (${fallbacks} series it cannot be fitted to: Naive2 there)`);
  }
}

main();
