import type { ShardName, Topology } from '../../topology/topology.js';
import { routeExecution } from '../router/resolve.js';
import type { Analyzed, BoundParams, Halves, Refusal, Route, StatementPlan, Target, Touch } from '../router/route.js';
import type { Router } from '../router/router.js';
import type { Footprint } from './footprint.js';
import type { Lookup } from './name-lookup.js';

type HalvesRoute = Extract<Route, { kind: 'halves' }>;

/** One statement about to run, with its values. */
export interface Execution {
  readonly analyzed: Analyzed;
  readonly index: number;
  readonly params: BoundParams | null;
  /** What names meant when it was analysed; null: they may mean something else by the time it runs. */
  readonly lookup: Lookup | null;
  /** What it is part of, which cannot run on several shards. */
  readonly within?: string;
}

/** Where statements that run together may run, at one epoch. */
export type Placement =
  | ({
      readonly kind: 'one' /** Preferred first; never empty. */;
      readonly shards: readonly ShardName[];
      readonly writes: boolean /** Touches of each execution, in order. */;
      readonly parts: readonly (readonly Touch[])[];
      /** Those that are about hot columns alone and go to the hot table, by their places among the executions; absent: none does. */
      readonly hot?: ReadonlyMap<number, Halves>;
    } & Footprint)
  | ({
      readonly kind: 'fanout';
      readonly shards: readonly ShardName[];
      /** By shard, the condition that is true of the rows that it owns, at this map. */
      readonly own: ReadonlyMap<ShardName, string>;
    } & Footprint)
  /** The home shard answers it, from its own tables and from rows of these shards. */
  | ({ readonly kind: 'gather'; readonly shards: readonly ShardName[] } & Footprint)
  /** It writes, or locks, both halves of rows of a table whose columns are split. */
  | ({
      readonly kind: 'halves';
      /** The one that has the base half, where it runs. */
      readonly shards: readonly [ShardName];
      readonly hotShard: ShardName;
      readonly halves: HalvesRoute['halves'];
      readonly writes: true;
    } & Footprint)
  | { readonly kind: 'refused'; readonly refusal: Refusal };

/** As of the schema by which it was placed last. */
export function planOf({ analyzed, index }: Execution): StatementPlan | null {
  const { statements } = analyzed.again ?? analyzed;
  return statements[index]?.plan ?? null;
}

/** Where the first statement of this kind stands; -1: there is none. */
export function firstThat(executions: readonly Execution[], is: (plan: StatementPlan) => boolean): number {
  for (let i = 0; i < executions.length; i++) {
    const plan = planOf(executions[i] as Execution);
    if (plan !== null && is(plan)) return i;
  }
  return -1;
}

/**
 * Which of `executions` cannot run with those before it, if these leave a transaction block open that they have begun; -1: there is no
 * such one. `place` refuses all of them together.
 */
export function refusedInBlock(executions: readonly Execution[], router: Router, topology: Topology): number {
  const fits = (n: number) => place(executions.slice(0, n), router, topology).kind !== 'refused';
  const at = executions.findIndex((_, i) => !fits(i + 1));
  return at >= 0 && blockOf(executions.slice(0, at)) >= 0 ? at : -1;
}

/** Which of the statements has begun the transaction block that is open behind them; -1: none is. */
export function blockOf(executions: readonly Execution[]): number {
  let begun = -1;
  for (const [i, execution] of executions.entries()) {
    const effect = planOf(execution)?.effect;
    if (effect?.kind === 'begin' && begun < 0) begun = i;
    else if (effect?.kind === 'commit' || effect?.kind === 'rollback') begun = effect.chain ? begun : -1;
  }
  return begun;
}

