import type { CatalogClient } from './change.js';
import { timedQuery } from './timed-query.js';

/**
 * Says that the home shard's schema has changed. Proxies learn of it when the transaction commits.
 * @returns the new generation
 */
export async function raiseSchemaGeneration(client: CatalogClient): Promise<bigint> {
  const { rows } = await client.query<{ generation: string }>(
    timedQuery(
      'UPDATE foreshard.meta SET schema_generation = schema_generation + 1 RETURNING schema_generation AS generation',
    ),
  );
  return BigInt((rows[0] as { generation: string }).generation);
}

/** Whether no live proxy but this one has yet to hear of the generation. Those whose lease has ended do not count: they have stopped serving. */
export async function schemaHeardByAll(client: CatalogClient, generation: bigint, proxyId: string): Promise<boolean> {
  const { rows } = await client.query<{ all: boolean }>(
    timedQuery(
      `SELECT NOT EXISTS (SELECT FROM foreshard.proxy WHERE lease_until > clock_timestamp() AND schema_heard < $1 AND id <> $2) AS all`,
      [generation.toString(), proxyId],
    ),
  );
  return rows[0]?.all === true;
}
