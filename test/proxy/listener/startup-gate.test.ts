import { Socket } from 'node:net';
import { describe, expect, test } from 'vitest';
import { StartupGate, type StartupLimits, type StartupPass } from '../../../proxy/listener/startup-gate.js';

/** A gate with a clock of its own, and what became of each who came. */
function setting(limits: Partial<StartupLimits>) {
  let now = 0;
  const gate = new StartupGate(
    { maxStartups: 1000, startupsPerSecond: 0, startupQueueMs: 1000, maxQueued: 1000, ...limits },
    () => now,
  );
  const outcomes: string[] = [];
  const ahead: string[] = [];
  const passes = new Map<string, StartupPass>();
  return {
    outcomes,
    ahead,
    advance: (ms: number) => {
      now += ms;
    },
    gate,
    leave: (name: string) => passes.get(name)?.leave(),
    enter: (name: string): Socket => {
      const socket = new Socket();
      gate.enter(
        socket,
        (pass) => {
          passes.set(name, pass);
          if (pass.turn === null) outcomes.push(`${name} in`);
          else {
            ahead.push(name);
            void pass.turn.then((hasTurn) => outcomes.push(`${name} ${hasTurn ? 'in' : 'refused'}`));
          }
        },
        () => outcomes.push(`${name} refused`),
      );
      return socket;
    },
  };
}

/** Lets those go on who have been told that it is their turn. */
const told = () => new Promise((resolve) => setImmediate(resolve));

describe('StartupGate', () => {
  test('so many at a time, first come first served; leaving twice counts once', async () => {
    const { enter, leave, outcomes, gate } = setting({ maxStartups: 2 });
    for (const name of 'abcde') enter(name);
    expect(outcomes).toEqual(['a in', 'b in']);
    leave('a');
    leave('a');
    await told();
    expect(outcomes).toEqual(['a in', 'b in', 'c in']);
    leave('b');
    await told();
    expect(outcomes.at(-1)).toBe('d in');
    gate.close();
    await told();
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

  test('whoever waits too long is refused when the next moves on', async () => {
    const { enter, leave, outcomes, advance, gate } = setting({ maxStartups: 1 });
    enter('a');
    enter('b');
    advance(900);
    enter('c');
    advance(100);
    leave('a');
    await told();
    expect(outcomes).toEqual(['a in', 'b refused', 'c in']);
    gate.close();
  });

  test('whoever waits too long is refused though nobody moves', async () => {
    const gate = new StartupGate({ maxStartups: 0, startupsPerSecond: 0, startupQueueMs: 10, maxQueued: 9 });
    const refused = await new Promise((resolve) =>
      gate.enter(
        new Socket(),
        ({ turn }) => resolve(turn?.then((hasTurn) => !hasTurn) ?? false),
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
            (pass) => {
              void Promise.resolve(pass.turn).then(() => {
                pass.leave();
                resolve();
              });
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
    await told();
    expect(outcomes).toEqual(['a in', 'b refused', 'c in']);
    gate.close();
  });

  test('new limits count at once', async () => {
    const { enter, outcomes, gate } = setting({ maxStartups: 1 });
    for (const name of 'abc') enter(name);
    gate.reload({ maxStartups: 2, startupsPerSecond: 0, startupQueueMs: 1000, maxQueued: 9 });
    await told();
    expect(outcomes).toEqual(['a in', 'b in']);
    gate.close();
  });

  test('a few are let in ahead of their turn, the newest first, and wait for it behind their start-up packet', async () => {
    const { enter, leave, outcomes, ahead, advance, gate } = setting({ maxStartups: 1, startupQueueMs: 60_000 });
    const names = Array.from({ length: 21 }, (_, i) => `c${i}`);
    for (const name of names) enter(name);
    // As many as there are in a second's worth; those who come later find it used up.
    expect(ahead).toEqual(names.slice(1, 17));
    expect(outcomes).toEqual(['c0 in']);
    advance(125);
    enter('late');
    expect(ahead.slice(16)).toEqual(['late', 'c20']);
    // Whoever turns out to need no turn gives its place in the queue up, and nobody else is let in for it.
    leave('c1');
    leave('c1');
    await told();
    expect(outcomes).toEqual(['c0 in']);
    leave('c0');
    await told();
    expect(outcomes).toEqual(['c0 in', 'c2 in']);
    leave('c2');
    await told();
    expect(outcomes).toEqual(['c0 in', 'c2 in', 'c3 in']);
    gate.close();
    await told();
    expect(outcomes.filter((text) => text.endsWith('refused')).length).toBe(18);
  });
});
