/**
 * Compares a run with the committed record of ratios and says what moved. Exit code 1 when a ratio fell by more than the noise.
 * Run: npm run bench:check -- --help
 */
import { existsSync, writeFileSync } from 'node:fs';
import yargs from 'yargs';
import { UsageError } from '../topology/errors.js';
import { renderComparison } from './results/comparison-text.js';
import { ratiosOf } from './results/ratios.js';
import { readJson, readResults } from './results/read.js';
import { type BenchRecord, compare, EMPTY_RECORD, recordSchema, withRun } from './results/record.js';
import { bench } from './suite/bench.js';
import { endWithSignals } from './suite/ending.js';
import { ROOT } from './suite/machine.js';
import { parseOptions } from './suite/options.js';

const ending = endWithSignals();

function readRecord(file: string): BenchRecord {
  if (!existsSync(file)) return EMPTY_RECORD;
  const parsed = recordSchema.safeParse(readJson(file));
  if (!parsed.success) throw new UsageError(`${file} is not a record: ${parsed.error.issues[0]?.path.join('.')}`);
  return parsed.data;
}

async function main(): Promise<void> {
  const given = await yargs(process.argv.slice(2))
    .scriptName('npm run bench:check --')
    .usage(
      '$0 [FILE…]\n\nCompares runs (the JSON that npm run bench has written; without any, a new quick run) with the record of ratios.',
    )
    .option('record', { type: 'string', default: `${ROOT}bench/record.json`, describe: 'The record' })
    .option('tolerance', { type: 'number', default: 5, describe: 'Changes up to so many per cent are always noise' })
    .option('update', { type: 'boolean', default: false, describe: "Put the runs' ratios into the record" })
    .strictOptions()
    .version(false)
    .parseAsync();
  const record = readRecord(given.record);
  if (!given.update && Object.keys(record.ratios).length === 0)
    throw new UsageError(
      `${given.record} holds no ratios to compare with`,
      'Make a run with npm run bench, and put it there with --update.',
    );
  const runs = given._.map((file) => readResults(String(file)));
  if (runs.length === 0) {
    const options = await parseOptions(['--quick']);
    runs.push((await bench(options, ending.say).finally(ending.end)).results);
  }
  if (given.update) {
    writeFileSync(given.record, `${JSON.stringify(runs.reduce(withRun, record), null, 2)}\n`);
    console.log(`written: ${given.record}`);
    return;
  }
  const ratios = Object.assign({}, ...runs.map(ratiosOf));
  const comparison = compare(record, ratios, given.tolerance / 100);
  console.log(renderComparison(comparison));
  if (comparison.changes.some(({ verdict }) => verdict === 'fell')) process.exitCode = 1;
}

main().catch(ending.fail);
