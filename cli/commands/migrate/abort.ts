import type { CommandModule } from 'yargs';
import { requestAbort } from '../../../migrator/migration-requests.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

export const abortCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'abort <id>',
  describe: 'Ask for a migration to be undone; possible until it has flipped',
  builder: (y) => withHelp(jsonOption(y.positional('id', ID)), ['migrate abort 1', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await requestAbort(catalog.pool, id, actor());
      if (args.json) printJson({ id, abortRequested: true });
      else printLine(`Migration ${id} will be aborted. Follow it with "foreshard migrate watch ${id}".`);
    }),
};
