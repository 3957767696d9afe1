import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Histogram } from '../../bench/load/histogram.js';
import { halfSpread, percentile, ratioSpread, spreadOf } from '../../bench/results/statistics.js';

describe('spreadOf', () => {
  it('gives the middle one, or the mean of the two in the middle, and the extremes', () => {
    expect(spreadOf([3, 1, 2])).toEqual({ median: 2, low: 1, high: 3, count: 3 });
    expect(spreadOf([10, 1, 3, 2])).toEqual({ median: 2.5, low: 1, high: 10, count: 4 });
    expect(spreadOf([7])).toEqual({ median: 7, low: 7, high: 7, count: 1 });
    expect(spreadOf([])).toBeNull();
  });

  it('leaves the order of what it is given alone', () => {
    const values = [3, 1, 2];
    spreadOf(values);
    expect(values).toEqual([3, 1, 2]);
  });
});

describe('ratioSpread', () => {
  it('is not touched by what slows a whole round', () => {
    const ours = new Map([
      [0, 100],
      [1, 10],
      [2, 1000],
    ]);
    const theirs = new Map([
      [0, 50],
      [1, 5],
      [2, 500],
    ]);
    expect(ratioSpread(ours, theirs)).toEqual({ median: 2, low: 2, high: 2, count: 3 });
  });

  it('takes only rounds that both have', () => {
    const ours = new Map([
      [0, 100],
      [1, 100],
    ]);
    expect(ratioSpread(ours, new Map([[1, 50]]))).toEqual({ median: 2, low: 2, high: 2, count: 1 });
    expect(ratioSpread(ours, new Map([[2, 50]]))).toBeNull();
  });
});

describe('halfSpread', () => {
  it('is relative to the median', () => {
    expect(halfSpread({ median: 2, low: 1.8, high: 2.2 })).toBeCloseTo(0.1);
  });
});

describe('percentile', () => {
  it('is the least value that so many do not exceed', () => {
    const values = Array.from({ length: 1000 }, (_, i) => i + 1);
    expect([0.5, 0.99, 0.999, 1].map((q) => percentile(values, q))).toEqual([500, 990, 999, 1000]);
    expect(percentile([5], 0.999)).toBe(5);
    expect(percentile([], 0.5)).toBeNaN();
  });
});

describe('Histogram', () => {
  const latencies = fc.array(fc.double({ min: 1, max: 1e8, noNaN: true }), { minLength: 1, maxLength: 300 });

  it('gives percentiles that are off by one per cent at most', () => {
    fc.assert(
      fc.property(latencies, fc.constantFrom(0.5, 0.9, 0.99, 0.999), (values, q) => {
        const histogram = new Histogram();
        for (const value of values) histogram.add(value);
        const exact = percentile(
          [...values].sort((a, b) => a - b),
          q,
        );
        expect(Math.abs(histogram.percentile(q) / exact - 1)).toBeLessThan(0.01);
      }),
    );
  });

  it('is the same whether counted in one process or merged from several', () => {
    fc.assert(
      fc.property(latencies, latencies, (left, right) => {
        const [a, b, all] = [new Histogram(), new Histogram(), new Histogram()];
        for (const value of left) a.add(value);
        for (const value of right) b.add(value);
        for (const value of [...left, ...right]) all.add(value);
        // As it comes from another process.
        a.merge(new Histogram(JSON.parse(JSON.stringify(b.counts))));
        expect(a).toEqual(all);
      }),
    );
  });

  it('has no percentile of nothing', () => {
    expect(new Histogram().percentile(0.5)).toBeNaN();
  });
});
