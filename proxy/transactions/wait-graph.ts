import { strongComponents } from './strong-components.js';
import type { KeyRole } from './transaction-key.js';

/** What one shard says of who waits there. Process ids are those of sessions: a parallel worker's wait is its leader's. */
export interface ShardReading {
  readonly shard: string;
  readonly branches: readonly Branch[];
  readonly waits: readonly Wait[];
  /** What prepared transactions hold of what is waited for: pg_blocking_pids says 0 for them, and not which they are. */
  readonly prepared: readonly HeldByPrepared[];
}

/** A session, or a prepared transaction, that has a key. */
export interface Branch {
  readonly key: bigint;
  readonly role: KeyRole;
  /** Null: it is prepared. */
  readonly pid: number | null;
  /** Where the key is locked: a server may have several of its databases as shards. */
  readonly database: string;
}

/** A process that waits for a lock. */
export interface Wait {
  readonly pid: number;
  /** Another one than `pid`: its parallel worker. */
  readonly process: number;
  /** `waitstart`; null for a moment after it has begun. */
  readonly since: string | null;
  readonly mode: string;
  /** The lock, in PostgreSQL's words. */
  readonly lock: string;
  /** Whom the session waits for, be it for what they hold, or because they are ahead of it in the queue. 0: a prepared transaction. */
  readonly blockers: readonly number[];
}

export interface HeldByPrepared {
  readonly key: bigint;
  readonly lock: string;
  readonly mode: string;
}

/** One waits for the other: both have a key, which is a transaction or a statement on several shards; or they are sessions without one. */
interface WaitsFor {
  readonly from: string;
  readonly to: string;
  /** The same in two readings: it is the same wait, for the same one. */
  readonly id: string;
  /** Of the one that waits; null: it has none, or nothing of it runs on several shards now, so that nobody would end it. */
  readonly key: bigint | null;
  readonly shard: string;
  readonly pid: number;
  readonly mode: string;
  readonly lock: string;
  /** 0: a prepared transaction. */
  readonly blocker: number;
}

export interface Deadlock {
  /** The largest key in it: every proxy chooses the same. */
  readonly victim: bigint;
  /** From the victim to the victim. */
  readonly cycle: readonly WaitsFor[];
}

/** Lock modes from weak to strong, and (by the same order) which do not go together: LockConflicts in PostgreSQL's lock.c. */
const MODES = [
  'AccessShare',
  'RowShare',
  'RowExclusive',
  'ShareUpdateExclusive',
  'Share',
  'ShareRowExclusive',
  'Exclusive',
  'AccessExclusive',
];
const CONFLICTS = ['.......x', '......xx', '....xxxx', '...xxxxx', '..xx.xxx', '..xxxxxx', '.xxxxxxx', 'xxxxxxxx'];

export function conflict(a: string, b: string): boolean {
  const [i, j] = [a, b].map((mode) => MODES.findIndex((m) => mode === `${m}Lock`)) as [number, number];
  return CONFLICTS[i]?.[j] === 'x';
}

/** Who waits for whom on these shards. A wait that has no beginning yet is none. */
export function waitsOn(readings: readonly ShardReading[]): WaitsFor[] {
  // A block stays known by its key when the statement is through for which it got that, and then it is on one shard.
  const branches = readings.flatMap((reading) => reading.branches);
  const several = new Set(branches.filter(({ role }) => role !== 'block').map(({ key }) => key));
  return readings.flatMap((reading) => waitsOnShard(reading, several));
}

function waitsOnShard(reading: ShardReading, several: ReadonlySet<bigint>): WaitsFor[] {
  const { shard } = reading;
  const keys = keysOf(reading.branches);
  const node = (pid: number, key = keys.get(pid)) => (key === undefined ? `process ${pid} ${shard}` : `key ${key}`);
  return sessionsOf(reading.waits).flatMap(([first, ...others]) => {
    const waits = [first, ...others];
    if (waits.some((w) => w.since === null)) return [];
    const { pid, mode, lock } = first;
    // One who stops waiting for anything goes on, and begins another wait.
    const same = waits.map((w) => `${w.process} ${w.since}`).sort();
    const from = node(pid);
    const own = keys.get(pid) ?? null;
    const edge = (blocker: number, to: string): WaitsFor => ({
      from,
      to,
      id: JSON.stringify([shard, from, to, blocker, ...same]),
      key: own !== null && several.has(own) ? own : null,
      shard,
      pid,
      mode,
      lock,
      blocker,
    });
    const blockers = new Set(waits.flatMap((w) => w.blockers));
    const edges = [...blockers].filter((b) => b !== 0).map((b) => edge(b, node(b)));
    if (!blockers.has(0)) return edges;
    const held = reading.prepared.filter((h) => waits.some((w) => w.lock === h.lock && conflict(w.mode, h.mode)));
    return [...edges, ...[...new Set(held.map((h) => h.key))].map((key) => edge(0, node(0, key)))];
  });
}

