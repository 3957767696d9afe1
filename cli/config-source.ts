import { existsSync } from 'node:fs';
import { UsageError } from '../topology/errors.js';
import type { GlobalArgs } from './options.js';
import { urlProblem } from './postgres-url.js';

const DEFAULT_FILE = 'foreshard.yaml';

/** A file, whose catalog is replaced by `url` when there is one; or the URL of a catalog alone. */
export type ConfigSource =
  | { readonly file: string; readonly url: string | undefined }
  | { readonly file: undefined; readonly url: string };

/**
 * Where the configuration is: `--catalog` before `--config` before FORESHARD_CATALOG before ./foreshard.yaml. With `--catalog` and
 * `--config`, the file gives everything but the catalog.
 * @throws UsageError
 */
export function configSource(args: Omit<GlobalArgs, 'verbose'>, env: NodeJS.ProcessEnv = process.env): ConfigSource {
  const url = args.catalog ?? (args.config === undefined ? env.FORESHARD_CATALOG : undefined);
  if (url !== undefined) {
    const problem = urlProblem(url);
    if (problem !== null)
      throw new UsageError(`${args.catalog === undefined ? 'FORESHARD_CATALOG' : '--catalog'} ${problem}`);
  }
  const file = args.config ?? (url === undefined && existsSync(DEFAULT_FILE) ? DEFAULT_FILE : undefined);
  if (file !== undefined) return { file, url };
  if (url !== undefined) return { file, url };
  throw new UsageError(
    'no catalog given',
    'Give --config foreshard.yaml or --catalog postgresql://user@host/foreshard, or set FORESHARD_CATALOG.',
  );
}
