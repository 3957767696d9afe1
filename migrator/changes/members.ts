import type { FoundSplit } from '../../topology/catalog/column-split.js';
import { afterSplit } from '../../topology/column-split.js';
import { UsageError } from '../../topology/errors.js';
import { comparePositions, type Interval, intersection, type Position, sameBound } from '../../topology/key.js';
import { positionToJson } from '../../topology/key-codec.js';
import { stretches } from '../../topology/layout.js';
import type { HalveSpec, MigrationSpec, MoveSpec, RangeSpec } from '../../topology/migration.js';
import { afterSeparation } from '../../topology/separation.js';
import {
  type Keyspace,
  type KeyspaceName,
  rangeOf,
  type ShardName,
  type TableName,
  type Topology,
} from '../../topology/topology.js';

// What the kinds of changes consist of; pure. Each throws UsageError when that cannot be, or there is nothing to do.

/** Everything of the interval goes to one shard, range by range. */
export function moveMembers(keyspace: Keyspace, interval: Interval, to: ShardName): MoveSpec[] {
  if (interval.lo !== null && interval.hi !== null && comparePositions(interval.lo, interval.hi) >= 0)
    throw new UsageError('the interval is empty', 'Its lower bound must lie below its upper bound.');
  const moves = movesOf(keyspace, interval, to);
  if (moves.length === 0)
    throw new UsageError(`shard "${to}" owns all of that already`, 'See "foreshard topology show".');
  return moves;
}

/** Moves of what of the interval is not there, range by range. */
function movesOf(keyspace: Keyspace, interval: Interval, to: ShardName): MoveSpec[] {
  return keyspace.ranges.flatMap((range): MoveSpec[] => {
    const part = range.shard === to ? null : intersection(range, interval);
    return part === null ? [] : [{ kind: 'move', keyspace: keyspace.name, ...part, from: range.shard, to }];
  });
}

/**
 * One range is cut at `at`, and its parts go to the shards named.
 * @param owners of the parts, from the lowest keys up; null: it stays where it is
 */
export function splitMembers(
  keyspace: Keyspace,
  at: readonly Position[],
  owners: readonly (ShardName | null)[],
): RangeSpec[] {
  const points = at.toSorted(comparePositions).filter((p, i, all) => !sameBound(p, all[i - 1] ?? null));
  const [first] = points;
  if (first === undefined) throw new UsageError('a split needs a position', 'Say where.');
  const range = rangeOf(keyspace, first);
  for (const p of points) {
    if (rangeOf(keyspace, p) !== range)
      throw new UsageError(
        `${text(keyspace, first)} and ${text(keyspace, p)} lie in two ranges`,
        'Split each range by a change of its own; see "foreshard topology show".',
      );
    if (sameBound(range.lo, p))
      throw new UsageError(`${text(keyspace, p)} is a bound of ranges already`, 'See "foreshard topology show".');
  }
  if (owners.length !== points.length + 1)
    throw new UsageError(
      `${points.length} position(s) make ${points.length + 1} parts, and ${owners.length} shard(s) are named`,
      'Name one shard for each part, from the lowest keys up; "." for a part that stays.',
    );
  const { name } = keyspace;
  const bounds = [range.lo, ...points, range.hi];
  const moves = owners.flatMap((owner, i): MoveSpec[] => {
    if (owner === null || owner === range.shard) return [];
    const [lo, hi] = [bounds[i] ?? null, bounds[i + 1] ?? null];
    return [{ kind: 'move', keyspace: name, lo, hi, from: range.shard, to: owner }];
  });
  return [{ kind: 'recut', keyspace: name, shard: range.shard, cut: points, join: [] }, ...moves];
}

/**
 * The ranges on both sides of a bound become one.
 * @param to one of their two owners; null: that of the range below
 */
export function mergeMembers(keyspace: Keyspace, at: Position, to: ShardName | null): RangeSpec[] {
  const i = keyspace.ranges.findIndex((r) => sameBound(r.lo, at));
  const [left, right] = [keyspace.ranges[i - 1], keyspace.ranges[i]];
  if (left === undefined || right === undefined)
    throw new UsageError(`${text(keyspace, at)} is no bound between two ranges`, 'See "foreshard topology show".');
  const owner = to ?? left.shard;
  if (owner !== left.shard && owner !== right.shard)
    throw new UsageError(
      `shard "${owner}" owns neither of the two ranges`,
      `Name "${left.shard}" or "${right.shard}", and move the range afterwards.`,
    );
  const moves = [left, right]
    .filter((r) => r.shard !== owner)
    .map((r): MoveSpec => ({ kind: 'move', keyspace: keyspace.name, lo: r.lo, hi: r.hi, from: r.shard, to: owner }));
  return [...moves, { kind: 'recut', keyspace: keyspace.name, shard: owner, cut: [], join: [at] }];
}

/**
 * Tables get a keyspace of their own, whose ranges then go to one shard.
 * @param keyspace that the tables are in; null: none
 * @param as is no keyspace yet: see `checkSeparation`
 */
export function verticalMembers(
  topology: Topology,
  keyspace: KeyspaceName | null,
  tables: readonly TableName[],
  as: KeyspaceName,
  to: ShardName,
): MigrationSpec[] {
  const spec = { kind: 'separate', keyspace, tables, as } as const;
  const separated = afterSeparation(topology, spec).keyspaces.get(as) as Keyspace;
  return [spec, ...moveMembers(separated, { lo: null, hi: null }, to)];
}

/**
 * Columns of a table get a table and a keyspace of their own, whose ranges then go to one shard.
 * @param spec fits the topology: see `checkSplit`
 */
export function columnsMembers(topology: Topology, spec: HalveSpec, to: ShardName): MigrationSpec[] {
  const hot = afterSplit(topology, spec, spec.primaryKey).keyspaces.get(spec.as) as Keyspace;
  return [spec, ...moveMembers(hot, { lo: null, hi: null }, to)];
}

/** The ranges of a table's hot columns go to where the table's are, and the columns are the table's alone again. */
export function uniteMembers(
  { keyspace, hot }: Pick<FoundSplit, 'keyspace' | 'hot'>,
  table: TableName,
): MigrationSpec[] {
  // Neighbours on one shard are one interval: no move is cut for a bound that nobody needs.
  const moves = stretches(keyspace).flatMap(({ lo, hi, shard }) => movesOf(hot, { lo, hi }, shard));
  return [...moves, { kind: 'unite', keyspace: hot.name, table }];
}

function text(keyspace: Keyspace, position: Position): string {
  return `(${positionToJson(keyspace, position).join(', ')})`;
}
