import type { PlanReport, ProposalJson, SavedReport } from '../plan-report.js';
import type { ShardOutlook } from '../proposal.js';
import {
  formatBytes,
  formatCount,
  formatDistance,
  formatInterval,
  formatLoad,
  formatMoment,
  formatMs,
  formatPercent,
  formatPosition,
  formatSeconds,
} from './format.js';
import { axisMax } from './load-chart.js';

export interface TextOptions {
  /** ANSI colours; default false. */
  readonly color?: boolean;
  /** Columns of the terminal, of which up to 100 are used; default 100. */
  readonly width?: number;
}

const MAX_WIDTH = 100;
/** Below this the tables are too wide anyway. */
const MIN_WIDTH = 60;
const DAY = 86_400;

interface Ink {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  blue(text: string): string;
  green(text: string): string;
}

function ink(color: boolean): Ink {
  const sgr = (code: number) => (text: string) => (color && text !== '' ? `\u001b[${code}m${text}\u001b[0m` : text);
  return { bold: sgr(1), dim: sgr(2), red: sgr(31), blue: sgr(34), green: sgr(32) };
}

/** A report for a terminal. Control characters in names are shown as `?`. */
export function renderText(given: PlanReport | SavedReport, options: TextOptions = {}): string {
  const c = ink(options.color ?? false);
  const width = Math.max(MIN_WIDTH, Math.min(MAX_WIDTH, options.width ?? MAX_WIDTH));
  const report = withoutControls(given);
  const { proposal } = report;
  const plan = 'plan' in report ? report.plan : null;
  const lines: string[] = [];
  const section = (title: string) => lines.push('', c.bold(title));
  const id = plan === null ? '' : `plan ${plan.id} · `;
  lines.push(
    c.dim(`Foreshard · ${id}database ${report.database} · epoch ${report.epoch} · ${formatMoment(report.createdAt)}`),
    c.dim('─'.repeat(width)),
    ...wrap(report.verdict, width),
  );
  if (proposal !== null) {
    const source = proposal.before.find((o) => o.shard === proposal.spec.from) as ShardOutlook;
    if (proposal.blockers.length > 0) {
      section('Blocked');
      for (const blocker of proposal.blockers) lines.push(...wrap(`✗ ${blocker}`, width, '  ').map(c.red));
    }
    section(`Load of shard "${source.shard}" if nothing is done (ms/s)`);
    lines.push(...chart(source, width, c), ...wrap(proposal.ifNothingIsDone, width));
    section('Where it splits');
    lines.push(...segmentBars(proposal, width, c));
    section('What moves');
    lines.push(...moves(proposal, width));
    section('How long it takes');
    lines.push(...duration(proposal, report.createdAt, c));
    section('Before and after');
    lines.push(...beforeAfter(proposal));
    section('How good the forecast is');
    lines.push(...accuracy(source));
  } else {
    for (const outlook of report.outlooks) {
      section(`Load of shard "${outlook.shard}" (ms/s)`);
      lines.push(...chart(outlook, width, c), ...accuracy(outlook));
    }
  }
  if (report.notes.length > 0) {
    section('Notes');
    for (const note of report.notes) lines.push(...wrap(`· ${note}`, width, '  '));
  }
  if (plan !== null)
    lines.push(
      '',
      ...wrap(
        `Approve with foreshard plan approve ${plan.id}, until ${formatMoment(plan.expiresAt)} and while the epoch is ${report.epoch}.`,
        width,
      ).map((line) => line.replace(/foreshard plan approve \d+/, c.bold)),
    );
  return `${lines.join('\n')}\n`;
}

/** Names and keys come from databases: a terminal must not act on what is in them. */
function withoutControls<T>(data: T): T {
  const clean = (_: string, v: unknown) => (typeof v === 'string' ? v.replace(/\p{Cc}/gu, '?') : v);
  return JSON.parse(JSON.stringify(data, clean)) as T;
}

function wrap(text: string, width: number, indent = ''): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = indent + word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line];
}

const BLOCKS = ' ▁▂▃▄▅▆▇█';
const ROWS = 9;
const LEFT = 9;

