import { describe, expect, test } from 'vitest';
import { askOnChange, entering } from '../migrator/setting.js';
import { dealt, PASSED_BY_ALL, POINTS, someOf, startCrashes } from './crashes.js';

const crashes = startCrashes();
const { s } = crashes.moves;

describe('a migrator killed at', () => {
  test.each(someOf(dealt(POINTS.fresh, 4), 2))(
    '%s and further on, the destination being empty',
    async (_first, points) => {
      await crashes.reset();
      expect(await crashes.resume(points)).toBe('done');
    },
  );

  test.each(someOf(dealt(PASSED_BY_ALL, 6), 2))('%s and further on, again and again', async (_first, points) => {
    await crashes.haveTables();
    expect(await crashes.resume(points)).toBe('done');
  });

  test('within:remove-rows, behind each part of the rows that are removed', async () => {
    await crashes.reset();
    const parts = ([2, 3, 4, 5, 6, 7] as const).map((part) => `within:remove-rows#${part}` as const);
    expect(await crashes.resume(parts)).toBe('done');
  });

  test('after:reopen-gate and after:drop-hold, which another has left that died behind its fence', async () => {
    expect(await crashes.resume(POINTS.reopening.flatMap((point) => ['after:fence', point] as const))).toBe('done');
  });

  test('recorded:empty-tables and further on, as a copy that has begun begins again', async () => {
    await crashes.reset();
    const set = `facts := NEW.facts || '{"forgetCopy": true}'; NEW.state := 'preparing'`;
    await askOnChange(s, 'lose_copy', set, `${entering('copying')} AND NOT NEW.facts ? 'forgetCopy'`);
    expect(await crashes.resume(POINTS.ofLostCopies)).toBe('done');
    await askOnChange(s, 'lose_copy', set, null);
  });

  test.each([
    [POINTS.ofReplicas.slice(0, 2), 'done'],
    [POINTS.ofReplicas.slice(2), 'aborted'],
  ] as const)('%j of a replica', async (points, end) => {
    expect(await crashes.resume(points)).toBe(end);
    expect((await s.catalog.loadTopology()).replicas).toEqual([]);
  });
});
