import type { Catalog } from '../../topology/catalog/catalog.js';
import { findSplit } from '../../topology/catalog/column-split.js';
import { baseTriggersPresent, baseTriggersSql, halvesNames, hotHalfSql } from '../../topology/halves-sql.js';
import { intervalPredicate } from '../../topology/interval-sql.js';
import { type Interval, intersection } from '../../topology/key.js';
import { stretches } from '../../topology/layout.js';
import { quoteIdent, quoteTable } from '../../topology/quote.js';
import {
  type ColumnSplit,
  type Keyspace,
  type ShardedTable,
  type ShardName,
  shardsOf,
  type Topology,
  tableId,
} from '../../topology/topology.js';
import { HalvesComparison, PORTION_ROWS } from '../halves-compare.js';
import { readTable, type TableInfo } from '../schema-read.js';
import type { ShardSession } from '../shard-session.js';
import { differingFrom, ENOUGH, rowsText, type Side, thatStay } from './both-sides.js';
import type { AuditFinding } from './finding.js';
import { AtWork } from './migrations.js';
import type { Portions } from './portions.js';

/** What halves are looked at by. */
export interface HalvesAudit {
  readonly catalog: Catalog;
  readonly topology: Topology;
  readonly sessions: ReadonlyMap<ShardName, ShardSession>;
  readonly atWork: AtWork;
  readonly portions: Portions;
}

/** A table whose columns are split. */
interface Split extends ColumnSplit {
  readonly table: ShardedTable;
  readonly keyspace: Keyspace;
  readonly hotKeyspace: Keyspace;
}

/** Tables whose columns are split: what keeps their halves together is there, and every row has both, which are the same where one shard has them. */
export async function auditHalves(a: HalvesAudit): Promise<AuditFinding[]> {
  const findings: AuditFinding[] = [];
  for (const table of a.topology.shardedTables.values()) {
    if (table.split === undefined) continue;
    const { split, keyspace, hot } = findSplit(a.topology, table);
    const found = { ...split, table, keyspace, hotKeyspace: hot };
    findings.push(...(await auditObjects(a, found)), ...(await auditRowsOf(a, found)));
  }
  return findings;
}

/** Triggers and outboxes. Where a migration is at work, they come and go with it. */
async function auditObjects({ sessions, atWork }: HalvesAudit, split: Split): Promise<AuditFinding[]> {
  const { table, hot } = split;
  const findings: AuditFinding[] = [];
  const { outbox, trigger } = halvesNames(table);
  const add = (shard: ShardName, object: string, text: string, remedy: string) =>
    findings.push({ kind: 'halves', shard, object, text, remedy, repair: null });
  const modesOf = (session: ShardSession, sql: string) =>
    session.query<{ name: string; mode: string }>(
      `SELECT tgname AS name, tgenabled AS mode FROM pg_trigger WHERE tgrelid = to_regclass($1) AND starts_with(tgname::text, $2) ORDER BY 1`,
      [sql, trigger],
    );
  for (const shard of shardsOf(split.keyspace)) {
    const session = sessions.get(shard);
    if (session === undefined || atWork.onShard(shard)) continue;
    const id = tableId(table);
    const [row] = await session.query<{ present: boolean }>(baseTriggersPresent(table));
    if (row?.present !== true)
      add(
        shard,
        id,
        `triggers of ${id} that keep ${tableId(hot)} the same are missing`,
        `${baseTriggersSql(table, split).join('; ')}. Then audit again: rows written in between differ.`,
      );
    for (const { name, mode } of await modesOf(session, quoteTable(table)))
      if (mode !== 'O') add(shard, `${id}.${name}`, ...wrongMode(id, name, `ENABLE TRIGGER ${quoteIdent(name)}`));
    const [box] = await session.query<{ there: boolean }>('SELECT to_regclass($1) IS NOT NULL AS there', [
      quoteTable(outbox),
    ]);
    if (box?.there !== true) {
      add(
        shard,
        tableId(outbox),
        `${tableId(outbox)}, the outbox of ${id}, is missing: writes of both halves fail`,
        `Unite the columns ("foreshard migrate plan unite ${id}"), and split them again.`,
      );
      continue;
    }
    // Whoever writes there takes it out in the same transaction: nobody ever sees a row.
    const rows = await session.query(`SELECT FROM ${quoteTable(outbox)} LIMIT ${ENOUGH}`);
    if (rows.length > 0)
      add(
        shard,
        tableId(outbox),
        `${rows.length >= ENOUGH ? 'at least ' : ''}${rows.length} writes of ${id} are in ${tableId(outbox)}, and were not done to ${tableId(hot)}: their transactions were not a proxy's`,
        `See what they are (SELECT * FROM ${quoteTable(outbox)} ORDER BY n), make ${tableId(hot)} right, and delete them.`,
      );
  }
  for (const shard of shardsOf(split.hotKeyspace)) {
    const session = sessions.get(shard);
    if (session === undefined || atWork.onShard(shard)) continue;
    const id = tableId(hot);
    const triggers = await modesOf(session, quoteTable(hot));
    const own = triggers.find(({ name }) => name === trigger);
    if (own === undefined)
      add(
        shard,
        id,
        `the trigger of ${id} is missing that brings its rows back to ${tableId(table)}`,
        hotHalfSql(table, split).join('; '),
      );
    else if (own.mode !== 'R')
      add(shard, `${id}.${trigger}`, ...wrongMode(id, trigger, `ENABLE REPLICA TRIGGER ${quoteIdent(trigger)}`));
  }
  return findings;
}