/** History as columns, then the forecast's median as columns and its 95 % quantile as dots; the capacity is a line. */
function chart(outlook: ShardOutlook, room: number, c: Ink): string[] {
  const { forecast, history, capacityMsPerSecond: capacity } = outlook;
  const columns = room - LEFT - 2;
  const shown = forecast.stepSeconds >= 3600 ? 3 * DAY : DAY / 2;
  const now = forecast.at[0] as number;
  const end = (forecast.at[forecast.at.length - 1] as number) + forecast.stepSeconds * 1000;
  const start = Math.max(now - shown * 1000, history.at[0] ?? now);
  const width = (end - start) / columns;
  const yMax = axisMax([outlook], shown);
  const column = (at: readonly number[], values: readonly number[], i: number): number | null => {
    const [from, to] = [start + i * width, start + (i + 1) * width];
    let best: number | null = null;
    for (let k = 0; k < at.length; k++) {
      const t = at[k] as number;
      // A step covers the columns up to its end.
      if (t < to && t + forecast.stepSeconds * 1000 > from) best = Math.max(best ?? 0, values[k] as number);
    }
    return best;
  };
  const cells = Array.from({ length: columns }, (_, i) => {
    const past = start + (i + 0.5) * width < now;
    return {
      past,
      value: past ? column(history.at, history.values, i) : column(forecast.at, forecast.p50, i),
      high: past ? null : column(forecast.at, forecast.p95, i),
    };
  });
  const limit = Math.min(ROWS - 1, Math.floor((capacity / yMax) * ROWS));
  const lines: string[] = [];
  for (let row = ROWS - 1; row >= 0; row--) {
    const [low, high] = [(row * yMax) / ROWS, ((row + 1) * yMax) / ROWS];
    const label =
      row === limit
        ? `${formatCount(capacity)} ─`
        : row === ROWS - 1
          ? `${formatCount(yMax)}  `
          : row === 0
            ? '0  '
            : '';
    const text = cells.map((cell) => {
      const fill = cell.value === null ? 0 : Math.max(0, Math.min(1, (cell.value - low) / (high - low)));
      const block = BLOCKS[Math.round(fill * 8)] as string;
      if (block !== ' ')
        return (cell.value ?? 0) > capacity && row >= limit ? c.red(block) : cell.past ? c.dim(block) : c.blue(block);
      if (row === limit) return c.red('─');
      return cell.high !== null && cell.high > low && cell.high <= high ? c.blue('·') : ' ';
    });
    lines.push(`${label.padStart(LEFT)} ${text.join('')}`);
  }
  const mark = Math.max(0, Math.min(columns - 1, Math.round((now - start) / width)));
  const label = `forecast from ${formatMoment(now)}`;
  const begin = formatMoment(start).slice(0, 14);
  const fits = mark + label.length + 2 <= columns || begin.length + 1 + label.length + 1 <= mark;
  const past = fits ? begin : '';
  const axis =
    mark + label.length + 2 <= columns
      ? `${past.padEnd(mark)}^ ${label}`
      : `${past.padEnd(Math.max(past.length, mark - label.length - 1))}${label} ^`;
  return [
    ...lines,
    `${' '.repeat(LEFT)} ${c.dim(axis.slice(0, columns))}`,
    c.dim(`${' '.repeat(LEFT)} █ history, then the median forecast   · 95 % quantile   ─ capacity`),
  ];
}

const MAX_BARS = 24;
const LONGEST_BAR = 36;

