import type { BacktestRow } from './backtest.js';
import { allForecasts, backtest, comparable, errorPaths, fitAll, MEDIAN, wape } from './backtest.js';
import { type BandRecord, conformalOffsets, judge } from './conformal.js';
import { fillGaps } from './fill.js';
import type { Forecaster, LogScale } from './forecaster.js';
import { fromLog, logScale, periodsOf, toLog } from './forecaster.js';
import { mstl } from './mstl.js';
import { ridge } from './ridge.js';
import { recentMean, seasonalNaive, weeklyNaive } from './seasonal-naive.js';

/** Simplest first: a later one must beat an earlier one by `MARGIN`. */
const MODELS: readonly Forecaster[] = [recentMean, seasonalNaive, weeklyNaive, ridge, mstl];
const MEMBERS = [ridge.name, mstl.name, seasonalNaive.name];
const MARGIN = 0.02;

/** Moments of the past that are forecast from. Quantiles at 5 % and 95 % need at least 20. */
const MAX_ORIGINS = 32;
/** Fewer make neither a choice nor a band. */
const MIN_ORIGINS = 8;
/** Units of the band's scale, as shares of the mean: from errors that multiply to errors that add. The best in the backtest is used. */
const BAND_UNITS = [0.1, 1, 10];
/** Ends of the parts of the horizon that choose their model each for itself, in seconds. */
const BUCKETS = [3600, 6 * 3600, 24 * 3600, Infinity];

export interface Accuracy {
  readonly model: string;
  /** Over the whole horizon, 0 is perfect. */
  readonly wape: number;
  /** Share of what came inside the model's own 90 % band, each origin judged by the errors of the others. */
  readonly coverage90: number;
}

export interface SeriesForecast {
  readonly p05: Float64Array;
  readonly p50: Float64Array;
  readonly p95: Float64Array;
  /** The chosen models' own forecast on the log scale, before correction. */
  readonly point: Float64Array;
  /** Errors on the log scale, one path over the horizon for each origin of the backtest. */
  readonly errorPaths: readonly Float64Array[];
  readonly scale: LogScale;
  /** Which model speaks for steps `[from, to)` of the horizon. */
  readonly choice: readonly { readonly from: number; readonly to: number; readonly model: string }[];
  /** Every model that could be compared, best first; the first row is the choice. */
  readonly accuracy: readonly Accuracy[];
  /** What the reader must know: a short history, unknown steps, a band that had to be extended. */
  readonly notes: readonly string[];
}

/**
 * Forecasts one series with a band. Models are chosen per part of the horizon by their error (WAPE) in a rolling-origin
 * backtest on this very series, the band is made of the chosen models' own past errors. Null when the history is too short
 * for any backtest: then nothing honest can be said.
 *
 * @param raw one value per step, oldest first; NaN where unknown
 */
