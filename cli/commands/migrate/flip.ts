import type { CommandModule } from 'yargs';
import { requestFlip } from '../../../migrator/migration-requests.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

export const flipCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)), [
      'migrate flip 1',
      'Clients of the range wait for some 10 ms; transactions open on it are waited for first',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      const { state } = await requestFlip(catalog.pool, id, actor());
      if (args.json) return printJson({ id, flipRequested: true, state });
      const when =
        state === 'ready' ? 'flips now' : `is ${state.replaceAll('_', ' ')}: it flips as soon as it is ready`;
      printLine(`Migration ${id} ${when}. Follow it with "foreshard migrate watch ${id}".`);
    }),
};
