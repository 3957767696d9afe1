import type { MovingTable } from './move.js';
import type { TableInfo } from './schema-read.js';

/** Columns of which the log of an UPDATE or DELETE has the old values; undefined: none that serve. */
export function replicaIdentity(info: TableInfo): readonly (string | null)[] | undefined {
  const primary = info.constraints.find((c) => c.type === 'p');
  switch (info.replicaIdentity) {
    case 'd':
      return primary?.columns;
    case 'i':
      return [...info.constraints, ...info.indexes].find((i) => i.replicaIdentity)?.columns;
    case 'f':
      return primary && info.columns.map((c) => c.name);
    default:
      return undefined;
  }
}

/** What must be unique must be so on one shard. */
export function uniqueProblems(table: MovingTable, info: TableInfo): { text: string; remedy: string }[] {
  if (table.reference) return [];
  const isCovered = ({ columns }: { columns: readonly (string | null)[] }) =>
    table.keyColumns.every((k) => columns.includes(k));
  const unique = [
    ...info.constraints.filter((c) => c.type === 'p' || c.type === 'u'),
    ...info.indexes.filter((i) => i.unique),
  ];
  return [
    ...unique
      .filter((u) => !isCovered(u))
      .map((u) => ({
        text: `has the unique constraint or index "${u.name}" without its key: no shard could enforce it alone`,
        remedy: `Make ${table.keyColumns.join(', ')} part of it, or drop it.`,
      })),
    ...info.constraints
      .filter((x) => x.type === 'x' && !isCovered(x))
      .map((x) => ({
        text: `has the exclusion constraint "${x.name}" without its key`,
        remedy: 'Make the key part of it with =, or drop it.',
      })),
  ];
}
