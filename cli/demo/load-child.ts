import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { LoadProgress, LoadResult } from './load.js';
import type { LoadOptions } from './load-options.js';
import type { FromLoad, ToLoad } from './load-process.js';

/** The process that runs the load, seen from the demo. */
export class LoadChild {
  latest: LoadProgress = { statements: 0, reads: 0, writes: 0, errors: 0, perSecond: 0 };
  private readonly done: Promise<LoadResult>;

  private constructor(private readonly child: ChildProcess) {
    this.done = new Promise((resolve, reject) => {
      child.on('message', (message: FromLoad) => {
        if (message.kind === 'progress') this.latest = message.progress;
        else if (message.kind === 'done') resolve(message.result);
      });
      child.on('exit', (code, signal) =>
        reject(new Error(`the load's process ended by itself (${signal ?? `exit code ${code}`})`)),
      );
    });
    // Whoever stops the load learns of it; until then nobody waits for this promise.
    this.done.catch(() => undefined);
  }

  /** Starts the process and the load in it. */
  static async start(options: LoadOptions): Promise<LoadChild> {
    const child = fork(fileURLToPath(new URL('./load-process.js', import.meta.url)), {
      serialization: 'advanced',
      stdio: 'inherit',
    });
    const load = new LoadChild(child);
    await Promise.race([once(child, 'message'), load.done]);
    child.send({ kind: 'start', options } satisfies ToLoad);
    return load;
  }

  /** Lets every statement that was begun finish, and resolves with the figures. */
  async stop(): Promise<LoadResult> {
    if (this.child.connected) this.child.send({ kind: 'stop' } satisfies ToLoad);
    const result = await this.done;
    await this.kill();
    return result;
  }

  /** Ends the process, whatever it is doing. */
  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exited = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await exited;
  }
}
