import { existsSync } from 'node:fs';
import { hostname, userInfo } from 'node:os';
import { Catalog } from '../topology/catalog/catalog.js';
import { UsageError } from '../topology/errors.js';
import { type Config, defaultConfig, loadConfig } from './config.js';
import { urlProblem } from './config-schema.js';
import type { GlobalArgs } from './options.js';
import { applyShardSettings } from './shard-settings.js';

export function warn(message: string): void {
  process.stderr.write(`foreshard: warning: ${message}\n`);
}

const DEFAULT_FILE = 'foreshard.yaml';

/**
 * The configuration: `--catalog` before `--config` before FORESHARD_CATALOG before ./foreshard.yaml. With `--catalog` and
 * `--config`, the file gives everything but the catalog.
 */
export function readConfig(
  args: Omit<GlobalArgs, 'verbose'>,
  env: NodeJS.ProcessEnv = process.env,
  onWarning: (text: string) => void = warn,
): Config {
  const url = args.catalog ?? (args.config === undefined ? env.FORESHARD_CATALOG : undefined);
  if (url !== undefined) {
    const problem = urlProblem(url);
    if (problem !== null)
      throw new UsageError(`${args.catalog === undefined ? 'FORESHARD_CATALOG' : '--catalog'} ${problem}`);
  }
  const file = args.config ?? (url === undefined && existsSync(DEFAULT_FILE) ? DEFAULT_FILE : undefined);
  if (file !== undefined) {
    const { config, warnings } = loadConfig(file, env);
    for (const text of warnings) onWarning(text);
    return url === undefined ? config : { ...config, catalogUrl: url };
  }
  if (url === undefined)
    throw new UsageError(
      'no catalog given',
      'Give --config foreshard.yaml or --catalog postgresql://user@host/foreshard, or set FORESHARD_CATALOG.',
    );
  return defaultConfig(url);
}

/** Runs `work` with the catalog that the options name, and closes it afterwards. */
export async function withCatalog<T>(
  args: GlobalArgs,
  work: (catalog: Catalog, config: Config) => Promise<T>,
): Promise<T> {
  const config = readConfig(args);
  const catalog = await openCatalog(config);
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
