import type { Fitted, Forecaster, LogScale } from './forecaster.js';
import { toLog } from './forecaster.js';
import { medianOf } from './median.js';

export const MEDIAN = 'median';

/** Forecasts of every model that can be fitted to the history, by name; `median` is that of the `members` of it. */
export function allForecasts(
  fitted: ReadonlyMap<string, Fitted>,
  members: readonly string[],
  h: number,
): Map<string, Float64Array> {
  const forecasts = new Map([...fitted].map(([name, model]) => [name, model.forecast(h)]));
  const voices = members.map((m) => forecasts.get(m)).filter((f): f is Float64Array => f !== undefined);
  if (voices.length > 1) forecasts.set(MEDIAN, medianOf(voices));
  return forecasts;
}

export function fitAll(
  models: readonly Forecaster[],
  values: Float64Array,
  periods: readonly number[],
): Map<string, Fitted> {
  const fitted = new Map<string, Fitted>();
  for (const model of models) {
    const fit = model.fit(values, periods);
    if (fit !== null) fitted.set(model.name, fit);
  }
  return fitted;
}

/** What one model forecast from one origin, and what came. */
export interface BacktestRow {
  readonly origin: number;
  readonly actual: Float64Array;
  readonly forecasts: ReadonlyMap<string, Float64Array>;
}

export interface BacktestOptions {
  readonly models: readonly Forecaster[];
  readonly members: readonly string[];
  readonly periods: readonly number[];
  readonly horizon: number;
  /** First origin: steps of history that every model is fitted to at least. */
  readonly minTrain: number;
  readonly maxOrigins: number;
}

/** Origins that share one fit of the models that can be extended. */
const ORIGINS_PER_FIT = 8;

/**
 * Rolling-origin backtest: from up to `maxOrigins` moments in the past, what would each model have said of the `horizon` steps
 * that followed, knowing only what was known then? Parameters are never fitted to anything after an origin. The spacing
 * shares no factor with the season, so that the origins fall on every time of the day.
 */
export function backtest(values: Float64Array, options: BacktestOptions): BacktestRow[] {
  const { models, members, periods, horizon } = options;
  const room = values.length - horizon - options.minTrain;
  if (room < 0) return [];
  let spacing = Math.max(1, Math.floor(room / Math.max(1, options.maxOrigins - 1)));
  const [day = 1] = periods;
  while (spacing > 1 && gcd(spacing, day) > 1) spacing--;
  const origins: number[] = [];
  for (let o = values.length - horizon; o >= options.minTrain && origins.length < options.maxOrigins; o -= spacing)
    origins.unshift(o);

  const rows: BacktestRow[] = [];
  let shared = new Map<string, Fitted>();
  origins.forEach((origin, i) => {
    const train = values.subarray(0, origin);
    if (i % ORIGINS_PER_FIT === 0) shared = fitAll(models, train, periods);
    const fitted = new Map<string, Fitted>();
    for (const model of models) {
      const before = shared.get(model.name);
      const now = before?.extend === undefined ? model.fit(train, periods) : before.extend(train);
      if (now !== null) fitted.set(model.name, now);
    }
    const forecasts = allForecasts(fitted, members, horizon);
    rows.push({ origin, actual: values.subarray(origin, origin + horizon), forecasts });
  });
  return rows;
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** Names of the models that forecast from every origin: only those can be compared. */
export function comparable(rows: readonly BacktestRow[]): string[] {
  const [first] = rows;
  if (first === undefined) return [];
  return [...first.forecasts.keys()].filter((name) => rows.every((r) => r.forecasts.has(name)));
}

/** Weighted absolute percentage error over steps `[from, to)` of the horizon: Σ|y − ŷ| / Σ|y|. 0 when nothing was there and nothing forecast. */
export function wape(rows: readonly BacktestRow[], model: string, from: number, to: number): number {
  let [error, size] = [0, 0];
  for (const row of rows) {
    const forecast = row.forecasts.get(model) as Float64Array;
    for (let h = from; h < to; h++) {
      error += Math.abs((row.actual[h] as number) - (forecast[h] as number));
      size += Math.abs(row.actual[h] as number);
    }
  }
  if (size === 0) return error === 0 ? 0 : Number.MAX_VALUE;
  return error / size;
}

/** Errors on a log scale (what came minus the forecast), one path per origin, of the model chosen for each step. */
export function errorPaths(
  rows: readonly BacktestRow[],
  modelAt: (h: number) => string,
  scale: LogScale,
): Float64Array[] {
  return rows.map((row) =>
    Float64Array.from(
      row.actual,
      (y, h) => toLog(scale, y) - toLog(scale, row.forecasts.get(modelAt(h))?.[h] as number),
    ),
  );
}
