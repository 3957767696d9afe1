import { parseDuration } from '../../topology/duration.js';
import { contains, overlaps } from '../../topology/key.js';
import type { LiveTopology } from '../live-topology.js';
import type { Replicas, ServedReplica } from '../replicas.js';
import type { Analyzed, BoundParams, LaneRoute } from '../router/route.js';
import type { Router } from '../router/router.js';
import type { Footprint } from './footprint.js';
import { MAX_STALENESS, type SettingMap } from './settings.js';

/** A replica that was so close behind in its last round is worth waiting for one more. ms */
const CLOSE_MS = 20;
/** If that was not too long ago. ms */
const RECENT_MS = 250;
/** So many places of a transaction are looked at one by one. */
const PLACES = 16;
/** Of hashes. */
const HUNDRED = 100;

/** Where a read may go besides to its owner. */
export interface ReplicaPlace {
  readonly served: ServedReplica;
  readonly route: LaneRoute;
  /** ms */
  readonly maxStalenessMs: number;
}

/** In place of the footprint of what is read at a replica: that does not make its client see more than it saw. */
export const AT_REPLICA = Symbol('at a replica');

/** What an answer comes from, as far as it is known. */
export type Source = Footprint | typeof AT_REPLICA | null;

/**
 * Which replicas one client may read from, and what it must find there: nothing older than it asked for (or its operator, for a part of all
 * clients), all that it has written, and nothing from before what it has seen.
 */
export class ReplicaReads {
  readonly #replicas: Replicas;
  readonly #client: number;
  /** What the bounds were made of. */
  #served: readonly ServedReplica[] | null = null;
  #settings: SettingMap | null = null;
  /** For each that is served, ms; 0: not from there. */
  #bounds: readonly number[] = [];
  #any = false;
  /** The client has seen what was there at this moment; on performance.now()'s clock. */
  #floor = performance.now();
  /** When it was answered from a replica. */
  readonly #seen = new Map<ServedReplica['follower'], number>();

  /** @param client its number: by that it belongs to a part of all clients or not, for as long as it lives */
  constructor(replicas: Replicas, client: number) {
    this.#replicas = replicas;
    this.#client = client;
  }

  /** Whether a client with these settings reads from any replica now. */
  mayRead(settings: SettingMap): boolean {
    const { served } = this.#replicas;
    if (served === this.#served && settings === this.#settings) return this.#any;
    this.#served = served;
    this.#settings = settings;
    const asked = settings.get(MAX_STALENESS)?.value;
    const own = asked === undefined ? null : (parseDuration(asked) ?? 0);
    this.#bounds = served.map(({ replica }) => {
      if (own !== null) return Math.min(own, replica.maxStalenessMs);
      return isChosen(replica.id, this.#client, replica.readPercent) ? replica.maxStalenessMs : 0;
    });
    const before = this.#any;
    this.#any = this.#bounds.some((bound) => bound > 0);
    // What it saw meanwhile was not noted.
    if (this.#any && !before) this.#floor = performance.now();
    return this.#any;
  }

  /** Where a read with these values may go, if it is a read, of one interval that is replicated; null: to its owner only. */
  place(analyzed: Analyzed, params: BoundParams | null, router: Router, live: LiveTopology): ReplicaPlace | null {
    const { current } = live;
    const served = this.#served ?? [];
    for (let i = 0; i < served.length; i++) {
      const maxStalenessMs = this.#bounds[i] as number;
      if (maxStalenessMs === 0) continue;
      const candidate = served[i] as ServedReplica;
      const { replica } = candidate;
      // Its tables may be others than the owner's by now.
      if (replica.schemaGeneration !== current.schemaGeneration) continue;
      const route = router.replicaRoute(analyzed, params, replica, candidate.topology, current);
      if (route === null || route.touches.length === 0) continue;
      const inside = route.touches.every(
        (touch) => touch.keyspace === replica.keyspace && touch.position !== null && contains(replica, touch.position),
      );
      if (inside) return { served: candidate, route, maxStalenessMs };
    }
    return null;
  }

  /**
   * Whether the replica has, for certain, all that the client must find.
   * @param openedAt when the connection was made, on which it would be read
   */
  isFresh({ served, maxStalenessMs }: ReplicaPlace, openedAt: number, now: number): boolean {
    const { progress } = served.follower;
    if (progress === null || openedAt > progress.checkedAt) return false;
    return progress.asOf >= now - maxStalenessMs && progress.asOf >= this.#floorOf(served);
  }

  /** Whether the replica most likely is fresh enough when it has been asked once more. */
  isClose({ served, maxStalenessMs }: ReplicaPlace, now: number): boolean {
    const { progress } = served.follower;
    if (progress === null || now - progress.knownAt > RECENT_MS) return false;
    return progress.knownAt - progress.asOf <= Math.min(CLOSE_MS, maxStalenessMs);
  }

  /** The client is being answered from a replica. */
  read({ follower }: ServedReplica): void {
    if (this.#seen.size > 0)
      for (const known of this.#seen.keys())
        if (!this.#replicas.served.some((s) => s.follower === known)) this.#forget(known);
    this.#seen.set(follower, performance.now());
  }

  /** The client is being answered by an owner, or by the proxy. `from`: what that touches, as far as it is known. */
  heard(from: Source): void {
    if (!this.#any || from === AT_REPLICA || (from !== null && this.#isElsewhere(from))) return;
    this.#floor = performance.now();
  }

  #isElsewhere({ topology, touches, everything }: Footprint): boolean {
    // Its keyspaces may have other tables by now.
    if (topology.epoch !== this.#replicas.served[0]?.topology.epoch) return false;
    if (everything || touches.length === 0 || touches.length > PLACES) return false;
    return this.#replicas.served.every(
      ({ replica }) =>
        // Tables that others replicate too: what was read of them is to be found at each.
        replica.referenceTables.length === 0 &&
        touches.every(
          ({ keyspace, position }) =>
            keyspace !== replica.keyspace || (position !== null && !contains(replica, position)),
        ),
    );
  }

  /** One and the same replica never goes back: a connection that saw what it has lost is gone. */
  #floorOf({ replica, follower }: ServedReplica): number {
    let floor = this.#floor;
    for (const [other, at] of this.#seen) {
      if (other === follower || at <= floor) continue;
      const theirs = this.#replicas.served.find((s) => s.follower === other)?.replica;
      const apart =
        theirs !== undefined &&
        theirs.referenceTables.length === 0 &&
        replica.referenceTables.length === 0 &&
        (theirs.keyspace !== replica.keyspace || !overlaps(theirs, replica));
      if (!apart) floor = at;
    }
    return floor;
  }

  #forget(follower: ServedReplica['follower']): void {
    this.#floor = Math.max(this.#floor, this.#seen.get(follower) ?? 0);
    this.#seen.delete(follower);
  }
}

/** A part of all clients, of which each belongs to the smaller ones as well. FNV-1a of both numbers. */
function isChosen(replica: bigint, client: number, percent: number): boolean {
  if (percent === 0) return false;
  let hash = 0x811c9dc5;
  for (const char of `${replica}:${client}`) hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193) >>> 0;
  // Its low bits differ more than its high ones between numbers that follow one another.
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 0;
  return (hash ^ (hash >>> 13)) >>> 0 < (2 ** 32 / HUNDRED) * percent;
}
