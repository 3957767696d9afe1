import type { Move } from '../move.js';
import { Supervisor } from '../supervisor.js';

/** How often replication is looked after meanwhile, ms. */
const SUPERVISE_MS = 1000;

/** Waits as long as `why` says what for; the destination goes on following the source. @param text what is waited for in the end */
export async function waitWhile(m: Move, text: string, why: () => Promise<string | null>): Promise<void> {
  const supervisor = new Supervisor(m);
  let supervisedAt = 0;
  await m.exec.wait(text, async () => {
    const cause = await why();
    if (cause === null) return true;
    if (performance.now() - supervisedAt > SUPERVISE_MS) {
      supervisedAt = performance.now();
      const { lagBytes, note } = await supervisor.check();
      await m.exec.progress({ lagBytes, note: note ?? cause });
    }
    return false;
  });
  await m.exec.progress({ note: null });
}
