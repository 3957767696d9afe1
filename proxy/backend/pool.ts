import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import { Backend } from './backend.js';
import type { ServerConnection } from './server-connection.js';

export interface PoolOptions {
  /** Server connections at most. */
  readonly size: number;
  /** An unused connection is closed after this time. */
  readonly idleTimeoutMs: number;
  /** A client that has waited this long for a connection gets 53300. */
  readonly queueTimeoutMs: number;
}

interface Waiter {
  readonly resolve: (backend: Backend) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** Server connections of one user to one shard. First come, first served; the connection used last is used first. */
export class Pool {
  readonly shard: ShardName;
  readonly user: string;
  #options: PoolOptions;
  readonly #connect: () => Promise<ServerConnection>;
  readonly #idle: Backend[] = [];
  readonly #all = new Set<Backend>();
  #connecting = 0;
  readonly #waiters: Waiter[] = [];
  #sweep: NodeJS.Timeout;
  #closed = false;

  constructor(shard: ShardName, user: string, options: PoolOptions, connect: () => Promise<ServerConnection>) {
    this.shard = shard;
    this.user = user;
    this.#options = options;
    this.#connect = connect;
    this.#sweep = this.#startSweep();
  }

  /** Connections beyond a smaller size are closed when they are given back. Who waits already waits as before. */
  reload(options: PoolOptions): void {
    this.#options = options;
    clearInterval(this.#sweep);
    if (this.#closed) return;
    this.#sweep = this.#startSweep();
    while (this.#all.size > options.size) {
      const backend = this.#idle.shift();
      if (backend === undefined) break;
      this.#forget(backend);
      backend.destroy();
    }
    this.#grow();
  }

  #startSweep(): NodeJS.Timeout {
    const sweep = setInterval(() => this.#closeIdle(), Math.max(250, this.#options.idleTimeoutMs / 2));
    sweep.unref();
    return sweep;
  }

  /** Connections open or being opened, those in use, and clients waiting. */
  get counts(): { open: number; inUse: number; waiting: number } {
    return { open: this.#all.size, inUse: this.#all.size - this.#idle.length, waiting: this.#waiters.length };
  }

  /**
   * A connection of one's own until `release`. Rejects with 53300 after the queue time-out, with what the server said when it
   * refuses the connection, and with the signal's reason when aborted.
   */
  acquire(signal: AbortSignal): Promise<Backend> {
    if (this.#closed) return Promise.reject(closedError());
    const backend = this.#idle.pop();
    if (backend) return Promise.resolve(backend);
    return new Promise((resolve, reject) => {
      const settle = () => {
        const i = this.#waiters.indexOf(waiter);
        if (i >= 0) this.#waiters.splice(i, 1);
        clearTimeout(waiter.timer);
        signal.removeEventListener('abort', onAbort);
      };
      const onAbort = () => waiter.reject(signal.reason as Error);
      const waiter: Waiter = {
        resolve: (b) => {
          settle();
          resolve(b);
        },
        reject: (e) => {
          settle();
          reject(e);
        },
        timer: setTimeout(() => waiter.reject(this.#queueTimeout()), this.#options.queueTimeoutMs),
      };
      if (signal.aborted) {
        clearTimeout(waiter.timer);
        reject(signal.reason as Error);
        return;
      }
      signal.addEventListener('abort', onAbort);
      this.#waiters.push(waiter);
      this.#grow();
    });
  }

  /** Gives a connection back; one that is not fit for the next client is closed. */
  release(backend: Backend): void {
    backend.detach();
    if (this.#closed || !backend.reusable || this.#all.size > this.#options.size) {
      this.discard(backend);
      return;
    }
    const waiter = this.#waiters[0];
    if (waiter) {
      waiter.resolve(backend);
      return;
    }
    backend.idleSince = performance.now();
    this.#idle.push(backend);
  }

  /** Closes a connection that is in use and makes room for another. */
  discard(backend: Backend): void {
    this.#forget(backend);
    backend.destroy();
    this.#grow();
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#sweep);
    for (const waiter of [...this.#waiters]) waiter.reject(closedError());
    for (const backend of this.#all) backend.destroy();
    this.#all.clear();
    this.#idle.length = 0;
  }

  #grow(): void {
    while (
      !this.#closed &&
      this.#waiters.length > this.#connecting &&
      this.#all.size + this.#connecting < this.#options.size
    ) {
      this.#connecting += 1;
      this.#connect().then(
        (connection) => this.#opened(connection),
        (error: Error) => {
          this.#connecting -= 1;
          // Whoever waits longest is told; the others try again with a connection attempt of their own.
          this.#waiters[0]?.reject(error);
          this.#grow();
        },
      );
    }
  }

  #opened(connection: ServerConnection): void {
    this.#connecting -= 1;
    if (this.#closed) {
      connection.destroy();
      return;
    }
    const backend = new Backend(this.shard, connection);
    backend.onIdleClose = () => this.#forget(backend);
    this.#all.add(backend);
    this.release(backend);
  }

  #forget(backend: Backend): void {
    this.#all.delete(backend);
    const i = this.#idle.indexOf(backend);
    if (i >= 0) this.#idle.splice(i, 1);
  }

  #closeIdle(): void {
    const limit = performance.now() - this.#options.idleTimeoutMs;
    for (const backend of [...this.#idle]) {
      if (backend.idleSince > limit) break;
      this.#forget(backend);
      backend.destroy();
    }
  }

  #queueTimeout(): ForeshardError {
    return new ForeshardError(
      '53300',
      `no free server connection on shard "${this.shard}" within ${this.#options.queueTimeoutMs} ms`,
      {
        hint: 'Raise proxy.pool.size, or look for sessions idle in a transaction.',
      },
    );
  }
}

function closedError(): ForeshardError {
  return new ForeshardError('57P01', 'the proxy is shutting down');
}
