import type { CommandModule } from 'yargs';
import { rebalance, type WeighedMove } from '../../../migrator/changes/balance.js';
import { formatBytes } from '../../../planner/report/format.js';
import { type GlobalArgs, withHelp } from '../../options.js';
import { type PlanChangeArgs, planChange, shardNamed } from '../../plan-change.js';
import { planOptions } from '../../plan-options.js';
import { weigh } from '../../weigh.js';

interface RebalanceArgs extends PlanChangeArgs {
  readonly shards?: string | undefined;
}

export const rebalanceCommand: CommandModule<GlobalArgs, RebalanceArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y).option('shards', {
        type: 'string',
        requiresArg: true,
        describe: 'Only among these shards, by commas. Default: all',
      }),
      ['migrate plan rebalance', 'Nothing is planned when no shard is 10 % above the mean'],
    ),
  handler: (args) =>
    planChange(args, async (catalog, topology) => {
      const names = args.shards?.split(',').map((name) => shardNamed(topology, name)) ?? [...topology.shards.keys()];
      const { carriers, pieces, unit } = await weigh(catalog, topology);
      const moves = rebalance(
        pieces.filter((p) => names.includes(p.shard)),
        carriers.filter((c) => names.includes(c.name)),
      );
      return {
        kind: 'rebalance',
        request: { shards: args.shards ?? null },
        members: moves.map((m) => m.spec),
        summary: weighedText(moves, unit),
      };
    }),
};

/** What moves in all. */
export function weighedText(moves: readonly WeighedMove[], unit: 'load' | 'bytes'): string[] {
  if (moves.length === 0) return [];
  const weight = moves.reduce((sum, m) => sum + m.weight, 0);
  const text = unit === 'bytes' ? formatBytes(weight) : `${weight.toFixed(1)} ms/s of load (mean of the last week)`;
  return [`${text} in ${moves.length} move(s)`];
}
