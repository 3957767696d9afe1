import type { ShardName } from '../../topology/topology.js';
import type { Backend } from './backend.js';

/** What has gone through the connections of a pool since it was made. As PgBouncer's SHOW STATS counts; times in ms. */
export interface PoolTotals {
  /** Transactions of clients that have ended. */
  xactCount: number;
  /** Queries and batches up to a Sync that clients had answered. */
  queryCount: number;
  /** Bytes sent to the shard: what clients sent, without what the proxy answered itself. */
  received: number;
  /** Bytes that the shard sent. */
  sent: number;
  /** Time in transactions. */
  xactTimeMs: number;
  /** Time from a query's first message to its ReadyForQuery. */
  queryTimeMs: number;
  /** Time that clients waited for a connection. */
  waitTimeMs: number;
}

export function zeroTotals(): PoolTotals {
  return { xactCount: 0, queryCount: 0, received: 0, sent: 0, xactTimeMs: 0, queryTimeMs: 0, waitTimeMs: 0 };
}

/** A pool at this moment. Names are those of PgBouncer's SHOW POOLS. */
export interface PoolStatus {
  readonly shard: ShardName;
  readonly user: string;
  /** Clients that have a connection of this pool. */
  readonly clActive: number;
  /** Clients that wait for one. */
  readonly clWaiting: number;
  /** Connections that serve a client. */
  readonly svActive: number;
  /** Unused connections that may be handed out at once. */
  readonly svIdle: number;
  /** Unused for so long that they are asked for a sign of life first. */
  readonly svUsed: number;
  /** Being asked for one. */
  readonly svTested: number;
  /** Those of them that are lanes. */
  readonly lanes: number;
  /** Being opened. */
  readonly svLogin: number;
  /** How long the first client has been waiting, ms. */
  readonly maxWaitMs: number;
  readonly size: number;
}

/** One server connection, for SHOW SERVERS. */
export interface ServerStatus {
  readonly backend: Backend;
  readonly state: 'active' | 'idle' | 'used' | 'tested';
  /** It is closed when it is given back: too old, or a RECONNECT. */
  readonly closeNeeded: boolean;
}
