import { checkSplit } from '../topology/catalog/column-split.js';
import { UsageError } from '../topology/errors.js';
import type { HalveSpec } from '../topology/migration.js';
import { quoteLiteral, quoteTable } from '../topology/quote.js';
import { type ShardedTable, type TableName, type Topology, tableId } from '../topology/topology.js';
import { type HalvesWork, splitOf } from './halves.js';
import { hotTableInfo, primaryKeyOf } from './hot-table.js';
import type { CleanupRecord } from './migration-row.js';
import type { Finding, Report } from './preflight-finding.js';
import { shapeDifferences } from './schema-partitions.js';
import { readTable, type TableInfo } from './schema-read.js';
import type { ShardSession } from './shard-session.js';

/** Types whose values mean something else on another server, or in another session, whatever can be set. */
const NOT_PLAIN = /^(money|oid|reg[a-z]+|aclitem|xid8?|cid|tid|pg_.*|txid_snapshot)$/;

/** What preflight of a split has read. */
interface HalvesPreflight {
  readonly findings: readonly Finding[];
  /** The table, by shard; missing where it is not there. */
  readonly tables: ReadonlyMap<string, TableInfo>;
}

/**
 * Everything that must hold before columns of a table get a table of their own. Only reads.
 * @param own clean-up records of the migration: what it has made itself does not count against it
 */
export async function preflightHalves(
  h: HalvesWork<HalveSpec>,
  own: readonly CleanupRecord[],
): Promise<HalvesPreflight> {
  const findings: Finding[] = [];
  const report: Report = (severity, text, remedy) => findings.push({ severity, text, remedy });
  const { topology, spec } = h;
  checkCatalog(topology, spec, report);
  await checkReplicas(h, report);
  const tables = new Map<string, TableInfo>();
  const home = h.sites.get(topology.home);
  let model: TableInfo | null = null;
  for (const [shard, session] of [[topology.home, home] as const, ...h.sites]) {
    if (session === undefined || tables.has(shard)) continue;
    const info = await readTable(session.reader, quoteTable(spec.table));
    if (info === null) {
      report('blocker', `table "${tableId(spec.table)}" does not exist on shard "${shard}"`, 'Create it there.');
      continue;
    }
    tables.set(shard, info);
    if (session.version < 150000) report('blocker', `shard "${shard}" runs PostgreSQL older than 15`, 'Upgrade it.');
    if (model === null) {
      checkTable(topology, spec, info, report);
      await checkTypes(spec, session, report);
    } else
      for (const difference of shapeDifferences(model, info).slice(0, 3))
        report(
          'blocker',
          `table "${tableId(spec.table)}" differs between shards "${topology.home}" and "${shard}": ${difference}`,
          'Make it the same on both.',
        );
    model ??= info;
    await checkUses(spec, session, shard, report);
    await checkHotTable(h, session, shard, info, own, report);
  }
  return { findings, tables };
}

function checkCatalog(topology: Topology, spec: HalveSpec, report: Report): void {
  try {
    const { table } = checkSplit(topology, spec);
    for (const key of table.keyColumns)
      if (!spec.primaryKey.includes(key))
        report(
          'blocker',
          `the primary key of table "${tableId(spec.table)}" does not have its key column "${key}"`,
          'Make the key part of it.',
        );
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    report('blocker', error.message, error.hint ?? 'The topology has changed: plan again.');
  }
}

/** A replica follows tables as they were when it began. */
async function checkReplicas(h: HalvesWork<HalveSpec>, report: Report): Promise<void> {
  const { rows } = await h.catalog.pool.query<{ id: string; state: string }>(
    `SELECT id::text, state FROM foreshard.migration o WHERE o.id <> $2 AND spec->>'keyspace' = $1 AND (state = 'following'
       OR (state = 'failed' AND EXISTS (SELECT FROM foreshard.migration_cleanup c WHERE c.migration_id = o.id AND c.done_at IS NULL)))`,
    [h.spec.keyspace, h.row.id.toString()],
  );
  for (const { id, state } of rows)
    report(
      'blocker',
      state === 'following'
        ? `migration ${id} keeps a replica of keyspace "${h.spec.keyspace}"`
        : `migration ${id} of keyspace "${h.spec.keyspace}" is ${state}, and has left things on its shards`,
      `See "foreshard migrate show ${id}"; then promote, or abort it.`,
    );
}

