import type { MicroResult } from './results/results.js';
import { spreadOf } from './results/statistics.js';

const ROUNDS = 9;
const ROUND_MS = 60;
/** Rounds before those that count: the compiler has done its work then. */
const WARM_ROUNDS = 2;

/** Median and spread of the time of one call, in µs, over rounds. */
export function timeOf(run: () => void): MicroResult['us'] {
  const times: number[] = [];
  for (let round = -WARM_ROUNDS; round < ROUNDS; round++) {
    let calls = 0;
    const start = performance.now();
    let now = start;
    while (now - start < ROUND_MS) {
      for (let i = 0; i < 20; i++) run();
      calls += 20;
      now = performance.now();
    }
    if (round >= 0) times.push(((now - start) * 1000) / calls);
  }
  return spreadOf(times) as MicroResult['us'];
}

/** What is measured against what. */
export interface Contender {
  readonly contender: string;
  readonly role: MicroResult['role'];
  readonly run: () => void;
}

/** Measures and prints a task's contenders. As a part of `npm run bench`, the figures go to it. */
export function compareContenders(task: string, contenders: readonly Contender[]): void {
  console.log(`\n${task} (µs a call, median of ${ROUNDS} rounds, lowest–highest)`);
  for (const { contender, role, run } of contenders) {
    const us = timeOf(run);
    console.log(
      `  ${contender.padEnd(28)}${us.median.toFixed(2).padStart(10)}  (${us.low.toFixed(2)}–${us.high.toFixed(2)})`,
    );
    const result: MicroResult = { task, contender, role, us };
    process.send?.(result);
  }
}
