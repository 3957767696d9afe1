import type { CommandModule } from 'yargs';
import { approveChange, startChange } from '../../../migrator/changes/change-requests.js';
import { changeState } from '../../../migrator/changes/change-row.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type ControlsArgs, controlsOf, controlsOptions } from '../../controls-options.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import type { IdArgs } from './id.js';

const ID = { type: 'string', demandOption: true, describe: 'Number of the change' } as const;

interface ApproveArgs extends IdArgs, ControlsArgs {
  readonly later: boolean;
}

export const approveCommand: CommandModule<GlobalArgs, ApproveArgs> = {
  builder: (y) =>
    withHelp(
      controlsOptions(jsonOption(y).positional('id', ID), { auto: true }).option('later', {
        type: 'boolean',
        default: false,
        describe: 'Only approve it; "foreshard migrate start" starts it',
      }),
      ['migrate approve 7', 'Refused (exit code 4) when ranges have changed since it was planned'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'change');
      const change = await approveChange(catalog.pool, id, {
        actor: actor(),
        later: args.later,
        controls: controlsOf(args),
      });
      if (args.json)
        return printJson({ change: id, state: changeState(change), migrations: change.members.map((m) => m.id) });
      printLine(
        args.later
          ? `Change ${id} is approved. Start it with "foreshard migrate start ${id}".`
          : `Change ${id} is approved and started. Follow it with "foreshard migrate watch ${id}".`,
      );
    }),
};

export const startCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) => withHelp(jsonOption(y).positional('id', ID), ['migrate start 7', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'change');
      const change = await startChange(catalog.pool, id, actor());
      if (args.json) printJson({ change: id, state: changeState(change), migrations: change.members.map((m) => m.id) });
      else printLine(`Change ${id} is started. Follow it with "foreshard migrate watch ${id}".`);
    }),
};
