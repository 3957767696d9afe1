import { createServer, type Server, type Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';

/** Where clients connect. Port 0: any free one. */
export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** Accepts clients' sockets, paused. Whoever connects before `open` waits. */
export class Listener {
  readonly #server: Server;
  #early: Socket[] | null = [];
  #accept: (socket: Socket) => void = (socket) => this.#early?.push(socket);
  readonly #sockets = new Set<Socket>();

  /** @throws ForeshardError 58030 when it cannot listen there */
  static async start(address: ListenAddress): Promise<Listener> {
    const server = createServer({ pauseOnConnect: true, noDelay: true, keepAlive: true });
    const listener = new Listener(server);
    await listen(server, address);
    return listener;
  }

  private constructor(server: Server) {
    this.#server = server;
    server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
      this.#accept(socket);
    });
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Hands over every socket from now on, and those that came before. */
  open(accept: (socket: Socket) => void): void {
    this.#accept = accept;
    const early = this.#early ?? [];
    this.#early = null;
    for (const socket of early) accept(socket);
  }

  /** Lets nobody in any more. Resolves when the last socket is closed. */
  stop(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  /** Cuts every connection, logged in or not. */
  destroyAll(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}

function listen(server: Server, address: ListenAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException) => reject(listenError(error, address));
    server.once('error', failed);
    server.listen(address.port, address.host, () => {
      server.off('error', failed);
      resolve();
    });
  });
}

function listenError(error: NodeJS.ErrnoException, { host, port }: ListenAddress): ForeshardError {
  if (error.code === 'EADDRINUSE')
    return new ForeshardError('58030', `port ${port} on ${host} is taken`, {
      hint: 'Choose another with --port (0: any free one), or stop what listens there.',
      cause: error,
    });
  if (error.code === 'EACCES')
    return new ForeshardError('58030', `not allowed to listen on port ${port} of ${host}`, {
      hint: 'Choose a port above 1023 with --port.',
      cause: error,
    });
  return new ForeshardError('58030', `cannot listen on ${host}:${port}: ${error.message}`, {
    hint: 'Check proxy.listen.',
    cause: error,
  });
}
