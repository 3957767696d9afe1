import { assertGateSql } from '../guards.js';
import type { Move } from '../move.js';
import { GATE_OPEN } from '../names.js';
import { undo } from '../undo.js';

/** aborting → aborted: writers first, then everything that was made, the last first. */
export async function abort(m: Move): Promise<void> {
  await m.source.query(assertGateSql(m.names, GATE_OPEN));
  m.exec.at('after:abort-reopen');
  // Holds first: clients wait for them. Then all else backwards; undoing may record more, so look again until none is left.
  for (const record of await m.exec.openCleanup('hold')) {
    await undo(m, record);
    await m.exec.markCleanupDone(record);
  }
  for (;;) {
    const record = (await m.exec.openCleanup()).at(-1);
    if (record === undefined) break;
    await m.exec.progress({ note: `undoing: ${record.kind} on ${record.shard}` });
    await undo(m, record);
    m.exec.at('after:undo');
    await m.exec.markCleanupDone(record);
  }
  await m.exec.progress({ note: null });
  m.row = await m.exec.transition(m.row, 'aborted');
}
