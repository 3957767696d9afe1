import type { Fitted, Forecaster } from './forecaster.js';

/** The value one season ago, of one season. */
function naive(name: string, choose: (n: number, periods: readonly number[]) => number | null): Forecaster {
  return {
    name,
    fit(values, periods) {
      const period = choose(values.length, periods);
      if (period === null) return null;
      const at = (history: Float64Array): Fitted => ({
        forecast: (h) =>
          Float64Array.from({ length: h }, (_, i) => history[history.length - period + (i % period)] as number),
        extend: at,
      });
      return at(values);
    },
  };
}

/** The same hour yesterday (the shortest season). What every other model has to beat. */
export const seasonalNaive = naive('seasonal naive (day)', (n, [p]) => (p !== undefined && n >= p ? p : null));

/** The same hour a week ago (the longest season). */
export const weeklyNaive = naive('seasonal naive (week)', (n, periods) => {
  const p = periods[periods.length - 1];
  return p !== undefined && periods.length > 1 && n >= p ? p : null;
});

/** Steps that the recent mean looks back. */
const RECENT_STEPS = 12;

/** The mean of the last steps, for ever: all that a young history allows. */
export const recentMean: Forecaster = {
  name: 'recent mean',
  fit(values) {
    if (values.length === 0) return null;
    const at = (history: Float64Array): Fitted => {
      const recent = history.subarray(Math.max(0, history.length - RECENT_STEPS));
      const mean = recent.reduce((a, b) => a + b, 0) / recent.length;
      return { forecast: (h) => new Float64Array(h).fill(mean), extend: at };
    };
    return at(values);
  },
};
