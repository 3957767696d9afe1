import type { Argv } from 'yargs';
import { EXIT_CODES_HELP } from './failure.js';

/** Options that every command has. */
export interface GlobalArgs {
  readonly config?: string | undefined;
  readonly catalog?: string | undefined;
  readonly verbose?: boolean | undefined;
}

export interface JsonArgs extends GlobalArgs {
  readonly json: boolean;
}

/** Adds a command's examples and the exit codes to its help. */
export function withHelp<T>(y: Argv<T>, ...examples: readonly (readonly [command: string, what: string])[]): Argv<T> {
  return y.example(examples.map(([command, what]) => [`$0 ${command}`, what] as const)).epilogue(EXIT_CODES_HELP);
}

export function jsonOption<T>(y: Argv<T>): Argv<T & { json: boolean }> {
  return y.option('json', { type: 'boolean', default: false, describe: 'Print one JSON document on stdout' });
}
