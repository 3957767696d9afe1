import { Planner } from '../planner/planner.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import type { Config } from './config.js';

const DAY_SECONDS = 86_400;

/** The planner with what the configuration says of it. */
export function createPlanner(catalog: Catalog, config: Config): Planner {
  const { horizonHours, retention } = config.planner;
  return new Planner(catalog, {
    horizonSeconds: horizonHours * 3600,
    maxCopyRate: config.migrator.throttle.maxRate,
    retention: {
      tenSeconds: retention.tenSecondsDays * DAY_SECONDS,
      minutes: retention.minutesDays * DAY_SECONDS,
      hours: retention.hoursDays * DAY_SECONDS,
      keySamples: retention.keySamplesDays * DAY_SECONDS,
      templates: retention.templatesDays * DAY_SECONDS,
    },
  });
}
