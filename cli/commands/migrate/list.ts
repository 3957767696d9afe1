import type { CommandModule } from 'yargs';
import { listMigrations } from '../../../migrator/migration-row.js';
import { withCatalog } from '../../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { specText } from '../../progress-line.js';

export const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'list',
  describe: 'List migrations, newest first',
  builder: (y) => withHelp(jsonOption(y), ['migrate list', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const migrations = await listMigrations(catalog.pool);
      if (args.json) printJson(migrations);
      else if (migrations.length === 0) printLine('No migrations yet. They start when a plan is approved.');
      else
        printLine(
          formatTable(
            ['id', 'state', 'plan', 'what', 'updated'],
            migrations.map((m) => [
              `${m.id}`,
              m.state,
              m.planId?.toString() ?? '',
              specText(m.spec),
              m.updatedAt.toISOString(),
            ]),
          ),
        );
    }),
};
