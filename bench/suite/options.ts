import yargs from 'yargs';
import { UsageError } from '../../topology/errors.js';
import { PROTOCOLS, type Protocol } from '../results/results.js';

export const PARTS = ['select', 'tpcb', 'orm', 'memory', 'micro'] as const;
export type Part = (typeof PARTS)[number];

/** What to run, and how. */
export interface Options {
  readonly quick: boolean;
  readonly parts: readonly Part[];
  /** Names of peers besides Foreshard and the server itself; null: all that are found. */
  readonly peers: readonly string[] | null;
  readonly protocols: readonly Protocol[];
  readonly clients: readonly number[];
  readonly shards: readonly number[];
  readonly rounds: number;
  /** Of one measurement. */
  readonly seconds: number;
  /** pgbench's scale: 100,000 accounts each. */
  readonly scale: number;
  readonly poolSize: number;
  /** Processes of one more `foreshard serve` beside that with one; 1: there is none. */
  readonly workers: number;
  /** proxy.pool.lanes of Foreshard. */
  readonly lanes: 'auto' | 'single' | 'off';
  readonly idleClients: number;
  /** Make all load with our own generator, also where pgbench would do. */
  readonly generator: boolean;
  /** JSON files of runs that are put together instead of making one; null: a run is made. */
  readonly join: readonly string[] | null;
  /** Folder for the JSON and the picture. */
  readonly out: string;
}

const FULL = { clients: [1, 4, 16, 64, 256], rounds: 5, seconds: 2, idleClients: 5000 } as const;
const QUICK = { clients: [1, 16, 64], rounds: 3, seconds: 1, idleClients: 1000 } as const;

/** The options of `npm run bench`. @throws {UsageError} */
export async function parseOptions(args: readonly string[]): Promise<Options> {
  const given = await yargs([...args])
    .scriptName('npm run bench --')
    .usage(
      '$0 [options]\n\nForeshard, its peers and the server itself, interleaved in one run. See docs/benchmarks.md.',
    )
    .option('quick', { type: 'boolean', default: false, describe: 'Fewer cells and rounds: a few minutes' })
    .option('only', { type: 'string', describe: `Parts, by commas: ${PARTS.join(', ')}` })
    .option('peers', { type: 'string', describe: 'Other poolers, by commas; "none" for none. Default: all found' })
    .option('protocols', { type: 'string', describe: `By commas: ${PROTOCOLS.join(', ')}` })
    .option('clients', { type: 'string', describe: 'Numbers of clients, by commas. Default: 1,4,16,64,256' })
    .option('shards', { type: 'string', describe: 'Numbers of shards, by commas: 1, 3' })
    .option('rounds', { type: 'number', describe: 'Rounds. Default: 5' })
    .option('seconds', { type: 'number', describe: 'Seconds of each measurement. Default: 2' })
    .option('scale', { type: 'number', default: 10, describe: "pgbench's scale factor" })
    .option('pool', { type: 'number', default: 20, describe: 'Server connections of each pooler' })
    .option('workers', {
      type: 'number',
      default: 1,
      describe: 'More than 1: foreshard serve --workers N takes part, too',
    })
    .option('lanes', {
      choices: ['auto', 'single', 'off'] as const,
      default: 'auto' as const,
      describe: 'proxy.pool.lanes',
    })
    .option('idle', { type: 'number', describe: 'Idle clients of the memory part. Default: 5000' })
    .option('generator', { type: 'boolean', default: false, describe: 'Make all load without pgbench' })
    .option('join', {
      type: 'string',
      array: true,
      describe: 'Instead of a run: put together what these runs (JSON) found',
    })
    .option('out', { type: 'string', default: 'bench-results', describe: 'Folder for the JSON and the picture' })
    .strict()
    .version(false)
    .exitProcess(true)
    .fail((message, error) => {
      throw error ?? new UsageError(message, 'See npm run bench -- --help.');
    })
    .parseAsync();
  const standard = given.quick ? QUICK : FULL;
  const list = (text: string | undefined) => text?.split(',').map((item) => item.trim());
  return {
    quick: given.quick,
    parts: chosen('only', list(given.only), PARTS),
    peers: given.peers === 'none' ? [] : (list(given.peers) ?? null),
    protocols: chosen('protocols', list(given.protocols), PROTOCOLS),
    clients: list(given.clients)?.map((text) => positive('clients', Number(text))) ?? standard.clients,
    shards: chosen('shards', list(given.shards), ['1', '3']).map(Number),
    rounds: positive('rounds', given.rounds ?? standard.rounds),
    seconds: positive('seconds', given.seconds ?? standard.seconds),
    scale: positive('scale', given.scale),
    poolSize: positive('pool', given.pool),
    workers: positive('workers', given.workers),
    lanes: given.lanes,
    idleClients: positive('idle', given.idle ?? standard.idleClients),
    generator: given.generator,
    join: given.join ?? null,
    out: given.out,
  };
}

function chosen<T extends string>(option: string, given: readonly string[] | undefined, all: readonly T[]): T[] {
  const wrong = given?.find((name) => !all.includes(name as T));
  if (wrong !== undefined) throw new UsageError(`--${option}: "${wrong}" is none of ${all.join(', ')}`);
  return all.filter((name) => given === undefined || given.includes(name));
}

function positive(option: string, value: number): number {
  if (!Number.isInteger(value) || value < 1) throw new UsageError(`--${option}: give whole numbers from 1 on`);
  return value;
}
