import type { KeyType } from '../../topology/key.js';
import {
  type ReferenceTable,
  type ShardedTable,
  type TableName,
  type Topology,
  tableId,
} from '../../topology/topology.js';

/** Which tables are sharded by what: the part of a topology that plans depend on. A flip does not change it. */
export interface Registry {
  /** The same for equal registries. */
  readonly signature: string;
  sharded(table: TableName): ShardedTable | null;
  reference(table: TableName): ReferenceTable | null;
  keyTypes(table: ShardedTable): readonly KeyType[];
  /** The names, without schema, of all sharded and reference tables. */
  readonly names: ReadonlySet<string>;
}

/** What it is made of. */
type Registered = Pick<Topology, 'shardedTables' | 'referenceTables' | 'keyspaces'>;

const registries = new WeakMap<Registered, Registry>();

export function registryOf(topology: Registered): Registry {
  let registry = registries.get(topology);
  if (!registry) {
    registry = {
      signature: signatureOf(topology),
      sharded: (table) => topology.shardedTables.get(tableId(table)) ?? null,
      reference: (table) => topology.referenceTables.get(tableId(table)) ?? null,
      names: new Set([...topology.shardedTables.values(), ...topology.referenceTables.values()].map((t) => t.table)),
      keyTypes: (table) => topology.keyspaces.get(table.keyspace)?.keyTypes ?? [],
    };
    registries.set(topology, registry);
  }
  return registry;
}

function signatureOf(topology: Registered): string {
  return JSON.stringify([
    [...topology.shardedTables].map(([id, t]) => [id, t.keyspace, t.keyColumns]).sort(),
    [...topology.referenceTables.keys()].sort(),
    [...topology.keyspaces.values()].map((k) => [k.name, k.method, k.keyTypes]).sort(),
  ]);
}
