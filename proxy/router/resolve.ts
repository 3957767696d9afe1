import { intervalPredicate } from '../../topology/interval-sql.js';
import { type Interval, type KeyTuple, type Position, sameBound } from '../../topology/key.js';
import {
  type Keyspace,
  type KeyspaceName,
  type Range,
  rangeOf,
  type ShardName,
  shardsOf,
  soleShard,
  type TableName,
  type Topology,
  tableId,
} from '../../topology/topology.js';
import { leavesAll, readKey, readKeys, type Values } from './keys.js';
import { apart, areTogether, inWords } from './layout.js';
import type {
  Halves,
  KeyColumnSource,
  KeySource,
  OwnedBy,
  Refusal,
  Route,
  Spread,
  StatementPlan,
  Target,
  Touch,
} from './route.js';

type KeysTarget = Extract<Target, { kind: 'keys' }>;
type UnpinnedTarget = Extract<Target, { kind: 'unpinned' }>;
type AnyTarget = Extract<Target, { kind: 'any' }>;

const soleShards = new WeakMap<Topology, { readonly shard: ShardName | null }>();
const homeFirst = new WeakMap<Topology, readonly ShardName[]>();
const rangeWords = new WeakMap<Range, string>();

/** Where one execution of a planned statement goes. Pure. */
export function routeExecution(plan: StatementPlan, values: Values, topology: Topology): Route {
  let known = soleShards.get(topology);
  if (!known) {
    known = { shard: soleShard(topology) };
    soleShards.set(topology, known);
  }
  const { target } = plan;
  if (plan.forbidden !== undefined) return refused(plan.forbidden, 'nobody may do this, wherever data is');
  // Spelled out: this is what nearly every statement is.
  if (target.kind === 'keys' && target.keys.length === 1 && target.also === undefined) {
    const route = routeOneKey(plan.kind, target, values, topology, known.shard);
    if (route !== null) return route;
  }
  const writes = plan.kind === 'write' || plan.kind === 'ddl' || (target.kind === 'sole' && plan.kind !== 'read');
  if (target.kind === 'keys') return routeKeys(target, values, topology, writes, known.shard);
  if (target.kind === 'any') return routeAny(target, topology, writes);
  if (target.kind === 'unpinned') return routeUnpinned(target, values, topology, writes, known.shard, null);
  const touches = [...topology.keyspaces.keys()].map((keyspace) => ({ keyspace, position: null }));
  if (known.shard === null)
    return refused(target.refusal, 'it is not understood well enough to be exact on several shards');
  return {
    kind: 'shard',
    shard: known.shard,
    touches,
    writes,
    writesReference: writes,
    why: 'one shard has everything',
  };
}

/** A statement with one key, which is read and on one shard; null: it is not as simple as that. */
function routeOneKey(
  kind: StatementPlan['kind'],
  target: KeysTarget,
  values: Values,
  topology: Topology,
  sole: ShardName | null,
): Route | null {
  if (sole === null && (target.home || target.referenceReads !== undefined)) return null;
  const keyspace = topology.keyspaces.get(target.keyspace);
  const source = target.keys[0] as KeySource;
  if (keyspace === undefined || source.some(isArray)) return null;
  const read = readKey(keyspace, source, values);
  if (read.kind !== 'key') return null;
  const { key, position } = read;
  const range = sole === null ? rangeOf(keyspace, position) : null;
  return {
    kind: 'shard',
    shard: range === null ? (sole as ShardName) : range.shard,
    touches: [{ keyspace: target.keyspace, position, key }],
    writes: kind === 'write' || kind === 'ddl',
    writesReference: range === null && target.referenceWrites.length > 0,
    why: range === null ? 'one shard has everything' : wordsFor(range, position),
  };
}

const isArray = (column: KeyColumnSource) => column.array === true;

