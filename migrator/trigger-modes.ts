import { type TableName, tableId } from '../topology/topology.js';
import { type CleanupRecord, type CleanupSpec, tableOf } from './migration-row.js';
import {
  type ClonedTrigger,
  type Guarded,
  type GuardedTree,
  quietMode,
  relationsOf,
  switchSql,
  type TriggerMode,
} from './schema-triggers.js';

// Triggers that fire for what is replicated (ALWAYS, REPLICA) would do again, to rows that are copied, replicated or removed, what has been done where the rows were written. While
// their table moves they fire for ordinary sessions only, as they do for these anyway. Each relation of a partitioned table has its own mode of a trigger, and that of the partition counts.

const isLoud = ({ enabled }: ClonedTrigger): boolean => enabled !== quietMode(enabled);

const loudOf = ({ triggers, clones }: Guarded): ClonedTrigger[] => [...triggers, ...clones].filter(isLoud);

/** Has the triggers fire for ordinary sessions only. Empty: they do already. */
export function quietSql(tree: GuardedTree): string[] {
  return relationsOf(tree).flatMap((r) => loudOf(r).map((t) => switchSql(r, t.name, quietMode(t.enabled))));
}

/** The opposite of `quietSql`. */
export function loudSql(tree: GuardedTree): string[] {
  return relationsOf(tree).flatMap((r) => loudOf(r).map((t) => switchSql(r, t.name, t.enabled)));
}

/** Names of those that are not quiet, each once. */
export function loudNames(tree: GuardedTree): string[] {
  return [...new Set(relationsOf(tree).flatMap((r) => loudOf(r).map((t) => t.name)))];
}

type Modes = readonly (readonly [name: string, mode: TriggerMode])[];
type PartitionModes = readonly [schema: string, table: string, modes: Modes];

/**
 * What the clean-up has to restore: null when nothing is quieted. Of a partitioned table all partitions are in it, also those of which nothing is: what comes
 * later has got its triggers quiet from its parent, and is meant to have them as that is.
 * @param tree as it is meant to be
 */
export function loudRecord(tree: GuardedTree, shard: string): CleanupSpec | null {
  const relations = relationsOf(tree);
  if (relations.every((r) => loudOf(r).length === 0)) return null;
  const modesOf = (r: Guarded): Modes => loudOf(r).map((t) => [t.name, t.enabled]);
  const partitions = relations.slice(1).map((r): PartitionModes => [r.schema, r.table, modesOf(r)]);
  const { schema, table } = tree;
  const modes = JSON.stringify(modesOf(tree));
  return {
    kind: 'triggers',
    shard,
    object: { schema, table, modes, ...(partitions.length === 0 ? {} : { partitions: JSON.stringify(partitions) }) },
  };
}

/** What a record knows, by `tableId`. */
function known({ object }: CleanupSpec): Map<string, ReadonlyMap<string, TriggerMode>> {
  const { schema, table, modes, partitions = '[]' } = object;
  const all: PartitionModes[] = [
    [schema as string, table as string, JSON.parse(modes as string) as Modes],
    ...(JSON.parse(partitions) as PartitionModes[]),
  ];
  return new Map(all.map(([of, name, its]) => [tableId({ schema: of, table: name }), new Map(its)]));
}

/** All that it names. */
export function relationsIn({ object }: CleanupSpec): TableName[] {
  const { schema, table, partitions = '[]' } = object;
  return [
    { schema: schema as string, table: table as string },
    ...(JSON.parse(partitions) as PartitionModes[]).map(([of, name]) => ({ schema: of, table: name })),
  ];
}

/** Open records about a table on a shard, the last one behind: it has all that is in those before it. */
export function recordsOf(table: TableName, own: readonly CleanupRecord[], shard: string): CleanupRecord[] {
  return own
    .filter((r) => r.kind === 'triggers' && !r.done && r.shard === shard && tableId(tableOf(r)) === tableId(table))
    .sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** A table as its owner has made it: with the modes that its triggers, and its partitions', had before they were quieted for a migration. */
export function asMeant<T extends GuardedTree>(tree: T, own: readonly CleanupRecord[], shard: string): T {
  const record = recordsOf(tree, own, shard).at(-1);
  if (record === undefined) return tree;
  const listed = known(record);
  const meant = new Map<string, ReadonlyMap<string, TriggerMode>>();
  const mean = <R extends Guarded>(relation: R, parent: TableName | null): R => {
    const id = tableId(relation);
    const [its, above] = [listed.get(id), parent === null ? undefined : meant.get(tableId(parent))];
    const own = { triggers: relation.triggers, clones: relation.clones };
    const triggers = own.triggers.map((t) => ({ ...t, enabled: its?.get(t.name) ?? t.enabled }));
    const clones = own.clones.map((t) => {
      const mode = its === undefined ? above?.get(t.name) : its.get(t.name);
      // Whoever has given it another mode since has meant that.
      return mode === undefined || (its === undefined && quietMode(mode) !== t.enabled) ? t : { ...t, enabled: mode };
    });
    meant.set(id, new Map([...triggers, ...clones].map((t) => [t.name, t.enabled])));
    return { ...relation, triggers, clones };
  };
  const root = mean(tree, null);
  if (tree.partitions === undefined) return root;
  return { ...root, partitions: tree.partitions.map((p) => ({ ...p, table: mean(p.table, p.parent) })) };
}

/** Gives the triggers of a table and its partitions their modes. @param meant the same, as it is meant to be */
export function restoreSql(tree: GuardedTree, meant: GuardedTree): string[] {
  const wanted = relationsOf(meant);
  return relationsOf(tree).flatMap((r, i) => {
    const modes = new Map(
      [...(wanted[i]?.triggers ?? []), ...(wanted[i]?.clones ?? [])].map((t) => [t.name, t.enabled]),
    );
    return [...r.triggers, ...r.clones].flatMap(({ name, enabled }) => {
      const mode = modes.get(name);
      return mode === undefined || mode === enabled ? [] : [switchSql(r, name, mode)];
    });
  });
}

/** The same of a table that has been a partition when the record was made, and is none any more. */
export function restoreDetachedSql(table: Guarded, record: CleanupSpec): string[] {
  const modes = known(record).get(tableId(table));
  return table.triggers.flatMap(({ name, enabled }) => {
    const mode = modes?.get(name);
    return mode === undefined || mode === enabled ? [] : [switchSql(table, name, mode)];
  });
}

/** All that a record names, as it says. */
export function recordedSql(record: CleanupSpec): string[] {
  const all = known(record);
  return relationsIn(record).flatMap((r) =>
    [...(all.get(tableId(r)) ?? [])].map(([name, mode]) => switchSql(r, name, mode)),
  );
}
