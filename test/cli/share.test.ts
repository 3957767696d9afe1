import { expect, it } from 'vitest';
import type { Config } from '../../cli/config.js';
import { shareOf } from '../../cli/processes/share.js';

it('divides what is limited for the port among its processes, and what is not stays so', () => {
  const whole = {
    proxy: {
      name: 'p',
      pool: { size: 10, maxPerShard: 0 },
      limits: { maxClients: 101, maxStartups: 500, startupsPerSecond: 5, startupQueueMs: 10_000 },
    },
  } as unknown as Config;
  const parts = [0, 1, 2].map((index) => shareOf(whole, index, 3).proxy);
  const sum = (of: (proxy: Config['proxy']) => number) => parts.reduce((total, proxy) => total + of(proxy), 0);
  expect(sum(({ pool }) => pool.size)).toBe(10);
  expect(sum(({ pool }) => pool.maxPerShard)).toBe(0);
  expect(sum(({ limits }) => limits.maxClients)).toBe(101);
  expect(sum(({ limits }) => limits.maxStartups)).toBe(500);
  expect(sum(({ limits }) => limits.startupsPerSecond)).toBeCloseTo(5);
  expect(parts.map(({ limits }) => limits.startupQueueMs)).toEqual([10_000, 10_000, 10_000]);
});
