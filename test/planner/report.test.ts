import { describe, expect, it } from 'vitest';
import { assess, type Grid } from '../../planner/outlook.js';
import type { SavedReport } from '../../planner/plan-report.js';
import type { ShardOutlook } from '../../planner/proposal.js';
import { formatBytes, formatDistance, formatSeconds } from '../../planner/report/format.js';
import { renderHtml } from '../../planner/report/html.js';
import { renderText } from '../../planner/report/text.js';
import type { KeyspaceName, ShardName } from '../../topology/topology.js';
import { hourly } from './series.js';

const GRID: Grid = { stepSeconds: 3600, start: Date.UTC(2026, 0, 5), length: 24 * 21, horizon: 24 };

function outlook(shard: string, level: number): ShardOutlook {
  return assess(shard as ShardName, 1000, hourly(GRID.length, level, 0.05), GRID)?.outlook as ShardOutlook;
}

const before = outlook('a', 900);
const after = [outlook('a', 450), outlook('b', 450)];
const NOW = before.forecast.at[0] as number;

function report(text: string): SavedReport {
  return {
    database: text,
    epoch: '7',
    createdAt: NOW,
    stepSeconds: 3600,
    horizonSeconds: 86_400,
    outlooks: [before],
    verdict: `Verdict ${text}`,
    notes: [`Note ${text}`],
    plan: { id: '12', hash: 'c0ffee', status: 'proposed', expiresAt: NOW + 86_400_000 },
    proposal: {
      kind: 'split_move',
      spec: { kind: 'move', keyspace: 'tenant', lo: [text], hi: null, from: 'a', to: 'b' },
      why: 'why',
      splitAt: [text],
      keyspace: 'tenant' as KeyspaceName,
      rows: 1_234_567,
      bytes: 98_700_000,
      tables: [{ table: `public.${text}`, rows: 1_234_567, bytes: 98_700_000, exact: false }],
      copySeconds: 125,
      catchUpSeconds: 4,
      copyBytesPerSecond: 800_000,
      applyRowsPerSecond: 26_000,
      ratesFrom: 'default',
      expectedPauseMs: 15,
      startBy: NOW + 3_600_000,
      deadline: NOW + 7_200_000,
      marginSeconds: 900,
      peakWindow: { from: NOW, to: NOW + 3_600_000 },
      before: [before],
      after,
      movedLoadShare: 0.5,
      crossShardShare: null,
      segments: [
        { lo: null, hi: [text], load: 450, moves: false },
        { lo: [text], hi: null, load: 450, moves: true },
      ],
      blockers: [`Blocker ${text}`],
      ifNothingIsDone: 'If nothing is done.',
    },
  };
}

describe('reports', () => {
  const figures = [
    '1,234,567',
    '98.7 MB',
    '2 min 5 s',
    '800 kB/s',
    '26,000',
    '15 ms',
    '50 %',
    'estimated',
    'plan approve 12',
    'in 1 h',
    'not sampled yet',
  ];

  it.each([
    [100, {}],
    [100, { width: 200 }],
    [77, { width: 77 }],
  ])('have the figures, as text in %i columns', (columns, options) => {
    const text = renderText(report('m42'), options);
    for (const figure of figures) expect(text).toContain(figure);
    expect(text).toContain('split at m42');
    expect(text).toContain('Blocker m42');
    for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(columns);
    expect(renderText(report('m42'), { color: true })).toContain('\u001b[1m');
  });

  it('have the figures, as a page that loads nothing', () => {
    const html = renderHtml(report('m42'));
    for (const figure of figures) expect(html).toContain(figure);
    for (const part of [
      'class="band"',
      'class="capacity"',
      'class="crossing"',
      'class="split"',
      'prefers-color-scheme:dark',
      'c0ffee',
    ])
      expect(html).toContain(part);
    expect(html.match(/<svg /g)).toHaveLength(4);
    expect(html).not.toMatch(/<script|src=|href=|url\(|@import|NaN|undefined|Infinity/);
  });

  it('let nothing through that came from a database', () => {
    const nasty = `"><script>alert(1)</script>'&\u001b[31m`;
    const html = renderHtml(report(nasty));
    expect(html).not.toContain('<script');
    expect(html).toContain('&lt;script&gt;');
    expect(renderText(report(nasty))).not.toContain('\u001b');
  });

  it('are complete without a proposal', () => {
    const none: SavedReport = { ...report('x'), proposal: null, plan: null };
    expect(renderText(none)).toContain('Verdict x');
    expect(renderHtml(none)).toContain('Load of shard &quot;a&quot;');
    const empty: SavedReport = { ...none, outlooks: [], notes: [] };
    expect(renderHtml(empty)).not.toMatch(/NaN|undefined|Infinity/);
  });
});

describe('formats', () => {
  it('print sizes, times and distances for people', () => {
    expect([0, 999, 1000, 1_230_000, 5e15].map(formatBytes)).toEqual(['0 B', '999 B', '1.00 kB', '1.23 MB', '5.00 PB']);
    expect([0.0151, 5, 59.6, 200, 7500, 273_600].map(formatSeconds)).toEqual([
      '16 ms',
      '5.0 s',
      '1 min',
      '3 min 20 s',
      '2 h 5 min',
      '3 d 4 h',
    ]);
    expect([formatDistance(60_000, 0), formatDistance(0, 7_200_000), formatDistance(5, 0)]).toEqual([
      'in 1 min',
      '2 h ago',
      'now',
    ]);
  });
});
