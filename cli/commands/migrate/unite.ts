import type { CommandModule } from 'yargs';
import { uniteMembers } from '../../../migrator/changes/members.js';
import { findSplit } from '../../../topology/catalog/column-split.js';
import { parseTableName } from '../../../topology/table-name.js';
import { tableId } from '../../../topology/topology.js';
import { type GlobalArgs, withHelp } from '../../options.js';
import { type PlanChangeArgs, planChange } from '../../plan-change.js';
import { planOptions } from '../../plan-options.js';

interface UniteArgs extends PlanChangeArgs {
  readonly table: string;
}

export const uniteCommand: CommandModule<GlobalArgs, UniteArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y).positional('table', { type: 'string', demandOption: true, describe: 'Table that was split' }),
      ['migrate plan unite documents', 'The way back from "migrate plan vertical documents --columns …"'],
    ),
  handler: (args) =>
    planChange(args, (_catalog, topology) => {
      const table = parseTableName(args.table);
      const { split, hot, ...found } = findSplit(topology, table);
      return {
        kind: 'unite',
        request: { table: tableId(table), hot: tableId(split.hot), keyspace: hot.name },
        members: uniteMembers({ ...found, hot }, table),
        summary: [
          `Table "${tableId(split.hot)}" and keyspace "${hot.name}" end: "${tableId(table)}" has ${split.columns.join(', ')} alone again.`,
        ],
      };
    }),
};
