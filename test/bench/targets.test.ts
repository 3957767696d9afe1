import { expect, it } from 'vitest';
import { isMet, memoryOutcomes, outcomes } from '../../bench/results/targets.js';
import { cell, results } from './support.js';

it('holds each target beside what was measured, and says why one was not', () => {
  const reason = 'pgbouncer 1.18.0 has no prepared statements in transaction mode';
  const found = outcomes(
    results([
      cell(16, { direct: [100, 100, 100], pgbouncer: [100, 100, 100], foreshard: [99, 100, 130] }),
      cell(16, { direct: [100], foreshard: [100] }, { protocol: 'prepared', absent: [{ peer: 'pgbouncer', reason }] }),
    ]),
  );
  const of = (id: string, against: string) =>
    found.find((outcome) => outcome.cell === id && outcome.against === against);
  const direct = of('select/1/simple/16', 'direct');
  expect(direct).toMatchObject({ least: 1, ratio: { median: 1 } });
  expect(direct && isMet(direct)).toBe(true);
  const pgbouncer = of('select/1/simple/16', 'pgbouncer');
  expect(pgbouncer && isMet(pgbouncer)).toBe(false);
  expect(of('select/1/prepared/16', 'pgbouncer')).toMatchObject({ ratio: null, reason });
  const other = of('tpcb/1/simple/256', 'pgbouncer');
  expect(other).toMatchObject({ ratio: null, reason: 'not in this run' });
  expect(other && isMet(other)).toBe(false);
});

it('holds the memory of 5,000 idle clients beside its targets, and that of fewer beside none', () => {
  const found = (idleClients: number) => [
    { peer: 'pgbouncer', idleClients, bytesBefore: 1, bytesWithHalf: 1, bytesWith: 1 },
    {
      peer: 'foreshard',
      idleClients,
      bytesBefore: 100 * 1024 ** 2,
      bytesWithHalf: 150 * 1024 ** 2,
      bytesWith: 210 * 1024 ** 2,
    },
  ];
  expect(memoryOutcomes(found(1000))).toEqual([]);
  expect(memoryOutcomes(found(5000)).map(({ most, bytes }) => bytes <= most)).toEqual([false, false]);
  expect(memoryOutcomes(found(5500)).map(({ most, bytes }) => bytes <= most)).toEqual([false, true]);
});
