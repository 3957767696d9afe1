import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { ForeshardError } from '../topology/errors.js';
import type { AuthenticatedClient } from './auth/authenticate.js';
import { sendCancelRequest } from './backend/cancel-request.js';
import { withServerPath } from './backend/server-address.js';
import { type ServerSession, serverHandshake } from './backend/server-handshake.js';
import { type CancelKey, type Clients, sameSecret } from './clients.js';
import type { LiveTopology } from './live-topology.js';
import type { Pools } from './pools.js';
import { encodeBackendKeyData, encodeParameterStatus, encodeReadyForQuery } from './wire/backend.js';
import type { HandshakeReader } from './wire/handshake-reader.js';

/** A replication client and the server connection that is its own. */
interface Stream {
  readonly key: CancelKey;
  /** Nothing of it is ever half done in the proxy. */
  readonly idle: true;
  /** Passes a cancel request on. */
  cancel(): Promise<void>;
  /** Cuts both ends: what streams has no place for last words. */
  close(): void;
}

export interface ReplicationOptions {
  readonly live: LiveTopology;
  readonly pools: Pools;
  readonly clients: Clients;
  readonly logger: Logger;
}

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
  async serve(reader: HandshakeReader, who: AuthenticatedClient, kind: 'physical' | 'logical'): Promise<void> {
    const { live, pools, clients, logger } = this.#options;
    const { shards, home } = live.current;
    if (shards.size !== 1)
      throw new ForeshardError('0A000', 'replication connections need a database with one shard', {
        detail: `This database has ${shards.size} shards, each with a write-ahead log of its own.`,
        hint: 'Connect the replication client to each shard directly.',
      });
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
    this.#streams.set(key.processId, {
      key,
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
