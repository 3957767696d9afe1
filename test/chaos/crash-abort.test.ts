import { describe, expect, test } from 'vitest';
import { CRASH_POINTS, type CrashPoint } from '../../migrator/crash-points.js';
import { POINTS, someOf, startCrashes } from './crashes.js';

// The one who goes on where another has died finds that all is to be taken back.

const crashes = startCrashes();

const around = (...names: readonly string[]): CrashPoint[] =>
  CRASH_POINTS.filter((point) => names.some((name) => point === `recorded:${name}` || point === `after:${name}`));

describe('an abort of what a migrator has left that died at', () => {
  test.each(someOf(POINTS.fresh, 3))('%s, the destination being empty', async (point) => {
    await crashes.haveNoTables();
    expect(await crashes.abort(point, false)).toBe('aborted');
  });

  const onBoth = [
    ...around('pace-source', 'guard-table-source', 'quiet-triggers-destination'),
    ...around('pace-destination', 'guard-table-destination', 'pace-table', 'set-pace'),
    ...around('quiet-triggers-source', 'back-guard-arrival'),
    ...(['recorded:hold', 'after:fence', 'recorded:wait-at-gate', 'before:flip'] as const),
  ];
  test.each(someOf(onBoth, 3))('%s, where the tables are on both shards', async (point) => {
    await crashes.haveTables();
    expect(await crashes.abort(point, true)).toBe('aborted');
  });
});
