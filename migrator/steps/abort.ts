import type { Move } from '../move.js';
import { undoAll } from '../undo.js';
import { letGoOn } from './missed-fence.js';

/** aborting → aborted: writers first, then everything that was made, the last first. */
export async function abort(m: Move): Promise<void> {
  await letGoOn(m);
  m.exec.at('after:abort-reopen');
  await undoAll(m, 'after:undo');
  m.row = await m.exec.transition(m.row, 'aborted');
}
