import { describe, expect, it } from 'vitest';
import { renderComparison } from '../../bench/results/comparison-text.js';
import { ratioId, ratiosOf } from '../../bench/results/ratios.js';
import { compare, EMPTY_RECORD, recordSchema, withRun } from '../../bench/results/record.js';
import { resultsSchema } from '../../bench/results/results.js';
import { cell, results, sample } from './support.js';

const ID = ratioId('select/1/simple/16', 'foreshard', 'direct');

/** Foreshard at these ratios to the server, round by round, on a machine of this speed. */
function run(ratios: readonly number[], speed = 1000, clients = 16) {
  const cells = [cell(clients, { direct: ratios.map(() => speed), foreshard: ratios.map((ratio) => ratio * speed) })];
  return results(cells);
}

describe('ratiosOf', () => {
  it('divides round by round, Foreshard by the others and the sharded one by the one that is not', () => {
    const { cells } = results([
      cell(4, {
        direct: [100, 200, 50],
        pgbouncer: [80, 160, 40],
        foreshard: [90, 160, 45],
        'foreshard-routed': [81, 144, 45],
      }),
    ]);
    const ratios = ratiosOf({ cells, memory: [], micro: [] });
    expect(Object.keys(ratios).sort()).toEqual([
      'select/1/simple/4 foreshard-routed/foreshard',
      'select/1/simple/4 foreshard/direct',
      'select/1/simple/4 foreshard/pgbouncer',
    ]);
    expect(ratios['select/1/simple/4 foreshard/direct']).toEqual({ median: 0.9, low: 0.8, high: 0.9, count: 3 });
    expect(ratios['select/1/simple/4 foreshard-routed/foreshard']).toMatchObject({ median: 0.9, high: 1 });
  });

  it('makes all of them so that more is better for Foreshard', () => {
    const samples = [
      sample('pgbouncer', 0, 100, { cpuUsPerTransaction: 20 }),
      sample('foreshard', 0, 100, { cpuUsPerTransaction: 40 }),
    ];
    const us = (median: number) => ({ median, low: median, high: median, count: 9 });
    const ratios = ratiosOf({
      cells: [cell(4, {}, { samples })],
      memory: [
        { peer: 'pgbouncer', idleClients: 1000, bytesBefore: 1, bytesWithHalf: 5, bytesWith: 10 },
        { peer: 'foreshard', idleClients: 1000, bytesBefore: 1, bytesWithHalf: 5, bytesWith: 40 },
      ],
      micro: [
        { task: 'hash', contender: 'MD5', role: 'reference', us: us(1) },
        { task: 'hash', contender: 'ours', role: 'ours', us: us(4) },
        { task: 'hash', contender: 'third', role: 'other', us: us(2) },
        { task: 'frames', contender: 'copy', role: 'reference', us: us(2) },
      ],
    });
    expect(Object.fromEntries(Object.entries(ratios).map(([id, { median }]) => [id, median]))).toEqual({
      'select/1/simple/4 foreshard/pgbouncer': 1,
      'select/1/simple/4 cpu pgbouncer/foreshard': 0.5,
      'memory/1000 pgbouncer/foreshard': 0.25,
      'micro hash: MD5/ours': 0.25,
    });
  });
});

describe('compare', () => {
  const record = withRun(EMPTY_RECORD, run([0.98, 1.0, 1.02]));
  const verdictOf = (ratios: readonly number[], tolerance = 0.05, speed = 1000) =>
    compare(record, ratiosOf(run(ratios, speed)), tolerance).changes.map(({ verdict }) => verdict);

  it('sees a ratio that fell or rose by more than the noise', () => {
    expect(verdictOf([0.88, 0.9, 0.92])).toEqual(['fell']);
    expect(verdictOf([1.08, 1.1, 1.12])).toEqual(['rose']);
  });

  it('takes for noise what the spreads of both runs explain', () => {
    // Half of 4 % and half of 22 % are 13 %.
    expect(verdictOf([0.8, 0.9, 1.0])).toEqual(['same']);
    expect(verdictOf([0.89, 0.9, 0.91])).toEqual(['fell']);
  });

  it('takes for noise what is below the tolerance, however little the rounds differ', () => {
    expect(verdictOf([0.96, 0.96, 0.96])).toEqual(['same']);
    expect(verdictOf([0.96, 0.96, 0.96], 0.01)).toEqual(['fell']);
  });

  it('does not care how fast the machine is', () => {
    expect(verdictOf([0.98, 1.0, 1.02], 0.05, 20)).toEqual(['same']);
  });

  it('tells of ratios that only one of them has', () => {
    const { changes, missing, fresh } = compare(record, ratiosOf(run([1], 1000, 64)), 0.05);
    expect(changes).toEqual([]);
    expect(missing).toEqual([ID]);
    expect(fresh).toEqual([ratioId('select/1/simple/64', 'foreshard', 'direct')]);
  });

  it('is told in words, what fell first', () => {
    const text = renderComparison(compare(record, ratiosOf(run([0.88, 0.9, 0.92])), 0.05));
    expect(text).toMatch(/^Fell by more than the noise\n/);
    expect(text).toContain(`${ID}   1.000  0.900  -10.0 %`);
    expect(text).toContain('1 ratios compared: 1 fell, 0 rose, 0 within the noise');
  });
});

describe('withRun', () => {
  it('replaces what the run has measured again, and keeps the rest with the run that it came from', () => {
    const first = withRun(EMPTY_RECORD, results([...run([1]).cells, ...run([2], 1000, 64).cells]));
    const second = withRun(first, { ...run([1.5]), startedAt: '2026-02-03T00:00:00.000Z' });
    expect(second.runs.map(({ startedAt }) => startedAt)).toEqual([
      '2026-01-02T03:04:05.678Z',
      '2026-02-03T00:00:00.000Z',
    ]);
    expect(second.ratios).toEqual({
      [ID]: { median: 1.5, low: 1.5, high: 1.5, count: 1, run: 1 },
      [ratioId('select/1/simple/64', 'foreshard', 'direct')]: { median: 2, low: 2, high: 2, count: 1, run: 0 },
    });
    expect(recordSchema.parse(JSON.parse(JSON.stringify(second)))).toEqual(second);
  });

  it('forgets a run of which nothing is left', () => {
    const again = withRun(withRun(EMPTY_RECORD, run([1])), { ...run([2]), startedAt: '2026-02-03T00:00:00.000Z' });
    expect(again.runs.map(({ startedAt }) => startedAt)).toEqual(['2026-02-03T00:00:00.000Z']);
    expect(again.ratios[ID]?.run).toBe(0);
  });

  it('holds no absolute figure', () => {
    expect(withRun(EMPTY_RECORD, run([0.9, 1, 1.1], 1000))).toEqual({
      ...withRun(EMPTY_RECORD, run([0.9, 1, 1.1], 77)),
    });
  });
});

it('the JSON of a run is read back as it was written', () => {
  const written = run([1, 2]);
  expect(resultsSchema.parse(JSON.parse(JSON.stringify(written)))).toEqual(written);
});
