import type { ShardSession } from './shard-session.js';

/** Joins each relation of `pg_class` as `heap` that has rows of the table with the name `$1`: itself, or its partitions. */
export const HEAPS = `(SELECT to_regclass($1) AS oid UNION SELECT relid FROM pg_partition_tree(to_regclass($1)) WHERE isleaf) AS leaf
  JOIN pg_class heap ON heap.oid = leaf.oid AND heap.relkind = 'r'`;

/** Where the rows of a table lie: the names, quoted, of itself or of its partitions. @param sql its name, quoted, with its schema */
export async function heapsOf(session: ShardSession, sql: string): Promise<string[]> {
  const heaps = await session.query<{ name: string }>(
    `SELECT format('%I.%I', n.nspname, heap.relname) AS name FROM ${HEAPS} JOIN pg_namespace n ON n.oid = heap.relnamespace ORDER BY 1`,
    [sql],
  );
  return heaps.map((heap) => heap.name);
}
