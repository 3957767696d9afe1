import type { CommandModule } from 'yargs';
import { requestEnd } from '../../../migrator/migration-requests.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

interface RollbackArgs extends IdArgs {
  readonly force: boolean;
}

/** The two ends of the time after a flip in which the way back is open. */
export const rollbackCommand: CommandModule<GlobalArgs, RollbackArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y.positional('id', ID)).option('force', {
        type: 'boolean',
        default: false,
        describe:
          'Also when rows are known to differ: those of the other side are kept, and the migration ends "failed"',
      }),
      ['migrate rollback 1', 'The same flip the other way: nothing is lost, clients wait for some 10 ms'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await requestEnd(catalog.pool, id, 'rollback', actor(), { force: args.force });
      if (args.json) printJson({ id, requested: 'rollback' });
      else printLine(`Migration ${id} will be taken back. Follow it with "foreshard migrate watch ${id}".`);
    }),
};

export const finishCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) => withHelp(jsonOption(y.positional('id', ID)), ['migrate finish 1', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await requestEnd(catalog.pool, id, 'finish', actor());
      if (args.json) printJson({ id, requested: 'finish' });
      else printLine(`Migration ${id} will be finished. Follow it with "foreshard migrate watch ${id}".`);
    }),
};
