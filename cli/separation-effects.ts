import { apart } from '../proxy/router/layout.js';
import type { Relation } from '../proxy/router/metadata.js';
import { reachHome, reachOf } from '../proxy/router/reach.js';
import { beyond, type Registry, registryOf } from '../proxy/router/registry.js';
import { homeBehind } from '../proxy/router/resolve.js';
import type { StatementPlan, Target } from '../proxy/router/route.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { afterSeparation, type Separation } from '../topology/separation.js';
import { type KeyspaceName, type ShardedTable, soleShard, type Topology, tableId } from '../topology/topology.js';
import { type HomeNames, readHome } from './home-names.js';
import { replanTemplates } from './recorded-templates.js';

/** What statements of a template would be told. */
export interface AffectedTemplate {
  readonly template: string;
  /** In the last days. */
  readonly calls: number;
  readonly why: string;
}

/** What runs now, and will be refused once a range of the tables is on another shard than its counterpart. */
export interface SeparationEffects {
  readonly templates: readonly AffectedTemplate[];
  /** Queries that will be answered by the home shard, from rows of both. */
  readonly gathered: readonly Omit<AffectedTemplate, 'why'>[];
  /** Templates too long, or in a form, that could not be looked at. */
  readonly unread: number;
  /** Views and functions, as people name them. */
  readonly objects: readonly string[];
}

/** @throws ForeshardError when the home shard's schema cannot be read */
export async function separationEffects(
  catalog: Catalog,
  topology: Topology,
  separation: Separation,
): Promise<SeparationEffects> {
  const names = await readHome(topology);
  const separated = afterSeparation(topology, separation);
  const recorded = await replanTemplates(catalog, names, topology, separated);
  const templates: AffectedTemplate[] = [];
  const gathered: Omit<AffectedTemplate, 'why'>[] = [];
  for (const { template, calls, now, then } of recorded.templates) {
    const why = then
      .map((plan, i) => whyRefused(now[i], plan, topology, separated, separation))
      .find((w) => w !== null);
    if (why) templates.push({ template, calls, why });
    else if (then.some((plan) => willGather(plan, separation))) gathered.push({ template, calls });
  }
  const { unread } = recorded;
  return { templates, gathered, unread, objects: tiedObjects(names, topology, separated, separation) };
}

/** Null: it runs as before. */
function whyRefused(
  now: StatementPlan | undefined,
  then: StatementPlan,
  topology: Topology,
  separated: Topology,
  { as }: Separation,
): string | null {
  const { target } = then;
  if (target.kind === 'any') return null;
  if (target.kind === 'sole') {
    const runsNow = now?.target.kind !== 'sole' || soleShard(topology) !== null;
    return runsNow ? target.refusal.message : null;
  }
  const keyspaces = keyspacesOf(target);
  if (!keyspaces.includes(as as KeyspaceName) || willGather(then, { as })) return null;
  if (keyspaces.length > 1) return apart(separated, keyspaces).message;
  if (target.home && target.homeBehind !== undefined) return homeBehind(target, separated)?.message ?? null;
  return target.home ? `it also uses tables that only shard "${topology.home}" has` : null;
}

function keyspacesOf(target: Extract<Target, { kind: 'keys' | 'unpinned' }>): readonly KeyspaceName[] {
  return target.kind === 'unpinned'
    ? target.keyspaces
    : [target.keyspace, ...(target.also ?? []).map((other) => other.keyspace)];
}

/** A query of these tables and others, which the home shard can answer wherever they are. */
function willGather({ target }: StatementPlan, { as }: Pick<Separation, 'as'>): boolean {
  if ((target.kind !== 'unpinned' && target.kind !== 'keys') || target.gather !== 'possible') return false;
  const keyspaces = keyspacesOf(target);
  const apart = keyspaces.length > 1 || target.home === true;
  return apart && keyspaces.includes(as as KeyspaceName) && !target.atHome?.includes(as as KeyspaceName);
}

/** Views, triggers and functions that use tables of both sides. They run on one shard, and find there what that has. */
function tiedObjects(
  { metadata }: HomeNames,
  topology: Topology,
  separated: Topology,
  { keyspace, as }: Separation,
): string[] {
  const only = (keep: (t: ShardedTable) => boolean): Registry =>
    registryOf({
      ...separated,
      shardedTables: new Map([...separated.shardedTables].filter(([, t]) => keep(t))),
      referenceTables: new Map(),
    });
  const goes = reachOf(
    metadata,
    only((t) => t.keyspace === as),
  );
  const stays = reachOf(
    metadata,
    only((t) => t.keyspace !== as),
  );
  const before = keyspace === null ? null : reachOf(metadata, beyond(registryOf(topology), keyspace as KeyspaceName));
  const found: string[] = [];
  // Whatever of the home shard's own uses its tables stays there.
  const both = (goesThere: boolean, staysThere: () => boolean) => goesThere && (keyspace === null || staysThere());
  for (const relation of metadata.relations.values()) {
    const own = separated.shardedTables.get(tableId(relation))?.keyspace;
    if (before === null && own !== as && !isView(relation)) {
      if (goes.relation(relation, 'change') && !relation.schema.startsWith('pg_') && relation.kind === 'r')
        found.push(`triggers, rules, policies, defaults or checks of ${quoted(relation)}`);
    } else if (own !== undefined && (own === keyspace || own === as)) {
      const registry = registryOf(separated);
      const behind = reachOf(metadata, beyond(registry, own)).relation(relation, 'change');
      const home = own === as && reachHome(metadata, registry).relation(relation, 'change');
      if ((behind && before?.relation(relation, 'change') !== true) || home)
        found.push(`triggers, rules, policies, defaults or checks of ${quoted(relation)}`);
    } else if (isView(relation) && both(goes.relation(relation, 'read'), () => stays.relation(relation, 'read')))
      found.push(`view ${quoted(relation)}`);
  }
  for (const name of new Set(metadata.functionNames))
    if (
      metadata.functionsNamed(name).some((f) => !f.native && !f.opaque) &&
      both(goes.function(name), () => stays.function(name))
    )
      found.push(`function ${name}()`);
  return found.sort();
}

const isView = ({ kind }: Relation) => kind === 'v' || kind === 'm';
const quoted = (relation: Relation) => `"${tableId(relation)}"`;
