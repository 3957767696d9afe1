import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { UsageError } from '../topology/errors.js';
import type { LoadSample, Segment } from './history-store.js';

/** Events per step of several keys, on an even grid; `NaN` where the file has no value. */
export interface Trace {
  readonly stepSeconds: number;
  readonly keys: readonly string[];
  /** Start of the first step, ms since 1970. */
  readonly start: number;
  /** One series per key. */
  readonly events: readonly Float64Array[];
}

/**
 * Reads a trace: CSV, plain or gzipped, `timestamp,key,key,…`, ISO timestamps in UTC. The step is the commonest distance between
 * rows; rows off the grid belong to the step they fall in, steps without a row and empty cells are unknown. Steps at either end
 * that some key lacks are cut off.
 */
export function readTrace(path: string): Trace {
  const raw = readFileSync(path);
  const text = (raw[0] === 0x1f && raw[1] === 0x8b ? gunzipSync(raw) : raw).toString('utf8');
  const [header, ...lines] = text.split('\n').filter((line) => line.trim() !== '');
  const keys = (header ?? '').trim().split(',').slice(1);
  if (keys.length === 0)
    throw new UsageError(`${path} is not a trace`, 'The first line must be "timestamp,key,key,…", then a row a step.');
  const rows = lines.map((line, i) => {
    const [at, ...cells] = line.trim().split(',');
    const ms = Date.parse(/(Z|[+-]\d\d:?\d\d)$/.test(at ?? '') ? (at as string) : `${at?.replace(' ', 'T')}Z`);
    if (Number.isNaN(ms))
      throw new UsageError(`${path}, line ${i + 2}: "${at}" is not a timestamp`, 'Use ISO 8601 in UTC.');
    const values = keys.map((_, k) => (cells[k] === undefined || cells[k] === '' ? Number.NaN : Number(cells[k])));
    return { ms, values };
  });
  rows.sort((a, b) => a.ms - b.ms);
  const stepMs = commonest(
    rows
      .slice(1)
      .map((r, i) => r.ms - (rows[i] as { ms: number }).ms)
      .filter((d) => d > 0),
  );
  const [first, last] = [rows[0], rows[rows.length - 1]];
  if (stepMs === null || first === undefined || last === undefined)
    throw new UsageError(`${path} has fewer than two rows`, 'A trace needs at least two steps.');
  const start = Math.floor(first.ms / stepMs) * stepMs;
  const steps = Math.floor((last.ms - start) / stepMs) + 1;
  const events = keys.map(() => new Float64Array(steps).fill(Number.NaN));
  for (const { ms, values } of rows) {
    const step = Math.floor((ms - start) / stepMs);
    values.forEach((v, k) => {
      const series = events[k] as Float64Array;
      // Two rows in one step are one step's events.
      if (!Number.isNaN(v)) series[step] = v + (Number.isNaN(series[step]) ? 0 : (series[step] as number));
    });
  }
  // Keys that start late or end early would look idle there: keep what all of them cover.
  const known = (step: number) => events.every((series) => !Number.isNaN(series[step]));
  let [from, to] = [0, steps];
  while (from < to && !known(from)) from++;
  while (to > from && !known(to - 1)) to--;
  return {
    stepSeconds: stepMs / 1000,
    keys,
    start: start + from * stepMs,
    events: events.map((series) => series.slice(from, to)),
  };
}

