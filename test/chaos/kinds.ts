import { drain, type Piece, rebalance } from '../../migrator/changes/balance.js';
import type { ChangeKind } from '../../migrator/changes/change-row.js';
import {
  columnsMembers,
  mergeMembers,
  moveMembers,
  splitMembers,
  uniteMembers,
  verticalMembers,
} from '../../migrator/changes/members.js';
import { findSplit } from '../../topology/catalog/column-split.js';
import { UsageError } from '../../topology/errors.js';
import { contains, type Interval, overlaps, type Position, sameBound } from '../../topology/key.js';
import { sameLayout } from '../../topology/layout.js';
import type { MigrationSpec, MoveSpec, RangeSpec, RecutSpec, ReplicaTerms } from '../../topology/migration.js';
import type { Separation } from '../../topology/separation.js';
import { intervalOf } from '../../topology/successor.js';
import {
  isKeyless,
  type Keyspace,
  type KeyspaceName,
  type Range,
  rangesIn,
  type ShardName,
  type Topology,
} from '../../topology/topology.js';
import { oneOf, type Random } from '../support/random.js';
import { HOUSE } from './tables.js';
import {
  HOT,
  HOUSE_KEYSPACE,
  HOUSE_TABLES,
  KEYSPACE,
  SEPARATE,
  SEPARATE_TABLES,
  STALENESS_MS,
  TENANTS,
} from './world.js';

// What can be done to a map; pure.

/** Something to be done to the map. */
export type Plan =
  /** Each on its own, entered at once: they wait for their turn. */
  | { readonly as: 'migrations'; readonly specs: readonly RangeSpec[] }
  | { readonly as: 'change'; readonly kind: ChangeKind; readonly members: readonly MigrationSpec[] }
  | { readonly as: 'replica'; readonly spec: MoveSpec; readonly terms: ReplicaTerms }
  /** Some tables get a keyspace of their own. */
  | { readonly as: 'separate'; readonly separation: Separation }
  /** And come back. Null: they belong to none again. */
  | { readonly as: 'join'; readonly keyspace: KeyspaceName; readonly into: KeyspaceName | null };

/** A way in which the map changes. */
export interface Kind {
  readonly name: string;
  /** How likely it is, beside the others. */
  readonly weight: number;
  /** @returns null when the map as it stands offers no such change */
  plan(topology: Topology, random: Random): Plan | null;
}

/** Migrations that a change may have: so that one change is not all there is. */
const MEMBERS = 4;
/** A keyspace with more ranges than this is mostly merged. */
const RANGES = 9;
/** What is asked of a map before it is said to offer nothing. */
const TRIES = 500;

/** The tenants of an interval of a keyspace, as a half-open interval of numbers. */
export function tenantsOf(keyspace: KeyspaceName, { lo, hi }: Interval): readonly [from: number, to: number] {
  if (keyspace === HOUSE_KEYSPACE) return [HOUSE, HOUSE + 1];
  return [lo === null ? 1 : Number(lo[0]), hi === null ? TENANTS + 1 : Number(hi[0])];
}

/** One that can be cut. */
function someKeyspace(topology: Topology, random: Random): Keyspace {
  return oneOf(
    random,
    [...topology.keyspaces.values()].filter((keyspace) => !isKeyless(keyspace)),
  );
}

function otherShard(topology: Topology, random: Random, shard: ShardName): ShardName {
  return oneOf(
    random,
    [...topology.shards.keys()].filter((name) => name !== shard),
  );
}

function at(tenant: number): Position {
  return [BigInt(tenant)];
}

/** A part of some range, or all of it, to another shard. */
function someMove(topology: Topology, random: Random): MoveSpec | null {
  const keyspace = someKeyspace(topology, random);
  const range = oneOf(random, keyspace.ranges);
  const [low, high] = tenantsOf(keyspace.name, range);
  const cut = () => low + random(Math.max(1, high - low + 1));
  const [a, b] = [cut(), cut()].toSorted((x, y) => x - y) as [number, number];
  const lo = random(3) === 0 || a <= low ? range.lo : at(a);
  const hi = random(3) === 0 || b >= high ? range.hi : at(b);
  if (lo !== null && hi !== null && (lo[0] as bigint) >= (hi[0] as bigint)) return null;
  return {
    kind: 'move',
    keyspace: keyspace.name,
    lo,
    hi,
    from: range.shard,
    to: otherShard(topology, random, range.shard),
  };
}

