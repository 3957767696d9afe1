import type { Catalog } from '../../topology/catalog/catalog.js';
import { inCatalogTransaction } from '../../topology/catalog/change.js';
import { ForeshardError } from '../../topology/errors.js';
import { intervalPredicate } from '../../topology/interval-sql.js';
import type { Interval } from '../../topology/key.js';
import { quoteTable } from '../../topology/quote.js';
import { type Keyspace, type ShardedTable, type ShardName, type Topology, tableId } from '../../topology/topology.js';
import { crashPoint } from '../crash-points.js';
import { identityColumns } from '../hashing.js';
import { asTheyWere, differing, type RowsOf, rowsByKey, rowsOfPages } from '../keyed-rows.js';
import { deleteAsReplica } from '../remove-rows.js';
import { fromLeaves, readWholeTable } from '../schema-partitions.js';
import { readTable } from '../schema-read.js';
import type { ShardSession } from '../shard-session.js';
import type { AuditFinding } from './finding.js';
import { type AtWork, NONE_AT_WORK } from './migrations.js';
import type { Portions } from './portions.js';

/** Heap pages that are looked through by one statement: 8 MB. */
const PORTION_PAGES = 1024;
/** Rows removed together: for so long no migration goes on. */
const BATCH = 2000;

/** What rows are looked at by. */
export interface RowsAudit {
  readonly catalog: Catalog;
  readonly topology: Topology;
  readonly keyspace: Keyspace;
  readonly sessions: ReadonlyMap<ShardName, ShardSession>;
  readonly atWork: AtWork;
  readonly portions: Portions;
}

/** Rows of sharded tables on shards that own none of their intervals. */
export async function auditRows(a: RowsAudit): Promise<AuditFinding[]> {
  const { keyspace, sessions, atWork } = a;
  const findings: AuditFinding[] = [];
  for (const table of keyspace.tables)
    for (const [shard, session] of sessions) {
      const info = await readTable(session.reader, quoteTable(table));
      if (info === null) continue;
      const strays = strayPredicate(keyspace, table, shard, atWork);
      const rows = await count(session, table, strays, a.portions);
      if (rows === 0) continue;
      const moving = atWork.any(keyspace.name);
      const isKeyed = identityColumns(info).length > 0;
      const copies = isKeyed
        ? '"--repair" removes those that the owner has as well, byte for byte.'
        : 'There is no primary key by which rows could be told apart: "--repair" removes none.';
      findings.push({
        kind: 'rows',
        shard,
        object: tableId(table),
        text: `${rows} rows of ${tableId(table)} belong to other shards`,
        remedy: moving
          ? `Look again when no migration of keyspace "${keyspace.name}" is under way.`
          : `Compare them with the owner's: SELECT … FROM ${quoteTable(table)} WHERE ${strays}. ${copies}`,
        repair: moving || !isKeyed ? null : () => removeCopies(a, table, session),
      });
    }
  return findings;
}

/** True for rows that have no business on the shard; for those without a key, too. */
function strayPredicate(keyspace: Keyspace, table: ShardedTable, shard: ShardName, atWork: AtWork): string {
  const owned: Interval[] = keyspace.ranges.filter((range) => range.shard === shard);
  const allowed = [...owned, ...atWork.intervals(keyspace.name, shard)];
  return `(${within(keyspace, table, allowed)}) IS NOT TRUE`;
}

/** True for the rows of these intervals. */
function within(keyspace: Keyspace, table: ShardedTable, intervals: readonly Interval[]): string {
  const each = intervals.map((interval) => `(${intervalPredicate(keyspace, table.keyColumns, interval)})`);
  return each.length === 0 ? 'false' : each.join(' OR ');
}

function count(session: ShardSession, table: ShardedTable, where: string, portions: Portions): Promise<number> {
  return portions.of(session, quoteTable(table), { most: PORTION_PAGES, resumes: true }, async (heap, first, end) => {
    const [row] = await session.query<{ n: string }>(
      `SELECT count(*) AS n FROM ${heap} WHERE ctid >= '(${first},0)' AND ctid < '(${end},0)' AND (${where})`,
    );
    return Number(row?.n ?? 0);
  });
}

/**
 * Removes what another shard has left on this one, or a writer past the proxies has put there, if the owner has the very same row. All
 * other rows are nobody's to remove but a person's.
 */
async function removeCopies(a: RowsAudit, table: ShardedTable, session: ShardSession): Promise<void> {
  const { keyspace, sessions, portions } = a;
  const sql = quoteTable(table);
  // Foreign keys whose cascades run in any session would take rows along that are not looked at here.
  const whole = await readWholeTable(session.reader, sql);
  if (whole === null || fromLeaves(whole).some((t) => t.foreignKeysSwitched)) return;
  for (const [shard, owner] of sessions) {
    const ranges = keyspace.ranges.filter((range) => range.shard === shard);
    if (owner === session || ranges.length === 0) continue;
    const rows: RowsOf = { sql, where: within(keyspace, table, ranges), info: whole };
    await portions.of(session, sql, { most: PORTION_PAGES, resumes: false }, async (heap, first, end) => {
      const strays = await rowsOfPages(session, { ...rows, sql: heap }, first, end, null);
      for (let i = 0; i < strays.length; i += BATCH) {
        const here = strays.slice(i, i + BATCH);
        await whileNothingMoves(a, async () => {
          const keys = here.map((row) => row.key);
          const others = new Set(differing(here, await rowsByKey(owner, rows, keys)));
          const copies = here.filter((row) => !others.has(row.key));
          await deleteAsReplica(session, ...asTheyWere(rows, copies), whole);
          crashPoint('within:audit-repair');
        });
      }
      return 0;
    });
  }
}

/** Does `work` while no migration of the keyspace can begin, and no range can change hands. @throws ForeshardError 55000 when that has happened */
async function whileNothingMoves({ catalog, topology, keyspace }: RowsAudit, work: () => Promise<void>): Promise<void> {
  await inCatalogTransaction(catalog.pool, async (client) => {
    await client.query('LOCK TABLE foreshard.migration IN SHARE MODE');
    const { rows } = await client.query<{ epoch: string }>('SELECT epoch::text FROM foreshard.meta FOR SHARE');
    const { rows: atWork } = await client.query<{ none: boolean }>(NONE_AT_WORK, [keyspace.name]);
    if (rows[0]?.epoch !== topology.epoch.toString() || atWork[0]?.none !== true)
      throw new ForeshardError('55000', `rows of keyspace "${keyspace.name}" have begun to move`, {
        hint: 'Audit again when no migration is under way.',
      });
    await work();
  });
}
