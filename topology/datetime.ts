/** Dates and timestamps as PostgreSQL counts them: days and microseconds since 2000-01-01, proleptic Gregorian. */

const DATE_MIN_INFINITY = -2147483648n;
const DATE_MAX_INFINITY = 2147483647n;
const TIMESTAMP_MIN_INFINITY = -(2n ** 63n);
const TIMESTAMP_MAX_INFINITY = 2n ** 63n - 1n;

/** 4714-11-24 BC, Julian day 0, to 5874897-12-31 (datatype/timestamp.h). */
const DATE_MIN = -2451545n;
const DATE_MAX = 2145031948n;
/** MIN_TIMESTAMP and END_TIMESTAMP (datatype/timestamp.h): 4714-11-24 BC to 294276-12-31. */
const TIMESTAMP_MIN = -211813488000000000n;
const TIMESTAMP_END = 9223371331200000000n;

const MICROS_PER_DAY = 86_400_000_000n;
const DAYS_1970_TO_2000 = 10957;

/** Year, month, day; hours, minutes, seconds, fraction; zone (Z, or sign, hours, minutes, seconds); era. */
const DATE = /^(\d{4,7})-(\d\d)-(\d\d)( BC)?$/;
const TIMESTAMP =
  /^(\d{4,6})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?(Z|([+-])(\d\d)(?:(\d\d)|:(\d\d)(?::(\d\d))?)?)?)?( BC)?$/;

/** Whether an int4 is a value of type date. */
export function isDate(days: bigint): boolean {
  return (days >= DATE_MIN && days <= DATE_MAX) || days === DATE_MIN_INFINITY || days === DATE_MAX_INFINITY;
}

/** Whether an int8 is a value of type timestamp or timestamptz. */
export function isTimestamp(micros: bigint): boolean {
  if (micros >= TIMESTAMP_MIN && micros < TIMESTAMP_END) return true;
  return micros === TIMESTAMP_MIN_INFINITY || micros === TIMESTAMP_MAX_INFINITY;
}

/** Reads `YYYY-MM-DD`, which means the same under every DateStyle, or infinity; null for every other form. */
export function decodeDate(text: string): bigint | null {
  const infinite = infinity(text);
  if (infinite !== 0) return infinite > 0 ? DATE_MAX_INFINITY : DATE_MIN_INFINITY;
  const m = DATE.exec(text);
  if (m === null) return null;
  const days = daysOf(Number(m[1]), Number(m[2]), Number(m[3]), m[4] !== undefined);
  if (days === null) return null;
  const value = BigInt(days);
  return isDate(value) ? value : null;
}

/**
 * Reads an ISO 8601 timestamp. A timestamptz must name its zone, for the session's is not known here; a timestamp drops
 * it, as PostgreSQL does.
 */
export function decodeTimestamp(type: 'timestamp' | 'timestamptz', text: string): bigint | null {
  const infinite = infinity(text);
  if (infinite !== 0) return infinite > 0 ? TIMESTAMP_MAX_INFINITY : TIMESTAMP_MIN_INFINITY;
  const m = TIMESTAMP.exec(text);
  if (m === null) return null;
  const days = daysOf(Number(m[1]), Number(m[2]), Number(m[3]), m[14] !== undefined);
  const [hour, minute, second] = [Number(m[4] ?? 0), Number(m[5] ?? 0), Number(m[6] ?? 0)];
  // 24:00 and second 60 are legal to PostgreSQL and rare: left undecided.
  if (days === null || hour > 23 || minute > 59 || second > 59) return null;
  const zone = zoneSeconds(m);
  if (zone === null || (type === 'timestamptz' && m[8] === undefined)) return null;
  const seconds = hour * 3600 + minute * 60 + second - (type === 'timestamptz' ? zone : 0);
  const value = BigInt(days) * MICROS_PER_DAY + BigInt(seconds * 1_000_000 + Number((m[7] ?? '').padEnd(6, '0')));
  return value >= TIMESTAMP_MIN && value < TIMESTAMP_END ? value : null;
}

