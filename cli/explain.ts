import { loadModule, parseSync } from 'libpg-query';
import type { Analyzed, BoundParams, KeySource, Route, StatementPlan } from '../proxy/router/route.js';
import { Router } from '../proxy/router/router.js';
import { UsageError } from '../topology/errors.js';
import { positionToJson } from '../topology/key-codec.js';
import { type Keyspace, type ShardName, shardsOf, soleShard, type Topology } from '../topology/topology.js';
import { readHome } from './home-names.js';

/** How the proxy would route one statement; plain data. */
export interface ExplainedStatement {
  readonly sql: string;
  readonly kind: StatementPlan['kind'];
  readonly command: string;
  /** What the route hangs on. */
  readonly target: StatementPlan['target']['kind'];
  /** Where the key's values come from, one text per key; empty when the statement is not pinned by keys. */
  readonly keySources: readonly string[];
  /** Keys (or hashes) that it touches, as the catalog writes them; null: anywhere in the keyspace. */
  readonly touches: readonly { readonly keyspace: string; readonly position: readonly string[] | null }[];
  /** `by-parameter`: the key is a parameter whose value was not given. */
  readonly route: Route['kind'] | 'by-parameter';
  /** The first is preferred when the route is `any`; when it is `halves`, it has the base half of the rows, and the second the hot half. */
  readonly shards: readonly string[];
  readonly why: string;
  /** When the route is `refused`: what the client would get. */
  readonly refusal: { readonly sqlstate: string; readonly message: string; readonly hint: string | null } | null;
  /** Why the session would keep its server connection afterwards, or null. */
  readonly pins: string | null;
}

export interface Explained {
  readonly epoch: bigint;
  /** The text with its literals lifted out: what the router caches a plan for. */
  readonly template: string;
  readonly statements: readonly ExplainedStatement[];
}

/**
 * Routes a text as the proxy would at this epoch, and executes nothing.
 * @param params values of $1, $2, …, in PostgreSQL's text form
 * @throws UsageError on a syntax error
 */
export async function explain(topology: Topology, sql: string, params: readonly (string | null)[]): Promise<Explained> {
  const [names] = await Promise.all([readHome(topology), loadModule()]);
  const router = new Router({ topology: () => topology, metadata: () => names.metadata });
  const text = Buffer.from(sql);
  const analyzed = router.analyze(text, names);
  if (analyzed.syntaxError) throw syntaxError(sql);
  const bound: BoundParams = {
    oids: [],
    formats: params.map(() => 0),
    values: params.map((value) => (value === null ? null : Buffer.from(value))),
  };
  return {
    epoch: topology.epoch,
    template: analyzed.template,
    statements: analyzed.statements.map((statement, i) => {
      const highest = highestParam(statement.plan);
      if (highest > params.length && params.length > 0)
        throw new UsageError(
          `the key comes from $${highest}, and --params has ${params.length} value(s)`,
          'Give a value for each parameter.',
        );
      // With all data on one shard the values do not matter.
      const open = highest > 0 && params.length === 0 && soleShard(topology) === null;
      const route = open ? null : router.route(analyzed, i, params.length === 0 ? null : bound, topology);
      return {
        sql: text.subarray(statement.start, statement.end).toString(),
        ...explained(statement.plan, route, analyzed, topology),
      };
    }),
  };
}

function explained(
  plan: StatementPlan,
  route: Route | null,
  analyzed: Analyzed,
  topology: Topology,
): Omit<ExplainedStatement, 'sql'> {
  const { target } = plan;
  const common = {
    kind: plan.kind,
    command: plan.command,
    target: target.kind,
    keySources: target.kind === 'keys' ? target.keys.map((source) => sourceText(source, analyzed)) : [],
    pins: plan.pin,
  };
  if (route === null) {
    const keyspace = target.kind === 'keys' ? topology.keyspaces.get(target.keyspace) : undefined;
    return {
      ...common,
      touches: [],
      route: 'by-parameter',
      shards: keyspace === undefined ? [] : shardsOf(keyspace),
      why: 'the key is a parameter: its value says which of these; give it with --params',
      refusal: null,
    };
  }
  if (route.kind === 'refused') {
    const { sqlstate, message, hint } = route.refusal;
    return {
      ...common,
      touches: [],
      route: 'refused',
      shards: [],
      why: route.why,
      refusal: { sqlstate, message, hint: hint ?? null },
    };
  }
  return {
    ...common,
    touches: route.touches.map(({ keyspace, position }) => ({
      keyspace,
      position: positionToJson(topology.keyspaces.get(keyspace) as Keyspace, position),
    })),
    route: route.kind,
    shards: shardsIn(route),
    why: route.why,
    refusal: null,
  };
}

/** The first is preferred, or has the base half of the rows. */
function shardsIn(route: Exclude<Route, { kind: 'refused' }>): readonly ShardName[] {
  if (route.kind === 'shard') return [route.shard];
  return route.kind === 'halves' ? [route.shard, route.hotShard] : route.shards;
}

function sourceText(source: KeySource, analyzed: Analyzed): string {
  return source
    .map((column) => {
      if (column.kind === 'param') return `$${column.number}`;
      const token = analyzed.literals[column.ordinal];
      const text = token === undefined ? '?' : analyzed.text.subarray(token.start, token.end).toString();
      return column.negated ? `-${text}` : text;
    })
    .join(', ');
}

function highestParam(plan: StatementPlan): number {
  if (plan.target.kind !== 'keys') return 0;
  return Math.max(0, ...plan.target.keys.flat().map((column) => (column.kind === 'param' ? column.number : 0)));
}

function syntaxError(sql: string): UsageError {
  try {
    parseSync(sql);
  } catch (error) {
    return new UsageError((error as Error).message, 'PostgreSQL would refuse it, too.');
  }
  return new UsageError('syntax error', 'PostgreSQL would refuse it, too.');
}
