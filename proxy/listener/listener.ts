import { lookup } from 'node:dns/promises';
import { createServer, isIP, type Server, type Socket } from 'node:net';
import { ForeshardError } from '../../topology/errors.js';
import { SocketFile } from './socket-file.js';

/** Something that another process has bound: a server handed over by the parent process, or a file descriptor. */
type ListenHandle = Server | { readonly fd: number };

/** Where clients connect. */
export interface ListenOptions {
  /** Addresses or names; a name stands for all of its addresses, `*` for every interface, IPv6 included. */
  readonly host: string | readonly string[];
  /** 0: any free one. */
  readonly port: number;
  /** Where the Unix socket `.s.PGSQL.PORT` is made; not set: none. */
  readonly socketDirectory?: string | undefined;
  /** Permissions of the socket. Default: 0777, as in PostgreSQL. */
  readonly socketMode?: number | undefined;
  /** Name or number of the group that owns the socket. Default: the process's own. */
  readonly socketGroup?: string | undefined;
  /** Idle time after which the kernel begins to probe a client over TCP; 0: never. Default: 60. */
  readonly tcpKeepAliveSeconds?: number | undefined;
  /** Already listened on elsewhere: connections are accepted from these, and nothing else is bound. */
  readonly handles?: readonly ListenHandle[] | undefined;
}

/** A client's connection as it was accepted. */
export interface Accepted {
  /** Paused, and nothing of it has been read. */
  readonly socket: Socket;
  readonly kind: 'tcp' | 'unix';
}

const DEFAULT_KEEP_ALIVE_SECONDS = 60;
const DEFAULT_SOCKET_MODE = 0o777;
/** How often other ports are tried when a free one on the first address is taken on another. */
const PORT_ATTEMPTS = 10;

/** Accepts clients' sockets, paused. Whoever connects before `open` waits. */
export class Listener {
  /** None: another process listens, and hands sockets over. */
  readonly #servers: readonly Server[];
  readonly #options: ListenOptions;
  readonly #file: SocketFile | null;
  #early: Accepted[] | null = [];
  #accept: (accepted: Accepted) => void = (accepted) => this.#early?.push(accepted);
  readonly #sockets = new Set<Socket>();

  /** @throws ForeshardError 58030 when it cannot listen there */
  static async start(options: ListenOptions): Promise<Listener> {
    const keepAliveMs = keepAliveMsOf(options);
    const make = () =>
      createServer({
        pauseOnConnect: true,
        noDelay: true,
        keepAlive: keepAliveMs > 0,
        keepAliveInitialDelay: keepAliveMs,
      });
    if (options.handles !== undefined && options.handles.length > 0) {
      const servers: Server[] = [];
      for (const handle of options.handles) servers.push(await listen(make(), handle, 'the inherited socket'));
      return new Listener(options, servers, null);
    }
    const servers = await listenOnAll(options, make);
    if (options.socketDirectory === undefined) return new Listener(options, servers, null);
    try {
      const file = SocketFile.claim({
        directory: options.socketDirectory,
        port: portOf(servers),
        mode: options.socketMode ?? DEFAULT_SOCKET_MODE,
        group: options.socketGroup ?? null,
      });
      try {
        servers.push(await listen(make(), { path: file.bindPath }, file.path));
        file.publish();
      } catch (error) {
        file.release();
        throw error;
      }
      return new Listener(options, servers, file);
    } catch (error) {
      for (const server of servers) server.close();
      throw error;
    }
  }

  /** For a process that is given its sockets, by `take`, by the one that listens with these options. */
  static handedOver(options: ListenOptions): Listener {
    return new Listener(options, [], null);
  }

  private constructor(options: ListenOptions, servers: readonly Server[], file: SocketFile | null) {
    this.#options = options;
    this.#servers = servers;
    this.#file = file;
    for (const server of servers) {
      const kind = typeof server.address() === 'string' ? 'unix' : 'tcp';
      server.on('connection', (socket) => this.#add({ socket, kind }));
    }
  }

  /** Port of the first TCP address. */
  get port(): number {
    return this.#servers.length === 0 ? this.#options.port : portOf(this.#servers);
  }

  /** Sockets that are open, logged in or not. */
  get size(): number {
    return this.#sockets.size;
  }

  /** A client's socket that another process has accepted. */
  take(socket: Socket): void {
    // The end at our side has an address as long as the socket is open, unlike that of a client which has gone.
    const kind = socket.localAddress === undefined ? 'unix' : 'tcp';
    if (kind === 'tcp') {
      const keepAliveMs = keepAliveMsOf(this.#options);
      socket.setNoDelay(true);
      socket.setKeepAlive(keepAliveMs > 0, keepAliveMs);
    }
    this.#add({ socket, kind });
  }

  #add(accepted: Accepted): void {
    const { socket } = accepted;
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    this.#accept(accepted);
  }

  /** Where it listens: `address:port`, and the path of the Unix socket. */
  get addresses(): string[] {
    const { host, port } = this.#options;
    if (this.#servers.length === 0) return (typeof host === 'string' ? [host] : host).map((one) => `${one}:${port}`);
    return this.#servers.map((server) => {
      const address = server.address();
      if (address === null || typeof address === 'string') return this.#file?.path ?? address ?? 'closed';
      return address.family === 'IPv6' ? `[${address.address}]:${address.port}` : `${address.address}:${address.port}`;
    });
  }

