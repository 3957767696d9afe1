import { loadMigration, type MigrationRow, RESTING_STATES } from '../migrator/migration-row.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { progressLine } from './progress-line.js';

const POLL_MS = 200;

export interface WatchOptions {
  /** Print nothing. */
  readonly quiet?: boolean;
  readonly signal?: AbortSignal;
  readonly out?: NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };
}

/**
 * Follows a migration until it rests, or `signal` is aborted. On a terminal one line is kept up to
 * date, else a line is written for every change.
 * @returns the last state seen
 */
export async function watchMigration(catalog: Catalog, id: bigint, options: WatchOptions = {}): Promise<MigrationRow> {
  const out = options.out ?? process.stdout;
  let shown = '';
  let state = '';
  for (;;) {
    const migration = await loadMigration(catalog.pool, id);
    const line = progressLine(migration);
    if (!options.quiet && line !== shown) {
      if (out.isTTY === true) {
        // A phase that ended stays on the screen; within a phase the line is overwritten.
        if (state !== '' && state !== migration.state) out.write('\n');
        out.write(`\r\x1b[2K${line.slice(0, (out.columns ?? 80) - 1)}`);
      } else {
        out.write(`${line}\n`);
      }
      shown = line;
      state = migration.state;
    }
    if (RESTING_STATES.includes(migration.state) || options.signal?.aborted === true) {
      if (!options.quiet && out.isTTY === true) out.write('\n');
      if (!options.quiet && migration.error !== null) out.write(`error: ${migration.error}\n`);
      return migration;
    }
    await pause(POLL_MS, options.signal);
  }
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener('abort', done);
      resolve();
    }
    signal?.addEventListener('abort', done, { once: true });
  });
}
