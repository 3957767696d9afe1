import type { Reporter, TestModule } from 'vitest/node';

/** Ends a run with `N passed, N failed, N skipped` alone on the last line, for whatever reads the log. */
export class CountsReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const counts = { passed: 0, failed: 0, skipped: 0 };
    for (const module of modules) {
      let failed = 0;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        // A test that was begun and has no result did not pass.
        const counted = state === 'pending' ? 'failed' : state;
        counts[counted] += 1;
        if (counted === 'failed') failed += 1;
      }
      // A file that could not be loaded, or whose hooks failed, shows in none of its tests.
      if (module.state() === 'failed' && failed === 0) counts.failed += 1;
    }
    const line = `${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped\n`;
    // When all other reporters and vitest itself have said their last.
    process.once('exit', () => process.stdout.write(line));
  }
}
