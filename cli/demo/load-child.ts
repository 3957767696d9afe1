import { Child, deferred } from './child.js';
import type { LoadProgress, LoadResult } from './load.js';
import type { LoadOptions } from './load-options.js';
import type { FromLoad, ToLoad } from './load-process.js';

/** How long statements that were begun may take once the load is told to stop. */
const STOP_PATIENCE_MS = 60_000;

/** The process that runs the load, seen from the demo. */
export class LoadChild {
  latest: LoadProgress = { statements: 0, reads: 0, writes: 0, errors: 0, perSecond: 0 };
  private readonly ready = deferred<void>();
  private readonly done = deferred<LoadResult>();
  private readonly child: Child<ToLoad, FromLoad>;

  private constructor() {
    this.child = new Child('load', 'load-process', (message) => {
      if (message.kind === 'ready') this.ready.resolve();
      else if (message.kind === 'progress') this.latest = message.progress;
      else this.done.resolve(message.result);
    });
  }

  /** Starts the process and the load in it. */
  static async start(options: LoadOptions): Promise<LoadChild> {
    const load = new LoadChild();
    await load.child.expect(load.ready.promise);
    load.child.tell({ kind: 'start', options });
    return load;
  }

  /** Lets every statement that was begun finish, and resolves with the figures. */
  async stop(): Promise<LoadResult> {
    const patience = setTimeout(
      () => this.done.reject(new Error('the load did not stop: a statement hangs')),
      STOP_PATIENCE_MS,
    );
    this.child.tell({ kind: 'stop' });
    try {
      return await this.child.expect(this.done.promise);
    } finally {
      clearTimeout(patience);
    }
  }

  /** Ends the process, whatever it is doing. */
  async kill(): Promise<void> {
    await this.child.end(0);
  }
}
