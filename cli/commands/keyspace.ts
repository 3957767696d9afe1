import type { CommandModule } from 'yargs';
import { Registry } from '../../topology/catalog/registry.js';
import { KEY_TYPES, type KeyType, type Method } from '../../topology/key.js';
import { tableId } from '../../topology/topology.js';
import { actor, withCatalog } from '../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine } from '../output.js';
import { joinCommand } from './keyspace/join.js';
import { separateCommand } from './keyspace/separate.js';

interface CreateArgs extends JsonArgs {
  readonly name: string;
  readonly key: string;
  readonly method: string;
}

const createCommand: CommandModule<GlobalArgs, CreateArgs> = {
  command: 'create <name>',
  describe: 'Create a keyspace: one range, all of it on the home shard',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('name', { type: 'string', demandOption: true, describe: 'Name of the keyspace' })
        .option('key', {
          type: 'string',
          demandOption: true,
          requiresArg: true,
          describe: `Type of the key, one per key column, by commas: ${KEY_TYPES.join(', ')}`,
        })
        .option('method', { choices: ['range', 'hash'] as const, default: 'range', describe: 'How keys are laid out' }),
      ['keyspace create shop --key int8', 'By ranges of a bigint'],
      ['keyspace create events --key uuid,date --method hash', 'By the hash of two columns'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const keyTypes = args.key.split(',').map((type) => KEY_TYPE_NAMES.get(type.trim()) ?? type.trim()) as KeyType[];
      const method = args.method as Method;
      await new Registry(catalog, actor()).createKeyspace({ name: args.name, method, keyTypes });
      if (args.json) printJson({ name: args.name, method, keyTypes });
      else
        printLine(
          `Keyspace "${args.name}" is created: ${method} (${keyTypes.join(', ')}), all of it on the home shard.`,
        );
    }),
};

/** SQL's names of the types whose catalog names are keys. */
const KEY_TYPE_NAMES: ReadonlyMap<string, KeyType> = new Map([
  ['smallint', 'int2'],
  ['int', 'int4'],
  ['integer', 'int4'],
  ['bigint', 'int8'],
  ['character varying', 'varchar'],
  ['timestamp with time zone', 'timestamptz'],
  ['timestamp without time zone', 'timestamp'],
]);

const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'list',
  describe: 'List the keyspaces',
  builder: (y) => withHelp(jsonOption(y), ['keyspace list', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const keyspaces = (await new Registry(catalog, actor()).listKeyspaces()).map((k) => ({
        name: k.name,
        method: k.method,
        keyTypes: k.keyTypes,
        tables: k.tables.map(tableId),
        ranges: k.ranges.length,
      }));
      if (args.json) return printJson(keyspaces);
      if (keyspaces.length === 0) return printLine('No keyspaces yet. Create one with "foreshard keyspace create".');
      printLine(
        formatTable(
          ['name', 'method', 'key', 'ranges', 'tables'],
          keyspaces.map((k) => [k.name, k.method, k.keyTypes.join(', '), String(k.ranges), k.tables.join(', ')]),
        ),
      );
    }),
};

export const keyspaceCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) =>
    withHelp(
      y
        .command(createCommand)
        .command(listCommand)
        .command(separateCommand)
        .command(joinCommand)
        .demandCommand(1, 'a command is needed: create, list, separate or join'),
      ['keyspace create shop --key int8', ''],
    ),
  handler: () => undefined,
};
