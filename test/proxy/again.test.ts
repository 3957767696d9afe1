import { expect, it } from 'vitest';
import { Again } from '../../proxy/again.js';

interface Run {
  end(): void;
  fail(error: Error): void;
}

/** Work whose runs end when they are told to. */
function controlled(): { readonly again: Again; readonly runs: Run[] } {
  const runs: Run[] = [];
  const again = new Again(() => new Promise<void>((resolve, reject) => runs.push({ end: resolve, fail: reject })));
  return { again, runs };
}

it('begins no run while one is under way, and gives all who ask meanwhile one that begins after it', async () => {
  const { again, runs } = controlled();
  const first = again.run();
  const [second, third] = [again.run(), again.run()];
  expect(runs.length).toBe(1);
  runs[0]?.end();
  await first;
  let over = false;
  const asked = second.then(() => {
    over = true;
  });
  const late = again.run();
  expect([runs.length, over]).toEqual([2, false]);
  runs[1]?.end();
  await Promise.all([asked, third]);
  runs[2]?.end();
  await late;
  expect(runs.length).toBeLessThanOrEqual(3);
});

it('goes on after a run that failed, of which only those hear who asked for it', async () => {
  const { again, runs } = controlled();
  const first = again.run();
  const second = again.run();
  runs[0]?.fail(new Error('away'));
  await expect(first).rejects.toThrow('away');
  runs[1]?.end();
  await second;
});
