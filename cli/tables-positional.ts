import type { Argv } from 'yargs';
import { UsageError } from '../topology/errors.js';

/**
 * The positional `<tables..>` of a command. Elsewhere the last of an argument that is given several times counts, which would leave of the
 * tables the last: here the others are refused.
 */
export function tablesPositional<T>(y: Argv<T>, describe: string): Argv<T & { tables: string[] }> {
  return y
    .parserConfiguration({ 'duplicate-arguments-array': true })
    .positional('tables', { type: 'string', array: true, demandOption: true, describe })
    .check((args) => {
      for (const [name, value] of Object.entries(args))
        if (name !== '_' && name !== 'tables' && Array.isArray(value))
          throw new UsageError(`--${name} is given ${value.length} times`, 'Give it once.');
      return true;
    }) as Argv<T & { tables: string[] }>;
}
