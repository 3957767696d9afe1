import type { Catalog } from '../../topology/catalog/catalog.js';
import { quoteTable } from '../../topology/quote.js';
import { type ShardName, shardsOf, type TableName, type Topology, tableId } from '../../topology/topology.js';
import { readWholeTable, wholeShape } from '../schema-partitions.js';
import type { TableInfo } from '../schema-read.js';
import type { ShardSession } from '../shard-session.js';
import type { AuditFinding } from './finding.js';
import { AtWork } from './migrations.js';

/** Differences that are named. */
const NAMED = 3;

/** Whether a table is the same on all shards that own rows or a copy of it: columns, constraints, indexes, triggers, policies, and its partitions with theirs. */
export async function auditShapes(
  catalog: Catalog,
  topology: Topology,
  sessions: ReadonlyMap<ShardName, ShardSession>,
  atWork: AtWork,
): Promise<AuditFinding[]> {
  const findings: (AuditFinding & { readonly others: string })[] = [];
  const compare = async (table: TableName, shards: readonly ShardName[]): Promise<void> => {
    const found: [ShardName, TableInfo][] = [];
    for (const shard of shards) {
      // What moves there is built, and its triggers are quiet, until the migration is through.
      if (atWork.onShard(shard)) continue;
      const session = sessions.get(shard);
      const info = session === undefined ? null : await readWholeTable(session.reader, quoteTable(table));
      if (info !== null) found.push([shard, info]);
    }
    const [first, ...others] = found;
    if (first === undefined) return;
    const [here, ours] = [first[0], wholeShape(first[1])];
    for (const [there, info] of others) {
      const theirs = wholeShape(info);
      const differences = [
        ...ours.filter((line) => !theirs.includes(line)).map((line) => `only on "${here}": ${line}`),
        ...theirs.filter((line) => !ours.includes(line)).map((line) => `only on "${there}": ${line}`),
      ];
      if (differences.length > 0)
        findings.push({
          kind: 'table',
          shard: there,
          object: tableId(table),
          text: `table ${tableId(table)} is not the same on shards "${here}" and "${there}": ${differences.slice(0, NAMED).join('; ')}${differences.length > NAMED ? '; …' : ''}`,
          remedy: 'Make it the same on both: until then no range of it moves between them.',
          repair: null,
          others: here,
        });
    }
  };
  for (const keyspace of topology.keyspaces.values())
    for (const table of keyspace.tables) await compare(table, shardsOf(keyspace));
  for (const table of topology.referenceTables.values()) await compare(table, table.shards);
  // One may have begun meanwhile.
  const now = findings.length === 0 ? atWork : await AtWork.load(catalog, topology);
  return findings
    .filter(({ shard, others }) => !now.onShard(shard) && !now.onShard(others))
    .map(({ others: _, ...finding }) => finding);
}
