import type { Logger } from 'pino';
import type { ProcessControl, ShutdownMode, Siblings } from '../proxy/admin/siblings.js';
import type { ProxyServer, ReloadableOptions } from '../proxy/proxy-server.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { openCatalog } from './command.js';
import type { Config } from './config.js';
import { configEntries } from './config-entries.js';
import { PARTS, type Part } from './parts.js';

export interface ServeOptions {
  /** Default: all parts. */
  readonly only?: readonly Part[];
  readonly logger: Logger;
  /** The proxy is one of several behind a process that listens for them; `Services.proxy.accept` takes their clients. */
  readonly behind?: {
    readonly slot: number;
    readonly siblings: Siblings;
    readonly control: ProcessControl;
    readonly ticketSecret: Buffer;
  };
}

export interface Services {
  /** When it is among the parts. */
  readonly proxy?: ProxyServer;
  /** Never resolves; rejects when a part that ran has ended by an error. */
  readonly failed: Promise<never>;
  /**
   * What can change while it runs changes to what `config` says.
   * @param level of the log
   * @throws what is wrong with the files that it names; then all stays as it was
   */
  reload(config: Config, level: string): Promise<void>;
  /**
   * Stops the proxy first, which lets its clients go as `mode` says, then the others. May be called again, with another mode.
   * @param patienceMs see `ProxyServer.close`
   */
  stop(mode?: ShutdownMode, patienceMs?: number): Promise<void>;
}

/**
 * Starts the parts of Foreshard that a configuration asks for, each with catalog connections of its own. What has been
 * started is stopped again when one of them fails to start.
 * @throws CatalogUnavailableError, ForeshardError
 */
export async function startServices(started: Config, options: ServeOptions): Promise<Services> {
  let config = started;
  const parts = options.only ?? PARTS;
  const { logger } = options;
  const logs: Logger[] = [logger];
  const logOf = (part: Part): Logger => {
    const log = logger.child({ part });
    logs.push(log);
    return log;
  };
  const stops: (() => Promise<void>)[] = [];
  let proxy: ProxyServer | undefined;
  let stopped: Promise<void> | null = null;
  const stop = (mode: ShutdownMode = 'now', patienceMs = 0): Promise<void> => {
    // What is wrong with it is seen below.
    if (stopped === null || mode === 'now') proxy?.close(mode, patienceMs).catch(() => undefined);
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
    const catalog = await openCatalog(config, () => config);
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
      const { judgeReach } = await import('./judge-reach.js');
      const { auditMs, ...options } = config.migrator;
      const [catalog, log] = [await open(), logOf('migrator')];
      const migrator = new Migrator({ catalog, logger: log, judgeReach, ...options });
      background('migrator', (signal) => migrator.run(signal));
      if (auditMs > 0) {
        const { auditStandingly } = await import('../migrator/audit/standing-audit.js');
        background('migrator', (signal) => auditStandingly({ catalog, logger: log, everyMs: auditMs }, signal));
      }
    }
    if (parts.includes('planner')) {
      const { createPlanner } = await import('./create-planner.js');
      const planner = createPlanner(await open(), config);
      const log = logOf('planner');
      background('planner', (signal) =>
        planner.run(signal, {
          intervalSeconds: config.planner.intervalSeconds,
          onReport: ({ verdict, plan }) => log.info({ plan: plan?.id, status: plan?.status }, verdict),
          onError: (error) => log.error({ err: error }, 'planning has failed; the next round comes all the same'),
        }),
      );
    }
    // Last to start, first to stop: clients are let in when all else is there.
    if (parts.includes('proxy')) {
      const { ProxyServer } = await import('../proxy/proxy-server.js');
      const { listen, tls, name, lease, telemetry } = config.proxy;
      proxy = await ProxyServer.start({
        ...reloadable(config),
        ...(options.behind === undefined ? {} : { ...options.behind, handedOver: true }),
        catalog: await open(),
        name,
        listen,
        tls,
        lease,
        telemetry,
        logger: logOf('proxy'),
      });
      const running = proxy;
      // In the mode that it was told before.
      stops.push(() => running.closed);
    }
    const reload = async (next: Config, level: string): Promise<void> => {
      const before = config;
      config = next;
      try {
        await proxy?.reload(reloadable(next));
      } catch (error) {
        config = before;
        throw error;
      }
      for (const log of logs) log.level = level;
    };
    return { ...(proxy === undefined ? {} : { proxy }), failed, reload, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** What a proxy takes over from a configuration while it runs. */
function reloadable(config: Config): ReloadableOptions {
  const { auth, admin, serverPasswords, pool, limits, transactions } = config.proxy;
  return { auth, admin, serverPasswords, pool, limits, transactions, config: configEntries(config) };
}
