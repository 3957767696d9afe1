import type { CommandModule } from 'yargs';
import { findTies, separateTables } from '../../../topology/catalog/separate.js';
import type { Separation } from '../../../topology/separation.js';
import { parseTableName } from '../../../topology/table-name.js';
import { tableId } from '../../../topology/topology.js';
import { actor, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { effectLines } from '../../separation-text.js';
import { tablesPositional } from '../../tables-positional.js';

interface SeparateArgs extends JsonArgs {
  readonly keyspace: string;
  readonly tables: readonly string[];
  readonly as: string;
  readonly 'dry-run': boolean;
}

export const separateCommand: CommandModule<GlobalArgs, SeparateArgs> = {
  command: 'separate <keyspace> <tables..>',
  describe: 'Give tables a keyspace of their own, so that they can move to other shards than the rest',
  builder: (y) =>
    withHelp(
      tablesPositional(
        jsonOption(y).positional('keyspace', {
          type: 'string',
          demandOption: true,
          describe: 'Keyspace that they are in',
        }),
        'Tables that go',
      )
        .option('as', { type: 'string', demandOption: true, requiresArg: true, describe: 'Name of the new keyspace' })
        .option('dry-run', {
          type: 'boolean',
          default: false,
          describe: 'Only say what ties the tables to the others, and what will be refused once they are apart',
        }),
      ['keyspace separate shop documents --as docs --dry-run', 'What would become of it'],
      ['keyspace separate shop documents --as docs', 'Nothing moves yet'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const separation: Separation = { keyspace: args.keyspace, tables: args.tables.map(parseTableName), as: args.as };
      const topology = await catalog.loadTopology();
      const ties = await findTies(topology, separation);
      // Only here: the parser takes its time to load.
      const { separationEffects } = await import('../../separation-effects.js');
      const effects = await separationEffects(catalog, topology, separation);
      // It looks for ties itself, and says so in the words of an error.
      if (!args['dry-run']) await separateTables(catalog, actor(), separation);
      const tables = separation.tables.map(tableId);
      if (args.json)
        printJson({ keyspace: args.keyspace, as: args.as, tables, done: !args['dry-run'], ties, ...effects });
      else {
        for (const { text, remedy } of ties) printLine(`BLOCKS  ${text}\n        remedy: ${remedy}`);
        for (const line of effectLines(effects)) printLine(line);
        printLine(
          args['dry-run']
            ? `Nothing is changed. ${ties.length === 0 ? 'The tables can be separated.' : 'The tables cannot be separated like this.'}`
            : `Keyspace "${args.as}" has ${tables.join(', ')}, with the ranges of "${args.keyspace}" on the same shards. Back: foreshard keyspace join ${args.as} ${args.keyspace}.`,
        );
      }
      if (args['dry-run'] && ties.length > 0) process.exitCode = EXIT.failed;
    }),
};