function segmentBars(p: ProposalJson, width: number, c: Ink): string[] {
  const most = Math.max(...p.segments.map((s) => s.load), 1e-9);
  const lines: string[] = [];
  const list =
    p.segments.length > MAX_BARS ? [...p.segments].sort((a, b) => b.load - a.load).slice(0, MAX_BARS) : p.segments;
  const label = (s: ProposalJson['segments'][number]) => formatInterval(s.lo, s.hi);
  const space = Math.min(34, Math.max(...list.map((s) => label(s).length)));
  const room = width - space - ` → ${p.spec.to}`.length - 16;
  list.forEach((s, i) => {
    const before = list[i - 1];
    if (list === p.segments && before !== undefined && before.moves !== s.moves)
      lines.push(
        c.bold(`  ${'─ '.repeat(3)}split at ${formatPosition(p.splitAt, '−∞')} ${'─ '.repeat(20)}`.slice(0, width)),
      );
    const bar = '█'.repeat(Math.round((s.load / most) * Math.max(1, Math.min(LONGEST_BAR, room))));
    const name = label(s).length > space ? `${label(s).slice(0, space - 1)}…` : label(s);
    lines.push(
      `  ${name.padEnd(space)} ${formatLoad(s.load).padStart(12)} ${s.moves ? c.green(bar) : c.dim(bar)}${s.moves ? ` → ${p.spec.to}` : ''}`,
    );
  });
  if (list !== p.segments)
    lines.push(
      `  (the ${MAX_BARS} busiest of ${p.segments.length} segments; split at ${formatPosition(p.splitAt, '−∞')})`,
    );
  return lines;
}

function moves(p: ProposalJson, width: number): string[] {
  const rows = p.tables.map((t) => [
    t.table,
    formatCount(t.rows),
    formatBytes(t.bytes),
    t.exact ? 'counted' : 'estimated',
  ]);
  return [
    ...wrap(
      `${formatInterval(p.spec.lo, p.spec.hi)} of keyspace "${p.keyspace}", shard "${p.spec.from}" → "${p.spec.to}", ${formatPercent(p.movedLoadShare)} of the peak load`,
      width - 2,
    ).map((line) => `  ${line}`),
    ...grid([['table', 'rows', 'size', ''], ...rows, ['together', formatCount(p.rows), formatBytes(p.bytes), '']]),
    `  Statements that would touch both sides: ${p.crossShardShare === null ? 'not sampled yet' : formatPercent(p.crossShardShare)}`,
  ];
}

function duration(p: ProposalJson, now: number, c: Ink): string[] {
  const source = p.ratesFrom === 'measured' ? 'measured in past migrations' : 'default until one has been measured';
  const start =
    p.startBy === null
      ? 'no deadline within the horizon'
      : p.startBy <= now
        ? c.red(`now (it should have begun ${formatDistance(p.startBy, now)})`)
        : `${formatMoment(p.startBy)}, ${formatDistance(p.startBy, now)}`;
  return [
    `  copy      ${formatSeconds(p.copySeconds)} at ${formatBytes(p.copyBytesPerSecond)}/s (${source})`,
    `  catch-up  ${formatSeconds(p.catchUpSeconds)} at ${formatCount(p.applyRowsPerSecond)} rows/s`,
    `  pause     about ${formatMs(p.expectedPauseMs)} for writes to the range, no errors`,
    `  needed by ${p.deadline === null ? '–' : `${formatMoment(p.deadline)}, ${formatDistance(Math.max(now, p.deadline), now)}`}; ${formatSeconds(p.marginSeconds)} are kept free`,
    `  start by  ${start}`,
  ];
}

function beforeAfter(p: ProposalJson): string[] {
  const row = (when: string) => (o: ShardOutlook) => [
    `${o.shard} ${when}`,
    formatLoad(o.peak.p50),
    formatPercent(o.peak.p50 / o.capacityMsPerSecond),
    formatPercent(o.score),
    o.crossesAt === null ? '–' : formatMoment(o.crossesAt),
  ];
  return grid([
    ['shard', 'peak', 'of capacity', 'score', 'passes capacity'],
    ...p.before.map(row('before')),
    ...p.after.map(row('after')),
  ]);
}

function accuracy(o: ShardOutlook): string[] {
  const rows = o.forecast.backtest.map((b, i) => [
    `${i === 0 ? '*' : ' '} ${b.model}`,
    formatPercent(b.wape),
    formatPercent(b.coverage90),
  ]);
  return grid([['model (* used)', 'error', 'inside the 90 % band'], ...rows]);
}

/** Columns as wide as their widest cell; all but the first to the right. */
function grid(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((r) => r[i]?.length ?? 0)));
  return rows.map((r) =>
    `  ${r.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number))).join('   ')}`.trimEnd(),
  );
}
