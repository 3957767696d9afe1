import { type Config, defaultConfig, loadConfig } from './config.js';
import { configSource } from './config-source.js';
import type { GlobalArgs } from './options.js';
import { warn } from './output.js';

/** The configuration that the options name. @throws UsageError */
export function readConfig(
  args: Omit<GlobalArgs, 'verbose'>,
  env: NodeJS.ProcessEnv = process.env,
  onWarning: (text: string) => void = warn,
): Config {
  const { file, url } = configSource(args, env);
  if (file === undefined) return defaultConfig(url);
  const { config, warnings } = loadConfig(file, env);
  for (const text of warnings) onWarning(text);
  return url === undefined ? config : { ...config, catalogUrl: url };
}
