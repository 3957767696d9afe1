import { expect, test } from 'vitest';
import { asOwner } from '../../topology/as-owner.js';
import type { Position } from '../../topology/key.js';
import type { Epoch, KeyspaceName, RangeReplica, ShardName } from '../../topology/topology.js';
import { spreadTopology } from '../proxy/router/setting.js';

/** Keyspace shop: a below 100, b from 100, c from 200. */
function replica(lo: Position | null, hi: Position | null, shard: string): RangeReplica {
  return {
    id: 7n,
    since: 3n as Epoch,
    keyspace: 'shop' as KeyspaceName,
    lo,
    hi,
    source: 'a' as ShardName,
    shard: shard as ShardName,
    marker: { schema: 'foreshard_shard', table: 'marker_7' },
    referenceTables: [{ schema: 'public', table: 'countries' }],
    schemaGeneration: 0n,
    maxStalenessMs: 1000,
    readPercent: 0,
  };
}

const rangesOf = (r: RangeReplica) =>
  asOwner(spreadTopology(), r)
    .keyspaces.get('shop' as KeyspaceName)
    ?.ranges.map(({ lo, hi, shard }) => [lo?.[0], hi?.[0], shard]);

test.each([
  [
    [10n],
    [20n],
    [
      [undefined, 10n, 'a'],
      [10n, 20n, 'c'],
      [20n, 100n, 'a'],
      [100n, 200n, 'b'],
      [200n, undefined, 'c'],
    ],
  ],
  [
    null,
    [100n],
    [
      [undefined, 100n, 'c'],
      [100n, 200n, 'b'],
      [200n, undefined, 'c'],
    ],
  ],
  [
    [50n],
    [100n],
    [
      [undefined, 50n, 'a'],
      [50n, 100n, 'c'],
      [100n, 200n, 'b'],
      [200n, undefined, 'c'],
    ],
  ],
  // What is one interval to the replica may have been cut since.
  [
    [50n],
    [150n],
    [
      [undefined, 50n, 'a'],
      [50n, 100n, 'c'],
      [100n, 150n, 'c'],
      [150n, 200n, 'b'],
      [200n, undefined, 'c'],
    ],
  ],
] as [Position | null, Position | null, unknown][])(
  'the interval from %s to %s goes to the replica',
  (lo, hi, ranges) => {
    expect(rangesOf(replica(lo, hi, 'c'))).toEqual(ranges);
  },
);

test('with the reference tables that go with it, and the topology itself stays as it is', () => {
  const before = spreadTopology();
  const after = asOwner(before, replica([10n], [20n], 'c'));
  expect(after.referenceTables.get('public.countries')?.shards).toEqual(['a', 'b', 'c']);
  expect(after.referenceTables.get('public.units')?.shards).toEqual(['b']);
  expect(before).toEqual(spreadTopology());
});