function commonest(values: readonly number[]): number | null {
  const counts = new Map<number, number>();
  for (const v of values) counts.set(v, (counts.get(v) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? null;
}

/** Where a key's events go. */
export type Placement = readonly { readonly segmentId: bigint; readonly share: number }[];

/** Deals the trace's keys out to runs of neighbouring segments, in order: every segment gets some key's load. */
export function dealToSegments(trace: Trace, segments: readonly Segment[]): (key: string) => Placement {
  const placements = new Map<string, { segmentId: bigint; share: number }[]>();
  const k = trace.keys.length;
  trace.keys.forEach((key, i) => {
    const from = Math.floor((i * segments.length) / k);
    const run = segments.slice(from, Math.max(from + 1, Math.floor(((i + 1) * segments.length) / k)));
    placements.set(
      key,
      run.map((s) => ({ segmentId: s.id, share: 1 / run.length })),
    );
  });
  return (key) => placements.get(key) ?? [];
}

export interface TraceOptions {
  /** The end of the trace's last step becomes this moment, rounded down to the trace's step; ms since 1970. */
  readonly now: number;
  readonly placement: (key: string) => Placement;
  /** Milliseconds of busy backend that one event stands for. */
  readonly serverMsPerEvent: number;
  /** Share of events that write, 0–1. Default 0.2. */
  readonly writeShare?: number;
  /** Bytes sent to clients per event. Default 200. */
  readonly bytesPerEvent?: number;
  /** Only samples that start here or later; ms since 1970. */
  readonly from?: number;
}

/** When the trace's first step begins once its end has been moved to `now`. */
function movedStart(trace: Trace, now: number): number {
  const stepMs = trace.stepSeconds * 1000;
  return Math.floor(now / stepMs) * stepMs - (trace.events[0]?.length ?? 0) * stepMs;
}

/**
 * The trace as load samples ending now, for `HistoryStore.importHistory`. A step longer than a minute is spread evenly over its minutes.
 * An hour with unknown steps is scaled up from the known ones; an hour without any, and the present one, is left out.
 */
export function* traceSamples(trace: Trace, stepSeconds: 60 | 3600, options: TraceOptions): Generator<LoadSample> {
  const ratio = stepSeconds / trace.stepSeconds;
  if (!Number.isInteger(ratio) && !Number.isInteger(1 / ratio))
    throw new UsageError(
      `a trace in steps of ${trace.stepSeconds} s cannot be imported in steps of ${stepSeconds} s`,
      'One step must be a multiple of the other.',
    );
  const { placement, serverMsPerEvent, writeShare = 0.2, bytesPerEvent = 200, from = -Infinity } = options;
  const placements = trace.keys.map(placement);
  const stepMs = trace.stepSeconds * 1000;
  const outMs = stepSeconds * 1000;
  const start = movedStart(trace, options.now);
  const steps = trace.events[0]?.length ?? 0;
  const end = start + steps * stepMs;

  for (let at = Math.ceil(start / outMs) * outMs; at + outMs <= end; at += outMs) {
    if (at < from) continue;
    const first = Math.floor((at - start) / stepMs);
    const last = Math.max(first + 1, Math.floor((at + outMs - start) / stepMs));
    const bySegment = new Map<bigint, number>();
    trace.events.forEach((series, k) => {
      let [sum, known] = [0, 0];
      for (let i = first; i < last; i++) {
        const v = series[i] as number;
        if (Number.isNaN(v)) continue;
        sum += v;
        known += 1;
      }
      if (known === 0) return;
      const events = (sum / known) * ratio;
      for (const { segmentId, share } of placements[k] as Placement)
        bySegment.set(segmentId, (bySegment.get(segmentId) ?? 0) + events * share);
    });
    for (const [segmentId, events] of bySegment)
      yield {
        segmentId,
        at,
        reads: events * (1 - writeShare),
        writes: events * writeShare,
        rows: events,
        bytes: events * bytesPerEvent,
        serverMs: events * serverMsPerEvent,
      };
  }
}

/**
 * How the trace would go on: events per second of every key at a moment after its end, as a week before its end at the same
 * time. For driving live load in the trace's shape.
 * @param now what was given as `TraceOptions.now`
 */
export function ratesAt(trace: Trace, now: number, at: number): Map<string, number> {
  const stepMs = trace.stepSeconds * 1000;
  const steps = trace.events[0]?.length ?? 0;
  const week = Math.min(steps, Math.round((7 * 86_400_000) / stepMs));
  const after = Math.floor((at - movedStart(trace, now)) / stepMs) - steps;
  const index = steps - week + (((after % week) + week) % week);
  return new Map(
    trace.keys.map((key, k) => {
      const v = trace.events[k]?.[index] ?? Number.NaN;
      return [key, Number.isNaN(v) ? 0 : v / trace.stepSeconds];
    }),
  );
}
