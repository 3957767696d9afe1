import { error, type Finding, ok } from './doctor/finding.js';
import { checkReachable, compareWithHome, type Reported } from './doctor/pair-checks.js';
import { SERVER_CHECKS } from './doctor/server-checks.js';
import { readServerReport } from './doctor/server-report.js';
import { checkReferenceFacts, TABLE_CHECKS } from './doctor/table-checks.js';
import { ForeshardError } from './errors.js';
import { withShard } from './shard-client.js';
import { columnDifference, readTableFacts, type TableFacts } from './table-facts.js';
import {
  type Shard,
  type ShardedTable,
  type ShardName,
  shardsOf,
  type TableName,
  type Topology,
  tableId,
} from './topology.js';

/**
 * Looks at everything on the shards that will matter when data moves: servers, their differences, whether they reach one
 * another, and every declared table. Changes nothing. A shard that is down is a finding, not a failure.
 */
export async function check(topology: Topology): Promise<Finding[]> {
  const findings: Finding[] = [];
  const reported = new Map<ShardName, Reported>();
  const shards = [...topology.shards.values()];
  const reports = await Promise.all(shards.map((shard) => inspectServer(shard)));
  for (const { reported: answer, findings: found } of reports) {
    if (answer !== null) reported.set(answer.shard.name, answer);
    findings.push(...found);
  }
  const home = reported.get(topology.home);
  for (const other of reported.values())
    if (home !== undefined && other !== home) findings.push(...compareWithHome(home, other));
  findings.push(...(await checkPaths([...reported.values()])));
  for (const table of topology.shardedTables.values())
    findings.push(...(await checkSharded(topology, table, reported)));
  for (const table of topology.referenceTables.values())
    findings.push(
      ...(await checkCopies(
        topology,
        table,
        table.shards.filter((name) => reported.has(name)),
      )),
    );
  return findings;
}

async function inspectServer(shard: Shard): Promise<{ reported: Reported | null; findings: Finding[] }> {
  const object = `shard ${shard.name}`;
  try {
    const report = await withShard(shard, readServerReport);
    return { reported: { shard, report }, findings: SERVER_CHECKS.flatMap((one) => one(object, report)) };
  } catch (failure) {
    if (!(failure instanceof ForeshardError)) throw failure;
    return { reported: null, findings: [error(object, failure.message, failure.hint ?? 'see that the server runs')] };
  }
}

/** Both directions of every pair, for a move must be able to go back. One at a time, not to storm the servers. */
async function checkPaths(reported: readonly Reported[]): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const { shard: to } of reported)
    for (const { shard: from } of reported) if (from !== to) findings.push(await checkReachable(from, to));
  return findings;
}

async function checkSharded(
  topology: Topology,
  table: ShardedTable,
  reported: ReadonlyMap<ShardName, Reported>,
): Promise<Finding[]> {
  const keyspace = topology.keyspaces.get(table.keyspace);
  const owners = (keyspace === undefined ? [] : shardsOf(keyspace)).filter((name) => reported.has(name));
  return checkEverywhere(topology, table, owners, (object, facts) =>
    TABLE_CHECKS.flatMap((one) => one({ object, topology, table, facts })),
  );
}

async function checkCopies(topology: Topology, table: TableName, shards: readonly ShardName[]): Promise<Finding[]> {
  return checkEverywhere(topology, table, shards, (object, facts) =>
    checkReferenceFacts(object, table, topology, facts),
  );
}

/** The table exists and is the same on every one of these shards, and `inspect` finds nothing wrong with it there. */
async function checkEverywhere(
  topology: Topology,
  table: TableName,
  shards: readonly ShardName[],
  inspect: (object: string, facts: TableFacts) => Finding[],
): Promise<Finding[]> {
  const findings: Finding[] = [];
  let model: { shard: ShardName; facts: TableFacts } | null = null;
  for (const shard of shards) {
    const object = `table ${tableId(table)} on shard ${shard}`;
    const facts = await withShard(topology.shards.get(shard) as Shard, (client) => readTableFacts(client, table));
    if (facts === null) {
      findings.push(error(object, 'does not exist', 'create it there, or restore it'));
      continue;
    }
    const found = inspect(object, facts);
    const difference = model === null ? null : columnDifference(model.facts, facts);
    if (difference !== null)
      found.push(
        error(
          object,
          `is not the one on shard ${model?.shard}: ${difference}`,
          'give it the same columns on every shard',
        ),
      );
    findings.push(...(found.length > 0 ? found : [ok(object, 'can be moved')]));
    model ??= { shard, facts };
  }
  return findings;
}
