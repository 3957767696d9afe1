import { describe, expect, it } from 'vitest';
import { Pace } from '../../../proxy/router/pace.js';

const LATE = 5;

/** So many runs on leases. */
function run(pace: Pace, times: number, { ms = 0.1, bytes = 100, busy = 1 } = {}): void {
  for (let i = 0; i < times; i++) pace.ran(ms, bytes, busy, LATE);
}

/** How many good runs it takes from here to be fit. */
function runsUntilFit(pace: Pace): number {
  let runs = 0;
  for (; !pace.isFit; runs++) run(pace, 1);
  return runs;
}

describe('the pace of a template', () => {
  it('earns its place by three fast and small runs', () => {
    const pace = new Pace();
    expect(pace.isFit).toBe(false);
    expect(runsUntilFit(pace)).toBe(3);
    expect(pace.expectedMs).toBeCloseTo(0.1);
  });

  it('begins anew after a slow or a large run, and goes back by one after one that may have been delayed', () => {
    const pace = new Pace();
    run(pace, 2);
    run(pace, 1, { ms: 4 * LATE });
    run(pace, 2);
    run(pace, 1, { bytes: 16 * 1024 + 1 });
    run(pace, 2);
    run(pace, 1, { ms: LATE });
    expect(pace.isFit).toBe(false);
    expect(runsUntilFit(pace)).toBe(2);
  });

  it('does not take for slow what only shares the server with many others', () => {
    const pace = new Pace();
    run(pace, 3, { ms: 12, busy: 20 });
    expect(pace.isFit).toBe(true);
    expect(pace.expectedMs).toBeCloseTo(12 / 5);
  });

  it('needs four times as many good runs after each disgrace', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    pace.late(4 * LATE, 1, LATE);
    expect(runsUntilFit(pace)).toBe(12);
    pace.served(0.1, 16 * 1024 + 1, LATE);
    expect(runsUntilFit(pace)).toBe(48);
    // Lost its place already: that is not counted twice.
    pace.disgrace();
    pace.disgrace();
    expect(runsUntilFit(pace)).toBe(192);
  });

  it('keeps its place when it is late as so many others are at work', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    expect(pace.late(5 * 4 * LATE - 1, 20, LATE)).toBe(false);
    expect(pace.isFit).toBe(true);
    expect(pace.late(5 * 4 * LATE, 20, LATE)).toBe(true);
    expect(pace.isFit).toBe(false);
  });

  it('keeps its place when it is late by a little', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    pace.late(4 * LATE - 1, 1, LATE);
    expect(pace.isFit).toBe(true);
  });

  it('is forgiven by good runs in lanes', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    pace.disgrace();
    runsUntilFit(pace);
    for (let i = 0; i < 500; i++) pace.served(0.1, 100, LATE);
    pace.disgrace();
    // 12, halved, times four.
    expect(runsUntilFit(pace)).toBe(24);
  });

  it('keeps its place when it is late once in two thousand runs', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    for (let i = 0; i < 2000; i++) pace.served(0.1, 100, LATE);
    pace.late(100 * LATE, 1, LATE);
    expect(pace.isFit).toBe(true);
    for (let i = 0; i < 1999; i++) pace.served(0.1, 100, LATE);
    pace.late(100 * LATE, 1, LATE);
    expect(pace.isFit).toBe(false);
  });

  it('gives its place up when it becomes slow by and by, whatever single runs took', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    pace.served(1000, 100, LATE);
    expect(pace.isFit).toBe(true);
    for (let i = 0; i < 40; i++) pace.served(LATE, 100, LATE);
    expect(pace.isFit).toBe(false);
  });

  it('is said in one with others while it is fast and small, and not for a while after it has failed', () => {
    const pace = new Pace();
    runsUntilFit(pace);
    expect(pace.joins).toBe(true);
    for (let i = 0; i < 100; i++) pace.served(0.1, 2000, LATE);
    expect([pace.isFit, pace.joins]).toEqual([true, false]);
    for (let i = 0; i < 100; i++) pace.served(0.1, 100, LATE);
    expect(pace.joins).toBe(true);
    for (let i = 0; i < 100; i++) pace.served(1.5, 100, LATE);
    expect([pace.isFit, pace.joins]).toEqual([true, false]);
    for (let i = 0; i < 100; i++) pace.served(0.1, 100, LATE);
    pace.broke();
    for (let i = 0; i < 999; i++) pace.served(0.1, 100, LATE);
    expect(pace.joins).toBe(false);
    pace.served(0.1, 100, LATE);
    expect(pace.joins).toBe(true);
  });
});
