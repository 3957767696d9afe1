import type { CommandModule } from 'yargs';
import type { MigrationRow } from '../../../migrator/migration-row.js';
import { parseId, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { watchMigration } from '../../migration-watch.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson } from '../../output.js';
import { ID, type IdArgs } from './id.js';

export const watchCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'watch <id>',
  describe: 'Follow a migration until it ends: exit code 0 when it is done, 1 when aborted, rolled back or failed',
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)), [
      'migrate watch 1',
      'Phase, rows, MB/s, lag and ETA; with --json one document at the end',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const last: MigrationRow = await watchMigration(catalog, parseId(args.id, 'migration'), { quiet: args.json });
      if (args.json) printJson(last);
      if (last.state !== 'done') process.exitCode = EXIT.failed;
    }),
};
