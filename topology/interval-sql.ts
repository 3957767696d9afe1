import { ForeshardError } from './errors.js';
import type { Interval, KeyScalar, KeyType, Position } from './key.js';
import { encodeText, type KeyScheme, positionTypes } from './key-codec.js';
import { quoteIdent, quoteLiteral } from './quote.js';

/**
 * The SQL expression that is true exactly for the rows whose position lies in the interval. Only immutable built-ins and
 * no sub-query, so that it may stand in a publication's row filter, a trigger's WHEN and a WHERE clause, on PostgreSQL
 * 15 to 18. With method `range` it can use an index on the key columns (on text: one with COLLATE "C").
 * @param keyColumns names of the table's key columns, unquoted, in the keyspace's order
 * @param rowAlias `NEW` or `OLD` in a trigger, else the table's alias, unquoted
 */
export function intervalPredicate(
  scheme: KeyScheme,
  keyColumns: readonly string[],
  interval: Interval,
  rowAlias?: string,
): string {
  const columns = columnReferences(scheme, keyColumns, rowAlias);
  const conditions: string[] = [];
  if (interval.lo !== null) conditions.push(comparison(scheme, columns, '>=', interval.lo));
  if (interval.hi !== null) conditions.push(comparison(scheme, columns, '<', interval.hi));
  return conditions.length === 0 ? 'true' : conditions.join(' AND ');
}

/** The SQL expression of a row's hash, as `hashKey` computes it. */
export function hashExpression(keyTypes: readonly KeyType[], keyColumns: readonly string[], rowAlias?: string): string {
  const columns = columnReferences({ method: 'hash', keyTypes }, keyColumns, rowAlias);
  return chainedHash(keyTypes, columns);
}

/**
 * The key columns as an ORDER BY list or an index's column list in the order of positions (method `range`), or the hash
 * expression in parentheses (method `hash`).
 */
export function positionOrder(scheme: KeyScheme, keyColumns: readonly string[], rowAlias?: string): string {
  const columns = columnReferences(scheme, keyColumns, rowAlias);
  if (scheme.method === 'hash') return `(${chainedHash(scheme.keyTypes, columns)})`;
  return columns.map((column, i) => ordered(scheme.keyTypes[i] as KeyType, column)).join(', ');
}

function columnReferences(scheme: KeyScheme, keyColumns: readonly string[], rowAlias: string | undefined): string[] {
  if (keyColumns.length !== scheme.keyTypes.length)
    throw new ForeshardError('XX000', `${keyColumns.length} key columns for ${scheme.keyTypes.length} key types`);
  let prefix = '';
  // Quoted, NEW and OLD would be other names than a trigger's rows.
  if (rowAlias === 'NEW' || rowAlias === 'OLD') prefix = `${rowAlias}.`;
  else if (rowAlias !== undefined) prefix = `${quoteIdent(rowAlias)}.`;
  return keyColumns.map((column) => prefix + quoteIdent(column));
}

/** A bound shorter than the key compares with the key's first columns: a prefix sorts before whatever it begins. */
function comparison(scheme: KeyScheme, columns: readonly string[], operator: '>=' | '<', bound: Position): string {
  const types = positionTypes(scheme);
  const literals = bound.map((scalar, i) => literal(types[i] as KeyType, scalar));
  const left =
    scheme.method === 'hash'
      ? [chainedHash(scheme.keyTypes, columns)]
      : columns.slice(0, bound.length).map((column, i) => ordered(types[i] as KeyType, column));
  if (left.length === 1) return `${left[0]} ${operator} ${literals[0]}`;
  return `(${left.join(', ')}) ${operator} (${literals.join(', ')})`;
}

function ordered(type: KeyType, column: string): string {
  return isText(type) ? `${column} COLLATE "C"` : column;
}

function literal(type: KeyType, scalar: KeyScalar): string {
  return `${quoteLiteral(encodeText(type, scalar)).trimStart()}::${isText(type) ? 'text' : type}`;
}

function isText(type: KeyType): boolean {
  return type === 'text' || type === 'varchar';
}

function chainedHash(types: readonly KeyType[], columns: readonly string[]): string {
  return columns.reduce((seed, column, i) => hashCall(types[i] as KeyType, column, seed), '0::bigint');
}

function hashCall(type: KeyType, column: string, seed: string): string {
  switch (type) {
    case 'int2':
      return `hashint2extended(${column}, ${seed})`;
    case 'int4':
      return `hashint4extended(${column}, ${seed})`;
    case 'int8':
      return `hashint8extended(${column}, ${seed})`;
    case 'uuid':
      return `uuid_hash_extended(${column}, ${seed})`;
    case 'text':
    case 'varchar':
      return `hashtextextended(${column} COLLATE "C", ${seed})`;
    case 'date':
      // hashdateextended came with 18. Before, a date is hashed as its int4; infinities have no difference to a day.
      return (
        `hashint4extended(CASE WHEN isfinite(${column}) THEN ${column} - '2000-01-01'::date ` +
        `WHEN ${column} > '2000-01-01'::date THEN 2147483647 ELSE '-2147483648'::int4 END, ${seed})`
      );
    case 'timestamp':
      return `timestamp_hash_extended(${column}, ${seed})`;
    case 'timestamptz':
      // timestamptz_hash_extended came with 18. At UTC the timestamp has the same microseconds.
      return `timestamp_hash_extended(${column} AT TIME ZONE 'UTC', ${seed})`;
  }
}
