import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { ForeshardError } from '../topology/errors.js';
import type { ShardName } from '../topology/topology.js';
import type { AuthenticatedClient } from './auth/authenticate.js';
import { sendCancelRequest } from './backend/cancel-request.js';
import { withServerPath } from './backend/server-address.js';
import { type ServerSession, serverHandshake } from './backend/server-handshake.js';
import { type CancelKey, type Clients, type Peer, sameSecret } from './clients.js';
import type { LiveTopology } from './live-topology.js';
import type { Pools } from './pools.js';
import { encodeBackendKeyData, encodeParameterStatus, encodeReadyForQuery } from './wire/backend.js';
import type { HandshakeReader } from './wire/handshake-reader.js';
import { tlsInfo } from './wire/tls-info.js';

/** A replication client and the server connection that is its own. */
export interface Stream {
  readonly key: CancelKey;
  readonly kind: 'physical' | 'logical';
  readonly user: string;
  /** Of a logical one; a physical one belongs to none. */
  readonly database: string | null;
  readonly applicationName: string;
  /** Agreed version: major in the high 16 bits. */
  readonly protocol: number;
  readonly peer: Peer;
  readonly shard: ShardName;
  readonly server: {
    readonly host: string;
    readonly port: number;
    readonly database: string;
    readonly processId: number;
    readonly localAddress: string;
    readonly localPort: number;
    readonly tls: string;
  };
  /** ms since 1970. */
  readonly connectedAt: number;
  /** From and to the client. */
  readonly bytes: { readonly received: number; readonly sent: number };
  /** Nothing of it is ever half done in the proxy. */
  readonly idle: true;
  /** Passes a cancel request on. */
  cancel(): Promise<void>;
  /** Cuts both ends: what streams has no place for last words. */
  close(reason?: unknown): void;
}

export interface ReplicationOptions {
  readonly live: LiveTopology;
  readonly pools: Pools;
  readonly clients: Clients;
  /** How long one that comes in a PAUSE waits for its end. */
  readonly queueTimeoutMs: () => number;
  readonly logger: Logger;
}

/** How often one that waits for the end of a PAUSE looks. */
const LOOK_EVERY_MS = 50;

/**
 * Replication clients (pg_basebackup, pg_receivewal, logical decoding): each is given a connection to the server for as long as it
 * stays, and every byte goes through unread. What they ask for is a server's, not a database's: there must be one shard only.
 */
export class Replication {
  readonly #options: ReplicationOptions;
  readonly #streams = new Map<number, Stream>();

  constructor(options: ReplicationOptions) {
    this.#options = options;
  }

  /** Those that are connected. */
  get streams(): readonly Stream[] {
    return [...this.#streams.values()];
  }

  /**
   * Takes an authenticated client to its server. Resolves once it is ready there.
   * @throws ForeshardError, also what the server refuses it with
   */
  async serve(
    reader: HandshakeReader,
    who: AuthenticatedClient,
    kind: 'physical' | 'logical',
    peer: Peer,
  ): Promise<void> {
    const { live, pools, clients, logger } = this.#options;
    const { shards, home } = live.current;
    if (shards.size !== 1)
      throw new ForeshardError('0A000', 'replication connections need a database with one shard', {
        detail: `This database has ${shards.size} shards, each with a write-ahead log of its own.`,
        hint: 'Connect the replication client to each shard directly.',
      });
    await this.#unpaused(reader, home);
    const options = pools.serverOptions(home, who.user, {
      ...Object.fromEntries(who.parameters),
      replication: kind === 'logical' ? 'database' : 'true',
    });
    const { socket: server, session } = await withServerPath(
      options,
      options.connectTimeoutMs ?? 10_000,
      async (path) => {
        const loggedIn: ServerSession = await serverHandshake(path.reader, {
          ...options,
          parameters: options.parameters ?? {},
          tls: path.tls,
          isPrivate: () => path.isPrivate,
        });
        await path.reader.release();
        return { socket: path.reader.socket as Socket, session: loggedIn };
      },
    );
    const key = clients.newKey(who.protocol);
    clients.reserve(key.processId);
    const client = reader.socket as Socket;
    const close = () => {
      client.destroy();
      server.destroy();
    };
    const { host, port } = options;
    const { localAddress = '', localPort = 0 } = server;
    const { processId } = session;
    this.#streams.set(key.processId, {
      key,
      kind,
      user: who.user,
      database: kind === 'logical' ? who.database : null,
      applicationName: who.parameters.get('application_name') ?? '',
      protocol: who.protocol,
      peer,
      shard: home,
      server: { host, port, database: options.database, processId, localAddress, localPort, tls: tlsInfo(server) },
      connectedAt: Date.now(),
      get bytes() {
        return { received: client.bytesRead, sent: client.bytesWritten };
      },
      idle: true,
      cancel: () => sendCancelRequest(options, session),
      close,
    });
    server.on('error', (error) => logger.info({ err: error, session: key.processId }, 'replication connection lost'));
    server.once('close', () => {
      clients.forgo(key.processId);
      this.#streams.delete(key.processId);
      client.end();
    });
    try {
      await reader.release();
    } catch (error) {
      server.destroy();
      throw error;
    }
    client.on('error', close);
    client.once('close', () => server.destroy());
    for (const [name, value] of session.parameters) client.write(encodeParameterStatus(name, value));
    client.write(encodeBackendKeyData(key.processId, key.secret));
    client.write(encodeReadyForQuery('I'));
    client.pipe(server);
    server.pipe(client);
    logger.info({ session: key.processId, user: who.user, kind }, 'replication client connected');
  }

  /** Like any other new client, it waits for RESUME before a server is asked for anything. */
  async #unpaused(reader: HandshakeReader, shard: ShardName): Promise<void> {
    const { pools, queueTimeoutMs } = this.#options;
    const until = performance.now() + queueTimeoutMs();
    while (pools.isPaused(shard)) {
      if (performance.now() > until)
        throw new ForeshardError('57P03', `shard "${shard}" is paused`, {
          hint: 'An administrator has paused it; RESUME lets replication clients in again.',
        });
      await reader.pause(LOOK_EVERY_MS);
    }
  }

  /** @returns whether the key is one of theirs */
  cancel(key: CancelKey): boolean {
    const stream = this.#streams.get(key.processId);
    if (stream === undefined) return false;
    if (sameSecret(stream.key, key))
      stream.cancel().catch((error: unknown) => {
        this.#options.logger.warn({ err: error, session: key.processId }, 'could not pass a cancel request on');
      });
    return true;
  }
}
