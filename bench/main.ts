/**
 * All benchmarks in one run: Foreshard, its peers and the server itself, interleaved. See docs/benchmarks.md.
 * Run: npm run bench -- --help
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { joined } from './results/joined.js';
import { readResults } from './results/read.js';
import { renderSvg } from './results/svg.js';
import { renderTables } from './results/tables.js';
import { bench } from './suite/bench.js';
import { endWithSignals } from './suite/ending.js';
import { parseOptions } from './suite/options.js';

const ending = endWithSignals();
try {
  const options = await parseOptions(process.argv.slice(2));
  const { results, failed } =
    options.join === null
      ? await bench(options, ending.say).finally(ending.end)
      : { results: joined(options.join.map(readResults)), failed: false };
  mkdirSync(options.out, { recursive: true });
  const name = `bench-${results.startedAt.replaceAll(/[:.]/g, '-')}`;
  writeFileSync(join(options.out, `${name}.json`), `${JSON.stringify(results, null, 1)}\n`);
  if (results.cells.length > 0) writeFileSync(join(options.out, `${name}.svg`), renderSvg(results));
  console.log(`\n${renderTables(results)}\n`);
  console.log(`written: ${join(options.out, `${name}.json`)}${results.cells.length > 0 ? ' and .svg' : ''}`);
  if (failed) process.exitCode = 1;
} catch (error) {
  ending.fail(error);
}