function routeKeys(
  target: KeysTarget,
  values: Values,
  topology: Topology,
  writes: boolean,
  sole: ShardName | null,
): Route {
  const touches: Touch[] = [];
  const shards = new Set<ShardName>();
  let unsure = false;
  let isNull = false;
  let firstKey: KeyTuple | null = null;
  let differing = false;
  let range: Range | null = null;
  const { halves } = target;
  const places = halves && new HalfPlaces(halves, topology);
  const add = (name: KeyspaceName, keys: readonly KeySource[]) => {
    const keyspace = topology.keyspaces.get(name);
    if (!keyspace) {
      unsure = true;
      return;
    }
    let missed = false;
    for (const source of keys)
      for (const read of readKeys(keyspace, source, values)) {
        if (read.kind === 'null') isNull = true;
        else if (read.kind === 'unsure') missed = true;
        else {
          if (firstKey === null) firstKey = read.key;
          else if (target.sameKey && read.key.some((s, i) => s !== (firstKey as KeyTuple)[i])) differing = true;
          const found = rangeOf(keyspace, read.position);
          if (places?.hot === keyspace) places.add(found.shard, read.position);
          else {
            range = found;
            shards.add(found.shard);
          }
          touches.push({ keyspace: name, position: read.position, key: read.key });
        }
      }
    if (missed) {
      unsure = true;
      touches.push({ keyspace: name, position: null });
    }
  };
  add(target.keyspace, target.keys);
  for (const other of target.also ?? []) {
    add(other.keyspace, other.keys);
    if (halves?.behind && other.keys.length === 0) touches.push({ keyspace: other.keyspace, position: null });
  }

  if (sole !== null)
    return {
      kind: 'shard',
      shard: sole,
      touches,
      writes,
      writesReference: target.referenceWrites.length > 0,
      why: 'one shard has everything',
    };
  if (unsure) {
    const reason = 'a value given for the sharding key is not surely of its type';
    const spread: Spread = target.inserts || writes ? { kind: 'refused', refusal: UNSURE_KEY } : target.spread;
    return routeUnpinned(
      { ...target, kind: 'unpinned', keyspaces: keyspacesOf(target), spread },
      values,
      topology,
      writes,
      sole,
      reason,
    );
  }
  if (isNull && target.inserts)
    return refused(
      {
        sqlstate: '23502',
        message: 'null value in the sharding key of an inserted row',
        hint: 'The sharding key decides on which shard the row lives.',
      },
      'a key is NULL',
    );
  if (differing || (isNull && target.sameKey))
    return refused(
      {
        sqlstate: '0A000',
        message: 'changing the sharding key of a row is not supported on several shards yet',
        hint: 'Delete the row and insert it anew.',
      },
      'UPDATE sets the key to another value',
    );
  const keyspaces = keyspacesOf(target);
  if (halves?.behind && halves.apart.kind === 'refused' && !areTogether(topology, keyspaces))
    return refused(halves.apart.refusal, APART);
  if (halves !== undefined && places?.apart)
    return routeApart(target, halves, places, shards, touches, topology, writes);
  if (shards.size === 0) {
    // Only NULLs: no row can match, and every shard that has the tables knows that.
    const all = withCopies(
      shardsOf(topology.keyspaces.get(target.keyspace) as Keyspace),
      target.referenceReads,
      topology,
    ).filter((s) => (!target.home || s === topology.home) && hasAll(s, based(keyspaces, halves), topology));
    if (all.length === 0) return refused(NO_COMMON_SHARD, 'no shard has all of its tables');
    return {
      kind: 'any',
      shards: all,
      touches,
      writes,
      writesReference: false,
      why: 'the key is NULL, which no row has',
    };
  }
  if (target.home && (shards.size > 1 || !shards.has(topology.home)))
    return gathered(
      target,
      shards,
      touches,
      topology,
      homeBehind(target, topology) ??
        awayFromHome(target, topology) ?? {
          sqlstate: '0A000',
          message: `this statement joins sharded rows with tables that only shard "${topology.home}" has, and the rows are on another shard`,
          hint: 'Make the small tables reference tables, or do it in two statements.',
        },
      'its tables are on different shards',
    );
  const missing = missingCopy([...shards], target.referenceReads, topology);
  if (missing) return gathered(target, shards, touches, topology, missing, 'a reference table has no copy there');
  if (shards.size === 1) {
    const shard = [...shards][0] as ShardName;
    // A NULL does not say where its keyspace's tables are.
    if (isNull && !hasAll(shard, based(keyspaces, halves), topology)) return refused(apart(topology, keyspaces), APART);
    return {
      kind: 'shard',
      shard,
      touches,
      writes,
      writesReference: false,
      why:
        touches.length === 1 && range
          ? wordsFor(range, (touches[0] as Touch).position)
          : `all its keys are on shard ${shard}`,
    };
  }
  if (!areTogether(topology, keyspaces))
    return gathered(target, shards, touches, topology, apart(topology, keyspaces), APART);
  const why = `its keys are on shards ${[...shards].join(', ')}`;
  const refusal = refusalOf(target.spread, values);
  if (refusal) return gathered(target, shards, touches, topology, refusal, why);
  const own = ownRows(target.spread, [...shards], values, topology);
  if ('sqlstate' in own) return refused(own, why);
  return {
    kind: 'fanout',
    shards: [...shards],
    own,
    touches,
    writes: false,
    writesReference: false,
    why,
  };
}

