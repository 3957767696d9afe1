import type { CommandModule } from 'yargs';
import { changeReplica, createMigration, requestPromotion } from '../../../migrator/migration-requests.js';
import { parseDuration } from '../../../topology/duration.js';
import { ForeshardError, UsageError } from '../../../topology/errors.js';
import { comparePositions } from '../../../topology/key.js';
import { positionFromJson } from '../../../topology/key-codec.js';
import type { MoveSpec, ReplicaTerms } from '../../../topology/migration.js';
import { type KeyspaceName, rangesIn, type ShardName, type Topology } from '../../../topology/topology.js';
import { actor, parseId, withCatalog } from '../../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';
import { ID, type IdArgs } from './id.js';

const STALENESS = {
  type: 'string',
  requiresArg: true,
  describe: 'What is older nobody reads there: 500ms, 2s, 1min',
} as const;
const PERCENT = {
  type: 'number',
  requiresArg: true,
  describe: 'So many of a hundred clients read there without having asked for it',
} as const;

interface ReplicaArgs extends JsonArgs {
  readonly keyspace: string;
  readonly shard: string;
  readonly lower?: string[] | undefined;
  readonly upper?: string[] | undefined;
  readonly 'max-staleness': string;
  readonly 'read-percent': number;
}

export const replicaCommand: CommandModule<GlobalArgs, ReplicaArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('keyspace', { type: 'string', demandOption: true, describe: 'Keyspace' })
        .positional('shard', { type: 'string', demandOption: true, describe: 'Shard that is to follow the owner' })
        .option('lower', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe: 'Lower bound, inclusive: one value per key column, or the hash; left out: from the beginning',
        })
        .option('upper', {
          type: 'string',
          array: true,
          requiresArg: true,
          describe: 'Upper bound, exclusive; left out: to the end',
        })
        .option('max-staleness', { ...STALENESS, demandOption: true })
        .option('read-percent', { ...PERCENT, default: 0 }),
      [
        'migrate replica tenant s2 --lower 100 --upper 200 --max-staleness 500ms',
        'For sessions that SET foreshard.max_staleness',
      ],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const replica: ReplicaTerms = {
        maxStalenessMs: stalenessOf(args['max-staleness']),
        readPercent: percentOf(args['read-percent']),
      };
      const topology = await catalog.loadTopology();
      const spec = specOf(topology, args);
      const keyspace = topology.keyspaces.get(spec.keyspace) as NonNullable<ReturnType<typeof topology.keyspaces.get>>;
      const id = await createMigration(catalog.pool, keyspace, spec, { actor: actor(), replica });
      if (args.json) printJson({ id, from: spec.from, to: spec.to, replica });
      else printLine(`Migration ${id} makes the replica. Follow it with "foreshard migrate watch ${id}".`);
    }),
};

function specOf(topology: Topology, args: ReplicaArgs): MoveSpec {
  const keyspace = topology.keyspaces.get(args.keyspace as KeyspaceName);
  if (keyspace === undefined)
    throw new ForeshardError('42704', `there is no keyspace "${args.keyspace}"`, {
      hint: 'See "foreshard keyspace list".',
    });
  if (!topology.shards.has(args.shard as ShardName))
    throw new ForeshardError('42704', `there is no shard "${args.shard}"`, { hint: 'See "foreshard shard list".' });
  const interval = {
    lo: positionFromJson(keyspace, args.lower ?? null),
    hi: positionFromJson(keyspace, args.upper ?? null),
  };
  const isEmpty = interval.lo !== null && interval.hi !== null && comparePositions(interval.lo, interval.hi) >= 0;
  const owners = new Set(isEmpty ? [] : rangesIn(keyspace, interval).map((range) => range.shard));
  const [from] = owners;
  if (from === undefined || owners.size > 1)
    throw new UsageError(
      from === undefined
        ? 'the interval is empty'
        : `the interval belongs to several shards: ${[...owners].join(', ')}`,
      'A replica is of a part of one range; see "foreshard topology show".',
    );
  return { kind: 'move', keyspace: keyspace.name, ...interval, from, to: args.shard as ShardName };
}

export const promoteCommand: CommandModule<GlobalArgs, IdArgs> = {
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)), [
      'migrate promote 1',
      'By a flip: nothing is lost, clients wait for some 10 ms',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      await requestPromotion(catalog.pool, id, actor());
      if (args.json) printJson({ id, requested: 'promote' });
      else printLine(`The replica of migration ${id} is promoted. Follow it with "foreshard migrate watch ${id}".`);
    }),
};

interface ReadsArgs extends IdArgs {
  readonly 'max-staleness'?: string | undefined;
  readonly 'read-percent'?: number | undefined;
}

export const readsCommand: CommandModule<GlobalArgs, ReadsArgs> = {
  builder: (y) =>
    withHelp(jsonOption(y.positional('id', ID)).option('max-staleness', STALENESS).option('read-percent', PERCENT), [
      'migrate reads 1 --read-percent 50',
      'Half of the clients, at once',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'migration');
      const { 'max-staleness': staleness, 'read-percent': percent } = args;
      if (staleness === undefined && percent === undefined)
        throw new UsageError('nothing to change', 'Give --max-staleness or --read-percent.');
      const terms = {
        ...(staleness === undefined ? {} : { maxStalenessMs: stalenessOf(staleness) }),
        ...(percent === undefined ? {} : { readPercent: percentOf(percent) }),
      };
      await changeReplica(catalog.pool, id, terms, actor());
      if (args.json) printJson({ id, ...terms });
      else printLine(`The replica of migration ${id} is read on these terms from now on.`);
    }),
};

function stalenessOf(text: string): number {
  const ms = parseDuration(text);
  if (ms === null || ms === 0)
    throw new UsageError(`"${text}" is not a length of time`, 'Give it as 500ms, 2s or 1min.');
  return ms;
}

function percentOf(percent: number): number {
  if (!Number.isInteger(percent) || percent < 0 || percent > 100)
    throw new UsageError(`${percent} is not a percentage`, 'Give a whole number from 0 to 100.');
  return percent;
}