/** The house to another shard. */
function houseMove(topology: Topology, to: (now: ShardName) => ShardName): MoveSpec | null {
  const [range] = topology.keyspaces.get(HOUSE_KEYSPACE)?.ranges ?? [];
  if (range === undefined || to(range.shard) === range.shard) return null;
  return { kind: 'move', keyspace: HOUSE_KEYSPACE, lo: null, hi: null, from: range.shard, to: to(range.shard) };
}

/** A position in the middle of a range. */
function someCut(keyspace: Keyspace, random: Random): Position | null {
  const point = at(2 + random(TENANTS - 1));
  return keyspace.ranges.some((range) => sameBound(range.lo, point)) ? null : point;
}

/** Two ranges become one, or one becomes two; no row goes anywhere. */
function someRecut(topology: Topology, random: Random): RecutSpec | null {
  const keyspace = someKeyspace(topology, random);
  const i = random(keyspace.ranges.length);
  const [range, next] = [keyspace.ranges[i] as Range, keyspace.ranges[i + 1]];
  const join = next !== undefined && next.lo !== null && next.shard === range.shard ? [next.lo] : [];
  const point = join.length > 0 ? null : someCut(keyspace, random);
  const cut = point !== null && contains(range, point) ? [point] : [];
  return join.length + cut.length === 0
    ? null
    : { kind: 'recut', keyspace: keyspace.name, shard: range.shard, cut, join };
}

/** The tables that were separated, to where the others with the same keys are. */
function rejoin(topology: Topology): MoveSpec[] {
  const [there, here] = [KEYSPACE, SEPARATE].map((name) => topology.keyspaces.get(name)) as [Keyspace, Keyspace];
  // One after the other: where a range of one spans several of the other, the next time.
  return here.ranges.flatMap((range): MoveSpec[] => {
    const [owner] = rangesIn(there, range).filter(({ shard }) => shard !== range.shard);
    if (owner === undefined) return [];
    const lo = owner.lo !== null && contains(range, owner.lo) ? owner.lo : range.lo;
    const hi = owner.hi !== null && contains(range, owner.hi) ? owner.hi : range.hi;
    return moveMembers(here, { lo, hi: sameBound(lo, hi) ? range.hi : hi }, owner.shard);
  });
}

function change(kind: ChangeKind, members: readonly MigrationSpec[]): Plan | null {
  return members.length === 0 ? null : { as: 'change', kind, members: members.slice(0, MEMBERS) };
}

function piecesOf(topology: Topology): Piece[] {
  return [...topology.keyspaces.values()].flatMap((keyspace) =>
    keyspace.ranges.map((range) => {
      const [from, to] = tenantsOf(keyspace.name, range);
      return {
        keyspace: keyspace.name,
        shard: range.shard,
        range: range.id,
        lo: range.lo,
        hi: range.hi,
        weight: to - from,
      };
    }),
  );
}

