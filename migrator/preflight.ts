import { comparePositions, type Interval } from '../topology/key.js';
import type { MigrationState } from '../topology/migration.js';
import { quoteLiteral } from '../topology/quote.js';
import { isKeyless, rangesIn, tableId } from '../topology/topology.js';
import { type CleanupRecord, OUT_OF_THE_WAY, RESTING_STATES } from './migration-row.js';
import { isReference, type Move, type MovingTable } from './move.js';
import { checkHalves } from './move-halves.js';
import { checkDependencies, checkFunctions } from './preflight-dependencies.js';
import { type Finding, one, type Report } from './preflight-finding.js';
import { checkPartitions } from './preflight-partitions.js';
import { type Block, checkPublisher, checkSubscriber } from './preflight-servers.js';
import { checkBehaviour, checkReach } from './preflight-triggers.js';
import { replicaIdentity, uniqueProblems } from './preflight-unique.js';
import { checkWayBack } from './preflight-way-back.js';
import { fromLeaves, readWholeTable, shapeDifferences } from './schema-partitions.js';
import { readInboundForeignKeys, type TableInfo } from './schema-read.js';
import { asMeant } from './trigger-modes.js';
import { shardsSql } from './turn.js';

/** What preflight read on the way; later steps build on it. */
export interface PreflightResult {
  readonly findings: readonly Finding[];
  /** By `tableId`; tables that the source lacks are missing (and reported). */
  readonly source: ReadonlyMap<string, TableInfo>;
  /** Tables that the destination has already. */
  readonly destination: ReadonlyMap<string, TableInfo>;
}

/**
 * Everything that must hold before a migration may touch anything. Only reads.
 * @param own the migration's clean-up records: what an earlier attempt of the same migration made does not count against it
 */
export async function preflight(m: Move, own: readonly CleanupRecord[]): Promise<PreflightResult> {
  const findings: Finding[] = [];
  const report: Report = (severity, text, remedy) => findings.push({ severity, text, remedy });
  await checkOthers(m, report);
  checkOwnership(m, report);
  await checkHalves(m, report);
  await checkServers(m, own, report);
  await checkWayBack(m, report);

  const source = new Map<string, TableInfo>();
  const destination = new Map<string, TableInfo>();
  for (const table of m.tables) {
    const there = await readWholeTable(m.destination.reader, table.sql);
    if (there !== null) destination.set(tableId(table), there);
    const info = await readWholeTable(m.source.reader, table.sql);
    if (info === null) {
      report(
        'blocker',
        `table "${tableId(table)}" does not exist on shard "${m.spec.from}"`,
        'Create it there, or remove it from the catalog.',
      );
      continue;
    }
    source.set(tableId(table), info);
    checkTable(table, info, report);
    await checkBehaviour(m, table, info, report);
    await checkPartitions(m, table, info, report);
    await checkForeignKeys(m, table, info, report);
    await checkDependencies(m, info, report);
    if (there !== null) await checkDestinationTable(m, table, info, there, own, report);
  }
  await checkFunctions(m, [...source.values()].flatMap(fromLeaves), report);
  await checkReach(m, report);
  return { findings, source, destination };
}

/** One at work is waited for; one that has failed and not been cleaned up would be in the way for ever. */
async function checkOthers(m: Move, report: Report): Promise<void> {
  const { rows } = await m.catalog.pool.query<{ id: string; state: MigrationState; shards: string[] }>(
    `SELECT o.id::text, o.state, array(SELECT s FROM unnest(${shardsSql('o')}) s WHERE s IN ($2, $3)) AS shards FROM foreshard.migration o
      WHERE o.id <> $1 AND ${shardsSql('o')} && ARRAY[$2, $3] AND o.state <> 'following' AND (o.state NOT IN (${OUT_OF_THE_WAY})
         OR EXISTS (SELECT FROM foreshard.migration_cleanup c WHERE c.migration_id = o.id AND c.done_at IS NULL)) ORDER BY o.id`,
    [m.row.id.toString(), m.spec.from, m.spec.to],
  );
  for (const { id, state, shards } of rows) {
    const where = shards.map((shard) => `shard "${shard}"`).join(' and ');
    if (RESTING_STATES.includes(state))
      report(
        'blocker',
        `migration ${id} is ${state}, and has left things on ${where}`,
        `See "foreshard migrate show ${id}"; then abort it, or accept the difference it has found.`,
      );
    else report('warning', `migration ${id} is at work on ${where}`, 'This one begins when that has ended.');
  }
}

