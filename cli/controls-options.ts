import type { Argv } from 'yargs';
import { parseDuration } from '../topology/duration.js';
import { UsageError } from '../topology/errors.js';
import { type MigrationControls, parseWindow } from '../topology/migration-controls.js';
import { type ThrottleArgs, throttleOf, throttleOptions } from './throttle-options.js';

/** Nobody waits longer for a statement. */
const LONGEST_MS = 600_000;

/** Of commands that make or approve migrations. */
export interface ControlsArgs extends ThrottleArgs {
  readonly auto: boolean;
  readonly 'flip-window'?: string | undefined;
  readonly 'end-transactions'?: string | undefined;
}

/** Adds the options by which a migration is controlled. @param defaults whether it goes the whole way by itself when nobody says so */
export function controlsOptions<T>(y: Argv<T>, defaults: Pick<MigrationControls, 'auto'>): Argv<T & ControlsArgs> {
  return throttleOptions(y)
    .option('auto', {
      type: 'boolean',
      default: defaults.auto,
      describe: 'Go the whole way, flip included; otherwise wait, copied and compared, for "foreshard migrate flip"',
    })
    .option('flip-window', {
      type: 'string',
      requiresArg: true,
      describe: 'Flip by itself, but only in this time of the day: 02:00-04:00, with a time zone if it is not UTC',
    })
    .option('end-transactions', {
      type: 'string',
      requiresArg: true,
      describe:
        'End transactions open on the interval (40001) when the flip has waited for them so long: 2s. Otherwise it backs off, and tries again',
    });
}

/** @throws UsageError */
export function controlsOf(args: ControlsArgs): Partial<MigrationControls> {
  const window = args['flip-window'];
  const end = args['end-transactions'];
  return {
    auto: args.auto,
    throttle: throttleOf(args),
    ...(window === undefined ? {} : { flipWindow: parseWindow(window) }),
    ...(end === undefined ? {} : { endTransactionsAfterMs: endTransactionsOf(end) }),
  };
}

/** ms; null: off. @throws UsageError */
export function endTransactionsOf(text: string): number | null {
  if (text === 'off') return null;
  const ms = parseDuration(text);
  if (ms === null || ms > LONGEST_MS)
    throw new UsageError(
      `"${text}" is not a time of at most 10 min`,
      'Give it as 500ms, 2s or 1min, or off. New statements on the interval wait that long too.',
    );
  return ms;
}
