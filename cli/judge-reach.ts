import type { JudgeReach } from '../migrator/options.js';
import { loadMetadata } from '../proxy/router/metadata.js';
import { reachHome, reachOf } from '../proxy/router/reach.js';
import { beyond, registryOf } from '../proxy/router/registry.js';
import { tableId } from '../topology/topology.js';

/** As the proxies judge it when they plan a statement that changes the table. */
export const judgeReach: JudgeReach = async (home, topology) => {
  const metadata = await loadMetadata(home);
  const registry = registryOf(topology);
  return (table) => {
    const relation = metadata.relations.get(tableId(table));
    const declared = topology.shardedTables.get(tableId(table));
    if (relation === undefined || declared === undefined) return null;
    if (reachOf(metadata, beyond(registry, declared.keyspace)).relation(relation, 'change')) return 'beyond';
    return reachHome(metadata, registry).relation(relation, 'change') ? 'home' : null;
  };
};