export function forecastSeries(raw: Float64Array, stepSeconds: number, horizon: number): SeriesForecast | null {
  const periods = periodsOf(stepSeconds);
  const { values, unknown } = fillGaps(raw, periods);
  const n = values.length;
  const notes: string[] = [];
  if (unknown > 0) notes.push(`${unknown} of ${n} steps of history are unknown and were filled in`);

  // Half the history to learn from, the other half to be judged by. The judged horizon shrinks with the history.
  const judged = Math.min(horizon, Math.max(1, Math.floor(n / 4)));
  const minTrain = Math.max(Math.ceil(n / 2), Math.min(n, 12));
  const [day = Infinity, week = Infinity] = periods;
  const rows = backtest(values, {
    models: MODELS,
    members: MEMBERS,
    periods,
    horizon: judged,
    minTrain: Math.min(minTrain, n - judged - MIN_ORIGINS + 1),
    maxOrigins: MAX_ORIGINS,
  });
  if (rows.length < MIN_ORIGINS || n < 3 * MIN_ORIGINS) return null;
  if (n < 2 * day) notes.push(`history is shorter than two days: no daily season can be learned yet`);
  else if (n < 2 * week) notes.push(`history is shorter than two weeks: no weekly season can be learned yet`);

  const forecasts = allForecasts(fitAll(MODELS, values, periods), MEMBERS, horizon);
  const names = comparable(rows).filter((name) => forecasts.has(name));
  const order = [...MODELS.map((m) => m.name), MEDIAN].filter((name) => names.includes(name));
  const best = (from: number, to: number): string =>
    order
      .map((model) => ({ model, error: wape(rows, model, from, to) }))
      .reduce((a, b) => (b.error < a.error * (1 - MARGIN) ? b : a)).model;

  const choice: { from: number; to: number; model: string }[] = [];
  let from = 0;
  for (const seconds of BUCKETS) {
    const to = Math.min(horizon, Math.max(from, Math.round(seconds / stepSeconds)));
    if (to <= from) continue;
    const model = from < judged ? best(from, Math.min(to, judged)) : (choice[choice.length - 1]?.model as string);
    choice.push({ from, to, model });
    from = to;
  }
  const modelAt = (h: number): string => choice.find((c) => h < c.to)?.model as string;

  const { scale, paths: judgedPaths, record } = bestBand(rows, modelAt, values);
  const accuracy = order
    .map((model) => ({
      model,
      wape: wape(rows, model, 0, judged),
      coverage90: judgeOn(rows, () => model, scale).record.coverage90,
    }))
    .sort((a, b) => a.wape - b.wape);
  const chosen = {
    model: [...new Set(choice.map((c) => c.model))].join(', then '),
    wape: chosenWape(rows, modelAt),
    coverage90: record.coverage90,
  };

  if (judged < horizon)
    notes.push(
      `history allows to test ${judged} of ${horizon} steps ahead: beyond, the band repeats the last errors that were measured`,
    );
  const paths = judgedPaths.map((path) =>
    Float64Array.from({ length: horizon }, (_, h) => path[Math.min(h, judged - 1)] as number),
  );
  const offsets = conformalOffsets(paths);
  const point = Float64Array.from({ length: horizon }, (_, h) =>
    toLog(scale, (forecasts.get(modelAt(h)) as Float64Array)[h] as number),
  );
  const shifted = (by: Float64Array) => point.map((z, h) => fromLog(scale, z + (by[h] as number)));
  return {
    p05: shifted(offsets.p05),
    p50: shifted(offsets.p50),
    p95: shifted(offsets.p95),
    point,
    errorPaths: paths,
    scale,
    choice,
    accuracy:
      choice.length > 1 && chosen.model.includes(', then ')
        ? [chosen, ...accuracy]
        : [...accuracy].sort((a, b) => Number(b.model === chosen.model) - Number(a.model === chosen.model)),
    notes,
  };
}

type ModelAt = (h: number) => string;

function judgeOn(
  rows: readonly BacktestRow[],
  modelAt: ModelAt,
  scale: LogScale,
): { scale: LogScale; paths: Float64Array[]; record: BandRecord } {
  const paths = errorPaths(rows, modelAt, scale);
  const said = rows.map((row) => row.actual.map((_, h) => toLog(scale, row.forecasts.get(modelAt(h))?.[h] as number)));
  return { scale, paths, record: judge(paths, (i, h, e) => fromLog(scale, (said[i]?.[h] as number) + e)) };
}

/**
 * On which scale do the errors of this series look alike at every level of load? Bursts on top of a quiet night multiply it by
 * fifty; a band that multiplied the busy hours by fifty too would be of no use. The interval score decides.
 */
function bestBand(rows: readonly BacktestRow[], modelAt: ModelAt, values: Float64Array): ReturnType<typeof judgeOn> {
  return BAND_UNITS.map((share) => judgeOn(rows, modelAt, logScale(values, share))).reduce((a, b) =>
    b.record.intervalScore < a.record.intervalScore ? b : a,
  );
}

function chosenWape(rows: readonly BacktestRow[], modelAt: ModelAt): number {
  const mixed = rows.map((row) => ({
    ...row,
    forecasts: new Map([['chosen', row.actual.map((_, h) => row.forecasts.get(modelAt(h))?.[h] as number)]]),
  }));
  return wape(mixed, 'chosen', 0, rows[0]?.actual.length ?? 0);
}
