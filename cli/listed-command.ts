import type { Argv, CommandModule } from 'yargs';
import { type GlobalArgs, withHelp } from './options.js';

// biome-ignore lint/suspicious/noExplicitAny: each command has arguments of its own, which yargs checks against its options
type Loaded = CommandModule<GlobalArgs, any>;

/** A command, of which nothing is loaded but what its line in the help says. */
export interface ListedCommand {
  /** As yargs wants it: `show <id>` */
  readonly command: string;
  /** false: not in the help. */
  readonly describe: string | false;
  /** @param args of the command line, for a command that has others below it */
  load(args: readonly string[]): Promise<Loaded>;
}

export function listed(command: string, describe: string | false, load: ListedCommand['load']): ListedCommand {
  return { command, describe, load };
}

/** What a shell asks us with for the words that may come next. */
const COMPLETES = '--get-yargs-completions';

/**
 * Commands for yargs, each of which is loaded when it is the one to be run or to be helped with: help of their parent is there at once, and no
 * command waits for what only others need.
 */
export function commandsOf(commands: readonly ListedCommand[], args: readonly string[]): Promise<Loaded[]> {
  return Promise.all(
    commands.map(async ({ command, describe, load }) => {
      const line = { command, describe };
      // A builder that yargs asks for completions has to answer at once: what is named is there already then.
      const isNamed = args.includes(command.split(' ', 1)[0] as string);
      if (isNamed && args.some((arg) => arg.startsWith(COMPLETES))) return { ...(await load(args)), ...line };
      return {
        ...line,
        builder: async (y: Argv<GlobalArgs>) => {
          const { builder } = await load(args);
          return typeof builder === 'function' ? builder(y) : y;
        },
        handler: async (given: Parameters<Loaded['handler']>[0]) => (await load(args)).handler(given),
      };
    }),
  );
}

/** A command that does nothing without one of those below it. @param examples for its help */
export async function groupOf(
  commands: readonly ListedCommand[],
  args: readonly string[],
  ...examples: Parameters<typeof withHelp>[1][]
): Promise<CommandModule<GlobalArgs, GlobalArgs>> {
  const loaded = await commandsOf(commands, args);
  const names = commands.map(({ command }) => command.split(' ', 1)[0]);
  const needed = `a command is needed: ${names.slice(0, -1).join(', ')} or ${names.at(-1)}`;
  return {
    builder: (y) => withHelp(y.command(loaded).demandCommand(1, needed), ...examples),
    handler: () => undefined,
  };
}
