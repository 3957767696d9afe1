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

/** What is not said otherwise. */
export const DEFAULT_CONTROLS: MigrationControls = {
  auto: true,
  flipWindow: null,
  flipRequested: false,
  comparison: null,
  repair: null,
  endTransactionsAfterMs: null,
  throttle: {},
};

/** How what is stored becomes a value. `at` is where it is stored, for who has to correct it. */
type Reader<T> = (stored: unknown, at: string) => T;

// Not by a schema library: every command that shows a migration would wait for that to load.
const READERS: { readonly [K in keyof MigrationControls]: Reader<MigrationControls[K]> } = {
  auto: readBoolean,
  flipWindow: orNull((stored, at) => {
    const { from, to, timeZone } = readObject(stored, at);
    return {
      from: readText(from, `${at}.from`, isTime, 'a time of the day'),
      to: readText(to, `${at}.to`, isTime, 'a time of the day'),
      timeZone: readText(timeZone, `${at}.timeZone`, isTimeZone, 'a time zone'),
    };
  }),
  flipRequested: readBoolean,
  comparison: orNull((stored, at) => readText(stored, at, isUuid, 'a UUID')),
  repair: orNull((stored, at) => readText(stored, at, isUuid, 'a UUID')),
  endTransactionsAfterMs: orNull((stored, at) => readNumber(stored, at, (value) => value >= 0)),
  throttle: (stored, at) => {
    const given = readObject(stored, at);
    const limits: { -readonly [K in keyof ThrottleLimits]?: number | null } = {};
    for (const key of ['maxRate', 'maxLagMs', 'maxLatencyMs'] as const)
      if (given[key] !== undefined)
        limits[key] = orNull((value, of) => readNumber(value, of, (limit) => limit > 0))(given[key], `${at}.${key}`);
    return limits;
  },
};

/**
 * Controls as the catalog keeps them; what is missing is as by default, what is unknown comes from a newer program.
 * @throws ForeshardError XX001 when they are not what anybody of us has written
 */
export function parseControls(stored: unknown): MigrationControls {
  const given = readObject(stored, 'controls');
  const read = <K extends keyof MigrationControls>(key: K): MigrationControls[K] =>
    given[key] === undefined ? DEFAULT_CONTROLS[key] : READERS[key](given[key], key);
  return {
    auto: read('auto'),
    flipWindow: read('flipWindow'),
    flipRequested: read('flipRequested'),
    comparison: read('comparison'),
    repair: read('repair'),
    endTransactionsAfterMs: read('endTransactionsAfterMs'),
    throttle: read('throttle'),
  };
}

function damaged(at: string, expected: string): ForeshardError {
  return new ForeshardError('XX001', `the controls of a migration are damaged: ${at}: expected ${expected}`, {
    hint: 'Correct the column controls in foreshard.migration.',
  });
}

function orNull<T>(read: Reader<T>): Reader<T | null> {
  return (stored, at) => (stored === null ? null : read(stored, at));
}

function readBoolean(stored: unknown, at: string): boolean {
  if (typeof stored !== 'boolean') throw damaged(at, 'true or false');
  return stored;
}

function readNumber(stored: unknown, at: string, isIn: (value: number) => boolean): number {
  if (typeof stored !== 'number' || !Number.isFinite(stored) || !isIn(stored)) throw damaged(at, 'a positive number');
  return stored;
}

function readText(stored: unknown, at: string, is: (text: string) => boolean, what: string): string {
  if (typeof stored !== 'string' || !is(stored)) throw damaged(at, what);
  return stored;
}

function readObject(stored: unknown, at: string): Readonly<Record<string, unknown>> {
  if (typeof stored !== 'object' || stored === null || Array.isArray(stored)) throw damaged(at, 'an object');
  return stored as Record<string, unknown>;
}

function isTime(text: string): boolean {
  return /^([01]\d|2[0-3]):[0-5]\d$/.test(text);
}

function isUuid(text: string): boolean {
  return /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text);
}

/**
 * Reads `02:00-04:00`, or `22:30-01:00 Europe/Vienna`; UTC when no zone is named.
 * @throws UsageError
 */
export function parseWindow(text: string): DailyWindow {
  const match = /^(\d\d:\d\d)\s*-\s*(\d\d:\d\d)(?:\s+(\S+))?$/.exec(text.trim());
  const [, from, to, timeZone = 'UTC'] = match ?? [];
  if (from === undefined || to === undefined || !isTime(from) || !isTime(to))
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
