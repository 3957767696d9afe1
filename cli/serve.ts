import type { Logger } from 'pino';
import type { ProxyServer } from '../proxy/proxy-server.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { openCatalog } from './command.js';
import type { Config } from './config.js';
import { configEntries } from './config-entries.js';
import { PARTS, type Part } from './parts.js';

export interface ServeOptions {
  /** Default: all parts. */
  readonly only?: readonly Part[];
  readonly logger: Logger;
}

export interface Services {
  /** When it is among the parts. */
  readonly proxy?: ProxyServer;
  /** Never resolves; rejects when a part that ran has ended by an error. */
  readonly failed: Promise<never>;
  /** Stops the proxy first (it waits for open transactions), then the others. May be called more than once. */
  stop(): Promise<void>;
}

/**
 * Starts the parts of Foreshard that a configuration asks for, each with catalog connections of its own. What has been
 * started is stopped again when one of them fails to start.
 * @throws CatalogUnavailableError, ForeshardError
 */
export async function startServices(config: Config, options: ServeOptions): Promise<Services> {
  const parts = options.only ?? PARTS;
  const { logger } = options;
  const stops: (() => Promise<void>)[] = [];
  let stopped: Promise<void> | null = null;
  const stop = (): Promise<void> => {
    stopped ??= (async () => {
      const problems: unknown[] = [];
      for (const one of stops.reverse())
        await one().catch((error: unknown) => {
          problems.push(error);
        });
      if (problems.length > 0) throw problems[0];
    })();
    return stopped;
  };

  let fail: (error: unknown) => void = () => undefined;
  const failed = new Promise<never>((_, reject) => {
    fail = reject;
  });
  // Whoever does not wait for it learns of the failure from the log.
  failed.catch(() => undefined);

  const open = async (): Promise<Catalog> => {
    const catalog = await openCatalog(config);
    stops.push(() => catalog.close());
    return catalog;
  };
  /** Runs a loop until `stop`, and reports when it ends before. */
  const background = (part: Part, run: (signal: AbortSignal) => Promise<void>): void => {
    const controller = new AbortController();
    const running = run(controller.signal).catch((error: unknown) => {
      logger.error({ err: error, part }, 'part has failed');
      fail(error);
    });
    stops.push(async () => {
      controller.abort();
      await running;
    });
  };

  try {
    // Imported where they are started: a process that runs some parts does not load the others.
    if (parts.includes('migrator')) {
      const { Migrator } = await import('../migrator/migrator.js');
      const migrator = new Migrator({
        catalog: await open(),
        logger: logger.child({ part: 'migrator' }),
        ...config.migrator,
      });
      background('migrator', (signal) => migrator.run(signal));
    }
    if (parts.includes('planner')) {
      const { createPlanner } = await import('./create-planner.js');
      const planner = createPlanner(await open(), config);
      const log = logger.child({ part: 'planner' });
      background('planner', (signal) =>
        planner.run(signal, {
          intervalSeconds: config.planner.intervalSeconds,
          onReport: ({ verdict, plan }) => log.info({ plan: plan?.id, status: plan?.status }, verdict),
          onError: (error) => log.error({ err: error }, 'planning has failed; the next round comes all the same'),
        }),
      );
    }
    let proxy: ProxyServer | undefined;
    // Last to start, first to stop: clients are let in when all else is there.
    if (parts.includes('proxy')) {
      const { ProxyServer } = await import('../proxy/proxy-server.js');
      const { listen, tls, name, auth, admin, serverPasswords, pool, limits, lease, telemetry } = config.proxy;
      proxy = await ProxyServer.start({
        catalog: await open(),
        name,
        listen,
        tls,
        auth,
        serverPasswords,
        pool,
        limits,
        lease,
        telemetry,
        admin,
        config: configEntries(config),
        logger: logger.child({ part: 'proxy' }),
      });
      const started = proxy;
      stops.push(() => started.close());
    }
    return { ...(proxy === undefined ? {} : { proxy }), failed, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
