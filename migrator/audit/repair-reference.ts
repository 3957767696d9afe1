import type { Catalog } from '../../topology/catalog/catalog.js';
import { inCatalogTransaction, audit as note } from '../../topology/catalog/change.js';
import { ForeshardError } from '../../topology/errors.js';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import { type Shard, type ShardName, tableId } from '../../topology/topology.js';
import { crashPoint } from '../crash-points.js';
import { byKey, type RowsOf, rowsByKey } from '../keyed-rows.js';
import { BESIDE } from '../migration-row.js';
import { countOf, replaceRows, wrongRows } from '../replace-rows.js';
import { type ConstraintInfo, readInboundForeignKeys, readTable, type TableInfo } from '../schema-read.js';
import { ShardSession } from '../shard-session.js';

/** Which copies of reference tables are right, as somebody has said. */
export interface Truth {
  readonly shard: ShardName;
  readonly actor: string;
}

/** How long one statement may take, or wait for a lock, while writers of both copies, and what migrations write down, wait; ms. */
const STATEMENT_MS = 2000;
const LOCK_MS = 500;
/** Somebody who says nothing any more keeps them no longer, ms. */
const SILENCE_MS = 3000;

interface ReferenceRepair {
  readonly catalog: Catalog;
  readonly actor: string;
  /** As it is at `from`. */
  readonly info: TableInfo;
  readonly from: Shard;
  readonly to: Shard;
  readonly keys: readonly string[];
}

/**
 * Makes the rows with these keys what they are in another copy, while nobody can write to either. Neither triggers nor foreign keys act: what would be left referring to nothing is looked for
 * before the commit. Written down in the audit trail: before, and what was done.
 * @throws ForeshardError 55000 when that cannot be
 */
export async function repairReference({ catalog, actor, info, from, to, keys }: ReferenceRepair): Promise<void> {
  const sql = quoteTable(info);
  const rows: RowsOf = { sql, where: 'true', info };
  const entry = { actor, object: tableId(info) };
  await note(catalog.pool, { ...entry, action: 'reference.repairing', detail: { from: from.name, to: to.name, keys } });
  const sessions: ShardSession[] = [];
  const open = async (shard: Shard, begin: string): Promise<ShardSession> => {
    const session = await ShardSession.open(shard, null);
    sessions.push(session);
    await session.query(
      `BEGIN; SET LOCAL lock_timeout = ${LOCK_MS}; SET LOCAL statement_timeout = ${STATEMENT_MS}; SET LOCAL idle_in_transaction_session_timeout = ${SILENCE_MS}; ${begin}`,
    );
    return session;
  };
  const signal = AbortSignal.timeout(STATEMENT_MS + 2 * LOCK_MS);
  try {
    await inCatalogTransaction(catalog.pool, async (client) => {
      await client.query('LOCK TABLE foreshard.migration IN SHARE MODE');
      const { rows: busy } = await client.query<{ id: string }>(AT_WORK, [[from.name, to.name]]);
      if (busy[0] !== undefined)
        throw refusal(`migration ${busy[0].id} is at work on shard "${from.name}" or "${to.name}"`);
      const source = await open(from, `LOCK TABLE ${sql} IN SHARE MODE`);
      const destination = await open(
        to,
        `SET LOCAL session_replication_role = replica; LOCK TABLE ${sql} IN SHARE ROW EXCLUSIVE MODE`,
      );
      const there = await readTable(destination.reader, sql);
      if (there === null || columnsOf(there) !== columnsOf(info)) throw refusal('the columns of the copies differ');
      await refuseTriggers(destination, sql);
      const wrong = wrongRows(await rowsByKey(source, rows, keys), await rowsByKey(destination, rows, keys));
      if (countOf(wrong) === 0) return;
      const inbound = await inboundKeys(destination, there);
      const gone = [];
      for (const key of inbound)
        gone.push(await referenced(destination, rows, key, [...wrong.replaced, ...wrong.removed]));
      await replaceRows(source, destination, rows, wrong, signal);
      for (const [i, key] of inbound.entries()) await refuseOrphans(destination, sql, info, key, gone[i] ?? []);
      for (const key of info.constraints) await refuseOrphanRows(destination, rows, key, keys);
      await note(client, { ...entry, action: 'reference.repair', detail: { from: from.name, to: to.name, ...wrong } });
      crashPoint('within:audit-repair');
      await destination.query('COMMIT');
      crashPoint('within:audit-repair');
    });
  } catch (error) {
    if (signal.aborted) throw refusal('it took too long');
    throw error;
  } finally {
    await Promise.all(sessions.map((session) => session.close()));
  }
}

