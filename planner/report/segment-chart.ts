import type { ProposalJson } from '../plan-report.js';
import { formatInterval, formatLoad, formatPercent, formatPosition } from './format.js';
import { escapeHtml, linear, n, ticks } from './svg.js';

/** More bars than this are merged with their neighbours: the eye wants the shape. */
const MAX_BARS = 48;

type Bar = ProposalJson['segments'][number];

function merged(segments: readonly Bar[]): Bar[] {
  if (segments.length <= MAX_BARS) return [...segments];
  const per = Math.ceil(segments.length / MAX_BARS);
  const bars: Bar[] = [];
  let run = 0;
  for (const segment of segments) {
    const last = bars[bars.length - 1];
    // Never across the cut: each side keeps its colour.
    if (last !== undefined && run < per && last.moves === segment.moves) {
      bars[bars.length - 1] = { ...last, hi: segment.hi, load: last.load + segment.load };
      run += 1;
    } else {
      bars.push(segment);
      run = 1;
    }
  }
  return bars;
}

/** Load of each segment at the forecast peak, in the keyspace's order, with the cut between what stays and what moves. */
export function segmentChart(proposal: ProposalJson, width: number, height: number): string {
  const bars = merged(proposal.segments);
  const margin = { top: 30, right: 14, bottom: 44, left: 52 };
  const most = Math.max(...bars.map((b) => b.load), 1e-9);
  const x = linear([0, bars.length], [margin.left, width - margin.right]);
  const y = linear([0, most * 1.08], [height - margin.bottom, margin.top]);
  const total = bars.reduce((sum, b) => sum + b.load, 0);
  const parts: string[] = [];
  for (const tick of ticks(most * 1.08, 4))
    parts.push(
      `<line class="grid" x1="${margin.left}" x2="${width - margin.right}" y1="${n(y(tick))}" y2="${n(y(tick))}"/>`,
      `<text class="tick" x="${margin.left - 8}" y="${n(y(tick) + 4)}" text-anchor="end">${tick}</text>`,
    );
  const every = Math.max(1, Math.ceil((bars.length * 64) / (width - margin.left - margin.right)));
  bars.forEach((bar, i) => {
    const [left, right] = [x(i) + 2, x(i + 1) - 2];
    const title = `${formatInterval(bar.lo, bar.hi)}: ${formatLoad(bar.load)}, ${formatPercent(total > 0 ? bar.load / total : 0)}`;
    parts.push(
      `<rect class="${bar.moves ? 'moves' : 'stays'}" x="${n(left)}" y="${n(y(bar.load))}" width="${n(Math.max(1, right - left))}" height="${n(y(0) - y(bar.load))}" rx="2"><title>${escapeHtml(title)}</title></rect>`,
    );
    if (i % every === 0) {
      const label = formatPosition(bar.lo, '−∞');
      parts.push(
        `<text class="tick" x="${n(x(i) + 2)}" y="${height - margin.bottom + 18}">${escapeHtml(label.length > 12 ? `${label.slice(0, 11)}…` : label)}</text>`,
      );
    }
  });
  const cut = bars.findIndex((bar, i) => i > 0 && bar.moves !== bars[i - 1]?.moves);
  if (cut > 0) {
    const label = `split at ${formatPosition(proposal.splitAt, '−∞')}`;
    const anchor = x(cut) > width * 0.7 ? 'end' : x(cut) < width * 0.3 ? 'start' : 'middle';
    parts.push(
      `<line class="split" x1="${n(x(cut))}" x2="${n(x(cut))}" y1="${margin.top - 8}" y2="${height - margin.bottom + 6}"/>`,
      `<text class="label split-label" x="${n(x(cut))}" y="${margin.top - 14}" text-anchor="${anchor}">${escapeHtml(label)}</text>`,
    );
  }
  parts.push(
    `<text class="label" x="${n((margin.left + width - margin.right) / 2)}" y="${height - 8}" text-anchor="middle">segments, each by its lowest key</text>`,
  );
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Load by segment at the forecast peak">${parts.join('')}</svg>`;
}
