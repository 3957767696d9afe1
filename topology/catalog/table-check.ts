import type pg from 'pg';
import { ForeshardError, UsageError } from '../errors.js';
import { intervalPredicate } from '../interval-sql.js';
import type { KeyType } from '../key.js';
import { keyTypeFromPg } from '../key-codec.js';
import { quoteIdent, quoteTable } from '../quote.js';
import { withShard } from '../shard-client.js';
import { columnDifference, coversKey, readTableFacts, type TableFacts } from '../table-facts.js';
import {
  type Keyspace,
  type Shard,
  type ShardName,
  shardsOf,
  type TableName,
  type Topology,
  tableId,
} from '../topology.js';

const SYSTEM_SCHEMAS = ['pg_catalog', 'information_schema', 'pg_toast', 'foreshard'];

/**
 * Whether a table can join a keyspace: checked on every shard.
 * @returns what will block a move later, though it works as long as the table is on one shard
 */
export async function checkShardedTable(
  topology: Topology,
  keyspace: Keyspace,
  table: TableName,
  keyColumns: readonly string[],
): Promise<string[]> {
  if (keyColumns.length !== keyspace.keyTypes.length || new Set(keyColumns).size !== keyColumns.length)
    throw new UsageError(
      `keyspace "${keyspace.name}" has ${keyspace.keyTypes.length} key column(s), given were: ${keyColumns.join(', ') || 'none'}`,
      `Name one column for each of: ${keyspace.keyTypes.join(', ')}.`,
    );
  const owners = shardsOf(keyspace);
  let model: { shard: ShardName; facts: TableFacts } | null = null;
  for (const shard of owners) {
    const facts = await factsOn(topology, shard, table);
    assertPlainTable(shard, facts);
    keyspace.keyTypes.forEach((type, i) => {
      assertKeyColumn(shard, facts, keyColumns[i] as string, type);
    });
    const difference = model === null ? null : columnDifference(model.facts, facts);
    if (model !== null && difference !== null)
      throw new UsageError(
        `table "${tableId(table)}" on shard "${shard}" is not the one on shard "${model.shard}": ${difference}`,
        'Give it the same columns on every shard.',
      );
    model ??= { shard, facts };
  }
  await refuseMisplacedRows(topology, keyspace, table, keyColumns);
  return model === null ? [] : moveWarnings(model.facts, keyColumns);
}

/** Whether a table can be a reference table. */
export async function checkReferenceTable(topology: Topology, table: TableName): Promise<string[]> {
  if (topology.shards.size === 0) throw new UsageError('there is no shard yet', 'Add one first: foreshard shard add.');
  const facts = await factsOn(topology, topology.home, table);
  assertPlainTable(topology.home, facts);
  if (facts.kind === 'p')
    throw new ForeshardError('0A000', `"${tableId(facts)}" is a partitioned table`, {
      hint: 'Partitioned tables can be sharded, but not be reference tables.',
    });
  return moveWarnings(facts, []);
}

async function factsOn(topology: Topology, shard: ShardName, table: TableName): Promise<TableFacts> {
  if (SYSTEM_SCHEMAS.includes(table.schema))
    throw new UsageError(`"${tableId(table)}" is a system table`, 'Only tables of the application can be declared.');
  const facts = await withShard(topology.shards.get(shard) as Shard, (client) => readTableFacts(client, table));
  if (facts === null)
    throw new ForeshardError('42P01', `table "${tableId(table)}" does not exist on shard "${shard}"`, {
      hint: 'Create it there first, or correct the name.',
    });
  return facts;
}