function checkOwnership(m: Move, report: Report): void {
  const { spec, keyspace } = m;
  if (spec.from === spec.to)
    report('blocker', 'source and destination are the same shard', 'Choose another destination.');
  if (spec.lo !== null && spec.hi !== null && comparePositions(spec.lo, spec.hi) >= 0) {
    report('blocker', 'the interval is empty', 'Its lower bound must lie below its upper bound.');
    return;
  }
  const ranges = rangesIn(keyspace, spec);
  const range = ranges[0];
  if (ranges.length !== 1 || range === undefined || !inside(spec, range))
    report(
      'blocker',
      'the interval spans several ranges',
      'Move each by a migration of its own; see "foreshard topology show".',
    );
  else if (range.shard !== spec.from)
    report(
      'blocker',
      `the interval belongs to shard "${range.shard}", not "${spec.from}"`,
      'The topology has changed: plan again.',
    );
  if (isKeyless(keyspace) && m.row.replica !== null)
    report(
      'blocker',
      `keyspace "${keyspace.name}" has no key, and replicas of such a keyspace are not supported yet`,
      'Move it instead: "foreshard migrate plan move".',
    );
  if (keyspace.tables.length === 0)
    report('blocker', `keyspace "${keyspace.name}" has no tables`, 'Add them with "foreshard table add".');
  for (const t of m.topology.referenceTables.values())
    if (!t.shards.includes(spec.to) && !t.shards.includes(spec.from))
      report(
        'blocker',
        `reference table "${tableId(t)}" is not on shard "${spec.from}"`,
        'Move a range from a shard that has it first.',
      );
}

function inside(inner: Interval, outer: Interval): boolean {
  if (outer.lo !== null && (inner.lo === null || comparePositions(inner.lo, outer.lo) < 0)) return false;
  return outer.hi === null || (inner.hi !== null && comparePositions(inner.hi, outer.hi) <= 0);
}

