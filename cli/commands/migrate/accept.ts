import type { CommandModule } from 'yargs';
import { acceptDifference } from '../../../migrator/migration-requests.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

export const acceptCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)), [
      'migrate accept 1',
      'After a person has compared the rows: those at the source are removed',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await acceptDifference(catalog.pool, id, actor());
      if (args.json) printJson({ id, accepted: true });
      else printLine(`Migration ${id} goes on. Follow it with "foreshard migrate watch ${id}".`);
    }),
};
