import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { EmbeddedError } from './embedded-error.js';

/** What to run, and as whom. */
export interface SpawnOptions {
  readonly file: string;
  readonly args: readonly string[];
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  /** Numeric user and group; only root may set them. */
  readonly uid?: number;
  readonly gid?: number;
  /** File to which standard output and standard error are appended. */
  readonly log: string;
  /** The signals that end it when the owner has died, the gentlest first. */
  readonly stopSignals: readonly NodeJS.Signals[];
}

/** How a process ended. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A process that the supervisor holds. */
export interface HeldProcess {
  readonly pid: number;
  /** How it ended; undefined while it runs. */
  readonly exit: Exit | undefined;
  signal(signal: NodeJS.Signals): Promise<void>;
  /** Resolves when the process has ended. */
  wait(): Promise<Exit>;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

interface Held {
  pid: number | undefined;
  exit: Exit | undefined;
  resolve(): void;
}

interface Answer {
  readonly id?: number;
  readonly ok?: unknown;
  readonly error?: { readonly code?: string; readonly message: string };
  readonly exit?: number;
  readonly code?: number | null;
  readonly signal?: NodeJS.Signals | null;
}

/**
 * Our end of the pipe to `supervisor.mjs`, which holds servers and temporary directories and outlives us by as long as it
 * takes to clean up. It does not keep our event loop alive, except while an answer is awaited.
 */
export class Supervisor {
  static #shared: Supervisor | undefined;

  readonly #child: ChildProcess;
  readonly #pending = new Map<number, Pending>();
  readonly #held = new Map<number, Held>();
  readonly #temporary = new Set<string>();
  #nextId = 1;
  #awaited = 0;
  #lost: Error | undefined;

  /** The one supervisor of this process, started when first needed. */
  static shared(): Supervisor {
    if (Supervisor.#shared === undefined || Supervisor.#shared.#lost !== undefined)
      Supervisor.#shared = new Supervisor();
    return Supervisor.#shared;
  }

  /** Ends the supervisor of this process, if there is one, and waits until it has cleaned up: servers, copies, directories. */
  static async end(): Promise<void> {
    const supervisor = Supervisor.#shared;
    Supervisor.#shared = undefined;
    if (supervisor === undefined || supervisor.#lost !== undefined) return;
    const gone = once(supervisor.#child, 'exit');
    supervisor.#child.ref();
    supervisor.#child.stdin?.end();
    await gone;
  }

  private constructor() {
    this.#child = spawn(process.execPath, [fileURLToPath(new URL('./supervisor.mjs', import.meta.url))], {
      // A session of its own, and nothing of ours held open: not our terminal, not our standard error, not our directory.
      detached: true,
      cwd: '/',
      stdio: ['pipe', 'pipe', 'ignore'],
      env: process.env.PATH === undefined ? {} : { PATH: process.env.PATH },
    });
    this.#child.once('error', (error) => this.#lose(error));
    this.#child.once('exit', () => this.#lose(new EmbeddedError('the supervisor of the embedded servers has died')));
    // A write to a supervisor that has just died fails; its exit, which follows, is what we report.
    this.#child.stdin?.on('error', () => this.#child.kill('SIGTERM'));
    if (this.#child.stdout !== null) {
      createInterface({ input: this.#child.stdout }).on('line', (line) => this.#receive(JSON.parse(line) as Answer));
    }
    this.#child.unref();
    this.#setRef(false);
  }

  /**
   * Starts a process.
   * @throws {Error} with the `code` of the system's error when it cannot be started
   */
  async spawn(options: SpawnOptions): Promise<HeldProcess> {
    const handle = this.#nextId++;
    let resolve = (): void => undefined;
    const ended = new Promise<void>((done) => {
      resolve = done;
    });
    // Known before it is asked for: its exit may be told in the same breath as its start.
    const held: Held = { pid: undefined, exit: undefined, resolve };
    this.#held.set(handle, held);
    try {
      held.pid = (await this.#ask('spawn', { handle, ...options })) as number;
    } catch (error) {
      this.#held.delete(handle);
      throw error;
    }
    return {
      pid: held.pid,
      get exit() {
        return held.exit;
      },
      signal: async (signal) => {
        if (held.exit === undefined) await this.#ask('signal', { handle, signal });
      },
      wait: async () => {
        await this.#awaiting(ended);
        return held.exit ?? { code: null, signal: null };
      },
    };
  }

  /** Makes a directory that is removed when we end, however we end; `mode` is its permission bits. */
  async makeTemporary(base: string, prefix: string, mode: number): Promise<string> {
    const dir = (await this.#ask('mkdtemp', { base, prefix, mode })) as string;
    this.#temporary.add(dir);
    return dir;
  }

  /** Removes a directory now. */
  async remove(dir: string): Promise<void> {
    if (this.#lost === undefined) await this.#ask('remove', { dir });
    else removeTree(dir);
    this.#temporary.delete(dir);
  }

  /** A temporary directory becomes permanent (it has been renamed, or somebody else's). */
  async keep(dir: string): Promise<void> {
    await this.#ask('keep', { dir });
    this.#temporary.delete(dir);
  }

  #ask(op: string, request: Record<string, unknown>): Promise<unknown> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    const id = this.#nextId++;
    return this.#awaiting(
      new Promise((resolve, reject) => {
        this.#pending.set(id, { resolve, reject });
        this.#child.stdin?.write(`${JSON.stringify({ ...request, op, id })}\n`);
      }),
    );
  }

  #receive(answer: Answer): void {
    if (answer.exit !== undefined) {
      const held = this.#held.get(answer.exit);
      this.#held.delete(answer.exit);
      if (held !== undefined) {
        held.exit = { code: answer.code ?? null, signal: answer.signal ?? null };
        held.resolve();
      }
    }
    if (answer.id === undefined) return;
    const pending = this.#pending.get(answer.id);
    this.#pending.delete(answer.id);
    if (answer.error === undefined) pending?.resolve(answer.ok);
    else pending?.reject(Object.assign(new Error(answer.error.message), { code: answer.error.code }));
  }

  /** The supervisor died before us, which only a kill from outside does: nobody else is left to clean up. */
  #lose(error: Error): void {
    if (this.#lost !== undefined) return;
    this.#lost = error;
    for (const held of this.#held.values()) {
      if (held.pid !== undefined) quit(held.pid);
      held.exit = { code: null, signal: 'SIGQUIT' };
      held.resolve();
    }
    this.#held.clear();
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
    for (const dir of this.#temporary) removeTree(dir);
  }

  async #awaiting<T>(promise: Promise<T>): Promise<T> {
    if (this.#awaited++ === 0) this.#setRef(true);
    try {
      return await promise;
    } finally {
      if (--this.#awaited === 0) this.#setRef(false);
    }
  }

  #setRef(on: boolean): void {
    // The pipes of a child process are sockets, which the types of ChildProcess do not say.
    for (const pipe of [this.#child.stdin, this.#child.stdout] as (Socket | null)[]) {
      if (on) pipe?.ref();
      else pipe?.unref();
    }
  }
}

function removeTree(dir: string): void {
  rmSync(dir, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
}

function quit(pid: number): void {
  try {
    process.kill(pid, 'SIGQUIT');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
