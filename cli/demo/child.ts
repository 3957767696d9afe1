import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/**
 * A process of our own that talks to us over a channel. It ends with that channel, so it never outlives us, however we die;
 * Ctrl-C, which reaches every process of the terminal, is left to us.
 */
export class Child<To extends object, From extends object> {
  private readonly process: ChildProcess;
  /** Rejects when the process ends. */
  private readonly ended: Promise<never>;

  /** @param module file beside this one, without its ending */
  constructor(what: string, module: string, onMessage: (message: From) => void) {
    this.process = fork(fileURLToPath(new URL(`./${module}.js`, import.meta.url)), {
      serialization: 'advanced',
      stdio: 'inherit',
    });
    this.process.on('message', onMessage);
    this.ended = new Promise((_, reject) => {
      this.process.on('exit', (code, signal) => {
        reject(new Error(`the process of the ${what} has ended (${signal ?? `exit code ${code}`})`));
      });
    });
    // Told to whoever waits for an answer; nobody else need care.
    this.ended.catch(() => undefined);
  }

  tell(message: To): void {
    if (this.process.connected) this.process.send(message);
  }

  /** `answer`, or the news that the process is gone. */
  async expect<T>(answer: Promise<T>): Promise<T> {
    return await Promise.race([answer, this.ended]);
  }

  /** Waits until the process has ended by itself, and ends it after `patienceMs`. */
  async end(patienceMs: number): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const exited = once(this.process, 'exit');
    const timer = setTimeout(() => this.process.kill('SIGKILL'), patienceMs);
    if (patienceMs === 0) this.process.kill('SIGKILL');
    await exited;
    clearTimeout(timer);
  }
}

/** A promise and what settles it. */
export function deferred<T>(): { readonly promise: Promise<T>; resolve(value: T): void; reject(error: Error): void } {
  let resolve = (_: T): void => undefined;
  let reject = (_: Error): void => undefined;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  promise.catch(() => undefined);
  return { promise, resolve, reject };
}
