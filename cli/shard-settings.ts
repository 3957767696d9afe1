import type { Catalog } from '../topology/catalog/catalog.js';
import type { Topology } from '../topology/topology.js';
import { withPassword } from './postgres-url.js';

/** What the configuration says of shards, which live in the catalog. */
export interface ShardSettings {
  /** By shard name. They need not be kept in the catalog then. */
  readonly passwords: ReadonlyMap<string, string>;
  /** Of shards that have no capacity of their own. */
  readonly capacityMsPerSecond: number | null;
}

/** Makes `catalog.loadTopology` give shards completed by the configuration as it is at that time. */
export function applyShardSettings(catalog: Catalog, current: () => ShardSettings): Catalog {
  const load = catalog.loadTopology.bind(catalog);
  catalog.loadTopology = async (): Promise<Topology> => {
    const topology = await load();
    const settings = current();
    if (settings.passwords.size === 0 && settings.capacityMsPerSecond === null) return topology;
    const shards = new Map(
      [...topology.shards].map(([name, shard]) => [
        name,
        {
          ...shard,
          url: withPassword(shard.url, settings.passwords.get(name)),
          capacityMsPerSecond: shard.capacityMsPerSecond ?? settings.capacityMsPerSecond,
        },
      ]),
    );
    return { ...topology, shards };
  };
  return catalog;
}
