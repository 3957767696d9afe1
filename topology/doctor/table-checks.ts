import { quoteIdent, quoteTable } from '../quote.js';
import { coversKey, type TableFacts } from '../table-facts.js';
import { type ShardedTable, type TableName, type Topology, tableId } from '../topology.js';
import { error, type Finding, warning } from './finding.js';

/** One sharded table on one shard. */
export interface TableSubject {
  readonly object: string;
  readonly topology: Topology;
  readonly table: ShardedTable;
  readonly facts: TableFacts;
}

type TableCheck = (subject: TableSubject) => Finding[];

/** Everything about a sharded table that decides whether its rows can move and still mean the same. */
export const TABLE_CHECKS: readonly TableCheck[] = [
  checkKind,
  checkPersistence,
  checkKeyColumns,
  checkReplicaIdentity,
  checkUniqueWithoutKey,
  checkForeignKeys,
  checkReferencingKeys,
  checkTriggers,
  checkRules,
  checkSequences,
  checkGenerated,
  checkLargeObjectColumns,
  checkRowSecurity,
];

function checkKind({ object, facts }: TableSubject): Finding[] {
  if (facts.inherits)
    return [error(object, 'is part of an inheritance: its rows cannot be moved', 'ALTER TABLE … NO INHERIT')];
  if (facts.partitionOf !== null)
    return [
      error(
        object,
        `is a partition of "${tableId(facts.partitionOf)}": its rows cannot be moved by themselves`,
        `declare "${tableId(facts.partitionOf)}" instead`,
      ),
    ];
  if (facts.foreignPartitions.length > 0)
    return [
      error(
        object,
        `has partitions that are foreign tables (${facts.foreignPartitions.join(', ')})`,
        'DETACH PARTITION them: their rows are not of this shard',
      ),
    ];
  return 'rp'.includes(facts.kind) ? [] : [error(object, 'is not a table any more', 'restore the table')];
}

function checkPersistence({ object, facts }: TableSubject): Finding[] {
  if (facts.persistence === 'p') return [];
  return [error(object, 'is unlogged: its rows are not replicated', `ALTER TABLE ${quoteTable(facts)} SET LOGGED`)];
}

function checkKeyColumns({ object, table, facts }: TableSubject): Finding[] {
  return table.keyColumns.flatMap((name) => {
    const column = facts.columns.find((c) => c.name === name);
    if (column === undefined) return [error(object, `has no key column "${name}" any more`, 'restore the column')];
    if (column.notNull) return [];
    return [
      error(
        object,
        `key column "${name}" may be null`,
        `ALTER TABLE ${quoteTable(facts)} ALTER ${quoteIdent(name)} SET NOT NULL`,
      ),
    ];
  });
}

/** A row filter on columns outside the replica identity makes every UPDATE and DELETE on the source fail (42P10). */
function checkReplicaIdentity({ object, table, facts }: TableSubject): Finding[] {
  const key = table.keyColumns.map(quoteIdent).join(', ');
  const primary = facts.unique.some((unique) => unique.primary);
  if (facts.identityColumns.length === 0 || !coversKey(facts.identityColumns, table.keyColumns)) {
    const what = primary
      ? `the replica identity (${facts.identityColumns.join(', ') || 'nothing'}) lacks the key: UPDATE and DELETE would fail as soon as the range is published`
      : 'has no primary key: UPDATE and DELETE would fail as soon as the range is published';
    const covered = facts.unique.some((unique) => unique.primary && coversKey(unique.columns, table.keyColumns));
    const remedy = covered
      ? `ALTER TABLE ${quoteTable(facts)} REPLICA IDENTITY DEFAULT, which is the primary key`
      : primary
        ? `CREATE UNIQUE INDEX CONCURRENTLY ... ON ${quoteTable(facts)} (${key}, …), then ALTER TABLE ${quoteTable(facts)} REPLICA IDENTITY USING INDEX ...`
        : `add a primary key${key === '' ? '' : ` that contains (${key})`}, or ALTER TABLE ${quoteTable(facts)} REPLICA IDENTITY FULL`;
    return [error(object, what, remedy)];
  }
  if (facts.replicaIdentity !== 'f') return [];
  return [
    warning(
      object,
      'has REPLICA IDENTITY FULL: more WAL, and changes are applied by searching the table',
      `a primary key that contains (${key}) is faster`,
    ),
  ];
}

function checkUniqueWithoutKey({ object, table, facts }: TableSubject): Finding[] {
  return facts.unique
    .filter((unique) => !coversKey(unique.columns, table.keyColumns))
    .map((unique) =>
      error(
        object,
        `"${unique.name}" is unique without the key (${table.keyColumns.join(', ')}): across shards it cannot be enforced`,
        'add the key columns to it, or drop it if duplicates are harmless',
      ),
    );
}

/** Whether a foreign key links key column to key column, so that both rows always are on one shard. */
function linksKeys(
  from: ShardedTable,
  columns: readonly string[],
  to: ShardedTable,
  referenced: readonly string[],
): boolean {
  if (from.keyspace !== to.keyspace) return false;
  return from.keyColumns.every((column, i) => {
    const at = columns.indexOf(column);
    return at !== -1 && referenced[at] === to.keyColumns[i];
  });
}

