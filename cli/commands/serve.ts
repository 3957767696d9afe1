import type { CommandModule } from 'yargs';
import { UsageError } from '../../topology/errors.js';
import { type GlobalArgs, readConfig, withHelp } from '../command.js';
import type { Config } from '../config.js';
import { configEntries } from '../config-entries.js';
import { createLogger } from '../logger.js';
import { PARTS, type Part } from '../parts.js';
import { aborted, trapSignals } from '../signals.js';

interface ServeArgs extends GlobalArgs {
  readonly only?: string | undefined;
  readonly port?: number | undefined;
}

export const serveCommand: CommandModule<GlobalArgs, ServeArgs> = {
  command: 'serve',
  describe: 'Run proxy, planner and migrator for your own servers, until SIGTERM or SIGINT',
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
        }),
      ['serve --config foreshard.yaml', 'Everything in one process'],
      ['serve --config foreshard.yaml --only planner,migrator', 'For proxies that run elsewhere'],
    ),
  handler: async (args) => {
    const only = parseParts(args.only);
    const config = withPort(readConfig(args), args.port);
    const logger = createLogger(args.verbose === true ? 'debug' : config.log.level);
    const trap = trapSignals();
    // From the start, when there is nothing to reload yet: a SIGHUP must not end the process.
    let reload = (): void => undefined;
    process.on('SIGHUP', () => reload());
    // Only here: no other command needs the proxy and all it brings with it.
    const { startServices } = await import('../serve.js');
    const services = await startServices(config, { only, logger });
    reload = () => {
      try {
        const fresh = withPort(readConfig(args), args.port);
        logger.info(
          'SIGHUP: reading proxy.auth, serverPasswords, pool and limits, and the files of proxy.tls again; all else is read at start only',
        );
        void services.proxy?.reload({ ...fresh.proxy, config: configEntries(fresh) });
      } catch (error) {
        if (!(error instanceof UsageError)) throw error;
        logger.error({ err: error }, 'SIGHUP: the configuration stays as it was');
      }
    };
    logger.info(
      { parts: only, ...(services.proxy === undefined ? {} : { listen: services.proxy.addresses.join(', ') }) },
      'ready',
    );
    try {
      await Promise.race([aborted(trap.signal), services.failed]);
    } finally {
      logger.info('stopping');
      await services.stop();
      trap.release();
      process.exitCode = trap.exitCode();
    }
  },
};

function withPort(config: Config, port: number | undefined): Config {
  if (port === undefined) return config;
  if (!Number.isInteger(port) || port < 0 || port > 65_535)
    throw new UsageError('--port must be a whole number from 0 to 65535');
  return { ...config, proxy: { ...config.proxy, listen: { ...config.proxy.listen, port } } };
}

function parseParts(text: string | undefined): readonly Part[] {
  if (text === undefined) return PARTS;
  const parts = text.split(',').map((part) => part.trim());
  const unknown = parts.find((part) => !PARTS.includes(part as Part));
  if (unknown !== undefined) throw new UsageError(`"${unknown}" is not a part`, `Parts are ${PARTS.join(', ')}.`);
  return parts as Part[];
}
