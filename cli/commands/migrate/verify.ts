import { setTimeout as delay } from 'node:timers/promises';
import type { CommandModule } from 'yargs';
import { lastComparison, type RequestedComparison } from '../../../migrator/comparison.js';
import { requestComparison } from '../../../migrator/migration-requests.js';
import { loadMigration } from '../../../migrator/migration-row.js';
import { formatSeconds } from '../../../planner/report/format.js';
import type { Catalog } from '../../../topology/catalog/catalog.js';
import { ConflictError } from '../../../topology/errors.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

const POLL_MS = 200;

export const verifyCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'verify <id>',
  describe:
    'Compare all tables of a migration that waits to flip, or whose way back is open: exit code 0 when both sides are the same, 1 when rows differ',
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)), [
      'migrate verify 1',
      'While clients write; the migrator does it, also when this command is interrupted',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      const comparison = await answer(catalog, id, await requestComparison(catalog.pool, id, actor()));
      const isSame = comparison.tables.every((t) => t.differing === 0);
      if (!isSame) process.exitCode = EXIT.failed;
      if (args.json) return printJson({ id, same: isSame, at: comparison.at, tables: comparison.tables });
      printLine(
        formatTable(
          ['table', 'rows', 'time', 'rows/s', 'differing'],
          comparison.tables.map(({ table, rows, ms, differing }) => [
            table,
            rows.toLocaleString('en'),
            formatSeconds(ms / 1000),
            Math.round((rows * 1000) / Math.max(1, ms)).toLocaleString('en'),
            `${differing}`,
          ]),
        ),
      );
      for (const { table, differing, keys } of comparison.tables) {
        if (differing === 0) continue;
        printLine(`\n${differing} rows of ${table} differ:`);
        for (const key of keys) printLine(`  ${key}`);
        if (differing > keys.length) printLine(`  and ${differing - keys.length} more`);
      }
    }),
};

/** @throws ConflictError when the migration goes elsewhere before it has answered */
async function answer(catalog: Catalog, id: bigint, request: string): Promise<RequestedComparison> {
  for (;;) {
    const row = await loadMigration(catalog.pool, id);
    const last = lastComparison(row);
    if (last?.request === request) return last;
    if (row.controls.comparison !== request)
      throw new ConflictError(`somebody else has asked for a comparison of migration ${id}`, 'Ask again after that.');
    if (row.state !== 'ready' && row.state !== 'reversing')
      throw new ConflictError(
        `migration ${id} was not compared: it is ${row.state.replaceAll('_', ' ')} now`,
        `See "foreshard migrate show ${id}".`,
      );
    await delay(POLL_MS);
  }
}