export const KINDS: readonly Kind[] = [
  {
    name: 'move',
    weight: 30,
    plan(topology, random) {
      const spec = someMove(topology, random);
      return spec === null ? null : { as: 'migrations', specs: [spec] };
    },
  },
  {
    name: 'several',
    weight: 10,
    plan(topology, random) {
      const specs: MoveSpec[] = [];
      for (let n = 2 + random(2); n > 0; n--) {
        const spec = someMove(topology, random);
        if (spec !== null && !specs.some((o) => o.keyspace === spec.keyspace && overlaps(o, spec))) specs.push(spec);
      }
      return specs.length < 2 ? null : { as: 'migrations', specs };
    },
  },
  {
    // The one has to do with two of three shards, the other with the third: they are at work at the same time.
    name: 'at once',
    weight: 5,
    plan(topology, random) {
      const [move, recut] = [someMove(topology, random), someRecut(topology, random)];
      if (move === null || recut === null || [move.from, move.to].includes(recut.shard)) return null;
      return { as: 'migrations', specs: [move, recut] };
    },
  },
  {
    name: 'recut',
    weight: 5,
    plan(topology, random) {
      const spec = someRecut(topology, random);
      return spec === null ? null : { as: 'migrations', specs: [spec] };
    },
  },
  {
    name: 'split',
    weight: 12,
    plan(topology, random) {
      const keyspace = someKeyspace(topology, random);
      const point = someCut(keyspace, random);
      if (point === null) return null;
      const owners = [null, oneOf(random, [null, ...topology.shards.keys()])];
      return change('split', splitMembers(keyspace, [point], random(2) === 0 ? owners : owners.toReversed()));
    },
  },
  {
    name: 'merge',
    weight: 12,
    plan(topology, random) {
      const keyspace = someKeyspace(topology, random);
      if (keyspace.ranges.length < 2) return null;
      const i = 1 + random(keyspace.ranges.length - 1);
      const [left, right] = [keyspace.ranges[i - 1] as Range, keyspace.ranges[i] as Range];
      return change(
        'merge',
        mergeMembers(keyspace, right.lo as Position, oneOf(random, [null, left.shard, right.shard])),
      );
    },
  },
  {
    name: 'isolate',
    weight: 8,
    plan(topology, random) {
      const keyspace = someKeyspace(topology, random);
      const interval = intervalOf(keyspace, at(1 + random(TENANTS)));
      return change('isolate', moveMembers(keyspace, interval, oneOf(random, [...topology.shards.keys()])));
    },
  },
  {
    name: 'drain',
    weight: 6,
    plan(topology, random) {
      const shard = oneOf(random, [...topology.shards.keys()]);
      const targets = [...topology.shards.keys()].filter((name) => name !== shard);
      const moves = drain(
        piecesOf(topology),
        shard,
        targets.map((name) => ({ name, capacity: 1 })),
      );
      return moves.length > MEMBERS
        ? null
        : change(
            'drain',
            moves.map(({ spec }) => spec),
          );
    },
  },
  {
    name: 'rebalance',
    weight: 6,
    plan: (topology) =>
      change(
        'rebalance',
        rebalance(
          piecesOf(topology),
          [...topology.shards.keys()].map((name) => ({ name, capacity: 1 })),
        ).map(({ spec }) => spec),
      ),
  },
  {
    name: 'replica',
    weight: 20,
    plan(topology, random) {
      const spec = someMove(topology, random);
      const terms = {
        maxStalenessMs: oneOf(random, [STALENESS_MS / 4, STALENESS_MS / 2, STALENESS_MS]),
        readPercent: oneOf(random, [0, 30, 100]),
      };
      return spec === null ? null : { as: 'replica', spec, terms };
    },
  },
  {
    name: 'vertical',
    weight: 10,
    plan(topology, random) {
      if (topology.keyspaces.has(SEPARATE)) return null;
      const to = oneOf(random, [...topology.shards.keys()]);
      return change('vertical', verticalMembers(topology, KEYSPACE, SEPARATE_TABLES, SEPARATE, to));
    },
  },
  {
    name: 'separate',
    weight: 5,
    plan: (topology) =>
      topology.keyspaces.has(SEPARATE)
        ? null
        : { as: 'separate', separation: { keyspace: KEYSPACE, tables: SEPARATE_TABLES, as: SEPARATE } },
  },
  {
    name: 'join',
    weight: 10,
    plan(topology) {
      const [there, here] = [topology.keyspaces.get(KEYSPACE), topology.keyspaces.get(SEPARATE)];
      if (there === undefined || here === undefined || topology.keyspaces.has(HOT.as)) return null;
      return sameLayout(there, here)
        ? { as: 'join', keyspace: SEPARATE, into: KEYSPACE }
        : change('move', rejoin(topology));
    },
  },
  {
    // Columns of a table get one of their own, which goes to another shard.
    name: 'columns',
    weight: 30,
    plan(topology, random) {
      if (!topology.keyspaces.has(SEPARATE) || topology.keyspaces.has(HOT.as)) return null;
      const to = oneOf(random, [...topology.shards.keys()]);
      return change('columns', columnsMembers(topology, { kind: 'halve', ...HOT }, to));
    },
  },
  {
    // So that the halves are not where they came to first.
    name: 'hot',
    weight: 30,
    plan(topology, random) {
      const keyspace = topology.keyspaces.get(HOT.as);
      if (keyspace === undefined) return null;
      const range = oneOf(random, keyspace.ranges);
      return change('move', moveMembers(keyspace, range, otherShard(topology, random, range.shard)));
    },
  },
  { name: 'unite', weight: 12, plan: uniting },
  {
    // Tables of no keyspace get one, and go.
    name: 'house out',
    weight: 20,
    plan(topology, random) {
      if (topology.keyspaces.has(HOUSE_KEYSPACE)) return null;
      const to = otherShard(topology, random, topology.home);
      return change('vertical', verticalMembers(topology, null, HOUSE_TABLES, HOUSE_KEYSPACE, to));
    },
  },
  {
    name: 'house',
    weight: 10,
    plan(topology, random) {
      const spec = houseMove(topology, (now) => otherShard(topology, random, now));
      return spec === null ? null : { as: 'migrations', specs: [spec] };
    },
  },
  {
    name: 'house home',
    weight: 8,
    plan(topology) {
      const keyspace = topology.keyspaces.get(HOUSE_KEYSPACE);
      if (keyspace === undefined) return null;
      const spec = houseMove(topology, () => topology.home);
      return spec === null ? { as: 'join', keyspace: HOUSE_KEYSPACE, into: null } : change('move', [spec]);
    },
  },
];

