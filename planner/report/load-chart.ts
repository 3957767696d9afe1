import type { ShardOutlook } from '../proposal.js';
import { formatCount, formatMoment } from './format.js';
import { band, escapeHtml, linear, n, path, ticks } from './svg.js';

export interface LoadChartOptions {
  readonly width: number;
  readonly height: number;
  /** Seconds of history to show. */
  readonly historySeconds: number;
  /** Upper end of the axis; charts that are compared share one. */
  readonly yMax: number;
  /** The moment the change should have begun by, to mark. */
  readonly startBy?: number | null;
}

const DAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
const DAY_MS = 86_400_000;

/** How many times the capacity an axis reaches at most. */
const MAX_OF_CAPACITY = 2.5;

/** An axis on which the bursts of the past do not flatten everything else: what is higher is cut off. */
export function axisMax(outlooks: readonly ShardOutlook[], historySeconds: number): number {
  return Math.max(
    ...outlooks.flatMap((o) => {
      const from = (o.forecast.at[0] ?? 0) - historySeconds * 1000;
      const shown = o.history.values.filter((_, i) => (o.history.at[i] as number) >= from).sort((a, b) => a - b);
      const usual = shown[Math.floor(shown.length * 0.995)] ?? 0;
      const capacity = o.capacityMsPerSecond;
      const limit = MAX_OF_CAPACITY * capacity;
      return [1.25 * capacity, Math.min(1.05 * usual, limit), Math.min(1.05 * Math.max(...o.forecast.p95), limit)];
    }),
  );
}

/** History, forecast with its 90 % band, capacity and crossing of one shard, as an SVG element. */
export function loadChart(outlook: ShardOutlook, options: LoadChartOptions): string {
  const { width, height, yMax } = options;
  const margin = { top: 18, right: 14, bottom: 30, left: 52 };
  const { forecast, history, capacityMsPerSecond: capacity } = outlook;
  const stepMs = forecast.stepSeconds * 1000;
  const now = forecast.at[0] as number;
  const start = Math.max(now - options.historySeconds * 1000, history.at[0] ?? now);
  const end = (forecast.at[forecast.at.length - 1] as number) + stepMs;
  const x = linear([start, end], [margin.left, width - margin.right]);
  const y = linear([0, yMax], [height - margin.bottom, margin.top]);
  const clipped = (v: number) => y(Math.min(v, yMax));

  const cut = history.values.some((v, i) => v > yMax && (history.at[i] as number) >= start);
  const shown = history.at.flatMap((at, i) => (at >= start ? [{ at, value: history.values[i] as number }] : []));
  const hx = shown.map((p) => x(p.at));
  const hy = shown.map((p) => clipped(p.value));
  const fx = forecast.at.map((at) => x(at));
  const last = shown[shown.length - 1];
  const join =
    last === undefined
      ? ''
      : `M${n(x(last.at))} ${n(clipped(last.value))}L${n(fx[0] as number)} ${n(clipped(forecast.p50[0] as number))}`;

  const parts: string[] = [];
  for (const tick of ticks(yMax, height > 200 ? 5 : 3))
    parts.push(
      `<line class="grid" x1="${margin.left}" x2="${width - margin.right}" y1="${n(y(tick))}" y2="${n(y(tick))}"/>`,
      `<text class="tick" x="${margin.left - 8}" y="${n(y(tick) + 4)}" text-anchor="end">${formatCount(tick)}</text>`,
    );
  // Midnights, thinned out until their labels have room.
  const days = Math.ceil((end - start) / DAY_MS);
  const every = Math.max(1, Math.ceil((days * 74) / (width - margin.left - margin.right)));
  for (let at = Math.ceil(start / DAY_MS) * DAY_MS, i = 0; at < end; at += DAY_MS, i++) {
    parts.push(
      `<line class="grid faint" x1="${n(x(at))}" x2="${n(x(at))}" y1="${margin.top}" y2="${height - margin.bottom}"/>`,
    );
    if (i % every === 0 && x(at) < width - margin.right - 20) {
      const date = new Date(at);
      const label = `${DAYS[date.getUTCDay()]} ${date.toISOString().slice(5, 10)}`;
      parts.push(
        `<text class="tick" x="${n(x(at))}" y="${height - margin.bottom + 18}" text-anchor="middle">${label}</text>`,
      );
    }
  }
  parts.push(
    `<rect class="future" x="${n(x(now))}" y="${margin.top}" width="${n(width - margin.right - x(now))}" height="${n(height - margin.bottom - margin.top)}"/>`,
    `<path class="band" d="${band(fx, forecast.p05.map(clipped), forecast.p95.map(clipped))}"/>`,
    `<path class="history" d="${path(hx, hy, 1.5 * (x(start + stepMs) - x(start)))}"/>`,
    `<path class="forecast" d="${join}${path(fx, forecast.p50.map(clipped)).replace(/^M/, join === '' ? 'M' : 'L')}"/>`,
    `<line class="capacity" x1="${margin.left}" x2="${width - margin.right}" y1="${n(y(capacity))}" y2="${n(y(capacity))}"/>`,
    `<text class="label capacity-label" x="${margin.left + 6}" y="${n(y(capacity) - 6)}">capacity ${formatCount(capacity)}</text>`,
    `<text class="label" x="${n(x(now) + 5)}" y="${margin.top - 6}">forecast</text>`,
    `<line class="now" x1="${n(x(now))}" x2="${n(x(now))}" y1="${margin.top - 12}" y2="${height - margin.bottom}"/>`,
  );
  const { startBy } = options;
  if (startBy !== undefined && startBy !== null && startBy >= start && startBy < end)
    parts.push(
      `<line class="start" x1="${n(x(startBy))}" x2="${n(x(startBy))}" y1="${margin.top}" y2="${height - margin.bottom}"><title>start by ${formatMoment(startBy)}</title></line>`,
    );
  if (outlook.crossesAt !== null)
    parts.push(
      `<circle class="crossing" cx="${n(x(outlook.crossesAt))}" cy="${n(y(capacity))}" r="6"><title>passes capacity at ${formatMoment(outlook.crossesAt)}</title></circle>`,
    );
  if (cut)
    parts.push(
      `<text class="label" x="${margin.left}" y="${margin.top - 6}">bursts above ${formatCount(yMax)} are cut off</text>`,
    );
  const name = `Load of shard ${outlook.shard}: history, forecast with 90 % band, and capacity`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeHtml(name)}">${parts.join('')}</svg>`;
}
