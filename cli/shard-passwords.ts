import type { Catalog } from '../topology/catalog/catalog.js';
import type { Topology } from '../topology/topology.js';
import { withPassword } from './config.js';

/**
 * Makes `catalog.loadTopology` give shard URLs that carry the passwords from the configuration, so that they need not be kept
 * in the catalog. A shard that is not named keeps its URL.
 */
export function useShardPasswords(catalog: Catalog, passwords: ReadonlyMap<string, string>): Catalog {
  if (passwords.size === 0) return catalog;
  const load = catalog.loadTopology.bind(catalog);
  catalog.loadTopology = async (): Promise<Topology> => {
    const topology = await load();
    const shards = new Map(topology.shards);
    for (const [name, shard] of topology.shards)
      if (passwords.has(name)) shards.set(name, { ...shard, url: withPassword(shard.url, passwords.get(name)) });
    return { ...topology, shards };
  };
  return catalog;
}
