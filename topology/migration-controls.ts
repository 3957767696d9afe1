import { z } from 'zod';
import { ForeshardError, UsageError } from './errors.js';

/** A time of every day; one that ends before it begins goes past midnight. */
export interface DailyWindow {
  /** `HH:MM` */
  readonly from: string;
  /** `HH:MM`; the window is over when it comes. */
  readonly to: string;
  /** Name in the IANA time zone database. */
  readonly timeZone: string;
}

/** What a migration may do to the servers. null: no limit. */
export interface ThrottleLimits {
  /** Bytes a second that are copied, or looked through when rows are removed. */
  readonly maxRate: number | null;
  /** It slows down while a physical standby of either shard is further behind, ms. */
  readonly maxLagMs: number | null;
  /** It slows down while a small write takes longer at either shard, ms. */
  readonly maxLatencyMs: number | null;
}

/** How a migration is to be carried out. Stored with it, and may change while it runs. */
export interface MigrationControls {
  /** Goes the whole way by itself; otherwise it waits, copied and compared, for `flipRequested` or its window. */
  readonly auto: boolean;
  /** It flips by itself, but only in this time of the day; null: at any. */
  readonly flipWindow: DailyWindow | null;
  /** Somebody wants it to flip as soon as it can, whatever the window. */
  readonly flipRequested: boolean;
  /** A comparison of both sides that somebody has asked for last; a UUID, for finding its answer. */
  readonly comparison: string | null;
  /** The same of a repair of the rows that differ. */
  readonly repair: string | null;
  /**
   * Transactions that are open on the interval are ended (40001) when they have been waited for so long, ms: before new statements are held, and as
   * long again while they are. null: never; the flip backs off.
   */
  readonly endTransactionsAfterMs: number | null;
  /** Limits that are other than the migrator's own. */
  readonly throttle: Partial<ThrottleLimits>;
}

const time = z.string().regex(/^([01]\d|2[0-3]):[0-5]\d$/);

const limit = z.number().positive().nullable();

const schema = z.object({
  auto: z.boolean().default(true),
  flipWindow: z
    .object({ from: time, to: time, timeZone: z.string().refine(isTimeZone) })
    .nullable()
    .default(null),
  flipRequested: z.boolean().default(false),
  comparison: z.uuid().nullable().default(null),
  repair: z.uuid().nullable().default(null),
  endTransactionsAfterMs: z.number().nonnegative().nullable().default(null),
  throttle: z
    .object({ maxRate: limit, maxLagMs: limit, maxLatencyMs: limit })
    .partial()
    .default({})
    .transform((given) => given as Partial<ThrottleLimits>),
});

/** What is not said otherwise. */
export const DEFAULT_CONTROLS: MigrationControls = schema.parse({});

/**
 * Controls as the catalog keeps them; what is missing is as by default, what is unknown comes from a newer program.
 * @throws ForeshardError XX001 when they are not what anybody of us has written
 */
export function parseControls(stored: unknown): MigrationControls {
  const parsed = schema.safeParse(stored);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ForeshardError(
    'XX001',
    `the controls of a migration are damaged: ${issue?.path.join('.')}: ${issue?.message}`,
    {
      hint: 'Correct the column controls in foreshard.migration.',
    },
  );
}

/**
 * Reads `02:00-04:00`, or `22:30-01:00 Europe/Vienna`; UTC when no zone is named.
 * @throws UsageError
 */
export function parseWindow(text: string): DailyWindow {
  const match = /^(\d\d:\d\d)\s*-\s*(\d\d:\d\d)(?:\s+(\S+))?$/.exec(text.trim());
  const [, from, to, timeZone = 'UTC'] = match ?? [];
  if (from === undefined || to === undefined || !time.safeParse(from).success || !time.safeParse(to).success)
    throw new UsageError(
      `"${text}" is not a time of the day`,
      'Give it as "02:00-04:00", or with a time zone as "02:00-04:00 Europe/Vienna".',
    );
  if (from === to) throw new UsageError(`"${text}" is never open`, 'Let it end at another time than it begins.');
  if (!isTimeZone(timeZone))
    throw new UsageError(
      `there is no time zone "${timeZone}"`,
      'Use a name such as UTC, Europe/Vienna or America/New_York.',
    );
  return { from, to, timeZone };
}

/** `02:00-04:00 UTC` */
export function windowText(window: DailyWindow): string {
  return `${window.from}-${window.to} ${window.timeZone}`;
}

/** Whether a window is open at a moment. */
export function isOpen(window: DailyWindow, now: Date): boolean {
  const clock = new Intl.DateTimeFormat('en-GB', {
    timeZone: window.timeZone,
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
  }).format(now);
  const { from, to } = window;
  return from < to ? clock >= from && clock < to : clock >= from || clock < to;
}

/** Whether a migration that is ready is to flip now; otherwise what it waits for. */
export function flipHeldBackBy(controls: MigrationControls, now: Date): string | null {
  const { auto, flipWindow, flipRequested } = controls;
  if (flipRequested) return null;
  if (flipWindow !== null) return isOpen(flipWindow, now) ? null : `its flip window, ${windowText(flipWindow)}`;
  return auto ? null : 'somebody to ask for its flip';
}

function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en', { timeZone: name });
    return true;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return false;
  }
}
