import { errorCode } from '../../topology/connection.js';
import { ForeshardError } from '../../topology/errors.js';
import { overlaps } from '../../topology/key.js';
import { quoteIdent, quoteLiteral, quoteTable } from '../../topology/quote.js';
import { tableId } from '../../topology/topology.js';
import { MigrationFailure } from '../executor.js';
import { gateAction, guardTableAction } from '../guards.js';
import { HEAPS } from '../heaps.js';
import { makeFunctions } from '../make-functions.js';
import { type CleanupRecord, decodeSpec, otherMoves, tableOf } from '../migration-row.js';
import type { Move, MovingTable } from '../move.js';
import { guardHalves, halvesActions, wholeTables } from '../move-halves.js';
import { paceAction, paceTableAction, setPaceAction } from '../pace.js';
import { type PreflightResult, preflight } from '../preflight.js';
import type { Finding } from '../preflight-finding.js';
import { removeRows } from '../remove-rows.js';
import {
  markerAction,
  publicationAction,
  slotAction,
  subscribe,
  subscriptionAction,
  subscriptionPresent,
} from '../replication.js';
import { privilegesSql } from '../schema-grants.js';
import { createPartitionSql, fromLeaves, readWholeTable } from '../schema-partitions.js';
import { readTable, type TableInfo } from '../schema-read.js';
import { createSequenceSql, createTableSql } from '../schema-sql.js';
import { Throttle } from '../throttle.js';
import { behaviourActions, quietActions } from '../trigger-actions.js';
import { asMeant } from '../trigger-modes.js';
import { beginStatements, sameEpochStatement } from '../turn.js';
import { finish } from './open.js';

/** Of a table that has never been analyzed. */
const ROW_BYTES = 128;

/** Preflight found reasons not to begin. Nothing was touched. */
export class PreflightRefusal extends ForeshardError {
  readonly findings: readonly Finding[];

  constructor(findings: readonly Finding[]) {
    const blockers = findings.filter((f) => f.severity === 'blocker');
    super('55000', `the migration cannot start: ${blockers.map((b) => b.text).join('; ')}`, {
      hint: blockers.map((b) => b.remedy).join(' '),
    });
    this.findings = findings;
  }
}

/** approved → preparing: looks, and touches nothing. */
export async function approve(m: Move): Promise<void> {
  m.exec.at('before:preflight');
  const result = await runPreflight(m);
  m.exec.at('after:preflight');
  m.row = await m.exec.commit(
    m.row,
    [...beginStatements(m.row.id), sameEpochStatement(m.topology.epoch)],
    'preparing',
    {
      facts: {
        tables: m.tables.map(tableId),
        epochAtStart: m.topology.epoch.toString(),
        warnings: result.findings.filter((f) => f.severity === 'warning'),
      },
    },
  );
}

async function runPreflight(m: Move): Promise<PreflightResult> {
  const result = await preflight(m, await ownCleanup(m));
  const findings = [...result.findings, ...(await replicasInTheWay(m))];
  if (findings.some((f) => f.severity === 'blocker')) throw new PreflightRefusal(findings);
  return { ...result, findings };
}

/** A replica's interval moves only with the replica, whose shard has tables that go with it. */
async function replicasInTheWay(m: Move): Promise<Finding[]> {
  const others = await otherMoves(m.catalog.pool, m.row.id);
  return others.flatMap(({ id, state, spec: stored }): Finding[] => {
    if (state !== 'following') return [];
    const isSame = stored.keyspace === m.keyspace.name;
    const remedy = `Have it promoted ("foreshard migrate promote ${id}") or dropped ("foreshard migrate abort ${id}") first.`;
    if (isSame && overlaps(decodeSpec(m.keyspace, stored), m.spec))
      return [{ severity: 'blocker', text: `migration ${id} keeps a replica of the interval`, remedy }];
    if (stored.to === m.spec.to || (isSame && stored.to === m.spec.from))
      return [{ severity: 'blocker', text: `migration ${id} keeps a replica on shard "${stored.to}"`, remedy }];
    return [];
  });
}

async function ownCleanup(m: Move): Promise<CleanupRecord[]> {
  const result = await m.catalog.pool.query<CleanupRecord & { id: string }>(
    `SELECT id::text, kind, shard, object, done_at IS NOT NULL AS done FROM foreshard.migration_cleanup WHERE migration_id = $1`,
    [m.row.id.toString()],
  );
  return result.rows.map((r) => ({ ...r, id: BigInt(r.id) }));
}

