import { z } from 'zod';
import { type Ratios, ratiosOf } from './ratios.js';
import type { Results } from './results.js';
import { halfSpread, type Spread } from './statistics.js';

/**
 * The committed record: ratios of a run and where they come from. Never absolute figures: those say more about the machine than
 * about us.
 */
export const recordSchema = z.strictObject({
  format: z.literal(1),
  /** Each ratio's run: ratios of different parts may come from different ones. */
  runs: z.array(
    z.strictObject({
      startedAt: z.string(),
      machine: z.string(),
      versions: z.record(z.string(), z.string()),
      rounds: z.number(),
      seconds: z.number(),
    }),
  ),
  ratios: z.record(
    z.string(),
    z.strictObject({
      median: z.number(),
      low: z.number(),
      high: z.number(),
      count: z.number(),
      /** Index into `runs`. */
      run: z.number(),
    }),
  ),
});

export type BenchRecord = z.output<typeof recordSchema>;

export const EMPTY_RECORD: BenchRecord = { format: 1, runs: [], ratios: {} };

/** The record with the ratios of a run in the place of what it had for them. Runs of which nothing is left are forgotten. */
export function withRun(record: BenchRecord, results: Results): BenchRecord {
  const { machine } = results;
  const run = {
    startedAt: results.startedAt,
    machine: `${machine.processor}, ${machine.cores} cores, ${machine.system}, Node ${machine.node}`,
    versions: results.versions,
    rounds: results.options.rounds,
    seconds: results.options.seconds,
  };
  const fresh = Object.entries(ratiosOf(results)).map(
    ([id, spread]) => [id, { ...rounded(spread), run: record.runs.length }] as const,
  );
  const ratios = { ...record.ratios, ...Object.fromEntries(fresh) };
  const used = [...new Set(Object.values(ratios).map((ratio) => ratio.run))].sort((a, b) => a - b);
  const runs = [...record.runs, run];
  return {
    format: 1,
    runs: used.map((index) => runs[index] as (typeof runs)[number]),
    ratios: Object.fromEntries(
      Object.entries(ratios).map(([id, ratio]) => [id, { ...ratio, run: used.indexOf(ratio.run) }]),
    ),
  };
}

function rounded({ median, low, high, count }: Spread): Spread {
  const round = (value: number) => Number(value.toPrecision(4));
  return { median: round(median), low: round(low), high: round(high), count };
}

/** A ratio that both have. */
export interface Change {
  readonly id: string;
  readonly before: Spread;
  readonly now: Spread;
  /** `now` over `before`, minus 1. */
  readonly change: number;
  /** Changes up to this are noise. */
  readonly noise: number;
  readonly verdict: 'fell' | 'rose' | 'same';
}

export interface Comparison {
  readonly changes: readonly Change[];
  /** In the record and not in the run. */
  readonly missing: readonly string[];
  /** In the run and not in the record. */
  readonly fresh: readonly string[];
}

/**
 * What moved. A ratio has moved when its median changed by more than the noise: half of the record's spread plus half of the
 * run's, and at least `tolerance`, because a machine differs more from day to day than from round to round.
 * @param tolerance relative, such as 0.05
 */
export function compare(record: BenchRecord, now: Ratios, tolerance: number): Comparison {
  const changes: Change[] = [];
  for (const [id, before] of Object.entries(record.ratios)) {
    const spread = now[id];
    if (spread === undefined) continue;
    const change = spread.median / before.median - 1;
    const noise = Math.max(tolerance, halfSpread(before) + halfSpread(spread));
    // A hair over the bound that arithmetic alone has made is not a change.
    const beyond = Math.abs(change) > noise + 1e-9;
    changes.push({ id, before, now: spread, change, noise, verdict: beyond ? (change < 0 ? 'fell' : 'rose') : 'same' });
  }
  return {
    changes,
    missing: Object.keys(record.ratios).filter((id) => now[id] === undefined),
    fresh: Object.keys(now).filter((id) => record.ratios[id] === undefined),
  };
}
