import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { initSync, MSTL } from '@bsull/augurs/mstl';
import type { Forecaster } from './forecaster.js';
import { fromLog, logScale, toLog } from './forecaster.js';

let loaded = false;

/** The WebAssembly module may be instantiated once a process; its own loader would fetch a URL, which Node refuses for files. */
function load(): void {
  if (loaded) return;
  const folder = dirname(createRequire(import.meta.url).resolve('@bsull/augurs/mstl'));
  initSync({ module: readFileSync(join(folder, 'mstl_bg.wasm')) });
  loaded = true;
}

/** Seasons of the longest period it looks back on: cost grows with them, accuracy slowly (OWA on M4 hourly: 3, 0.530; 4, 0.511; all, 0.490). */
const SEASONS_KEPT = 4;
/** Longer seasons than this are left out: LOESS over a week of 5-minute steps takes seconds. */
const LONGEST_PERIOD = 500;

/**
 * Multiple seasonal-trend decomposition by LOESS with an exponential smoothing of the trend, by `@bsull/augurs`, on the log
 * scale. Needs two whole seasons of each period used.
 */
export const mstl: Forecaster = {
  name: 'MSTL',
  fit(values, periods) {
    const usable = periods.filter((p) => p <= LONGEST_PERIOD && values.length >= 2 * p + 1);
    if (usable.length === 0) return null;
    load();
    const scale = logScale(values);
    const longest = usable[usable.length - 1] as number;
    const z = values.subarray(Math.max(0, values.length - SEASONS_KEPT * longest)).map((v) => toLog(scale, v));
    // A constant series (all zeros above all) traps inside the module instead of raising an error.
    if (z.every((v) => v === z[0])) return null;
    return {
      forecast(h) {
        const model = MSTL.ets(new Uint32Array(usable));
        try {
          model.fit(z);
          return Float64Array.from(model.predict(h).point, (v) => fromLog(scale, v));
        } finally {
          model.free();
        }
      },
    };
  },
};
