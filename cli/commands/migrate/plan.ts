import type { CommandModule } from 'yargs';
import { groupOf, type ListedCommand, listed } from '../../listed-command.js';
import type { GlobalArgs } from '../../options.js';

/** In the order of the help. */
const COMMANDS: readonly ListedCommand[] = [
  listed(
    'move <keyspace>',
    'Plan to move an interval to another shard, range by range',
    async () => (await import('./ranges.js')).moveCommand,
  ),
  listed(
    'split <keyspace> <at>',
    'Plan to cut a range into several, some of which may leave',
    async () => (await import('./ranges.js')).splitCommand,
  ),
  listed(
    'merge <keyspace> <at>',
    'Plan to make two neighbouring ranges one',
    async () => (await import('./ranges.js')).mergeCommand,
  ),
  listed(
    'isolate <keyspace> <key>',
    'Plan to give one key (or all keys that begin with some columns) a range of its own on another shard',
    async () => (await import('./ranges.js')).isolateCommand,
  ),
  listed(
    'drain <shard>',
    'Plan to move every range of a shard to others',
    async () => (await import('./drain.js')).drainCommand,
  ),
  listed(
    'rebalance',
    'Plan to even out what the shards carry: the load of the last week, or bytes where there is no history',
    async () => (await import('./rebalance.js')).rebalanceCommand,
  ),
  listed(
    'vertical <tables..>',
    'Plan to give tables, or columns of one, a keyspace of their own, and to move that to another shard',
    async () => (await import('./vertical.js')).verticalCommand,
  ),
  listed(
    'unite <table>',
    'Plan to bring columns that were split from a table back to where its rows are, and to end the split',
    async () => (await import('./unite.js')).uniteCommand,
  ),
];

export function planCommand(args: readonly string[]): Promise<CommandModule<GlobalArgs, GlobalArgs>> {
  return groupOf(COMMANDS, args, ['migrate plan split shop 100 --to .,s2', '']);
}
