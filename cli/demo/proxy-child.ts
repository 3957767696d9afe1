import { ForeshardError } from '../../topology/errors.js';
import { Child, deferred } from './child.js';
import type { FromProxy, ProxySettings, ToProxy } from './proxy-process.js';

/** How long the proxy may take to let its clients go. */
const CLOSE_PATIENCE_MS = 7000;

/** The process that runs the proxy, seen from the demo. */
export class ProxyChild {
  readonly port: number;

  private constructor(
    private readonly child: Child<ToProxy, FromProxy>,
    port: number,
  ) {
    this.port = port;
  }

  /** Starts the process and waits until its proxy accepts connections. */
  static async start(settings: ProxySettings): Promise<ProxyChild> {
    const ready = deferred<void>();
    const listening = deferred<number>();
    const child = new Child<ToProxy, FromProxy>('proxy', 'proxy-process', (message) => {
      if (message.kind === 'ready') ready.resolve();
      else if (message.kind === 'listening') listening.resolve(message.port);
      else {
        const { message: text, hint } = message.failure;
        listening.reject(new ForeshardError('58000', text, hint === undefined ? {} : { hint }));
      }
    });
    try {
      await child.expect(ready.promise);
      child.tell({ kind: 'start', settings });
      return new ProxyChild(child, await child.expect(listening.promise));
    } catch (error) {
      await child.end(0);
      throw error;
    }
  }

  /** Lets the proxy's clients finish what is open, then ends the process. */
  async stop(): Promise<void> {
    this.child.tell({ kind: 'stop' });
    await this.child.end(CLOSE_PATIENCE_MS);
  }
}
