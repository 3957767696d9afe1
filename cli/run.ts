import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import yargs from 'yargs';
import { ForeshardError, UsageError } from '../topology/errors.js';
import { COMMANDS } from './command-list.js';
import { EXIT_CODES_HELP, failureOf } from './failure.js';
import { commandsOf } from './listed-command.js';

function version(): string {
  // The same file from source and from dist/, one folder deeper.
  const here = dirname(fileURLToPath(import.meta.url));
  for (const root of [join(here, '..'), join(here, '..', '..')]) {
    try {
      return String((JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }).version);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  return 'unknown';
}

async function run(args: readonly string[]): Promise<void> {
  const cli = yargs([...args])
    .scriptName('foreshard')
    .usage('foreshard: a PostgreSQL proxy that shards a database before it gets hot\n\nUsage: $0 <command>')
    .parserConfiguration({ 'duplicate-arguments-array': false })
    .option('config', {
      type: 'string',
      requiresArg: true,
      global: true,
      describe: 'Configuration file (YAML); default ./foreshard.yaml',
    })
    .option('catalog', {
      type: 'string',
      requiresArg: true,
      global: true,
      describe: 'URL of the catalog; also FORESHARD_CATALOG',
    })
    .option('verbose', { type: 'boolean', global: true, describe: 'Log more, and show stacks of errors' });
  await cli
    .command(await commandsOf(COMMANDS, args))
    .completion('completion', 'Print a completion script for bash or zsh')
    .demandCommand(1, 'a command is needed')
    .recommendCommands()
    .strict()
    .version(version())
    .help()
    .alias('help', 'h')
    .wrap(Math.min(120, process.stdout.columns ?? 100))
    .epilogue(EXIT_CODES_HELP)
    .exitProcess(false)
    .showHelpOnFail(false)
    .fail((message, error) => {
      // What yargs itself finds wrong comes as a message, or as an error of its own.
      if (error !== undefined && error.name !== 'YError') throw error;
      const text = (message ?? error?.message ?? '').replace(/\s*\n\s*/g, ' ');
      throw new UsageError(text.charAt(0).toLowerCase() + text.slice(1), 'See --help.');
    })
    .parseAsync();
}

/** Runs a command: what it says goes to stdout and stderr, what the process is to end with to `process.exitCode`. Never rejects. */
export async function runCli(args: readonly string[]): Promise<void> {
  try {
    await run(args);
  } catch (error) {
    const { exitCode, message, hint } = failureOf(error);
    process.stderr.write(`foreshard: ${message}\n`);
    if (hint !== undefined) process.stderr.write(`hint: ${hint}\n`);
    if (args.includes('--verbose')) {
      const cause = error instanceof ForeshardError ? error.cause : undefined;
      process.stderr.write(
        `${(error as Error).stack ?? error}\n${cause instanceof Error ? `caused by ${cause.stack}\n` : ''}`,
      );
    }
    process.exitCode = exitCode;
  }
}
