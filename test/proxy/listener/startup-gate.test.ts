import { Socket } from 'node:net';
import { describe, expect, test } from 'vitest';
import { StartupGate, type StartupLimits } from '../../../proxy/listener/startup-gate.js';

/** A gate with a clock of its own, and what became of each who came. */
function setting(limits: Partial<StartupLimits>) {
  let now = 0;
  const gate = new StartupGate(
    { maxStartups: 1000, startupsPerSecond: 0, startupQueueMs: 1000, maxQueued: 1000, ...limits },
    () => now,
  );
  const outcomes: string[] = [];
  const leaves = new Map<string, () => void>();
  return {
    outcomes,
    advance: (ms: number) => {
      now += ms;
    },
    gate,
    leave: (name: string) => leaves.get(name)?.(),
    enter: (name: string): Socket => {
      const socket = new Socket();
      gate.enter(
        socket,
        (leave) => {
          leaves.set(name, leave);
          outcomes.push(`${name} in`);
        },
        () => outcomes.push(`${name} refused`),
      );
      return socket;
    },
  };
}

describe('StartupGate', () => {
  test('so many at a time, first come first served; leaving twice counts once', () => {
    const { enter, leave, outcomes, gate } = setting({ maxStartups: 2 });
    for (const name of 'abcde') enter(name);
    expect(outcomes).toEqual(['a in', 'b in']);
    leave('a');
    leave('a');
    expect(outcomes).toEqual(['a in', 'b in', 'c in']);
    leave('b');
    expect(outcomes.at(-1)).toBe('d in');
    gate.close();
    expect(outcomes.at(-1)).toBe('e refused');
  });

  test('so many each second, with a burst of one second', () => {
    const { enter, outcomes, advance, gate } = setting({ startupsPerSecond: 2, maxQueued: 0 });
    for (const name of 'abc') enter(name);
    advance(500);
    for (const name of 'de') enter(name);
    advance(60_000);
    for (const name of 'fgh') enter(name);
    expect(outcomes).toEqual(['a in', 'b in', 'c refused', 'd in', 'e refused', 'f in', 'g in', 'h refused']);
    gate.close();
  });

  test('whoever waits too long is refused when the next moves on', () => {
    const { enter, leave, outcomes, advance, gate } = setting({ maxStartups: 1 });
    enter('a');
    enter('b');
    advance(900);
    enter('c');
    advance(100);
    leave('a');
    expect(outcomes).toEqual(['a in', 'b refused', 'c in']);
    gate.close();
  });

  test('whoever waits too long is refused though nobody moves', async () => {
    const gate = new StartupGate({ maxStartups: 0, startupsPerSecond: 0, startupQueueMs: 10, maxQueued: 9 });
    const refused = await new Promise((resolve) =>
      gate.enter(
        new Socket(),
        () => resolve(false),
        () => resolve(true),
      ),
    );
    expect(refused).toBe(true);
  });

  test('a token that comes later lets the next in', async () => {
    const gate = new StartupGate({ maxStartups: 9, startupsPerSecond: 50, startupQueueMs: 60_000, maxQueued: 99 });
    const all = Array.from(
      { length: 55 },
      () =>
        new Promise<void>((resolve, reject) =>
          gate.enter(
            new Socket(),
            (leave) => {
              leave();
              resolve();
            },
            reject,
          ),
        ),
    );
    await Promise.all(all);
  });

  test('whoever has gone holds no place', async () => {
    const { enter, leave, outcomes, gate } = setting({ maxStartups: 1 });
    enter('a');
    const gone = enter('b');
    enter('c');
    await new Promise((resolve) => {
      gone.once('close', resolve);
      gone.destroy();
    });
    leave('a');
    expect(outcomes).toEqual(['a in', 'c in']);
    gate.close();
  });

  test('new limits count at once', () => {
    const { enter, outcomes, gate } = setting({ maxStartups: 1 });
    for (const name of 'abc') enter(name);
    gate.reload({ maxStartups: 2, startupsPerSecond: 0, startupQueueMs: 1000, maxQueued: 9 });
    expect(outcomes).toEqual(['a in', 'b in']);
    gate.close();
  });
});
