import type { CommandModule } from 'yargs';
import { mergeMembers, moveMembers, splitMembers } from '../../../migrator/changes/members.js';
import { UsageError } from '../../../topology/errors.js';
import { parseBound, parseKey, parsePositions } from '../../../topology/key-text.js';
import { intervalOf } from '../../../topology/successor.js';
import { type GlobalArgs, withHelp } from '../../options.js';
import { keyspaceNamed, type PlanChangeArgs, planChange, shardNamed } from '../../plan-change.js';
import { planOptions } from '../../plan-options.js';

const KEYSPACE = { type: 'string', demandOption: true, describe: 'Name of the keyspace' } as const;
const TO = { type: 'string', demandOption: true, requiresArg: true, describe: 'Shard that gets it' } as const;

interface MoveArgs extends PlanChangeArgs {
  readonly keyspace: string;
  readonly lo: string;
  readonly hi: string;
  readonly to: string;
}

export const moveCommand: CommandModule<GlobalArgs, MoveArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y)
        .positional('keyspace', KEYSPACE)
        .option('lo', { type: 'string', default: '-inf', requiresArg: true, describe: 'First key (or hash) of it' })
        .option('hi', { type: 'string', default: '+inf', requiresArg: true, describe: 'First key (or hash) behind it' })
        .option('to', TO),
      ['migrate plan move shop --lo 100 --hi 200 --to s2', 'Keys from 100 to 199'],
    ),
  handler: (args) =>
    planChange(args, (_catalog, topology) => {
      const keyspace = keyspaceNamed(topology, args.keyspace);
      const interval = { lo: parseEnd(args.lo, '-inf'), hi: parseEnd(args.hi, '+inf') };
      const { lo, hi, to } = args;
      return {
        kind: 'move',
        request: { keyspace: args.keyspace, lo, hi, to },
        members: moveMembers(keyspace, interval, shardNamed(topology, to)),
      };
      function parseEnd(text: string, end: '-inf' | '+inf') {
        const other = end === '-inf' ? '+inf' : '-inf';
        if (text === other) throw new UsageError('the interval is empty', `${other} is its other end.`);
        return parseBound(keyspace, text);
      }
    }),
};

interface SplitArgs extends PlanChangeArgs {
  readonly keyspace: string;
  readonly at: string;
  readonly to?: string | undefined;
}

export const splitCommand: CommandModule<GlobalArgs, SplitArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y)
        .positional('keyspace', KEYSPACE)
        .positional('at', {
          type: 'string',
          demandOption: true,
          describe: 'Keys (or hashes) at which it is cut, by semicolons: each is the first of a part',
        })
        .option('to', {
          type: 'string',
          requiresArg: true,
          describe: 'Shards of the parts, from the lowest keys up, by commas; ".": it stays. Default: all stay',
        }),
      ['migrate plan split shop "100;200"', 'Three ranges where there was one, on the same shard'],
      ['migrate plan split shop "100;200" --to .,s2,s3', 'The second and third part leave'],
    ),
  handler: (args) =>
    planChange(args, (_catalog, topology) => {
      const keyspace = keyspaceNamed(topology, args.keyspace);
      const at = parsePositions(keyspace, args.at);
      const owners = args.to?.split(',').map((name) => (name === '.' ? null : shardNamed(topology, name)));
      return {
        kind: 'split',
        request: { keyspace: args.keyspace, at: args.at, to: args.to ?? null },
        members: splitMembers(keyspace, at, owners ?? [...at.map(() => null), null]),
      };
    }),
};

interface MergeArgs extends PlanChangeArgs {
  readonly keyspace: string;
  readonly at: string;
  readonly to?: string | undefined;
}

export const mergeCommand: CommandModule<GlobalArgs, MergeArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y)
        .positional('keyspace', KEYSPACE)
        .positional('at', {
          type: 'string',
          demandOption: true,
          describe: 'The bound between them: the first key (or hash) of the one above',
        })
        .option('to', {
          type: 'string',
          requiresArg: true,
          describe: 'Which of their two shards keeps it. Default: that of the range below',
        }),
      ['migrate plan merge shop 100 --to s1', ''],
    ),
  handler: (args) =>
    planChange(args, (_catalog, topology) => {
      const keyspace = keyspaceNamed(topology, args.keyspace);
      const at = parseBound(keyspace, args.at);
      if (at === null) throw new UsageError(`${args.at} is no bound between two ranges`, 'Give a key.');
      return {
        kind: 'merge',
        request: { keyspace: args.keyspace, at: args.at, to: args.to ?? null },
        members: mergeMembers(keyspace, at, args.to === undefined ? null : shardNamed(topology, args.to)),
      };
    }),
};

interface IsolateArgs extends PlanChangeArgs {
  readonly keyspace: string;
  readonly key: string;
  readonly to: string;
}

export const isolateCommand: CommandModule<GlobalArgs, IsolateArgs> = {
  builder: (y) =>
    withHelp(
      planOptions(y)
        .positional('keyspace', KEYSPACE)
        .positional('key', { type: 'string', demandOption: true, describe: 'The key, its columns by commas' })
        .option('to', TO),
      ['migrate plan isolate shop 4711 --to s3', ''],
    ),
  handler: (args) =>
    planChange(args, (_catalog, topology) => {
      const keyspace = keyspaceNamed(topology, args.keyspace);
      const interval = intervalOf(keyspace, parseKey(keyspace, args.key));
      return {
        kind: 'isolate',
        request: { keyspace: args.keyspace, key: args.key, to: args.to },
        members: moveMembers(keyspace, interval, shardNamed(topology, args.to)),
        ...(keyspace.method === 'hash' ? { summary: ['Other keys with the same hash move with it.'] } : {}),
      };
    }),
};
