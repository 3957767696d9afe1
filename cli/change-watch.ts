import { setTimeout as delay } from 'node:timers/promises';
import { type Change, changeState, loadChange, RESTING_CHANGES } from '../migrator/changes/change-row.js';
import { type MigrationRow, RESTING_STATES } from '../migrator/migration-row.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { changeLine } from './change-text.js';
import { waitsForSomebody } from './migration-watch.js';
import { progressLine } from './progress-line.js';

const POLL_MS = 200;

/**
 * Follows a change until it rests, or nothing of it goes on before a person does something, or `signal` is aborted. Writes a line whenever
 * one of its migrations stands otherwise than before.
 * @returns the change as it was seen last
 */
export async function watchChange(
  catalog: Catalog,
  id: bigint,
  options: { quiet?: boolean; signal?: AbortSignal; out?: NodeJS.WritableStream } = {},
): Promise<Change> {
  const { quiet = false, signal, out = process.stdout } = options;
  const shown = new Map<bigint, string>();
  const say = (text: string) => (quiet ? undefined : out.write(`${text}\n`));
  let head = '';
  for (;;) {
    const change = await loadChange(catalog.pool, id);
    for (const member of change.members) {
      // Figures that change all the time are for those who watch the migration itself.
      const line = progressLine({ ...member, progress: { note: member.progress.note ?? null } });
      if (shown.get(member.id) === line || (member.state === 'planned' && !shown.has(member.id))) continue;
      shown.set(member.id, line);
      say(`migration ${member.id} (${member.position} of ${change.members.length}): ${line}`);
    }
    const line = changeLine(change);
    if (line !== head) say(line);
    head = line;
    const waits = changeWaits(change);
    if (RESTING_CHANGES.includes(changeState(change)) || waits.length > 0 || signal?.aborted === true) {
      for (const member of change.members)
        if (member.error !== null) say(`error of migration ${member.id}: ${member.error}`);
      for (const text of waits) say(text);
      return change;
    }
    await delay(POLL_MS, undefined, { ...(signal === undefined ? {} : { signal }) }).catch(() => undefined); // seen above
  }
}

/** What people can do, when none of the members at work goes on by itself; else empty. */
export function changeWaits(change: Change): string[] {
  const atWork = change.members.filter(
    (m: MigrationRow) => !RESTING_STATES.includes(m.state) && m.state !== 'approved',
  );
  const waits = atWork.map(waitsForSomebody).filter((text) => text !== null);
  return waits.length === atWork.length ? waits : [];
}
