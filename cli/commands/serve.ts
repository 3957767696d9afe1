import type { Argv, CommandModule } from 'yargs';
import { UsageError } from '../../topology/errors.js';
import { inheritedSockets } from '../inherited-sockets.js';
import { type GlobalArgs, withHelp } from '../options.js';
import { PARTS, type Part } from '../parts.js';
import { aborted, trapSignals } from '../signals.js';

interface ServeArgs extends GlobalArgs {
  readonly only?: string | undefined;
  readonly port?: number | undefined;
  readonly workers?: number | undefined;
}

/** As in the configuration's schema. */
const MAX_WORKERS = 64;

export const serveCommand: CommandModule<GlobalArgs, ServeArgs> = {
  builder: (y) =>
    withHelp(
      y
        .option('only', {
          type: 'string',
          requiresArg: true,
          describe: `Only these parts, by commas: ${PARTS.join(', ')}`,
        })
        .option('port', {
          type: 'number',
          requiresArg: true,
          describe: 'Port of the proxy, instead of proxy.listen.port; 0 for any free one',
        })
        .option('workers', {
          type: 'number',
          requiresArg: true,
          describe: 'Processes that share the port, instead of proxy.workers',
        }) as Argv<ServeArgs>,
      ['serve --config foreshard.yaml', 'Everything; SIGHUP reads the file again, SIGUSR2 restarts gracefully'],
      ['serve --config foreshard.yaml --workers 4', 'The proxy on four cores'],
      ['serve --config foreshard.yaml --only planner,migrator', 'For proxies that run elsewhere'],
    ),
  handler: async (args) => {
    const parts = parseParts(args.only);
    wholeNumber('--port', args.port, 0, 65_535);
    wholeNumber('--workers', args.workers, 1, MAX_WORKERS);
    await (parts.includes('proxy') ? serveClients(args, parts) : serveOthers(args, parts));
  },
};

/** With the proxy: in processes of their own, behind this one. */
async function serveClients(args: ServeArgs, parts: readonly Part[]): Promise<void> {
  const trap = trapSignals();
  const { Parent } = await import('../processes/parent.js');
  const { config, catalog, verbose, port, workers } = args;
  const starting = Parent.start({
    settings: { config, catalog, verbose, port, workers },
    parts,
    inherited: inheritedSockets(process.env, process.pid),
  });
  process.on('SIGHUP', () => void starting.then((parent) => parent.reload()).catch(() => undefined));
  process.on('SIGUSR2', () => void starting.then((parent) => parent.restart()).catch(() => undefined));
  const parent = await starting;
  // The second signal, which means at once.
  process.on('exit', () => {
    if (trap.signal.aborted) parent.kill();
  });
  void aborted(trap.signal).then(() => parent.stop('now'));
  await parent.ended;
  trap.release();
  process.exitCode = trap.exitCode();
}

async function serveOthers(args: ServeArgs, parts: readonly Part[]): Promise<void> {
  const { readConfig } = await import('../read-config.js');
  const { createLogger } = await import('../logger.js');
  const config = readConfig(args);
  const logger = createLogger(args.verbose === true ? 'debug' : config.log.level);
  const trap = trapSignals();
  for (const signal of ['SIGHUP', 'SIGUSR2'] as const)
    process.on(signal, () => logger.warn(`${signal}: without the proxy, restart to apply changes`));
  // Only here: no other command needs all that it brings with it.
  const { startServices } = await import('../serve.js');
  const services = await startServices(config, { only: parts, logger });
  logger.info({ parts }, 'ready');
  try {
    await Promise.race([aborted(trap.signal), services.failed]);
  } finally {
    logger.info('stopping');
    await services.stop();
    trap.release();
    process.exitCode = trap.exitCode();
  }
}

function wholeNumber(option: string, value: number | undefined, least: number, most: number): void {
  if (value !== undefined && (!Number.isInteger(value) || value < least || value > most))
    throw new UsageError(`${option} must be a whole number from ${least} to ${most}`);
}

function parseParts(text: string | undefined): readonly Part[] {
  if (text === undefined) return PARTS;
  const parts = text.split(',').map((part) => part.trim());
  const unknown = parts.find((part) => !PARTS.includes(part as Part));
  if (unknown !== undefined) throw new UsageError(`"${unknown}" is not a part`, `Parts are ${PARTS.join(', ')}.`);
  return parts as Part[];
}
