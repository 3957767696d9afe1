import type pg from 'pg';
import type { TableName } from '../topology/topology.js';
import { OURS, SHARD_SCHEMA } from './names.js';
import { FUNCTION_JSON, type FunctionInfo } from './schema-functions.js';
import { type Grant, grantsSql } from './schema-grants.js';
import {
  behaviourOf,
  type ClonedTrigger,
  READ_TRIGGERS,
  type RowSecurityInfo,
  type TriggerInfo,
} from './schema-triggers.js';

/** A column, in the order of the table. All SQL fragments are fully qualified. */
export interface ColumnInfo {
  readonly name: string;
  /** As `format_type` prints it. */
  readonly type: string;
  /** Name in pg_type of the base type (domains resolved), for choosing how to hash it. */
  readonly baseType: string;
  readonly notNull: boolean;
  readonly identity: '' | 'a' | 'd';
  readonly generated: '' | 's' | 'v';
  readonly default: string | null;
  /** Quoted name, when it is not the type's own. */
  readonly collation: string | null;
  /** Values may be stored out of line. */
  readonly toastable: boolean;
  readonly comment: string | null;
}

export interface ConstraintInfo {
  readonly name: string;
  readonly type: 'p' | 'u' | 'c' | 'f' | 'x';
  readonly definition: string;
  /** Its index is the table's replica identity (USING INDEX). */
  readonly replicaIdentity: boolean;
  /** Columns by name; empty when it stands on an expression. */
  readonly columns: readonly string[];
  /** The other table of a foreign key. */
  readonly references: TableName | null;
  readonly referencedColumns: readonly string[];
}

export interface IndexInfo {
  readonly name: string;
  readonly definition: string;
  readonly unique: boolean;
  readonly valid: boolean;
  readonly replicaIdentity: boolean;
  /** Columns by name; null where it is an expression. */
  readonly columns: readonly (string | null)[];
  /** It has a WHERE. */
  readonly partial: boolean;
}

export interface SequenceInfo extends TableName {
  readonly column: string | null;
  readonly kind: 'identity' | 'owned' | 'used';
  /** Options as CREATE SEQUENCE takes them, without the name. */
  readonly options: string;
  readonly increment: string;
  readonly min: string;
  readonly max: string;
  readonly owner: string;
  readonly grants: readonly Grant[];
}

export interface TypeInfo {
  readonly name: string;
  readonly schema: string;
  readonly kind: 'enum' | 'domain' | 'other';
  /** The CREATE statement; empty for `other`. */
  readonly create: string;
  readonly owner: string;
  /** Null: everybody may use it. */
  readonly grants: readonly Grant[] | null;
}

/** Everything about a table that its copy needs, and what stands in the way of one. */
export interface TableInfo extends TableName {
  readonly oid: string;
  readonly kind: string;
  readonly persistence: string;
  readonly rowSecurity: RowSecurityInfo;
  /** It has parents or children by INHERITS. */
  readonly inherits: boolean;
  /** It is a part of a partitioned table. */
  readonly isPartition: boolean;
  /** What stands behind PARTITION BY; null: it is not partitioned. */
  readonly partitionKey: string | null;
  /** Of a partitioned table, each behind its parent, if they have been read (`readWholeTable`). */
  readonly partitions?: readonly PartitionInfo[];
  readonly replicaIdentity: 'd' | 'n' | 'f' | 'i';
  readonly owner: string;
  readonly options: string | null;
  readonly comment: string | null;
  readonly columns: readonly ColumnInfo[];
  readonly constraints: readonly ConstraintInfo[];
  readonly indexes: readonly IndexInfo[];
  readonly sequences: readonly SequenceInfo[];
  readonly triggers: readonly TriggerInfo[];
  /** Those that it has, as a partition, from its parent. */
  readonly clones: readonly ClonedTrigger[];
  /** Somebody has switched off, or on for replicas, what checks its foreign keys. */
  readonly foreignKeysSwitched: boolean;
  readonly rules: readonly string[];
  readonly grants: readonly Grant[];
  readonly types: readonly TypeInfo[];
  /** Extensions that its types, operator classes and functions come from. */
  readonly extensions: readonly string[];
  /** User functions of its defaults, checks, indexes, triggers, policies. */
  readonly functions: readonly FunctionInfo[];
  /** User collations it uses, quoted. */
  readonly collations: readonly string[];
}

