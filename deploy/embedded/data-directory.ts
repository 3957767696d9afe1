import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import type { Binaries } from './binaries.js';
import { EmbeddedError } from './embedded-error.js';
import type { Supervisor } from './supervisor.js';
import { canTraverse, describeSpawnError, ownerOf, type RunAs } from './unprivileged.js';

/** Where data lives when the server's user cannot enter the directory that was asked for. */
const SYSTEM_DATA_ROOT = '/var/lib/foreshard';

/** In the directory that was asked for: says where the data is instead. */
const LOCATION_FILE = 'data-location';

/** A cluster on disk: `data` (PGDATA), `password`, and the configuration files beside them. */
export interface ClusterHome {
  readonly home: string;
  readonly data: string;
  /** The superuser's password. */
  readonly password: string;
  readonly runAs: RunAs | undefined;
}

/** What is needed to make a cluster. */
export interface InitOptions {
  readonly supervisor: Supervisor;
  readonly runAs: RunAs | undefined;
  findBinaries(runAs: RunAs | undefined): Promise<Binaries>;
  /** Receives one line when the data is not where one would look for it. */
  log(message: string): void;
  /** Whether what initdb writes must reach the disk. */
  readonly sync: boolean;
}

/**
 * Finds the cluster of a directory, or makes it. It appears in one step: an initdb that is interrupted leaves nothing, and of
 * two at the same time one wins and the other uses its result.
 * @throws {EmbeddedError} when the data cannot be used
 */
export async function openHome(dir: string, options: InitOptions): Promise<ClusterHome> {
  const existing = findHome(dir);
  const home = existing ?? (await makeHome(dir, options));
  const data = join(home, 'data');
  if (!existsSync(join(data, 'PG_VERSION'))) throw new EmbeddedError(`"${home}" holds no PostgreSQL cluster`);
  const runAs = userOf(data, options.runAs);
  checkReachable(home, runAs);
  const found = readFileSync(join(data, 'PG_VERSION'), 'utf8').trim();
  const { majorVersion } = await options.findBinaries(runAs);
  if (found !== String(majorVersion)) {
    throw new EmbeddedError(
      `the data in "${data}" was written by PostgreSQL ${found}, the server here is ${majorVersion}`,
      {
        hint: 'use another directory, or the version of Foreshard that made this one to copy the data out',
      },
    );
  }
  return { home, data, password: readFileSync(join(home, 'password'), 'utf8').trim(), runAs };
}

/** The directory that holds a persistent cluster; made when missing so that the server's user can pass through it. */
export function makeDirectory(dir: string): string {
  const path = resolve(dir);
  if (mkdirSync(path, { recursive: true }) !== undefined) chmodSync(path, 0o711);
  return realpathSync(path);
}

function findHome(dir: string): string | undefined {
  const location = join(dir, LOCATION_FILE);
  if (existsSync(location)) {
    const home = readFileSync(location, 'utf8').trim();
    if (existsSync(home)) return home;
    throw new EmbeddedError(`the data directory "${home}", named in "${location}", does not exist`, {
      hint: `bring it back, or remove "${location}" to start with an empty cluster`,
    });
  }
  const home = join(dir, 'cluster');
  return existsSync(home) ? home : undefined;
}

async function makeHome(dir: string, options: InitOptions): Promise<string> {
  const { supervisor, runAs } = options;
  if (runAs === undefined || canTraverse(dir, runAs)) {
    const staging = await initialise(dir, '.new-', options);
    const home = join(dir, 'cluster');
    try {
      renameSync(staging, home);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code !== 'ENOTEMPTY' && code !== 'EEXIST') throw error;
      // Somebody else has been faster.
      await supervisor.remove(staging);
      return home;
    }
    await supervisor.keep(staging);
    return home;
  }
  mkdirSync(SYSTEM_DATA_ROOT, { recursive: true });
  chmodSync(SYSTEM_DATA_ROOT, 0o711);
  const home = await initialise(SYSTEM_DATA_ROOT, 'cluster-', options);
  const location = join(dir, LOCATION_FILE);
  const written = `${location}.${randomBytes(6).toString('hex')}`;
  writeFileSync(written, `${home}\n`, { flag: 'wx' });
  try {
    linkSync(written, location);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    await supervisor.remove(home);
    return readFileSync(location, 'utf8').trim();
  } finally {
    unlinkSync(written);
  }
  await supervisor.keep(home);
  options.log(`user "${runAs.name}" cannot enter "${dir}": its data is in "${home}"`);
  return home;
}

