import type { CommandModule } from 'yargs';
import { Registry } from '../../topology/catalog/registry.js';
import { checkUrl } from '../../topology/check-url.js';
import { redactUrl } from '../../topology/connection.js';
import { copyRoles } from '../../topology/roles.js';
import type { ShardName } from '../../topology/topology.js';
import { actor, withCatalog } from '../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine, warn } from '../output.js';
import { withPassword } from '../postgres-url.js';

interface AddArgs extends JsonArgs {
  readonly name: string;
  readonly url: string;
  readonly home?: boolean | undefined;
  readonly capacity?: number | undefined;
  readonly roles: boolean;
}

const addCommand: CommandModule<GlobalArgs, AddArgs> = {
  command: 'add <name> <url>',
  describe: 'Enter a database as a shard; the first one is home',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('name', { type: 'string', demandOption: true, describe: 'Name of the shard: s1' })
        .positional('url', {
          type: 'string',
          demandOption: true,
          describe: 'postgresql://user:password@host:5432/database; without a password when the configuration has it',
        })
        .option('home', { type: 'boolean', describe: 'It must be the home shard, so the first' })
        .option('capacity', {
          type: 'number',
          requiresArg: true,
          describe: 'Load it can carry: ms of busy backend per second',
        })
        .option('roles', {
          type: 'boolean',
          default: true,
          describe: 'Copy roles with their passwords from the home shard; --no-roles leaves that out',
        }),
      ['shard add s1 postgresql://foreshard@db1/shop', 'The existing database becomes the home shard'],
      ['shard add s2 postgresql://foreshard@db2/shop --capacity 4000', 'An empty one, to move to'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog, config) => {
      const { name, url } = args;
      checkUrl(url, `shard "${name}"`);
      const password = (await config()).shardPasswords.get(name);
      const connectUrl = withPassword(url, password);
      const topology = await catalog.loadTopology();
      const existing = topology.shards.get(name as ShardName);
      if (existing !== undefined && redactUrl(existing.url) === redactUrl(url)) {
        if (args.json) printJson({ name, added: false, home: existing.home, roles: [], warnings: [] });
        else printLine(`Shard "${name}" is there already.`);
        return;
      }
      let roles: readonly string[] = [];
      let warnings: readonly string[] = [];
      const home = topology.shards.get(topology.home);
      const prepare = async () => {
        if (args.roles && home !== undefined) ({ copied: roles, warnings } = await copyRoles(home.url, connectUrl));
      };
      await new Registry(catalog, actor()).addShard({
        name,
        url,
        prepare,
        ...(password === undefined ? {} : { password }),
        ...(args.home === undefined ? {} : { home: args.home }),
        ...(args.capacity === undefined ? {} : { capacity: args.capacity }),
      });
      for (const text of warnings) warn(text);
      if (args.json) printJson({ name, added: true, home: home === undefined, roles, warnings });
      else {
        printLine(`Shard "${name}" is added${home === undefined ? ' and is home' : ''}.`);
        if (roles.length > 0) printLine(`Roles copied from "${home?.name}": ${roles.join(', ')}.`);
      }
    }),
};

const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'list',
  describe: 'List the shards',
  builder: (y) => withHelp(jsonOption(y), ['shard list --json', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const shards = await new Registry(catalog, actor()).listShards();
      if (args.json) return printJson(shards);
      if (shards.length === 0) return printLine('No shards yet. Add the first with "foreshard shard add".');
      printLine(
        formatTable(
          ['name', 'home', 'ranges', 'reference tables', 'capacity ms/s', 'url'],
          shards.map((s) => [
            s.name,
            s.home ? 'yes' : '',
            String(s.ranges),
            String(s.referenceTables),
            s.capacityMsPerSecond?.toString() ?? '',
            s.url,
          ]),
        ),
      );
    }),
};

interface RemoveArgs extends JsonArgs {
  readonly name: string;
}

const removeCommand: CommandModule<GlobalArgs, RemoveArgs> = {
  command: 'remove <name>',
  describe: 'Forget a shard that holds nothing; the server itself is not touched',
  builder: (y) =>
    withHelp(jsonOption(y).positional('name', { type: 'string', demandOption: true, describe: 'Name of the shard' }), [
      'shard remove s3',
      '',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      await new Registry(catalog, actor()).removeShard(args.name);
      if (args.json) printJson({ name: args.name, removed: true });
      else printLine(`Shard "${args.name}" is removed.`);
    }),
};

export const shardCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) =>
    withHelp(
      y
        .command(addCommand)
        .command(listCommand)
        .command(removeCommand)
        .demandCommand(1, 'a command is needed: add, list or remove'),
      ['shard add s1 postgresql://foreshard@db1/shop', 'The existing database becomes the home shard'],
    ),
  handler: () => undefined,
};