async function checkServers(m: Move, own: readonly CleanupRecord[], report: Report): Promise<void> {
  const from = `shard "${m.spec.from}"`;
  const to = `shard "${m.spec.to}"`;
  for (const [session, name] of [
    [m.source, from],
    [m.destination, to],
  ] as const)
    if (session.version < 150000) report('blocker', `${name} runs PostgreSQL older than 15`, 'Upgrade it.');
  const s = await one<{
    recovery: boolean;
    replica_role: boolean;
    encoding: string;
    prepared: number;
    objects: boolean;
  }>(
    m.source,
    `SELECT pg_is_in_recovery() AS recovery,
       has_parameter_privilege('session_replication_role', 'SET') AS replica_role, getdatabaseencoding() AS encoding,
       (SELECT count(*)::int FROM pg_prepared_xacts WHERE database = current_database() AND gid !~ '^foreshard_[0-9a-f]{32}_') AS prepared,
       EXISTS (SELECT FROM pg_largeobject_metadata) AS objects`,
  );
  const d = await one<{ recovery: boolean; replica_role: boolean; encoding: string }>(
    m.destination,
    `SELECT pg_is_in_recovery() AS recovery,
       has_parameter_privilege('session_replication_role', 'SET') AS replica_role, getdatabaseencoding() AS encoding`,
  );
  const needed = own.some((c) => c.kind === 'slot' && !c.done) ? 0 : 2;
  const block: Block = (text, remedy) => report('blocker', text, `${remedy}.`);
  await checkPublisher(m.source, needed, block);
  await checkSubscriber(m.destination, needed, block);
  if (s.recovery || d.recovery)
    report(
      'blocker',
      `${s.recovery ? from : to} is a standby`,
      'Give the URL of its primary with "foreshard shard add".',
    );
  if (!s.replica_role)
    report(
      'blocker',
      `the user of ${from} may not set session_replication_role`,
      'GRANT SET ON PARAMETER session_replication_role TO it, or use a superuser.',
    );
  if (!d.replica_role)
    report(
      'blocker',
      `the user of ${to} may not set session_replication_role`,
      'GRANT SET ON PARAMETER session_replication_role TO it, or use a superuser.',
    );
  if (s.encoding !== d.encoding)
    report(
      'blocker',
      `${from} is encoded in ${s.encoding}, ${to} in ${d.encoding}`,
      'Use a destination database with the same encoding.',
    );
  if (s.prepared > 0)
    report(
      'warning',
      `${s.prepared} prepared transactions are open on ${from}`,
      'They delay the slot and the fence: COMMIT PREPARED or ROLLBACK PREPARED them.',
    );
  if (s.objects)
    report(
      'warning',
      `${from} has large objects, which do not move`,
      'If moving rows refer to them, store them as bytea first.',
    );
  report(
    'warning',
    `free disk space of ${to} cannot be read through SQL`,
    'Make sure there is room for about twice what moves.',
  );
  const tables = m.tables.map((t) => quoteLiteral(t.sql)).join(', ');
  if (tables !== '') {
    const fed = await m.source.query<{ subname: string }>(
      `SELECT DISTINCT s.subname FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
        WHERE r.srrelid = ANY (SELECT to_regclass(x) FROM unnest(ARRAY[${tables}]) x
          UNION SELECT relid FROM unnest(ARRAY[${tables}]) x, pg_partition_tree(to_regclass(x)))`,
    );
    for (const { subname } of fed)
      report(
        'blocker',
        `subscription "${subname}" writes into moving tables of ${from}`,
        'Its writes pass the guards: end it first.',
      );
  }
}

function checkTable(table: MovingTable, info: TableInfo, report: Report): undefined {
  const name = tableId(table);
  const block = (text: string, remedy: string): undefined => {
    report('blocker', `table "${name}" ${text}`, remedy);
  };
  if (info.kind !== 'r' && info.kind !== 'p')
    return block('is not an ordinary table', 'Only ordinary tables can move.');
  if (info.isPartition)
    block('is a partition', 'Name the partitioned table instead of it: "foreshard table remove", then "table add".');
  if (info.inherits)
    block('has parents or children (inheritance)', 'Take it out of the hierarchy: ALTER TABLE … NO INHERIT.');
  if (info.persistence !== 'p') block('is unlogged or temporary and is not replicated', 'ALTER TABLE … SET LOGGED.');

  const missing = table.keyColumns.filter((k) => !info.columns.some((c) => c.name === k));
  if (missing.length > 0)
    return block(`has no column ${missing.join(', ')}`, 'Correct its key with "foreshard table add".');
  for (const k of table.keyColumns) {
    const c = info.columns.find((x) => x.name === k);
    if (c?.notNull === false)
      block(`allows NULL in its key column "${k}"`, `ALTER TABLE … ALTER COLUMN ${k} SET NOT NULL.`);
    if (c !== undefined && c.generated !== '')
      block(`has a generated key column "${k}"`, 'Row filters cannot use it: shard by a plain column.');
  }

  const primary = info.constraints.find((c) => c.type === 'p');
  const identity = replicaIdentity(info);
  if (identity === undefined && primary !== undefined)
    block('has a primary key, and a replica identity that serves nothing', 'ALTER TABLE … REPLICA IDENTITY DEFAULT.');
  else if (identity === undefined)
    block(
      'has no primary key and no replica identity that serves',
      table.keyColumns.length === 0 ? 'Add a primary key.' : 'Add a primary key that contains the key columns.',
    );
  else {
    const outside = table.keyColumns.filter((k) => !identity.includes(k));
    if (outside.length > 0)
      // With a row filter on a column outside the identity, CREATE PUBLICATION succeeds and then every UPDATE and DELETE fails (42P10).
      block(
        `has a replica identity without its key (${outside.join(', ')}): every UPDATE and DELETE on it would fail during the move`,
        'Make the key part of the primary key, or add a UNIQUE index with it and ALTER TABLE … REPLICA IDENTITY USING INDEX.',
      );
  }
  for (const { text, remedy } of uniqueProblems(table, info)) block(text, remedy);
}