/** By session; of one that has several the smallest, see `blockCall`. A lock that two hold in one database is nobody's: it is an application's, with a number that looks like a key. */
function keysOf(branches: readonly Branch[]): Map<number, bigint> {
  const holders = new Map<string, number>();
  const name = (b: Branch) => `${b.key} ${b.role} ${b.database}`;
  for (const b of branches) holders.set(name(b), (holders.get(name(b)) ?? 0) + 1);
  const keys = new Map<number, bigint>();
  for (const b of branches) {
    if (b.pid === null || holders.get(name(b)) !== 1) continue;
    const known = keys.get(b.pid);
    if (known === undefined || b.key < known) keys.set(b.pid, b.key);
  }
  return keys;
}

/** The waits of each session: it has several when its parallel workers wait. */
function sessionsOf(waits: readonly Wait[]): [Wait, ...Wait[]][] {
  const sessions = new Map<number, [Wait, ...Wait[]]>();
  for (const wait of waits) {
    const known = sessions.get(wait.pid);
    if (known === undefined) sessions.set(wait.pid, [wait]);
    else known.push(wait);
  }
  return [...sessions.values()];
}

/**
 * What was so in both readings, the second of which began after the first had ended: all of it was so at one moment in between. Who waits lets go
 * of nothing, and whoever comes later waits behind him.
 */
export function lasting(first: readonly WaitsFor[], second: readonly WaitsFor[]): WaitsFor[] {
  const before = new Set(first.map((w) => w.id));
  return second.filter((w) => before.has(w.id));
}

/** Those that no server sees by itself. Whoever is in one that a server does see is left out: PostgreSQL ends that, and then there may be none. */
export function deadlocks(all: readonly WaitsFor[]): Deadlock[] {
  const seen = seenByServers(all);
  const waits = all.filter((w) => !seen.has(w.from) && !seen.has(w.to));
  const outgoing = new Map<string, WaitsFor[]>();
  for (const wait of waits) {
    const known = outgoing.get(wait.from);
    if (known === undefined) outgoing.set(wait.from, [wait]);
    else known.push(wait);
  }
  const keys = new Map(waits.flatMap((w) => (w.key === null ? [] : [[w.from, w.key] as const])));
  return cyclic(waits).flatMap((members) => {
    const spanning = members.filter((m) => keys.has(m));
    const largest = spanning.reduce<string | null>(
      (a, b) => (a === null || (keys.get(b) as bigint) > (keys.get(a) as bigint) ? b : a),
      null,
    );
    return largest === null ? [] : [{ victim: keys.get(largest) as bigint, cycle: cycleThrough(largest, outgoing) }];
  });
}

/** Who is in a deadlock as its server sees it: between processes, whatever transactions they belong to. */
function seenByServers(waits: readonly WaitsFor[]): Set<string> {
  const process = (shard: string, pid: number) => JSON.stringify([shard, pid]);
  const within = waits
    .filter((w) => w.blocker !== 0)
    .map((w) => ({ from: process(w.shard, w.pid), to: process(w.shard, w.blocker) }));
  const seen = new Set(cyclic(within).flat());
  return new Set(waits.filter((w) => seen.has(process(w.shard, w.pid))).map((w) => w.from));
}

/** Sets of those that wait for one another, each directly or by way of others. */
function cyclic(edges: readonly { readonly from: string; readonly to: string }[]): string[][] {
  const next = new Map<string, string[]>();
  for (const { from, to } of edges) {
    const known = next.get(from);
    if (known === undefined) next.set(from, [to]);
    else known.push(to);
  }
  return strongComponents(next).filter(
    ([node, ...others]) => node !== undefined && (others.length > 0 || next.get(node)?.includes(node)),
  );
}

/** A shortest one. */
function cycleThrough(start: string, outgoing: ReadonlyMap<string, readonly WaitsFor[]>): WaitsFor[] {
  const reachedBy = new Map<string, WaitsFor>();
  const queue = [start];
  for (const node of queue) {
    for (const wait of outgoing.get(node) ?? []) {
      if (reachedBy.has(wait.to)) continue;
      reachedBy.set(wait.to, wait);
      queue.push(wait.to);
      if (wait.to === start) return pathTo(start, reachedBy);
    }
  }
  return [];
}

function pathTo(end: string, reachedBy: ReadonlyMap<string, WaitsFor>): WaitsFor[] {
  const path: WaitsFor[] = [];
  let wait = reachedBy.get(end);
  while (wait !== undefined) {
    path.unshift(wait);
    wait = wait.from === end ? undefined : reachedBy.get(wait.from);
  }
  return path;
}

/** The cycle as the DETAIL of an error, in PostgreSQL's words as far as it has any: DeadLockReport in deadlock.c. */
export function describeCycle(cycle: readonly WaitsFor[]): string {
  return cycle
    .map((wait, i) => {
      const before = cycle.at(i - 1) as WaitsFor;
      const same = before.shard === wait.shard && before.blocker === wait.pid;
      const as = same ? '' : ` (the same transaction as ${whoBlocks(before)} on shard "${before.shard}")`;
      return `Process ${wait.pid} on shard "${wait.shard}"${as} waits for ${wait.mode} on ${wait.lock}; blocked by ${whoBlocks(wait)}.`;
    })
    .join('\n');
}

function whoBlocks({ blocker }: WaitsFor): string {
  return blocker === 0 ? 'a prepared transaction' : `process ${blocker}`;
}
