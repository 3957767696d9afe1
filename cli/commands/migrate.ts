import type { CommandModule } from 'yargs';
import {
  acceptDifference,
  listMigrations,
  type MigrationRow,
  requestAbort,
  requestEnd,
  showMigration,
} from '../../migrator/migration-store.js';
import { actor, parseId, withCatalog } from '../command.js';
import { EXIT } from '../failure.js';
import { watchMigration } from '../migration-watch.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine } from '../output.js';
import { progressLine, specText } from '../progress-line.js';

interface IdArgs extends JsonArgs {
  readonly id: string;
}

const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
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

const showCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'show <id>',
  describe: 'Show a migration: progress, events, what is left to clean up',
  builder: (y) =>
    withHelp(
      jsonOption(y.positional('id', { type: 'string', demandOption: true, describe: 'Number of the migration' })),
      ['migrate show 1', ''],
    ),
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

const watchCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'watch <id>',
  describe: 'Follow a migration until it ends: exit code 0 when it is done, 1 when aborted, rolled back or failed',
  builder: (y) =>
    withHelp(
      jsonOption(y.positional('id', { type: 'string', demandOption: true, describe: 'Number of the migration' })),
      ['migrate watch 1', 'Phase, rows, MB/s, lag and ETA; with --json one document at the end'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const last: MigrationRow = await watchMigration(catalog, parseId(args.id, 'migration'), { quiet: args.json });
      if (args.json) printJson(last);
      if (last.state !== 'done') process.exitCode = EXIT.failed;
    }),
};

const abortCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'abort <id>',
  describe: 'Ask for a migration to be undone; possible until it has flipped',
  builder: (y) =>
    withHelp(
      jsonOption(y.positional('id', { type: 'string', demandOption: true, describe: 'Number of the migration' })),
      ['migrate abort 1', ''],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await requestAbort(catalog.pool, id, actor());
      if (args.json) printJson({ id, abortRequested: true });
      else printLine(`Migration ${id} will be aborted. Follow it with "foreshard migrate watch ${id}".`);
    }),
};

/** The two ends of the time after a flip in which the way back is open. */
function endCommand(
  end: 'finish' | 'rollback',
  texts: { describe: string; does: string; example: string },
): CommandModule<GlobalArgs, IdArgs> {
  return {
    command: `${end} <id>`,
    describe: texts.describe,
    builder: (y) =>
      withHelp(
        jsonOption(y.positional('id', { type: 'string', demandOption: true, describe: 'Number of the migration' })),
        [`migrate ${end} 1`, texts.example],
      ),
    handler: (args) =>
      withCatalog(args, async (catalog) => {
        const id = parseId(args.id, 'migration');
        await requestEnd(catalog.pool, id, end, actor());
        if (args.json) printJson({ id, requested: end });
        else printLine(`Migration ${id} ${texts.does}. Follow it with "foreshard migrate watch ${id}".`);
      }),
  };
}

const rollbackCommand = endCommand('rollback', {
  describe:
    'Take a migration back after its flip, with all that was written since; possible while its way back is open',
  does: 'will be taken back',
  example: 'The same flip the other way: nothing is lost, clients wait for some 10 ms',
});

const finishCommand = endCommand('finish', {
  describe: 'Give up the way back of a migration now, and remove the moved rows at the source',
  does: 'will be finished',
  example: '',
});

const acceptCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'accept <id>',
  describe: 'Let a migration go on that kept the rows at the source because the shards differed as of the flip',
  builder: (y) =>
    withHelp(
      jsonOption(y.positional('id', { type: 'string', demandOption: true, describe: 'Number of the migration' })),
      ['migrate accept 1', 'After a person has compared the rows: those at the source are removed'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await acceptDifference(catalog.pool, id, actor());
      if (args.json) printJson({ id, accepted: true });
      else printLine(`Migration ${id} goes on. Follow it with "foreshard migrate watch ${id}".`);
    }),
};

export const migrateCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) =>
    withHelp(
      y
        .command(listCommand)
        .command(showCommand)
        .command(watchCommand)
        .command(abortCommand)
        .command(rollbackCommand)
        .command(finishCommand)
        .command(acceptCommand)
        .demandCommand(1, 'a command is needed: list, show, watch, abort, rollback, finish or accept'),
      ['migrate watch 1', 'Follow migration 1 until it ends'],
    ),
  handler: () => undefined,
};
