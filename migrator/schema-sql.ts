import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import { grantSql, withoutDefaults } from './schema-grants.js';
import type { ColumnInfo, SequenceInfo, TableInfo } from './schema-read.js';

function column(c: ColumnInfo, sequences: readonly SequenceInfo[]): string {
  const parts = [quoteIdent(c.name), c.type];
  if (c.collation !== null) parts.push(`COLLATE ${c.collation}`);
  if (c.notNull) parts.push('NOT NULL');
  if (c.identity !== '') {
    const s = sequences.find((q) => q.kind === 'identity' && q.column === c.name);
    // AS type follows the column's type and is not accepted here.
    const options =
      s === undefined ? '' : ` (SEQUENCE NAME ${quoteTable(s)} ${s.options.replace(/^AS .*?(?= INCREMENT)/, '')})`;
    parts.push(`GENERATED ${c.identity === 'a' ? 'ALWAYS' : 'BY DEFAULT'} AS IDENTITY${options}`);
  } else if (c.generated !== '') {
    parts.push(`GENERATED ALWAYS AS (${c.default}) ${c.generated === 's' ? 'STORED' : 'VIRTUAL'}`);
  } else if (c.default !== null) parts.push(`DEFAULT ${c.default}`);
  return parts.join(' ');
}

/** Sequences that must be there before the table: those of serial columns and plain defaults. */
export function createSequenceSql(s: SequenceInfo): string[] {
  const name = quoteTable(s);
  return [
    `CREATE SEQUENCE ${name} ${s.options}`,
    `ALTER SEQUENCE ${name} OWNER TO ${quoteIdent(s.owner)}`,
    withoutDefaults('SEQUENCE', quoteTable(s)),
  ];
}

/**
 * The table as it must be for the copy: columns, checks, the primary key and the replica identity. The rest follows in
 * `finishTableSql`, because building it once over all rows is four times as fast as keeping it up during the copy.
 */
export function createTableSql(t: TableInfo): string[] {
  const name = quoteTable(t);
  const items = [
    ...t.columns.map((c) => column(c, t.sequences)),
    ...t.constraints
      .filter((c) => c.type === 'p' || c.type === 'c')
      .map((c) => `CONSTRAINT ${quoteIdent(c.name)} ${c.definition.replace(/ NOT VALID$/, '')}`),
  ];
  const sql = [
    `CREATE TABLE ${name} (\n  ${items.join(',\n  ')}\n)${t.partitionKey === null ? '' : ` PARTITION BY ${t.partitionKey}`}${t.options === null ? '' : ` WITH (${t.options})`}`,
    ...t.indexes.filter((i) => i.replicaIdentity).map((i) => i.definition),
    ...t.constraints.filter((c) => c.type === 'u' && c.replicaIdentity).map((c) => addConstraint(t, c)),
  ];
  if (t.replicaIdentity === 'f') sql.push(`ALTER TABLE ${name} REPLICA IDENTITY FULL`);
  const identity = [...t.indexes, ...t.constraints].find((i) => i.replicaIdentity);
  if (t.replicaIdentity === 'i' && identity !== undefined)
    sql.push(`ALTER TABLE ${name} REPLICA IDENTITY USING INDEX ${quoteIdent(identity.name)}`);
  if (t.comment !== null) sql.push(`COMMENT ON TABLE ${name} IS ${quoteLiteral(t.comment)}`);
  for (const c of t.columns)
    if (c.comment !== null) sql.push(`COMMENT ON COLUMN ${name}.${quoteIdent(c.name)} IS ${quoteLiteral(c.comment)}`);
  // Before its sequences: one that a column owns must have the owner of the table.
  sql.push(`ALTER TABLE ${name} OWNER TO ${quoteIdent(t.owner)}`, withoutDefaults('TABLE', name));
  for (const s of t.sequences) {
    if (s.kind === 'owned' && s.column !== null)
      sql.push(`ALTER SEQUENCE ${quoteTable(s)} OWNED BY ${name}.${quoteIdent(s.column)}`);
    // The others may have been there before.
    if (s.kind === 'identity') sql.push(withoutDefaults('SEQUENCE', quoteTable(s)));
    for (const g of s.grants) sql.push(grantSql('SEQUENCE', quoteTable(s), g));
  }
  for (const g of t.grants) sql.push(grantSql('TABLE', name, g));
  return sql;
}

function addConstraint(t: TableInfo, c: { readonly name: string; readonly definition: string }): string {
  return `ALTER TABLE ${quoteTable(t)} ADD CONSTRAINT ${quoteIdent(c.name)} ${c.definition}`;
}

/** One thing to build after the copy; `name` tells whether it is there already. */
export interface FinishItem {
  readonly kind: 'index' | 'constraint';
  readonly name: string;
  readonly sql: string;
}

/** Secondary indexes, unique and exclusion constraints. */
export function finishIndexes(t: TableInfo): FinishItem[] {
  return [
    ...t.constraints
      .filter((c) => (c.type === 'u' && !c.replicaIdentity) || c.type === 'x')
      .map((c): FinishItem => ({ kind: 'constraint', name: c.name, sql: addConstraint(t, c) })),
    ...t.indexes
      .filter((i) => !i.replicaIdentity)
      .map((i): FinishItem => ({ kind: 'index', name: i.name, sql: i.definition })),
  ];
}

/** Foreign keys; only when every table has its rows and its indexes. */
export function finishForeignKeys(t: TableInfo): FinishItem[] {
  return t.constraints
    .filter((c) => c.type === 'f')
    .map((c): FinishItem => ({ kind: 'constraint', name: c.name, sql: addConstraint(t, c) }));
}
