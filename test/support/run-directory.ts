import { readFileSync, statfsSync } from 'node:fs';
import type { TestProject } from 'vitest/node';
import { Supervisor } from '../../deploy/embedded/supervisor.js';
import { reachableTemporaryBase } from '../../deploy/embedded/temporary-base.js';
import { serverUser } from '../../deploy/embedded/unprivileged.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** Of this run, for what all files use; gone with the run, however that ends. */
    readonly runDirectory: string;
  }
}

/** Called by vitest before the first file. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const base = reachableTemporaryBase(serverUser());
  project.provide('runDirectory', await Supervisor.shared().makeTemporary(base, 'foreshard-tests-', 0o711));
  return () => Supervisor.end();
}

const MEMORY = '/dev/shm';
/** More than the servers of four files at a time have been seen to need. */
const ENOUGH_BYTES = 8 * 2 ** 30;

/**
 * Where there is a directory in memory with room for all servers, from which programs may be run: it has no writes that servers wait for, or that slow down what runs beside them.
 * @returns null: the system's directory for temporary files has to do
 */
export function findMemory(): string | null {
  if (process.platform !== 'linux') return null;
  const mounted = readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .findLast(([, dir]) => dir === MEMORY);
  if (mounted?.[2] !== 'tmpfs' || /\b(noexec|ro)\b/.test(mounted[3] ?? '')) return null;
  const { bavail, bsize } = statfsSync(MEMORY);
  return Math.min(bavail * bsize, process.availableMemory()) < ENOUGH_BYTES ? null : MEMORY;
}
