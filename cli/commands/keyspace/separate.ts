import type { CommandModule } from 'yargs';
import { findTies, type Separation, separateTables } from '../../../topology/catalog/separate.js';
import { parseTableName } from '../../../topology/table-name.js';
import { tableId } from '../../../topology/topology.js';
import { actor, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { DAYS, type SeparationEffects, separationEffects } from '../../separation-effects.js';

interface SeparateArgs extends JsonArgs {
  readonly keyspace: string;
  readonly tables: readonly string[];
  readonly as: string;
  readonly 'dry-run': boolean;
}

/** Templates shown at most; --json has all. */
const SHOWN = 20;

export const separateCommand: CommandModule<GlobalArgs, SeparateArgs> = {
  command: 'separate <keyspace> <tables..>',
  describe: 'Give tables a keyspace of their own, so that they can move to other shards than the rest',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('keyspace', { type: 'string', demandOption: true, describe: 'Keyspace that they are in' })
        .positional('tables', { type: 'string', array: true, demandOption: true, describe: 'Tables that go' })
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
      const effects = await separationEffects(catalog, topology, separation);
      // It looks for ties itself, and says so in the words of an error.
      if (!args['dry-run']) await separateTables(catalog, actor(), separation);
      const tables = separation.tables.map(tableId);
      if (args.json)
        printJson({ keyspace: args.keyspace, as: args.as, tables, done: !args['dry-run'], ties, ...effects });
      else {
        for (const { text, remedy } of ties) printLine(`BLOCKS  ${text}\n        remedy: ${remedy}`);
        printEffects(effects);
        printLine(
          args['dry-run']
            ? `Nothing is changed. ${ties.length === 0 ? 'The tables can be separated.' : 'The tables cannot be separated like this.'}`
            : `Keyspace "${args.as}" has ${tables.join(', ')}, with the ranges of "${args.keyspace}" on the same shards. Back: foreshard keyspace join ${args.as} ${args.keyspace}.`,
        );
      }
      if (args['dry-run'] && ties.length > 0) process.exitCode = EXIT.failed;
    }),
};

function printEffects({ templates, unread, objects }: SeparationEffects): void {
  if (templates.length + objects.length > 0)
    printLine('What runs now, and will be refused as soon as a range of the two keyspaces is on another shard:');
  for (const object of objects) printLine(`  ${object}`);
  if (templates.length > 0) printLine(`  calls in ${DAYS} days`);
  for (const { template, calls, why } of templates.slice(0, SHOWN)) {
    printLine(`  ${calls.toLocaleString('en').padStart(12)}  ${template}`);
    printLine(`${' '.repeat(16)}${why}`);
  }
  if (templates.length > SHOWN) printLine(`  and ${templates.length - SHOWN} more (--json has all)`);
  if (unread > 0) printLine(`${unread} recorded template(s) could not be read.`);
}
