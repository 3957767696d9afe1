import type { CommandModule } from 'yargs';
import { check } from '../../topology/doctor.js';
import { withCatalog } from '../command.js';
import { EXIT } from '../failure.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { printJson, printLine } from '../output.js';

interface CheckArgs extends JsonArgs {
  readonly all: boolean;
}

const MARKS = { ok: 'ok     ', warning: 'warning', error: 'ERROR  ' } as const;

export const checkCommand: CommandModule<GlobalArgs, CheckArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y).option('all', { type: 'boolean', default: false, describe: 'Also list what is as it should be' }),
      ['check', 'Errors and warnings with their remedies'],
      ['check --json', 'All findings as data'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const findings = await check(await catalog.loadTopology());
      const count = (level: string) => findings.filter((f) => f.level === level).length;
      const errors = count('error');
      if (args.json) printJson({ ok: errors === 0, errors, warnings: count('warning'), findings });
      else {
        for (const { level, object, what, remedy } of findings) {
          if (level === 'ok' && !args.all) continue;
          printLine(`${MARKS[level]} ${object}: ${what}`);
          if (remedy !== null) printLine(`        remedy: ${remedy}`);
        }
        printLine(
          findings.length === 0
            ? 'Nothing to check: there are no shards yet.'
            : `${errors} error(s), ${count('warning')} warning(s), ${count('ok')} as it should be.`,
        );
      }
      if (errors > 0) process.exitCode = EXIT.failed;
    }),
};