function routeUnpinned(
  target: UnpinnedTarget,
  values: Values,
  topology: Topology,
  writes: boolean,
  sole: ShardName | null,
  reason: string | null,
): Route {
  const touches = target.keyspaces.map((keyspace) => ({ keyspace, position: null }));
  if (sole !== null)
    return {
      kind: 'shard',
      shard: sole,
      touches,
      writes,
      writesReference: target.referenceWrites.length > 0,
      why: 'one shard has everything',
    };
  const shards = [
    ...new Set(
      target.keyspaces.flatMap((k) => {
        const keyspace = topology.keyspaces.get(k);
        return keyspace ? shardsOf(keyspace) : [];
      }),
    ),
  ];
  const why = reason ?? 'it is not restricted to a sharding key';
  if (shards.length === 1 && (!target.home || shards[0] === topology.home)) {
    const missing = missingCopy(shards, target.referenceReads, topology);
    if (missing) return refused(missing, 'a reference table has no copy there');
    return {
      kind: 'shard',
      shard: shards[0] as ShardName,
      touches,
      writes,
      writesReference: false,
      why: `all of its keyspace is on shard ${shards[0]}`,
    };
  }
  const away = awayFromHome(target, topology);
  if (away !== null) return refused(away, 'its tables are on different shards');
  const { halves } = target;
  if (halves !== undefined && !areTogether(topology, [halves.base, halves.keyspace])) {
    const places = new HalfPlaces(halves, topology);
    for (const range of places.hot?.ranges ?? []) places.shards.add(range.shard);
    const base = based(target.keyspaces, halves).flatMap((name) => shardsOf(topology.keyspaces.get(name) as Keyspace));
    places.together = base.some((shard) => places.shards.has(shard));
    return routeApart(target, halves, places, new Set(base), touches, topology, writes);
  }
  if (!areTogether(topology, target.keyspaces))
    return gathered(target, shards, touches, topology, apart(topology, target.keyspaces), APART);
  const refusal = refusalOf(target.spread, values);
  if (refusal) return gathered(target, shards, touches, topology, refusal, why);
  const missing = missingCopy(shards, target.referenceReads, topology);
  if (missing) return gathered(target, shards, touches, topology, missing, 'a reference table has no copy there');
  const own = ownRows(target.spread, shards, values, topology);
  if ('sqlstate' in own) return refused(own, why);
  return { kind: 'fanout', shards, own, touches, writes: false, writesReference: false, why };
}

/** Where the hot halves of rows are. */
class HalfPlaces {
  readonly hot: Keyspace | undefined;
  readonly #base: Keyspace | undefined;
  readonly shards = new Set<ShardName>();
  /** Some of them are on another shard than the base halves of the same rows. */
  apart = false;
  /** Some, perhaps, are not. */
  together = false;

  constructor(halves: Halves, topology: Topology) {
    this.hot = topology.keyspaces.get(halves.keyspace);
    this.#base = topology.keyspaces.get(halves.base);
  }

