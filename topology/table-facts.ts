import type pg from 'pg';
import type { TableName } from './topology.js';

export interface ColumnFacts {
  readonly name: string;
  /** `pg_type.typname`. */
  readonly type: string;
  /** As SQL writes it, with its modifier: `character varying(20)`. */
  readonly declared: string;
  readonly notNull: boolean;
  readonly generated: boolean;
  readonly identity: boolean;
  /** Whether its default takes numbers from a sequence of this server. */
  readonly sequenceDefault: boolean;
  /** False for a collation under which unequal strings may be equal. */
  readonly deterministic: boolean;
}

export interface UniqueFacts {
  readonly name: string;
  readonly primary: boolean;
  /** Columns; an expression counts as none. */
  readonly columns: readonly string[];
}

export interface ForeignKeyFacts {
  readonly name: string;
  readonly columns: readonly string[];
  readonly references: TableName;
  readonly referencedColumns: readonly string[];
}

/** A foreign key of another table that points here. */
export interface IncomingForeignKey {
  readonly name: string;
  readonly from: TableName;
  readonly columns: readonly string[];
  readonly referencedColumns: readonly string[];
}

/** What a table is, as its server's catalogs have it. */
export interface TableFacts extends TableName {
  /** `pg_class.relkind`: r table, p partitioned, v view, m materialized view, f foreign … */
  readonly kind: string;
  /** `pg_class.relpersistence`: p permanent, u unlogged, t temporary. */
  readonly persistence: string;
  /** It has a parent, or children, by INHERITS. */
  readonly inherits: boolean;
  /** The table that it is a partition of, at the top; null: it is none. */
  readonly partitionOf: TableName | null;
  /** Its partitions that are foreign tables. */
  readonly foreignPartitions: readonly string[];
  readonly columns: readonly ColumnFacts[];
  readonly unique: readonly UniqueFacts[];
  readonly foreignKeys: readonly ForeignKeyFacts[];
  readonly referencedBy: readonly IncomingForeignKey[];
  /** `pg_class.relreplident`: d primary key, n nothing, f all columns, i an index. */
  readonly replicaIdentity: string;
  /** Columns of the replica identity; every column when it is FULL. */
  readonly identityColumns: readonly string[];
  /** User triggers with their firing mode (`pg_trigger.tgenabled`: O, D, R, A). */
  readonly triggers: readonly { readonly name: string; readonly mode: string }[];
  readonly rules: readonly string[];
  readonly rowSecurity: boolean;
}

const NAMES_OF = (keys: string, relation: string): string =>
  `(SELECT coalesce(json_agg(a.attname ORDER BY k.n), '[]') FROM unnest(${keys}) WITH ORDINALITY AS k(attnum, n)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = ${relation} AND a.attnum = k.attnum)`;

const READ_FACTS = `
SELECT n.nspname AS schema, c.relname AS table, c.relkind AS kind, c.relpersistence AS persistence,
  EXISTS (SELECT FROM pg_catalog.pg_inherits i
    WHERE (i.inhrelid = c.oid AND NOT c.relispartition) OR (i.inhparent = c.oid AND c.relkind <> 'p')) AS inherits,
  (SELECT json_build_object('schema', rn.nspname, 'table', r.relname) FROM pg_catalog.pg_class r JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
    WHERE c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)) AS "partitionOf",
  (SELECT coalesce(json_agg(p.relid::text ORDER BY p.relid::text), '[]') FROM pg_catalog.pg_partition_tree(c.oid) p JOIN pg_catalog.pg_class f ON f.oid = p.relid
    WHERE f.relkind = 'f' AND f.oid <> c.oid) AS "foreignPartitions",
  c.relreplident AS "replicaIdentity", c.relrowsecurity AS "rowSecurity",
  (SELECT coalesce(json_agg(json_build_object('name', a.attname, 'type', t.typname,
            'declared', pg_catalog.format_type(a.atttypid, a.atttypmod), 'notNull', a.attnotnull,
            'generated', a.attgenerated <> '', 'identity', a.attidentity <> '',
            'sequenceDefault', coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE '%nextval(%', false),
            'deterministic', coalesce(co.collisdeterministic, true)) ORDER BY a.attnum), '[]')
     FROM pg_catalog.pg_attribute a
     JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
     LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = ''
     LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT coalesce(json_agg(json_build_object('name', ic.relname, 'primary', i.indisprimary,
            'columns', ${NAMES_OF('i.indkey[0:i.indnkeyatts - 1]', 'c.oid')}) ORDER BY i.indisprimary DESC, ic.relname), '[]')
     FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
    WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)) AS "unique",
  (SELECT coalesce(json_agg(json_build_object('name', f.conname, 'columns', ${NAMES_OF('f.conkey', 'f.conrelid')},
            'references', json_build_object('schema', fn.nspname, 'table', fc.relname),
            'referencedColumns', ${NAMES_OF('f.confkey', 'f.confrelid')}) ORDER BY f.conname), '[]')
     FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class fc ON fc.oid = f.confrelid
     JOIN pg_catalog.pg_namespace fn ON fn.oid = fc.relnamespace
    WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.conparentid = 0) AS "foreignKeys",
  (SELECT coalesce(json_agg(json_build_object('name', f.conname,
            'from', json_build_object('schema', fn.nspname, 'table', fc.relname),
            'columns', ${NAMES_OF('f.conkey', 'f.conrelid')},
            'referencedColumns', ${NAMES_OF('f.confkey', 'f.confrelid')}) ORDER BY fn.nspname, fc.relname, f.conname), '[]')
     FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class fc ON fc.oid = f.conrelid
     JOIN pg_catalog.pg_namespace fn ON fn.oid = fc.relnamespace
    WHERE f.confrelid = c.oid AND f.contype = 'f' AND f.conparentid = 0) AS "referencedBy",
  (SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (c.relreplident = 'f' OR EXISTS (
      SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END))) AS "identityColumns",
  (SELECT coalesce(json_agg(json_build_object('name', t.tgname, 'mode', t.tgenabled) ORDER BY t.tgname), '[]')
     FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
      AND t.tgfoid NOT IN (SELECT oid FROM pg_catalog.pg_proc WHERE pronamespace = to_regnamespace('foreshard_shard'))) AS triggers,
  (SELECT coalesce(json_agg(r.rulename ORDER BY r.rulename), '[]')
     FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN') AS rules
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')`;

/** Reads what a table is, or null when the server has none of that name. */
export async function readTableFacts(
  client: Pick<pg.ClientBase, 'query'>,
  table: TableName,
): Promise<TableFacts | null> {
  const { rows } = await client.query<TableFacts>(READ_FACTS, [table.schema, table.table]);
  return rows[0] ?? null;
}

/** Whether every one of `key` is among the columns, that is: whether a duplicate would meet on one shard. */
export function coversKey(columns: readonly string[], key: readonly string[]): boolean {
  return key.every((column) => columns.includes(column));
}

/** What differs between two tables that should be the same, in words, or null. */
export function columnDifference(a: TableFacts, b: TableFacts): string | null {
  for (const column of a.columns) {
    const other = b.columns.find((c) => c.name === column.name);
    if (other === undefined) return `column "${column.name}" is missing`;
    if (other.declared !== column.declared)
      return `column "${column.name}" is ${other.declared} instead of ${column.declared}`;
    if (other.notNull !== column.notNull) return `column "${column.name}" differs in NOT NULL`;
  }
  const extra = b.columns.find((c) => !a.columns.some((d) => d.name === c.name));
  return extra === undefined ? null : `column "${extra.name}" is one too many`;
}
