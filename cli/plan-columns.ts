import { columnsMembers } from '../migrator/changes/members.js';
import type { Finding } from '../migrator/preflight-finding.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { checkSplit } from '../topology/catalog/column-split.js';
import { UsageError } from '../topology/errors.js';
import { withShard } from '../topology/shard-client.js';
import { readTableFacts } from '../topology/table-facts.js';
import { parseTableName } from '../topology/table-name.js';
import {
  type ColumnSplit,
  type Keyspace,
  type KeyspaceName,
  type Shard,
  type ShardName,
  shardsOf,
  type TableName,
  type Topology,
  tableId,
} from '../topology/topology.js';
import { parseColumns } from './columns.js';
import { type Planned, shardNamed } from './plan-change.js';
import { columnLines } from './separation-text.js';

/** What people ask for when columns are to go. */
export interface ColumnsRequest {
  /** There may be but one. */
  readonly tables: readonly TableName[];
  /** That it is in; null: none. */
  readonly keyspace: KeyspaceName | null;
  /** As in SQL, by commas. */
  readonly columns: string;
  readonly to: string;
  /** Name of the new keyspace. Default: that of the hot table. */
  readonly as?: string | undefined;
  /** Name of the hot table. Default: that of the table, and `_hot`. */
  readonly hot?: string | undefined;
}

/**
 * A change that gives columns of a table a table and a keyspace of their own, and moves that to another shard.
 * @throws UsageError when the names do not fit, ForeshardError when the home shard's schema cannot be read
 */
export async function planColumns(catalog: Catalog, topology: Topology, args: ColumnsRequest): Promise<Planned> {
  const to = shardNamed(topology, args.to);
  const { keyspace } = args;
  const [table, ...more] = args.tables;
  if (table === undefined || more.length > 0)
    throw new UsageError('columns are of one table', 'Name one table with --columns, and plan a change for each.');
  const id = tableId(table);
  if (keyspace === null)
    throw new UsageError(
      `table "${id}" is in no keyspace`,
      'Only tables with a key can be split by column: add it to a keyspace first ("foreshard table add").',
    );
  const hot = args.hot === undefined ? { ...table, table: `${table.table}_hot` } : parseTableName(args.hot);
  const named = { keyspace, table, hot, as: (args.as ?? hot.table) as KeyspaceName };
  checkSplit(topology, { ...named, columns: parseColumns(args.columns) });
  const { columns, primaryKey } = await columnsAtHome(topology, table, parseColumns(args.columns));
  const spec = { kind: 'halve', ...named, columns, primaryKey } as const;
  // Only here: the parser takes its time to load.
  const { columnEffects } = await import('./column-effects.js');
  const effects = await columnEffects(catalog, topology, spec);
  return {
    kind: 'columns',
    request: { keyspace, table: id, columns, hot: tableId(hot), as: named.as, to },
    members: columnsMembers(topology, spec, to),
    summary: [
      ...columnLines(effects),
      `An abort leaves columns that are split by then as they are; "foreshard migrate plan unite ${id}" takes it back.`,
    ],
    effects,
    findings: await preparedFindings(topology, [...shardsOf(topology.keyspaces.get(keyspace) as Keyspace), to]),
  };
}

/** What writes both halves is committed in two phases. */
async function preparedFindings(topology: Topology, names: readonly ShardName[]): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const name of new Set(names)) {
    const { rows } = await withShard(topology.shards.get(name) as Shard, (client) =>
      client.query<{ max: string }>("SELECT current_setting('max_prepared_transactions') AS max"),
    );
    if (rows[0]?.max === '0')
      findings.push({
        severity: 'warning',
        text: `shard "${name}" has max_prepared_transactions = 0: what writes both halves of a row will be refused`,
        remedy: 'Set it to the number of connections that write there, and restart the server ("foreshard check").',
      });
  }
  return findings;
}

/** The columns in the order of the table, and its primary key, as the home shard has it. @throws UsageError when it has no such column */
async function columnsAtHome(
  topology: Topology,
  table: TableName,
  columns: readonly string[],
): Promise<Pick<ColumnSplit, 'columns' | 'primaryKey'>> {
  const home = topology.shards.get(topology.home) as Shard;
  const facts = await withShard(home, (client) => readTableFacts(client, table));
  if (facts === null)
    throw new UsageError(`table "${tableId(table)}" does not exist on shard "${home.name}"`, 'Create it there first.');
  const all = facts.columns.map((c) => c.name);
  const unknown = columns.find((column) => !all.includes(column));
  if (unknown !== undefined)
    throw new UsageError(`table "${tableId(table)}" has no column "${unknown}"`, `It has: ${all.join(', ')}.`);
  const primaryKey = facts.unique.find((unique) => unique.primary)?.columns;
  if (primaryKey === undefined)
    throw new UsageError(
      `table "${tableId(table)}" has no primary key, by which two halves of a row could be told to be one`,
      'Give it one that has the key among others.',
    );
  return { columns: all.filter((column) => columns.includes(column)), primaryKey };
}