/** A partition, or one that is itself partitioned. */
export interface PartitionInfo {
  readonly table: TableInfo;
  readonly parent: TableName;
  /** `FOR VALUES …` or `DEFAULT`. */
  readonly bound: string;
}

/** Foreign keys of other tables that point at this one. */
export interface InboundForeignKey {
  readonly name: string;
  readonly from: TableName;
}

const READ_TABLE = `
WITH t AS (SELECT c.* FROM pg_class c WHERE c.oid = to_regclass($1)),
parts AS ( -- everything that belongs to the table and may depend on something outside it
  SELECT 'pg_class'::regclass AS classid, t.oid AS objid FROM t
  UNION ALL SELECT 'pg_attrdef'::regclass, d.oid FROM pg_attrdef d JOIN t ON d.adrelid = t.oid
  UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k JOIN t ON k.conrelid = t.oid
  UNION ALL SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index i JOIN t ON i.indrelid = t.oid
  UNION ALL SELECT 'pg_trigger'::regclass, g.oid FROM pg_trigger g JOIN t ON g.tgrelid = t.oid WHERE g.tgname !~ '${OURS}'
  UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM pg_policy p JOIN t ON p.polrelid = t.oid
),
deps AS (
  SELECT DISTINCT d.refclassid, d.refobjid FROM pg_depend d JOIN parts p ON p.classid = d.classid AND p.objid = d.objid
),
bases AS ( -- array elements and the base types of domains, all the way down
  WITH RECURSIVE b AS (
    SELECT a.atttypid AS oid FROM pg_attribute a JOIN t ON a.attrelid = t.oid WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION SELECT CASE WHEN y.typtype = 'd' THEN y.typbasetype ELSE y.typelem END
            FROM pg_type y JOIN b ON b.oid = y.oid
           WHERE y.typtype = 'd' OR (y.typelem <> 0 AND y.typcategory = 'A')
  ) SELECT oid FROM b
)
SELECT t.oid::text, n.nspname AS schema, t.relname AS "table", t.relkind AS kind, t.relpersistence AS persistence,
  EXISTS (SELECT FROM pg_inherits h WHERE (h.inhrelid = t.oid AND NOT t.relispartition) OR (h.inhparent = t.oid AND t.relkind <> 'p')) AS inherits,
  t.relispartition AS "isPartition", pg_get_partkeydef(t.oid) AS "partitionKey",
  t.relreplident AS "replicaIdentity", pg_get_userbyid(t.relowner) AS owner, array_to_string(t.reloptions, ', ') AS options,
  obj_description(t.oid, 'pg_class') AS comment,
  (SELECT coalesce(json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
      'baseType', (WITH RECURSIVE b AS (SELECT y.oid, y.typname, y.typtype, y.typbasetype, y.typnamespace FROM pg_type y WHERE y.oid = a.atttypid
                     UNION ALL SELECT y.oid, y.typname, y.typtype, y.typbasetype, y.typnamespace FROM pg_type y JOIN b ON b.typtype = 'd' AND y.oid = b.typbasetype)
                   SELECT CASE WHEN b.typnamespace = 'pg_catalog'::regnamespace THEN b.typname ELSE '' END FROM b WHERE b.typtype <> 'd'),
      'notNull', a.attnotnull, 'identity', a.attidentity, 'generated', a.attgenerated,
      'default', pg_get_expr(d.adbin, d.adrelid),
      'collation', CASE WHEN a.attcollation <> y.typcollation
                        THEN (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation) END,
      'toastable', a.attstorage <> 'p', 'comment', col_description(t.oid, a.attnum)) ORDER BY a.attnum), '[]')
     FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT coalesce(json_agg(json_build_object('name', k.conname, 'type', k.contype, 'definition', pg_get_constraintdef(k.oid),
      'replicaIdentity', k.contype IN ('p', 'u') AND coalesce((SELECT x.indisreplident FROM pg_index x WHERE x.indexrelid = k.conindid), false),
      'columns', (SELECT coalesce(json_agg(a.attname ORDER BY o.n), '[]') FROM unnest(k.conkey) WITH ORDINALITY o(num, n) JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = o.num),
      'references', (SELECT json_build_object('schema', fn.nspname, 'table', fc.relname) FROM pg_class fc JOIN pg_namespace fn ON fn.oid = fc.relnamespace WHERE fc.oid = k.confrelid),
      'referencedColumns', (SELECT coalesce(json_agg(a.attname ORDER BY o.n), '[]') FROM unnest(k.confkey) WITH ORDINALITY o(num, n) JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = o.num)
      ) ORDER BY k.conname), '[]')
     FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype IN ('p', 'u', 'c', 'f', 'x') AND (k.contype <> 'f' OR k.conparentid = 0)) AS constraints,
  (SELECT coalesce(json_agg(json_build_object('name', i.relname, 'definition', regexp_replace(pg_get_indexdef(x.indexrelid), '^(CREATE (UNIQUE )?INDEX ("([^"]|"")*"|[^" ]+) ON) ONLY ', '\\1 '), 'unique', x.indisunique,
      'valid', x.indisvalid, 'replicaIdentity', x.indisreplident, 'partial', x.indpred IS NOT NULL,
      'columns', (SELECT json_agg(a.attname ORDER BY o.n) FROM unnest(x.indkey::int2[]) WITH ORDINALITY o(num, n) LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = o.num AND o.num <> 0
                   WHERE o.n <= x.indnkeyatts)) ORDER BY i.relname), '[]')
     FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
    WHERE x.indrelid = t.oid AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x'))) AS indexes,
  (SELECT coalesce(json_agg(json_build_object('schema', sn.nspname, 'table', s.relname, 'column', own.attname,
      'kind', CASE own.deptype WHEN 'i' THEN 'identity' WHEN 'a' THEN 'owned' ELSE 'used' END,
      'options', format('AS %s INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s %s', format_type(q.seqtypid, NULL), q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache, CASE WHEN q.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END),
      'increment', q.seqincrement::text, 'min', q.seqmin::text, 'max', q.seqmax::text, 'owner', pg_get_userbyid(s.relowner),
      'grants', coalesce(${grantsSql('s.relacl')}, '[]')
      ) ORDER BY sn.nspname, s.relname), '[]')
     FROM pg_class s JOIN pg_namespace sn ON sn.oid = s.relnamespace JOIN pg_sequence q ON q.seqrelid = s.oid
     LEFT JOIN LATERAL (SELECT a.attname, d.deptype FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                         WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.deptype IN ('a', 'i')) own ON true
    WHERE s.relkind = 'S' AND (own.attname IS NOT NULL OR EXISTS (SELECT FROM deps WHERE refclassid = 'pg_class'::regclass AND refobjid = s.oid))) AS sequences,
${READ_TRIGGERS},
  (SELECT coalesce(json_agg(r.rulename), '[]') FROM pg_rewrite r WHERE r.ev_class = t.oid) AS rules,
  (SELECT coalesce(json_agg(json_build_object('grantee', CASE g.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(g.grantee) END, 'privilege', g.privilege_type, 'grantable', g.is_grantable, 'column', g.col)), '[]')
     FROM (SELECT x.*, NULL::name AS col FROM aclexplode(t.relacl) x
           UNION ALL SELECT x.*, a.attname FROM pg_attribute a, aclexplode(a.attacl) x WHERE a.attrelid = t.oid AND NOT a.attisdropped) g) AS grants,
  (SELECT coalesce(json_agg(json_build_object('schema', yn.nspname, 'name', y.typname,
      'kind', CASE y.typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' ELSE 'other' END,
      'create', CASE y.typtype
        WHEN 'e' THEN format('CREATE TYPE %I.%I AS ENUM (%s)', yn.nspname, y.typname, (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = y.oid))
        WHEN 'd' THEN format('CREATE DOMAIN %I.%I AS %s', yn.nspname, y.typname, format_type(y.typbasetype, y.typtypmod))
          || coalesce((SELECT format(' COLLATE %I.%I', cn.nspname, co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace JOIN pg_type by ON by.oid = y.typbasetype WHERE co.oid = y.typcollation AND y.typcollation <> by.typcollation), '')
          || coalesce(' DEFAULT ' || y.typdefault, '') || CASE WHEN y.typnotnull THEN ' NOT NULL' ELSE '' END
          || coalesce((SELECT string_agg(format(' CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)), '' ORDER BY k.conname) FROM pg_constraint k WHERE k.contypid = y.oid AND k.contype = 'c'), '')
        ELSE '' END, 'owner', pg_get_userbyid(y.typowner), 'grants', ${grantsSql('y.typacl')}) ORDER BY y.typtype DESC, y.oid), '[]')
     FROM pg_type y JOIN pg_namespace yn ON yn.oid = y.typnamespace
    WHERE y.oid IN (SELECT oid FROM bases) AND yn.nspname <> 'pg_catalog' AND y.typcategory <> 'A'
      AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_type'::regclass AND e.objid = y.oid AND e.deptype = 'e')) AS types,
  (SELECT coalesce(json_agg(DISTINCT x.extname), '[]') FROM pg_extension x JOIN pg_depend e ON e.refclassid = 'pg_extension'::regclass AND e.refobjid = x.oid AND e.deptype = 'e'
    WHERE (e.classid, e.objid) IN (SELECT refclassid, refobjid FROM deps UNION SELECT 'pg_type'::regclass, oid FROM bases)) AS extensions,
  (SELECT coalesce(json_agg(${FUNCTION_JSON} ORDER BY f.oid::regprocedure::text), '[]') FROM pg_proc f JOIN deps ON refclassid = 'pg_proc'::regclass AND refobjid = f.oid
    WHERE f.pronamespace <> 'pg_catalog'::regnamespace AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e')) AS functions,
  (SELECT coalesce(json_agg(DISTINCT format('%I.%I', cn.nspname, co.collname)), '[]') FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace JOIN deps ON refclassid = 'pg_collation'::regclass AND refobjid = co.oid
    WHERE cn.nspname <> 'pg_catalog') AS collations
FROM t JOIN pg_namespace n ON n.oid = t.relnamespace`;

