import type { CommandModule } from 'yargs';
import { type Change, changeState, findChange } from '../../../migrator/changes/change-row.js';
import { KEYS_SHOWN } from '../../../migrator/comparison.js';
import { type DifferedAsOfFlip, differedAsOfFlip } from '../../../migrator/differed.js';
import { showMigration } from '../../../migrator/migration-row.js';
import { doubtedTables } from '../../../migrator/sampled.js';
import { changeLine, membersText } from '../../change-text.js';
import { parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { progressLine, specText } from '../../progress-line.js';
import { ID, type IdArgs } from './id.js';

export const showCommand: CommandModule<GlobalArgs, IdArgs> = {
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
      const differed = migration.state === 'failed' ? differedAsOfFlip(migration) : null;
      if (differed !== null) printDiffered(differed);
      else
        for (const { table, differing, keys } of doubtedTables(migration))
          printKeys(`${differing} rows of ${table} differ`, keys, differing);
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

function printDiffered({ owner, former, tables }: DifferedAsOfFlip): void {
  for (const { table, differing, missing, extra, changed } of tables) {
    const kinds = [
      [missing, `on shard ${former} only`],
      [extra, `on shard ${owner} only`],
      [changed, 'of other values'],
    ] as const;
    for (const [keys, where] of kinds)
      if (keys.length > 0) printKeys(`${keys.length} rows of ${table}, ${where}`, keys, keys.length);
    const named = missing.length + extra.length + changed.length;
    if (named < differing) printLine(`\n${differing - named} more rows of ${table} differ, whose keys are not kept`);
  }
}

/** @param all how many rows there are */
function printKeys(what: string, keys: readonly string[], all: number): void {
  printLine(`\n${what}:`);
  for (const key of keys.slice(0, KEYS_SHOWN)) printLine(`  ${key}`);
  if (all > KEYS_SHOWN) printLine(`  and ${all - KEYS_SHOWN} more`);
}

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
