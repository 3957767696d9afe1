import type { CommandModule } from 'yargs';
import { createLogger } from '../logger.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { printJson, printLine } from '../output.js';
import { aborted, trapSignals } from '../signals.js';

interface UpArgs extends JsonArgs {
  readonly shards?: number | undefined;
  readonly dir: string;
  readonly port: number;
}

export const upCommand: CommandModule<GlobalArgs, UpArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .option('shards', {
          type: 'number',
          requiresArg: true,
          describe: 'How many PostgreSQL clusters; default 2, or what the directory has',
        })
        .option('dir', {
          type: 'string',
          requiresArg: true,
          default: '.foreshard',
          describe: 'Where the data lives, for good',
        })
        .option('port', {
          type: 'number',
          requiresArg: true,
          default: 6432,
          describe: 'Port of the proxy on 127.0.0.1; 0 for any free one',
        }),
      ['up', 'Two shards, data in .foreshard, proxy on port 6432'],
      ['up --shards 3 --port 0 --json', 'One line of JSON with all URLs when everything is ready'],
    ),
  handler: async (args) => {
    const trap = trapSignals();
    const logger = createLogger(args.verbose === true ? 'debug' : 'warn');
    // Only here: it brings the embedded servers with it, which no other command needs.
    const { startDevelopment } = await import('../development.js');
    const { dir, shards, port } = args;
    const log = (message: string) => process.stderr.write(`foreshard: ${message}\n`);
    const running = await startDevelopment({ dir, shards, port, logger, log });
    try {
      // Told to stop while starting: nobody waits for the URLs any more.
      if (trap.signal.aborted) return;
      if (args.json) printJson({ url: running.url, catalog: running.catalog, shards: running.shards }, 0);
      else {
        printLine(`Ready. Connect with\n  psql ${running.url}\n`);
        for (const shard of running.shards) printLine(`  shard ${shard.name}: ${shard.url}`);
        printLine(
          `\nOther commands: foreshard --config "${running.configFile}" topology show\nCtrl-C stops everything; the data stays.`,
        );
      }
      await Promise.race([aborted(trap.signal), running.failed]);
    } finally {
      await running.stop();
      trap.release();
      process.exitCode = trap.exitCode();
    }
  },
};
