import { createServer, type Server, type Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';

/** Where clients connect. Port 0: any free one. */
export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** Accepts clients' sockets, paused. Whoever connects before `open` waits. */
export class Listener {
  /** Null: another process listens, and hands sockets over. */
  readonly #server: Server | null;
  readonly #address: ListenAddress;
  #early: Socket[] | null = [];
  #accept: (socket: Socket) => void = (socket) => this.#early?.push(socket);
  readonly #sockets = new Set<Socket>();

  /** @throws ForeshardError 58030 when it cannot listen there */
  static async start(address: ListenAddress): Promise<Listener> {
    const server = createServer({ pauseOnConnect: true, noDelay: true, keepAlive: true });
    const listener = new Listener(server, address);
    await listen(server, address);
    return listener;
  }

  /** For a process that is given its sockets, by `take`, by the one that listens at `address`. */
  static handedOver(address: ListenAddress): Listener {
    return new Listener(null, address);
  }

  private constructor(server: Server | null, address: ListenAddress) {
    this.#server = server;
    this.#address = address;
    server?.on('connection', (socket) => this.#add(socket));
  }

  get port(): number {
    return this.#server === null ? this.#address.port : (this.#server.address() as { port: number }).port;
  }

  /** Sockets that are open, logged in or not. */
  get size(): number {
    return this.#sockets.size;
  }

  /** A client's socket that another process has accepted. */
  take(socket: Socket): void {
    socket.setNoDelay(true);
    socket.setKeepAlive(true);
    this.#add(socket);
  }

  #add(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    this.#accept(socket);
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
      if (this.#server === null) resolve();
      else this.#server.close(() => resolve());
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
