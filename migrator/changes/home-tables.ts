import { type Shard, type Topology, tableId } from '../../topology/topology.js';
import { SHARD_SCHEMA } from '../names.js';
import { ShardSession } from '../shard-session.js';

/** Tables of the home shard that belong to no keyspace and are no reference tables, by name: they live there alone. */
export async function tablesWithoutKeyspace(topology: Topology, home: Shard): Promise<string[]> {
  const session = await ShardSession.open(home, null);
  try {
    const rows = await session.query<{ schema: string; table: string }>(
      `SELECT n.nspname AS schema, c.relname AS table FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'm', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
          AND n.nspname NOT IN ('information_schema', $1) AND n.nspname NOT LIKE 'pg\\_%'
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype = 'e')
        ORDER BY 1, 2`,
      [SHARD_SCHEMA],
    );
    return rows.map(tableId).filter((id) => !topology.shardedTables.has(id) && !topology.referenceTables.has(id));
  } finally {
    await session.close();
  }
}
