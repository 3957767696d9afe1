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
import { axisMax, loadChart } from './load-chart.js';
import { segmentChart } from './segment-chart.js';
import { STYLE } from './style.js';
import { escapeHtml as e } from './svg.js';

const DAY = 86_400;

/** A report as one self-contained HTML page: no scripts, nothing loaded from elsewhere. */
export function renderHtml(report: PlanReport | SavedReport): string {
  const { proposal } = report;
  const plan = 'plan' in report ? report.plan : null;
  const title = proposal === null ? 'No change proposed' : heading(proposal);
  const body = proposal === null ? withoutProposal(report) : withProposal(report, proposal, plan);
  const id = plan === null ? '' : `plan ${e(plan.id)} · `;
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>${e(`Foreshard: ${title}`)}</title><style>${STYLE}</style></head>
<body><main>
<header><p class="meta">Foreshard · ${id}database ${e(report.database)} · epoch ${e(report.epoch)} · ${formatMoment(report.createdAt)}</p>
<h1>${e(title)}</h1><p class="lead">${e(report.verdict)}</p></header>
${body}
${notes(report)}
<footer>${plan === null ? 'A dry run: nothing was changed and nothing can be approved from it.' : `A dry run: nothing has been changed. Approval is bound to <code>${e(plan.hash)}</code> at epoch ${e(report.epoch)} and possible until ${formatMoment(plan.expiresAt)}.`} All times are UTC. Load is server time: milliseconds of busy backend per second (ms/s).</footer>
</main></body></html>
`;
}

function heading(p: ProposalJson): string {
  return `Split "${p.keyspace}" at ${formatPosition(p.splitAt, '−∞')} and move ${formatInterval(p.spec.lo, p.spec.hi)} from shard "${p.spec.from}" to "${p.spec.to}"`;
}

function duration(seconds: number): string {
  return seconds < 1 ? 'under 1 s' : `about ${formatSeconds(seconds)}`;
}

function tile(label: string, value: string, more: string, alert = false): string {
  return `<div class="tile${alert ? ' alert' : ''}"><span>${e(label)}</span><b>${e(value)}</b><span>${e(more)}</span></div>`;
}

function card(title: string, sub: string, content: string, kind = ''): string {
  return `<section class="card ${kind}"><h2>${e(title)}</h2>${sub === '' ? '' : `<p class="sub">${e(sub)}</p>`}${content}</section>`;
}

interface Column {
  readonly name: string;
  readonly numeric?: boolean;
}

function table(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  last?: readonly string[],
  chosen = -1,
): string {
  const cell = (tag: string) => (text: string, i: number) =>
    `<${tag}${columns[i]?.numeric === true ? ' class="num"' : ''}>${e(text)}</${tag}>`;
  const body = rows
    .map((r, i) => `<tr${i === chosen ? ' class="chosen"' : ''}>${r.map(cell('td')).join('')}</tr>`)
    .join('');
  const foot = last === undefined ? '' : `<tfoot><tr>${last.map(cell('td')).join('')}</tr></tfoot>`;
  return `<div class="scroll"><table><thead><tr>${columns
    .map((c) => c.name)
    .map(cell('th'))
    .join('')}</tr></thead><tbody>${body}</tbody>${foot}</table></div>`;
}

function legend(withStart: boolean): string {
  const keys = [
    ['history', 'history'],
    ['forecast', 'forecast, median'],
    ['band', '90 % band'],
    ['capacity', 'capacity'],
    ...(withStart ? [['moves', 'start by']] : []),
  ];
  const items = keys.map(([colour, label]) => `<li><i style="background:var(--${colour})"></i>${label}</li>`);
  return `<ul class="legend">${items.join('')}</ul>`;
}

function historyShown(outlook: ShardOutlook): number {
  return outlook.forecast.stepSeconds >= 3600 ? 14 * DAY : 3 * DAY;
}

function withProposal(report: PlanReport, p: ProposalJson, plan: SavedReport['plan']): string {
  const source = p.before.find((o) => o.shard === p.spec.from) as ShardOutlook;
  const now = report.createdAt;
  const tiles = [
    source.crossesAt === null
      ? tile('Passes capacity', formatPercent(source.score), 'probability; the median does not')
      : tile(
          'Passes capacity',
          formatDistance(Math.max(now, source.crossesAt), now),
          formatMoment(source.crossesAt),
          true,
        ),
    tile('Probability', formatPercent(source.score), `within ${formatSeconds(report.horizonSeconds)}`),
    p.startBy === null
      ? tile('Start by', 'no deadline', 'no quantile passes capacity')
      : p.startBy <= now
        ? tile('Start by', 'now', `should have begun ${formatDistance(p.startBy, now)}`, true)
        : tile('Start by', formatDistance(p.startBy, now), formatMoment(p.startBy)),
    tile(
      'Moves',
      `${formatCount(p.rows)} rows`,
      `${formatBytes(p.bytes)}, ${formatPercent(p.movedLoadShare)} of the peak load`,
    ),
    tile('Takes', duration(p.copySeconds + p.catchUpSeconds), 'copy and catch-up, without set-up'),
    tile('Pause', `about ${formatMs(p.expectedPauseMs)}`, 'for writes to the range'),
  ].join('');

  const shown = historyShown(source);
  const main = card(
    `Load of shard "${source.shard}" if nothing is done`,
    p.ifNothingIsDone,
    `${loadChart(source, { width: 1030, height: 330, historySeconds: shown, yMax: axisMax([source], shown), startBy: p.startBy === null || p.startBy < now ? null : p.startBy })}${legend(p.startBy !== null && p.startBy > now)}`,
  );
  const window = `${formatMoment(p.peakWindow.from)} to ${formatMoment(p.peakWindow.to)}`;
  const segments = card(
    'Where it splits, and why there',
    `Forecast load of each segment at the peak (${window}), in ms/s. The cut halves load, not keys.`,
    `${segmentChart(p, 1030, 270)}<ul class="legend"><li><i style="background:var(--stays)"></i>stays on ${e(p.spec.from)}</li><li><i style="background:var(--moves)"></i>moves to ${e(p.spec.to)}</li></ul>`,
  );
  const short = Math.min(shown, 7 * DAY);
  const yMax = axisMax(p.after, short);
  const after = p.after
    .map((o) =>
      card(
        `Shard "${o.shard}" afterwards`,
        `Peak ${formatLoad(o.peak.p50)}, ${formatPercent(o.peak.p50 / o.capacityMsPerSecond)} of capacity; score ${formatPercent(o.score)}.`,
        loadChart(o, { width: 500, height: 230, historySeconds: short, yMax }),
      ),
    )
    .join('');
  return `<div class="tiles">${tiles}</div>
${blockers(p)}
${main}
${segments}
<div class="two">${after}</div>
<div class="two">${cost(p, now)}<div>${outlookTable(p)}${approval(plan)}</div></div>
${accuracy(source)}`;
}

function approval(plan: SavedReport['plan']): string {
  if (plan === null) return '';
  const command = `foreshard plan approve ${e(plan.id)}`;
  return card(
    'To approve',
    '',
    `<p><code>${command}</code></p><p>or turn it down with <code>foreshard plan reject ${e(plan.id)}</code>. Once approved, the migration begins at once, runs while the load goes on, and can be aborted until it flips.</p>`,
  );
}

function blockers(p: ProposalJson): string {
  if (p.blockers.length === 0) return '';
  const list = p.blockers.map((b) => `<li>${e(b)}</li>`).join('');
  return card('What blocks it', '', `<ul>${list}</ul>`, 'warn');
}

function cost(p: ProposalJson, now: number): string {
  const moves = table(
    [{ name: 'Table' }, { name: '' }, { name: 'Rows', numeric: true }, { name: 'Size', numeric: true }],
    p.tables.map((t) => [t.table, t.exact ? 'counted' : 'estimated', formatCount(t.rows), formatBytes(t.bytes)]),
    ['together', '', formatCount(p.rows), formatBytes(p.bytes)],
  );
  const rates =
    p.ratesFrom === 'measured' ? 'measured in past migrations' : 'the default, until a migration has been measured';
  const times = table(
    [{ name: 'Step' }, { name: 'Time', numeric: true }],
    [
      ['copy', formatSeconds(p.copySeconds)],
      ['catch-up', formatSeconds(p.catchUpSeconds)],
      ['pause of writes at the flip', formatMs(p.expectedPauseMs)],
      ['kept free', formatSeconds(p.marginSeconds)],
      ['needed by', p.deadline === null ? '–' : formatMoment(p.deadline)],
      ['start by', p.startBy === null ? '–' : p.startBy <= now ? 'now' : formatMoment(p.startBy)],
    ],
  );
  return card(
    'What moves, and how long it takes',
    `Rates: copy ${formatBytes(p.copyBytesPerSecond)}/s, apply ${formatCount(p.applyRowsPerSecond)} rows/s (${rates}).`,
    `${moves}<p></p>${times}`,
  );
}

function outlookTable(p: ProposalJson): string {
  const row = (when: string) => (o: ShardOutlook) => [
    `${o.shard}, ${when}`,
    formatLoad(o.peak.p50),
    formatPercent(o.peak.p50 / o.capacityMsPerSecond),
    formatPercent(o.score),
  ];
  return card(
    'Before and after',
    `Median forecast at the peak, the share of capacity, and the probability of passing it. Statements that touch both sides: ${p.crossShardShare === null ? 'not sampled yet' : formatPercent(p.crossShardShare)}.`,
    table(
      [
        { name: 'Shard' },
        { name: 'Peak', numeric: true },
        { name: 'Of capacity', numeric: true },
        { name: 'Score', numeric: true },
      ],
      [...p.before.map(row('before')), ...p.after.map(row('after'))],
    ),
  );
}

function accuracy(outlook: ShardOutlook): string {
  const { backtest, choice, stepSeconds } = outlook.forecast;
  // Neighbouring parts of the horizon that chose the same model read as one.
  const merged: { from: number; to: number; model: string }[] = [];
  for (const c of choice) {
    const last = merged[merged.length - 1];
    if (last?.model === c.model) last.to = c.to;
    else merged.push({ ...c });
  }
  const parts = merged.map(
    (c) =>
      `${c.from === 0 ? '0' : formatSeconds(c.from * stepSeconds)} to ${formatSeconds(c.to * stepSeconds)} ahead: ${c.model}`,
  );
  return card(
    'How good is the forecast?',
    `Tested on this shard's own past: what would each model have said, and what came? Error is the sum of absolute errors over the sum of the load. The band should hold 90 %. Used: ${parts.join('; ')}.`,
    table(
      [{ name: 'Model' }, { name: 'Error', numeric: true }, { name: 'Inside the 90 % band', numeric: true }],
      backtest.map((b) => [b.model, formatPercent(b.wape), formatPercent(b.coverage90)]),
      undefined,
      0,
    ),
  );
}

function withoutProposal(report: PlanReport): string {
  return report.outlooks
    .map((o) => {
      const shown = historyShown(o);
      return `${card(
        `Load of shard "${o.shard}"`,
        `Forecast peak ${formatLoad(o.peak.p50)} at ${formatMoment(o.peak.at)}, ${formatPercent(o.peak.p50 / o.capacityMsPerSecond)} of capacity; probability of passing it ${formatPercent(o.score)}.`,
        `${loadChart(o, { width: 1030, height: 300, historySeconds: shown, yMax: axisMax([o], shown) })}${legend(false)}`,
      )}${accuracy(o)}`;
    })
    .join('');
}

function notes(report: PlanReport): string {
  if (report.notes.length === 0) return '';
  return card('Notes', '', `<ul>${report.notes.map((note) => `<li>${e(note)}</li>`).join('')}</ul>`);
}
