import { quoteIdent, quoteLiteral, quoteTable } from '../topology/quote.js';
import { soleShard, tableId } from '../topology/topology.js';
import { isReference, type Move, type MovingTable } from './move.js';
import { guardTriggers } from './names.js';
import { one, type Report } from './preflight-finding.js';
import type { TableInfo } from './schema-read.js';
import { ShardSession } from './shard-session.js';
import { loudNames } from './trigger-modes.js';

/** What of a moving table does things by itself: triggers, rules, row-level security, foreign keys. */
export async function checkBehaviour(m: Move, table: MovingTable, info: TableInfo, report: Report): Promise<void> {
  const name = tableId(table);
  const block = (text: string, remedy: string) => report('blocker', `table "${name}" ${text}`, remedy);
  if (info.rules.length > 0)
    block(
      `has rules (${info.rules.join(', ')})`,
      'A rule makes other statements of one, which go past the keys and the guards. Make triggers of them, or drop them.',
    );
  if (isReference(table) && info.triggers.length > 0)
    block(
      `is a reference table with triggers (${info.triggers.map((t) => t.name).join(', ')})`,
      'They would run on every copy, and make these differ: drop them, or let the application do what they do.',
    );
  const loud = loudNames(info);
  if (loud.length > 0)
    report(
      'warning',
      `table "${name}" has triggers that fire for replicated rows, too (${loud.join(', ')})`,
      'While it moves they do so for ordinary sessions only; afterwards as before.',
    );
  if (isReference(table)) checkReadOnEveryCopy(m, info, block);
  await checkOwnBehaviour(m, info, block);
}

/**
 * The copies of a reference table have the same policies, and shards have different rows of the others: what a client sees of it would depend on where it is read.
 * A copy also outlives its migration, and with its policy it would keep the other table from being dropped where it is not to be any more.
 */
function checkReadOnEveryCopy(m: Move, info: TableInfo, block: Block): void {
  for (const other of info.rowSecurity.reads.filter((t) => m.tables.some((one) => tableId(one) === tableId(t))))
    if (!m.topology.referenceTables.has(tableId(other)))
      block(
        `is a reference table with policies that read "${tableId(other)}", of which each shard has other rows`,
        'Let the policies of reference tables read reference tables only.',
      );
}

/** Behind the name of the table or partition. */
type Block = (text: string, remedy: string) => void;

/** What of a moving table, or of one of its partitions, is its own: foreign keys that are switched, triggers, row-level security. */
export async function checkOwnBehaviour(m: Move, info: TableInfo, block: Block): Promise<void> {
  if (info.foreignKeysSwitched)
    block(
      'has foreign keys that are switched off, or on for replicas',
      `ALTER TABLE ${quoteTable(info)} ENABLE TRIGGER ALL, then give its own triggers their modes back.`,
    );
  checkTriggers(m, info, block);
  if (info.triggers.length > 0) await checkNumbers(m, info, block);
  await checkRowSecurity(m, info, block);
}

function checkTriggers(m: Move, info: TableInfo, block: Block): void {
  const ours = Buffer.from(guardTriggers(m.names).storedInsert);
  for (const { name } of info.triggers.filter((t) => t.shapesRows && Buffer.from(t.name).compare(ours) > 0))
    block(
      `has the trigger "${name}", whose name comes behind those of all guards`,
      `What it makes of a row would not be seen: ALTER TRIGGER ${quoteIdent(name)} ON ${quoteTable(info)} RENAME TO a name that begins with a letter.`,
    );
}

/** Sequences that what is called by the table's parts names, by itself or through functions that it names. They do not move with it unless a column has them. */
const NUMBERS = `
WITH RECURSIVE bodies AS MATERIALIZED (
  SELECT p.oid, p.proname::text AS name, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) AS body FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
   WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'foreshard_shard')
     AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')),
called AS (
  SELECT b.* FROM bodies b WHERE b.oid = ANY (SELECT to_regprocedure(f) FROM unnest($1::text[]) f)
  UNION SELECT b.* FROM called c JOIN bodies b ON position(lower(b.name) IN lower(c.body)) > 0)
SELECT DISTINCT format('%I.%I', n.nspname, s.relname) AS sequence FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
  JOIN called c ON c.body ~* ('(^|[^[:alnum:]_])' || regexp_replace(s.relname, '([^[:alnum:]_])', '\\\\\\1', 'g') || '($|[^[:alnum:]_])')
 WHERE s.relkind = 'S' AND NOT EXISTS (
   SELECT FROM pg_depend d LEFT JOIN pg_attrdef a ON d.classid = 'pg_attrdef'::regclass AND a.oid = d.objid
    WHERE (d.classid = 'pg_class'::regclass AND d.objid = s.oid AND d.deptype IN ('a', 'i') AND d.refobjid = ANY (SELECT to_regclass(t) FROM unnest($2::text[]) t))
       OR (d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid AND a.adrelid = ANY (SELECT to_regclass(t) FROM unnest($2::text[]) t)))
 ORDER BY 1`;

