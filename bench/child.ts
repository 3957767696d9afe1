import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/** A process of a benchmark that answers each message with one; `{ failed }` says why it cannot. */
export class Child {
  readonly #child: ChildProcess;
  #settle: { readonly resolve: (answer: unknown) => void; readonly reject: (error: Error) => void } | null = null;

  /** @param program its module, as `import.meta.url` says it */
  constructor(program: string, ...args: string[]) {
    this.#child = fork(fileURLToPath(program), args);
    this.#child.on('message', (answer) => this.#settle?.resolve(answer));
    this.#child.on('exit', () => this.#settle?.reject(new Error('a process of the benchmark has ended')));
  }

  /** What it says next. */
  async next<T>(): Promise<T> {
    const answer = await new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    const { failed } = answer as { readonly failed?: string };
    if (failed !== undefined) throw new Error(failed);
    return answer as T;
  }

  ask<T>(what: object | string): Promise<T> {
    const answer = this.next<T>();
    this.#child.send(what);
    return answer;
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const gone = once(this.#child, 'exit');
    this.#child.kill();
    await gone;
  }
}
