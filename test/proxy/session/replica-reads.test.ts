import { afterEach, describe, expect, test, vi } from 'vitest';
import type { ReplicaProgress } from '../../../proxy/replica-follower.js';
import type { Replicas, ServedReplica } from '../../../proxy/replicas.js';
import type { LaneRoute } from '../../../proxy/router/route.js';
import type { Footprint } from '../../../proxy/session/footprint.js';
import { AT_REPLICA, type ReplicaPlace, ReplicaReads } from '../../../proxy/session/replica-reads.js';
import { MAX_STALENESS, NO_SETTINGS, SessionSettings } from '../../../proxy/session/settings.js';
import type { Position } from '../../../topology/key.js';
import type { Epoch, KeyspaceName, RangeReplica, ShardName, Topology } from '../../../topology/topology.js';

afterEach(() => void vi.restoreAllMocks());

const SHOP = 'shop' as KeyspaceName;

interface Setting {
  readonly served: ServedReplica & { readonly follower: { progress: ReplicaProgress | null } };
  readonly place: ReplicaPlace;
}

function serve(lo: Position | null, hi: Position | null, terms: Partial<RangeReplica> = {}): Setting {
  const replica: RangeReplica = {
    id: 7n,
    since: 3n as Epoch,
    keyspace: SHOP,
    lo,
    hi,
    source: 'a' as ShardName,
    shard: 'b' as ShardName,
    marker: { schema: 'foreshard_shard', table: 'marker_7' },
    referenceTables: [],
    schemaGeneration: 0n,
    maxStalenessMs: 1000,
    readPercent: 0,
    ...terms,
  };
  const served = {
    replica,
    topology: EPOCH,
    follower: { progress: null },
    counts: { reads: 0, behind: 0, failed: 0 },
  } as unknown;
  return {
    served: served as Setting['served'],
    place: { served: served as ServedReplica, route: {} as LaneRoute, maxStalenessMs: replica.maxStalenessMs },
  };
}

const among = (...settings: Setting[]) => ({ served: settings.map((s) => s.served) }) as unknown as Replicas;
const asking = (value: string) => new SessionSettings(new Map([[MAX_STALENESS, value]])).current;
const EPOCH = { epoch: 3n } as Topology;
const touching = (key: bigint, topology = EPOCH): Footprint => ({
  topology,
  touches: [{ keyspace: SHOP, position: [key] }],
  everything: false,
  writesReference: false,
});

/** A client that asked for a second, at this time. */
function client(now: number, ...settings: Setting[]): { reads: ReplicaReads; at: (now: number) => void } {
  const clock = vi.spyOn(performance, 'now').mockReturnValue(now);
  const reads = new ReplicaReads(among(...settings), 1);
  expect(reads.mayRead(asking('1s'))).toBe(true);
  return { reads, at: (t) => void clock.mockReturnValue(t) };
}

const known = (asOf: number): ReplicaProgress => ({ asOf, checkedAt: asOf + 1, knownAt: asOf + 2 });

describe('a replica is fresh enough', () => {
  test('within the bound, and no longer', () => {
    const one = serve([0n], [10n]);
    const { reads } = client(0, one);
    one.served.follower.progress = known(100);
    expect(reads.isFresh(one.place, 0, 1100)).toBe(true);
    expect(reads.isFresh(one.place, 0, 1101)).toBe(false);
  });

  test('only on a connection that was there when it was asked: another may be to a server that has forgotten', () => {
    const one = serve([0n], [10n]);
    const { reads } = client(0, one);
    one.served.follower.progress = known(100);
    expect(reads.isFresh(one.place, 101, 200)).toBe(true);
    expect(reads.isFresh(one.place, 101.5, 200)).toBe(false);
  });

  test('when nothing is known of it, it is not', () => {
    const one = serve([0n], [10n]);
    expect(client(0, one).reads.isFresh(one.place, 0, 1)).toBe(false);
  });

  test('for what its client has been told by an owner, only afterwards', () => {
    const one = serve([0n], [10n]);
    const { reads, at } = client(0, one);
    one.served.follower.progress = known(100);
    at(100.5);
    reads.heard(touching(5n));
    expect(reads.isFresh(one.place, 0, 200)).toBe(false);
    one.served.follower.progress = known(101);
    expect(reads.isFresh(one.place, 0, 200)).toBe(true);
    // Nobody knows what that was.
    at(150);
    reads.heard(null);
    expect(reads.isFresh(one.place, 0, 200)).toBe(false);
  });

  test('whatever its client was told of other keys, and by the replica itself', () => {
    const one = serve([0n], [10n]);
    const { reads, at } = client(0, one);
    one.served.follower.progress = known(100);
    at(150);
    reads.heard(touching(10n));
    reads.heard(AT_REPLICA);
    reads.read(one.served);
    expect(reads.isFresh(one.place, 0, 200)).toBe(true);
    // By another map, other keys may be in other keyspaces.
    reads.heard(touching(10n, { epoch: 2n } as Topology));
    expect(reads.isFresh(one.place, 0, 200)).toBe(false);
  });

  test('but not if reference tables are replicated with it, of which the other answer may have told', () => {
    const one = serve([0n], [10n], { referenceTables: [{ schema: 'public', table: 'countries' }] });
    const { reads, at } = client(0, one);
    one.served.follower.progress = known(100);
    at(150);
    reads.heard(touching(10n));
    expect(reads.isFresh(one.place, 0, 200)).toBe(false);
  });

  test('beside what another replica has shown, where both have the same', () => {
    const countries = { referenceTables: [{ schema: 'public', table: 'countries' }] };
    for (const [terms, fresh] of [
      [{}, true],
      [countries, false],
    ] as const) {
      const [one, two] = [serve([0n], [10n], terms), serve([10n], null, { ...terms, id: 8n })];
      const { reads, at } = client(0, one, two);
      one.served.follower.progress = known(100);
      two.served.follower.progress = known(90);
      at(120);
      reads.read(one.served);
      expect(reads.isFresh(two.place, 0, 130)).toBe(fresh);
      expect(reads.isFresh(one.place, 0, 130)).toBe(true);
    }
  });
});

describe('clients who may read there', () => {
  test('are those who have said how old it may be', () => {
    const reads = new ReplicaReads(among(serve([0n], [10n])), 1);
    expect(reads.mayRead(NO_SETTINGS)).toBe(false);
    expect(reads.mayRead(asking('10ms'))).toBe(true);
    expect(reads.mayRead(asking('0'))).toBe(false);
    expect(reads.mayRead(asking('soon'))).toBe(false);
  });

  test('and a part of the others, which only grows with it', () => {
    const chosen = (percent: number) =>
      Array.from({ length: 1000 }, (_, id) => id).filter((id) =>
        new ReplicaReads(among(serve([0n], null, { readPercent: percent })), id).mayRead(NO_SETTINGS),
      );
    const [none, few, half, all] = [chosen(0), chosen(5), chosen(50), chosen(100)];
    expect(none).toEqual([]);
    expect(all).toHaveLength(1000);
    expect(few.length).toBeGreaterThan(20);
    expect(few.length).toBeLessThan(90);
    expect(half.length).toBeGreaterThan(420);
    expect(half.length).toBeLessThan(580);
    expect(few.filter((id) => !half.includes(id))).toEqual([]);
    const refusing = new ReplicaReads(among(serve([0n], null, { readPercent: 100 })), 1);
    expect(refusing.mayRead(asking('0'))).toBe(false);
  });
});
