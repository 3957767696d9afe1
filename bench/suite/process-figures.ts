import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';

/** What Linux tells of processes in /proc; elsewhere nothing is known, and figures are null. */
const KNOWN = existsSync('/proc/self/stat');

let ticks: number | undefined;

function ticksPerSecond(): number {
  ticks ??= Number(spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }).stdout) || 100;
  return ticks;
}

/** Fields of /proc/PID/stat from the third (state) on; null when the process has gone. */
function stat(pid: number | string): string[] | null {
  const text = readProc(`/proc/${pid}/stat`);
  // The command's name, in parentheses, may itself hold parentheses and blanks.
  return text === null ? null : text.replace(/^.*\) /s, '').split(' ');
}

function readProc(file: string): string | null {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) return null;
    throw error;
  }
}

/** A process and all below it. */
export function processTree(pid: number): number[] {
  if (!KNOWN) return [pid];
  const parents = new Map<number, number>();
  for (const name of readdirSync('/proc'))
    if (/^\d+$/.test(name)) parents.set(Number(name), Number(stat(name)?.[1] ?? 0));
  const tree = [pid];
  for (let i = 0; i < tree.length; i++) for (const [child, parent] of parents) if (parent === tree[i]) tree.push(child);
  return tree;
}

/** Processor time that these processes have taken so far, those included that they have waited for, in µs; null when it is not known. */
export function cpuUs(pids: readonly number[]): number | null {
  if (!KNOWN) return null;
  let sum = 0;
  for (const pid of pids) {
    // utime, stime, cutime, cstime: fields 14 to 17 of proc(5).
    const fields = stat(pid);
    if (fields !== null) for (let field = 14; field <= 17; field++) sum += Number(fields[field - 3]);
  }
  return (sum / ticksPerSecond()) * 1e6;
}

/** Proportional set size of these processes, in bytes: memory that several of them share counts once. Null when it is not known. */
export function memoryBytes(pids: readonly number[]): number | null {
  if (!KNOWN) return null;
  let sum = 0;
  for (const pid of pids) {
    const text = readProc(`/proc/${pid}/smaps_rollup`);
    const kib = /^Pss:\s+(\d+) kB/m.exec(text ?? '')?.[1];
    if (kib === undefined) return null;
    sum += Number(kib) * 1024;
  }
  return sum;
}
