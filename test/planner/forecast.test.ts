import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { backtest, wape } from '../../planner/forecast/backtest.js';
import { solveCholesky } from '../../planner/forecast/cholesky.js';
import { conformalOffsets } from '../../planner/forecast/conformal.js';
import { fillGaps } from '../../planner/forecast/fill.js';
import { forecastSeries, type SeriesForecast } from '../../planner/forecast/forecast-series.js';
import { fromLog, periodsOf, toLog } from '../../planner/forecast/forecaster.js';
import { mstl } from '../../planner/forecast/mstl.js';
import { lagsFor, ridge } from '../../planner/forecast/ridge.js';
import { seasonalNaive, weeklyNaive } from '../../planner/forecast/seasonal-naive.js';
import { overloadProbability } from '../../planner/score.js';
import { hourly } from './series.js';

const PERIODS = [24, 168];

function worst(forecast: Float64Array, actual: Float64Array): number {
  return Math.max(...forecast.map((f, i) => Math.abs(f - (actual[i] as number)) / (actual[i] as number)));
}

describe('forecasters', () => {
  const exact = hourly(24 * 7 * 6, 500, 0);
  const train = exact.subarray(0, exact.length - 48);
  const actual = exact.subarray(exact.length - 48);

  it('know the seasons of a step', () => {
    expect(periodsOf(3600)).toEqual([24, 168]);
    expect(periodsOf(300)).toEqual([288, 2016]);
  });

  it('repeat last week exactly when that is the truth', () => {
    expect(worst(weeklyNaive.fit(train, PERIODS)?.forecast(48) as Float64Array, actual)).toBeLessThan(1e-9);
    expect(seasonalNaive.fit(train.subarray(0, 23), PERIODS)).toBeNull();
  });

  it.each([ridge, mstl])('$name continues a noiseless season within 6 %', (model) => {
    const forecast = model.fit(train, PERIODS)?.forecast(48) as Float64Array;
    expect(worst(forecast, actual)).toBeLessThan(0.06);
  });

  it('ridge beats the seasonal naive on noise clearly, because it averages', () => {
    let [ours, theirs] = [0, 0];
    for (let seed = 1; seed <= 10; seed++) {
      const y = hourly(24 * 7 * 6, 500, 0.25, seed);
      const [past, future] = [y.subarray(0, -48), y.subarray(-48)];
      const error = (f: Float64Array) => future.reduce((sum, v, i) => sum + Math.abs(v - (f[i] as number)), 0);
      ours += error(ridge.fit(past, PERIODS)?.forecast(48) as Float64Array);
      theirs += error(weeklyNaive.fit(past, PERIODS)?.forecast(48) as Float64Array);
    }
    expect(ours).toBeLessThan(0.85 * theirs);
  });

  it('ridge with new history is not fitted to it', () => {
    const fitted = ridge.fit(train, PERIODS);
    const shifted = fitted?.extend?.(exact.subarray(0, exact.length - 24)).forecast(24) as Float64Array;
    expect(worst(shifted, exact.subarray(-24))).toBeLessThan(0.06);
  });

  it('leave constant and empty series alone instead of trapping', () => {
    expect(mstl.fit(new Float64Array(500), PERIODS)).toBeNull();
    expect(ridge.fit(new Float64Array(500).fill(7), PERIODS)).toBeNull();
    expect(ridge.fit(new Float64Array(0), PERIODS)).toBeNull();
  });

  it('takes only lags that leave enough to learn from', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 3000 }), (n) => {
        const lags = lagsFor(n, PERIODS);
        const most = lags[lags.length - 1];
        return most === undefined || n - most >= 10 * (lags.length + 1);
      }),
    );
  });
});

describe('the log scale', () => {
  it('comes back', () => {
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1e9, noNaN: true }),
        fc.double({ min: 1e-3, max: 1e6, noNaN: true }),
        (y, unit) => {
          expect(Math.abs(fromLog({ unit }, toLog({ unit }, y)) - y)).toBeLessThanOrEqual(1e-9 * (y + unit));
        },
      ),
    );
  });
});

