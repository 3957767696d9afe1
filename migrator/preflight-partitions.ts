import { quoteIdent } from '../topology/quote.js';
import { tableId } from '../topology/topology.js';
import type { Move, MovingTable } from './move.js';
import { checkDependencies } from './preflight-dependencies.js';
import type { Report } from './preflight-finding.js';
import { checkOwnBehaviour } from './preflight-triggers.js';
import { replicaIdentity, uniqueProblems } from './preflight-unique.js';
import { readInboundForeignKeys, type TableInfo } from './schema-read.js';

/** What of a partitioned table's partitions stands in the way, besides what does so of any table. */
export async function checkPartitions(m: Move, table: MovingTable, info: TableInfo, report: Report): Promise<void> {
  if (info.partitionKey === null) return;
  if (m.row.replica !== null)
    report(
      'blocker',
      `table "${tableId(info)}" is partitioned, and replicas of such tables are not supported yet`,
      'What is attached or detached is not replicated, so that a replica could be wrong unnoticed. Move the range instead.',
    );
  if (table.reference) report('blocker', `reference table "${tableId(info)}" is partitioned`, 'Make it a plain table.');
  for (const { table: part } of info.partitions ?? []) await checkPartition(m, table, info, part, report);
}

/** Why a partition could not be made on the other shard, or what comes to its rows not be replicated. @param info of the table that it belongs to */
export async function checkPartition(
  m: Move,
  table: MovingTable,
  info: TableInfo,
  part: TableInfo,
  report: Report,
): Promise<void> {
  const block = (text: string, remedy: string) =>
    report('blocker', `partition "${tableId(part)}" of "${tableId(info)}" ${text}`, remedy);
  for (const { text, remedy } of partitionProblems(table, info, part)) block(text, remedy);
  for (const inbound of await readInboundForeignKeys(m.source.reader, part.oid))
    block(
      `is what foreign key "${inbound.name}" of "${tableId(inbound.from)}" points at`,
      'Let it point at the table itself.',
    );
  if (part.kind !== 'f') await checkOwnBehaviour(m, part, block);
  await checkDependencies(m, part, report);
}

interface Problem {
  /** Behind the partition's name. */
  readonly text: string;
  readonly remedy: string;
}

/** What of its definition. */
function partitionProblems(table: MovingTable, info: TableInfo, part: TableInfo): Problem[] {
  if (part.kind === 'f') return [{ text: 'is a foreign table', remedy: 'DETACH PARTITION it.' }];
  const problems: Problem[] = [];
  const add = (text: string, remedy: string) => problems.push({ text, remedy });
  if (part.persistence !== 'p') add('is unlogged and is not replicated', 'ALTER TABLE … SET LOGGED.');
  if (part.rules.length > 0) add(`has rules (${part.rules.join(', ')})`, 'Rules are not copied: drop them.');
  const foreignKey = part.constraints.find((c) => c.type === 'f');
  if (foreignKey !== undefined)
    add(`has a foreign key of its own ("${foreignKey.name}")`, 'Make it one of the table itself.');
  // Rows are applied as the table's owner.
  if (part.owner !== info.owner)
    add(
      `belongs to "${part.owner}", and the table to "${info.owner}": its rows could not be replicated`,
      `ALTER TABLE … OWNER TO ${quoteIdent(info.owner)}.`,
    );
  const sequences = info.sequences.map(tableId);
  const own = part.sequences.find((s) => !sequences.includes(tableId(s)));
  if (own !== undefined)
    add(`takes numbers from a sequence of its own ("${tableId(own)}")`, 'Use that of the table itself.');
  // Of a change, the log has the columns of the partition's identity; they are published as those of the table's.
  const identity = replicaIdentity(info) ?? [];
  if (part.partitionKey === null && !identity.every((c) => replicaIdentity(part)?.includes(c)))
    add(
      `has a replica identity without ${identity.join(', ')}: UPDATE and DELETE could not be replicated`,
      'ALTER TABLE … REPLICA IDENTITY of the partition, as of the table.',
    );
  return [...problems, ...uniqueProblems(table, part)];
}
