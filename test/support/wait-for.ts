import { setTimeout as delay } from 'node:timers/promises';

const POLL_MS = 20;

/**
 * Polls until `condition` gives something truthy, and gives that.
 * @throws {Error} naming `what` after `timeoutMs` (default 90,000); the last error of the condition is its cause
 */
export async function waitFor<T>(
  condition: () => T | Promise<T>,
  options: { readonly what: string; readonly timeoutMs?: number },
): Promise<Exclude<T, false | null | undefined | 0 | ''>> {
  const timeoutMs = options.timeoutMs ?? 90_000;
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    let cause: unknown;
    try {
      const value = await condition();
      if (value) return value as Exclude<T, false | null | undefined | 0 | ''>;
    } catch (error) {
      cause = error;
    }
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${options.what}`, { cause });
    await delay(POLL_MS);
  }
}
