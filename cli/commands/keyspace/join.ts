import type { CommandModule } from 'yargs';
import { joinKeyspaces, releaseTables } from '../../../topology/catalog/separate.js';
import { actor, withCatalog } from '../../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';

interface JoinArgs extends JsonArgs {
  readonly keyspace: string;
  readonly into?: string | undefined;
}

export const joinCommand: CommandModule<GlobalArgs, JoinArgs> = {
  command: 'join <keyspace> [into]',
  describe:
    'Give the tables of a keyspace to another with the same key, whose ranges are on the same shards; or, without a key, to none',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('keyspace', { type: 'string', demandOption: true, describe: 'Keyspace that ends' })
        .positional('into', {
          type: 'string',
          describe:
            'Keyspace that its tables go to. Default: none, which tables without a key can do on the home shard',
        }),
      ['keyspace join docs shop', 'The way back from "keyspace separate"'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const { keyspace, into = null } = args;
      if (into === null) await releaseTables(catalog, actor(), keyspace);
      else await joinKeyspaces(catalog, actor(), keyspace, into);
      if (args.json) printJson({ keyspace, into });
      else
        printLine(
          `The tables of keyspace "${keyspace}" are ${into === null ? 'in no keyspace any more' : `in "${into}" now`}.`,
        );
    }),
};