/** Runs initdb in a new directory below `parent`, which is removed if we do not come to keep it. */
async function initialise(parent: string, prefix: string, options: InitOptions): Promise<string> {
  const { supervisor, runAs } = options;
  const { initdb } = await options.findBinaries(runAs);
  const staging = await supervisor.makeTemporary(parent, prefix, 0o711);
  const data = join(staging, 'data');
  const password = join(staging, 'password');
  const log = join(staging, 'initdb.log');
  mkdirSync(data, { mode: 0o700 });
  writeFileSync(password, `${randomBytes(24).toString('base64url')}\n`, { mode: 0o600 });
  if (runAs !== undefined) {
    chownSync(data, runAs.uid, runAs.gid);
    // Initdb must read it, and nobody afterwards but us.
    chownSync(password, runAs.uid, runAs.gid);
  }
  const args = ['-D', data, '--username=postgres', `--pwfile=${password}`, '--auth=scram-sha-256', '--locale=C'];
  args.push('--encoding=UTF8', '--no-instructions');
  if (!options.sync) args.push('--no-sync');
  try {
    const child = await supervisor.spawn({
      file: initdb,
      args,
      cwd: data,
      env: { LC_ALL: 'C', PATH: process.env.PATH ?? '' },
      ...(runAs === undefined ? {} : { uid: runAs.uid, gid: runAs.gid }),
      log,
      stopSignals: ['SIGTERM', 'SIGKILL'],
    });
    const { code, signal } = await child.wait();
    if (code !== 0) {
      throw new EmbeddedError(`initdb failed (${signal ?? `exit code ${code}`})`, {
        detail: readFileSync(log, 'utf8'),
      });
    }
  } catch (error) {
    await supervisor.remove(staging);
    throw describeSpawnError(error, runAs);
  }
  if (runAs !== undefined) chownSync(password, 0, 0);
  unlinkSync(log);
  return staging;
}

/** Data stays with the user who made it; root can become that user, others cannot. */
function userOf(data: string, runAs: RunAs | undefined): RunAs | undefined {
  const owner = ownerOf(data);
  if (runAs === undefined) {
    if (owner.uid === process.getuid?.()) return undefined;
    throw new EmbeddedError(`the data in "${data}" belongs to another user (${owner.name})`, {
      hint: 'start this as that user or as root, or use another directory',
    });
  }
  if (owner.uid === runAs.uid) return runAs;
  if (owner.uid !== 0) return owner;
  throw new EmbeddedError(`the data in "${data}" belongs to root, as which PostgreSQL does not run`, {
    hint: `give it to the user who shall run the server: chown -R ${runAs.name} "${data}"`,
  });
}

function checkReachable(home: string, runAs: RunAs | undefined): void {
  if (runAs === undefined || canTraverse(realpathSync(home), runAs)) return;
  throw new EmbeddedError(`user "${runAs.name}", as whom the server runs, cannot enter "${home}"`, {
    hint: 'a directory above it lacks the permission to pass through (x) for others',
  });
}

/**
 * The process that uses a data directory, if one does. A `postmaster.pid` that nobody stands behind any more is removed:
 * PostgreSQL itself does so only when its process id is free, and after a restart of a machine or container it often is not.
 */
export function findUser(data: string): number | undefined {
  const file = join(data, 'postmaster.pid');
  if (!existsSync(file)) return undefined;
  const pid = Number(readFileSync(file, 'utf8').split('\n')[0]);
  if (process.platform !== 'linux') return isAlive(pid) ? pid : undefined;
  const user = findProcessIn(data);
  if (user === undefined && isAlive(pid)) unlinkSync(file);
  return user;
}

/** Every process of a server has its data directory as working directory, an orphaned backend too. */
function findProcessIn(data: string): number | undefined {
  const path = realpathSync(data);
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      if (readlinkSync(`/proc/${entry}/cwd`) === path) return Number(entry);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // Gone in the meantime, or of another user, who could not use this data.
      if (code !== 'ENOENT' && code !== 'EACCES' && code !== 'EPERM' && code !== 'ESRCH') throw error;
    }
  }
  return undefined;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Whether the server with this process id says in its `postmaster.pid` that it accepts connections, as pg_ctl asks it. */
export function isReady(data: string, pid: number): boolean {
  const file = join(data, 'postmaster.pid');
  try {
    const lines = readFileSync(file, 'utf8').split('\n');
    return Number(lines[0]) === pid && lines[7]?.trim() === 'ready';
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Size of a file in bytes, 0 when it does not exist. */
export function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0;
}