/** What a split is about. */
type Halved = Pick<HalveSpec, 'table' | 'columns' | 'primaryKey'>;

/**
 * What must hold of a table whose columns are split, and of its hot table, for as long as they are: somebody may have altered them on this shard since.
 * Nothing is said of what is not there.
 */
export async function checkSplitTable(
  topology: Topology,
  table: ShardedTable,
  session: ShardSession,
  shard: string,
  report: Report,
): Promise<void> {
  const { split } = table;
  const info = split === undefined ? null : await readTable(session.reader, quoteTable(table));
  if (split === undefined || info === null) return;
  const unite = `unite its columns first ("foreshard migrate plan unite ${tableId(table)}")`;
  const either: Report = (severity, text, remedy) =>
    report(severity, `on shard "${shard}", ${text}`, `${remedy} Or ${unite}.`);
  const halved = { table, columns: split.columns, primaryKey: split.primaryKey };
  checkTable(topology, halved, info, either);
  await checkTypes(halved, session, either);
  await checkUses(halved, session, shard, either);
  const hot = await readTable(session.reader, quoteTable(split.hot));
  if (hot === null) return;
  const meant = hotTableInfo(info, split);
  const differences = [
    ...shapeDifferences(meant, { ...hot, indexes: [] }),
    ...privilegeDifferences(meant, hot).map((g) => `${g} on one of them only`),
  ];
  for (const difference of differences.slice(0, 3))
    either(
      'blocker',
      `table "${tableId(table)}" and "${tableId(split.hot)}", which has columns of it, are not alike: ${difference.replace('at the source', 'as the first is').replace('at the destination', 'as the second is')}`,
      `Bring "${tableId(split.hot)}" in line with the other, by ALTER TABLE, GRANT, REVOKE.`,
    );
}

/** Privileges, but the owner's, that one has and the other has not. */
function privilegeDifferences(a: TableInfo, b: TableInfo): string[] {
  const [x, y] = [a, b].map(({ grants, owner }) =>
    grants
      .filter((g) => g.grantee !== owner)
      .map((g) => `${g.privilege} of "${g.grantee || 'PUBLIC'}"${g.grantable ? ' with grant option' : ''}`),
  ) as [string[], string[]];
  return [...x.filter((g) => !y.includes(g)), ...y.filter((g) => !x.includes(g))];
}