/** Reads a table from the catalogs, or null when there is none. The session's search_path must be pg_catalog. */
export async function readTable(db: Pick<pg.ClientBase, 'query'>, quotedName: string): Promise<TableInfo | null> {
  return (await db.query<TableInfo>(READ_TABLE, [quotedName])).rows[0] ?? null;
}

/** The same of several tables, in this order, in one query. Those that are not there are missing. */
export async function readTables(
  db: Pick<pg.ClientBase, 'query'>,
  quotedNames: readonly string[],
): Promise<TableInfo[]> {
  const { rows } = await db.query<TableInfo>(
    `SELECT one.* FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, n)
       CROSS JOIN LATERAL (${READ_TABLE.replace('$1', 'wanted.name')}) AS one ORDER BY wanted.n`,
    [quotedNames],
  );
  return rows;
}

/** Foreign keys from other tables to this one. */
export async function readInboundForeignKeys(
  db: Pick<pg.ClientBase, 'query'>,
  oid: string,
): Promise<InboundForeignKey[]> {
  const result = await db.query<{ name: string; schema: string; table: string }>(
    `SELECT k.conname AS name, n.nspname AS schema, c.relname AS "table" FROM pg_constraint k
       JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE k.contype = 'f' AND k.conparentid = 0 AND k.confrelid = $1 AND k.conrelid <> $1 AND n.nspname <> $2`,
    [oid, SHARD_SCHEMA],
  );
  return result.rows.map((r) => ({ name: r.name, from: { schema: r.schema, table: r.table } }));
}

/**
 * What two tables must have in common to hold the same rows and do the same with them: columns by name, constraints, indexes, triggers and
 * policies. Column order, storage and comments may differ. One line each, so that a difference can be shown.
 */
export function tableShape(table: TableInfo): string[] {
  const lines = [
    ...table.columns.map(
      (c) =>
        `column ${c.name} ${c.type}${c.collation === null ? '' : ` collate ${c.collation}`}${c.notNull ? ' not null' : ''}` +
        `${c.identity === '' ? '' : ' identity'}${c.generated === '' ? '' : ` generated ${c.generated}`}` +
        `${c.default === null ? '' : ` default ${c.default}`}`,
    ),
    ...table.constraints.map((c) => `constraint ${c.name} ${c.definition}`),
    ...table.indexes.map((i) => `index ${i.definition}`),
    ...behaviourOf(table),
  ];
  return lines.sort();
}
