import type { JsonArgs } from '../../options.js';

/** Of a command about one migration. */
export interface IdArgs extends JsonArgs {
  readonly id: string;
}

export const ID = { type: 'string', demandOption: true, describe: 'Number of the migration' } as const;
