import type { CommandModule } from 'yargs';
import { verticalMembers } from '../../../migrator/changes/members.js';
import { checkSeparation } from '../../../topology/catalog/separate.js';
import { UsageError } from '../../../topology/errors.js';
import { parseTableName } from '../../../topology/table-name.js';
import { type KeyspaceName, type TableName, type Topology, tableId } from '../../../topology/topology.js';
import { type GlobalArgs, withHelp } from '../../options.js';
import { type PlanChangeArgs, planChange, shardNamed } from '../../plan-change.js';
import { planOptions } from '../../plan-options.js';
import { effectLines } from '../../separation-text.js';
import { tablesPositional } from '../../tables-positional.js';

interface VerticalArgs extends PlanChangeArgs {
  readonly tables: readonly string[];
  readonly to: string;
  readonly as?: string | undefined;
  readonly columns?: string | undefined;
  readonly hot?: string | undefined;
}

export const verticalCommand: CommandModule<GlobalArgs, VerticalArgs> = {
  builder: (y) =>
    withHelp(
      tablesPositional(planOptions(y), 'Tables that go')
        .option('to', { type: 'string', demandOption: true, requiresArg: true, describe: 'Shard that gets them' })
        .option('as', {
          type: 'string',
          requiresArg: true,
          describe: 'Name of the new keyspace. Default: that of the first table, or of the hot one',
        })
        .option('columns', {
          type: 'string',
          requiresArg: true,
          describe: 'Only these columns of the one table go, by commas: those that are written often',
        })
        .option('hot', {
          type: 'string',
          requiresArg: true,
          describe: 'With --columns: name of the hot table, which has them there. Default: that of the table, and _hot',
        }),
      ['migrate plan vertical documents pages --to s2 --as docs', ''],
      ['migrate plan vertical documents --columns views,last_seen --to s2', 'The rest of each row stays'],
    ),
  handler: (args) =>
    planChange(args, async (catalog, topology) => {
      const { columns } = args;
      if (columns !== undefined) {
        const tables = args.tables.map(parseTableName);
        const { planColumns } = await import('../../plan-columns.js');
        return planColumns(catalog, topology, { ...args, columns, tables, keyspace: keyspaceOfAll(topology, tables) });
      }
      if (args.hot !== undefined) throw new UsageError('--hot says where columns go', 'Give --columns, too.');
      const to = shardNamed(topology, args.to);
      const tables = args.tables.map(parseTableName);
      const keyspace = keyspaceOfAll(topology, tables);
      const as = (args.as ?? (tables[0] as TableName).table) as KeyspaceName;
      const separation = { keyspace, tables, as };
      checkSeparation(topology, separation);
      // Only here: the parser takes its time to load.
      const { separationEffects } = await import('../../separation-effects.js');
      const effects = await separationEffects(catalog, topology, separation);
      return {
        kind: 'vertical',
        request: { keyspace, tables: tables.map(tableId), as, to },
        members: verticalMembers(topology, keyspace, tables, as, to),
        summary: [
          ...effectLines(effects),
          `An abort leaves keyspace "${as}" as it is then, at no cost; "foreshard keyspace join ${[as, ...(keyspace === null ? [] : [keyspace])].join(' ')}" takes it back where all rows are where they were.`,
        ],
        effects,
      };
    }),
};

/** @returns null: they are in none, the home shard has them alone. @throws UsageError when they have none in common */
function keyspaceOfAll(topology: Topology, tables: readonly TableName[]): KeyspaceName | null {
  const found = tables.map((table) => {
    const id = tableId(table);
    if (topology.referenceTables.has(id))
      throw new UsageError(`table "${id}" is a reference table`, 'Every shard has all of it already, or gets it.');
    return { id, keyspace: topology.shardedTables.get(id)?.keyspace ?? null };
  });
  const [first, ...rest] = found;
  if (first === undefined) throw new UsageError('no tables are given', 'Name those that are to go.');
  const other = rest.find((t) => t.keyspace !== first.keyspace);
  if (other !== undefined) {
    const named = ({ keyspace }: typeof first) => (keyspace === null ? 'no keyspace' : `keyspace "${keyspace}"`);
    throw new UsageError(
      `"${first.id}" is in ${named(first)}, "${other.id}" in ${named(other)}`,
      'Tables of one keyspace go together: plan a change for each.',
    );
  }
  return first.keyspace;
}