/** preparing → copying: guards, tables at the destination, marker, publication, slot, pace, subscription, in this order. */
export async function prepare(m: Move): Promise<void> {
  if (m.row.facts.forgetCopy === true) await forgetCopy(m);
  const { source, destination } = await runPreflight(m);
  const info = (t: MovingTable): TableInfo => source.get(tableId(t)) as TableInfo;

  const keys = [...m.tables, ...wholeTables(m)].map((t) => t.keyColumns);
  const guarded = { keyspace: m.keyspace, interval: m.spec, keys };
  await m.exec.perform(gateAction(m.names, guarded, 'source', m.spec.from));
  await m.exec.perform(paceAction(m.names, 'source', m.spec.from));
  for (const t of m.tables) await m.exec.perform(guardTableAction(m.names, 'source', t, info(t)));
  await guardHalves(m, 'source');

  await createTables(m, m.tables.map(info), destination);
  await settleTriggers(m, m.tables.map(info), destination);
  for (const action of halvesActions(m)) await m.exec.perform(action);
  await m.exec.perform(gateAction(m.names, guarded, 'destination', m.spec.to));
  await m.exec.perform(paceAction(m.names, 'destination', m.spec.to));
  for (const t of m.tables) await m.exec.perform(guardTableAction(m.names, 'destination', t, info(t)));
  await guardHalves(m, 'destination');
  for (const t of m.tables) await m.exec.perform(paceTableAction(m.names, t, await rowBytes(m, t)));
  await clearEarlierAttempt(m, destination);

  await m.exec.perform(markerAction(m, 'source'));
  await m.exec.perform(markerAction(m, 'destination'));
  await m.exec.perform(publicationAction(m));
  await m.exec.progress({ note: 'waiting for the transactions that now write at the source' });
  await m.exec.perform(slotAction(m));
  // The copy begins with the subscription: a small table is through before it is looked at for the first time. Until then nobody knows how many workers there are.
  await m.exec.perform(setPaceAction(m.names, new Throttle(m).copyPace(m.tables.length)));
  await beginCopy(m, m.tables.map(info));
  m.row = await m.exec.transition(m.row, 'copying');
}

/** A copy that was lost: nothing follows the source any more, and the tables that were made for it are empty again. The others' rows are removed below. */
async function forgetCopy(m: Move): Promise<void> {
  await finish(m, 'subscription');
  await finish(m, 'slot');
  const own = await ownCleanup(m);
  const made = m.tables.filter((t) => isOurs(own, t));
  if (made.length > 0)
    await m.exec.perform({
      name: 'empty-tables',
      on: 'destination',
      text: 'empty the tables whose copy was lost',
      mode: 'locking',
      // As replica: the guards refuse it.
      sql: ['SET LOCAL session_replication_role = replica', `TRUNCATE ${made.map((t) => t.sql).join(', ')}`],
    });
  m.exec.at('after:forget-copy');
  m.row = await m.exec.noteFacts(m.row, { forgetCopy: false });
}

/** Whether the table was made at the destination by this migration. */
function isOurs(own: readonly CleanupRecord[], t: MovingTable): boolean {
  return own.some((c) => !c.done && c.kind === 'table' && c.object.schema === t.schema && c.object.table === t.table);
}

/** Bytes of a row, about. */
async function rowBytes(m: Move, t: MovingTable): Promise<number> {
  const [table] = await m.source.query<{ bytes: number | null }>(
    `SELECT sum(pg_table_size(heap.oid)) / nullif(sum(greatest(heap.reltuples, 0)), 0)::float8 AS bytes FROM ${HEAPS}`,
    [t.sql],
  );
  return table?.bytes ?? ROW_BYTES;
}

async function beginCopy(m: Move, tables: readonly TableInfo[]): Promise<void> {
  try {
    await subscribe(m, subscriptionAction(m, tables));
  } catch (error) {
    if (!errorCode(error).startsWith('08')) throw error;
    throw new MigrationFailure(
      `shard "${m.spec.to}" cannot connect to shard "${m.spec.from}": ${(error as Error).message}`,
      `The URL of shard "${m.spec.from}" must work from the other server too: check its host name, the network and pg_hba.conf.`,
    );
  }
}

