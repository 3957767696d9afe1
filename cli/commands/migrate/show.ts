import type { CommandModule } from 'yargs';
import { showMigration } from '../../../migrator/migration-row.js';
import { parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { progressLine, specText } from '../../progress-line.js';
import { ID, type IdArgs } from './id.js';

export const showCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'show <id>',
  describe: 'Show a migration: progress, events, what is left to clean up',
  builder: (y) => withHelp(jsonOption(y.positional('id', ID)), ['migrate show 1', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const { migration, events, cleanup } = await showMigration(catalog.pool, parseId(args.id, 'migration'));
      if (args.json) return printJson({ ...migration, events, cleanup });
      printLine(`Migration ${migration.id}: ${specText(migration.spec)}`);
      printLine(progressLine(migration));
      if (migration.error !== null) printLine(`error: ${migration.error}`);
      printLine();
      printLine(
        formatTable(
          ['at', 'state', 'detail'],
          events.map((e) => [
            e.at.toISOString(),
            e.state,
            Object.keys(e.detail).length === 0 ? '' : JSON.stringify(e.detail),
          ]),
        ),
      );
      const open = cleanup.filter((c) => !c.done);
      if (open.length === 0) return;
      printLine();
      printLine(
        formatTable(
          ['to clean up', 'shard', 'object'],
          open.map((c) => [c.kind, c.shard, JSON.stringify(c.object)]),
        ),
      );
    }),
};
