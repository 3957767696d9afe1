import { setTimeout as delay } from 'node:timers/promises';
import type { CommandModule } from 'yargs';
import { type ComparedTable, type ComparisonResult, KEYS_SHOWN, lastComparison } from '../../../migrator/comparison.js';
import { requestComparison, requestRepair } from '../../../migrator/migration-requests.js';
import { loadMigration, type MigrationRow } from '../../../migrator/migration-row.js';
import { lastRepair, type Repair } from '../../../migrator/repair.js';
import { formatSeconds } from '../../../planner/report/format.js';
import type { Catalog } from '../../../topology/catalog/catalog.js';
import { ConflictError } from '../../../topology/errors.js';
import type { MigrationState } from '../../../topology/migration.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { formatTable, printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

const POLL_MS = 200;
/** States in which a migration does what it is asked for here. */
const ANSWERS: readonly MigrationState[] = ['verifying', 'ready', 'reversing'];

interface VerifyArgs extends IdArgs {
  readonly repair: boolean;
}

export const verifyCommand: CommandModule<GlobalArgs, VerifyArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y.positional('id', ID)).option('repair', {
        type: 'boolean',
        default: false,
        describe:
          'Make the rows that the last comparison has named what they are at their owner, and compare them again',
      }),
      ['migrate verify 1', 'While clients write; the migrator does it, also when this command is interrupted'],
      ['migrate verify 1 --repair', 'Writers of the interval wait for some milliseconds'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      const repair = args.repair ? await repaired(catalog, id) : null;
      const comparison = args.repair ? await lastOf(catalog, id) : await compared(catalog, id);
      const isSame = comparison.tables.every((t) => t.differing === 0);
      if (!isSame || (repair !== null && repair.refused !== null)) process.exitCode = EXIT.failed;
      if (args.json)
        return printJson({
          id,
          same: isSame,
          at: repair?.at ?? comparison.at,
          tables: comparison.tables,
          ...(repair === null ? {} : { repaired: repair.tables, refused: repair.refused }),
        });
      if (repair === null) printCompared(comparison.tables);
      else printRepaired(repair, isSame);
      for (const { table, differing, keys } of comparison.tables) {
        if (differing === 0) continue;
        printLine(`\n${differing} rows of ${table} differ${repair === null ? '' : ' still'}:`);
        printKeys(keys, differing);
      }
    }),
};

function printCompared(tables: readonly ComparedTable[]): void {
  printLine(
    formatTable(
      ['table', 'rows', 'time', 'rows/s', 'differing'],
      tables.map(({ table, rows, ms, differing }) => [
        table,
        rows.toLocaleString('en'),
        formatSeconds(ms / 1000),
        Math.round((rows * 1000) / Math.max(1, ms)).toLocaleString('en'),
        `${differing}`,
      ]),
    ),
  );
}

function printRepaired({ tables, refused }: Repair, isSame: boolean): void {
  for (const { table, ...keys } of tables)
    for (const what of ['added', 'replaced', 'removed'] as const) {
      if (keys[what].length === 0) continue;
      printLine(`${keys[what].length} rows of ${table} ${what}:`);
      printKeys(keys[what], keys[what].length);
    }
  if (refused !== null) printLine(`NOT REPAIRED: ${refused}`);
  else if (isSame) printLine('What was concerned has been compared again: both sides are the same.');
}

/** @param all how many there are */
function printKeys(keys: readonly string[], all: number): void {
  const shown = keys.slice(0, KEYS_SHOWN);
  for (const key of shown) printLine(`  ${key}`);
  if (all > shown.length) printLine(`  and ${all - shown.length} more`);
}

async function compared(catalog: Catalog, id: bigint): Promise<ComparisonResult> {
  const request = await requestComparison(catalog.pool, id, actor());
  return answer(catalog, id, 'comparison', request, (row) => {
    const last = lastComparison(row);
    return last?.request === request ? last : null;
  });
}

async function repaired(catalog: Catalog, id: bigint): Promise<Repair> {
  const request = await requestRepair(catalog.pool, id, actor());
  return answer(catalog, id, 'repair', request, (row) => {
    const last = lastRepair(row);
    return last?.request === request && last.at !== null ? last : null;
  });
}

/** Of a migration that has been repaired. */
async function lastOf(catalog: Catalog, id: bigint): Promise<ComparisonResult> {
  return lastComparison(await loadMigration(catalog.pool, id)) as ComparisonResult;
}

/** @throws ConflictError when the migration goes elsewhere before it has answered */
async function answer<T>(
  catalog: Catalog,
  id: bigint,
  control: 'comparison' | 'repair',
  request: string,
  find: (row: MigrationRow) => T | null,
): Promise<T> {
  for (;;) {
    const row = await loadMigration(catalog.pool, id);
    const found = find(row);
    if (found !== null) return found;
    if (row.controls[control] !== request)
      throw new ConflictError(`somebody else has asked for a ${control} of migration ${id}`, 'Ask again after that.');
    if (!ANSWERS.includes(row.state))
      throw new ConflictError(
        `migration ${id} was not compared: it is ${row.state.replaceAll('_', ' ')} now`,
        `See "foreshard migrate show ${id}".`,
      );
    await delay(POLL_MS);
  }
}
