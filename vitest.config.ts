import { defineConfig } from 'vitest/config';
import { CountsReporter } from './test/support/counts-reporter.js';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    // Each file may run several PostgreSQL servers, and most of its time waits for them.
    maxWorkers: 4,
    // What is read and kept although it is overwritten by the next read shows itself at once, here and in the processes that tests start.
    env: { FORESHARD_POISON_MEMORY: '1' },
    // For what hangs; a busy machine is no failure.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    reporters: ['default', new CountsReporter()],
  },
});
