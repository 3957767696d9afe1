/**
 * Lets faults loose on shards, catalog, proxies and migrators while clients read and write and ranges move, and proves in the end that nothing is
 * lost, doubled or stale. Exit code 1 when something is.
 * Run: npm run chaos -- [--minutes N] [--flips N] [--seed S] [--faults a,b|none] [--kinds a,b] [--hands N] [--rest MS] [--pg-bin DIR]
 */
import { parseArgs } from 'node:util';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { FAULTS, type Fault } from './faults.js';
import { KINDS } from './kinds.js';
import { type ChaosResult, chaos } from './run.js';

const MINUTE = 60_000;

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '5' },
    flips: { type: 'string', default: '0' },
    seed: { type: 'string', default: `${Math.floor(Math.random() * 1_000_000)}` },
    faults: { type: 'string', default: FAULTS.map(({ name }) => name).join(',') },
    kinds: { type: 'string', default: KINDS.map(({ name }) => name).join(',') },
    hands: { type: 'string', default: '2' },
    rest: { type: 'string', default: '6000' },
    help: { type: 'boolean', default: false },
    'pg-bin': { type: 'string', default: process.env.FORESHARD_TEST_PG_BIN ?? '' },
  },
});

const HELP = `npm run chaos -- [--minutes N] [--flips N] [--seed S] [--faults a,b|none] [--kinds a,b] [--hands N] [--rest MS] [--pg-bin DIR]
It goes on for so many minutes, and until there were so many flips.
  --faults  ${FAULTS.map(({ name }) => name).join(', ')}; default: all
  --kinds   ${KINDS.map(({ name }) => name).join(', ')}; default: all
  --hands   faults at once (2)
  --rest    between two faults, ms, at most (6000)
  --pg-bin  programs of the servers; default: FORESHARD_TEST_PG_BIN, or those from npm`;

function wantedFaults(names: string): readonly Fault[] {
  return names === 'none' ? [] : wanted('fault', FAULTS, names);
}

function wanted<T extends { readonly name: string }>(what: string, all: readonly T[], names: string): readonly T[] {
  return names.split(',').map((name) => {
    const found = all.find((one) => one.name === name);
    if (found === undefined)
      throw new Error(`there is no ${what} "${name}"; there are ${all.map((one) => one.name).join(', ')}`);
    return found;
  });
}

function counts(of: Readonly<Record<string, number>>): string {
  const entries = Object.entries(of).toSorted(([, a], [, b]) => b - a);
  return entries.map(([name, n]) => `${name} ${n}`).join(', ') || 'none';
}

function summary(result: ChaosResult): string {
  const pauses = result.pausesMs.toSorted((a, b) => a - b);
  const at = (share: number) => pauses[Math.min(pauses.length - 1, Math.floor(pauses.length * share))] ?? '-';
  return [
    `flips        ${result.flips}`,
    `at replicas  ${result.replicaReads} reads`,
    `statements   ${result.statements}`,
    `operations   ${counts(result.operations)}`,
    `migrations   ${counts(result.ends)}`,
    `pauses       median ${at(0.5)} ms, 90 % ${at(0.9)} ms, longest ${at(1)} ms`,
    `faults       ${counts(result.faults)}`,
    `errors       ${counts(result.errors)}`,
    `latest       ${counts(result.latestMs)} (ms after the end of the fault that excused it)`,
    ...Object.entries(result.complaints).map(([text, n]) => `logged ${n} × ${text}`),
    ...result.violations.map((text) => `WRONG: ${text}`),
    ...(result.untold > 0 ? [`WRONG: and ${result.untold} more`] : []),
    ...(result.violations.length > 0 ? [`logs are in ${result.dir}`] : ['all is as it was told']),
  ].join('\n');
}

async function main(): Promise<void> {
  const seed = Number(values.seed);
  const stop = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => stop.abort());
  console.log(
    `seed ${seed}: npm run chaos -- --seed ${seed} --minutes ${values.minutes} --faults ${values.faults} --kinds '${values.kinds}' --hands ${values.hands} --rest ${values.rest}${values['pg-bin'] === '' ? '' : ` --pg-bin ${values['pg-bin']}`}`,
  );
  const from = performance.now();
  const log = (text: string) => console.log(`${((performance.now() - from) / 1000).toFixed(1).padStart(7)} s  ${text}`);
  const leastFlips = Number(values.flips);
  const result = await chaos({
    seed,
    writers: 16,
    readers: 8,
    proxies: 3,
    faults: wantedFaults(values.faults),
    hands: Number(values.hands),
    restMs: Number(values.rest),
    kinds: wanted('kind of change', KINDS, values.kinds),
    binDir: values['pg-bin'] === '' ? undefined : values['pg-bin'],
    enough: ({ flips, elapsedMs }) => elapsedMs > Number(values.minutes) * MINUTE && flips >= leastFlips,
    signal: stop.signal,
    log,
  });
  console.log(summary(result));
  if (result.violations.length > 0) process.exitCode = 1;
  else if (stop.signal.aborted) process.exitCode = 130;
}

try {
  if (values.help) console.log(HELP);
  else await main();
} finally {
  await EmbeddedCluster.endAll();
}
