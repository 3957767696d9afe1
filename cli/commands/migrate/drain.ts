import type { CommandModule } from 'yargs';
import { drain } from '../../../migrator/changes/balance.js';
import { tablesWithoutKeyspace } from '../../../migrator/changes/home-tables.js';
import type { Finding } from '../../../migrator/preflight-finding.js';
import { UsageError } from '../../../topology/errors.js';
import type { Topology } from '../../../topology/topology.js';
import { type GlobalArgs, withHelp } from '../../options.js';
import { type PlanChangeArgs, planChange, shardNamed } from '../../plan-change.js';
import { planOptions } from '../../plan-options.js';
import { weigh } from '../../weigh.js';
import { weighedText } from './rebalance.js';

interface DrainArgs extends PlanChangeArgs {
  readonly shard: string;
  readonly to?: string | undefined;
}

export const drainCommand: CommandModule<GlobalArgs, DrainArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y)
        .positional('shard', { type: 'string', demandOption: true, describe: 'Shard that is to own nothing' })
        .option('to', {
          type: 'string',
          requiresArg: true,
          describe: 'Shards that may get ranges, by commas. Default: all others, the least utilised first',
        }),
      ['migrate plan drain s3', 'Before the shard is removed'],
    ),
  handler: (args) =>
    planChange(args, async (catalog, topology) => {
      const shard = shardNamed(topology, args.shard);
      const names = args.to?.split(',').map((name) => shardNamed(topology, name)) ?? [...topology.shards.keys()];
      const { carriers, pieces, unit } = await weigh(catalog, topology);
      const targets = carriers.filter((c) => c.name !== shard && names.includes(c.name));
      if (targets.length === 0)
        throw new UsageError('there is no other shard to get the ranges', 'Add one with "foreshard shard add".');
      const moves = drain(pieces, shard, targets);
      return {
        kind: 'drain',
        request: { shard: args.shard, to: args.to ?? null },
        members: moves.map((m) => m.spec),
        summary: weighedText(moves, unit),
        findings: await homeFindings(topology, args.shard),
      };
    }),
};

/** What a drain leaves on the home shard. */
async function homeFindings(topology: Topology, name: string): Promise<Finding[]> {
  const shard = topology.shards.get(shardNamed(topology, name));
  if (shard?.home !== true) return [];
  const tables = await tablesWithoutKeyspace(topology, shard);
  const list = tables.length === 0 ? '' : `: ${tables.slice(0, 10).join(', ')}${tables.length > 10 ? ', …' : ''}`;
  return [
    {
      severity: 'warning',
      text: `shard "${name}" is home: its ${tables.length} table(s) without a keyspace stay${list}`,
      remedy:
        'Move them with "foreshard migrate plan vertical", add them to a keyspace, or make them reference tables ("foreshard table add"). The home shard cannot be removed.',
    },
  ];
}
