import { Catalog } from '../topology/catalog/catalog.js';
import { Registry } from '../topology/catalog/registry.js';
import { initCatalog } from '../topology/catalog/schema.js';

/**
 * Makes the catalog of a database whose shards are `s1`, `s2`, …
 * @param url of an empty database for it
 * @param shards their URLs; the first one is the home shard
 * @returns the catalog, which the caller closes
 */
export async function newCatalog(url: string, database: string, shards: readonly string[]): Promise<Catalog> {
  const pool = Catalog.pool(url);
  try {
    await initCatalog(pool, database);
  } finally {
    await pool.end();
  }
  const catalog = await Catalog.connect(url);
  const registry = new Registry(catalog, 'bench');
  for (const [i, shard] of shards.entries()) await registry.addShard({ name: `s${i + 1}`, url: shard });
  return catalog;
}
