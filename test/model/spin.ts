import { execFile, spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Search } from './searches.js';

/** More than this a search may not take, MB. */
const MEMORY_MB = 4000;
const SECONDS = 600;

export interface Finding {
  readonly verdict: 'holds' | 'violated' | 'unfinished';
  /** What was violated, or why the search did not come to its end. */
  readonly what: string;
  readonly states: number;
  readonly depth: number;
  readonly seconds: number;
}

/** The assertions of the model, as pan prints them without their blanks, in words. The first that fits counts. */
const WORDS: readonly (readonly [string, string])[] = [
  ['!(orphan)||', 'two owners'],
  ['!(orphan)', 'a lost write'],
  ['replicated==count', 'a lost write'],
  ['count[epoch]>=seen', 'a lost write'],
  ['value>=before', 'a stale read'],
  ['!(wrong)', 'a read of removed rows'],
  ['hold==', 'a hold that is left'],
  ['state==', 'no end'],
  ['acceptancecycle', 'no end'],
];

/** Null when the model can be searched here; else why not. */
export function whyNot(): string | null {
  for (const [program, version] of [
    ['spin', '-V'],
    ['cc', '--version'],
  ] as const)
    if (spawnSync(program, [version], { stdio: 'ignore' }).status !== 0)
      return `${program} is not installed (Debian: apt-get install spin gcc libc6-dev)`;
  return null;
}

/** The checkout: of the sources, or of what was built from them. */
function modelFile(): string {
  const here = fileURLToPath(new URL('../../', import.meta.url));
  const root = basename(here) === 'dist' ? dirname(here) : here;
  return join(root, 'docs', 'model', 'flip.pml');
}

/** Makes the checker for one search, lets it run, and reads what it says. Everything happens in a directory that is gone afterwards. */
export async function run(search: Search, signal?: AbortSignal): Promise<Finding> {
  const folder = mkdtempSync(join(tmpdir(), 'foreshard-model-'));
  const call = (file: string, args: readonly string[]) => runProgram(file, args, folder, signal);
  try {
    copyFileSync(modelFile(), join(folder, 'flip.pml'));
    const made = await call('spin', ['-a', ...definitions(search), 'flip.pml']);
    if (made.code !== 0) throw new Error(`spin: ${made.output}`);
    const compiled = await call('cc', ['-w', ...compilerOptions(search), '-o', 'pan', 'pan.c']);
    if (compiled.code !== 0) throw new Error(`cc: ${compiled.output}`);
    const begun = performance.now();
    const { output } = await call('./pan', panOptions(search));
    return read(output, (performance.now() - begun) / 1000);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function definitions(search: Search): string[] {
  return [
    ...Object.entries(search.settings).map(([name, value]) => `-D${name}=${value}`),
    ...search.without.map((precaution) => `-DWITHOUT_${precaution}`),
    ...(search.property === 'end' ? ['-DLIVENESS'] : []),
  ];
}

function compilerOptions({ property, store, expected }: Search): string[] {
  return [
    // What finds something is over before a better program pays.
    expected === 'violated' ? '-O0' : '-O1',
    `-DMEMLIM=${MEMORY_MB}`,
    '-DVECTORSZ=2048',
    store === 'bits' ? '-DBITSTATE' : '-DCOLLAPSE',
    ...(property === 'end' ? ['-DNFAIR=5'] : ['-DSAFETY', '-DNOCLAIM']),
  ];
}

function panOptions({ property, store }: Search): string[] {
  const how = store === 'bits' ? ['-w32', '-k3'] : ['-w24'];
  return ['-m1000000', ...how, ...(property === 'end' ? ['-a', '-f', '-N', 'ends'] : [])];
}

interface Outcome {
  readonly code: number | null;
  readonly output: string;
}

function runProgram(
  file: string,
  args: readonly string[],
  cwd: string,
  signal: AbortSignal | undefined,
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const options = { cwd, timeout: SECONDS * 1000, killSignal: 'SIGKILL' as const, ...(signal ? { signal } : {}) };
    const child = execFile(file, [...args], options, (error, stdout, stderr) => {
      if (signal?.aborted === true || (error !== null && child.pid === undefined)) reject(error);
      else resolve({ code: child.exitCode, output: stdout + stderr });
    });
  });
}

function read(output: string, seconds: number): Finding {
  const number = (pattern: RegExp) => Number(pattern.exec(output)?.[1] ?? 0);
  const found = { states: number(/(\d+) states, stored/), depth: number(/depth reached (\d+)/), seconds };
  const errors = /errors: (\d+)/.exec(output)?.[1];
  const violated = /^pan:\d+: (.*) \(at depth/m.exec(output)?.[1];
  if (violated !== undefined) return { verdict: 'violated', what: inWords(violated), ...found };
  const cut = /max search depth too small|out of memory|memory limit/i.exec(output)?.[0];
  if (errors !== '0' || cut !== undefined)
    return { verdict: 'unfinished', what: cut ?? `no result in ${SECONDS} s`, ...found };
  return { verdict: 'holds', what: '', ...found };
}

function inWords(violated: string): string {
  const text = violated.replaceAll(' ', '');
  return WORDS.find(([part]) => text.includes(part))?.[1] ?? violated;
}
