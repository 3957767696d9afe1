import { text } from 'node:stream/consumers';
import type { CommandModule } from 'yargs';
import { makeVerifier, parseVerifier } from '../../proxy/wire/scram.js';
import { LoginUsers } from '../../topology/catalog/login-users.js';
import { UsageError } from '../../topology/errors.js';
import { actor, withCatalog } from '../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine } from '../output.js';

interface AddArgs extends JsonArgs {
  readonly name: string;
  readonly passwordEnv?: string | undefined;
  readonly verifier?: string | undefined;
  readonly validUntil?: string | undefined;
}

interface RemoveArgs extends JsonArgs {
  readonly name: string;
}

const addCommand: CommandModule<GlobalArgs, AddArgs> = {
  command: 'add <name>',
  describe: 'Add a user of the proxy, or give it a new password; the password comes on standard input',
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('name', { type: 'string', demandOption: true, describe: 'Name, as clients give it' })
        .option('password-env', {
          type: 'string',
          requiresArg: true,
          describe: 'Environment variable with the password, instead of standard input',
        })
        .option('verifier', {
          type: 'string',
          requiresArg: true,
          describe: 'SCRAM-SHA-256 verifier as in pg_authid.rolpassword, instead of a password',
        })
        .option('valid-until', { type: 'string', requiresArg: true, describe: 'No password is right after this time' })
        .conflicts('password-env', 'verifier'),
      ['user add app < password', ''],
      ['user add report --password-env REPORT_PASSWORD --valid-until 2030-01-01', ''],
    ),
  handler: async (args) => {
    const verifier = args.verifier ?? (await makeVerifier(await readPassword(args.passwordEnv)));
    if (parseVerifier(verifier) === null)
      throw new UsageError(
        'this is not a SCRAM-SHA-256 verifier',
        "Copy pg_authid.rolpassword: 'SCRAM-SHA-256$4096:…'.",
      );
    const validUntil = args.validUntil === undefined ? null : parseTime(args.validUntil);
    await withCatalog(args, async (catalog) => {
      const done = await new LoginUsers(catalog).set({ name: args.name, verifier, validUntil }, actor());
      if (args.json) printJson({ user: args.name, done, validUntil: validUntil?.toISOString() ?? null });
      else printLine(`User "${args.name}" is ${done}.`);
    });
  },
};

const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'list',
  describe: 'List the users in the catalog',
  builder: (y) => withHelp(jsonOption(y), ['user list', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      // Verifiers stay where they are: whoever has one can guess at its password.
      const users = (await new LoginUsers(catalog).list()).map(({ name, validUntil }) => ({
        user: name,
        validUntil: validUntil?.toISOString() ?? null,
      }));
      if (args.json) return printJson(users);
      if (users.length === 0) return printLine('No users in the catalog. Roles of the home shard can log in without.');
      printLine(
        formatTable(
          ['user', 'valid until'],
          users.map((u) => [u.user, u.validUntil ?? '']),
        ),
      );
    }),
};

const removeCommand: CommandModule<GlobalArgs, RemoveArgs> = {
  command: 'remove <name>',
  describe: 'Remove a user from the catalog; a role of the same name on the home shard counts then',
  builder: (y) =>
    withHelp(jsonOption(y).positional('name', { type: 'string', demandOption: true, describe: 'Name' }), [
      'user remove app',
      '',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      await new LoginUsers(catalog).remove(args.name, actor());
      if (args.json) printJson({ user: args.name, done: 'removed' });
      else printLine(`User "${args.name}" is removed.`);
    }),
};

export const userCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) =>
    withHelp(
      y
        .command(addCommand)
        .command(listCommand)
        .command(removeCommand)
        .demandCommand(1, 'a command is needed: add, list or remove'),
      ['user add app < password', ''],
    ),
  handler: () => undefined,
};

async function readPassword(variable: string | undefined): Promise<string> {
  if (variable !== undefined) {
    const value = process.env[variable];
    if (value === undefined || value === '') throw new UsageError(`the environment variable ${variable} is not set`);
    return value;
  }
  if (process.stdin.isTTY)
    throw new UsageError(
      'the password is read from standard input, and that is a terminal',
      'Redirect it: foreshard user add app < password, or give --password-env.',
    );
  // One line end belongs to the file, not to the password.
  const password = (await text(process.stdin)).replace(/\r?\n$/, '');
  if (password === '') throw new UsageError('the password is empty', 'Give it on standard input, or --password-env.');
  return password;
}

function parseTime(given: string): Date {
  const time = new Date(given);
  if (Number.isNaN(time.getTime()))
    throw new UsageError(`"${given}" is not a time`, 'Write it as 2030-01-31 or 2030-01-31T12:00:00Z.');
  return time;
}
