import type { CommandModule } from 'yargs';
import { Registry } from '../../topology/catalog/registry.js';
import { UsageError } from '../../topology/errors.js';
import { parseTableName } from '../../topology/table-name.js';
import { tableId } from '../../topology/topology.js';
import { parseColumns } from '../columns.js';
import { actor, withCatalog } from '../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine, warn } from '../output.js';

interface AddArgs extends JsonArgs {
  readonly table: string;
  readonly keyspace?: string | undefined;
  readonly key?: string | undefined;
  readonly reference: boolean;
}

const addCommand: CommandModule<GlobalArgs, AddArgs> = {
  command: 'add <table>',
  describe: 'Put a table into a keyspace, or make it a reference table',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('table', { type: 'string', demandOption: true, describe: 'Name as in SQL: orders, sales.orders' })
        .option('keyspace', { type: 'string', requiresArg: true, describe: 'Keyspace of its key' })
        .option('key', {
          type: 'string',
          requiresArg: true,
          describe: 'Key columns, in the order of the keyspace, by commas',
        })
        .option('reference', { type: 'boolean', default: false, describe: 'A small table that every shard has whole' }),
      ['table add orders --keyspace shop --key tenant_id', ''],
      ['table add countries --reference', ''],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const table = parseTableName(args.table);
      const registry = new Registry(catalog, actor());
      if (args.reference) {
        if (args.keyspace !== undefined || args.key !== undefined)
          throw new UsageError(
            'a reference table has no keyspace and no key',
            'Give --reference, or --keyspace and --key.',
          );
        const { warnings } = await registry.addReferenceTable(table);
        for (const text of warnings) warn(text);
        if (args.json) printJson({ table: tableId(table), reference: true, warnings });
        else printLine(`Table "${tableId(table)}" is a reference table.`);
        return;
      }
      const { keyspace, key } = args;
      if (keyspace === undefined || key === undefined)
        throw new UsageError('a sharded table needs --keyspace and --key', 'Or give --reference.');
      const keyColumns = parseColumns(key);
      const { warnings } = await registry.addTable({ table, keyspace, keyColumns });
      for (const text of warnings) warn(text);
      if (args.json) printJson({ table: tableId(table), reference: false, keyspace, keyColumns, warnings });
      else printLine(`Table "${tableId(table)}" is in keyspace "${keyspace}", by ${keyColumns.join(', ')}.`);
    }),
};

const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'list',
  describe: 'List sharded and reference tables',
  builder: (y) => withHelp(jsonOption(y), ['table list', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const { sharded, reference } = await new Registry(catalog, actor()).listTables();
      const tables = [
        ...sharded.map((t) => ({
          table: tableId(t),
          keyspace: t.keyspace,
          keyColumns: t.keyColumns,
          reference: false,
          ...(t.halfOf === undefined ? {} : { halfOf: tableId(t.halfOf) }),
        })),
        ...reference.map((t) => ({ table: tableId(t), keyspace: null, keyColumns: [], reference: true })),
      ];
      if (args.json) return printJson(tables);
      if (tables.length === 0) return printLine('No tables yet. Add one with "foreshard table add".');
      printLine(
        formatTable(
          ['table', 'keyspace', 'key'],
          tables.map((t) => [t.table, t.reference ? '(reference)' : (t.keyspace ?? ''), t.keyColumns.join(', ')]),
        ),
      );
    }),
};

export const tableCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) =>
    withHelp(y.command(addCommand).command(listCommand).demandCommand(1, 'a command is needed: add or list'), [
      'table add orders --keyspace shop --key tenant_id',
      '',
    ]),
  handler: () => undefined,
};
