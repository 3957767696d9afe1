import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

/** A PostgreSQL installation of this machine, with the programs that npm does not bring: psql, pgbench, pg_dump. */
export interface Tools {
  readonly binDir: string;
  readonly majorVersion: number;
}

const WANTED = ['psql', 'pgbench', 'pg_dump', 'pg_restore', 'initdb', 'postgres'];

/** The newest installation that has all of them; null, with the reason printed, when there is none. */
export function findTools(): Tools | null {
  const candidates = ['/usr/lib/postgresql', '/usr/local/pgsql', '/opt/homebrew/opt'].flatMap((base) =>
    existsSync(base)
      ? ['bin', ...readdirSync(base).map((version) => join(version, 'bin'))].map((d) => join(base, d))
      : [],
  );
  const found = candidates
    .filter((dir) => WANTED.every((name) => existsSync(join(dir, name))))
    .map((binDir) => ({ binDir, majorVersion: versionOf(join(binDir, 'psql')) }))
    .sort((a, b) => b.majorVersion - a.majorVersion)[0];
  if (found !== undefined) return found;
  process.stderr.write(
    `skipped: no PostgreSQL installation with ${WANTED.join(', ')} found (Debian: apt-get install postgresql)\n`,
  );
  return null;
}

function versionOf(psql: string): number {
  return Number(/(\d+)/.exec(spawnSync(psql, ['--version'], { encoding: 'utf8' }).stdout)?.[1] ?? 0);
}

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end. Nothing of our environment but the path reaches it, and no configuration file of a user. */
export function run(
  file: string,
  args: readonly string[],
  options: { readonly input?: string; readonly env?: Readonly<Record<string, string>> } = {},
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, {
      env: { PATH: process.env.PATH ?? '', HOME: '/nonexistent', LC_ALL: 'C.UTF-8', TZ: 'UTC', ...options.env },
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
    child.on('error', reject);
    child.on('close', (code) =>
      resolve({ code, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() }),
    );
    // A program that ends early does not read all of it.
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input ?? '');
  });
}
