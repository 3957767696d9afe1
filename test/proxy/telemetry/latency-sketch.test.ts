import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LATENCY_ACCURACY, LatencySketch } from '../../../proxy/telemetry/latency-sketch.js';

const times = fc.array(fc.double({ min: 0.002, max: 900_000, noNaN: true }), { minLength: 1, maxLength: 300 });

function sketchOf(ms: readonly number[]): LatencySketch {
  const sketch = new LatencySketch();
  for (const t of ms) sketch.add(t);
  return sketch;
}

describe('latency sketch', () => {
  it('gives every quantile within its accuracy', () => {
    fc.assert(
      fc.property(times, fc.constantFrom(0, 0.5, 0.95, 0.99, 1), (ms, q) => {
        const sorted = [...ms].sort((a, b) => a - b);
        const exact = (sorted[Math.floor(q * (ms.length - 1))] as number) * 1000;
        const got = sketchOf(ms).quantileUs(q);
        expect(Math.abs(got - exact)).toBeLessThanOrEqual(exact * LATENCY_ACCURACY * 1.0001);
      }),
    );
  });

  it('says the same of two halves put together, also by way of text, as of the whole', () => {
    fc.assert(
      fc.property(times, times, (a, b) => {
        const merged = LatencySketch.decode(sketchOf(a).encode());
        merged.merge(LatencySketch.decode(sketchOf(b).encode()));
        const whole = sketchOf([...a, ...b]);
        expect(merged.encode()).toBe(whole.encode());
        expect(merged.count).toBe(a.length + b.length);
        expect(merged.quantileUs(0.95)).toBe(whole.quantileUs(0.95));
      }),
    );
  });

  it('is 0 while nothing was counted, and takes what is too short or too long', () => {
    expect(new LatencySketch().quantileUs(0.5)).toBe(0);
    expect(LatencySketch.decode('').count).toBe(0);
    const sketch = sketchOf([0, 1e12]);
    expect(sketch.quantileUs(0)).toBe(1);
    expect(sketch.quantileUs(1)).toBeGreaterThan(9e8);
  });
});
