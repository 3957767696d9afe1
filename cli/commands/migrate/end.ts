import type { CommandModule } from 'yargs';
import { requestEnd } from '../../../migrator/migration-requests.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

/** The two ends of the time after a flip in which the way back is open. */
function endCommand(
  end: 'finish' | 'rollback',
  texts: { describe: string; does: string; example: string },
): CommandModule<GlobalArgs, IdArgs> {
  return {
    command: `${end} <id>`,
    describe: texts.describe,
    builder: (y) => withHelp(jsonOption(y.positional('id', ID)), [`migrate ${end} 1`, texts.example]),
    handler: (args) =>
      withCatalog(args, async (catalog) => {
        const id = parseId(args.id, 'migration');
        await requestEnd(catalog.pool, id, end, actor());
        if (args.json) printJson({ id, requested: end });
        else printLine(`Migration ${id} ${texts.does}. Follow it with "foreshard migrate watch ${id}".`);
      }),
  };
}

export const rollbackCommand = endCommand('rollback', {
  describe:
    'Take a migration back after its flip, with all that was written since; possible while its way back is open',
  does: 'will be taken back',
  example: 'The same flip the other way: nothing is lost, clients wait for some 10 ms',
});

export const finishCommand = endCommand('finish', {
  describe: 'Give up the way back of a migration now, and remove the moved rows at the source',
  does: 'will be finished',
  example: '',
});
