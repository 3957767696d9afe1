import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HistoryStore } from '../../planner/history-store.js';
import { ensureSegments } from '../../planner/segments.js';
import { dealToSegments, ratesAt, readTrace, type Trace, traceSamples } from '../../planner/trace.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import type { Keyspace } from '../../topology/topology.js';
import type { LoadShape } from './load-options.js';
import { COUNTER_STEP_MS } from './shard-load.js';

const TRACE_FILE = join('deploy', 'data', 'traces', 'tweet_mentions_5min_10keys.csv.gz');

const HOUR_MS = 3_600_000;
const DAY_HOURS = 24;

/** What one shard of the demo is said to carry: one processor's worth of busy backend. */
export const CAPACITY_MS_PER_SECOND = 1000;

/**
 * The scale of the imported history: in this share of the hours of the last four weeks the load was below the capacity. The trace
 * counts events and not milliseconds, so some scale must be chosen; what the load does next is the forecaster's to say.
 */
const SHARE_BELOW_CAPACITY = 0.75;
const SCALE_HOURS = 28 * DAY_HOURS;

/** Segments that share the load of one key of the trace, so that a split may fall inside its tenants. */
const SEGMENTS_PER_KEY = 4;

/** A day of the trace in the live load: one step of the proxy's counters, so that any two steps had the same to do. */
const LIVE_DAY_MS = COUNTER_STEP_MS;

/** Bounds of the live load's rate, relative to the wanted mean: a demo must neither stand still nor storm. */
const LIVE_LEAST = 0.6;
const LIVE_MOST = 1.6;

/**
 * The real trace that the demo's shop lives by (its origin is told in deploy/data/traces), up to the quietest hour of its last
 * day: a shard is to be relieved before the day begins and not when it is hot.
 */
export function demoTrace(): Trace {
  const trace = readTrace(traceFile());
  const lastDay = hourlyTotals(trace).slice(-DAY_HOURS);
  const hoursLess = lastDay.length - 1 - lastDay.indexOf(Math.min(...lastDay));
  const end = (trace.events[0]?.length ?? 0) - (hoursLess * 3600) / trace.stepSeconds;
  return { ...trace, events: trace.events.map((series) => series.slice(0, end)) };
}

function traceFile(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, TRACE_FILE))) {
    const parent = dirname(dir);
    if (parent === dir) throw new Error(`${TRACE_FILE} is missing from this installation`);
    dir = parent;
  }
  return join(dir, TRACE_FILE);
}

export interface Imported {
  readonly samples: number;
  readonly weeks: number;
  readonly segments: number;
  /** Load of the last whole hour, ms of busy backend per second. */
  readonly presentMsPerSecond: number;
}

/**
 * Imports the trace as hourly load of the shop's tenants, its end moved to `now`: each of its keys stands for as many
 * neighbouring tenants.
 */
export async function importTrace(
  catalog: Catalog,
  keyspace: Keyspace,
  trace: Trace,
  tenants: number,
  now: number,
): Promise<Imported> {
  const store = new HistoryStore(catalog.pool);
  const count = Math.min(tenants, trace.keys.length * SEGMENTS_PER_KEY);
  const boundaries = Array.from({ length: count - 1 }, (_, i) => [BigInt(1 + Math.round(((i + 1) * tenants) / count))]);
  const segments = await ensureSegments(store, keyspace, boundaries);
  const hours = hourlyTotals(trace);
  const recent = hours.slice(-SCALE_HOURS).sort((a, b) => a - b);
  const busyHour = recent[Math.floor(SHARE_BELOW_CAPACITY * recent.length)] as number;
  const serverMsPerEvent = (CAPACITY_MS_PER_SECOND * 3600) / busyHour;
  const samples = await store.importHistory(
    traceSamples(trace, 3600, { now, placement: dealToSegments(trace, segments), serverMsPerEvent }),
    3600,
    now,
  );
  return {
    samples,
    weeks: Math.round(hours.length / (7 * DAY_HOURS)),
    segments: segments.length,
    presentMsPerSecond: ((hours.at(-1) as number) * serverMsPerEvent) / 3600,
  };
}

/** Events of all keys by hour, the last hour ending where the trace does. */
function hourlyTotals(trace: Trace): number[] {
  const perHour = 3600 / trace.stepSeconds;
  const steps = trace.events[0]?.length ?? 0;
  const totals: number[] = [];
  for (let end = steps; end >= perHour; end -= perHour) {
    let total = 0;
    for (const series of trace.events) {
      const known = series.slice(end - perHour, end).filter((v) => !Number.isNaN(v));
      if (known.length > 0) total += (known.reduce((a, b) => a + b, 0) / known.length) * perHour;
    }
    totals.unshift(total);
  }
  return totals;
}

/** The live load: the day after `now` as the trace would have it, in ten seconds, at `statementsPerSecond` on average, again and again. */
export function liveShape(trace: Trace, now: number, statementsPerSecond: number): LoadShape {
  const hours = Array.from({ length: DAY_HOURS }, (_, hour) => {
    const sums = trace.keys.map(() => 0);
    for (let at = now + hour * HOUR_MS; at < now + (hour + 1) * HOUR_MS; at += trace.stepSeconds * 1000)
      [...ratesAt(trace, now, at).values()].forEach((rate, k) => {
        sums[k] = (sums[k] as number) + rate;
      });
    return sums;
  });
  const totals = hours.map((sums) => sums.reduce((a, b) => a + b, 0));
  const mean = totals.reduce((a, b) => a + b, 0) / totals.length;
  return {
    stepMs: LIVE_DAY_MS / DAY_HOURS,
    rates: totals.map((total) => statementsPerSecond * Math.min(LIVE_MOST, Math.max(LIVE_LEAST, total / mean))),
    weights: hours,
  };
}

/** Orders loaded for each tenant, by tenant from 1: tenants of a busier key have more, about `rows` rows in all. */
export function ordersByTenant(trace: Trace, tenants: number, rows: number): number[] {
  // An order has 2.5 items on average; statements load whole hundreds.
  const hundreds = rows / (3.5 * 100);
  const events = trace.events.map((series) => series.reduce((sum, v) => sum + (Number.isNaN(v) ? 0 : v), 0));
  const all = events.reduce((a, b) => a + b, 0);
  const perKey = tenants / trace.keys.length;
  return [
    0,
    ...Array.from({ length: tenants }, (_, i) => {
      const share = (events[Math.floor(i / perKey)] as number) / all / perKey;
      return 100 * Math.max(1, Math.round(hundreds * (0.5 / tenants + 0.5 * share)));
    }),
  ];
}
