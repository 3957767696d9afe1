import { describe, expect, it } from 'vitest';
import type { Row } from '../../../proxy/admin/view.js';
import { viewOf } from '../../../proxy/admin/views.js';
import { LatencySketch } from '../../../proxy/telemetry/latency-sketch.js';

/** What several processes' rows become. */
const finish = (view: string, rows: readonly Row[]): readonly Row[] => viewOf(view).finish?.(rows) ?? rows;

describe('rows of several processes', () => {
  it('add up in POOLS, with the longest wait of all', () => {
    const row = (user: string, active: number, maxWaitMs: number): Row => [
      ...['shop', user],
      ...[active, 1, 0, 0, active, 0, 0, 2, 0, 0, 0, maxWaitMs],
    ];
    expect(finish('pools', [row('a', 3, 0), row('b', 1, 0), row('a', 4, 2500.25)])).toEqual([
      ['shop', 'a', 7, 2, 0, 0, 7, 0, 0, 4, 0, 0, 0, 2, 500_250, 'transaction', null],
      ['shop', 'b', 1, 1, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 'transaction', null],
    ]);
  });

  it('add up in STATS; averages of times are weighted by what they are averages of', () => {
    // assignments, xacts, queries, received, sent, xact time, query time, wait time, parses, server parses, binds
    const totals = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const process = (queries: number, queryTime: number): Row => [
      'shop',
      ...totals,
      0,
      0,
      queries,
      0,
      0,
      0,
      queryTime,
      0,
      0,
      0,
      0,
    ];
    const [row] = finish('stats', [process(30, 100), process(10, 500)]) as [Row];
    expect(row.slice(1, 12)).toEqual(totals.map((n) => 2 * n));
    expect([row[14], row[18]]).toEqual([40, 200]);
    expect(finish('stats_totals', [process(1, 1), process(1, 1)])).toEqual([['shop', ...totals.map((n) => 2 * n)]]);
    const names = viewOf('stats').columns.map((c) => c.name);
    expect([names[14], names[18], names[12]]).toEqual([
      'avg_query_count',
      'avg_query_time',
      'avg_server_assignment_count',
    ]);
  });

  it('count users once in LISTS, and clients of all', () => {
    const process = (users: string[], clients: number): Row[] => [
      ['databases', 1],
      ['users', JSON.stringify(users)],
      ['used_clients', clients],
    ];
    expect(finish('lists', [...process(['a', 'b'], 3), ...process(['b', 'c'], 4)])).toEqual([
      ['databases', 1],
      ['users', 3],
      ['used_clients', 7],
    ]);
  });

  it('put latencies together in TEMPLATES as if one process had seen them all', () => {
    const sketch = (ms: number, times: number) => {
      const made = new LatencySketch();
      for (let i = 0; i < times; i++) made.add(ms);
      return made.encode();
    };
    const rows = finish('templates', [
      ['select 1', 's1', 90, 0, 90, 900, 90, 0, 90, sketch(1, 90)],
      ['select 1', 's2', 10, 0, 10, 100, 1000, 0, 0, sketch(100, 10)],
    ]);
    expect(rows).toHaveLength(1);
    const named = Object.fromEntries(viewOf('templates').columns.map((c, i) => [c.name, rows[0]?.[i]]));
    expect(named).toMatchObject({
      calls: 100,
      rows: 100,
      total_time: 1_090_000,
      avg_time: 10_900,
      route: '(several)',
      way: 'lane',
    });
    expect(Number(named.p50_time)).toBeCloseTo(1000, -2);
    expect(Number(named.p95_time)).toBeGreaterThan(97_000);
  });

  it('are paused as soon as one process is, and sum up what it allows', () => {
    const process = (paused: number): Row => [
      'shop',
      'h',
      5432,
      'db',
      null,
      20,
      0,
      0,
      3600,
      null,
      null,
      0,
      2,
      100,
      7,
      paused,
      0,
      's1',
    ];
    const [row] = finish('databases', [process(0), process(1)]) as [Row];
    expect([row[5], row[12], row[13], row[14], row[15], row[16], row[17]]).toEqual([40, 4, 200, 14, 1, 0, 's1']);
    expect(row).toHaveLength(18);
  });

  it('say once what all say', () => {
    expect(finish('version', [['Foreshard 1'], ['Foreshard 1']])).toEqual([['Foreshard 1']]);
    expect(
      finish('state', [
        ['active', 'yes'],
        ['paused', 'no'],
        ['active', 'yes'],
        ['paused', 'no'],
      ]),
    ).toHaveLength(2);
  });
});