async function createTables(
  m: Move,
  tables: readonly TableInfo[],
  there: ReadonlyMap<string, TableInfo>,
): Promise<void> {
  const on = 'destination' as const;
  const shard = m.spec.to;
  const missing = tables.filter((t) => !there.has(tableId(t)));

  await makeFunctions(
    m,
    tables.flatMap(fromLeaves),
    missing.flatMap((t) => [
      ...fromLeaves(t).map((one) => one.schema),
      ...t.types.map((y) => y.schema),
      ...t.sequences.map((s) => s.schema),
    ]),
  );
  for (const t of missing) {
    for (const type of t.types) {
      const name = quoteTable({ schema: type.schema, table: type.name });
      await m.exec.perform({
        name: 'create-type',
        on,
        text: `create type ${type.schema}.${type.name}`,
        mode: 'transaction',
        cleanup: [{ kind: 'type', shard, object: { schema: type.schema, table: type.name } }],
        present: `SELECT to_regtype(${quoteLiteral(name)}) IS NOT NULL AS present`,
        sql: [
          type.create,
          `ALTER TYPE ${name} OWNER TO ${quoteIdent(type.owner)}`,
          ...privilegesSql('TYPE', name, type.grants),
        ],
      });
    }
    for (const s of t.sequences.filter((q) => q.kind !== 'identity'))
      await m.exec.perform({
        name: 'create-sequence',
        on,
        text: `create sequence ${s.schema}.${s.table}`,
        mode: 'transaction',
        cleanup: [{ kind: 'sequence', shard, object: { schema: s.schema, table: s.table } }],
        present: `SELECT to_regclass(${quoteLiteral(quoteTable(s))}) IS NOT NULL AS present`,
        sql: createSequenceSql(s),
      });
    await m.exec.perform({
      name: 'create-tables',
      on,
      text: `create table ${t.schema}.${t.table}`,
      mode: 'transaction',
      cleanup: [{ kind: 'table', shard, object: { schema: t.schema, table: t.table } }],
      present: `SELECT to_regclass(${quoteLiteral(quoteTable(t))}) IS NOT NULL AS present`,
      sql: [...createTableSql(t), ...(t.partitions ?? []).flatMap((p) => createPartitionSql(p, false))],
    });
  }
}

/**
 * When all tables are there, as policies may read any of them: triggers and policies of those that we made. Neither in these nor in those that were there
 * before do triggers fire for what is copied and replicated.
 */
async function settleTriggers(
  m: Move,
  tables: readonly TableInfo[],
  there: ReadonlyMap<string, TableInfo>,
): Promise<void> {
  const made = new Set((await m.exec.openCleanup('table')).map((record) => tableId(tableOf(record))));
  const quieted = await m.exec.openCleanup('triggers');
  for (const t of tables) {
    const now = there.get(tableId(t)) ?? t;
    for (const action of made.has(tableId(t))
      ? behaviourActions(await asMade(m, t), m.spec.to)
      : quietActions(now, asMeant(now, quieted, m.spec.to), 'destination', m.spec.to))
      await m.exec.perform(action);
  }
}

/** With those partitions only that have been made with it: when a copy begins again, others may have come that are made as they are found (`settlePartitions`). */
async function asMade(m: Move, table: TableInfo): Promise<TableInfo> {
  if (m.exec.dry || table.partitions === undefined) return table;
  const there = await readWholeTable(m.destination.reader, quoteTable(table));
  const ids = new Set((there?.partitions ?? []).map((p) => tableId(p.table)));
  return { ...table, partitions: table.partitions.filter((p) => ids.has(tableId(p.table))) };
}

/**
 * Tables that the destination had before us must not have rows of the interval: the copy would fail on them again and again.
 * Ours from an attempt that died are removed; others were a blocker in preflight.
 */
async function clearEarlierAttempt(m: Move, there: ReadonlyMap<string, TableInfo>): Promise<void> {
  if (m.exec.dry) return;
  const subscribed = await m.destination.query<{ present: boolean }>(subscriptionPresent(m.names));
  if (subscribed[0]?.present === true) return;
  const own = await ownCleanup(m);
  for (const t of m.tables) {
    if (!there.has(tableId(t))) continue;
    if (isOurs(own, t)) continue;
    await m.exec.record({ kind: 'rows', shard: m.spec.to, object: { schema: t.schema, table: t.table } });
    await removeRows(m, 'destination', t, new Throttle(m));
  }
}

/** The tables of the source now. @param read whether with their partitions @throws MigrationFailure when one is gone */
export async function readSourceTables(m: Move, read = readTable): Promise<TableInfo[]> {
  const infos: TableInfo[] = [];
  for (const t of m.tables) {
    const info = await read(m.source.reader, t.sql);
    if (info === null)
      throw new MigrationFailure(`table "${tableId(t)}" was dropped at the source`, 'Start the migration again.');
    infos.push(info);
  }
  return infos;
}

/** From here on rows are written or removed at the source that triggers there have seen, or are not to see. */
export async function quietSource(m: Move): Promise<void> {
  const quieted = await m.exec.openCleanup('triggers');
  for (const t of await readSourceTables(m, readWholeTable))
    for (const action of quietActions(t, asMeant(t, quieted, m.spec.from), 'source', m.spec.from))
      await m.exec.perform(action);
}