function wrongMode(id: string, trigger: string, remedy: string): [string, string] {
  return [`trigger ${trigger} of ${id} is disabled, or fires when it should not`, `ALTER TABLE ${id} ${remedy}`];
}

async function auditRowsOf(a: HalvesAudit, split: Split): Promise<AuditFinding[]> {
  const { catalog, topology, sessions, atWork } = a;
  const { keyspace, hotKeyspace, table } = split;
  const isMoving = (work: AtWork) => work.any(keyspace.name) || work.any(hotKeyspace.name);
  if (isMoving(atWork)) return [];
  const findings: AuditFinding[] = [];
  for (const { base, hot, intervals } of pairs(keyspace, hotKeyspace)) {
    const [here, there] = [sessions.get(base), sessions.get(hot)];
    if (here === undefined || there === undefined) continue;
    const info = await readTable(here.reader, quoteTable(table));
    if (info === null || (await readTable(there.reader, quoteTable(split.hot))) === null) {
      const [shard, id] = info === null ? [base, tableId(table)] : [hot, tableId(split.hot)];
      const text = `table ${id} is missing`;
      findings.push({ kind: 'halves', shard, object: id, text, remedy: 'Restore it from a backup.', repair: null });
      continue;
    }
    findings.push(
      ...(here === there
        ? await auditTogether(a, split, here, intervals)
        : await auditApart(a, split, [here, there], intervals, info)),
    );
  }
  if (findings.length === 0) return findings;
  // Ranges may have changed hands meanwhile: then rows were looked for where they are not.
  const now = await catalog.loadTopology();
  return now.epoch !== topology.epoch || isMoving(await AtWork.load(catalog, now)) ? [] : findings;
}

/** What lies where, by the shards of both halves. */
function pairs(
  keyspace: Keyspace,
  hotKeyspace: Keyspace,
): { readonly base: ShardName; readonly hot: ShardName; readonly intervals: Interval[] }[] {
  const found = new Map<string, { base: ShardName; hot: ShardName; intervals: Interval[] }>();
  for (const ours of stretches(keyspace))
    for (const theirs of stretches(hotKeyspace)) {
      const interval = intersection(ours, theirs);
      if (interval === null) continue;
      const id = JSON.stringify([ours.shard, theirs.shard]);
      const pair = found.get(id) ?? { base: ours.shard, hot: theirs.shard, intervals: [] };
      pair.intervals.push(interval);
      found.set(id, pair);
    }
  return [...found.values()];
}

const within = ({ keyspace, table }: Split, intervals: readonly Interval[]) =>
  intervals.map((interval) => `(${intervalPredicate(keyspace, table.keyColumns, interval)})`).join(' OR ');

