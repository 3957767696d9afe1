import { once } from 'node:events';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** How a connection is broken: at once for both sides, or only from the server to the client. */
export type Cut = 'reset' | 'half-close';

interface Pair {
  readonly client: Socket;
  readonly server: Socket;
}

/** A network between two programs that can be slow, silent, or cut: TCP in, TCP out. */
export class Relay {
  readonly port: number;
  readonly #server: Server;
  readonly #pairs = new Set<Pair>();
  #delayMs = 0;
  #refuses = false;
  /** While nothing gets through. */
  #stalled: { readonly over: Promise<void>; readonly end: () => void } | null = null;

  private constructor(server: Server, target: number) {
    this.#server = server;
    this.port = (server.address() as { port: number }).port;
    server.on('connection', (client) => this.#connect(client, target));
  }

  /** @param target port on 127.0.0.1 */
  static async start(target: number): Promise<Relay> {
    const server = createServer({ allowHalfOpen: true });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new Relay(server, target);
  }

  /** Each piece of data takes so much longer, in both directions; 0: none. */
  slow(delayMs: number): void {
    this.#delayMs = delayMs;
  }

  /** Nothing gets through any more, and nobody is told. */
  stall(): void {
    if (this.#stalled !== null) return;
    let end = (): void => undefined;
    const over = new Promise<void>((resolve) => {
      end = resolve;
    });
    this.#stalled = { over, end };
  }

  /** Ends `stall`: what was sent meanwhile arrives. */
  resume(): void {
    this.#stalled?.end();
    this.#stalled = null;
  }

  /** Breaks all connections that there are. */
  cut(how: Cut): void {
    for (const { client, server } of this.#pairs) {
      if (how === 'half-close') client.end();
      else {
        client.resetAndDestroy();
        server.resetAndDestroy();
      }
    }
  }

  /** Whether new connections are refused. */
  refuse(refuses: boolean): void {
    this.#refuses = refuses;
  }

  /** As if nothing had ever happened; what is broken stays so. */
  heal(): void {
    this.slow(0);
    this.refuse(false);
    this.resume();
  }

  async close(): Promise<void> {
    this.heal();
    this.cut('reset');
    this.#server.close();
    await once(this.#server, 'close');
  }

  #connect(client: Socket, target: number): void {
    if (this.#refuses) {
      client.resetAndDestroy();
      return;
    }
    const server = createConnection({ port: target, host: '127.0.0.1', allowHalfOpen: true });
    const pair = { client, server };
    this.#pairs.add(pair);
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      from.setNoDelay(true);
      // Its end is told to the other side by the pump, or below.
      from.on('error', () => undefined);
      from.once('close', (failed) => {
        this.#pairs.delete(pair);
        if (failed) to.resetAndDestroy();
        else if (!to.destroyed) to.end();
      });
      void this.#pump(from, to);
    }
  }

  async #pump(from: Socket, to: Socket): Promise<void> {
    try {
      for await (const data of from.iterator({ destroyOnReturn: false })) {
        if (this.#delayMs > 0) await delay(this.#delayMs);
        // What it waits for may be followed by another such time.
        while (this.#stalled !== null) await this.#stalled.over;
        if (to.destroyed) return;
        if (!to.write(data as Buffer)) await Promise.race([once(to, 'drain'), once(to, 'close')]);
      }
      while (this.#stalled !== null) await this.#stalled.over;
      if (!to.destroyed) to.end();
    } catch {
      // Either side was broken; its `close` has told the other one.
    }
  }
}