function assertPlainTable(shard: ShardName, facts: TableFacts): void {
  const refuse = (what: string, hint: string): ForeshardError =>
    new ForeshardError('0A000', `"${tableId(facts)}" on shard "${shard}" is ${what}`, { hint });
  if (facts.kind !== 'r' && facts.kind !== 'p')
    throw refuse('not a table', 'Only ordinary and partitioned tables can be declared.');
  if (facts.partitionOf !== null)
    throw refuse(
      `a partition of "${tableId(facts.partitionOf)}"`,
      `Declare "${tableId(facts.partitionOf)}": its partitions go with it.`,
    );
  if (facts.foreignPartitions.length > 0)
    throw refuse(
      `a partitioned table whose partition ${facts.foreignPartitions[0]} is a foreign table`,
      'Its rows are not of this shard: DETACH PARTITION it first.',
    );
  if (facts.inherits) throw refuse('part of an inheritance', 'Only tables that stand alone can be declared.');
  if (facts.persistence === 't') throw refuse('a temporary table', 'Only permanent tables can be declared.');
}

function assertKeyColumn(shard: ShardName, facts: TableFacts, name: string, type: KeyType): void {
  const where = `"${tableId(facts)}" on shard "${shard}"`;
  const column = facts.columns.find((c) => c.name === name);
  if (column === undefined)
    throw new ForeshardError('42703', `table ${where} has no column "${name}"`, {
      hint: `It has: ${facts.columns.map((c) => c.name).join(', ')}.`,
    });
  if (keyTypeFromPg(column.type) !== type)
    throw new ForeshardError(
      '42804',
      `column "${name}" of ${where} is ${column.declared}, the keyspace's key is ${type}`,
      {
        hint: `Change the column's type, or use a keyspace with the column's own.`,
      },
    );
  if (!column.notNull)
    throw new ForeshardError('23502', `column "${name}" of ${where} may be null`, {
      hint: `A row without a key belongs nowhere: ALTER TABLE ${quoteTable(facts)} ALTER ${quoteIdent(name)} SET NOT NULL.`,
    });
  if (column.generated)
    throw new ForeshardError('0A000', `column "${name}" of ${where} is generated`, {
      hint: 'A generated column cannot be in a row filter; use the columns it is computed from.',
    });
  if (!column.deterministic)
    throw new ForeshardError('0A000', `column "${name}" of ${where} has a nondeterministic collation`, {
      hint: 'Texts that differ but are equal would lie on different shards; use a deterministic collation.',
    });
}

/** Rows that lie where their key does not belong would never be seen again. */
async function refuseMisplacedRows(
  topology: Topology,
  keyspace: Keyspace,
  table: TableName,
  keyColumns: readonly string[],
): Promise<void> {
  for (const shard of topology.shards.values()) {
    const owned = keyspace.ranges.filter((range) => range.shard === shard.name);
    const here = owned.map((range) => `(${intervalPredicate(keyspace, keyColumns, range)})`).join(' OR ') || 'false';
    const misplaced = await withShard(shard, (client) => hasRowsOutside(client, table, here, owned.length > 0));
    if (misplaced)
      throw new ForeshardError(
        '55000',
        `table "${tableId(table)}" on shard "${shard.name}" has rows whose keys belong to another shard`,
        { hint: 'Move or delete these rows first.' },
      );
  }
}

async function hasRowsOutside(client: pg.Client, table: TableName, here: string, owner: boolean): Promise<boolean> {
  if (here === '(true)') return false;
  if (!owner && (await readTableFacts(client, table)) === null) return false;
  const { rows } = await client.query<{ found: boolean }>(
    `SELECT EXISTS (SELECT FROM ${quoteTable(table)} WHERE NOT (${here})) AS found`,
  );
  return rows[0]?.found === true;
}

/** What works while all rows are on one shard, and blocks a move. */
function moveWarnings(facts: TableFacts, keyColumns: readonly string[]): string[] {
  const id = tableId(facts);
  const warnings: string[] = [];
  if (!facts.unique.some((unique) => unique.primary))
    warnings.push(`table "${id}" has no primary key: changes can be replicated only with REPLICA IDENTITY FULL`);
  for (const unique of facts.unique)
    if (!coversKey(unique.columns, keyColumns))
      warnings.push(
        `"${unique.name}" of table "${id}" is unique without the key (${keyColumns.join(', ')}): it cannot be enforced across shards`,
      );
  if (facts.persistence === 'u') warnings.push(`table "${id}" is unlogged: it cannot be replicated`);
  return warnings;
}
