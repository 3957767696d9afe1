import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LoadSample } from '../../planner/history-store.js';
import { ratesAt, readTrace, traceSamples } from '../../planner/trace.js';
import { TRACE } from './support.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'foreshard-trace-'));
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

function file(text: string): string {
  const path = join(folder, `${text.length}.csv`);
  writeFileSync(path, text);
  return path;
}

const NOW = Date.UTC(2026, 4, 15, 9, 22);

function events(samples: Iterable<LoadSample>): number {
  let sum = 0;
  for (const s of samples) sum += s.rows;
  return sum;
}

describe('readTrace', () => {
  it('reads the ten keys, of which one has 42 % of the load', () => {
    const trace = readTrace(TRACE);
    expect(trace.keys).toHaveLength(10);
    expect(trace.stepSeconds).toBe(300);
    const totals = trace.events.map((series) => series.reduce((a, b) => a + b, 0));
    expect(totals.every((t) => t > 0)).toBe(true);
    expect((totals[0] as number) / totals.reduce((a, b) => a + b, 0)).toBeCloseTo(0.42, 1);
  });

  it('puts rows on the grid, leaves holes unknown, and cuts ends that some key lacks', () => {
    const trace = readTrace(
      file(
        'timestamp,a,b\n2020-01-01T00:00:00,1,\n2020-01-01T00:05:00,2,20\n2020-01-01T00:10:03,3,30\n2020-01-01T00:25:00,5,50\n2020-01-01T00:30:00,6,60\n2020-01-01T00:35:00,7,\n',
      ),
    );
    expect(new Date(trace.start).toISOString()).toBe('2020-01-01T00:05:00.000Z');
    expect(trace.events.map((s) => Array.from(s))).toEqual([
      [2, 3, Number.NaN, Number.NaN, 5, 6],
      [20, 30, Number.NaN, Number.NaN, 50, 60],
    ]);
  });

  it('says what is wrong with a file', () => {
    expect(() => readTrace(file('hello'))).toThrow(/is not a trace/);
    expect(() => readTrace(file('timestamp,a\nyesterday,1\n'))).toThrow(/line 2: "yesterday" is not a timestamp/);
    expect(() => readTrace(file('timestamp,a\n2020-01-01T00:00:00,1\n'))).toThrow(/fewer than two rows/);
  });
});

describe('traceSamples', () => {
  const whole = { now: NOW, placement: () => [{ segmentId: 1n, share: 1 }], serverMsPerEvent: 2 };

  it('ends now, on the step, and keeps every event', () => {
    const trace = readTrace(TRACE);
    const minutes = [...traceSamples(trace, 60, { ...whole, from: NOW - 3 * 3_600_000 })];
    expect(minutes[minutes.length - 1]?.at).toBe(Date.UTC(2026, 4, 15, 9, 19));
    const hours = [...traceSamples(trace, 3600, whole)];
    expect(hours[hours.length - 1]?.at).toBe(Date.UTC(2026, 4, 15, 8));
    const eight = minutes.filter((m) => m.at >= Date.UTC(2026, 4, 15, 8) && m.at < Date.UTC(2026, 4, 15, 9));
    expect(eight).toHaveLength(60);
    expect(events(eight)).toBeCloseTo(hours[hours.length - 1]?.rows as number, 6);
    expect(hours[0]?.serverMs).toBeCloseTo(2 * (hours[0]?.rows as number), 6);
    expect((hours[0]?.reads as number) + (hours[0]?.writes as number)).toBeCloseTo(hours[0]?.rows as number, 6);
  });

  it('adds keys that share a segment, and scales an hour with unknown steps up', () => {
    const rows = Array.from({ length: 24 }, (_, i) =>
      i === 15 ? '' : `2020-01-01T0${Math.floor(i / 12)}:${String((i % 12) * 5).padStart(2, '0')}:00,1,2\n`,
    );
    const trace = readTrace(file(`timestamp,a,b\n${rows.join('')}`));
    const samples = [...traceSamples(trace, 3600, { ...whole, now: Date.UTC(2026, 0, 1, 2) })];
    expect(samples.map((s) => [new Date(s.at).getUTCHours(), s.rows])).toEqual([
      [0, 36],
      [1, 36],
    ]);
  });
});

describe('ratesAt', () => {
  it('goes on as a week before', () => {
    const trace = readTrace(TRACE);
    const week = 7 * 86_400_000;
    const series = trace.events[0] as Float64Array;
    const first = (series[series.length - 2016] as number) / 300;
    expect(ratesAt(trace, NOW, Date.UTC(2026, 4, 15, 9, 20)).get('AAPL')).toBe(first);
    expect(ratesAt(trace, NOW, Date.UTC(2026, 4, 15, 9, 20) + week).get('AAPL')).toBe(first);
  });
});