  /** @param position the same in both keyspaces, which have the same key */
  add(shard: ShardName, position: Position): void {
    this.shards.add(shard);
    if (this.#base !== undefined && rangeOf(this.#base, position).shard === shard) this.together = true;
    else this.apart = true;
  }
}

/** A statement about both halves of rows, or the hot one, of which some are on another shard than the base half. @param base where the base halves are, and all else */
function routeApart(
  target: KeysTarget | UnpinnedTarget,
  halves: Halves,
  places: HalfPlaces,
  base: ReadonlySet<ShardName>,
  touches: readonly Touch[],
  topology: Topology,
  writes: boolean,
): Route {
  const { apart: what, table } = halves;
  const [shard] = base;
  const [hotShard] = places.shards;
  const where = `the hot columns of ${table.table} are on ${inWords([...places.shards])}, its other columns on ${inWords([...base])}`;
  if (what.kind === 'refused') return refused(what.refusal, where);
  if (shard === undefined || hotShard === undefined) throw new RangeError('halves that are apart are nowhere');
  // What would be changed by the hot table's name where both halves are would be missing in the other one.
  if (what.kind === 'hot' && places.shards.size === 1 && !(writes && places.together))
    return {
      kind: 'shard',
      shard: hotShard,
      touches: touches.filter(({ keyspace }) => keyspace === halves.keyspace),
      writes,
      writesReference: false,
      why: `it is about hot columns of ${table.table} only, which are on shard ${hotShard}`,
      hot: halves,
    };
  const several: Refusal = {
    sqlstate: '0A000',
    message: `the hot columns of the rows of "${table.table}" that this statement is about are on another shard than its other columns, and not all on one`,
    hint: 'Restrict it to the rows of one sharding key.',
  };
  if (what.kind === 'gather' || (what.kind === 'hot' && !writes)) {
    if (target.gather !== undefined && target.gather !== 'possible') return refused(target.gather, where);
    return gathered(target, new Set([...base, ...places.shards]), touches, topology, several, where);
  }
  if (what.kind !== 'write' || base.size > 1 || places.shards.size > 1)
    return refused(base.size > 1 && target.spread.kind === 'refused' ? target.spread.refusal : several, where);
  if (target.home && shard !== topology.home)
    return refused(
      homeBehind(target, topology) ?? {
        sqlstate: '0A000',
        message: `this statement uses sharded rows and tables that only shard "${topology.home}" has, and the rows are on another shard`,
        hint: 'Make the small tables reference tables, or do it in two statements.',
      },
      'its tables are on different shards',
    );
  const missing = missingCopy([shard], target.referenceReads, topology);
  if (missing) return refused(missing, 'a reference table has no copy there');
  return {
    kind: 'halves',
    shard,
    hotShard,
    halves: { ...halves, apart: what },
    touches,
    writes: true,
    writesReference: false,
    why: where,
  };
}

/** Keyspaces without that of the hot halves. */
function based(keyspaces: readonly KeyspaceName[], halves: Halves | undefined): readonly KeyspaceName[] {
  return halves === undefined ? keyspaces : keyspaces.filter((name) => name !== halves.keyspace);
}

/** What no way through the shards leads to: the home shard answers it if it can. @param refusal if it is not one to be answered so, and that is not all there is to say */
function gathered(
  target: KeysTarget | UnpinnedTarget,
  shards: Iterable<ShardName>,
  touches: readonly Touch[],
  topology: Topology,
  refusal: Refusal,
  why: string,
): Route {
  const { gather, spread } = target;
  if (gather === undefined) return refused(refusal, why);
  if (gather !== 'possible')
    return refused(spread.kind === 'refused' && spread.refusal === refusal ? gather : refusal, why);
  const away = awayFromHome(target, topology) ?? missingCopy([topology.home], target.referenceReads, topology);
  if (away !== null) return refused(away, 'its tables are on different shards');
  return { kind: 'gather', shards: [...shards], touches, writes: false, writesReference: false, why };
}

/**
 * By shard, what is true of the rows that it owns: it may have others besides, of ranges that are coming to it or have just left. Or why that
 * cannot be said.
 */
function ownRows(
  spread: Spread,
  shards: readonly ShardName[],
  values: Values,
  topology: Topology,
): ReadonlyMap<ShardName, string> | Refusal {
  const of = spread.kind === 'fanout' ? spread.of : null;
  if (!of) throw new RangeError('a statement for several shards is about rows of none');
  const conditions = ownConditions(of, topology);
  if (values.foreignEncoding && shards.some((shard) => /[^ -~]/.test(conditions.get(shard) ?? '')))
    return {
      sqlstate: '0A000',
      message: 'a query over several shards cannot be restricted to the rows of each in this client_encoding',
      hint: 'Use client_encoding UTF8, or give the key.',
    };
  return conditions;
}

/** Names of tables in statements for which conditions are kept, of one topology. */
const MAX_OWN = 1000;
const ownByName = new WeakMap<Topology, Map<string, ReadonlyMap<ShardName, string>>>();

/** Of every shard, for one table by the name that statements have for it; made once for a topology: of many ranges they are long. */
export function ownConditions(of: OwnedBy, topology: Topology): ReadonlyMap<ShardName, string> {
  let known = ownByName.get(topology);
  if (known === undefined) {
    known = new Map();
    ownByName.set(topology, known);
  }
  const id = JSON.stringify(of);
  const found = known.get(id);
  if (found !== undefined) return found;
  const keyspace = topology.keyspaces.get(of.keyspace);
  if (!keyspace) throw new RangeError('a statement for several shards is about rows of none');
  const conditions = new Map<ShardName, string>();
  for (const shard of shardsOf(keyspace)) {
    const intervals = joined(keyspace.ranges.filter((range) => range.shard === shard));
    const predicates = intervals.map((i) => `(${intervalPredicate(keyspace, of.keyColumns, i, of.name)})`);
    // Nearly all rows of a shard are its own. As a CASE, PostgreSQL makes no more of it: it takes a hash between two values for one row in 200, and thinks long about many intervals.
    conditions.set(shard, `CASE WHEN ${predicates.join(' OR ')} THEN true END`);
  }
  if (known.size >= MAX_OWN) known.clear();
  known.set(id, conditions);
  return conditions;
}

/** Neighbours made one; they come in order. */
function joined(ranges: readonly Range[]): Interval[] {
  const intervals: Interval[] = [];
  for (const { lo, hi } of ranges) {
    const last = intervals.at(-1);
    if (last !== undefined && lo !== null && sameBound(last.hi, lo))
      intervals[intervals.length - 1] = { lo: last.lo, hi };
    else intervals.push({ lo, hi });
  }
  return intervals;
}

function routeAny(target: AnyTarget, topology: Topology, writes: boolean): Route {
  let shards = homeFirst.get(topology);
  if (!shards) {
    shards = [topology.home, ...[...topology.shards.keys()].filter((s) => s !== topology.home)];
    homeFirst.set(topology, shards);
  }
  if (target.homeOnly) shards = [topology.home];
  if (target.referenceReads.length > 0) {
    const missing = target.homeOnly ? missingCopy(shards, target.referenceReads, topology) : null;
    if (missing) return refused(missing, 'a reference table has no copy there');
    shards = withCopies(shards, target.referenceReads, topology);
  }
  if (target.referenceWrites.length > 0) {
    for (const table of target.referenceWrites) {
      const copies = topology.referenceTables.get(tableId(table))?.shards ?? [];
      if (copies.length > 1)
        return refused(
          {
            sqlstate: '0A000',
            message: `writing the reference table "${table.table}" is not supported yet while shards ${copies.map((s) => `"${s}"`).join(', ')} have copies of it`,
            hint: 'Change it on each of these shards directly.',
          },
          'several shards have copies',
        );
      shards = shards.filter((s) => copies.includes(s));
    }
  }
  if (shards.length === 0) return refused(NO_COMMON_SHARD, 'no shard has all of its tables');
  const writesReference = target.referenceWrites.length > 0;
  const why = target.homeOnly
    ? 'its tables are on the home shard'
    : target.referenceReads.length + target.referenceWrites.length > 0
      ? 'it uses reference tables only'
      : 'it uses no table';
  if (shards.length === 1)
    return { kind: 'shard', shard: shards[0] as ShardName, touches: NO_TOUCHES, writes, writesReference, why };
  return { kind: 'any', shards, touches: NO_TOUCHES, writes, writesReference, why };
}

const UNSURE_KEY: Refusal = {
  sqlstate: '0A000',
  message: 'the sharding key has a value that the proxy cannot be sure about',
  hint: 'Give it as a plain literal, or as a parameter of the column’s own type.',
};

const APART = 'its tables are of keyspaces whose rows are not together';

function keyspacesOf(target: KeysTarget): KeyspaceName[] {
  return [target.keyspace, ...(target.also ?? []).map((other) => other.keyspace)];
}

/** What a statement is told whose sharded table uses tables of the home shard unseen, for rows that are elsewhere. */
export function homeBehind({ homeBehind: table }: KeysTarget | UnpinnedTarget, { home }: Topology): Refusal | null {
  if (table === undefined) return null;
  return {
    sqlstate: '0A000',
    message: `"${table}" has triggers, rules, policies, defaults, checks or other parts that may use tables that only shard "${home}" has, and the rows are on another shard`,
    hint: 'Drop them, or let them use tables of the keyspace only.',
  };
}

/** Why a statement does not run that reaches tables through what only the home shard has: these are elsewhere. Null: none is. */
function awayFromHome({ atHome = [] }: KeysTarget | UnpinnedTarget, topology: Topology): Refusal | null {
  const name = atHome.find((k) => topology.keyspaces.get(k)?.ranges.some((range) => range.shard !== topology.home));
  if (name === undefined) return null;
  return {
    sqlstate: '0A000',
    message: `this statement works only while the tables of keyspace "${name}" are on shard "${topology.home}", which has what else it uses`,
    hint: `Move them there first ("foreshard migrate plan move ${name} --to ${topology.home}"), or use nothing but the tables themselves.`,
  };
}

/** Whether the tables of all these keyspaces are on the shard. */
function hasAll(shard: ShardName, keyspaces: readonly KeyspaceName[], topology: Topology): boolean {
  return keyspaces.every((name) => topology.keyspaces.get(name)?.ranges.some((range) => range.shard === shard));
}

const NO_TOUCHES: readonly Touch[] = [];

const NO_COMMON_SHARD: Refusal = {
  sqlstate: '0A000',
  message: 'no shard has all the tables of this statement',
  hint: 'Make the small ones reference tables.',
};

/** Why the answer is not the union of the shards' answers; null: it is. */
function refusalOf(spread: Spread, values: Values): Refusal | null {
  if (spread.kind === 'refused') return spread.refusal;
  if (spread.uncut === undefined) return null;
  const { limit, offset, refusal } = spread.uncut;
  const uncut =
    (limit === null || leavesAll(limit, 'limit', values)) && (offset === null || leavesAll(offset, 'offset', values));
  return uncut ? null : refusal;
}

function refused(refusal: Refusal, why: string): Route {
  return { kind: 'refused', refusal, why };
}

function withCopies(
  shards: readonly ShardName[],
  tables: readonly TableName[] | undefined,
  topology: Topology,
): ShardName[] {
  return shards.filter((s) =>
    (tables ?? []).every((t) => topology.referenceTables.get(tableId(t))?.shards.includes(s)),
  );
}

function missingCopy(
  shards: readonly ShardName[],
  tables: readonly TableName[] | undefined,
  topology: Topology,
): Refusal | null {
  for (const table of tables ?? []) {
    const copies = topology.referenceTables.get(tableId(table))?.shards ?? [];
    const without = shards.find((s) => !copies.includes(s));
    if (without !== undefined)
      return {
        sqlstate: '0A000',
        message: `shard "${without}" has no copy of the reference table "${table.table}"`,
        hint: 'Wait until its copy is made, or read it in a statement of its own.',
      };
  }
  return null;
}

function wordsFor(range: Range, position: Touch['position']): string {
  if (position?.length === 0)
    return `its tables are those of keyspace ${range.keyspace}, which shard ${range.shard} has`;
  let words = rangeWords.get(range);
  if (words === undefined) {
    words = `its key is in range ${range.id} of keyspace ${range.keyspace}, which shard ${range.shard} owns`;
    rangeWords.set(range, words);
  }
  return words;
}
