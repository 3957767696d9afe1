import type { CommandModule } from 'yargs';
import { joinKeyspaces } from '../../../topology/catalog/separate.js';
import { actor, withCatalog } from '../../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';

interface JoinArgs extends JsonArgs {
  readonly keyspace: string;
  readonly into: string;
}

export const joinCommand: CommandModule<GlobalArgs, JoinArgs> = {
  command: 'join <keyspace> <into>',
  describe: 'Give the tables of a keyspace to another with the same key, whose ranges are on the same shards',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('keyspace', { type: 'string', demandOption: true, describe: 'Keyspace that ends' })
        .positional('into', { type: 'string', demandOption: true, describe: 'Keyspace that its tables go to' }),
      ['keyspace join docs shop', 'The way back from "keyspace separate"'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      await joinKeyspaces(catalog, actor(), args.keyspace, args.into);
      if (args.json) printJson({ keyspace: args.keyspace, into: args.into });
      else printLine(`The tables of keyspace "${args.keyspace}" are in "${args.into}" now.`);
    }),
};
