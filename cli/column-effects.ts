import type { Metadata, Relation } from '../proxy/router/metadata.js';
import { reachOf } from '../proxy/router/reach.js';
import { registryOf } from '../proxy/router/registry.js';
import type { StatementPlan } from '../proxy/router/route.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { afterSplit } from '../topology/column-split.js';
import type { HalveSpec } from '../topology/migration.js';
import { soleShard, type TableName, type Topology, tableId } from '../topology/topology.js';
import { readHome } from './home-names.js';
import { replanTemplates } from './recorded-templates.js';
import type { AffectedTemplate, SeparationEffects } from './separation-effects.js';

type Calls = Omit<AffectedTemplate, 'why'>;

/** What becomes of what runs now, once the columns are on another shard than the rest of their rows. */
export interface ColumnEffects extends SeparationEffects {
  /** What is about the columns alone: it goes where they are. */
  readonly hot: readonly Calls[];
  /** What writes, or locks, both sides: a transaction of two shards. */
  readonly written: readonly Calls[];
}

/** @throws ForeshardError when the home shard's schema cannot be read */
export async function columnEffects(catalog: Catalog, topology: Topology, halving: HalveSpec): Promise<ColumnEffects> {
  const names = await readHome(topology);
  const split = afterSplit(topology, halving, halving.primaryKey);
  const recorded = await replanTemplates(catalog, names, topology, split);
  const templates: AffectedTemplate[] = [];
  const found = { hot: [] as Calls[], written: [] as Calls[], gathered: [] as Calls[] };
  for (const { template, calls, now, then } of recorded.templates) {
    const fates = then.map((plan, i) => fateOf(now[i], plan, topology));
    const why = fates.find((fate) => fate !== null && typeof fate === 'object');
    if (why) templates.push({ template, calls, why: why.refused });
    else
      for (const kind of ['written', 'gathered', 'hot'] as const)
        if (fates.includes(kind)) {
          found[kind].push({ template, calls });
          break;
        }
  }
  return { templates, ...found, unread: recorded.unread, objects: reaching(names.metadata, topology, halving.table) };
}

type Fate = 'hot' | 'written' | 'gathered' | { readonly refused: string };

/** Null: it runs as before. */
function fateOf(now: StatementPlan | undefined, { target }: StatementPlan, topology: Topology): Fate | null {
  if (target.kind === 'any') return null;
  if (target.kind === 'sole') {
    const runsNow = now?.target.kind !== 'sole' || soleShard(topology) !== null;
    return runsNow ? { refused: target.refusal.message } : null;
  }
  const { halves } = target;
  if (halves === undefined) return null;
  const { apart } = halves;
  if (apart.kind === 'refused') return { refused: apart.refusal.message };
  if (apart.kind === 'hot') return 'hot';
  if (apart.kind === 'write') return 'written';
  if (target.gather === 'possible') return 'gathered';
  return { refused: target.gather?.message ?? 'it needs both halves of rows, whose shards are not one' };
}

/** Views, triggers and functions that use the table. They run on one shard, which has but one half of it. */
function reaching(metadata: Metadata, topology: Topology, table: TableName): string[] {
  const own = tableId(table);
  const only = [...topology.shardedTables].filter(([id]) => id === own);
  const reach = reachOf(
    metadata,
    registryOf({ ...topology, shardedTables: new Map(only), referenceTables: new Map() }),
  );
  const found: string[] = [];
  for (const relation of metadata.relations.values()) {
    const id = tableId(relation);
    if (relation.kind === 'v' || relation.kind === 'm') {
      if (reach.relation(relation, 'read')) found.push(`view "${id}"`);
    } else if (isTable(relation) && id !== own && reach.relation(relation, 'change'))
      found.push(`triggers, rules, policies, defaults or checks of "${id}"`);
  }
  for (const name of new Set(metadata.functionNames))
    if (metadata.functionsNamed(name).some((f) => !f.native && !f.opaque) && reach.function(name))
      found.push(`function ${name}()`);
  return found.sort();
}

const isTable = ({ kind, schema }: Relation) => (kind === 'r' || kind === 'p') && !schema.startsWith('pg_');
