import { describe, expect, it } from 'vitest';
import { FailedLogins } from '../../../proxy/auth/failed-logins.js';

const limits = { free: 3, delayMs: 100, maxDelayMs: 1000, forgetMs: 60_000 };

function failing(times: number, address = '10.0.0.1', user = 'ann'): FailedLogins {
  const failures = new FailedLogins(limits);
  for (let i = 0; i < times; i++) failures.failed(address, user, 0);
  return failures;
}

describe('failed logins', () => {
  it('cost nothing at first, then twice as much each time, up to the limit', () => {
    for (const [times, delay] of [
      [0, 0],
      [2, 0],
      [3, 100],
      [4, 200],
      [6, 800],
      [7, 1000],
      [5000, 1000],
    ] as const)
      expect(failing(times).delay('10.0.0.1', 'ann', 0)).toBe(delay);
  });

  it('make the attempts of one address wait for each other, for whatever user', () => {
    const failures = failing(3);
    expect([0, 1, 2].map((i) => failures.delay('10.0.0.1', `user${i}`, 0))).toEqual([100, 200, 300]);
    // Later, the queue has gone.
    expect(failures.delay('10.0.0.1', 'x', 5000)).toBe(100);
  });

  it('make a user slow from other addresses, without a queue', () => {
    const failures = failing(4);
    expect([0, 1, 2].map((i) => failures.delay(`10.0.1.${i}`, 'ann', 0))).toEqual([200, 200, 200]);
    expect(failures.delay('10.0.1.1', 'bob', 0)).toBe(0);
  });

  it('are forgotten', () => {
    const failures = failing(5);
    expect(failures.delay('10.0.0.1', 'ann', 60_001)).toBe(0);
    failures.failed('10.0.0.1', 'ann', 60_001);
    expect(failures.delay('10.0.0.1', 'ann', 60_002)).toBe(0);
  });

  it('are forgiven by a right password', () => {
    const failures = failing(5);
    failures.succeeded('10.0.0.1', 'ann');
    expect(failures.delay('10.0.0.1', 'ann', 0)).toBe(0);
    expect(failures.delay('10.0.0.1', 'bob', 0)).toBe(0);
  });

  it('of others hold nobody up who has logged in from there before', () => {
    const failures = new FailedLogins(limits);
    failures.succeeded('10.0.0.1', 'app');
    for (let i = 0; i < 9; i++) failures.failed('10.0.0.1', 'cron', 0); // a neighbour on the same machine
    for (let i = 0; i < 9; i++) failures.failed('192.0.2.66', 'app', 0); // an attack from elsewhere
    expect(failures.delay('10.0.0.1', 'app', 0)).toBe(0);
    expect(failures.delay('192.0.2.66', 'app', 0)).toBeGreaterThan(0);
    expect(failures.delay('10.0.0.1', 'cron', 0)).toBeGreaterThan(0);
    // But its own do.
    for (let i = 0; i < 3; i++) failures.failed('10.0.0.1', 'app', 0);
    expect(failures.delay('10.0.0.1', 'app', 0)).toBe(100);
  });

  it('count for a whole IPv6 network', () => {
    const failures = failing(3, '2001:db8::1', 'a');
    expect(failures.delay('2001:db8::ffff', 'b', 0)).toBe(100);
    expect(failures.delay('2001:db8:0:1::1', 'b', 0)).toBe(0);
  });

  it('take bounded memory: the oldest are dropped', () => {
    const failures = failing(3);
    for (let i = 0; i < 10_000; i++) failures.failed(`10.${(i >> 16) + 1}.${(i >> 8) & 255}.${i & 255}`, `u${i}`, 0);
    expect(failures.delay('10.0.0.1', 'ann', 0)).toBe(0);
  });

  it('cost nothing at all when so configured', () => {
    const failures = new FailedLogins({ ...limits, delayMs: 0 });
    for (let i = 0; i < 99; i++) failures.failed('10.0.0.1', 'ann', 0);
    expect(failures.delay('10.0.0.1', 'ann', 0)).toBe(0);
  });

  it('are counted together by processes that tell each other', () => {
    const all: FailedLogins[] = [];
    for (let i = 0; i < 3; i++)
      all.push(
        new FailedLogins(limits, (event) => {
          all.forEach((other, j) => {
            if (j !== i) other.hear(event, 0);
          });
        }),
      );
    const [a, b, c] = all as [FailedLogins, FailedLogins, FailedLogins];
    for (const one of all) one.failed('10.0.0.1', 'ann', 0);
    // One after the other, wherever they come in.
    expect([a, b, c, a].map((one) => one.delay('10.0.0.1', 'eve', 0))).toEqual([100, 200, 300, 400]);
    expect(c.delay('10.0.0.2', 'ann', 0)).toBe(100);
    // Whoever has the right password is known to all.
    b.succeeded('10.0.0.1', 'ann');
    expect(all.map((one) => one.isKnown('10.0.0.1', 'ann'))).toEqual([true, true, true]);
    expect(all.map((one) => one.delay('10.0.0.1', 'eve', 0))).toEqual([0, 0, 0]);
  });
});
