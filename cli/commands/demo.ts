import type { CommandModule } from 'yargs';
import { UsageError } from '../../topology/errors.js';
import { type GlobalArgs, withHelp } from '../options.js';

interface DemoArgs extends GlobalArgs {
  readonly port: number;
  readonly yes: boolean;
  readonly once: boolean;
  readonly keep: boolean;
  readonly tenants: number;
  readonly rows: number;
  readonly load: number;
  readonly report?: string | undefined;
}

export const demoCommand: CommandModule<GlobalArgs, DemoArgs> = {
  builder: (y) =>
    withHelp(
      y
        .option('port', {
          type: 'number',
          default: 6432,
          requiresArg: true,
          describe: 'Port of the proxy on 127.0.0.1; 0 for any free one',
        })
        .option('yes', { type: 'boolean', default: false, describe: 'Approve the plan without asking' })
        .option('once', {
          type: 'boolean',
          default: false,
          describe: 'End after the audit: exit code 0 if it is clean and no client saw an error, 1 if not',
        })
        .option('keep', { type: 'boolean', default: false, describe: 'Keep the data, and say where it is' })
        .option('tenants', {
          type: 'number',
          default: 200,
          requiresArg: true,
          describe: 'Tenants of the shop, a multiple of 10',
        })
        .option('rows', { type: 'number', default: 500_000, requiresArg: true, describe: 'Rows to load, about' })
        .option('load', {
          type: 'number',
          default: 300,
          requiresArg: true,
          describe: 'Statements per second of the live load, about',
        })
        .option('report', {
          type: 'string',
          requiresArg: true,
          describe: 'Where to write the HTML report; default ./foreshard-report.html',
        }),
      ['demo', 'The whole story; asks before it changes anything; Ctrl-C ends it and leaves nothing'],
      ['demo --yes --once', 'Without questions, ends by itself'],
    ),
  handler: async (args) => {
    between('--port', args.port, 0, 65_535);
    between('--tenants', args.tenants, 10, 10_000);
    if (args.tenants % 10 !== 0)
      throw new UsageError(
        '--tenants must be a multiple of 10',
        'Each of the ten keys of the trace stands for as many tenants.',
      );
    between('--rows', args.rows, 1000, 50_000_000);
    between('--load', args.load, 10, 20_000);
    if (!args.yes && process.stdin.isTTY !== true)
      throw new UsageError(
        'the demo asks before it changes anything, and there is no terminal to ask on',
        'Add --yes to approve its plan beforehand.',
      );
    // Only here: the demo brings the embedded servers with it, which no other command needs.
    const { runDemo } = await import('../demo/demo.js');
    process.exitCode = await runDemo({
      port: args.port,
      yes: args.yes,
      once: args.once,
      keep: args.keep,
      tenants: args.tenants,
      rows: args.rows,
      statementsPerSecond: args.load,
      reportPath: args.report ?? 'foreshard-report.html',
    });
  },
};

function between(option: string, value: number, least: number, most: number): void {
  if (!Number.isInteger(value) || value < least || value > most)
    throw new UsageError(`${option} must be a whole number from ${least} to ${most}`);
}
