import { quoteIdent, quoteLiteral } from '../topology/quote.js';
import { identityColumns } from './hashing.js';
import type { MovingTable } from './move.js';
import type { ColumnInfo, TableInfo } from './schema-read.js';
import type { ShardSession } from './shard-session.js';

/** Values of a row's identity as text, in the order of its index. */
export type Identity = readonly string[];

/**
 * The rows behind `after`, up to and with `to`, in the order of the identity's index; null: no bound. Where two servers order a type differently
 * (another version of a collation), the chunks between the same bounds still have each row of either server in at least one.
 */
export interface Chunk {
  readonly after: Identity | null;
  readonly to: Identity | null;
}

/** What a chunk is read by: an index, page after page of it. */
export interface Chunked {
  readonly table: MovingTable;
  readonly columns: readonly ColumnInfo[];
}

export function chunked(table: MovingTable, info: TableInfo): Chunked {
  const columns = identityColumns(info).map((name) => info.columns.find((c) => c.name === name) as ColumnInfo);
  return { table, columns };
}

/** True for the interval's rows of a chunk. */
export function chunkPredicate({ table, columns }: Chunked, { after, to }: Chunk): string {
  const left = `(${columns.map((c) => quoteIdent(c.name)).join(', ')})`;
  const compared = (operator: string, bound: Identity) =>
    `${left} ${operator} (${columns.map((c, i) => `${quoteLiteral(bound[i] as string)}::${c.type}`).join(', ')})`;
  return [
    table.predicate(),
    ...(after === null ? [] : [compared('>', after)]),
    ...(to === null ? [] : [compared('<=', to)]),
  ].join(' AND ');
}

/** The next so many rows as they are now; the last chunk has no upper bound. */
export async function nextChunk(
  session: ShardSession,
  of: Chunked,
  after: Identity | null,
  rows: number,
  check: () => void,
): Promise<Chunk> {
  const values = of.columns.map((c) => `${quoteIdent(c.name)}::text`).join(', ');
  const order = of.columns.map((c) => quoteIdent(c.name)).join(', ');
  const [bound] = await session.interruptible<{ bound: string[] }>(
    `SELECT ARRAY[${values}] AS bound FROM ${of.table.sql} WHERE ${chunkPredicate(of, { after, to: null })}
      ORDER BY ${order} OFFSET ${rows - 1} LIMIT 1`,
    [],
    check,
  );
  return { after, to: bound?.bound ?? null };
}
