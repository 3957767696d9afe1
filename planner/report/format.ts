/** Figures and moments as the reports print them. */

const SIZES = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];

/** Decimal units, three significant digits: 1.23 MB. */
export function formatBytes(bytes: number): string {
  let [value, unit] = [bytes, 0];
  while (value >= 999.5 && unit < SIZES.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : significant(value)} ${SIZES[unit]}`;
}

/** Three significant digits. */
function significant(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString('en-US') : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function formatCount(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** `850 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 1) return `${Math.max(0, Math.ceil(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  const pair = (big: number, bigUnit: string, small: number, smallUnit: string) =>
    small === 0 ? `${big} ${bigUnit}` : `${big} ${bigUnit} ${small} ${smallUnit}`;
  if (s < 3600) return pair(Math.floor(s / 60), 'min', s % 60, 's');
  const minutes = Math.round(s / 60);
  if (minutes < 24 * 60) return pair(Math.floor(minutes / 60), 'h', minutes % 60, 'min');
  const hours = Math.round(minutes / 60);
  return pair(Math.floor(hours / 24), 'd', hours % 24, 'h');
}

export function formatMs(value: number): string {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

export function formatPercent(share: number): string {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

/** The load's unit: milliseconds of busy backend per second. */
export function formatLoad(value: number): string {
  return `${value >= 100 ? formatCount(value) : value.toFixed(1)} ms/s`;
}

const DAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];

/** `Fri 2026-05-15 09:20 UTC`. */
export function formatMoment(at: number): string {
  const date = new Date(at);
  return `${DAYS[date.getUTCDay()]} ${date.toISOString().slice(0, 16).replace('T', ' ')} UTC`;
}

/** `in 3 h 20 min`, `2 min ago`, seen from `now`. */
export function formatDistance(at: number, now: number): string {
  const seconds = Math.abs(at - now) / 1000;
  if (seconds < 30) return 'now';
  const text = formatSeconds(Math.round(seconds / 60) * 60);
  return at > now ? `in ${text}` : `${text} ago`;
}

/** A position as a person writes it; nothing is the end of the keyspace. */
export function formatPosition(position: readonly string[] | null, end: '−∞' | '+∞'): string {
  if (position === null) return end;
  return position.length === 1 ? (position[0] as string) : `(${position.join(', ')})`;
}

export function formatInterval(lo: readonly string[] | null, hi: readonly string[] | null): string {
  return `[${formatPosition(lo, '−∞')}, ${formatPosition(hi, '+∞')})`;
}
