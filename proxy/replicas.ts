import type { Logger } from 'pino';
import { asOwner } from '../topology/as-owner.js';
import type { RangeReplica, Topology } from '../topology/topology.js';
import { ReplicaFollower } from './replica-follower.js';

/** One replica, as this process serves from it. */
export interface ServedReplica {
  readonly replica: RangeReplica;
  /** The topology of now, with the replica as the owner of its interval. */
  readonly topology: Topology;
  readonly follower: ReplicaFollower;
  readonly counts: ReplicaCounts;
}

/** What has come of reads since the replica began to serve here. */
interface ReplicaCounts {
  /** Answered from there. */
  reads: number;
  /** Of those that could have been: it was not known to be far enough. */
  behind: number;
  /** It failed, or had no connection; they were read at the owner. */
  failed: number;
}

/** The replicas that clients of this process may read from. */
export class Replicas {
  /** Another list with every change. */
  served: readonly ServedReplica[] = [];
  readonly #logger: Logger;
  #topology: Topology | null = null;

  constructor(logger: Logger) {
    this.#logger = logger;
  }

  /** To be called whenever the catalog has been read. */
  apply(topology: Topology): void {
    if (topology.replicas.length === 0 && this.served.length === 0) return;
    if (topology === this.#topology) return;
    this.#topology = topology;
    const before = this.served;
    this.served = topology.replicas.flatMap((replica) => {
      const { id, since } = replica;
      const source = topology.shards.get(replica.source);
      const shard = topology.shards.get(replica.shard);
      if (source === undefined || shard === undefined) return [];
      const known = before.find((s) => s.replica.id === id && s.replica.since === since);
      const follower = known?.follower ?? new ReplicaFollower(replica, source, shard, this.#logger);
      const counts = known?.counts ?? { reads: 0, behind: 0, failed: 0 };
      return [{ replica, topology: asOwner(topology, replica), follower, counts }];
    });
    for (const { follower } of before) if (!this.served.some((s) => s.follower === follower)) follower.close();
  }

  close(): void {
    for (const { follower } of this.served) follower.close();
    this.served = [];
  }
}

/** Whether the replica that served a read still does. */
export function isServed({ id, since }: RangeReplica, topology: Topology): boolean {
  return topology.replicas.some((r) => r.id === id && r.since === since);
}
