import { differingTables } from '../migrator/comparison.js';
import { loadMigration, type MigrationRow, RESTING_STATES } from '../migrator/migration-row.js';
import { doubtedTables, doubtText } from '../migrator/sampled.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { flipHeldBackBy } from '../topology/migration-controls.js';
import { progressBar, progressLine } from './progress-line.js';

const POLL_MS = 200;

export interface WatchOptions {
  /** Print nothing. */
  readonly quiet?: boolean;
  readonly signal?: AbortSignal;
  readonly out?: NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };
}

/**
 * Follows a migration until it rests or waits for a person, or `signal` is aborted. On a terminal one line is kept up to date, else a
 * line is written for every change.
 * @returns the last state seen
 */
export async function watchMigration(catalog: Catalog, id: bigint, options: WatchOptions = {}): Promise<MigrationRow> {
  const out = options.out ?? process.stdout;
  const isTerminal = out.isTTY === true;
  let shown = '';
  let state = '';
  for (;;) {
    const migration = await loadMigration(catalog.pool, id);
    const line = (isTerminal ? progressBar(migration) : '') + progressLine(migration);
    if (!options.quiet && line !== shown) {
      if (isTerminal) {
        // A phase that ended stays on the screen; within a phase the line is overwritten.
        if (state !== '' && state !== migration.state) out.write('\n');
        out.write(`\r\x1b[2K${line.slice(0, (out.columns ?? 80) - 1)}`);
      } else {
        out.write(`${line}\n`);
      }
      shown = line;
      state = migration.state;
    }
    const waits = waitsForSomebody(migration);
    if (RESTING_STATES.includes(migration.state) || waits !== null || options.signal?.aborted === true) {
      if (!options.quiet && isTerminal) out.write('\n');
      if (!options.quiet && migration.error !== null) out.write(`error: ${migration.error}\n`);
      if (!options.quiet && waits !== null) out.write(`${waits}\n`);
      return migration;
    }
    await pause(POLL_MS, options.signal);
  }
}

/** What a person can do now, when a migration goes no further before somebody does, or not for a while; else null. */
export function waitsForSomebody(migration: MigrationRow): string | null {
  const { id, state, controls, facts, paused, requested } = migration;
  if (state === 'planned') return `migration ${id} has not been approved`;
  if (paused) return null;
  if ((state === 'ready' || state === 'verifying') && differingTables(migration).length > 0)
    return `migration ${id} does not flip: both sides differ ("foreshard migrate show ${id}" has the keys). "foreshard migrate verify ${id} --repair" makes the destination's rows what they are at the source, "foreshard migrate abort ${id}" undoes it`;
  if (state === 'ready') {
    // A window comes by itself.
    if (controls.flipWindow !== null || flipHeldBackBy(controls, new Date()) === null) return null;
    return `migration ${id} is ready: "foreshard migrate flip ${id}" has it flip`;
  }
  if (state === 'following' && facts.inService === true && requested === null)
    return `migration ${id} keeps a replica: "foreshard migrate promote ${id}" makes it the owner, "foreshard migrate abort ${id}" drops it`;
  if (state !== 'reversing' || requested !== null || facts.exact === undefined) return null;
  const end = `"foreshard migrate finish ${id}" removes what is left at the source`;
  if (facts.wayBackLost !== undefined) return `migration ${id} has flipped, and has no way back any more: ${end}`;
  const doubted = doubtedTables(migration);
  if (doubted.length > 0)
    return `migration ${id} has flipped, and its way back is not to be trusted: ${doubtText(doubted)} ("foreshard migrate show ${id}" has their keys). Compare all ("foreshard migrate verify ${id}"), and have them put right ("foreshard migrate verify ${id} --repair"); or ${end}`;
  return `migration ${id} has flipped, and its way back is open: "foreshard migrate rollback ${id}" takes it back, ${end}`;
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
