import { type ListedCommand, listed } from './listed-command.js';
import { CHILD_COMMAND } from './processes/messages.js';

/** In the order of the help. */
export const COMMANDS: readonly ListedCommand[] = [
  listed(
    'demo',
    'See one hot database become two shards, online: everything on this machine, nothing to set up',
    async () => (await import('./commands/demo.js')).demoCommand,
  ),
  listed(
    'up',
    'Run a whole cluster on this machine for development, PostgreSQL included, until SIGTERM or SIGINT',
    async () => (await import('./commands/up.js')).upCommand,
  ),
  listed(
    'serve',
    'Run proxy, planner and migrator for your own servers, until SIGTERM or SIGINT',
    async () => (await import('./commands/serve.js')).serveCommand,
  ),
  listed(CHILD_COMMAND, false, async () => (await import('./commands/serve-process.js')).serveProcessCommand),
  listed(
    'init',
    'Create the catalog, or bring an older one up to date',
    async () => (await import('./commands/init.js')).initCommand,
  ),
  listed('shard', 'Shards: add, list, remove', async () => (await import('./commands/shard.js')).shardCommand),
  listed('keyspace', 'Keyspaces: create, list', async () => (await import('./commands/keyspace.js')).keyspaceCommand),
  listed('table', 'Tables: add, list', async () => (await import('./commands/table.js')).tableCommand),
  listed(
    'user',
    'Users of the proxy whose passwords are in the catalog: add, list, remove',
    async () => (await import('./commands/user.js')).userCommand,
  ),
  listed(
    'topology',
    'Shards, keyspaces, tables and ranges',
    async () => (await import('./commands/topology.js')).topologyCommand,
  ),
  listed(
    'check',
    'Look at everything on the shards that a move will need, each with its remedy: exit code 1 when something blocks',
    async () => (await import('./commands/check.js')).checkCommand,
  ),
  listed(
    'explain <sql>',
    'Say how the proxy would route a statement: template, key, route, and why; runs nothing',
    async () => (await import('./commands/explain.js')).explainCommand,
  ),
  listed(
    'plan',
    'Forecast, and say what to change and at what cost; changes nothing. Or: list, show, approve, reject',
    async () => (await import('./commands/plan.js')).planCommand,
  ),
  listed('migrate', 'Migrations: list, show, watch, abort, accept', async (args) =>
    (await import('./commands/migrate.js')).migrateCommand(args),
  ),
];
