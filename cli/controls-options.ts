import type { Argv } from 'yargs';
import { type MigrationControls, parseWindow } from '../topology/migration-controls.js';
import { type ThrottleArgs, throttleOf, throttleOptions } from './throttle-options.js';

/** Of commands that make or approve migrations. */
export interface ControlsArgs extends ThrottleArgs {
  readonly auto: boolean;
  readonly 'flip-window'?: string | undefined;
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
    });
}

/** @throws UsageError */
export function controlsOf(args: ControlsArgs): Partial<MigrationControls> {
  const window = args['flip-window'];
  return {
    auto: args.auto,
    throttle: throttleOf(args),
    ...(window === undefined ? {} : { flipWindow: parseWindow(window) }),
  };
}
