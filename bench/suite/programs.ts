import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, readdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';

/** Where programs are that are not on everybody's PATH. */
const FOLDERS = ['/usr/sbin', '/usr/local/sbin', '/usr/local/bin', '/opt/homebrew/bin'];

/**
 * The path of a program, or null: what the environment variable FORESHARD_BENCH_<NAME> says, the PATH, and the places where
 * systems put servers and PostgreSQL's programs (its newest version).
 */
export function findProgram(name: string): string | null {
  const told = process.env[`FORESHARD_BENCH_${name.toUpperCase().replaceAll('-', '_')}`];
  if (told !== undefined) return told === '' ? null : told;
  const debian = '/usr/lib/postgresql';
  const versions = existsSync(debian) ? readdirSync(debian).sort((a, b) => Number(b) - Number(a)) : [];
  const folders = [
    ...versions.map((version) => join(debian, version, 'bin')),
    ...(process.env.PATH ?? '').split(delimiter),
    ...FOLDERS,
  ];
  for (const folder of folders) {
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      return file;
    } catch {
      // Not there, or not for us: the next one.
    }
  }
  return null;
}

/** The first version number that a program prints when it is asked for it; "unknown" when it prints none. */
export function versionOf(file: string, args: readonly string[] = ['--version']): string {
  const { stdout, stderr } = spawnSync(file, [...args], { encoding: 'utf8' });
  return /\d+(?:\.\d+)+/.exec(`${stdout ?? ''}${stderr ?? ''}`)?.[0] ?? 'unknown';
}

/** Whether a version is at least another, number by number. */
export function isAtLeast(version: string, least: string): boolean {
  const [have, want] = [version, least].map((text) => text.split('.').map(Number));
  for (const [i, number] of (want as number[]).entries()) {
    const ours = (have as number[])[i] ?? 0;
    if (ours !== number) return ours > number;
  }
  return true;
}

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Programs that run at the moment: they end with us. */
const running = new Set<ReturnType<typeof spawn>>();

/** Runs a program to its end. Nothing of our environment but the path reaches it. */
export function run(
  file: string,
  args: readonly string[],
  options: { readonly cwd: string; readonly env?: Readonly<Record<string, string>> },
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, [...args], {
      cwd: options.cwd,
      env: { PATH: process.env.PATH ?? '', HOME: '/nonexistent', LC_ALL: 'C', ...options.env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    running.add(child);
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout?.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr?.on('data', (chunk: Buffer) => err.push(chunk));
    child.on('error', reject);
    child.on('close', (code) => {
      running.delete(child);
      resolve({ code, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() });
    });
  });
}

/** Ends what `run` has started. */
export function stopRunning(): void {
  for (const child of running) child.kill('SIGKILL');
}
