import type { Catalog } from '../topology/catalog/catalog.js';
import { audit, inCatalogTransaction, raiseEpoch } from '../topology/catalog/change.js';
import { redactUrl } from '../topology/connection.js';
import type { ShardName, Topology } from '../topology/topology.js';

/**
 * Gives shards other URLs, all in one transaction under a new epoch. Those that have theirs already are left alone.
 * @returns the shards that were changed
 * @throws ConflictError when the topology has changed since `topology` was read
 */
export async function changeShardUrls(
  catalog: Catalog,
  topology: Topology,
  urls: ReadonlyMap<string, string>,
  actor: string,
): Promise<string[]> {
  const changed = [...urls].filter(([name, url]) => {
    const shard = topology.shards.get(name as ShardName);
    return shard !== undefined && shard.url !== url;
  });
  if (changed.length === 0) return [];
  await inCatalogTransaction(catalog.pool, async (client) => {
    await raiseEpoch(client, topology.epoch);
    for (const [name, url] of changed) {
      await client.query('UPDATE foreshard.shard SET url = $2 WHERE name = $1', [name, url]);
      await audit(client, { actor, action: 'shard url', object: name, detail: { url: redactUrl(url) } });
    }
  });
  return changed.map(([name]) => name);
}