/** Both are written in one transaction, and read in one statement: what differs is wrong. */
async function auditTogether(
  { portions }: HalvesAudit,
  split: Split,
  session: ShardSession,
  intervals: readonly Interval[],
): Promise<AuditFinding[]> {
  const { table, hot, primaryKey, columns } = split;
  const names = (of: readonly string[]) => of.map(quoteIdent).join(', ');
  const wrong: string[] = [];
  const orphans: string[] = [];
  const isEnough = () => wrong.length >= ENOUGH || orphans.length >= ENOUGH;
  const comparison = new HalvesComparison(session, table, split, within(split, intervals));
  await portions.byRows(PORTION_ROWS, async (rows) => {
    const { unlike, isLast } = await comparison.next(rows, ENOUGH);
    for (const { key, only } of unlike) (only === 'hot' ? orphans : wrong).push(key);
    return isLast || isEnough();
  });
  const [ours, theirs] = [quoteTable(table), quoteTable(hot)];
  const areAll = !isEnough();
  const finding = (object: string, text: string, remedy: string): AuditFinding => ({
    kind: 'halves',
    shard: session.shard.name,
    object,
    text,
    remedy,
    repair: null,
  });
  const all = names([...primaryKey, ...columns]);
  const set = columns.map((c) => `${quoteIdent(c)} = EXCLUDED.${quoteIdent(c)}`).join(', ');
  return [
    ...(wrong.length === 0
      ? []
      : [
          finding(
            tableId(table),
            `the hot half, in ${tableId(hot)}, is missing, or not the same, of ${rowsText(wrong, areAll)}`,
            `What the table has is right: INSERT INTO ${theirs} (${all}) SELECT ${all} FROM ${ours} WHERE … ON CONFLICT (${names(primaryKey)}) DO UPDATE SET ${set}`,
          ),
        ]),
    ...(orphans.length === 0
      ? []
      : [
          finding(
            tableId(hot),
            `the half in ${tableId(table)} is missing of ${rowsText(orphans, areAll)}`,
            `Nobody sees them: DELETE FROM ${theirs} WHERE …`,
          ),
        ]),
  ];
}

/** Every row has both halves. What is being committed on one of the shards, and not yet on the other, is waited for. */
async function auditApart(
  { portions }: HalvesAudit,
  split: Split,
  [here, there]: readonly [ShardSession, ShardSession],
  intervals: readonly Interval[],
  info: TableInfo,
): Promise<AuditFinding[]> {
  const { table, hot, primaryKey } = split;
  // Of the columns that both have: rows are the same when they have the same key.
  const keys: TableInfo = { ...info, columns: info.columns.filter((c) => primaryKey.includes(c.name)) };
  const where = within(split, intervals);
  const base: Side = { session: here, sql: quoteTable(table), where, info: keys };
  const half: Side = { session: there, sql: quoteTable(hot), where, info: keys };
  const prepared = async (): Promise<string[]> => {
    const each = await Promise.all(
      [here, there].map((session) =>
        session.query<{ gid: string }>('SELECT gid FROM pg_prepared_xacts WHERE database = current_database()'),
      ),
    );
    return each.flatMap((rows, i) => rows.map(({ gid }) => `${i} ${gid}`));
  };
  const findings: AuditFinding[] = [];
  const look = async (ours: Side, theirs: Side, text: (rows: string) => string, remedy: string) => {
    const suspects = await differingFrom(ours, theirs, portions);
    const standing = await thatStay(suspects, ours, theirs, prepared);
    if (standing.length === 0) return;
    const object = tableId(ours === base ? table : hot);
    const shard = ours.session.shard.name;
    findings.push({ kind: 'halves', shard, object, text: text(rowsText(standing)), remedy, repair: null });
  };
  const [id, hotId] = [tableId(table), tableId(hot)];
  await look(
    base,
    half,
    (rows) => `the hot half, in ${hotId} on shard "${there.shard.name}", is missing of ${rows}`,
    `Insert it there: the values in ${id} are those of a time before the split, or of the insertion, and may be old.`,
  );
  await look(
    half,
    base,
    (rows) => `the half in ${id} on shard "${here.shard.name}" is missing of ${rows}`,
    `Nobody sees them: DELETE FROM ${quoteTable(hot)} WHERE … on shard "${there.shard.name}"`,
  );
  return findings;
}
