import { quoteIdent, quoteLiteral } from '../topology/quote.js';
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

/** Rows of a table. @param where condition on them, of which `values` are the parameters */
export function rowsWhere(
  session: ShardSession,
  { sql, info }: Pick<RowsOf, 'sql' | 'info'>,
  where: string,
  values: readonly unknown[] = [],
): Promise<RowVersion[]> {
  const { key, row } = hashing(info);
  return session.query<RowVersion & Record<string, string>>(
    `SELECT ${key} AS key, ${row}::text AS hash, xmin::text AS version FROM ${sql} WHERE ${where}`,
    values,
  );
}

/** Rows of a part of a table, as they lie there: the pages from `first` on, `end` not among them. Reads no other page. @param limit null: all */
export function rowsOfPages(
  session: ShardSession,
  rows: RowsOf,
  first: number,
  end: number,
  limit: number | null,
): Promise<RowVersion[]> {
  const where = `ctid >= '(${first},0)'::tid AND ctid < '(${end},0)'::tid AND (${rows.where}) LIMIT ${limit ?? 'ALL'}`;
  return rowsWhere(session, rows, where);
}

/** `foreshard_row`s of a table and the `foreshard_sought` keys that they have, found by the index of their identity. */
function sought({ info }: RowsOf, keys: string): { readonly from: string; readonly on: string } {
  const { keyNames } = hashing(info);
  const columns = keyNames.map((name, i) => {
    const type = info.columns.find((c) => c.name === name)?.type;
    return `foreshard_row.${quoteIdent(name)} = (foreshard_sought.foreshard_key::jsonb ->> ${i})::${type}`;
  });
  return { from: `unnest(${keys}::text[]) AS foreshard_sought (foreshard_key)`, on: columns.join(' AND ') };
}

/** `foreshard_row`s that have the keys of an array of text, and are meant, as what stands behind FROM; more conditions may follow. */
export function byKey(rows: RowsOf, keys: string): string {
  const { from, on } = sought(rows, keys);
  return `${from} JOIN ${rows.sql} AS foreshard_row ON ${on} WHERE (${rows.where})`;
}

/** The rows that have these keys. @param lock whether nobody may change them until the transaction that is open ends */
export function rowsByKey(
  session: ShardSession,
  rows: RowsOf,
  keys: readonly string[],
  lock = false,
): Promise<RowVersion[]> {
  const { row } = hashing(rows.info);
  return session.query<RowVersion & Record<string, string>>(
    `SELECT foreshard_key AS key, ${row}::text AS hash, foreshard_row.xmin::text AS version
       FROM ${byKey(rows, '$1')}${lock ? ' FOR UPDATE OF foreshard_row' : ''}`,
    [keys],
  );
}

/** Deletes the rows that have these keys, in the transaction that is open. */
export async function deleteByKey(session: ShardSession, rows: RowsOf, keys: readonly string[]): Promise<void> {
  await session.query(`DELETE FROM ${usingKeys(rows)}`, [keys]);
}

/** What stands behind DELETE FROM, and its parameters, for rows that are still as they were read. */
export function asTheyWere(rows: RowsOf, read: readonly RowVersion[]): [string, string[][]] {
  // Of their keys, too: no other row has such a hash.
  const unchanged = `${hashing(rows.info).row}::text = ANY ($2::text[])`;
  return [`${usingKeys(rows)} AND ${unchanged}`, [read.map((row) => row.key), read.map((row) => row.hash)]];
}

/** What stands behind DELETE FROM for the rows that have the keys $1. */
function usingKeys(rows: RowsOf): string {
  const { from, on } = sought(rows, '$1');
  return `${rows.sql} AS foreshard_row USING ${from} WHERE ${on} AND (${rows.where})`;
}

/** Copies the rows that have these keys from one shard to another, where none has, in the transaction that is open there. @throws when `signal` fires */
export async function copyByKey(
  from: ShardSession,
  to: ShardSession,
  rows: RowsOf,
  keys: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const columns = rows.info.columns.filter((c) => c.generated === '').map((c) => quoteIdent(c.name));
  const wanted = byKey(rows, `ARRAY[${keys.map(quoteLiteral).join(', ')}]`);
  await to.copyFrom(
    from,
    `SELECT ${columns.map((c) => `foreshard_row.${c}`).join(', ')} FROM ${wanted}`,
    `${rows.sql} (${columns.join(', ')})`,
    signal,
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

/** Keys of rows that are not the same in `a` and `b`, or in one of them only. */
export function differing(
  a: readonly RowVersion[],
  b: readonly RowVersion[],
  by: 'hash' | 'version' = 'hash',
): string[] {
  const left = new Map(a.map((row) => [row.key, row[by]]));
  const right = new Map(b.map((row) => [row.key, row[by]]));
  return [...new Set([...left.keys(), ...right.keys()])].filter((key) => left.get(key) !== right.get(key));
}
