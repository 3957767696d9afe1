import { formatTable } from '../output.js';
import type { AuditResult, ShardContents } from './audit.js';
import type { LoadResult } from './load.js';
import type { ShardLoad } from './shard-load.js';
import { summarize } from './waits.js';

/** Moments of the move, ms since 1970. */
export interface MoveTimes {
  readonly loadStarted: number;
  readonly moveStarted: number;
  /** New statements for the range began to be held. */
  readonly fencing: number;
  readonly flipped: number;
  readonly loadStopped: number;
}

/** Findings that are printed in full; of the rest only the number is told. */
const FINDINGS_SHOWN = 10;

/** Statements are "around the flip" from this long before the hold until as long after the flip. */
const AROUND_FLIP_MS = 1000;

/** The audit, in lines. */
export function auditLines(result: AuditResult, load: LoadResult): string[] {
  const n = (value: number): string => value.toLocaleString('en');
  const lines = [
    `${n(result.acknowledged)} acknowledged writes (${n(result.rowsCompared)} rows) and ${n(result.baseRows)} loaded rows compared with the servers' own rows`,
  ];
  if (result.unknown > 0)
    lines.push(`${n(result.unknown)} writes whose outcome no client was told: either outcome is accepted`);
  if (load.staleReads > 0)
    lines.push(`${n(load.staleReads)} reads did not show what the same client had written before`);
  if (isClean(result, load)) {
    lines.push('AUDIT CLEAN: every acknowledged write is there exactly once, on the shard that owns it');
    return lines;
  }
  lines.push(`AUDIT FAILED: ${n(result.findings.length + load.staleReads)} findings`);
  for (const finding of result.findings.slice(0, FINDINGS_SHOWN)) lines.push(`${finding.kind}: ${finding.detail}`);
  if (result.findings.length > FINDINGS_SHOWN) lines.push(`and ${n(result.findings.length - FINDINGS_SHOWN)} more`);
  return lines;
}

export function isClean(result: AuditResult, load: LoadResult): boolean {
  return result.findings.length === 0 && load.staleReads === 0;
}

/** Client errors: each text with how often it was seen. */
export function errorLines(load: LoadResult): string[] {
  return [
    `client errors: ${load.errors}`,
    ...Object.entries(load.errorTexts).map(([text, count]) => `${count} × ${text}`),
  ];
}

/** How long statements waited, before, during and after the move, and around the flip for those that it concerns. */
export function waitTable(load: LoadResult, times: MoveTimes, moves: (tenant: number) => boolean): string {
  const row = (what: string, fromMs: number, toMs: number, concerned?: (tenant: number) => boolean): string[] => {
    const s = summarize(load.waits, fromMs, toMs, concerned);
    if (s === null) return [what, '0', '', '', ''];
    return [what, s.statements.toLocaleString('en'), s.p50Ms.toFixed(1), s.p99Ms.toFixed(1), s.longestMs.toFixed(1)];
  };
  const { fencing, flipped } = times;
  return formatTable(
    ['statements', 'count', 'p50 ms', 'p99 ms', 'longest ms'],
    [
      row('before the move', times.loadStarted, times.moveStarted),
      row('while it copied', times.moveStarted, fencing),
      row('around the flip, all', fencing - AROUND_FLIP_MS, flipped + AROUND_FLIP_MS),
      row('around the flip, moved rows', fencing - AROUND_FLIP_MS, flipped + AROUND_FLIP_MS, moves),
      row('after it', flipped + AROUND_FLIP_MS, times.loadStopped),
    ],
  );
}

/** Load and rows per shard, before and after. */
export function shardTable(
  before: { readonly load: ReadonlyMap<string, ShardLoad> | null; readonly contents: readonly ShardContents[] },
  after: { readonly load: ReadonlyMap<string, ShardLoad> | null; readonly contents: readonly ShardContents[] },
): string {
  const rowsOf = (contents: readonly ShardContents[], shard: string): string => {
    const counts = contents.find((c) => c.shard === shard)?.counts ?? {};
    return Object.values(counts)
      .reduce((a, b) => a + b, 0)
      .toLocaleString('en');
  };
  const loadOf = (load: ReadonlyMap<string, ShardLoad> | null, shard: string, key: keyof ShardLoad): string =>
    load === null ? '' : (load.get(shard)?.[key] ?? 0).toFixed(0);
  return formatTable(
    ['shard', 'stmts/s before', 'after', 'server ms/s before', 'after', 'rows before', 'after'],
    after.contents.map(({ shard }) => [
      shard,
      loadOf(before.load, shard, 'statements'),
      loadOf(after.load, shard, 'statements'),
      loadOf(before.load, shard, 'serverMs'),
      loadOf(after.load, shard, 'serverMs'),
      rowsOf(before.contents, shard),
      rowsOf(after.contents, shard),
    ]),
  );
}
