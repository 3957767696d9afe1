import type { CommandModule } from 'yargs';
import { setThrottle } from '../../../migrator/migration-requests.js';
import { loadMigration } from '../../../migrator/migration-row.js';
import { formatBytes, formatMs, formatSeconds } from '../../../planner/report/format.js';
import { UsageError } from '../../../topology/errors.js';
import type { ThrottleLimits } from '../../../topology/migration-controls.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { limitText, type ThrottleArgs, throttleOf, throttleOptions } from '../../throttle-options.js';
import { ID, type IdArgs } from './id.js';

interface Args extends IdArgs, ThrottleArgs {
  readonly off: boolean;
  readonly reset: boolean;
}

const OFF: ThrottleLimits = { maxRate: null, maxLagMs: null, maxLatencyMs: null };

export const throttleCommand: CommandModule<GlobalArgs, Args> = {
  builder: (y) =>
    withHelp(
      throttleOptions(jsonOption(y.positional('id', ID)))
        .option('off', { type: 'boolean', default: false, describe: 'No limits' })
        .option('reset', { type: 'boolean', default: false, describe: "The limits of the migrator's configuration" }),
      ['migrate throttle 1 --max-rate 20MB', ''],
      ['migrate throttle 1 --off', 'As fast as it goes'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog, config) => {
      const id = parseId(args.id, 'migration');
      const given = throttleOf(args);
      const ways = [args.off, args.reset, Object.keys(given).length > 0].filter(Boolean).length;
      if (ways > 1) throw new UsageError('limits, --off and --reset exclude one another', 'Give one of them.');
      const { controls } = await loadMigration(catalog.pool, id);
      const own = args.off ? OFF : args.reset ? {} : { ...controls.throttle, ...given };
      if (ways === 1) await setThrottle(catalog.pool, id, own, actor());
      const limits: ThrottleLimits = { ...(await config()).migrator.throttle, ...own };
      if (args.json) return printJson({ id, throttle: limits });
      printLine(`rate     ${limitText(limits.maxRate, (n) => `${formatBytes(n)}/s`)}`);
      printLine(`lag      ${limitText(limits.maxLagMs, (ms) => formatSeconds(ms / 1000))}`);
      printLine(`latency  ${limitText(limits.maxLatencyMs, formatMs)}`);
    }),
};