function crossing(object: string, name: string, what: string): Finding {
  return error(
    object,
    `foreign key "${name}" ${what}: across shards it cannot be enforced`,
    'add the key columns to it, declare the other table too, or drop it',
  );
}

function checkForeignKeys({ object, topology, table, facts }: TableSubject): Finding[] {
  return facts.foreignKeys.flatMap((fk) => {
    const id = tableId(fk.references);
    if (topology.referenceTables.has(id)) return [];
    const other = topology.shardedTables.get(id);
    if (other === undefined) return [crossing(object, fk.name, `points to "${id}", which stays on the home shard`)];
    if (linksKeys(table, fk.columns, other, fk.referencedColumns)) return [];
    return [crossing(object, fk.name, `points to "${id}" without the key`)];
  });
}

function checkReferencingKeys({ object, topology, table, facts }: TableSubject): Finding[] {
  return facts.referencedBy.flatMap((fk) => {
    const id = tableId(fk.from);
    // A sharded table's own foreign keys are reported with that table.
    if (topology.shardedTables.has(id)) return [];
    const what = topology.referenceTables.has(id) ? 'a reference table' : 'which stays on the home shard';
    return [crossing(object, fk.name, `of "${id}", ${what}, points to "${tableId(table)}"`)];
  });
}

function checkTriggers({ object, facts }: TableSubject): Finding[] {
  return facts.triggers
    .filter((trigger) => trigger.mode === 'A' || trigger.mode === 'R')
    .map((trigger) =>
      warning(
        object,
        `trigger "${trigger.name}" is ENABLE ${trigger.mode === 'A' ? 'ALWAYS' : 'REPLICA'}: it fires again for every row that is copied or replicated, but not while rows move from shard to shard`,
        `fine if that is wanted of it, else ALTER TABLE ${quoteTable(facts)} ENABLE TRIGGER ${quoteIdent(trigger.name)}`,
      ),
    );
}

function checkRules({ object, facts }: TableSubject): Finding[] {
  return facts.rules.map((rule) =>
    warning(
      object,
      `rule "${rule}" keeps the table from moving: what it makes of a statement goes past the keys`,
      'use a trigger instead',
    ),
  );
}

function checkSequences({ object, table, facts }: TableSubject): Finding[] {
  // Without a key the table is whole, and its sequences are where it is.
  if (table.keyColumns.length === 0) return [];
  return facts.columns
    .filter((column) => column.identity || column.sequenceDefault)
    .map((column) =>
      warning(
        object,
        `column "${column.name}" takes its numbers from a sequence, and each shard has its own: the same number may appear on two shards`,
        'fine if it is unique only together with the key; else let the application give the numbers, or use uuid',
      ),
    );
}

function checkGenerated({ object, facts }: TableSubject): Finding[] {
  return facts.columns
    .filter((column) => column.generated)
    .map((column) =>
      warning(
        object,
        `column "${column.name}" is generated: each shard computes it anew`,
        'see that its functions are the same on every shard',
      ),
    );
}

function checkLargeObjectColumns({ object, facts }: TableSubject): Finding[] {
  return facts.columns
    .filter((column) => column.type === 'oid' || column.type === 'lo')
    .map((column) =>
      warning(
        object,
        `column "${column.name}" is of type ${column.type}: what it names (a large object?) is not replicated`,
        'store the data in a bytea column',
      ),
    );
}

function checkRowSecurity({ object, facts }: TableSubject): Finding[] {
  if (!facts.rowSecurity) return [];
  return [
    warning(
      object,
      'has row-level security: rows can only be moved by a user who sees all of them',
      'let Foreshard use a superuser or a role with BYPASSRLS',
    ),
  ];
}

/** Reference tables only need to be there, with something to find their rows by. */
export function checkReferenceFacts(
  object: string,
  table: TableName,
  topology: Topology,
  facts: TableFacts,
): Finding[] {
  const findings: Finding[] = [];
  if (facts.identityColumns.length === 0)
    findings.push(
      error(
        object,
        'has no replica identity: UPDATE and DELETE would fail as soon as it is published',
        `add a primary key to ${quoteTable(table)}`,
      ),
    );
  if (facts.persistence !== 'p')
    findings.push(
      error(object, 'is unlogged: its rows are not replicated', `ALTER TABLE ${quoteTable(table)} SET LOGGED`),
    );
  for (const fk of facts.foreignKeys)
    if (!topology.referenceTables.has(tableId(fk.references)))
      findings.push(
        error(
          object,
          `foreign key "${fk.name}" points to "${tableId(fk.references)}", which is not on every shard`,
          'declare that table as a reference table too, or drop the key',
        ),
      );
  for (const column of facts.columns)
    if (column.identity || column.sequenceDefault)
      findings.push(
        warning(
          object,
          `column "${column.name}" takes its numbers from a sequence, and each shard has its own`,
          'name the value in every INSERT',
        ),
      );
  return findings;
}
