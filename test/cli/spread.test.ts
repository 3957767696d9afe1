import { Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Receiver, Spread } from '../../cli/processes/spread.js';

/** A process that has taken a client when the test says so. */
class Process implements Receiver {
  clients = 0;
  #answer: ((taken: boolean) => void) | null = null;

  give(): Promise<boolean> {
    if (this.#answer !== null) throw new Error('it is still taking the one before');
    this.clients += 1;
    return new Promise((resolve) => {
      this.#answer = resolve;
    });
  }

  get isTaking(): boolean {
    return this.#answer !== null;
  }

  async answer(taken = true): Promise<void> {
    const answer = this.#answer;
    this.#answer = null;
    if (!taken) this.clients -= 1;
    answer?.(taken);
    await settled();
  }
}

/** All that follows from what has just been resolved has happened. */
async function settled(): Promise<void> {
  for (let i = 0; i < 5; i++) await Promise.resolve();
}

let spread: Spread;
const [a, b, c] = [0, 1, 2].map(() => new Process()) as [Process, Process, Process];

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  spread = new Spread();
  for (const p of [a, b, c]) p.clients = 0;
  spread.to([a, b, c]);
});
afterEach(async () => {
  spread.close();
  for (const p of [a, b, c]) await p.answer();
  vi.useRealTimers();
});

function burst(clients: number): void {
  for (let i = 0; i < clients; i++) spread.add(new Socket());
}

const counts = () => [a, b, c].map(({ clients }) => clients);

describe('a burst of clients', () => {
  test('is spread evenly, though one process is slower than the others', async () => {
    burst(60);
    for (let turn = 0; counts().reduce((all, n) => all + n) < 60; turn++) {
      if (turn > 1000) throw new Error(`it does not end: ${counts()}`);
      await a.answer();
      await b.answer();
      if (turn % 5 === 0) await c.answer();
      expect(Math.max(...counts()) - Math.min(...counts())).toBeLessThanOrEqual(1);
    }
    expect(counts()).toEqual([20, 20, 20]);
  });

  test('passes one over that takes none for half a second; when it does, it is given what makes it even', async () => {
    burst(30);
    await vi.advanceTimersByTimeAsync(499);
    for (let i = 0; i < 5; i++) for (const p of [a, b]) await p.answer();
    expect(counts()).toEqual([2, 2, 1]);
    await vi.advanceTimersByTimeAsync(501);
    for (let i = 0; i < 5; i++) for (const p of [a, b]) await p.answer();
    expect(counts()).toEqual([8, 8, 1]);
    await c.answer();
    for (let i = 0; i < 20; i++) for (const p of [a, b, c]) await p.answer();
    expect(counts()).toEqual([10, 10, 10]);
  });

  test('goes to others when a process has ended', async () => {
    burst(10);
    spread.to([a, b]);
    await c.answer(false);
    for (let i = 0; i < 10; i++) for (const p of [a, b]) await p.answer();
    expect(counts()).toEqual([5, 5, 0]);
    expect([a, b, c].some((p) => p.isTaking)).toBe(false);
  });

  test('waits for a process to be there', async () => {
    spread.to([]);
    burst(2);
    expect(counts()).toEqual([0, 0, 0]);
    spread.to([b]);
    await b.answer();
    expect(counts()).toEqual([0, 2, 0]);
  });
});
