import { expect, it } from 'vitest';
import { renderSvg, roundUp } from '../../bench/results/svg.js';
import { renderTables } from '../../bench/results/tables.js';
import { cell, results } from './support.js';

const run = results([
  cell(1, { direct: [900, 1000, 1100], foreshard: [800, 900, 950] }),
  cell(16, { direct: [9000, 10_000, 11_000], foreshard: [12_000, 13_000, 14_000] }),
  cell(16, { direct: [500], foreshard: [400] }, { workload: 'tpcb', protocol: 'extended' }),
]);

it('the picture has a panel for each workload and protocol, a line for each peer, and needs nothing else', () => {
  const svg = renderSvg(run);
  expect(svg.match(/font-weight="600">pgbench/g)).toHaveLength(2);
  expect(svg).toContain('>extended, one shard<');
  expect(svg.match(/<polyline/g)).toHaveLength(2);
  expect(svg.match(/<circle/g)).toHaveLength(6);
  expect(svg).toContain('A &lt;processor&gt;');
  expect(svg).toContain('prefers-color-scheme: dark');
  expect(svg).not.toMatch(/NaN|undefined|href|url\(/);
});

it('roundUp finds the next round number', () => {
  expect([0.3, 1, 3, 7, 11, 4200, 5000].map(roundUp)).toEqual([1, 1, 5, 10, 20, 5000, 5000]);
});

it('the tables give medians with their spread, ratios, and the targets', () => {
  const text = renderTables(run);
  expect(text).toContain('pgbench select-only, simple, one shard: transactions per second, by pgbench');
  expect(text).toContain('16       10,000 (9,000–11,000)  13,000 (12,000–14,000)  1.30 (1.27–1.33)');
  expect(text).toMatch(/select\/1\/simple\/16 foreshard\/direct +1\.00 +1\.30 \(1\.27–1\.33\) +met/);
  expect(text).toMatch(/select\/1\/simple\/1 foreshard\/direct +0\.75 +0\.89 \(0\.86–0\.90\) +met/);
});
