/** A model fitted to one history. */
export interface Fitted {
  /** Point forecasts (medians) of the next `h` steps, in the units of the history, never negative. */
  forecast(h: number): Float64Array;
  /** The same parameters on a longer history: lets a backtest forecast from many origins for the price of one fit. */
  extend?(values: Float64Array): Fitted;
}

/** A way to forecast a series of one step. Deterministic, without I/O. */
export interface Forecaster {
  readonly name: string;
  /**
   * Fits to evenly spaced values without gaps, oldest first. `periods`: seasons in steps, ascending (24 and 168 for hours).
   * Null when the history is too short for this model or holds nothing to learn from.
   */
  fit(values: Float64Array, periods: readonly number[]): Fitted | null;
}

const DAY_SECONDS = 86_400;

/** The seasons of load in steps: a day and a week. */
export function periodsOf(stepSeconds: number): number[] {
  return [DAY_SECONDS / stepSeconds, (7 * DAY_SECONDS) / stepSeconds].filter((p) => Number.isInteger(p) && p >= 2);
}

/**
 * The log scale that models and errors use: `log(1 + y / unit)`. Far above the unit errors multiply, far below it they add, and zeros
 * stay finite.
 */
export interface LogScale {
  readonly unit: number;
}

/** The scale whose unit is `share` of the mean: the same whatever the load is measured in, unlike a plain log1p. */
export function logScale(values: Float64Array, share = 0.1): LogScale {
  let sum = 0;
  for (const v of values) sum += v;
  const mean = values.length === 0 ? 0 : sum / values.length;
  return { unit: mean > 0 ? mean * share : 1 };
}

export function toLog(scale: LogScale, y: number): number {
  return Math.log1p(Math.max(0, y) / scale.unit);
}

export function fromLog(scale: LogScale, z: number): number {
  return Math.max(0, Math.expm1(z) * scale.unit);
}
