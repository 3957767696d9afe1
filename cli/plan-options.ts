import type { Argv } from 'yargs';
import { jsonOption } from './options.js';
import type { PlanChangeArgs } from './plan-change.js';

/** Options of every command that plans a change. */
export function planOptions<T>(y: Argv<T>): Argv<T & PlanChangeArgs> {
  return jsonOption(y)
    .option('concurrency', {
      type: 'number',
      default: 1,
      requiresArg: true,
      describe: 'Migrations at work at once, at most; those that share a shard never are',
    })
    .option('steps', { type: 'boolean', default: false, describe: 'Show every step and statement' })
    .option('save', {
      type: 'boolean',
      default: true,
      describe: 'Enter the change, so that it can be approved; --no-save leaves that out',
    });
}
