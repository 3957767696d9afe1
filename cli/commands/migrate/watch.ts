import type { CommandModule } from 'yargs';
import { changeState, findChange } from '../../../migrator/changes/change-row.js';
import { changeWaits, watchChange } from '../../change-watch.js';
import { parseId, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { waitsForSomebody, watchMigration } from '../../migration-watch.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson } from '../../output.js';
import { trapSignals } from '../../signals.js';
import { ID, type IdArgs } from './id.js';

export const watchCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)), [
      'migrate watch 1',
      'Phase, rows, MB/s, lag and ETA; with --json one document at the end. Ctrl-C leaves the migration alone',
    ]),
  handler: async (args) => {
    const trap = trapSignals();
    try {
      await withCatalog(args, async (catalog) => {
        const id = parseId(args.id, 'migration');
        if ((await findChange(catalog.pool, id)) !== null) {
          const change = await watchChange(catalog, id, { quiet: args.json, signal: trap.signal });
          const state = changeState(change);
          if (args.json) printJson({ ...change, state });
          if (trap.signal.aborted) {
            process.stderr.write(`foreshard: change ${id} goes on without being watched\n`);
            process.exitCode = trap.exitCode();
          } else if (state === 'planned' || state === 'approved' || changeWaits(change).length > 0)
            process.exitCode = EXIT.waiting;
          else if (state !== 'done') process.exitCode = EXIT.failed;
          return;
        }
        const last = await watchMigration(catalog, id, { quiet: args.json, signal: trap.signal });
        if (args.json) printJson(last);
        if (trap.signal.aborted) {
          process.stderr.write(
            `foreshard: migration ${id} goes on without being watched; "foreshard migrate pause ${id}" or "foreshard migrate abort ${id}" would stop it\n`,
          );
          process.exitCode = trap.exitCode();
        } else if (!['done', 'reversing', 'following'].includes(last.state))
          process.exitCode = waitsForSomebody(last) === null ? EXIT.failed : EXIT.waiting;
      });
    } finally {
      trap.release();
    }
  },
};
