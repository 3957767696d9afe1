import { describe, expect, it } from 'vitest';
import type { LoadRecord } from '../../../proxy/telemetry/load-counter.js';
import { TemplateStats } from '../../../proxy/telemetry/template-stats.js';
import type { ShardName } from '../../../topology/topology.js';

const record = (template: string, over: Partial<LoadRecord> = {}): LoadRecord => ({
  template,
  shard: 's1' as ShardName,
  touches: [],
  write: false,
  rows: 2,
  bytes: 10,
  ms: 1,
  ...over,
});

describe('template statistics', () => {
  it('adds up calls, rows, bytes and time of a template', () => {
    const stats = new TemplateStats();
    stats.record(record('select :int'));
    stats.record(record('select :int', { write: true, ms: 3, shard: null }));
    expect([...stats]).toMatchObject([
      { template: 'select :int', calls: 2, writes: 1, rows: 4, bytes: 20, ms: 4, spread: 1, route: null },
    ]);
  });

  it('keeps what is called often apart when there are more templates than it has room for, and loses no call', () => {
    const stats = new TemplateStats();
    for (let i = 0; i < 3; i++) stats.record(record('often'));
    for (let i = 0; i < 5000; i++) stats.record(record(`once ${i}`));
    const all = [...stats];
    expect(all.length).toBeLessThanOrEqual(1001);
    expect(all.find((t) => t.template === 'often')?.calls).toBe(3);
    expect(all.reduce((sum, t) => sum + t.calls, 0)).toBe(5003);
    expect(all.reduce((sum, t) => sum + t.latency.count, 0)).toBe(5003);
  });
});
