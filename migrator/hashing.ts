import { quoteIdent } from '../topology/quote.js';
import type { ColumnInfo, TableInfo } from './schema-read.js';

/** Types whose hash is that of the value and the same on every server; others are hashed as text. */
const HASHABLE = new Set([
  'bool',
  'int2',
  'int4',
  'int8',
  'float4',
  'float8',
  'numeric',
  'oid',
  'bytea',
  'uuid',
  'date',
  'time',
  'timestamp',
  'timestamptz',
  'interval',
  'jsonb',
]);

function hashed(c: ColumnInfo): string {
  const name = quoteIdent(c.name);
  if (HASHABLE.has(c.baseType)) return name;
  // Under "C" the hash is that of the bytes, whatever the column's collation.
  return `(${name}::text COLLATE "C")`;
}

/** How a table's rows are hashed, as SQL; the same text on both sides. */
export interface Hashing {
  readonly row: string;
  /** The row's identity, as text: a JSON array of `keyNames`' values. */
  readonly key: string;
  readonly keyNames: readonly string[];
  /** One of so many parts in which the row is, by its identity. @param count a power of two */
  bucket(count: number): string;
}

export function hashing(table: TableInfo): Hashing {
  const columns = [...table.columns].filter((c) => c.generated === '').sort((a, b) => (a.name < b.name ? -1 : 1));
  const identity = identityColumns(table);
  const keys = columns.filter((c) => identity.includes(c.name));
  return {
    row: `hash_record_extended(ROW(${columns.map(hashed).join(', ')}), 0)`,
    bucket: (count) => `(hash_record_extended(ROW(${keys.map(hashed).join(', ')}), 0) & ${count - 1})::int`,
    keyNames: keys.map((c) => c.name),
    key: `jsonb_build_array(${keys.map((c) => `${quoteIdent(c.name)}::text`).join(', ')})::text`,
  };
}

/** Columns by which rows are told apart, in the order of their index. */
export function identityColumns(table: TableInfo): readonly string[] {
  const primary = table.constraints.find((c) => c.type === 'p');
  if (primary !== undefined) return primary.columns;
  const identity = [...table.constraints, ...table.indexes].find((i) => i.replicaIdentity);
  return (identity?.columns ?? []).filter((c): c is string => c !== null);
}
