import type { CommandModule } from 'yargs';
import { abortChange } from '../../../migrator/changes/change-requests.js';
import { findChange } from '../../../migrator/changes/change-row.js';
import { requestAbort } from '../../../migrator/migration-requests.js';
import type { Catalog } from '../../../topology/catalog/catalog.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

export const abortCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) => withHelp(jsonOption(y.positional('id', ID)), ['migrate abort 1', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      if ((await findChange(catalog.pool, id)) !== null) return abortWhole(catalog, id, args.json);
      await requestAbort(catalog.pool, id, actor());
      if (args.json) printJson({ id, abortRequested: true });
      else printLine(`Migration ${id} will be aborted. Follow it with "foreshard migrate watch ${id}".`);
    }),
};

async function abortWhole(catalog: Catalog, id: bigint, json: boolean): Promise<void> {
  const { kept } = await abortChange(catalog.pool, id, actor());
  if (json) return printJson({ change: id, abortRequested: true, kept });
  const rest = kept.length === 0 ? '' : ` Of it stay as they are: ${kept.join(', ')}.`;
  printLine(`Change ${id} will be aborted.${rest} See "foreshard migrate show ${id}".`);
}
