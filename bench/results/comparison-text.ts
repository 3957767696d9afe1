import type { Change, Comparison } from './record.js';
import { table } from './tables.js';

/** What moved between the record and a run, in words. */
export function renderComparison({ changes, missing, fresh }: Comparison): string {
  const moved = (verdict: Change['verdict']) => changes.filter((change) => change.verdict === verdict);
  const [fell, rose] = [moved('fell'), moved('rose')];
  const parts = [
    section('Fell by more than the noise', fell),
    section('Rose by more than the noise', rose),
    `${changes.length} ratios compared: ${fell.length} fell, ${rose.length} rose, ${moved('same').length} within the noise` +
      `; ${missing.length} of the record not in this run, ${fresh.length} of this run not in the record`,
  ];
  return parts.filter((part) => part !== '').join('\n\n');
}

function section(title: string, changes: readonly Change[]): string {
  if (changes.length === 0) return '';
  const percent = (value: number) => `${value > 0 ? '+' : ''}${(value * 100).toFixed(1)} %`;
  const rows = [...changes]
    .sort((a, b) => a.change - b.change)
    .map(({ id, before, now, change, noise }) => [
      id,
      before.median.toFixed(3),
      now.median.toFixed(3),
      percent(change),
      `${(noise * 100).toFixed(1)} %`,
    ]);
  return `${title}\n${table(['ratio', 'record', 'now', 'change', 'noise'], rows)}`;
}
