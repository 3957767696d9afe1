import { quoteIdent } from '../topology/quote.js';
import { hashing } from './hashing.js';
import type { TableInfo } from './schema-read.js';
import type { ShardSession } from './shard-session.js';

/** A row as it was read. */
export interface RowVersion {
  /** Its identity, as text. */
  readonly key: string;
  /** Of all its values. */
  readonly hash: string;
  /** The transaction that wrote it there last: while this is the same, nobody has changed the row. */
  readonly version: string;
}

/** Rows of a table that are looked for. */
export interface RowsOf {
  /** Name of the table, quoted, with its schema. */
  readonly sql: string;
  /** Condition on its rows. */
  readonly where: string;
  readonly info: TableInfo;
}

/** Rows of a part of a table, as they lie there: the pages from `first` on, `end` not among them. Reads no other page. @param limit null: all */
export function rowsOfPages(
  session: ShardSession,
  { sql, where, info }: RowsOf,
  first: number,
  end: number,
  limit: number | null,
): Promise<RowVersion[]> {
  const { key, row } = hashing(info);
  return session.query<RowVersion & Record<string, string>>(
    `SELECT ${key} AS key, ${row}::text AS hash, xmin::text AS version FROM ${sql}
      WHERE ctid >= '(${first},0)'::tid AND ctid < '(${end},0)'::tid AND (${where}) LIMIT ${limit ?? 'ALL'}`,
  );
}

/** The rows that have these keys, found by the index of their identity. */
export function rowsByKey(
  session: ShardSession,
  { sql, where, info }: RowsOf,
  keys: readonly string[],
): Promise<RowVersion[]> {
  const { keyNames, row } = hashing(info);
  const columns = keyNames.map((name, i) => {
    const type = info.columns.find((c) => c.name === name)?.type;
    return `foreshard_row.${quoteIdent(name)} = (foreshard_sought.foreshard_key::jsonb ->> ${i})::${type}`;
  });
  return session.query<RowVersion & Record<string, string>>(
    `SELECT foreshard_key AS key, ${row}::text AS hash, foreshard_row.xmin::text AS version
       FROM unnest($1::text[]) AS foreshard_sought (foreshard_key)
       JOIN ${sql} AS foreshard_row ON ${columns.join(' AND ')} WHERE ${where}`,
    [keys],
  );
}

/** Number of a table's pages. */
export async function pagesOf(session: ShardSession, sql: string): Promise<number> {
  const [size] = await session.query<{ pages: number | null }>(
    `SELECT (pg_relation_size(to_regclass($1)) / current_setting('block_size')::int)::float8 AS pages`,
    [sql],
  );
  return size?.pages ?? 0;
}

/** Keys of `sought` whose rows are not the same in `a` and `b`, or in one of them only. */
export function differing(
  sought: Iterable<string>,
  a: readonly RowVersion[],
  b: readonly RowVersion[],
  by: 'hash' | 'version' = 'hash',
): string[] {
  const left = new Map(a.map((row) => [row.key, row[by]]));
  const right = new Map(b.map((row) => [row.key, row[by]]));
  return [...new Set(sought)].filter((key) => left.get(key) !== right.get(key));
}