/** The columns that were split come together: as far as one change brings them. */
export function uniting(topology: Topology): Plan | null {
  return topology.keyspaces.has(HOT.as)
    ? change('unite', uniteMembers(findSplit(topology, HOT.table), HOT.table))
    : null;
}

/** Preflight refuses it while columns are split: a replica of either half, and a move of the table to or from where its hot half is, or may be soon. */
function isRefusedForHalves(plan: Plan, topology: Topology): boolean {
  const hot = topology.keyspaces.get(HOT.as);
  if (hot === undefined || plan.as === 'separate' || plan.as === 'join') return false;
  if (plan.as === 'replica') return plan.spec.keyspace === HOT.keyspace || plan.spec.keyspace === HOT.as;
  const specs = plan.as === 'migrations' ? plan.specs : plan.members;
  const isMixed = specs.some((spec) => spec.keyspace === HOT.as);
  return specs.some(
    (spec) =>
      spec.kind === 'move' &&
      spec.keyspace === HOT.keyspace &&
      (isMixed || rangesIn(hot, spec).some(({ shard }) => shard === spec.from || shard === spec.to)),
  );
}

/** What a plan must not touch while a replica follows, as preflight has it. */
function isInTheWay(plan: Plan, replica: MoveSpec): boolean {
  const specs = plan.as === 'migrations' ? plan.specs : plan.as === 'change' ? plan.members : null;
  if (specs === null) return true;
  return specs.some((spec) => {
    const isSame = spec.keyspace === replica.keyspace;
    if (spec.kind !== 'move' && spec.kind !== 'recut') return true;
    if (spec.kind === 'recut') return isSame && spec.cut.some((point) => contains(replica, point));
    return (isSame && (overlaps(replica, spec) || spec.from === replica.to)) || spec.to === replica.to;
  });
}

/**
 * Something that the map offers, by chance.
 * @param replica that follows meanwhile
 * @returns null when it seems to offer nothing
 */
export function somePlan(
  kinds: readonly Kind[],
  topology: Topology,
  random: Random,
  replica: MoveSpec | null,
): { readonly name: string; readonly plan: Plan } | null {
  const isCrowded = [...topology.keyspaces.values()].some(({ ranges }) => ranges.length > RANGES);
  const wheel = kinds.flatMap((kind) =>
    Array.from({ length: kind.name === 'merge' && isCrowded ? 300 : kind.weight }, () => kind),
  );
  for (let n = 0; n < TRIES; n++) {
    const kind = oneOf(random, wheel);
    const plan = planOf(kind, topology, random);
    if (plan === null || isRefusedForHalves(plan, topology)) continue;
    if (replica === null || !isInTheWay(plan, replica)) return { name: kind.name, plan };
  }
  return null;
}

function planOf(kind: Kind, topology: Topology, random: Random): Plan | null {
  try {
    return kind.plan(topology, random);
  } catch (error) {
    if (error instanceof UsageError) return null; // nothing to do: it is so already
    throw error;
  }
}
