import { spawnSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { dirname } from 'node:path';
import { EmbeddedError } from './embedded-error.js';

/** The user that a server runs as, when that is not the user who asked. */
export interface RunAs {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** Users to run servers as when we are root, which PostgreSQL refuses to run as; the first that exists is taken. */
const CANDIDATES = ['postgres', 'nobody'];

let chosen: RunAs | undefined;

/**
 * The unprivileged user for servers, or undefined when we are not root and servers run as ourselves.
 * @throws {EmbeddedError} when there is no such user
 */
export function serverUser(): RunAs | undefined {
  if (process.getuid?.() !== 0) return undefined;
  chosen ??= findUser();
  return chosen;
}

function findUser(): RunAs {
  for (const name of CANDIDATES) {
    const uid = numericId('-u', name);
    const gid = numericId('-g', name);
    if (uid !== undefined && gid !== undefined && uid !== 0) return { name, uid, gid };
  }
  throw new EmbeddedError('PostgreSQL cannot run as root, and there is no other user to run it as', {
    hint: `create one of the users ${CANDIDATES.join(', ')}, or start this as a user other than root`,
  });
}

/** Asked of `id`, because users need not be in /etc/passwd. */
function numericId(flag: '-u' | '-g', name: string): number | undefined {
  const { status, stdout } = spawnSync('id', [flag, name], { encoding: 'utf8' });
  return status === 0 && /^\d+\s*$/.test(stdout) ? Number(stdout) : undefined;
}

/** The user that owns existing data, which is the one that must go on using it. */
export function ownerOf(path: string): RunAs {
  const { uid, gid } = statSync(path);
  return { name: `uid ${uid}`, uid, gid };
}

/** Whether `user` can pass through a directory and all above it. `path` is absolute and real (no symbolic links). */
export function canTraverse(path: string, user: RunAs): boolean {
  for (let dir = path; ; dir = dirname(dir)) {
    const { mode, uid, gid } = statSync(dir);
    const execute = uid === user.uid ? 0o100 : gid === user.gid ? 0o010 : 0o001;
    if ((mode & execute) === 0) return false;
    if (dir === dirname(dir)) return true;
  }
}

/** Says what it means that the system did not let us start a process as another user. */
export function describeSpawnError(error: unknown, runAs: RunAs | undefined): unknown {
  const code = (error as NodeJS.ErrnoException).code;
  if (runAs === undefined || (code !== 'EPERM' && code !== 'EINVAL')) return error;
  return new EmbeddedError(
    `PostgreSQL cannot run as root, and starting it as user "${runAs.name}" is not permitted here`,
    {
      hint: 'start this as a user other than root, or in a container that maps more than one user',
      cause: error,
    },
  );
}
