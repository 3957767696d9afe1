import { expect, test } from 'vitest';
import { progressBar, progressLine } from '../../cli/progress-line.js';

const migration = { state: 'verifying', paused: false, abortRequested: false, error: null } as const;

test('while both sides are compared, the line and the bar are about that and not about the copy', () => {
  const progress = {
    rowsCopied: 4000,
    rowsTotal: 4000,
    bytesCopied: 400_000,
    bytesPerSecond: 2e6,
    compared: { rows: 1000, rowsTotal: 4000, rowsPerSecond: 500.4 },
    etaSeconds: 6,
    note: 'comparing public.orders',
  };
  expect(progressLine({ ...migration, progress })).toBe(
    'verifying · 1,000 of 4,000 rows (25 %) compared · 500 rows/s · ETA 6.0 s · comparing public.orders',
  );
  expect(progressBar({ ...migration, progress })).toBe(`[${'█'.repeat(5)}${'·'.repeat(15)}] `);
});

test('a table without rows is compared, too', () => {
  const progress = { compared: { rows: 0, rowsTotal: 0, rowsPerSecond: 0 }, etaSeconds: null };
  expect(progressLine({ ...migration, progress })).toBe('verifying · 0 of 0 rows compared · 0 rows/s');
  expect(progressBar({ ...migration, progress })).toBe('');
});
