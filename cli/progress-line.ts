import type { MigrationRow, StoredSpec } from '../migrator/migration-row.js';
import { formatBytes, formatSeconds } from '../planner/report/format.js';
import { tableId } from '../topology/topology.js';

/** `shop [-infinity, 42) s1 → s2`, `shop on s1: cut at 42`, or `shop: public.documents to a keyspace of their own, docs`. */
export function specText(spec: StoredSpec): string {
  if (spec.kind === 'separate')
    return `${spec.keyspace ?? 'no keyspace'}: ${spec.tables.map(tableId).join(', ')} to a keyspace of their own, ${spec.as}`;
  if (spec.kind === 'halve')
    return `${spec.keyspace}: ${spec.columns.join(', ')} of ${tableId(spec.table)} to a table of their own, ${tableId(spec.hot)}, in ${spec.as}`;
  if (spec.kind === 'unite') return `${spec.keyspace}: its columns back to ${tableId(spec.table)} alone`;
  if (spec.kind === 'recut') {
    const list = (positions: readonly (readonly string[])[]) => positions.map((p) => p.join(', ')).join('; ');
    const parts = [
      ...(spec.cut.length > 0 ? [`cut at ${list(spec.cut)}`] : []),
      ...(spec.join.length > 0 ? [`joined at ${list(spec.join)}`] : []),
    ];
    return `${spec.keyspace} on ${spec.shard}: ${parts.join(', ')}`;
  }
  const bound = (value: readonly string[] | null, infinity: string) => (value === null ? infinity : value.join(', '));
  return `${spec.keyspace} [${bound(spec.lo, '-infinity')}, ${bound(spec.hi, 'infinity')}) ${spec.from} → ${spec.to}`;
}

const BAR_WIDTH = 20;

/** How much of the rows has been copied, or compared, for a terminal: `[█████···] `; nothing while neither is done. */
export function progressBar({ state, progress }: Pick<MigrationRow, 'state' | 'progress'>): string {
  const { rowsCopied, rowsTotal, compared } = progress;
  const [done, total] = compared ? [compared.rows, compared.rowsTotal] : [rowsCopied, rowsTotal];
  if (!(compared || state === 'copying') || done === undefined || total === undefined || total === 0) return '';
  const filled = Math.min(BAR_WIDTH, Math.floor((BAR_WIDTH * done) / total));
  return `[${'█'.repeat(filled)}${'·'.repeat(BAR_WIDTH - filled)}] `;
}

/** One line on where a migration stands: phase, rows, rate, lag, ETA. */
export function progressLine(
  migration: Pick<MigrationRow, 'state' | 'progress' | 'paused' | 'abortRequested' | 'error'>,
): string {
  const p = migration.progress;
  const parts: string[] = [migration.state.replaceAll('_', ' ')];
  // Before anything has been counted there is nothing to tell.
  if (p.compared) {
    parts.push(`${rowsText(p.compared.rows, p.compared.rowsTotal)} compared`);
    parts.push(`${Math.round(p.compared.rowsPerSecond).toLocaleString('en')} rows/s`);
  } else if (p.rowsTotal !== undefined && p.rowsCopied !== undefined && p.rowsTotal > 0)
    parts.push(rowsText(p.rowsCopied, p.rowsTotal));
  if (!p.compared && p.bytesCopied !== undefined && p.bytesCopied > 0) parts.push(formatBytes(p.bytesCopied));
  if (!p.compared && p.bytesPerSecond !== undefined && p.bytesPerSecond > 0)
    parts.push(`${(p.bytesPerSecond / 1e6).toFixed(1)} MB/s`);
  if (p.lagBytes !== undefined && p.rowsTotal !== undefined && p.rowsTotal > 0)
    parts.push(`lag ${formatBytes(p.lagBytes)}`);
  if (p.etaSeconds !== undefined && p.etaSeconds !== null && p.etaSeconds > 0)
    parts.push(`ETA ${formatSeconds(p.etaSeconds)}`);
  if (p.pauseMs !== undefined && p.pauseMs !== null) parts.push(`paused ${p.pauseMs.toFixed(0)} ms`);
  if (p.sampled) parts.push(`${p.sampled.rows.toLocaleString('en')} rows sampled since the flip`);
  if (p.note) parts.push(p.note);
  if (migration.paused && p.note !== 'paused') parts.push('pause requested');
  if (migration.abortRequested) parts.push('abort requested');
  return parts.join(' · ');
}

function rowsText(done: number, total: number): string {
  const percent = total > 0 ? ` (${Math.min(100, Math.floor((100 * done) / total))} %)` : '';
  return `${done.toLocaleString('en')} of ${total.toLocaleString('en')} rows${percent}`;
}
