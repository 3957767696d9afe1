import type { CommandModule } from 'yargs';
import { setEndTransactions } from '../../../migrator/migration-requests.js';
import { formatMs } from '../../../planner/report/format.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { endTransactionsOf } from '../../controls-options.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

interface Args extends IdArgs {
  readonly after: string;
}

export const endTransactionsCommand: CommandModule<GlobalArgs, Args> = {
  builder: (y) =>
    withHelp(
      jsonOption(
        y.positional('id', ID).positional('after', {
          type: 'string',
          demandOption: true,
          describe: 'They are ended (40001) when they have been waited for so long: 2s; off: the flip backs off',
        }),
      ),
      ['migrate end-transactions 1 2s', 'Nothing of them is committed; their clients retry them'],
      ['migrate end-transactions 1 off', 'The flip waits, backs off and tries again'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      const afterMs = endTransactionsOf(args.after);
      await setEndTransactions(catalog.pool, id, afterMs, actor());
      if (args.json) return printJson({ id, endTransactionsAfterMs: afterMs });
      printLine(
        afterMs === null
          ? `The flip of migration ${id} backs off from transactions that are open on its interval.`
          : `The flip of migration ${id} ends transactions that are still open on its interval after ${formatMs(afterMs)}.`,
      );
    }),
};