async function checkNumbers(m: Move, info: TableInfo, block: Block): Promise<void> {
  const staying = await m.source.query<{ sequence: string }>(NUMBERS, [
    info.functions.map((f) => f.signature),
    m.tables.map((t) => t.sql),
  ]);
  for (const { sequence } of staying)
    block(
      `has triggers whose functions name the sequence ${sequence}, which does not move with it`,
      `Let it belong to a column of a table that moves: ALTER SEQUENCE ${sequence} OWNED BY ….`,
    );
}

/** Whether the session's role may see all rows of a table like this one: superusers, BYPASSRLS, and its owner unless it is FORCED. */
const sees = (info: TableInfo) =>
  `SELECT rolname AS role, rolsuper OR rolbypassrls
     OR (${!info.rowSecurity.forced} AND EXISTS (SELECT FROM pg_roles o WHERE o.rolname = ${quoteLiteral(info.owner)} AND pg_has_role(o.oid, 'USAGE'))) AS all
     FROM pg_roles WHERE rolname = current_user`;

async function checkRowSecurity(m: Move, info: TableInfo, block: Block): Promise<void> {
  const { enabled, reads } = info.rowSecurity;
  const along = [...m.tables, ...m.topology.referenceTables.values()].map(tableId);
  for (const other of reads.filter((t) => !along.includes(tableId(t))))
    if (other.isPartition)
      block(
        `has policies that read the partition "${tableId(other)}"`,
        'Let them read the table that it is a part of.',
      );
    else
      block(
        `has policies that read "${tableId(other)}", which does not move with it`,
        `Let them read tables of keyspace "${m.keyspace.name}" and reference tables only.`,
      );
  if (!enabled) return;
  for (const session of [m.source, m.destination]) {
    const { role, all } = await one<{ role: string; all: boolean }>(session, sees(info));
    if (!all)
      block(
        `has row-level security, which keeps rows from role "${role}" of shard "${session.shard.name}"`,
        `ALTER ROLE ${quoteIdent(role)} BYPASSRLS there, or give the shard's URL a superuser.`,
      );
  }
}

/**
 * What triggers, defaults, checks, generated columns, expressions of indexes and policies of the tables may use. Where that is not on the new
 * shard, or not all of it, the proxies refuse the statements that run them, which is to be known before.
 */
export async function checkReach(m: Move, report: Report): Promise<void> {
  const { judgeReach } = m.options;
  const home = m.topology.shards.get(m.topology.home);
  if (judgeReach === null || home === undefined || m.spec.to === home.name) return;
  const session = m.source.shard.name === home.name ? m.source : await ShardSession.open(home, null);
  try {
    const reachOf = await judgeReach(session.reader, m.topology);
    for (const table of m.tables.filter((t) => !isReference(t))) {
      const reach = reachOf(table);
      const statements = `statements that run them on ${quoteTable(table)}`;
      // What is refused already is refused as before.
      if (reach === 'beyond' && soleShard(m.topology) !== null)
        report(
          'blocker',
          `triggers, policies, defaults, checks or other parts of "${tableId(table)}" may reach beyond keyspace "${m.keyspace.name}": ${statements} would be refused`,
          'Let them use tables of the keyspace only. What decides is the names in the bodies of their functions, and of those that these call.',
        );
      else if (reach === 'home' && m.spec.from === home.name)
        report(
          'blocker',
          `triggers, policies, defaults, checks or other parts of "${tableId(table)}" may use tables that only shard "${home.name}" has: ${statements} would be refused on shard "${m.spec.to}"`,
          `Take those tables into keyspace "${m.keyspace.name}" ("foreshard table add"), or do without them. What decides is the names in the bodies of their functions, and of those that these call.`,
        );
    }
  } finally {
    if (session !== m.source) await session.close();
  }
}