describe('solveCholesky', () => {
  it('solves what it is given, and refuses what is not positive definite', () => {
    const a = Float64Array.from([4, 0, 0, 2, 5, 0, 1, 3, 6]);
    const b = Float64Array.from([4 + 4 + 3, 2 + 10 + 9, 1 + 6 + 18]);
    expect(solveCholesky(a, b)).toBe(true);
    expect(Array.from(b)).toEqual([1, 2, 3].map((v) => expect.closeTo(v, 9)));
    expect(solveCholesky(Float64Array.from([1, 0, 2, 1]), Float64Array.from([1, 1]))).toBe(false);
  });
});

describe('fillGaps', () => {
  it('fills from the same time in other seasons, else by a line, and cuts an unknown beginning', () => {
    const season = Float64Array.from({ length: 72 }, (_, t) => t % 24);
    const holed = season.slice();
    for (const i of [30, 31, 32]) holed[i] = Number.NaN;
    expect(fillGaps(holed, [24])).toEqual({ values: season, unknown: 3 });
    const short = fillGaps(Float64Array.from([Number.NaN, 1, Number.NaN, 3, Number.NaN]), []);
    expect(Array.from(short.values)).toEqual([1, 2, 3, 3]);
    expect(fillGaps(new Float64Array(3).fill(Number.NaN), [24]).values).toHaveLength(0);
  });
});

describe('backtest', () => {
  it('never shows a model what came after an origin', () => {
    const y = hourly(600, 100, 0.1);
    const seen: number[] = [];
    const spy = {
      name: 'spy',
      fit: (values: Float64Array) => {
        seen.push(values.length);
        return { forecast: (h: number) => new Float64Array(h).fill(values[values.length - 1] as number) };
      },
    };
    const rows = backtest(y, {
      models: [spy],
      members: [],
      periods: PERIODS,
      horizon: 24,
      minTrain: 300,
      maxOrigins: 12,
    });
    expect(rows).toHaveLength(12);
    for (const row of rows) {
      expect(seen).toContain(row.origin);
      expect(row.forecasts.get('spy')?.[0]).toBe(y[row.origin - 1]);
      expect(row.actual[0]).toBe(y[row.origin]);
    }
    expect(Math.max(...seen)).toBeLessThanOrEqual(600 - 24);
    expect(new Set(rows.map((r) => r.origin % 24)).size).toBeGreaterThan(8);
    expect(wape(rows, 'spy', 0, 24)).toBeGreaterThan(0);
  });
});

