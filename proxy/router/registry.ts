import type { KeyType } from '../../topology/key.js';
import {
  isKeyless,
  type KeyspaceName,
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
  /** The same without the tables of a keyspace. */
  namesBeyond(keyspace: KeyspaceName): ReadonlySet<string>;
  /** Tables some of whose columns are kept in another table besides. */
  readonly splits: readonly ShardedTable[];
  /** Keyspaces without a key: their tables are whole on one shard each. */
  readonly keyless: readonly KeyspaceName[];
  /** The same, were the tables of these keyspaces the home shard's own. */
  without(keyspaces: readonly KeyspaceName[]): Registry;
}

/** What it is made of. */
type Registered = Pick<Topology, 'shardedTables' | 'referenceTables' | 'keyspaces'>;

const registries = new WeakMap<Registered, Registry>();

export function registryOf(topology: Registered): Registry {
  let registry = registries.get(topology);
  if (!registry) {
    const withouts = new Map<string, Registry>();
    const keyless = [...topology.keyspaces.values()].filter(isKeyless).map((k) => k.name);
    registry = {
      keyless,
      splits: [...topology.shardedTables.values()].filter((table) => table.split !== undefined),
      without: (keyspaces) => {
        const id = keyspaces.join(' ');
        const known = withouts.get(id);
        if (known !== undefined) return known;
        const rest = [...topology.shardedTables].filter(([, t]) => !keyspaces.includes(t.keyspace));
        const made = registryOf({ ...topology, shardedTables: new Map(rest) });
        withouts.set(id, made);
        return made;
      },
      signature: signatureOf(topology),
      sharded: (table) => topology.shardedTables.get(tableId(table)) ?? null,
      reference: (table) => topology.referenceTables.get(tableId(table)) ?? null,
      names: new Set([...topology.shardedTables.values(), ...topology.referenceTables.values()].map((t) => t.table)),
      namesBeyond: (keyspace) =>
        new Set(
          [
            ...[...topology.shardedTables.values()].filter((t) => t.keyspace !== keyspace),
            ...topology.referenceTables.values(),
          ].map((t) => t.table),
        ),
      keyTypes: (table) => topology.keyspaces.get(table.keyspace)?.keyTypes ?? [],
    };
    registries.set(topology, registry);
  }
  return registry;
}

const beyonds = new WeakMap<Registry, Map<KeyspaceName, Registry>>();

/**
 * What is declared beyond a keyspace, for judging what its tables may reach behind a statement's back. Its own tables are not, and
 * reference tables only by their names: foreign keys look at them on every shard, but what a function does with them nobody knows.
 */
export function beyond(registry: Registry, keyspace: KeyspaceName): Registry {
  let known = beyonds.get(registry);
  if (!known) {
    known = new Map();
    beyonds.set(registry, known);
  }
  let found = known.get(keyspace);
  if (!found) {
    found = {
      ...registry,
      sharded: (table) => {
        const sharded = registry.sharded(table);
        return sharded?.keyspace === keyspace ? null : sharded;
      },
      reference: () => null,
      names: registry.namesBeyond(keyspace),
    };
    known.set(keyspace, found);
  }
  return found;
}

function signatureOf(topology: Registered): string {
  return JSON.stringify([
    [...topology.shardedTables].map(([id, t]) => [id, t.keyspace, t.keyColumns, t.split, t.halfOf]).sort(),
    [...topology.referenceTables.keys()].sort(),
    [...topology.keyspaces.values()].map((k) => [k.name, k.method, k.keyTypes]).sort(),
  ]);
}