export function encodeDate(days: bigint): string {
  if (days === DATE_MAX_INFINITY) return 'infinity';
  if (days === DATE_MIN_INFINITY) return '-infinity';
  const { text, era } = civil(Number(days));
  return text + era;
}

export function encodeTimestamp(type: 'timestamp' | 'timestamptz', micros: bigint): string {
  if (micros === TIMESTAMP_MAX_INFINITY) return 'infinity';
  if (micros === TIMESTAMP_MIN_INFINITY) return '-infinity';
  let days = micros / MICROS_PER_DAY;
  let rest = micros % MICROS_PER_DAY;
  if (rest < 0n) {
    days -= 1n;
    rest += MICROS_PER_DAY;
  }
  const { text, era } = civil(Number(days));
  const microsOfDay = Number(rest);
  const seconds = Math.floor(microsOfDay / 1_000_000);
  const fraction = microsOfDay % 1_000_000;
  const time = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map(two).join(':');
  const tail = fraction === 0 ? '' : `.${String(fraction).padStart(6, '0').replace(/0+$/, '')}`;
  return `${text} ${time}${tail}${type === 'timestamptz' ? '+00' : ''}${era}`;
}

function infinity(text: string): -1 | 0 | 1 {
  if (text.length === 8 && text.toLowerCase() === 'infinity') return 1;
  return text.length === 9 && text.toLowerCase() === '-infinity' ? -1 : 0;
}

function two(n: number): string {
  return String(n).padStart(2, '0');
}

function zoneSeconds(m: RegExpExecArray): number | null {
  if (m[9] === undefined) return 0;
  const [hours, minutes, seconds] = [Number(m[10]), Number(m[11] ?? m[12] ?? 0), Number(m[13] ?? 0)];
  // MAX_TZDISP_HOUR in datatype/timestamp.h
  if (hours > 15 || minutes > 59 || seconds > 59) return null;
  const total = hours * 3600 + minutes * 60 + seconds;
  return m[9] === '-' ? -total : total;
}

/** Days since 2000-01-01, or null when there is no such day. */
function daysOf(yearOfEra: number, month: number, day: number, bc: boolean): number | null {
  if (yearOfEra === 0 || month < 1 || month > 12 || day < 1) return null;
  const year = bc ? 1 - yearOfEra : yearOfEra;
  if (day > daysInMonth(year, month)) return null;
  // H. Hinnant, "chrono-compatible low-level date algorithms", days_from_civil: years start in March.
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfCycle = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  const dayOfCycle = yearOfCycle * 365 + Math.floor(yearOfCycle / 4) - Math.floor(yearOfCycle / 100) + dayOfYear;
  return era * 146097 + dayOfCycle - 719468 - DAYS_1970_TO_2000;
}

function daysInMonth(year: number, month: number): number {
  if (month === 2) return year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0) ? 29 : 28;
  return month === 4 || month === 6 || month === 9 || month === 11 ? 30 : 31;
}

/** civil_from_days of the same source. */
function civil(days: number): { text: string; era: '' | ' BC' } {
  const z = days + DAYS_1970_TO_2000 + 719468;
  const cycle = Math.floor(z / 146097);
  const dayOfCycle = z - cycle * 146097;
  const yearOfCycle = Math.floor(
    (dayOfCycle - Math.floor(dayOfCycle / 1460) + Math.floor(dayOfCycle / 36524) - Math.floor(dayOfCycle / 146096)) /
      365,
  );
  const dayOfYear = dayOfCycle - (365 * yearOfCycle + Math.floor(yearOfCycle / 4) - Math.floor(yearOfCycle / 100));
  const shifted = Math.floor((5 * dayOfYear + 2) / 153);
  const day = dayOfYear - Math.floor((153 * shifted + 2) / 5) + 1;
  const month = shifted < 10 ? shifted + 3 : shifted - 9;
  const year = yearOfCycle + cycle * 400 + (month <= 2 ? 1 : 0);
  const bc = year <= 0;
  const shown = bc ? 1 - year : year;
  return { text: `${String(shown).padStart(4, '0')}-${two(month)}-${two(day)}`, era: bc ? ' BC' : '' };
}
