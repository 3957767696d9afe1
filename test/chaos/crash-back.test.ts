import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import type { CrashPoint } from '../../migrator/crash-points.js';
import { dealt, POINTS, someOf, startCrashes } from './crashes.js';

describe('a migrator killed at', () => {
  const crashes = startCrashes();

  test.each(someOf(dealt(POINTS.onTheWayBack, 6), 2))('%s and further on, again and again', async (_first, points) => {
    expect(await crashes.resume(points)).toBe('rolled_back');
  });

  // What is quieted for the way back is so before that is made, and has its mode back before the last tables go.
  const beforeAndBehind = [
    ['recorded:quiet-triggers-source', 'recorded:restore-triggers-source', 'recorded:undo-guards'],
    ['after:quiet-triggers-source', 'after:restore-triggers-source', 'within:undo-guards'],
  ] as const;
  test.each(someOf([0, 1], 2))(
    'places on the way back at which it settles triggers, and takes tables back (%i)',
    async (n) => {
      await crashes.reset();
      const tables = POINTS.undoingTables.filter((_point, i) => i % 2 === n);
      expect(await crashes.resume([...(beforeAndBehind[n] ?? []), ...tables], { back: true })).toBe('rolled_back');
    },
  );

  const oneByOne = [
    ['after:undo', 'aborted'],
    ['back-after:undo', 'rolled_back'],
  ] as const;
  test.each(someOf(oneByOne, 2))(
    '%s, again and again, each time with one thing less to take back',
    async (point, end) => {
      await crashes.reset();
      expect(await crashes.resume([point], { often: true })).toBe(end);
    },
  );

  test.each(POINTS.aborting)('%s', async (point) => {
    expect(await crashes.resume([point])).toBe('aborted');
  });
});

const BIN = '/usr/lib/postgresql/15/bin';

describe.skipIf(!existsSync(`${BIN}/initdb`))('a migrator of servers of PostgreSQL 15 killed at', () => {
  const crashes = startCrashes({ binDir: BIN });

  test('%s, where the way back begins at a place of the log', async () => {
    const points: readonly CrashPoint[] = [...POINTS.of15, 'after:flip', 'recorded:back-create-subscription'];
    expect(await crashes.resume(points)).toBe('rolled_back');
  });
});
