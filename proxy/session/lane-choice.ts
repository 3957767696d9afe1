import { setTimeout as delay } from 'node:timers/promises';
import type { ShardName } from '../../topology/topology.js';
import type { Lane } from '../backend/lane.js';
import type { LaneGroup } from '../backend/lanes.js';
import type { Analyzed, BoundParams, LaneRoute } from '../router/route.js';
import type { LanePlace } from './client-read.js';
import type { ClientSession } from './client-session.js';
import type { Lookup } from './name-lookup.js';
import { AT_REPLICA, type ReplicaPlace, ReplicaReads, type Source } from './replica-reads.js';
import type { SettingMap } from './settings.js';

/** A connection to a replica is waited for no longer than this, ms. */
const OPEN_MS = 250;

/** In which lane one client's read may stand in line: at the shard that has its rows, or at a replica. */
export class LaneChoice {
  /** What names mean for the client, as it was looked at last. */
  lookup: Lookup | null = null;
  readonly #session: ClientSession & { readonly id: number };
  /** The lanes found last, and what for. */
  #group: LaneGroup | null = null;
  #shard: ShardName | null = null;
  #settings: SettingMap | null = null;
  /** Null: no replica has been there to be read yet. */
  #replicas: ReplicaReads | null = null;
  /** Of its own, for a read at a replica that was made ready last. */
  #own: Lane | null = null;

  constructor(session: ClientSession & { readonly id: number }) {
    this.#session = session;
  }

  /** The client is being answered; see `ReplicaReads.heard`. */
  heard(from: Source): void {
    this.#replicas?.heard(from);
  }

  /** What has to be waited for before the statement can be read at a replica; null: nothing, or it is not to be. */
  preparing(analyzed: Analyzed, params: BoundParams | null): Promise<void> | null {
    const place = this.#atReplica(analyzed, params, true);
    return place instanceof Promise ? place : null;
  }

  /** Where the statement may run among others' now; null: nowhere, it takes a lease. */
  place(analyzed: Analyzed, params: BoundParams | null): LanePlace | null {
    if (analyzed.statements[0]?.plan.laneSafe !== true) return null;
    const { services } = this.#session;
    if (this.readsReplicas) {
      const place = this.#atReplica(analyzed, params, false);
      if (place !== null) return place as LanePlace;
    }
    if (!analyzed.pace.isFit || !this.#mayShare()) return null;
    const route = services.router.laneRoute(analyzed, params, services.live.current);
    if (route === null) return null;
    const lane = this.laneFor(route);
    return lane === null ? null : { lane, route };
  }

  /** Nothing is open, so that a statement may run on a connection of others. */
  #mayShare(): boolean {
    const { lease, listening, lookup, services } = this.#session;
    // What a view or function does may be another thing by now.
    if (!services.schema.fresh) return false;
    if (lease.backend !== null || lease.transaction !== null || lease.unsynced || listening.active) return false;
    this.lookup = lookup.current;
    return !lookup.pending && this.lookup.sure;
  }

  /** Whether the client wants to read at replicas, and there are any. */
  get readsReplicas(): boolean {
    const { replicas } = this.#session.services;
    if (replicas.served.length === 0) return false;
    this.#replicas ??= new ReplicaReads(replicas, this.#session.id);
    return this.#replicas.mayRead(this.#session.settings.current);
  }

  /**
   * Where the statement may be read at a replica now; null: nowhere, its owner is asked. A promise, if one `mayBeWaitedFor`: when it resolves, that may
   * have changed.
   */
  #atReplica(
    analyzed: Analyzed,
    params: BoundParams | null,
    mayBeWaitedFor: boolean,
  ): LanePlace | Promise<void> | null {
    const { live, router } = this.#session.services;
    const reads = this.#replicas as ReplicaReads;
    if (analyzed.statements[0]?.plan.laneSafe !== true || !this.#mayShare() || !live.mayServe) return null;
    const place = reads.place(analyzed, params, router, live);
    if (place === null) return null;
    const now = performance.now();
    place.served.follower.want(now);
    // Rather than to open a connection for nothing.
    const close = reads.isClose(place, now);
    if (!close && !reads.isFresh(place, 0, now)) return this.#behind(place, mayBeWaitedFor);
    const lane = this.#laneAt(place, mayBeWaitedFor);
    if (lane === null) {
      if (!mayBeWaitedFor) place.served.counts.failed += 1;
      return null;
    }
    if (lane instanceof Promise) return lane;
    if (reads.isFresh(place, lane.backend.connection.openedAt, now)) {
      if (!mayBeWaitedFor) this.#own = null;
      return { lane, route: place.route };
    }
    if (mayBeWaitedFor && close) return place.served.follower.fresh();
    return this.#behind(place, mayBeWaitedFor);
  }

  #behind({ served }: ReplicaPlace, isLookedAtAgain: boolean): null {
    if (!isLookedAtAgain) served.counts.behind += 1;
    this.#leaveOwn();
    return null;
  }

  #laneAt({ route }: ReplicaPlace, mayBeWaitedFor: boolean): Lane | Promise<void> | null {
    const own = this.#own;
    if (own?.takes === true && own.backend.shard === route.shard) return this.#fitting(own);
    const group = this.#groupOn(route.shard);
    if (group === null) return null;
    if (route.pace.isFit) {
      const shared = group.choose(performance.now());
      if (shared !== null) return this.#fitting(shared);
    }
    const alone = this.#session.services.lanes(route.shard).alone(group);
    if (!(alone instanceof Promise)) {
      this.#own = alone;
      return alone === null ? null : this.#fitting(alone);
    }
    const opened = alone.then(
      (lane) => {
        // One that nobody takes is given back before long.
        this.#own = lane;
      },
      () => undefined, // the owner is asked
    );
    return mayBeWaitedFor ? Promise.race([opened, delay(OPEN_MS)]) : null;
  }

  #fitting(lane: Lane): Lane | null {
    if (lane.names === this.lookup?.signature) return lane;
    if (lane === this.#own) this.#leaveOwn();
    return null;
  }

  #leaveOwn(): void {
    this.#own?.retire('given back');
    this.#own = null;
  }

  /** What the client has seen now. */
  seenBy(route: LaneRoute): Source {
    if (route.replica === undefined) return route;
    const served = this.#servedOf(route);
    if (served !== undefined) {
      served.counts.reads += 1;
      this.#replicas?.read(served);
    }
    return AT_REPLICA;
  }

  /** A read at a replica has not been answered there. */
  countFailed(route: LaneRoute): void {
    const served = this.#servedOf(route);
    if (served !== undefined) served.counts.failed += 1;
  }

  #servedOf({ replica }: LaneRoute): ReplicaPlace['served'] | undefined {
    if (replica === undefined) return undefined;
    const { served } = this.#session.services.replicas;
    return served.find((s) => s.replica.id === replica.id && s.replica.since === replica.since);
  }

  /** To be joined in the turn in which holds are looked at: none slips in between. */
  laneFor(route: LaneRoute): Lane | null {
    if (!this.#session.services.live.admits(route, null)) return null;
    const lane = this.#groupOn(route.shard)?.choose(performance.now()) ?? null;
    return lane === null || lane.names !== this.lookup?.signature ? null : lane;
  }

  #groupOn(shard: ShardName): LaneGroup | null {
    const settings = this.#session.settings.current;
    if (this.#group !== null && this.#shard === shard && this.#settings === settings && !this.#group.forgotten)
      return this.#group.isOff ? null : this.#group;
    this.#group = this.#session.services.lanes(shard).group(settings);
    this.#shard = shard;
    this.#settings = settings;
    return this.#group;
  }
}
