import type { Argv } from 'yargs';
import { UsageError } from '../topology/errors.js';
import type { ThrottleLimits } from '../topology/migration-controls.js';

/** Of commands that limit what a migration does to the servers. */
export interface ThrottleArgs {
  readonly 'max-rate'?: string | undefined;
  readonly 'max-lag'?: string | undefined;
  readonly 'max-latency'?: string | undefined;
}

const RATE_UNITS: Readonly<Record<string, number>> = { '': 1, k: 1e3, m: 1e6, g: 1e9 };
const TIME_UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, min: 60_000 };

export function throttleOptions<T>(y: Argv<T>): Argv<T & ThrottleArgs> {
  return y
    .option('max-rate', {
      type: 'string',
      requiresArg: true,
      describe:
        'Bytes a second that are copied, or looked through when rows are removed; twice as many are compared, and indexes are built by one process each: 20MB; off for no limit',
    })
    .option('max-lag', {
      type: 'string',
      requiresArg: true,
      describe: 'Slow down while a physical standby of either shard is further behind: 10s; off for no limit',
    })
    .option('max-latency', {
      type: 'string',
      requiresArg: true,
      describe: 'Slow down while a small write takes longer at either shard: 100ms; off for no limit',
    });
}

/** The limits that were given. @throws UsageError */
export function throttleOf(args: ThrottleArgs): Partial<ThrottleLimits> {
  const limits: { -readonly [K in keyof ThrottleLimits]?: ThrottleLimits[K] } = {};
  if (args['max-rate'] !== undefined) limits.maxRate = rateOf(args['max-rate']);
  if (args['max-lag'] !== undefined) limits.maxLagMs = timeOf('--max-lag', args['max-lag']);
  if (args['max-latency'] !== undefined) limits.maxLatencyMs = timeOf('--max-latency', args['max-latency']);
  return limits;
}

function rateOf(text: string): number | null {
  if (text === 'off') return null;
  const [, figure, unit] = /^(\d+(?:\.\d+)?)\s*([kmg]?)b?(?:\/s)?$/i.exec(text) ?? [];
  const rate = Number(figure) * (RATE_UNITS[(unit ?? '').toLowerCase()] ?? Number.NaN);
  if (!(rate >= 1000))
    throw new UsageError(
      `--max-rate "${text}" is not a rate of at least 1 kB/s`,
      'Give bytes a second as 500kB, 20MB or 1GB, or off. To stop a migration for a while: "foreshard migrate pause".',
    );
  return rate;
}

function timeOf(option: string, text: string): number | null {
  if (text === 'off') return null;
  const [, figure, unit] = /^(\d+(?:\.\d+)?)\s*(ms|s|min)$/.exec(text) ?? [];
  const ms = Number(figure) * (TIME_UNITS[unit ?? ''] ?? Number.NaN);
  if (!(ms > 0)) throw new UsageError(`${option} "${text}" is not a time`, 'Give it as 100ms, 10s or 2min, or off.');
  return ms;
}

/** `20 MB/s`, `no limit`. */
export function limitText(limit: number | null, format: (value: number) => string): string {
  return limit === null ? 'no limit' : format(limit);
}
