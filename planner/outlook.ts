import { contains } from '../topology/key.js';
import type { Keyspace, Range, ShardName, Topology } from '../topology/topology.js';
import { fillGaps } from './forecast/fill.js';
import { forecastSeries, type SeriesForecast } from './forecast/forecast-series.js';
import { periodsOf } from './forecast/forecaster.js';
import { ridge } from './forecast/ridge.js';
import { recentMean, seasonalNaive } from './forecast/seasonal-naive.js';
import type { SegmentSeries } from './history-store.js';
import type { ForecastBand, ShardOutlook } from './proposal.js';
import { overloadProbability } from './score.js';

/** The grid that histories and forecasts lie on. */
export interface Grid {
  readonly stepSeconds: number;
  /** Start of the first step of history, ms since 1970. */
  readonly start: number;
  /** Steps of history; the forecast begins right after. */
  readonly length: number;
  /** Steps to forecast. */
  readonly horizon: number;
}

/** Start of a step, counted from the first of the history. */
export function stepAt(grid: Grid, step: number): number {
  return grid.start + step * grid.stepSeconds * 1000;
}

/** Step by step sums. Unknown in one is unknown in all: half a sum would look like a quiet shard. */
export function sumSeries(series: readonly Float64Array[], length: number): Float64Array {
  const sum = new Float64Array(length);
  for (const one of series) for (let i = 0; i < length; i++) sum[i] = (sum[i] as number) + (one[i] as number);
  return sum;
}

/** Segments that lie in a range. Segments never straddle a range's bounds (`ensureSegments`). */
export function segmentsIn(range: Range, segments: readonly SegmentSeries[]): SegmentSeries[] {
  return segments.filter(
    (s) => s.keyspace === range.keyspace && (s.lo === null ? range.lo === null : contains(range, s.lo)),
  );
}

export function rangesOn(topology: Topology, shard: ShardName): { keyspace: Keyspace; range: Range }[] {
  return [...topology.keyspaces.values()].flatMap((keyspace) =>
    keyspace.ranges.filter((range) => range.shard === shard).map((range) => ({ keyspace, range })),
  );
}

export interface Assessment {
  readonly outlook: ShardOutlook;
  readonly forecast: SeriesForecast;
  /** The shard's history, ms of busy backend per second. */
  readonly load: Float64Array;
}

/** Forecasts a shard's load and scores it against its capacity. Null when the history is too short to say anything. */
export function assess(shard: ShardName, capacity: number, load: Float64Array, grid: Grid): Assessment | null {
  const forecast = forecastSeries(load, grid.stepSeconds, grid.horizon);
  if (forecast === null) return null;
  const at = Array.from({ length: grid.horizon }, (_, h) => stepAt(grid, grid.length + h));
  const crossing = forecast.p50.findIndex((v) => v > capacity);
  let peak = 0;
  forecast.p50.forEach((v, h) => {
    if (v > (forecast.p50[peak] as number)) peak = h;
  });
  const band: ForecastBand = {
    stepSeconds: grid.stepSeconds,
    at,
    p05: figures(forecast.p05),
    p50: figures(forecast.p50),
    p95: figures(forecast.p95),
    model: forecast.accuracy[0]?.model ?? '',
    backtest: forecast.accuracy,
    choice: forecast.choice,
    notes: forecast.notes,
  };
  const known = [...load.keys()].filter((i) => !Number.isNaN(load[i]));
  return {
    forecast,
    load,
    outlook: {
      shard,
      capacityMsPerSecond: capacity,
      history: {
        stepSeconds: grid.stepSeconds,
        at: known.map((i) => stepAt(grid, i)),
        values: known.map((i) => figure(load[i] as number)),
      },
      forecast: band,
      score: overloadProbability(forecast, capacity),
      crossesAt: crossing < 0 ? null : (at[crossing] as number),
      peak: {
        at: at[peak] as number,
        p50: figure(forecast.p50[peak] as number),
        p95: figure(forecast.p95[peak] as number),
      },
    },
  };
}

/** A forecast without a band or a choice, for shares only: cheap enough for every segment. */
export function quickForecast(load: Float64Array, grid: Grid): Float64Array {
  const periods = periodsOf(grid.stepSeconds);
  const { values } = fillGaps(load, periods);
  for (const model of [ridge, seasonalNaive, recentMean]) {
    const fitted = model.fit(values, periods);
    if (fitted !== null) return fitted.forecast(grid.horizon);
  }
  return new Float64Array(grid.horizon);
}

/** Steps of the horizon around the p50's peak that stay within a tenth of it. */
export function peakWindow(p50: Float64Array): { from: number; to: number } {
  let peak = 0;
  p50.forEach((v, h) => {
    if (v > (p50[peak] as number)) peak = h;
  });
  const floor = 0.9 * (p50[peak] as number);
  let [from, to] = [peak, peak + 1];
  while (from > 0 && (p50[from - 1] as number) >= floor) from--;
  while (to < p50.length && (p50[to] as number) >= floor) to++;
  return { from, to };
}

export function meanOver(values: Float64Array, window: { from: number; to: number }): number {
  let sum = 0;
  for (let h = window.from; h < window.to; h++) sum += values[h] as number;
  return sum / (window.to - window.from);
}

/** To a thousandth: more would only lengthen the stored plan. */
function figure(v: number): number {
  return Math.round(v * 1000) / 1000;
}

function figures(values: Float64Array): number[] {
  return Array.from(values, figure);
}
