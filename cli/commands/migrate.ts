import type { CommandModule } from 'yargs';
import { groupOf, type ListedCommand, listed } from '../listed-command.js';
import type { GlobalArgs } from '../options.js';

/** In the order of the help. */
const COMMANDS: readonly ListedCommand[] = [
  listed('plan', 'Plan a change of ranges: prints the dry run, and enters it to be approved', async (args) =>
    (await import('./migrate/plan.js')).planCommand(args),
  ),
  listed(
    'approve <id>',
    'Approve a change that was planned: it starts at once',
    async () => (await import('./migrate/approve.js')).approveCommand,
  ),
  listed(
    'start <id>',
    'Start a change that was approved with --later',
    async () => (await import('./migrate/approve.js')).startCommand,
  ),
  listed(
    'list',
    'List changes and migrations, newest first',
    async () => (await import('./migrate/list.js')).listCommand,
  ),
  listed(
    'show <id>',
    'Show a migration: progress, events, what is left to clean up; or a change and its migrations',
    async () => (await import('./migrate/show.js')).showCommand,
  ),
  listed(
    'watch <id>',
    'Follow a migration until it ends, or waits for a person: exit code 0 when it is done or has flipped and can be taken back, ' +
      '1 when aborted, rolled back or failed, 5 when it waits to be approved or for its flip',
    async () => (await import('./migrate/watch.js')).watchCommand,
  ),
  listed(
    'flip <id>',
    'Have a migration that waits for it flip now, or as soon as it is ready',
    async () => (await import('./migrate/flip.js')).flipCommand,
  ),
  listed(
    'verify <id>',
    'Compare all tables of a migration that waits to flip, or whose way back is open: exit code 0 when both sides are the same, 1 when rows differ',
    async () => (await import('./migrate/verify.js')).verifyCommand,
  ),
  listed(
    'throttle <id>',
    'Show or change what a migration may do to the servers, also while it runs',
    async () => (await import('./migrate/throttle.js')).throttleCommand,
  ),
  listed(
    'end-transactions <id> <after>',
    'Change what becomes of transactions that are open on the interval at the flip, also while it is tried',
    async () => (await import('./migrate/end-transactions.js')).endTransactionsCommand,
  ),
  listed(
    'abort <id>',
    'Ask for a migration to be undone, possible until it has flipped; or for all of a change that can be',
    async () => (await import('./migrate/abort.js')).abortCommand,
  ),
  listed('pause <id>', 'Have a migration go no further, and load neither server, until it is resumed', async () =>
    (await import('./migrate/pause.js')).pauseCommand(true),
  ),
  listed('resume <id>', 'Have a paused migration go on', async () =>
    (await import('./migrate/pause.js')).pauseCommand(false),
  ),
  listed(
    'rollback <id>',
    'Take a migration back after its flip, with all that was written since; possible while its way back is open',
    async () => (await import('./migrate/end.js')).rollbackCommand,
  ),
  listed(
    'finish <id>',
    'Give up the way back of a migration now, and remove the moved rows at the source',
    async () => (await import('./migrate/end.js')).finishCommand,
  ),
  listed(
    'accept <id>',
    'Let a migration go on that kept the rows at the source because the shards differed as of the flip',
    async () => (await import('./migrate/accept.js')).acceptCommand,
  ),
  listed(
    'audit',
    'Look for what migrations have left behind, and for rows that are where they do not belong',
    async () => (await import('./migrate/audit.js')).auditCommand,
  ),
  listed(
    'replica <keyspace> <shard>',
    'Keep an interval of a keyspace up to date on another shard, to be read there',
    async () => (await import('./migrate/replica.js')).replicaCommand,
  ),
  listed(
    'reads <id>',
    'Change how stale reads of a replica may be, and how many clients read there',
    async () => (await import('./migrate/replica.js')).readsCommand,
  ),
  listed(
    'promote <id>',
    'Have a replica become the owner of its interval',
    async () => (await import('./migrate/replica.js')).promoteCommand,
  ),
];

export function migrateCommand(args: readonly string[]): Promise<CommandModule<GlobalArgs, GlobalArgs>> {
  return groupOf(COMMANDS, args, ['migrate watch 1', 'Follow migration 1 until it ends']);
}
