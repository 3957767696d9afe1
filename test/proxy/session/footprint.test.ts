import { describe, expect, test } from 'vitest';
import { type Footprint, holdCovers, mayHaveMoved, stillOn } from '../../../proxy/session/footprint.js';
import { afterSeparation } from '../../../topology/separation.js';
import type { Epoch, Hold, KeyspaceName, ShardName, Topology } from '../../../topology/topology.js';
import { spreadTopology } from '../router/setting.js';

const OWN = 'own' as KeyspaceName;
const [a, b] = ['a' as ShardName, 'b' as ShardName];
const before = spreadTopology();
const atHome = at(a, 2n);
const away = at(b, 3n);

/** The home shard's table "settings" in a keyspace without a key, on this shard. */
function at(shard: ShardName, epoch: bigint): Topology {
  const topology = afterSeparation(before, {
    keyspace: null,
    tables: [{ schema: 'public', table: 'settings' }],
    as: OWN,
  });
  const keyspaces = new Map(topology.keyspaces);
  for (const [name, k] of keyspaces)
    if (name === OWN) keyspaces.set(name, { ...k, ranges: k.ranges.map((range) => ({ ...range, shard })) });
  return { ...topology, epoch: epoch as Epoch, keyspaces };
}

const footprint = (topology: Topology, more: Partial<Footprint> = {}): Footprint => ({
  topology,
  touches: [],
  everything: false,
  writesReference: false,
  ...more,
});
const hold = (keyspace: string): Hold => ({
  id: 1n,
  keyspace: keyspace as KeyspaceName,
  lo: null,
  hi: null,
  referenceTables: false,
  remainingMs: 1000,
  endsTransactions: false,
});

describe('what ran before tables of the home shard came into a keyspace without a key', () => {
  test('may have used them, so that a flip of theirs waits for it, and no other', () => {
    expect(holdCovers(hold('own'), footprint(before), atHome)).toBe(true);
    expect(holdCovers(hold('shop'), footprint(before), atHome)).toBe(false);
    // By the map that has them, what used them says so.
    expect(holdCovers(hold('own'), footprint(atHome), atHome)).toBe(false);
    const touches = [{ keyspace: OWN, position: [], key: [] }];
    expect(holdCovers(hold('own'), footprint(atHome, { touches }), atHome)).toBe(true);
  });

  test('does not run on the home shard when they have left', () => {
    expect(stillOn(a, footprint(before), atHome)).toBe(true);
    expect(stillOn(a, footprint(before), away)).toBe(false);
    expect(stillOn(a, footprint(atHome), away)).toBe(true);
    // Nothing of the home shard's own is used elsewhere.
    expect(stillOn(b, footprint(before), away)).toBe(true);
  });

  test('has moved when they have', () => {
    expect(mayHaveMoved(footprint(before), before, atHome)).toBe(false);
    expect(mayHaveMoved(footprint(before), atHome, away)).toBe(true);
    expect(mayHaveMoved(footprint(before), before, away)).toBe(true);
    expect(mayHaveMoved(footprint(before), away, { ...away, epoch: 4n as Epoch })).toBe(false);
    expect(mayHaveMoved(footprint(atHome), atHome, away)).toBe(false);
  });
});

test('what used tables that have left their keyspace without a key goes on at home, where they are', () => {
  const released: Topology = { ...before, epoch: 3n as Epoch };
  const used = footprint(atHome, { touches: [{ keyspace: OWN, position: [], key: [] }] });
  expect(stillOn(a, used, released)).toBe(true);
  expect(stillOn(b, used, released)).toBe(false);
  expect(mayHaveMoved(used, atHome, released)).toBe(false);
  const elsewhere = footprint(at(b, 2n), { touches: [{ keyspace: OWN, position: [], key: [] }] });
  expect(mayHaveMoved(elsewhere, at(b, 2n), released)).toBe(true);
});
