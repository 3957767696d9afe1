import type { CommandModule } from 'yargs';
import { type Change, changeState, findChange } from '../../../migrator/changes/change-row.js';
import { KEYS_SHOWN } from '../../../migrator/comparison.js';
import { showMigration } from '../../../migrator/migration-row.js';
import { doubtedTables } from '../../../migrator/sampled.js';
import { changeLine, membersText } from '../../change-text.js';
import { parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { progressLine, specText } from '../../progress-line.js';
import { ID, type IdArgs } from './id.js';

export const showCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'show <id>',
  describe: 'Show a migration: progress, events, what is left to clean up; or a change and its migrations',
  builder: (y) => withHelp(jsonOption(y.positional('id', ID)), ['migrate show 1', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      const change = await findChange(catalog.pool, id);
      if (change !== null) return showChange(change, args.json);
      const { migration, events, cleanup } = await showMigration(catalog.pool, id);
      if (args.json) return printJson({ ...migration, events, cleanup });
      printLine(`Migration ${migration.id}: ${specText(migration.spec)}`);
      if (migration.changeId !== null) printLine(`number ${migration.position} of change ${migration.changeId}`);
      printLine(progressLine(migration));
      if (migration.error !== null) printLine(`error: ${migration.error}`);
      for (const { table, differing, keys } of doubtedTables(migration)) {
        printLine(`\n${differing} rows of ${table} differ:`);
        for (const key of keys.slice(0, KEYS_SHOWN)) printLine(`  ${key}`);
        if (differing > KEYS_SHOWN) printLine(`  and ${differing - KEYS_SHOWN} more`);
      }
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

function showChange(change: Change, json: boolean): void {
  if (json) {
    printJson({ ...change, state: changeState(change) });
    return;
  }
  const line = changeLine(change);
  printLine(line[0]?.toUpperCase() + line.slice(1));
  printLine(`asked for: ${JSON.stringify(change.request)}, at most ${change.concurrency} at once`);
  const decided = [
    `planned by ${change.createdBy} at epoch ${change.epoch}`,
    ...(change.approvedBy === null ? [] : [`approved by ${change.approvedBy}`]),
    ...(change.startedBy === null ? [] : [`started by ${change.startedBy}`]),
  ];
  printLine(decided.join(', '));
  printLine();
  printLine(membersText(change));
}
