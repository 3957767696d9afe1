import type { FieldDescription } from '../wire/backend.js';
import type { AdminValue } from './siblings.js';

/** Types of columns, by their names in PostgreSQL. */
export type ColumnType = 'text' | 'int4' | 'int8' | 'float8' | 'bool';

export interface Column {
  readonly name: string;
  readonly type: ColumnType;
}

export type Row = readonly AdminValue[];

/** What a `SHOW` shows. `S`: what the rows are made from. */
export interface View<S> {
  /** Lower case, as after SHOW. */
  readonly name: string;
  /** For SHOW HELP. */
  readonly about: string;
  readonly columns: readonly Column[];
  /** Every process says the same (it is about the cluster), so only the one that was asked says it. */
  readonly shared?: true;
  /** Rows of one process, as `finish` wants them. */
  rows(source: S): readonly Row[] | Promise<readonly Row[]>;
  /** Makes the answer from the rows of all processes. Default: they are the answer, one process's after the other's. */
  finish?(rows: readonly Row[]): readonly Row[];
}

/** pg_type.oid and typlen. */
const TYPES: Readonly<Record<ColumnType, { readonly oid: number; readonly length: number }>> = {
  bool: { oid: 16, length: 1 },
  int8: { oid: 20, length: 8 },
  int4: { oid: 23, length: 4 },
  text: { oid: 25, length: -1 },
  float8: { oid: 701, length: 8 },
};

/** `name:type …`; without a type it is text. */
export function columns(text: string): readonly Column[] {
  return text
    .trim()
    .split(/\s+/)
    .map((part) => {
      const [name, type = 'text'] = part.split(':');
      return { name: name as string, type: type as ColumnType };
    });
}

/** @param format 0 text, 1 binary */
export function describeColumn(column: Column, format: number): FieldDescription {
  const { oid, length } = TYPES[column.type];
  return {
    name: column.name,
    tableOid: 0,
    columnNumber: 0,
    typeOid: oid,
    typeLength: length,
    typeModifier: -1,
    format,
  };
}

/** A value as a DataRow carries it. @param format 0 text, 1 binary */
export function encodeValue(value: AdminValue, type: ColumnType, format: number): Buffer | string | null {
  if (value === null) return null;
  if (format === 0) {
    if (type === 'bool') return value === true ? 't' : 'f';
    return String(value);
  }
  switch (type) {
    case 'bool':
      return Buffer.from([value === true ? 1 : 0]);
    case 'int4': {
      const bytes = Buffer.alloc(4);
      bytes.writeInt32BE(Number(value));
      return bytes;
    }
    case 'int8': {
      const bytes = Buffer.alloc(8);
      bytes.writeBigInt64BE(BigInt(value));
      return bytes;
    }
    case 'float8': {
      const bytes = Buffer.alloc(8);
      bytes.writeDoubleBE(Number(value));
      return bytes;
    }
    default:
      return String(value);
  }
}

/**
 * Rows with the same values in the first `keys` columns become one, in the order in which they first came; what becomes of
 * the others `merge` says.
 */
export function groupRows(
  rows: readonly Row[],
  keys: number,
  merge: (into: AdminValue[], row: Row) => void,
): AdminValue[][] {
  const groups = new Map<string, AdminValue[]>();
  for (const row of rows) {
    const key = JSON.stringify(row.slice(0, keys));
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [...row]);
    else merge(group, row);
  }
  return [...groups.values()];
}

/** For `groupRows`: adds the numbers from column `from` on, as far as `to` (exclusive). */
export function sumColumns(from: number, to: number): (into: AdminValue[], row: Row) => void {
  return (into, row) => {
    for (let i = from; i < to; i++) into[i] = Number(into[i]) + Number(row[i]);
  };
}