/** Pure: where all of `executions` can run together. None at all: on any shard, home first. */
export function place(executions: readonly Execution[], router: Router, topology: Topology): Placement {
  let shards: readonly ShardName[] | null = null;
  let writes = false;
  let writesReference = false;
  let everything = false;
  const touches: Touch[] = [];
  const parts: (readonly Touch[])[] = [];
  let hot: Map<number, Halves> | null = null;
  for (const [i, execution] of executions.entries()) {
    const known = planOf(execution);
    if (known === null || execution.analyzed.syntaxError) {
      parts.push([]); // any server says what is wrong with it
      continue;
    }
    const unresolved = execution.lookup?.sure !== true && namesTables(known);
    if (unresolved) router.refresh(execution.analyzed);
    const route: Route = unresolved
      ? routeExecution({ ...known, target: UNRESOLVED }, NO_VALUES, topology)
      : router.route(execution.analyzed, execution.index, execution.params, topology);
    if (route.kind === 'refused') return { kind: 'refused', refusal: route.refusal };
    if (unresolved || planOf(execution)?.target.kind === 'sole') everything = true;
    parts.push(route.touches);
    for (const touch of route.touches) touches.push(touch);
    if (route.kind === 'fanout' || route.kind === 'gather') {
      if (execution.within !== undefined)
        return refused(
          `${execution.within} over several shards is not supported yet`,
          'Restrict it to one sharding key.',
        );
      if (executions.length > 1)
        return refused('a statement for several shards must be sent alone, not with others in one batch');
      const { shards } = route;
      const footprint = { topology, touches, everything, writesReference: false };
      if (route.kind === 'gather') return { kind: 'gather', shards, ...footprint };
      return { kind: 'fanout', shards, own: route.own, ...footprint };
    }
    if (route.kind === 'halves') {
      if (execution.within !== undefined || executions.length > 1) return refusedApart(execution.within);
      const { shard, hotShard, halves } = route;
      return {
        kind: 'halves',
        shards: [shard],
        hotShard,
        halves,
        writes: true,
        topology,
        touches,
        everything,
        writesReference,
      };
    }
    if (route.kind === 'shard' && route.hot !== undefined) {
      // Its text is another one there, which is made of the whole of a message's.
      if (execution.within !== undefined || execution.analyzed.statements.length > 1)
        return refusedApart(execution.within);
      hot ??= new Map();
      hot.set(i, route.hot);
    }
    writes ||= route.writes;
    writesReference ||= route.writesReference;
    const allowed: readonly ShardName[] = route.kind === 'shard' ? [route.shard] : route.shards;
    const before: readonly ShardName[] = shards ?? allowed;
    shards = before === allowed ? allowed : before.filter((s) => allowed.includes(s));
    if (shards.length === 0)
      return refused(`these statements belong together but to different shards ("${before[0]}" and "${allowed[0]}")`);
  }
  if (shards === null) shards = [topology.home, ...[...topology.shards.keys()].filter((s) => s !== topology.home)];
  const one = { kind: 'one', topology, shards, writes, writesReference, touches, parts, everything } as const;
  return hot === null ? one : { ...one, hot };
}

/** A statement about hot columns of rows whose halves are on different shards. @param within what it is part of */
function refusedApart(within: string | undefined): Placement {
  if (within !== undefined)
    return refused(
      `${within} of a statement about columns that are on another shard than their rows is not supported`,
      'Send the statement itself, with parameters if it has some.',
    );
  return refused(
    'a statement about columns that are on another shard than their rows must be sent alone, not with others in one message or batch',
    'Send it as a message of its own, in a transaction block if it belongs to others.',
  );
}

/** For a statement whose tables nobody knows before it runs: one shard must have everything. */
const UNRESOLVED: Target = {
  kind: 'sole',
  refusal: {
    sqlstate: '0A000',
    message: 'which tables the statement uses is not certain, because search_path may have changed just before it',
    hint: 'Send it on its own, when the statement that changes search_path is answered.',
  },
};
const NO_VALUES = { text: Buffer.alloc(0), literal: () => undefined, params: null };

/** Whether the plan depends on what names mean. Transaction control, SET and SHOW do not. */
function namesTables(plan: StatementPlan): boolean {
  return plan.kind !== 'utility' || plan.target.kind !== 'any' || plan.command === 'PREPARE';
}

function refused(message: string, hint = 'Keep each transaction and each batch to the keys of one shard.'): Placement {
  return { kind: 'refused', refusal: { sqlstate: '0A000', message, hint } };
}