async function checkForeignKeys(m: Move, table: MovingTable, info: TableInfo, report: Report): Promise<void> {
  const name = tableId(table);
  for (const fk of info.constraints.filter((c) => c.type === 'f')) {
    const target = tableId(fk.references as { schema: string; table: string });
    if (m.topology.referenceTables.has(target)) continue;
    const sharded = m.topology.shardedTables.get(target);
    if (isReference(table) || sharded === undefined || sharded.keyspace !== m.keyspace.name) {
      report(
        'blocker',
        `foreign key "${fk.name}" of "${name}" points at "${target}", which is not on every shard`,
        'Make that table a reference table, or one of this keyspace, or drop the foreign key.',
      );
      continue;
    }
    const colocated = table.keyColumns.every((k, i) => {
      const at = fk.columns.indexOf(k);
      return at >= 0 && fk.referencedColumns[at] === sharded.keyColumns[i];
    });
    if (!colocated)
      report(
        'blocker',
        `foreign key "${fk.name}" from "${name}" to "${target}" does not contain the key: it could cross shards`,
        `Add ${table.keyColumns.join(', ')} to it.`,
      );
  }
  for (const inbound of await readInboundForeignKeys(m.source.reader, info.oid)) {
    const from = tableId(inbound.from);
    if (m.topology.shardedTables.get(from)?.keyspace === m.keyspace.name) continue;
    if (isReference(table)) continue; // the reference table stays whole where the referring table is
    report(
      'blocker',
      `foreign key "${inbound.name}" of "${from}" points at "${name}", whose rows would leave`,
      `Add "${from}" to keyspace "${m.keyspace.name}", or drop the foreign key.`,
    );
  }
}

async function checkDestinationTable(
  m: Move,
  table: MovingTable,
  source: TableInfo,
  there: TableInfo,
  own: readonly CleanupRecord[],
  report: Report,
): Promise<void> {
  const name = tableId(table);
  const object = (kind: CleanupRecord['kind']) =>
    own.some(
      (c) =>
        c.kind === kind &&
        !c.done &&
        c.shard === m.spec.to &&
        c.object.schema === table.schema &&
        c.object.table === table.table,
    );
  if (object('table')) return; // our own, maybe unfinished
  const differences = shapeDifferences(source, asMeant(there, own, m.spec.to));
  if (differences.length > 0)
    report(
      'blocker',
      `table "${name}" differs between the shards: ${differences.slice(0, 3).join('; ')}`,
      `Make it the same on shard "${m.spec.to}", or drop it there.`,
    );
  if (object('rows')) return;
  if (table.keyColumns.some((k) => !there.columns.some((c) => c.name === k))) return;
  const rows = await one<{ some: boolean }>(
    m.destination,
    `SELECT EXISTS (SELECT FROM ${table.sql} WHERE ${table.predicate()}) AS some`,
  );
  if (rows.some)
    report(
      'blocker',
      `shard "${m.spec.to}" already has rows of the interval in "${name}"`,
      'They are not from this migration: find out whose they are, then delete them.',
    );
}