  /** Hands over every socket from now on, and those that came before. */
  open(accept: (accepted: Accepted) => void): void {
    this.#accept = accept;
    const early = this.#early ?? [];
    this.#early = null;
    for (const accepted of early) accept(accepted);
  }

  /** Lets nobody in any more; those who are in go on. Resolves when the last socket is closed. */
  async stop(): Promise<void> {
    this.#file?.release();
    await Promise.all(
      this.#servers.map(
        (server) =>
          new Promise<void>((resolve) => {
            server.close(() => resolve());
          }),
      ),
    );
  }

  /** Cuts every connection, logged in or not. */
  destroyAll(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}

function keepAliveMsOf({ tcpKeepAliveSeconds = DEFAULT_KEEP_ALIVE_SECONDS }: ListenOptions): number {
  return tcpKeepAliveSeconds * 1000;
}

function portOf(servers: readonly Server[]): number {
  for (const server of servers) {
    const address = server.address();
    if (address !== null && typeof address === 'object') return address.port;
  }
  return 0;
}

/** Listens on every address that is asked for, all with the same port. */
async function listenOnAll(options: ListenOptions, make: () => Server): Promise<Server[]> {
  const hosts = [...new Set(typeof options.host === 'string' ? [options.host] : options.host)];
  for (let attempt = 1; ; attempt++) {
    const servers: Server[] = [];
    try {
      for (const host of hosts)
        servers.push(...(await listenOnHost(host, servers.length > 0 ? portOf(servers) : options.port, make)));
      return servers;
    } catch (error) {
      for (const server of servers) server.close();
      const taken =
        error instanceof ForeshardError && (error.cause as NodeJS.ErrnoException | undefined)?.code === 'EADDRINUSE';
      if (options.port !== 0 || servers.length === 0 || !taken || attempt === PORT_ATTEMPTS) throw error;
    }
  }
}

async function listenOnHost(host: string, port: number, make: () => Server): Promise<Server[]> {
  // Node without an address: `::` for IPv6 and IPv4 together, `0.0.0.0` where there is no IPv6.
  if (host === '*') return [await listen(make(), { port }, `port ${port} of every interface`)];
  const addresses = isIP(host) ? [host] : (await resolveName(host)).map(({ address }) => address);
  const servers: Server[] = [];
  let failure: unknown = null;
  for (const address of addresses)
    try {
      servers.push(
        await listen(
          make(),
          { port: servers.length > 0 ? portOf(servers) : port, host: address },
          `port ${port} on ${address}`,
        ),
      );
    } catch (error) {
      // As in PostgreSQL one address of a name is enough: `localhost` may well have an IPv6 address that this machine has not.
      if (!isAbsent(error)) {
        for (const server of servers) server.close();
        throw error;
      }
      failure ??= error;
    }
  if (servers.length === 0) throw failure;
  return servers;
}

const isAbsent = (error: unknown): boolean =>
  ['EADDRNOTAVAIL', 'EAFNOSUPPORT'].includes(
    ((error as ForeshardError).cause as NodeJS.ErrnoException | undefined)?.code ?? '',
  );

async function resolveName(host: string): Promise<{ address: string }[]> {
  try {
    return await lookup(host, { all: true, verbatim: true });
  } catch (error) {
    throw new ForeshardError('58030', `could not translate host name "${host}" to an address`, {
      hint: 'Check proxy.listen.host.',
      cause: error,
    });
  }
}

function listen(
  server: Server,
  where: ListenHandle | { readonly path: string } | { readonly port: number; readonly host?: string },
  what: string,
): Promise<Server> {
  return new Promise((resolve, reject) => {
    const failed = (error: NodeJS.ErrnoException) => reject(listenError(error, what));
    server.once('error', failed);
    server.listen(where, () => {
      server.off('error', failed);
      resolve(server);
    });
  });
}

function listenError(error: NodeJS.ErrnoException, what: string): ForeshardError {
  if (error.code === 'EADDRINUSE')
    return new ForeshardError('58030', `${what} is taken`, {
      hint: 'Choose another with --port (0: any free one), or stop what listens there.',
      cause: error,
    });
  if (error.code === 'EACCES')
    return new ForeshardError('58030', `not allowed to listen on ${what}`, {
      hint: 'Choose a port above 1023 with --port.',
      cause: error,
    });
  return new ForeshardError('58030', `cannot listen on ${what}: ${error.message}`, {
    hint: 'Check proxy.listen.',
    cause: error,
  });
}