describe('forecastSeries', () => {
  it('holds its 90 % band on hours it has never seen', () => {
    let [inside, all] = [0, 0];
    let promised = 0;
    const seeds = 8;
    for (let seed = 1; seed <= seeds; seed++) {
      const y = hourly(24 * 7 * 5 + 24, 300, 0.2, seed * 101);
      const forecast = forecastSeries(y.subarray(0, -24), 3600, 24) as SeriesForecast;
      promised += (forecast.accuracy[0]?.coverage90 as number) / seeds;
      y.subarray(-24).forEach((v, h) => {
        all += 1;
        if (v >= (forecast.p05[h] as number) && v <= (forecast.p95[h] as number)) inside += 1;
      });
    }
    expect(inside / all).toBeGreaterThan(0.84);
    expect(inside / all).toBeLessThan(0.98);
    expect(Math.abs(inside / all - promised)).toBeLessThan(0.08);
  });

  it('orders its quantiles and chooses a model that is not worse than the simplest', () => {
    const forecast = forecastSeries(hourly(24 * 7 * 6, 300, 0.2), 3600, 48) as SeriesForecast;
    forecast.p50.forEach((v, h) => {
      expect(forecast.p05[h]).toBeLessThanOrEqual(v);
      expect(forecast.p95[h]).toBeGreaterThanOrEqual(v);
    });
    const naive = forecast.accuracy.find((a) => a.model === seasonalNaive.name)?.wape as number;
    expect(forecast.accuracy[0]?.wape).toBeLessThan(naive);
    expect(forecast.choice.map((c) => c.to)).toEqual([1, 6, 24, 48]);
  });

  it('is the same whatever unit the load is in', () => {
    const y = hourly(24 * 21, 300, 0.2);
    const a = forecastSeries(y, 3600, 24) as SeriesForecast;
    const b = forecastSeries(
      y.map((v) => v / 1000),
      3600,
      24,
    ) as SeriesForecast;
    a.p95.forEach((v, h) => {
      expect((b.p95[h] as number) * 1000).toBeCloseTo(v, 3);
    });
  });

  it('falls back on short histories and says so, and says nothing without any', () => {
    const hours = forecastSeries(hourly(72, 300, 0.1).subarray(0, 40), 3600, 24) as SeriesForecast;
    expect(hours.notes.join(' ')).toMatch(/shorter than two days/);
    expect(hours.notes.join(' ')).toMatch(/test 10 of 24 steps ahead/);
    const week = forecastSeries(hourly(24 * 8, 300, 0.1), 3600, 24) as SeriesForecast;
    expect(week.notes.join(' ')).toMatch(/shorter than two weeks/);
    expect(forecastSeries(new Float64Array(10).fill(5), 3600, 24)).toBeNull();
    expect(forecastSeries(new Float64Array(0), 3600, 24)).toBeNull();
  });

  it('forecasts nothing for an idle shard', () => {
    const idle = forecastSeries(new Float64Array(400), 3600, 24) as SeriesForecast;
    expect(Math.max(...idle.p95)).toBe(0);
    expect(overloadProbability(idle, 1)).toBe(0);
  });
});

describe('conformalOffsets', () => {
  it('are the quantiles of the errors, raised for the number of origins', () => {
    const paths = Array.from({ length: 99 }, (_, i) => Float64Array.from([i - 49]));
    const { p05, p50, p95 } = conformalOffsets(paths);
    expect([p05[0], p50[0], p95[0]]).toEqual([-45, 0, 45]);
  });
});

describe('overloadProbability', () => {
  const y = hourly(24 * 7 * 6, 300, 0.2, 5);
  const forecast = forecastSeries(y.subarray(0, -168), 3600, 24) as SeriesForecast;

  it('falls as the capacity rises, from one to zero', () => {
    const scores = [100, 400, 500, 600, 800, 5000].map((c) => overloadProbability(forecast, c));
    expect(scores[0]).toBe(1);
    expect(scores[scores.length - 1]).toBe(0);
    for (let i = 1; i < scores.length; i++) expect(scores[i]).toBeLessThanOrEqual(scores[i - 1] as number);
  });

  it('is at least that of the worst step alone, and less than if the steps were independent', () => {
    const capacity = Math.max(...forecast.p50) * 1.1;
    const marginal = forecast.point.map(
      (z, h) =>
        forecast.errorPaths.filter((p) => fromLog(forecast.scale, z + (p[h] as number)) > capacity).length /
        forecast.errorPaths.length,
    );
    const score = overloadProbability(forecast, capacity);
    expect(score).toBeGreaterThanOrEqual(Math.max(...marginal) - 0.05);
    expect(score).toBeLessThanOrEqual(1 - marginal.reduce((p, m) => p * (1 - m), 1) + 0.05);
  });

  it('agrees with how often it happens', () => {
    let [said, came] = [0, 0];
    const runs = 12;
    for (let seed = 1; seed <= runs; seed++) {
      const one = hourly(24 * 7 * 4 + 24, 300, 0.15, seed * 31);
      const f = forecastSeries(one.subarray(0, -24), 3600, 24) as SeriesForecast;
      const capacity = 640;
      said += overloadProbability(f, capacity) / runs;
      came += (Math.max(...one.subarray(-24)) > capacity ? 1 : 0) / runs;
    }
    expect(Math.abs(said - came)).toBeLessThan(0.2);
  });
});