function checkTable(topology: Topology, spec: Halved, info: TableInfo, report: Report): void {
  const id = tableId(info);
  const block = (text: string, remedy: string) => report('blocker', `table "${id}" ${text}`, remedy);
  if (info.kind !== 'r' || info.isPartition)
    block('is partitioned, a partition, or not an ordinary table', 'Only ordinary tables can be split by column.');
  if (info.inherits) block('has parents or children (inheritance)', 'ALTER TABLE … NO INHERIT.');
  if (info.persistence !== 'p') block('is unlogged or temporary', 'ALTER TABLE … SET LOGGED.');
  if (info.rowSecurity.enabled || info.rowSecurity.policies.length > 0)
    block('has row-level security, which the other table would not have', 'DROP POLICY, or do not split it.');
  if (info.rules.length > 0) block(`has rules (${info.rules.join(', ')})`, 'DROP RULE.');
  for (const { name } of info.triggers)
    block(
      `has trigger "${name}", which could see and set what is elsewhere`,
      `DROP TRIGGER ${name}, or do not split this table.`,
    );
  if (info.grants.some((g) => g.column !== null))
    block('has privileges on single columns', 'GRANT them on the table instead, and REVOKE those on columns.');

  const primary = info.constraints.find((c) => c.type === 'p');
  if (primary === undefined) block('has no primary key', 'Add one that has the sharding key.');
  else if (primaryKeyOf(info).join() !== spec.primaryKey.join())
    block(`has the primary key (${primaryKeyOf(info).join(', ')}), and another was planned with`, 'Plan again.');
  else if (/DEFERRABLE|WITHOUT OVERLAPS/.test(primary.definition))
    block('has a primary key that is deferrable, or WITHOUT OVERLAPS', 'Make it anew without that.');
  for (const name of spec.primaryKey) {
    const type = info.columns.find((c) => c.name === name);
    const isEnum = info.types.some((t) => t.kind === 'enum' && type?.type.endsWith(t.name));
    if (type !== undefined && ((type.baseType === '' && !isEnum) || NOT_PLAIN.test(type.baseType)))
      block(`has column "${name}" of type ${type.type} in its primary key`, 'Use a type of PostgreSQL’s own there.');
  }
  for (const { name, type, definition, columns } of info.constraints) {
    const hot = columns.filter((c) => spec.columns.includes(c));
    if (type === 'f' && /\bON (DELETE|UPDATE) (CASCADE|SET)/.test(definition))
      block(
        `has foreign key "${name}", which changes rows by itself`,
        'Make it ON DELETE and ON UPDATE NO ACTION or RESTRICT.',
      );
    if (hot.length === 0) continue;
    if (type === 'c') {
      const others = columns.filter((c) => !spec.columns.includes(c) && !spec.primaryKey.includes(c));
      if (others.length > 0)
        block(
          `has check "${name}" over columns of both halves (${columns.join(', ')})`,
          `Drop it, or split ${others.join(', ')} off, too.`,
        );
    } else if (type !== 'p')
      block(
        `has constraint "${name}" over ${hot.join(', ')}, which would have to look at both halves`,
        `ALTER TABLE … DROP CONSTRAINT ${name}, or leave the column.`,
      );
  }
  const keys = topology.shardedTables.get(id)?.keyColumns ?? [];
  for (const name of spec.columns) {
    const column = info.columns.find((c) => c.name === name);
    if (column === undefined) block(`has no column "${name}"`, 'Plan again.');
    else if (spec.primaryKey.includes(name) || keys.includes(name))
      block(`has column "${name}" in its key, which both halves have`, 'Name other columns.');
    else if (column.generated !== '') block(`has generated column "${name}"`, 'Name plain columns.');
    else if (column.identity !== '' || /\bnextval\(/.test(column.default ?? ''))
      block(`has column "${name}", which takes numbers from a sequence`, 'Name other columns.');
  }
}

/**
 * Columns whose values are not the same everywhere, as text or in binary form: an array, a composite or a type with a binary form of its own may say the
 * object ids of types there, which every server numbers by itself.
 */
async function checkTypes(spec: Halved, session: ShardSession, report: Report): Promise<void> {
  const rows = await session.query<{ name: string; type: string }>(
    `WITH RECURSIVE part AS (
       SELECT attname AS name, format_type(atttypid, atttypmod) AS type, atttypid AS oid, false AS element FROM pg_attribute
        WHERE attrelid = to_regclass(${quoteLiteral(quoteTable(spec.table))}) AND attname = ANY ($1)
       UNION ALL SELECT p.name, p.type, CASE y.typtype WHEN 'd' THEN y.typbasetype ELSE y.typelem END, y.typtype <> 'd'
         FROM part p JOIN pg_type y ON y.oid = p.oid WHERE (y.typtype = 'd' AND NOT p.element) OR (y.typcategory = 'A' AND y.typelem <> 0))
     SELECT DISTINCT p.name, p.type FROM part p JOIN pg_type y ON y.oid = p.oid
      WHERE (p.element OR y.typtype NOT IN ('d', 'e')) AND (y.typcategory <> 'A' OR y.typelem = 0)
        AND (y.typnamespace <> 'pg_catalog'::regnamespace OR y.typtype = 'c' OR y.typname ~ $2) ORDER BY p.name`,
    [spec.columns, NOT_PLAIN.source],
  );
  for (const { name, type } of rows)
    report(
      'blocker',
      `table "${tableId(spec.table)}" has column "${name}" of type ${type}, whose values are not the same everywhere`,
      'Name other columns.',
    );
}

/** What of the shard's needs the columns where they are. */
async function checkUses(spec: Halved, session: ShardSession, shard: string, report: Report): Promise<void> {
  const name = quoteLiteral(quoteTable(spec.table));
  const rows = await session.query<{ what: string }>(
    `WITH hot AS (SELECT attrelid, attnum FROM pg_attribute WHERE attrelid = to_regclass(${name}) AND attname = ANY ($1)),
     used AS (SELECT d.classid, d.objid, d.objsubid, d.refobjsubid FROM pg_depend d JOIN hot ON d.refclassid = 'pg_class'::regclass
                 AND d.refobjid = hot.attrelid AND d.refobjsubid = hot.attnum)
     SELECT DISTINCT pg_describe_object(u.classid, u.objid, u.objsubid) AS what FROM used u
      WHERE EXISTS (SELECT FROM pg_index i WHERE u.classid = 'pg_class'::regclass AND i.indexrelid = u.objid AND (i.indisunique OR i.indisexclusion))
         OR EXISTS (SELECT FROM pg_attrdef a JOIN pg_attribute c ON c.attrelid = a.adrelid AND c.attnum = a.adnum
                     WHERE u.classid = 'pg_attrdef'::regclass AND a.oid = u.objid AND c.attgenerated <> '')
         OR EXISTS (SELECT FROM pg_attribute c WHERE u.classid = 'pg_class'::regclass AND c.attrelid = to_regclass(${name})
                     AND u.objid = c.attrelid AND c.attnum = u.objsubid AND c.attgenerated <> '')
     UNION ALL SELECT format('foreign key "%s" of %s', conname, conrelid::regclass) FROM pg_constraint
      WHERE contype = 'f' AND confrelid = to_regclass(${name}) AND confkey && ARRAY(SELECT attnum FROM hot)
     UNION ALL SELECT format('subscription "%s", which writes into the table', s.subname) FROM pg_subscription s
       JOIN pg_subscription_rel r ON r.srsubid = s.oid WHERE r.srrelid = to_regclass(${name}) AND NOT starts_with(s.subname::text, 'foreshard_')
     UNION ALL SELECT format('publication "%s", whose subscribers would read them', p.pubname) FROM pg_publication_tables p
      WHERE (p.schemaname, p.tablename) = (${quoteLiteral(spec.table.schema)}, ${quoteLiteral(spec.table.table)}) AND NOT starts_with(p.pubname::text, 'foreshard_')`,
    [spec.columns],
  );
  for (const { what } of rows)
    report(
      'blocker',
      `${what} needs the columns of table "${tableId(spec.table)}" where they are, on shard "${shard}"`,
      'Drop it, or leave the column.',
    );
}

async function checkHotTable(
  h: HalvesWork<HalveSpec>,
  session: ShardSession,
  shard: string,
  table: TableInfo,
  own: readonly CleanupRecord[],
  report: Report,
): Promise<void> {
  const { hot } = h.spec;
  const there = await readTable(session.reader, quoteTable(hot));
  const ours = own.some((c) => c.kind === 'halves' && !c.done && c.shard === shard);
  if (there !== null && !ours)
    report(
      'blocker',
      `there is a table "${tableId(hot)}" on shard "${shard}" already`,
      'Choose another name, or drop it.',
    );
  if (there === null || !ours) return;
  const differences = shapeDifferences(hotTableInfo(table, splitOf(h.spec)), there);
  if (differences.length > 0)
    report(
      'blocker',
      `table "${tableId(h.spec.table)}" has been altered on shard "${shard}" since "${tableId(hot)}" was made: ${differences[0]}`,
      'Split its columns again.',
    );
}

/** The table, as preflight has found it on a shard. @throws Error when it was not there: then nothing goes on */
export function tableAt(tables: ReadonlyMap<string, TableInfo>, shard: string, name: TableName): TableInfo {
  const info = tables.get(shard);
  if (info === undefined) throw new Error(`table "${tableId(name)}" is not on shard "${shard}"`);
  return info;
}
