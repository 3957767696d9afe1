import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';
import { CountsReporter } from './test/support/counts-reporter.js';
import { findMemory } from './test/support/run-directory.js';

/** Short files that take minutes, because migrators die in them again and again: begun last, they would go on when all others are done. */
const LONG = /\/chaos\/.*crash/;

class LongFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files);
    const isLong = ({ moduleId }: TestSpecification) => LONG.test(moduleId);
    return [...sorted.filter(isLong), ...sorted.filter((file) => !isLong(file))];
  }
}

const memory = findMemory();
if (process.env.TMPDIR === undefined && memory !== null) process.env.TMPDIR = memory;

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/run-directory.ts'],
    pool: 'forks',
    // Each file may run several PostgreSQL servers, and most of its time waits for them.
    maxWorkers: 4,
    // What is read and kept although it is overwritten by the next read shows itself at once, here and in the processes that tests start.
    env: { FORESHARD_POISON_MEMORY: '1' },
    // For what hangs; a busy machine is no failure.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    sequence: { sequencer: LongFirst },
    reporters: ['default', new CountsReporter()],
  },
});
