import type { CommandModule } from 'yargs';
import { setPaused } from '../../../migrator/migration-requests.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

/** `pause` and `resume`. */
export function pauseCommand(paused: boolean): CommandModule<GlobalArgs, IdArgs> {
  const command = paused ? 'pause' : 'resume';
  return {
    builder: (y) =>
      withHelp(jsonOption(y.positional('id', ID)), [
        `migrate ${command} 1`,
        paused ? 'The source keeps its log for it meanwhile: not for longer than its disk has room' : '',
      ]),
    handler: (args) =>
      withCatalog(args, async (catalog) => {
        const id = parseId(args.id, 'migration');
        await setPaused(catalog.pool, id, paused, actor());
        if (args.json) printJson({ id, paused });
        else
          printLine(
            `Migration ${id} ${paused ? 'will be paused' : 'goes on'}. Follow it with "foreshard migrate watch ${id}".`,
          );
      }),
  };
}
