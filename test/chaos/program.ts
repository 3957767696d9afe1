import { type ChildProcess, spawn } from 'node:child_process';
import { appendFileSync, closeSync, existsSync, openSync, readFileSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { alive, descendants } from '../cli/process-tree.js';
import { waitFor } from '../support/wait-for.js';

const ROOT = resolve(import.meta.dirname, import.meta.dirname.includes('/dist/') ? '../../..' : '../..');
/** The built product. */
const CLI = resolve(ROOT, 'dist/cli/main.js');

const START_MS = 90_000;

/** A `foreshard serve` of its own, with all its processes, to be killed, stopped and started again. */
export class Program {
  readonly name: string;
  readonly logFile: string;
  readonly #args: readonly string[];
  #child: ChildProcess | null = null;
  /** Everything that was ever started here, to be sure that it is gone. */
  readonly #pids = new Set<number>();
  /** Those whose end is ours, and no fault of the product's. */
  readonly #killed = new WeakSet<ChildProcess>();
  /** How it ended by itself. */
  readonly deaths: string[] = [];

  constructor(name: string, logFile: string, args: readonly string[]) {
    this.name = name;
    this.logFile = logFile;
    this.#args = args;
  }

  /** Starts it, as a supervisor does: again when it could not begin, because what it needs was away. */
  async start(): Promise<void> {
    const from = performance.now();
    while (!(await this.#try())) {
      if (performance.now() - from > START_MS) throw new Error(`${this.name} does not start: see ${this.logFile}`);
    }
    this.#note();
  }

  /** @returns whether it is ready, or was killed; false: it has ended */
  async #try(): Promise<boolean> {
    appendFileSync(this.logFile, '');
    const from = statSync(this.logFile).size;
    const log = openSync(this.logFile, 'a');
    const child = spawn(process.execPath, [CLI, ...this.#args], { stdio: ['ignore', log, log] });
    closeSync(log);
    this.#child = child;
    let isReady = false;
    child.once('exit', (code, signal) => {
      if (isReady && !this.#killed.has(child)) this.deaths.push(`${this.name} ended by itself: ${signal ?? code}`);
    });
    await waitFor(
      () =>
        this.#killed.has(child) ||
        child.exitCode !== null ||
        readFileSync(this.logFile).subarray(from).includes('"msg":"ready"'),
      { what: `${this.name} to be ready`, timeoutMs: START_MS },
    );
    isReady = child.exitCode === null;
    return isReady;
  }

  /** Its processes: the one that was started, and those behind it. */
  pids(): number[] {
    const pid = this.#child?.pid;
    return pid === undefined ? [] : running([pid, ...descendants(pid)]);
  }

  /** Sends a signal to all its processes. */
  signal(signal: NodeJS.Signals): void {
    this.#note();
    for (const pid of this.pids()) send(pid, signal);
  }

  /** Kills the processes behind the first one, which replaces them by itself. @returns false when there are none */
  killBehind(): boolean {
    const [, ...behind] = this.pids();
    this.#note();
    for (const pid of behind) send(pid, 'SIGKILL');
    return behind.length > 0;
  }

  /** kill -9, all of it. */
  async kill(): Promise<void> {
    if (this.#child !== null) this.#killed.add(this.#child);
    this.signal('SIGKILL');
    await waitFor(() => running([...this.#pids]).length === 0, {
      what: `${this.name} to be gone`,
      timeoutMs: START_MS,
    });
    this.#pids.clear();
  }

  /** Lines of its log from `level` on (50: errors), by how often their message came. */
  complaints(level: number): Map<string, number> {
    const found = new Map<string, number>();
    if (!existsSync(this.logFile)) return found;
    for (const line of readFileSync(this.logFile, 'utf8').split('\n')) {
      if (line === '') continue;
      // What is no line of the log is a stack trace or Node's own word: always told.
      const said = line.startsWith('{') ? (parse(line) ?? { level: 60, msg: line }) : { level: 60, msg: line };
      if (said.level >= level) found.set(said.msg, (found.get(said.msg) ?? 0) + 1);
    }
    return found;
  }

  #note(): void {
    for (const pid of this.pids()) this.#pids.add(pid);
  }
}

function parse(line: string): { level: number; msg: string } | null {
  try {
    return JSON.parse(line) as { level: number; msg: string };
  } catch (error) {
    if (error instanceof SyntaxError) return null; // killed in the middle of it
    throw error;
  }
}

/** Those that are not dead, be it that nobody has taken notice of it. */
export function running(pids: readonly number[]): number[] {
  return alive(pids).filter((pid) => {
    try {
      return !/^\d+ \(.*\) Z/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
    } catch (error) {
      // Gone since; or a system without /proc.
      return (error as NodeJS.ErrnoException).code !== 'ESRCH' && existsSync('/proc/self') === false;
    }
  });
}

/** A signal to a process that may have gone. */
export function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