/** Of these shards; one that only follows is in nobody's way, and none can go on to a flip while its row cannot be changed. */
const AT_WORK = `SELECT id::text FROM foreshard.migration WHERE spec->>'kind' = 'move' AND ARRAY[spec->>'from', spec->>'to'] && $1::text[]
  AND (state NOT IN (${BESIDE}) OR (state = 'failed' AND facts ? 'flipEpoch')) LIMIT 1`;

function refusal(why: string): ForeshardError {
  return new ForeshardError('55000', why, { hint: 'Make the copies the same by hand, or audit again later.' });
}

function columnsOf({ columns }: TableInfo): string {
  return JSON.stringify(columns.map((c) => [c.name, c.type, c.generated]).toSorted());
}

/** Those that a replica runs, too. */
async function refuseTriggers(session: ShardSession, sql: string): Promise<void> {
  const [found] = await session.query<{ name: string }>(
    `SELECT tgname AS name FROM pg_trigger WHERE tgrelid = to_regclass($1) AND NOT tgisinternal AND tgenabled IN ('A', 'R') LIMIT 1`,
    [sql],
  );
  if (found !== undefined) throw refusal(`trigger "${found.name}" of ${sql} would be run (ENABLE ALWAYS or REPLICA)`);
}

interface InboundKey {
  /** The table that refers to it, quoted. */
  readonly child: string;
  readonly key: ConstraintInfo;
}

async function inboundKeys(session: ShardSession, table: TableInfo): Promise<InboundKey[]> {
  const found: InboundKey[] = [];
  for (const { name, from } of await readInboundForeignKeys(session.reader, table.oid)) {
    const child = quoteTable(from);
    const key = (await readTable(session.reader, child))?.constraints.find((c) => c.name === name);
    if (key !== undefined) found.push({ child, key });
  }
  return found;
}

/** What rows that go are referred to by, as they are now: values as JSON. */
async function referenced(
  session: ShardSession,
  rows: RowsOf,
  { key }: InboundKey,
  keys: readonly string[],
): Promise<string[]> {
  const values = key.referencedColumns.map((c) => `foreshard_row.${quoteIdent(c)}::text`).join(', ');
  const found = await session.query<{ value: string }>(
    `SELECT jsonb_build_array(${values})::text AS value FROM ${byKey(rows, '$1')}`,
    [keys],
  );
  return found.map(({ value }) => value);
}

/** Rows of other tables that refer to what is not there any more. */
async function refuseOrphans(
  session: ShardSession,
  sql: string,
  info: TableInfo,
  { child, key }: InboundKey,
  gone: readonly string[],
): Promise<void> {
  const type = (name: string | undefined) => info.columns.find((c) => c.name === name)?.type;
  const refers = key.columns.map(
    (c, i) => `c.${quoteIdent(c)} = (g.value::jsonb ->> ${i})::${type(key.referencedColumns[i])}`,
  );
  const [orphan] = await session.query(
    `SELECT FROM unnest($1::text[]) AS g (value) JOIN ${child} AS c ON ${refers.join(' AND ')}
      WHERE NOT EXISTS (SELECT FROM ${sql} AS p WHERE ${equal(key, 'c', 'p')}) LIMIT 1`,
    [gone],
  );
  if (orphan !== undefined)
    throw refusal(`rows of ${child} refer to rows of ${sql} that would be gone ("${key.name}")`);
}

/** Rows that have come and refer to what is not there. */
async function refuseOrphanRows(
  session: ShardSession,
  rows: RowsOf,
  key: ConstraintInfo,
  keys: readonly string[],
): Promise<void> {
  if (key.type !== 'f' || key.references === null) return;
  const isSet = key.columns.map((c) => `foreshard_row.${quoteIdent(c)} IS NOT NULL`).join(' AND ');
  const parent = quoteTable(key.references);
  const [orphan] = await session.query(
    `SELECT FROM ${byKey(rows, '$1')} AND ${isSet} AND NOT EXISTS (SELECT FROM ${parent} AS p WHERE ${equal(key, 'foreshard_row', 'p')}) LIMIT 1`,
    [keys],
  );
  if (orphan !== undefined)
    throw refusal(`rows that would come refer to rows of ${parent} that are missing ("${key.name}")`);
}

function equal({ columns, referencedColumns }: ConstraintInfo, child: string, parent: string): string {
  return columns
    .map((c, i) => `${parent}.${quoteIdent(referencedColumns[i] as string)} = ${child}.${quoteIdent(c)}`)
    .join(' AND ');
}
