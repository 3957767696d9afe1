import { accessSync, constants, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { EmbeddedError } from './embedded-error.js';
import { canTraverse, type RunAs } from './unprivileged.js';

/** The directory for temporary files, or another one of the system's if the server's user cannot enter that. */
export function reachableTemporaryBase(runAs: RunAs | undefined): string {
  const candidates = [tmpdir(), '/tmp', '/var/tmp', '/dev/shm'];
  for (const candidate of candidates) {
    const base = usable(candidate, runAs);
    if (base !== undefined) return base;
  }
  throw new EmbeddedError(`no temporary directory is usable${runAs === undefined ? '' : ` by user "${runAs.name}"`}`, {
    hint: `tried ${candidates.join(', ')}; set TMPDIR to one that is`,
  });
}

function usable(candidate: string, runAs: RunAs | undefined): string | undefined {
  try {
    const base = realpathSync(candidate);
    accessSync(base, constants.W_OK | constants.X_OK);
    return runAs === undefined || canTraverse(base, runAs) ? base : undefined;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'EACCES' || code === 'EROFS' || code === 'ENOTDIR') return undefined;
    throw error;
  }
}
