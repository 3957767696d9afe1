import type { SeriesForecast } from './forecast/forecast-series.js';
import { fromLog } from './forecast/forecaster.js';

/** Futures that are drawn. The standard error of a probability is then at most 1.1 %. */
const PATHS = 2000;
/** Length of the stretches of past errors that are joined, as a share of the horizon. */
const BLOCK_SHARE = 1 / 4;
/** At a joint, the next stretch comes from one of this many origins whose error is nearest. */
const NEIGHBOURS = 5;

/**
 * Load risk: the probability, 0–1, that the load passes the capacity in at least one step of the horizon.
 *
 * Steps depend on each other (a forecast that is too low at ten is too low at eleven), so neither 1 − ∏(1 − pₕ) nor the worst
 * step alone is right. Futures are drawn instead: the point forecast plus stretches of *whole error paths of the backtest*
 * (a block bootstrap). Within a stretch the dependence is the real one; where two are joined, the next is taken from an
 * origin whose error at that step is among the nearest to the present one, so the level of an error carries on. Nothing
 * about the errors' distribution is assumed. Deterministic: the generator is seeded.
 */
export function overloadProbability(forecast: SeriesForecast, capacity: number): number {
  const { point, errorPaths, scale } = forecast;
  const origins = errorPaths.length;
  const horizon = point.length;
  if (origins === 0 || horizon === 0) return 0;
  const block = Math.max(1, Math.ceil(horizon * BLOCK_SHARE));
  const random = mulberry32(0x5eed);
  let over = 0;
  for (let n = 0; n < PATHS; n++) {
    let origin = Math.floor(random() * origins);
    // The first joint falls anywhere, or all futures would be joined at the same steps.
    let joint = 1 + Math.floor(random() * block);
    for (let h = 0; h < horizon; h++) {
      if (h === joint) {
        origin = nearby(errorPaths, origin, h, random);
        joint += block;
      }
      if (fromLog(scale, (point[h] as number) + (errorPaths[origin]?.[h] as number)) > capacity) {
        over += 1;
        break;
      }
    }
  }
  return over / PATHS;
}

function nearby(paths: readonly Float64Array[], origin: number, h: number, random: () => number): number {
  const here = paths[origin]?.[h] as number;
  const order = paths
    .map((path, i) => ({ i, distance: Math.abs((path[h] as number) - here) }))
    .sort((a, b) => a.distance - b.distance);
  return (order[Math.floor(random() * Math.min(NEIGHBOURS, order.length))] as { i: number }).i;
}

/** A small seeded generator, uniform on [0, 1): mulberry32 (Tommy Ettinger, public domain). */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}
