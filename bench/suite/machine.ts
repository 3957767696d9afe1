import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem, type } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { Results } from '../results/results.js';

/** The top of the checkout: this file is two folders deep in dist/. */
export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));

/** What it runs on. */
export function machine(): Results['machine'] {
  return {
    processor: cpus()[0]?.model ?? 'unknown processor',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    system: `${type()} ${release()}`,
    node: process.versions.node,
  };
}

/** Our version, with the commit where there is one. */
export function foreshardVersion(): string {
  const { version } = JSON.parse(readFileSync(`${ROOT}package.json`, 'utf8')) as { version: string };
  const git = (...args: string[]) => spawnSync('git', args, { cwd: ROOT, encoding: 'utf8' });
  const commit = git('rev-parse', '--short', 'HEAD');
  if (commit.status !== 0) return version;
  const changed = git('status', '--porcelain', '--untracked-files=no').stdout.trim() !== '';
  return `${version} (${commit.stdout.trim()}${changed ? ', changed' : ''})`;
}
