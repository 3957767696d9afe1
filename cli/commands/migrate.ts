import type { CommandModule } from 'yargs';
import { audit } from '../../migrator/audit/audit.js';
import {
  acceptDifference,
  listMigrations,
  type MigrationRow,
  requestAbort,
  requestEnd,
  setPaused,
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

/** `pause` and `resume`. */
function pauseCommand(paused: boolean): CommandModule<GlobalArgs, IdArgs> {
  const command = paused ? 'pause' : 'resume';
  return {
    command: `${command} <id>`,
    describe: paused
      ? 'Have a migration go no further, and load neither server, until it is resumed'
      : 'Have a paused migration go on',
    builder: (y) =>
      withHelp(
        jsonOption(y.positional('id', { type: 'string', demandOption: true, describe: 'Number of the migration' })),
        [
          `migrate ${command} 1`,
          paused ? 'The source keeps its log for it meanwhile: not for longer than its disk has room' : '',
        ],
      ),
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

interface AuditArgs extends JsonArgs {
  readonly repair: boolean;
}

const auditCommand: CommandModule<GlobalArgs, AuditArgs> = {
  command: 'audit',
  describe: 'Look for what migrations have left behind, and for rows that are where they do not belong',
  builder: (y) =>
    withHelp(
      jsonOption(y).option('repair', {
        type: 'boolean',
        default: false,
        describe:
          'Take away what nobody can need any more: objects of migrations that are over, and rows that their owner has as well',
      }),
      ['migrate audit', 'Exit code 0: every row is where it belongs, and nothing is left over'],
      ['migrate audit --repair', ''],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const findings = await audit(catalog, args.repair);
      const open = findings.filter((finding) => finding.outcome !== 'repaired');
      if (args.json) printJson({ ok: open.length === 0, findings });
      else {
        for (const { shard, text, remedy, outcome } of findings) {
          printLine(
            `${outcome === 'open' ? 'FOUND   ' : outcome === 'repaired' ? 'repaired' : 'NOT DONE'} ${shard === '' ? 'catalog' : `shard ${shard}`}: ${text}`,
          );
          if (outcome !== 'repaired') printLine(`         remedy: ${remedy}`);
        }
        printLine(
          open.length === 0
            ? 'Every row is where it belongs, and nothing is left of any migration.'
            : `${open.length} finding(s).`,
        );
      }
      if (open.length > 0) process.exitCode = EXIT.failed;
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
        .command(pauseCommand(true))
        .command(pauseCommand(false))
        .command(rollbackCommand)
        .command(finishCommand)
        .command(acceptCommand)
        .command(auditCommand)
        .demandCommand(
          1,
          'a command is needed: list, show, watch, abort, pause, resume, rollback, finish, accept or audit',
        ),
      ['migrate watch 1', 'Follow migration 1 until it ends'],
    ),
  handler: () => undefined,
};
