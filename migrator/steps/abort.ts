import { assertGateSql } from '../guards.js';
import type { Move } from '../move.js';
import { GATE_OPEN } from '../names.js';
import { undo, undoAll } from '../undo.js';

/** aborting → aborted: writers first, then everything that was made, the last first. */
export async function abort(m: Move): Promise<void> {
  await m.source.query(assertGateSql(m.names, GATE_OPEN));
  m.exec.at('after:abort-reopen');
  // Holds first: clients wait for them.
  for (const record of await m.exec.openCleanup('hold')) {
    await undo(m, record);
    await m.exec.markCleanupDone(record);
  }
  await undoAll(m, 'after:undo');
  m.row = await m.exec.transition(m.row, 'aborted');
}
