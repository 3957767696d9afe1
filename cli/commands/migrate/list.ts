import type { CommandModule } from 'yargs';
import { changeState, listChanges } from '../../../migrator/changes/change-row.js';
import { listMigrations } from '../../../migrator/migration-row.js';
import { withCatalog } from '../../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { specText } from '../../progress-line.js';

export const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  builder: (y) => withHelp(jsonOption(y), ['migrate list', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const migrations = await listMigrations(catalog.pool);
      const changes = await listChanges(catalog.pool);
      if (args.json) return printJson({ changes: changes.map((c) => ({ ...c, state: changeState(c) })), migrations });
      if (migrations.length === 0)
        return printLine(
          'No migrations yet. They start when a plan, or a change planned with "migrate plan", is approved.',
        );
      if (changes.length > 0) {
        printLine(
          formatTable(
            ['change', 'state', 'kind', 'migrations', 'done', 'by', 'planned'],
            changes.map((c) => [
              `${c.id}`,
              changeState(c),
              c.kind,
              `${c.members.length}`,
              `${c.members.filter((m) => m.state === 'done').length}`,
              c.createdBy,
              c.createdAt.toISOString(),
            ]),
          ),
        );
        printLine();
      }
      return printLine(
        formatTable(
          ['id', 'state', 'plan', 'change', 'what', 'updated'],
          migrations.map((m) => [
            `${m.id}`,
            m.state,
            m.planId?.toString() ?? '',
            m.changeId === null ? '' : `${m.changeId} (${m.position})`,
            specText(m.spec),
            m.updatedAt.toISOString(),
          ]),
        ),
      );
    }),
};
