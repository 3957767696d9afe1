import { hostname, userInfo } from 'node:os';
import { Catalog } from '../topology/catalog/catalog.js';
import { UsageError } from '../topology/errors.js';
import type { Config } from './config.js';
import { configSource } from './config-source.js';
import type { GlobalArgs } from './options.js';
import { applyShardSettings } from './shard-settings.js';

/**
 * Runs `work` with the catalog that the options name, and closes it afterwards. The configuration is read when there is a file of it, and else only if
 * `work` asks for it: its defaults say nothing of the catalog, or of shards.
 */
export async function withCatalog<T>(
  args: GlobalArgs,
  work: (catalog: Catalog, config: () => Promise<Config>) => Promise<T>,
): Promise<T> {
  const source = configSource(args);
  let reading: Promise<Config> | undefined;
  const config = () => {
    // Only here: what reads and checks the file takes longer to load than most commands run.
    reading ??= import('./read-config.js').then(({ readConfig }) => readConfig(args));
    return reading;
  };
  const catalog = source.file === undefined ? await Catalog.connect(source.url) : await openCatalog(await config());
  try {
    return await work(catalog, config);
  } finally {
    await catalog.close();
  }
}

/**
 * A connected catalog whose shards are completed by the configuration: passwords, default capacity.
 * @param current the configuration at any later time, for those in which it changes
 */
export async function openCatalog(config: Config, current: () => Config = () => config): Promise<Catalog> {
  return applyShardSettings(await Catalog.connect(config.catalogUrl), () => ({
    passwords: current().shardPasswords,
    capacityMsPerSecond: current().planner.capacityMsPerSecond,
  }));
}

/** Who is at the command line, for the audit trail. */
export function actor(env: NodeJS.ProcessEnv = process.env): string {
  // A container may run under a number that has no name.
  const user = env.USER ?? env.LOGNAME ?? nameOfUser();
  return `${user}@${hostname()}`;
}

function nameOfUser(): string {
  try {
    return userInfo().username;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SYSTEM_ERROR') throw error;
    return `uid ${process.getuid?.() ?? '?'}`;
  }
}

/** A positive number that names a plan or a migration. */
export function parseId(text: string, what: string): bigint {
  if (!/^[1-9]\d{0,17}$/.test(text))
    throw new UsageError(
      `"${text}" is not the number of a ${what}`,
      `See "foreshard ${what === 'plan' ? 'plan' : 'migrate'} list".`,
    );
  return BigInt(text);
}
