import { expect, it } from 'vitest';
import { joined } from '../../bench/results/joined.js';
import { cell, results } from './support.js';

it('puts together what the pieces of a run have measured', () => {
  const micro = (median: number) => ({
    task: 'hash: a key',
    contender: 'ours',
    role: 'ours' as const,
    us: { median, low: 1, high: 3, count: 9 },
  });
  const whole = joined([
    results([cell(1, { direct: [1] }), cell(16, { direct: [2] })], { micro: [micro(1)] }),
    results([cell(16, { direct: [3] })], { versions: { foreshard: '0.1.0', pgbench: '15' }, micro: [micro(2)] }),
  ]);
  expect(whole.seconds).toBe(120);
  expect(whole.versions).toEqual({ foreshard: '0.1.0', postgresql: '18.4', pgbench: '15' });
  // What was measured again counts as it was found last.
  expect(whole.cells.map(({ clients, samples }) => [clients, samples[0]?.tps])).toEqual([
    [1, 1],
    [16, 3],
  ]);
  expect(whole.micro).toEqual([micro(2)]);
});

it('does not put together what cannot be compared', () => {
  const other = results([], { versions: { foreshard: '0.1.1' } });
  expect(() => joined([results([]), other])).toThrow('runs of foreshard 0.1.0 and 0.1.1 cannot be joined');
  const machine = { ...results([]).machine, cores: 64 };
  expect(() => joined([results([]), results([], { machine })])).toThrow('different machines');
});
