import { describe, expect, it } from 'vitest';
import { LoadCounter, type LoadRecord, STEP_MS } from '../../../proxy/telemetry/load-counter.js';
import type { KeyspaceName, ShardName } from '../../../topology/topology.js';

const keyspace = 'main' as KeyspaceName;
const record = (key: bigint | null, more: Partial<LoadRecord> = {}): LoadRecord => ({
  template: 'SELECT ?',
  shard: 's1' as ShardName,
  touches: [key === null ? { keyspace, position: null } : { keyspace, position: [key], key: [key] }],
  write: false,
  rows: 1,
  bytes: 100,
  ms: 2,
  ...more,
});

function counter(now: () => number): LoadCounter {
  const c = new LoadCounter(now);
  c.setSegments(keyspace, [
    { id: 1n, lo: null },
    { id: 2n, lo: [100n] },
    { id: 3n, lo: [200n] },
  ]);
  return c;
}

describe('LoadCounter', () => {
  it('counts an execution in the segment of its key', () => {
    const c = counter(() => 0);
    c.record(record(99n));
    c.record(record(100n, { write: true, ms: 5 }));
    c.record(record(5000n));
    const [step] = c.drain();
    expect(step?.segments.get(1n)).toEqual({ reads: 1, writes: 0, rows: 1, bytes: 100, serverMs: 2 });
    expect(step?.segments.get(2n)).toEqual({ reads: 0, writes: 1, rows: 1, bytes: 100, serverMs: 5 });
    expect(step?.segments.get(3n)?.reads).toBe(1);
    // Nothing more, and that is known: zeros, not absence.
    expect([...(c.drain()[0]?.segments.values() ?? [])]).toEqual([
      { reads: 0, writes: 0, rows: 0, bytes: 0, serverMs: 0 },
    ]);
  });

  it('shares out what has several keys or none, so that the sums stay what they were', () => {
    const c = counter(() => 0);
    c.record(record(null, { ms: 9 }));
    c.record({
      ...record(1n, { ms: 4 }),
      touches: [
        { keyspace, position: [1n] },
        { keyspace, position: [300n] },
      ],
    });
    const segments = [...(c.drain()[0]?.segments.values() ?? [])];
    expect(segments.reduce((sum, s) => sum + s.serverMs, 0)).toBeCloseTo(13);
    expect(segments.map((s) => s.serverMs)).toEqual([5, 3, 5]);
  });

  it('keeps the steps of ten seconds apart', () => {
    let now = 0;
    const c = counter(() => now);
    c.record(record(1n));
    now = STEP_MS + 1;
    c.record(record(1n));
    c.record(record(1n));
    expect(c.drain().map((s) => [s.at, s.segments.get(1n)?.reads])).toEqual([
      [0, 1],
      [STEP_MS, 2],
    ]);
  });

  it('counts again what was put back, the newest if there is too much', () => {
    let now = 0;
    const c = counter(() => now);
    for (let i = 0; i < 5; i++) {
      now = i * STEP_MS;
      c.record(record(1n));
    }
    c.putBack(c.drain(), 3);
    expect([...new Set(c.drain().map((s) => s.at))]).toEqual([2, 3, 4].map((i) => i * STEP_MS));
  });

  it('samples keys so that their weights add up to the load, heavy ones heavier', () => {
    const c = counter(() => 0);
    for (let i = 0; i < 8000; i++)
      c.record(record(i % 5 === 0 ? 150n : 110n + BigInt(i % 7), { ms: i % 5 === 0 ? 10 : 1 }));
    const keys = [...(c.drain()[0]?.keys.values() ?? [])];
    expect(keys.every((k) => k.segment === 2n)).toBe(true);
    const total = keys.reduce((sum, k) => sum + k.weight, 0);
    expect(total).toBeGreaterThan(0.8 * (1600 * 10 + 6400));
    expect(total).toBeLessThan(1.2 * (1600 * 10 + 6400));
    const heaviest = keys.sort((a, b) => b.weight - a.weight)[0];
    expect(heaviest?.key).toEqual([150n]);
  });

  it('counts templates, and what is too many together', () => {
    const c = counter(() => 0);
    for (let i = 0; i < 700; i++) c.record(record(1n, { template: `t${i}` }));
    const templates = [...(c.drain()[0]?.templates.values() ?? [])];
    expect(templates.length).toBe(501);
    expect(templates.reduce((sum, t) => sum + t.calls, 0)).toBe(700);
  });
});
